"""How much memory jobs will take: by the weights where they lie here, by what ended; what is unknown is tried alone."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from c3po_utils.batch.driver import drive
from c3po_utils.batch.graph import Node
from c3po_utils.batch.memory import BARE_GIB, EMBEDDED_GIB, Memory
from c3po_utils.batch.tasks import Outcome, Task
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import write_json
from c3po_utils.runs.jobs import Job

HUB = "someone/large"


def of_model(folder: Path, model: str) -> RunConfig:
    return RunConfig(run=str(folder / "run"), methods=["c3po"], sample={"model": model})


def sampling(folder: Path, name: str) -> Node:
    return Node(name, "sample", (), (folder / "run" / name,), lambda: Job("", folder, {}))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """The hub's cache on this machine, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_models_memory_is_unknown_until_its_weights_are_here(tmp_path, cache):
    node = sampling(tmp_path, "a")
    likely = {name: Memory(of_model(tmp_path, name)).likely_gib(node) for name in ("", HUB, "openai:m")}
    assert likely == {"": BARE_GIB + 3 * EMBEDDED_GIB, HUB: 0, "openai:m": BARE_GIB}
    model = cache / "models--someone--large"
    snapshot = model / "snapshots" / "c0ffee"
    for path, text in ((model / "refs" / "main", "c0ffee"), (snapshot / "config.json", "{}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert not Memory(of_model(tmp_path, HUB)).likely_gib(node), "no weights yet"
    with open(snapshot / "model-1.safetensors", "wb") as file:
        file.truncate(2**30)
    assert Memory(of_model(tmp_path, HUB)).likely_gib(node) == BARE_GIB + 3
    write_json(snapshot / "model.safetensors.index.json", {"metadata": {"total_size": 2 * 2**30}})
    assert Memory(of_model(tmp_path, HUB)).likely_gib(node) == BARE_GIB + 3 * 2, "a part is still to come"


class Machine:
    """Ends the tasks one by one when another look at them is taken, and leaves what each took in its manifest."""

    slots = 3

    def __init__(self, folder: Path):
        self.folder, self.open, self.waves = folder, {}, []

    def submit(self, task: Task) -> Future[Outcome]:
        if all(future.done() for future in self.open.values()):
            self.waves.append({})
        self.waves[-1][task.name] = task.resources.memory_gib
        self.open[task.name] = future = Future()
        return future

    def end(self) -> None:
        for name, future in self.open.items():
            if not future.done():
                write_json(self.folder / "run" / name / "manifest.json", {"peak_gib": 7.0})
                future.set_result(Outcome(name, "done"))

    def stop(self) -> None:
        pass


def test_of_jobs_whose_memory_is_unknown_one_is_tried_first(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    monkeypatch.setattr("c3po_utils.batch.driver.wait", lambda running, *_: (machine.end(), (set(running), set()))[1])
    drive(of_model(tmp_path, HUB), {name: sampling(tmp_path, name) for name in "abc"}, machine)
    assert machine.waves == [{"a": 0}, {"b": 7.0, "c": 7.0}]

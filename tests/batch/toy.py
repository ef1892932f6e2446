"""A graph of tiny notebooks in real kernels: each has one cell, and one stage that says when it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import nbformat
import pytest

from c3po_utils.batch import Executor, Outcome, Task
from c3po_utils.batch.driver import RunFailed, drive
from c3po_utils.batch.graph import Node, Nodes
from c3po_utils.batch.work import run_node
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.jobs import Job
from c3po_utils.runs.progress import telling
from c3po_utils.runs.stage import Stage

STAGED = """
import os, pathlib, time
from c3po_utils.runs.stage import Stage
folder = pathlib.Path({folder!r})
with (folder / "started").open("a") as file:
    print({name!r}, os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.getcwd(), file=file)
with Stage(folder / {name!r}, {{"name": {name!r}}}):
    {source}
"""


def toy(folder: Path, jobs: Mapping[str, tuple[str, str]]) -> Nodes:
    """Nodes by name, each of (names that it needs, source of its cell), in this order; `folder` is their run's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.json").write_text(json.dumps(jobs))
    for name, (_, source) in jobs.items():
        cell = STAGED.format(folder=str(folder), name=name, source=source.replace("\n", "\n    "))
        cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(cell)]
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata={"c3po": {"checked_parameters": True}}),
            folder / f"{name}.ipynb",
        )
    return nodes(folder)


def nodes(folder: Path) -> Nodes:
    jobs = json.loads((folder / "toy.json").read_text())
    return {
        name: Node(name, "figures", tuple(needs.split()), (folder / name,), partial(_job, folder, name))
        for name, (needs, _) in jobs.items()
    }


def _job(folder: Path, name: str) -> Job:
    stage = Stage(folder / name, {"name": name})
    return Job(str(folder / f"{name}.ipynb"), stage.folder / "out.ipynb", {}, [stage])


def run_toy(task: Task) -> Outcome:
    """The body of a toy's tasks, for executors."""
    folder = Path(task.config["run"])
    with telling(folder, task.name):
        return run_node(nodes(folder)[task.name])


def check_that_a_failure_leaves_the_others_alone(folder: Path, executor: Executor) -> None:
    """A graph through the driver and an executor, whose body is `run_toy`."""
    jobs = {"a": ("", "pass"), "bad": ("a", "1 / 0"), "after": ("bad", "pass"), "good": ("a", "pass")}
    made = toy(folder, jobs)
    with pytest.raises(RunFailed) as failure:
        drive(config(folder), made, executor)
    assert failure.value.failed == {"bad": "ZeroDivisionError: division by zero"}
    assert failure.value.refused == {"after": "bad"}
    assert [name for name, node in made.items() if node.done] == ["a", "good"]


def config(folder: Path) -> RunConfig:
    return RunConfig(run=str(folder), methods=["c3po"])


def started(folder: Path) -> list[list[str]]:
    """Of every kernel in order: its toy's name, process, threads and working folder."""
    path = folder / "started"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

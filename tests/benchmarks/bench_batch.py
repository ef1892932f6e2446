"""Runs of many notebooks: what each costs beyond its work, how busy workers are, what a rerun and a plan take.

`python -m tests.benchmarks.bench_batch`, some minutes; writes results/bench/batch.json.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from c3po_utils.batch.driver import drive
from c3po_utils.batch.graph import finished, graph
from c3po_utils.batch.local import LocalExecutor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import remembered, write_json
from c3po_utils.runs.stage import MANIFEST, ROOT, fingerprint, git_commit, hardware
from tests.batch.toy import config, nodes, run_toy, started, toy

OUTPUT = ROOT / "results" / "bench" / "batch.json"
LIBRARIES = "import torch, trl, peft, c3po_utils.training.finetune, c3po_utils.figures.tables"  # as 02 and 03 import
FEEDBACKS, METHODS, VALUES = 100, 12, 5
RECORD = {
    "domain": "questions", "effect": "the answer has two words", "source": "human", "kind": "style",
    "metric": {"name": "words_at_least", "value": 2},
}  # fmt: skip


def wide(folder: Path) -> RunConfig:
    """A run of 100 feedbacks and 12 methods, each trained with 5 values of a setting."""
    feedbacks = [{"id": f"feedback{n:03}", "content": f"Number {n}.", **RECORD} for n in range(FEEDBACKS)]
    (folder / "wide.yaml").write_text(yaml.safe_dump({"feedbacks": feedbacks}))
    names = ["c3po", "c3po_kl", "c3po_nll", "c3po_no_near", "c3po_no_out", "dpo", "dpo_negatives", "scd", "scd_mixed"]
    names += ["scd_negatives", "dpo_after_scd", "c3po_after_scd_negatives"]
    methods = [f"{name}@beta={value}" for value in range(VALUES) for name in names]
    own = {method: {"method_settings": {"beta": 0.01 + int(method[-1]) / 10}} for method in methods}
    return RunConfig(
        run=str(folder / "run"), feedback_set=str(folder / "wide.yaml"), methods=["scd", "scd_negatives", *methods],
        sample={"prompt_model": "smollm2-135m"}, train_methods=own,
    )  # fmt: skip


def pretend_done(run: RunConfig) -> None:
    """Manifests and small files as if everything were done."""
    for node in graph(run).values():
        for stage in node.make().stages:
            stage.folder.mkdir(parents=True, exist_ok=True)
            for name in stage.products:
                stage.path(name).write_text("{}")
            known = {name: fingerprint(stage.path(name)) for name in stage.products}
            manifest = {"status": "done", "identity": stage.identity, "files": known, "peak_gib": 1.0}
            stage.path(MANIFEST).write_text(json.dumps(manifest))


@contextmanager
def workers(slots: int) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(slots, body=run_toy)
    try:
        yield executor
    finally:
        executor.stop()


def timed(folder: Path, slots: int) -> float:
    """Seconds that a toy's run takes."""
    with workers(slots) as executor:
        start = time.monotonic()
        drive(config(folder), nodes(folder), executor)
        return time.monotonic() - start


def overhead(folder: Path) -> dict[str, Any]:
    """Seconds of a notebook beyond its work, alone on the machine: kernel, imports of a training's libraries, manifest.

    The first one of a run comes with the process from which kernels are forked.
    """
    seconds = []
    with workers(1) as executor:
        for number in range(6):
            own = folder / str(number)
            toy(own, {"a": ("", LIBRARIES)})
            start = time.monotonic()
            drive(config(own), nodes(own), executor)
            seconds.append(round(time.monotonic() - start, 2))
    return {"first_s": seconds[0], "later_s": seconds[1:], "held": max(seconds[1:]) <= 6}


def busy(folder: Path) -> dict[str, Any]:
    """16 jobs that take 10 s each without using a core, 4 at a time: how much of the workers' time is the jobs'."""
    toy(folder, {f"job{number}": ("", "time.sleep(10)") for number in range(16)})
    wall_s = timed(folder, 4)
    return {"wall_s": round(wall_s, 1), "busy": round(16 * 10 / 4 / wall_s, 3), "held": 16 * 10 / 4 / wall_s >= 0.85}


def many(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """200 small notebooks, 8 at a time; then the same run again."""
    toy(folder, {f"job{number:03}": ("", "pass") for number in range(200)})
    wall_s, first = timed(folder, 8), len(started(folder))
    done = len(finished(nodes(folder)))
    torn = [path for path in folder.rglob("out.ipynb") if not _whole(path)]
    counts = {"done": done, "kernels": first, "torn": len(torn)}
    held = (done, first, torn) == (200, 200, [])
    yield "200 notebooks, 8 at a time", {"wall_s": round(wall_s, 1), **counts, "held": held}
    again_s, kernels = timed(folder, 8), len(started(folder)) - first
    yield "the same run again", {"wall_s": round(again_s, 2), "kernels": kernels, "held": not kernels and again_s < 5}


def _whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text())["cells"])
    except ValueError:
        return False


def plan(folder: Path) -> dict[str, Any]:
    """The graph of 100 feedbacks x 12 methods x 5 values, and what of it is done, before anything is."""
    run, start = wide(folder), time.process_time()
    found = graph(run)
    done = finished(found)
    cpu_s = time.process_time() - start
    return {"nodes": len(found), "done": len(done), "cpu_s": round(cpu_s, 2), "held": cpu_s < 3}


def plan_of_done(folder: Path) -> dict[str, Any]:
    """As `plan`, where all is done: every manifest is read, and every file is hashed."""
    run = wide(folder)
    pretend_done(run)
    start = time.process_time()
    done = finished(graph(run))
    return {"done": len(done), "cpu_s": round(time.process_time() - start, 2)}


def trials(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    def of(name: str, trial: Callable[[Path], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        own = folder / trial.__name__
        own.mkdir()
        return name, trial(own)

    yield of("overhead of a notebook", overhead)
    yield of("16 jobs of 10 s, 4 at a time", busy)
    yield from many(folder / "many")
    yield of("plan of 100 x 12 x 5, nothing done", plan)
    yield of("plan of 100 x 12 x 5, all done", plan_of_done)


def main() -> bool:
    """Whether everything held."""
    before, rows = os.getloadavg()[1], []
    with tempfile.TemporaryDirectory() as name:
        for what, found in trials(Path(name)):
            print(f"{what:36} {found}", flush=True)
            rows.append({"what": what, **found})
    beside = f"load average {before:.1f} before, {os.getloadavg()[1]:.1f} after, on {os.cpu_count()} cores"
    own = {"machine": hardware(), "commit": git_commit(), "beside": beside, "rows": rows}
    write_json(OUTPUT, (remembered(OUTPUT) or {}) | own)  # bench_ray writes there, too
    return all(row.get("held", True) for row in rows)


if __name__ == "__main__":
    sys.exit(not main())

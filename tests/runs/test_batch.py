"""Chains of notebooks side by side: real kernels on notebooks of one cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from c3po_utils.runs import batch, jobs
from c3po_utils.runs.batch import execute, run_notebooks
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.jobs import NOTEBOOKS, Job
from c3po_utils.runs.stage import ROOT

REPORT = "import os, pathlib; print(os.getcwd(), os.environ.get('OMP_NUM_THREADS'))"
# Ends when the other one has started, so two of them end only if they run at the same time.
MEET = (
    REPORT
    + """
import pathlib, time
pathlib.Path({mine!r}).touch()
limit = time.monotonic() + 60
while not pathlib.Path({other!r}).exists():
    assert time.monotonic() < limit, "alone"
    time.sleep(0.05)
"""
)


def job(folder: Path, name: str, source: str) -> Job:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source)], metadata={"c3po": {"checked_parameters": True}}
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}))
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return Job(str(folder / f"{name}.ipynb"), folder / f"{name}.out.ipynb", {})


def printed(done: Job) -> str:
    cells = nbformat.read(done.output, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))


@pytest.fixture
def chains_of(monkeypatch):
    """Let a run consist of the given chains of jobs."""
    return lambda *chains: monkeypatch.setattr(jobs, "phases", lambda config: [[iter(jobs) for jobs in chains]])


def config(tmp_path: Path, workers: int) -> RunConfig:
    return RunConfig(run=str(tmp_path / "run"), feedbacks=["boss_signoff"], methods=["c3po"], workers=workers)


def test_workers_run_at_one_time_each_on_its_share_of_the_cores(tmp_path, chains_of, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    files = [str(tmp_path / name) for name in "ab"]
    one = job(tmp_path, "one", MEET.format(mine=files[0], other=files[1]))
    two = job(tmp_path, "two", MEET.format(mine=files[1], other=files[0]))
    chains_of([one], [two])
    before = os.getcwd()
    run_notebooks(config(tmp_path, workers=2))
    share = max(1, (os.cpu_count() or 1) // 2)
    assert printed(one) == printed(two) == f"{NOTEBOOKS} {share}\n"
    assert os.getcwd() == before
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_failed_chain_leaves_the_others_alone(tmp_path, chains_of):
    bad, never = job(tmp_path, "bad", "1 / 0"), job(tmp_path, "never", REPORT)
    good, then = job(tmp_path, "good", REPORT), job(tmp_path, "then", REPORT)
    chains_of([bad, never], [good, then])
    with pytest.raises(batch.papermill.PapermillExecutionError, match="ZeroDivisionError"):
        run_notebooks(config(tmp_path, workers=1))
    assert printed(good)
    assert printed(then)
    assert not never.output.exists()


def test_several_failures_are_raised_together(tmp_path, chains_of, monkeypatch):
    def fail(failing: Job) -> None:
        raise RuntimeError(failing.notebook)

    monkeypatch.setattr(batch, "execute", fail)
    chains_of([job(tmp_path, "one", "")], [job(tmp_path, "two", "")], [])
    with pytest.raises(ExceptionGroup, match="2 of 3") as raised:
        run_notebooks(config(tmp_path, workers=2))
    assert {Path(str(error)).stem for error in raised.value.exceptions} == {"one", "two"}


INTERRUPTED = """
import sys, pathlib
sys.path.insert(0, {root!r})
from tests.runs.test_batch import job
from c3po_utils.runs import batch
folder = pathlib.Path({folder!r})
sleepy = "import pathlib, os, time; pathlib.Path({folder!r}, str(os.getpid())).touch(); time.sleep(300)"
jobs = [job(folder, name, sleepy) for name in ("one", "two", "three")]
batch._side_by_side(lambda chain: [batch.execute(each) for each in chain], [iter([each]) for each in jobs], 2)
"""


@pytest.mark.parametrize("signals", [[signal.SIGINT] * 3, [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_ctrl_c_and_sigterm_end_the_run_and_its_kernels(tmp_path, signals):
    script = INTERRUPTED.format(root=str(ROOT), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while len(kernels := [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.1)
    start = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 10  # under 5 s where nothing else runs
    assert process.returncode
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not any(psutil.pid_exists(pid) for pid in kernels)
    assert not (tmp_path / "three.out.ipynb").exists()


def test_the_working_folder_of_a_notebook_is_its_own(tmp_path):
    alone = job(tmp_path, "alone", REPORT)
    execute(alone)
    assert printed(alone).startswith(f"{NOTEBOOKS} ")

"""Graphs of tiny notebooks, in real processes with real kernels: order, failures, losses, interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from c3po_utils.batch import driver as batch_driver
from c3po_utils.batch.driver import LOST_AT_MOST, RunFailed, drive
from c3po_utils.batch.graph import Nodes, finished
from c3po_utils.batch.local import PRELOADED, LocalExecutor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import read_json
from c3po_utils.runs.jobs import NOTEBOOKS
from c3po_utils.runs.limits import usable_cores
from c3po_utils.runs.stage import MANIFEST, ROOT, RUN_FILE, Stage
from tests.batch.toy import config, nodes, run_toy, started, toy

# Ends when the other one has started, so two of them end only if they run at the same time.
MEET = """(folder / "{mine}.here").touch()
limit = time.monotonic() + 60
while not (folder / "{other}.here").exists():
    assert time.monotonic() < limit, "alone"
    time.sleep(0.05)"""
DIES = "os.kill(os.getpid(), 9)"


@pytest.fixture
def run() -> Callable[..., None]:
    """Drive a toy's graph with so many workers."""
    executors = []

    def run(folder: Path, slots: int = 1) -> None:
        executors.append(LocalExecutor(slots, body=run_toy))
        drive(config(folder), nodes(folder), executors[-1])

    yield run
    for executor in executors:
        executor.stop()


def test_workers_run_at_one_time_each_on_its_share_of_the_cores(tmp_path, run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    toy(tmp_path, {"a": ("", MEET.format(mine="a", other="b")), "b": ("", MEET.format(mine="b", other="a"))})
    before = os.getcwd()
    run(tmp_path, slots=2)
    share = str(max(1, usable_cores() // 2))
    assert sorted((name, threads, folder) for name, _, threads, folder in started(tmp_path)) == [
        (name, share, str(NOTEBOOKS)) for name in "ab"
    ]
    assert os.getcwd() == before
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_job_that_runs_alone_has_all_cores(tmp_path, run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    toy(tmp_path, {"a": ("", "pass"), "b": ("a", "pass")})
    run(tmp_path, slots=2)
    assert [(name, threads) for name, _, threads, _ in started(tmp_path)] == [
        (name, str(usable_cores())) for name in "ab"
    ]


def test_a_failed_job_leaves_the_others_alone_and_what_needs_it_is_refused(tmp_path, run):
    toy(
        tmp_path,
        {"bad": ("", "1 / 0"), "good": ("", "pass"), "after": ("bad", "pass"), "then": ("good", "pass"),
         "last": ("after then", "pass")},
    )  # fmt: skip
    with pytest.raises(RunFailed) as raised:
        run(tmp_path)
    assert [name for name, *_ in started(tmp_path)] == ["bad", "good", "then"]
    assert raised.value.failed == {"bad": "ZeroDivisionError: division by zero"}
    assert raised.value.refused == {"after": "bad", "last": "bad"}
    for line in ("  bad: ZeroDivisionError: division by zero", "  after (needs bad)"):
        assert line in str(raised.value).splitlines()


def test_a_kernel_that_is_killed_is_started_again_a_few_times(tmp_path, run):
    twice = f"(folder / 'tries').open('a').write('x')\nif (folder / 'tries').stat().st_size < {LOST_AT_MOST}: {DIES}"
    toy(tmp_path, {"unlucky": ("", twice), "hopeless": ("", DIES)})
    with pytest.raises(RunFailed, match=f"hopeless: lost {LOST_AT_MOST} times"):
        run(tmp_path, slots=2)
    assert [name for name, *_ in started(tmp_path)].count("hopeless") == LOST_AT_MOST
    assert finished(nodes(tmp_path)) == {"unlucky"}


def test_a_worker_that_is_killed_takes_its_kernel_along_and_its_job_is_done_again(tmp_path, run):
    kills = "if not (folder / 'tried').exists():\n    (folder / 'tried').touch()\n    os.kill(os.getppid(), 9)"
    toy(tmp_path, {"a": ("", f"{kills}\n    time.sleep(60)")})
    run(tmp_path)
    pids = [int(pid) for _, pid, *_ in started(tmp_path)]
    assert len(pids) == 2
    assert finished(nodes(tmp_path)) == {"a"}
    limit = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_a_rerun_starts_nothing_that_is_done(tmp_path, run):
    toy(tmp_path, {"a": ("", "assert not (folder / 'broken').exists()"), "b": ("a", "pass"), "c": ("", "pass")})
    (tmp_path / "broken").touch()
    with pytest.raises(RunFailed):
        run(tmp_path)
    (tmp_path / "broken").unlink()
    run(tmp_path)
    assert [name for name, *_ in started(tmp_path)] == ["a", "c", "a", "b"]
    run(tmp_path)
    assert len(started(tmp_path)) == 4


def test_a_training_without_its_adapter_is_run_again_only_for_what_still_needs_it(tmp_path, run):
    def with_adapter() -> Nodes:
        made = nodes(tmp_path)
        job = made["a"].make()
        adapter = replace(job, stages=[Stage(tmp_path / "a", {"name": "a"}, "adapter")])
        return made | {"a": replace(made["a"], kind="train", make=lambda: adapter)}

    toy(tmp_path, {"a": ("", "pass"), "b": ("a", "pass")})
    run(tmp_path)
    assert not with_adapter()["a"].done
    executor = LocalExecutor(1, body=run_toy)
    try:
        drive(config(tmp_path), with_adapter(), executor)
        assert [name for name, *_ in started(tmp_path)] == ["a", "b"]
        (tmp_path / "a" / MANIFEST).unlink()
        (tmp_path / "b" / MANIFEST).unlink()
        drive(config(tmp_path), with_adapter(), executor)
    finally:
        executor.stop()
    assert [name for name, *_ in started(tmp_path)] == ["a", "b", "a", "b"]


DRIVER = """
import pathlib, sys
sys.path.insert(0, {root!r})
from tests.batch.toy import config, nodes, run_toy
from c3po_utils.batch import local
from c3po_utils.batch.driver import drive
local.PRELOADED = {preloaded!r}
folder = pathlib.Path({folder!r})
drive(config(folder), nodes(folder), local.LocalExecutor(2, body=run_toy))
"""


def driver(folder: Path, preloaded: str = "ipykernel.kernelapp") -> list[str]:
    """The command of a driver in a process of its own; its kernels, forked, have what they need at once."""
    return [sys.executable, "-c", DRIVER.format(root=str(ROOT), folder=str(folder), preloaded=preloaded)]


def test_a_killed_kernel_leaves_no_semaphore_behind(tmp_path):
    """Python's tracker of such things complains when the driver ends."""
    bar = f"from tqdm.auto import tqdm\nlist(tqdm(range(3)))\n{DIES}"
    toy(tmp_path, {"a": ("", bar)})
    ended = subprocess.run(driver(tmp_path, PRELOADED), capture_output=True, text=True, timeout=120)
    assert f"a: lost {LOST_AT_MOST} times" in ended.stderr
    assert "leaked" not in ended.stderr


@pytest.mark.quiet
def test_a_kernel_whose_threads_wait_for_each_other_ends_at_once(tmp_path, run):
    """As some of ipykernel's do at its end: Jupyter would wait 2.5 s before it ends the kernel by force."""
    waits = "sys.stdout.flush = lambda: threading.current_thread() is threading.main_thread() or time.sleep(30)"
    toy(tmp_path, {"a": ("", f"import sys, threading\n{waits}\n(folder / 'at').write_text(str(time.time()))")})
    run(tmp_path)
    assert time.time() - float((tmp_path / "at").read_text()) < 2


def _interrupted(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A driver in a process of its own whose two workers' kernels sleep, and the kernels."""
    toy(folder, dict.fromkeys(("a", "b", "c"), ("", "if not (folder / 'awake').exists(): time.sleep(300)")))
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # these tests may run below nohup
    process = subprocess.Popen(driver(folder), stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    limit = time.monotonic() + 90
    while len(started(folder)) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.1)
    return process, [int(pid) for _, pid, *_ in started(folder)]


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT] * 3, [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT], [signal.SIGHUP]]
)
def test_ctrl_c_sigterm_and_a_closed_terminal_end_the_run_and_its_kernels(tmp_path, signals):
    process, kernels = _interrupted(tmp_path)
    start = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    while any(psutil.pid_exists(pid) for pid in kernels):
        assert time.monotonic() - start < 10  # under 5 s where nothing else runs
        time.sleep(0.1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode
    assert "KeyboardInterrupt" in errors.splitlines()
    assert {name for name, *_ in started(tmp_path)} == {"a", "b"}
    assert finished(nodes(tmp_path)) == set()


def test_a_killed_driver_takes_workers_and_kernels_along_and_can_be_run_again(tmp_path, run):
    process, kernels = _interrupted(tmp_path)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in kernels if psutil.pid_exists(pid)], timeout=10)
    assert not alive
    (tmp_path / "awake").touch()
    run(tmp_path, slots=3)
    assert finished(nodes(tmp_path)) == {"a", "b", "c"}


def test_a_runs_settings_are_kept_once_it_is_whole(tmp_path, monkeypatch):
    class Idle:
        slots = 1

        def stop(self) -> None:
            pass

    config = RunConfig(run=str(tmp_path / "run"), feedbacks=["boss_signoff"], methods=["base_resampled"])
    monkeypatch.setattr(batch_driver, "open_executor", lambda config: Idle())
    batch_driver.run_checked(config, {})
    assert not (tmp_path / "run" / RUN_FILE).exists()
    monkeypatch.setattr(batch_driver, "graph", lambda config: {})  # nothing is left to do
    batch_driver.run_checked(config, {})
    assert RunConfig.model_validate(read_json(tmp_path / "run" / RUN_FILE)["config"]).run == config.run


def test_a_run_below_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with batch_driver._interrupts(event := threading.Event()):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not event.wait(0.2)
            os.kill(os.getpid(), signal.SIGTERM)
            assert event.wait(5)
    finally:
        signal.signal(signal.SIGHUP, before)

"""The executor of this machine: memory, GPUs, and what it says when it is stopped."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from c3po_utils.batch import Outcome, Resources, Task, local, open_executor
from c3po_utils.batch.driver import drive
from c3po_utils.batch.local import LocalExecutor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import ParameterError
from tests.batch.toy import config, toy


def times(task: Task) -> Outcome:
    """When it ran, on which GPU."""
    start = time.time()
    time.sleep(0.5)
    return Outcome(task.name, "done", f"{start} {time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")


def full(task: Task) -> Outcome:
    return Outcome(task.name, "failed", f"OSError: [Errno 28] No space left on device: {task.name}")


@pytest.fixture
def opened():
    executors = []

    def opened(*arguments, **settings) -> LocalExecutor:
        executors.append(LocalExecutor(*arguments, warm=False, **settings))
        return executors[-1]

    yield opened
    for executor in executors:
        executor.stop()


def _spans(executor: LocalExecutor, gib: float) -> list[list[str]]:
    futures = [executor.submit(Task({}, name, resources=Resources(memory_gib=gib))) for name in "ab"]
    return sorted(future.result(60).error.split() for future in futures)


def test_a_task_that_memory_has_no_room_for_waits_for_the_others(opened, monkeypatch):
    monkeypatch.setattr(local, "free_bytes", lambda: 5 * 2**30)
    first, second = _spans(opened(2, body=times), gib=4.0)
    assert float(first[1]) <= float(second[0])
    first, second = _spans(opened(2, body=times), gib=2.0)
    assert float(second[0]) < float(first[1])


def test_a_task_whose_process_cannot_be_started_is_lost_and_the_next_one_runs(opened, monkeypatch):
    executor, started = opened(1, body=times), local._context.Process

    def no_process(*_, **__):
        monkeypatch.setattr(local._context, "Process", started)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(local._context, "Process", no_process)
    first, second = (executor.submit(Task({}, name)) for name in "ab")
    assert first.result(60).status == "lost"
    assert "could not be started: [Errno 24] Too many open files" in first.result().error
    assert second.result(60).status == "done"


def test_each_task_has_a_gpu_of_its_own(opened, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    executor = opened(body=times)
    assert executor.slots == 2
    assert {gpu for *_, gpu in _spans(executor, 0)} == {"3", "GPU-5"}


def test_tasks_of_a_stopped_executor_are_lost(opened):
    executor = opened(1, body=times)
    futures = [executor.submit(Task({}, name)) for name in "abc"]
    executor.stop()
    assert {future.result(10).status for future in futures[1:]} == {"lost"}
    assert executor.submit(Task({}, "d")).result(1).status == "lost"
    executor.stop()


def test_a_full_disk_is_one_clear_error(tmp_path, opened):
    nodes = toy(tmp_path, dict.fromkeys("abcd", ("", "pass")))
    with pytest.raises(OSError, match=r"^a: OSError: .*No space left on device: a. Nothing else was started"):
        drive(config(tmp_path), nodes, opened(1, body=full))


def test_a_run_folder_that_cannot_be_written_to_is_one_clear_error(tmp_path, opened):
    nodes = toy(tmp_path / "run", dict.fromkeys("ab", ("", "pass")))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        drive(config(tmp_path / "file" / "run"), nodes, opened(1, body=full))


def test_executors_are_opened_by_name():
    given = {"run": "results/x", "methods": ["c3po"]}
    executor = open_executor(RunConfig(**given, workers=3))
    assert (type(executor), executor.slots) == (LocalExecutor, 3)
    executor.stop()
    with pytest.raises(ParameterError, match=r"executor_settings of 'local': .*'adress'"):
        open_executor(RunConfig(**given, executor_settings={"adress": "x"}))


def test_stopping_is_quick_and_leaves_no_thread(opened):
    before, start = threading.active_count(), time.monotonic()
    executor = opened(2, body=times)
    executor.submit(Task({}, "a"))
    executor.stop()
    assert time.monotonic() - start < 10
    limit = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_shares_of_the_cores_add_up_to_all(tmp_path: Path, opened, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    executor = opened(4, body=threads)
    alone = executor.submit(Task({}, "a")).result(60).error
    together = [future.result(60).error for future in [executor.submit(Task({}, name)) for name in "abcd"]]
    assert (alone, together) == ("8", ["2"] * 4)


def threads(task: Task) -> Outcome:
    time.sleep(0.3)
    return Outcome(task.name, "done", os.environ["OMP_NUM_THREADS"])

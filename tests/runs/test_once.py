"""What several processes want at one time is made by one of them, and a process that dies leaves no lock."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from c3po_utils.runs import once

FORK = multiprocessing.get_context("fork")


def run(target, *arguments: tuple) -> list[int]:
    processes = [FORK.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    return [process.exitcode for process in processes]


def make(folder: Path, key: str) -> None:
    def slowly() -> float:
        with (folder / "made").open("a") as file:
            file.write(f"{key}\n")
        time.sleep(0.2)
        return 0.1 + 0.2

    assert once.made_once(folder, "value", key, slowly) == 0.1 + 0.2


def test_of_four_processes_one_makes_the_value(tmp_path):
    assert run(make, *[(tmp_path, "a")] * 4, (tmp_path, "b")) == [0] * 5
    assert sorted((tmp_path / "made").read_text().split()) == ["a", "b"]
    assert len(list(tmp_path.glob("value-*.json"))) == 2


def test_a_damaged_value_is_made_anew(tmp_path):
    make(tmp_path, "a")
    (path,) = tmp_path.glob("value-*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 0.4}))
    with pytest.warns(UserWarning, match=r"value-.*damaged: .*made anew"):
        make(tmp_path, "a")
    assert (tmp_path / "made").read_text().split() == ["a", "a"]


def overlap(folder: Path, keys: str, name: str) -> None:
    for _ in range(20):
        with once.alone(folder / "lock", keys):
            for key in keys:
                path = folder / f"held-{key}"
                path.touch(exist_ok=False)  # an error if another process holds it
            for key in keys:
                (folder / f"held-{key}").unlink()


def test_overlapping_sets_of_keys_exclude_each_other_and_never_wait_in_a_circle(tmp_path):
    assert run(overlap, (tmp_path, "abc", "x"), (tmp_path, "cda", "y"), (tmp_path, "db", "z")) == [0, 0, 0]


def die(folder: Path) -> None:
    once.alone(folder / "lock", "a").__enter__()
    os._exit(9)


def test_a_process_that_dies_holds_nothing(tmp_path):
    assert run(die, (tmp_path,)) == [9]
    assert run(overlap, (tmp_path, "a", "x")) == [0]


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(once.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(once.fcntl, "lockf", none)
    make(tmp_path, "a")

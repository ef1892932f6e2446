"""Bodies of tasks for tests of executors: what a task does is written in its config."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from c3po_utils.batch import Outcome, Task


def run(task: Task) -> Outcome:
    """Note the start, wait until `until` lies there or for `seconds`, then note the end; fail where `fails` is true."""
    given = task.config
    folder = Path(given["run"])
    _note(folder / "started", f"{task.name} {os.getpid()}")
    limit = time.monotonic() + given.get("seconds", 0)
    while time.monotonic() < limit and not (folder / given.get("until", "never")).exists():
        time.sleep(0.05)
    if given.get("fails"):
        return Outcome(task.name, "failed", "KeyError: as asked", host=socket.gethostname())
    _note(folder / "ended", f"{task.name} {os.getpid()}")
    return Outcome(task.name, "done", host=socket.gethostname())


def raises(task: Task) -> Outcome:
    raise RuntimeError(f"{task.name}: a body that raises")


def noted(folder: Path, what: str) -> list[list[str]]:
    """[name, process] of every start or end, in order."""
    path = folder / what
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for what an executor does elsewhere."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s"
        time.sleep(0.1)

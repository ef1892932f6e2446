"""How far a job is: a bar where people look on, and for a headless job one small file, which its runner reads.

The file is JSON, `<run>/.progress/<job's name, its slashes as ~>.json`:

    {"job": "train/boss_signoff/c3po", "host": "node7", "stage": "training c3po",
     "n": 12, "total": 40, "unit": "step", "eta_s": 51, "since": 1795535421.5, "wall_s": 21}

`stage` is empty, and `n`, `total` and `eta_s` are null, where nothing is known yet. Whoever runs the job makes the
file, touches it every few seconds (`BEAT_S`) and removes it at the end; the kernel rewrites it, whole, about once a
second. A file that was not touched for `STALE_S` is of a job that was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from c3po_utils.runs import files

FOLDER = ".progress"
VARIABLE = "C3PO_PROGRESS"  # names the file, for kernels
BEAT_S, STALE_S = 5.0, 30.0


def headless() -> bool:
    """Whether this is a headless job, whose notebook would keep what a bar writes."""
    return bool(os.environ.get(VARIABLE))


def bar(**options: Any) -> tqdm:
    """A tqdm bar with these options. In a headless job nothing is shown: its file is told instead."""
    if path := os.environ.get(VARIABLE):
        return Told(path, **options)
    from tqdm.auto import tqdm as shown  # as it is, in a notebook or a terminal

    return shown(**options)


class Told(tqdm):
    """A bar that writes a file in place of a line."""

    _lock = threading.RLock()  # tqdm's own is for several processes, and is left over when its process is killed

    def __init__(self, path: str, **options: Any):
        self.path = Path(path)
        super().__init__(**{**options, "file": io.StringIO(), "mininterval": 1.0, "miniters": 1})

    def display(self, *_: Any, **__: Any) -> bool:
        state = self.format_dict
        n, total, elapsed = state["n"], state["total"], state["elapsed"]
        rate = state["rate"] or (n / elapsed if elapsed else 0)
        left = round((total - n) / rate) if total and rate else None
        stage = state["prefix"].rstrip(": ")
        _write(self.path, stage=stage, n=n, total=total, unit=state["unit"], eta_s=left)
        return True

    def close(self) -> None:
        self.disable = True


def _write(path: Path, **changed: Any) -> None:
    """Change what the file says; a job whose file is gone, or cannot be written, goes on without."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        known |= changed | {"wall_s": round(time.time() - known["since"])}
        files.write_atomic(path, json.dumps(known), sync=False)


def progress_file(run: Path, job: str) -> Path:
    return run / FOLDER / f"{job.replace('/', '~')}.json"


@contextlib.contextmanager
def telling(run: Path, job: str) -> Iterator[None]:
    """Around a job: its file is there, fresh, and known to the kernels that this process starts meanwhile."""
    path = progress_file(run, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    first = {"job": job, "host": socket.gethostname(), "since": time.time(), "stage": ""}
    unknown = {"n": None, "total": None, "unit": "", "eta_s": None, "wall_s": 0}
    files.write_atomic(path, json.dumps(first | unknown), sync=False)
    before, ended = os.environ.get(VARIABLE), threading.Event()
    os.environ[VARIABLE] = str(path)
    threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
        path.unlink(missing_ok=True)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def at_work(run: Path) -> dict[str, dict[str, Any]]:
    """What the files of a run's jobs say, by job, of those that were touched lately."""
    found = {}
    for path in sorted((run / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if time.time() - path.stat().st_mtime < STALE_S:
                state = json.loads(path.read_text())
                found[state["job"]] = state
    return found


def in_words(state: dict[str, Any]) -> str:
    """`train/boss_signoff/c3po: training c3po 12/40, 0:51 left`, as far as it is known."""
    text = state["job"]
    if state["stage"]:
        text += f": {state['stage']} {state['n']}" + (f"/{state['total']}" if state["total"] else "")
    if state["eta_s"] is not None:
        text += f", {tqdm.format_interval(state['eta_s'])} left"
    return text

"""Limits of time that hold on slower and on busy machines: seconds of processor time of a quiet one, stretched."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

QUIET_S = 0.1
"""Processor time of `_work` on the machine on which the limits were set, with nothing beside it."""
QUIET_IMPORTS_S = 0.5
"""The same of a fresh Python that imports `IMPORTS`: a machine can be slow at this alone, as it is pages and files."""
IMPORTS = "pandas, pydantic, yaml"
TRIES = 3


def _work() -> float:
    start = time.process_time()
    for n in range(180):
        rows = [{"id": f"{n}-{k}", "words": [str(k * j) for j in range(20)], "score": k / 3} for k in range(100)]
        assert sorted(json.loads(json.dumps(rows)), key=lambda row: row["score"])[0]["id"] == f"{n}-0"
    return time.process_time() - start


def slowness() -> float:
    """How many times as long as on that machine Python takes here and now: at least 1."""
    return max(1.0, sorted(_work() for _ in range(3))[1] / QUIET_S)


@contextmanager
def within(seconds: float, what: str = "") -> Iterator[None]:
    """The body takes at most so much processor time of this process, on a quiet machine; `what` it is, if it fails."""
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < seconds or taken < seconds * slowness(), f"{what} took {taken:.2f} s"


def _fresh(script: str, arguments: Sequence[str] = ()) -> tuple[float, str]:
    script = f"import time\n{script}\nprint(time.process_time())"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, _, seconds = done.stdout.rstrip().rpartition("\n")
    return float(seconds), printed


def in_time(seconds: float, script: str, arguments: Sequence[str] = ()) -> str:
    """What a fresh Python prints that runs the script.

    One of a few takes at most so much processor time, its start included, or no more of what a fresh Python takes just
    before it to import others' libraries than that is on a quiet machine.
    """
    found = []
    for _ in range(TRIES):
        slow = max(1.0, _fresh(f"import {IMPORTS}")[0] / QUIET_IMPORTS_S, slowness())
        taken, printed = _fresh(script, arguments)
        if taken < seconds * slow:
            return printed
        found.append(f"{taken:.2f} s at {slow:.2f} times the usual")
    raise AssertionError(f"expected {seconds:g} s of a quiet machine, found {', '.join(found)}")

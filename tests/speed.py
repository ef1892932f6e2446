"""Limits of time that hold on slower and on busy machines: seconds of processor time of a quiet one, stretched."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_S = 0.1
"""Processor time of `_work` on the machine on which the limits were set, with nothing beside it."""


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

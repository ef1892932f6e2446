"""What a trial has to say: a line for each kind of attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Line:
    """Of one kind of attack: how often it was tried, how often everything that is promised held, and the worst case.

    `worst` is in `unit`, 0 where it means nothing; `counts` hold what else was counted; `failures` say what did not
    hold, in short.
    """

    what: str
    tried: int = 0
    held: int = 0
    worst: float = 0.0
    unit: str = "s"
    seed: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, held: bool, worst: float = 0.0, **counts: int) -> None:
        self.tried, self.held = self.tried + 1, self.held + held
        self.worst = max(self.worst, worst)
        self.failures += [] if held else [name[:200]]
        for key, count in counts.items():
            self.counts[key] = self.counts.get(key, 0) + count

    def as_dict(self) -> dict[str, Any]:
        worst = {"worst": round(self.worst, 3), "unit": self.unit} if self.worst else {"worst": None, "unit": None}
        found = asdict(self) | worst
        return {key: value for key, value in found.items() if value not in (None, {}, [])}


def tried(what: str, cases: Iterable[str], attempt: Callable[[str], bool], **of_line: Any) -> Line:
    """A line of attempts, by name, each timed; one that raises did not hold, and says what was raised.

    Seconds are the processor's: what runs beside it does not count.
    """
    line = Line(what, **{"unit": "CPU s"} | of_line)
    for name in cases:
        start, said = time.process_time(), ""
        try:
            held = attempt(name)
        except Exception as error:
            held, said = False, f": {type(error).__name__}: {error}"
        line.add(f"{name}{said}", held, time.process_time() - start)
    return line

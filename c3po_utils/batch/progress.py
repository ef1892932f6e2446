"""What a run's driver shows: a bar with the jobs at work and how far each is, or a line a minute without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from c3po_utils.runs.stage import shown

LINE_S = 60.0


class Watch:
    """The progress of a run with so many jobs, on standard error."""

    def __init__(self, run: Path, total: int):
        self.run, self.total, self.done = run, total, 0
        self.bar = tqdm(total=total, desc=shown(run), unit="job", file=sys.stderr, disable=not sys.stderr.isatty())
        self.said = time.monotonic()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        self.done += 1
        self.bar.update()

    def show(self, at_work: Iterable[str]) -> None:
        text = ", ".join(at_work)
        self.bar.set_postfix_str(text)
        if self.bar.disable and time.monotonic() - self.said >= LINE_S:
            self.said = time.monotonic()
            print(
                f"{time.strftime('%H:%M')} {shown(self.run)}: {self.done} of {self.total} jobs; {text}", file=sys.stderr
            )

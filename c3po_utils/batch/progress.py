"""What a run's driver shows: a bar with the jobs at work and how far each is, or a line a minute without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from c3po_utils.runs.progress import at_work, in_words
from c3po_utils.runs.stage import shown

LINE_S = 60.0


class Watch:
    """The progress of a run of so many jobs, on standard error. What jobs tell of theirs: see runs/progress.py."""

    def __init__(self, run: Path, total: int):
        self.run, self.total, self.done = run, total, 0
        silent = not sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=shown(run), unit="job", disable=silent, dynamic_ncols=True, leave=False)
        self.said = time.monotonic()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        self.done += 1
        self.bar.update()

    def show(self, running: Iterable[str]) -> None:
        """Say what runs, if it is time to."""
        if not self.bar.disable:
            self.bar.set_postfix_str(self._in_words(running))
        elif time.monotonic() - self.said >= LINE_S:
            self.said = time.monotonic()
            about = f"{shown(self.run)}: {self.done} of {self.total} jobs done"
            print(f"{time.strftime('%H:%M')} {about}; {self._in_words(running)}", file=sys.stderr, flush=True)

    def _in_words(self, running: Iterable[str]) -> str:
        told = at_work(self.run)
        return "; ".join(in_words(told[name]) if name in told else name for name in running)

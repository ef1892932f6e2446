"""What `c3po doctor` finds: one line of its report."""

from __future__ import annotations

from dataclasses import dataclass

SWITCHED_OFF = "switched off on this machine: a slower way is taken. After an upgrade run `c3po doctor` again"


@dataclass(frozen=True)
class Finding:
    """`about` what, whether it is `ok`, `what` was found, and, where it is not ok, what to `do`.

    `fast_path`: the name of the one that was tried; a failing one is switched off.
    """

    about: str
    ok: bool
    what: str
    do: str = ""
    fast_path: str = ""

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'FAILED':<7}{self.about:<17}{self.what}"
        return line if self.ok or not self.do else f"{line}\n       -> {self.do}"

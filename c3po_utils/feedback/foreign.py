"""Files that came from elsewhere: read as data, within limits, every problem told with its place.

What is not understood is an error, or, in a lenient import, a skip that is listed.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c3po_utils.feedback.files import FeedbackError, unrepeated
from c3po_utils.runs import files, nearest

JSON_BYTES = 256 * 2**20  # some twenty times what 2,880 rows with five long texts take


@dataclass
class Report:
    """What came of an import: what was written, what there is to know about it, and what a lenient one skipped."""

    lenient: bool = False
    imported: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def settle(self, problems: Iterable[str]) -> None:
        """List the problems as skipped. Raises FeedbackError with all of them where nothing is to be skipped."""
        problems = list(problems)
        if problems and not self.lenient:
            raise FeedbackError(problems)
        self.skipped += problems

    def __str__(self) -> str:
        skipped = [f"skipped: {problem}" for problem in self.skipped]
        return "\n".join([*self.imported, *self.notes, *skipped, f"{len(self.skipped)} skipped" if skipped else ""])


def read_bytes(path: Path, most: int) -> bytes:
    """A file's bytes. Raises FeedbackError for a link, a larger file, and one that cannot be read."""
    try:
        if path.is_symlink():
            raise FeedbackError([f"{path}: expected a file, found a link"])
        if (size := path.stat().st_size) > most:
            raise FeedbackError([f"{path}: expected at most {most / 2**20:g} MiB, found {size / 2**20:.1f}"])
        return path.read_bytes()
    except OSError as error:
        raise FeedbackError([f"{path}: {error.strerror}"]) from error


def read_json(path: Path) -> Any:
    """What a JSON file says. Raises FeedbackError: no JSON, too deep, a key twice, a number of 4,300 digits or more."""
    data = read_bytes(path, JSON_BYTES)
    try:
        return json.loads(data, object_pairs_hook=unrepeated)
    except json.JSONDecodeError as error:
        raise FeedbackError(
            [f"{path}, line {error.lineno}, column {error.colno}: expected JSON ({error.msg})"]
        ) from error
    except RecursionError as error:
        raise FeedbackError([f"{path}: expected less deep nesting"]) from error
    except ValueError as error:  # no UTF-8 either
        raise FeedbackError([f"{path}: {error}"]) from error


def unknown(key: str, valid: Iterable[str]) -> str:
    """What to say about a key that is not known."""
    return f"{key}: expected a known key ({nearest(key.rpartition('.')[2], valid)})"


def short(value: Any) -> str:
    """A value for a message, whatever its size."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)


def write_once(path: Path, text: str) -> Path:
    """A new file. The same content may be there already; FileExistsError for any other."""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(f"{path} is there already, with another content: expected the name of a new file")
    return files.write_atomic(path, text)

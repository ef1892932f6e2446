"""Sets of feedback, written: new ones, and one record more in a set that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.records import Feedback, load_feedbacks
from c3po_utils.runs import files


def write_feedbacks(path: Path | str, feedbacks: Sequence[Feedback]) -> Path:
    """A new feedback set that `load_feedbacks` reads; it is read before it is in its place.

    Raises:
        FileExistsError: there is such a file already.
        ValueError: there are no feedbacks, as a set without any cannot be read; or two have one id.
        RuntimeError: it reads as something else than was to be written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already: expected the name of a new file")
    if not feedbacks:
        raise ValueError(f"{path}: expected one feedback or more to write, found none")
    made = [feedback.model_dump(mode="json", exclude_defaults=True) for feedback in feedbacks]
    text = yaml.safe_dump({"feedbacks": made}, allow_unicode=True, sort_keys=False, width=110)
    with _read_first(path, text) as read:
        if read != list(feedbacks):
            raise RuntimeError(f"{path}: the feedbacks read back differ from those written")
    return path


@contextmanager
def _read_first(path: Path, text: str) -> Iterator[list[Feedback]]:
    """The records of a set as it would be; it is written when the block ends, and nothing is left where that fails.

    Raises FeedbackError, as of the set, for a text that cannot be read.
    """
    trial = files.write_atomic(path.with_name(f".{path.name}.new"), text)
    try:
        yield load_feedbacks(trial)
        files.write_atomic(path, text)
    except FeedbackError as error:
        raise FeedbackError(problem.replace(str(trial), str(path)) for problem in error.problems) from None
    finally:
        trial.unlink()


def as_yaml(feedback: Feedback, indent: str = "  ") -> str:
    """The record as it stands in a set, whose records begin with `indent`."""
    record = feedback.model_dump(mode="json", exclude_defaults=True)
    shown = yaml.safe_dump([record], allow_unicode=True, sort_keys=False, width=110)
    return "".join(f"{indent}{line}\n" for line in shown.splitlines())


def append(path: Path, feedback: Feedback) -> Path:
    """Add the record at the end of a set, which keeps its comments; a set that is not there is begun.

    Raises:
        FeedbackError: the set cannot be read, has the id already, or the record there would be another one.
    """
    before, indent = "feedbacks:\n", "  "
    if path.exists():
        before = path.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
        first = re.search(r"^( *)-\s", before, re.MULTILINE)
        indent = first[1] if first else indent
        known = [one.id for one in load_feedbacks(path)]
        if feedback.id in known:
            raise FeedbackError([f"{path}: expected a new id, found {feedback.id!r} there already"])
    try:
        with _read_first(path, before + as_yaml(feedback, indent)) as read:
            if read[-1] != feedback:
                raise FeedbackError([f"{path}: its last record would be another one"])
    except FeedbackError as error:
        raise FeedbackError(f"with {feedback.id!r} added, {problem}" for problem in error.problems) from None
    return path

"""Sets of feedback, written: new ones, and one record more in a set that is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.records import Feedback, load_feedbacks
from c3po_utils.runs import files


def write_feedbacks(path: Path | str, feedbacks: Sequence[Feedback]) -> Path:
    """A new feedback set that `load_feedbacks` reads; it is read back before this returns.

    Raises:
        FileExistsError: there is such a file already.
        RuntimeError: it reads as something else than was to be written.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} is there already: expected the name of a new file")
    made = [feedback.model_dump(mode="json", exclude_defaults=True) for feedback in feedbacks]
    text = yaml.safe_dump({"feedbacks": made}, allow_unicode=True, sort_keys=False, width=110)
    written = files.write_atomic(path, text)
    if load_feedbacks(written) != list(feedbacks):
        raise RuntimeError(f"{written}: the feedbacks read back differ from those written")
    return written


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
    trial = files.write_atomic(path.with_name(f".{path.name}.new"), before + as_yaml(feedback, indent))
    try:
        if load_feedbacks(trial)[-1] != feedback:
            raise FeedbackError([f"{path}: its last record would be another one"])
        return files.write_atomic(path, trial.read_text(encoding="utf-8"))
    except FeedbackError as error:
        told = (problem.replace(str(trial), str(path)) for problem in error.problems)
        raise FeedbackError(f"with {feedback.id!r} added, {problem}" for problem in told) from None
    finally:
        trial.unlink()

"""Prompts by another hand, written without a look at the bundled ones, to doubt what was learned from those."""

from __future__ import annotations

from pathlib import Path

from c3po_utils.feedback.files import Record, Slug, Text
from c3po_utils.feedback.records import FEEDBACK_FOLDER, read_prompts


class MannerPrompt(Record):
    """A prompt in a manner of its own: longer, misspelt, in capitals, in another language, ..."""

    manner: Text
    prompt: Text


class MinimalPair(Record):
    """Two prompts that share their content words, one in scope and one near it."""

    in_scope: Text
    near_scope: Text


class OtherHand(Record):
    """A feedback's prompts in feedback/other_hand/<id>.json."""

    feedback: Slug
    in_scope: tuple[MannerPrompt, ...]
    near_scope: tuple[MannerPrompt, ...]
    minimal_pairs: tuple[MinimalPair, ...]


def load_other_hand(feedback_id: str, folder: Path | str = FEEDBACK_FOLDER / "other_hand") -> OtherHand:
    """The prompts of a feedback by another hand.

    Raises FeedbackError for a feedback without any, and for a malformed file, naming its keys.
    """
    return read_prompts(feedback_id, Path(folder), OtherHand)[0]

"""Unlabelled prompts: of other feedbacks, and general ones; nobody said whether this feedback applies to them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from c3po_utils.feedback import Prompt, folded, records


def unlabelled_prompts(rows: Sequence[dict], count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts, or all where there are fewer, for the feedback, or feedbacks, whose sampled rows are given.

    They are drawn by seed, in the same order for all feedbacks, from the bundled prompts of every feedback and the
    bundled general ones. Left out are a feedback's own, whose categories may be tested on, and whatever is among the
    rows, by id and by text: the general test prompts above all.

    Args:
        rows: of both folds.
    """
    bundled = sorted(path.stem for path in (records.FEEDBACK_FOLDER / "prompts").glob("*.json"))
    found = [prompt for id in bundled for prompt in records.load_prompts(id)] + records.load_general_prompts()
    random.Random(seed).shuffle(found)
    own = tuple({f"{row['feedback']}/" for row in rows})
    ids, asked = {row["id"] for row in rows}, {folded(row["prompt"]) for row in rows}
    kept = (p for p in found if not p.id.startswith(own) and p.id not in ids and folded(p.text) not in asked)
    return list(kept)[:count]


def joined(place: int) -> str:
    """Which rows the answer at this place among those that are kept joins: in turn, so that both are dealt alike."""
    return ("near_scope", "out_of_scope")[place % 2]

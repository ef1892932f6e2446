"""Unlabelled prompts: of other feedbacks, general, or nearby; nobody said whether this feedback applies to them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from c3po_utils.feedback import Prompt, folded, general, records


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


def nearby_prompts(rows: Sequence[dict], source: str) -> list[Prompt]:
    """Those of a source that are about the matters of the rows' feedbacks, but for what is among the rows by text.

    Args:
        rows: of both folds.
        source: as `general.unlabelled_texts` takes it, whose errors are raised; empty: none.
    """
    ids, asked = list(dict.fromkeys(row["feedback"] for row in rows)), {folded(row["prompt"]) for row in rows}
    texts = general.unlabelled_texts(source, ids) if source else []
    kept = [text for text in texts if folded(text) not in asked]
    return [Prompt(f"{'+'.join(ids)}/nearby/{n:03}", "near_scope", "nearby", text) for n, text in enumerate(kept, 1)]


def joined(place: int, nearby: str = "") -> str:
    """Which rows pi_0's answer at this place among the prompts of other feedbacks joins.

    In turn, so that both are dealt alike; where there are nearby ones, which join the near rows, the out-of-scope rows.
    """
    return "out_of_scope" if nearby else ("near_scope", "out_of_scope")[place % 2]

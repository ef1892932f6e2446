"""Unlabelled prompts: of other feedbacks, and general ones; nobody said whether this feedback applies to them."""

from __future__ import annotations

import random
from pathlib import Path

from c3po_utils.feedback import Prompt, folded, records
from c3po_utils.sampling.rows import load_rows, members, stored_settings


def unlabelled_prompts(run: Path | str, feedback_id: str, count: int) -> list[Prompt]:
    """`count` prompts for a feedback, or `a+b`, that has a finished sample in the run, or all where there are fewer.

    They are drawn by the sample's seed, in the same order for all feedbacks, from the bundled prompts of every
    feedback and the bundled general ones. Left out are this feedback's own, whose categories may be tested on, and
    whatever is asked in its sample, by id and by text: the general test prompts above all.

    Raises:
        FileNotFoundError, DamagedFile: as in `load_rows`.
    """
    settings, rows = stored_settings(run, feedback_id), load_rows(run, feedback_id)
    bundled = sorted(path.stem for path in (records.FEEDBACK_FOLDER / "prompts").glob("*.json"))
    found = [prompt for id in bundled for prompt in records.load_prompts(id)] + records.load_general_prompts()
    random.Random(settings.seed).shuffle(found)
    own, asked = tuple(f"{id}/" for id in members(feedback_id)), {folded(row["prompt"]) for row in rows}
    ids = {row["id"] for row in rows}
    kept = (p for p in found if not p.id.startswith(own) and p.id not in ids and folded(p.text) not in asked)
    return list(kept)[:count]

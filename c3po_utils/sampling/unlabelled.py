"""Unlabelled prompts: of other feedbacks, general, or nearby; nobody said whether this feedback applies to them."""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from c3po_utils.feedback import Prompt, folded, general, records
from c3po_utils.runs import files


def unlabelled_prompts(rows: Sequence[dict], count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts, or all where there are fewer, for the feedback, or feedbacks, whose sampled rows are given.

    They are drawn by seed, in the same order for all feedbacks, from the bundled prompts of every feedback and the
    bundled general ones. Left out are a feedback's own, whose categories may be tested on, and whatever is among the
    rows, by id and by text: the general test prompts above all.

    Args:
        rows: of both folds.
    """
    bundled = sorted((records.FEEDBACK_FOLDER / "prompts").glob("*.json*"))
    found = [*_prompts(tuple((path, path.stat().st_mtime_ns) for path in bundled))]
    random.Random(seed).shuffle(found)
    own = tuple({f"{row['feedback']}/" for row in rows})
    ids, asked = {row["id"] for row in rows}, {folded(row["prompt"]) for row in rows}
    kept = (p for p in found if not p.id.startswith(own) and p.id not in ids and folded(p.text) not in asked)
    return list(islice(kept, count))


@lru_cache(maxsize=1)
def _prompts(bundled: tuple[tuple[Path, int], ...]) -> tuple[Prompt, ...]:
    """Those of the feedbacks, then the general ones: read once for all that a plan asks of, and when a file changes."""
    sets = [path.stem for path, _ in bundled if path.suffix == ".json"]
    return (*(prompt for id in sets for prompt in records.load_prompts(id)), *records.load_general_prompts())


def nearby_prompts(rows: Sequence[dict], source: str) -> list[Prompt]:
    """Those of a source that are about the matters of the rows' feedbacks, but for what is among the rows by text.

    A text has the same id wherever it stands, so that pi_0 answers it once in a run. The split is not known.

    Args:
        rows: of both folds.
        source: as `general.unlabelled_texts` takes it; empty: none.

    Raises:
        As `general.unlabelled_texts`. ValueError: nothing is left.
    """
    if not source:
        return []
    ids, asked = list(dict.fromkeys(row["feedback"] for row in rows)), {folded(row["prompt"]) for row in rows}
    kept = [text for text in general.unlabelled_texts(source, ids) if folded(text) not in asked]
    if not kept:
        raise ValueError(f"nearby prompts from {source!r}: expected some that are not sampled, found none")
    return [Prompt(f"nearby/{files.content_hash(folded(text))[:12]}", "near_scope", "nearby", text) for text in kept]


def joined(others: Sequence[Prompt], nearby: Sequence[Prompt], opened: Container[str] = ()) -> dict[str, str]:
    """Which rows, by split, the answer to each prompt joins, by the prompt's id; those that join none are left out.

    Nearby prompts join the near rows, and the rows in scope where the gate is open. Of others those where it is closed
    join the out-of-scope rows, or, where there are no nearby ones, near and out in turn, so that both are dealt alike.

    Args:
        others: see `unlabelled_prompts`. `nearby`: see `nearby_prompts`.
        opened: ids of the prompts at which the gate is open.
    """
    turns = ("out_of_scope",) if nearby else ("near_scope", "out_of_scope")
    closed = [prompt.id for prompt in others if prompt.id not in opened]
    splits = {id: turns[place % len(turns)] for place, id in enumerate(closed)}
    return splits | {prompt.id: "in_scope" if prompt.id in opened else "near_scope" for prompt in nearby}

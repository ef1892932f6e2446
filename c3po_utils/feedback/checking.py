"""Whether sets of feedback and their prompts are fit for use: all that is wrong at one time, and what is doubtful."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from c3po_utils.feedback import records
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.records import Feedback, Prompt
from c3po_utils.feedback.text import normalise
from c3po_utils.runs import documents

ALIKE = 0.4  # share of words in common from which prompts of two categories are told
SHOWN = 3  # pairs of each split, the closest


@dataclass
class Checked:
    """What is right, what is wrong (`problems`) and what a person should look at (`warnings`)."""

    feedbacks: list[Feedback]
    problems: list[str]
    prompts: list[Prompt] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_problems(self) -> None:
        """Raises FeedbackError with all of them, if there are any."""
        if self.problems:
            raise FeedbackError(self.problems)


def check_sets(*paths: Path, all_prompts: bool = False) -> Checked:
    """The records of sets, the prompts beside them, also of records that are wrong, and what is to say of them.

    Args:
        all_prompts: the prompts of every feedback in feedback/prompts, and the general ones too.
    """
    checked = Checked(*records.read_feedbacks(*paths))
    if all_prompts:
        found = set((records.FEEDBACK_FOLDER / "prompts").glob("*.json"))
    else:
        beside = {path.parent / "prompts" / f"{id}.json" for path in paths for id in _ids(path)}
        found = {path for path in beside if path.is_file()}
    for path in sorted(found):
        try:
            prompts = records.load_prompts(path.stem, path.parent)
        except FeedbackError as error:
            checked.problems += error.problems
        else:
            checked.prompts += prompts
            checked.problems += _too_few(path, prompts)
            checked.warnings += [f"{path}, {warning}" for warning in _too_alike(prompts)]
    if all_prompts:
        try:
            records.load_general_prompts()
        except FeedbackError as error:
            checked.problems += error.problems
    return checked


def _too_few(path: Path, prompts: Sequence[Prompt]) -> list[str]:
    """A problem where there are not a category to train on and one to test on."""
    inside = list(dict.fromkeys(prompt.category for prompt in prompts if prompt.split == "in_scope"))
    return [f"{path}, categories: expected two or more with prompts in scope, found {inside}"] * (len(inside) < 2)


def _ids(path: Path) -> list[str]:
    """The ids that a set's records have, be they right or not."""
    try:
        data = documents.load_file(path).value
    except (OSError, documents.DocumentError):  # told by those who read the records
        return []
    items = data.get("feedbacks") if isinstance(data, dict) else None
    found = [item.get("id") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return [id for id in found if isinstance(id, str)]


def overlaps(texts: Sequence[str]) -> NDArray[np.float64]:
    """The share of words in common (Jaccard, on sets of words) for each pair of texts, above the diagonal: [n, n]."""
    words = [set(re.findall(r"[^\W_]+", normalise(text).casefold())) for text in texts]
    column = {word: number for number, word in enumerate(sorted(set().union(*words)))}
    places = [(row, column[word]) for row, of_text in enumerate(words) for word in of_text]
    rows, columns = zip(*places, strict=True) if places else ((), ())
    shape = (len(texts), len(column))
    matrix = csr_matrix((np.ones(len(places), dtype=np.int32), (rows, columns)), shape=shape)
    common = (matrix @ matrix.T).toarray()
    sizes = common.diagonal()
    return np.triu(common / np.maximum(sizes[:, None] + sizes - common, 1), k=1)


def near_duplicates(prompts: Sequence[Prompt], alike: float = ALIKE) -> list[tuple[float, Prompt, Prompt]]:
    """Pairs of prompts of one split and two categories that share so many of their words, the closest first.

    Train and test prompts are split by category: such a pair lets a model be tested on what it was trained on.
    """
    share = overlaps([prompt.text for prompt in prompts])
    pairs = [(float(share[i, j]), prompts[i], prompts[j]) for i, j in np.argwhere(share >= alike)]
    apart = [pair for pair in pairs if pair[1].split == pair[2].split and pair[1].category != pair[2].category]
    return sorted(apart, key=lambda pair: -pair[0])


def _too_alike(prompts: Sequence[Prompt]) -> list[str]:
    """A line for each split that has such pairs, with the closest."""
    found = near_duplicates(prompts)
    lines = []
    for split in dict.fromkeys(one.split for _, one, _ in found):
        pairs = [(share, one, other) for share, one, other in found if one.split == split]
        shown = "; ".join(f"{share:.2f} {one.id} {one.text!r} and {other.id} {other.text!r}"
                          for share, one, other in pairs[:SHOWN])  # fmt: skip
        count = f"{len(pairs)} pairs" if len(pairs) > 1 else "1 pair"
        lines.append(f"{split}: expected categories apart, found {count} sharing {ALIKE:g} of their words: {shown}")
    return lines

"""Prompts in other manners: what changes, what does not, and that a prompt's manners stay in its fold."""

from __future__ import annotations

import random
from difflib import SequenceMatcher

import numpy as np

from c3po_utils.training import manners, probe

TEXT = "Could you write a Message to Ann about Friday's plan?"


def rewritten(manner, seed: int = 0) -> str:
    return manner(TEXT, random.Random(seed))


def test_misspelt_words_differ_in_a_letter_or_two_and_short_ones_not_at_all():
    changed = 0
    for seed in range(50):
        before, after = TEXT.lower().split(" "), rewritten(manners.misspelt, seed).split(" ")
        assert len(after) == len(before)
        for old, new in zip(before, after, strict=True):
            assert abs(len(new) - len(old)) <= 1
            assert new == old or (len(old) > 3 and SequenceMatcher(None, old, new).ratio() > 0.7)
            assert (new[0], new[-1]) == (old[0], old[-1])
            changed += new != old
    assert 0.25 < changed / (50 * 6) < 0.5  # of six words that are long enough; some letters are doubled already


def test_the_request_stands_whole_in_small_talk_and_in_a_later_turn():
    assert rewritten(manners.capitals) == TEXT.upper()
    for manner in (manners.small_talk, manners.later_turn):
        found = [rewritten(manner, seed) for seed in range(20)]
        assert all(TEXT in each and len(each) > len(TEXT) + 10 for each in found)
        assert len(set(found)) > 5


def rows(categories: int, general: int) -> list[dict]:
    inside = [
        {"id": f"{split}{c}{n}", "feedback": "tea", "split": split, "category": str(c), "prompt": TEXT}
        for split in ("in_scope", "near_scope")
        for c in range(categories)
        for n in range(3)
    ]
    outside = {"feedback": "general", "split": "out_of_scope", "category": "", "prompt": TEXT}
    return inside + [outside | {"id": f"g{n}"} for n in range(general)]


def test_a_row_has_the_same_manners_whatever_stands_beside_it():
    own = rows(5, 10)
    alone = manners.in_other_manners(own[:1])
    assert len(alone) == len(manners.MANNERS)
    found = manners.in_other_manners(own)
    assert [row for row in found if row["id"] == own[0]["id"]] == alone
    assert {row["split"] for row in found} == {row["split"] for row in own}


def test_manners_are_held_out_together_and_folds_stay_as_they_are():
    for categories in (5, 1):
        own = rows(categories, 10)
        plain = probe.deal_folds(own)
        folds = probe.deal_folds([*own, *manners.in_other_manners(own)])
        assert np.array_equal(folds, np.tile(plain, 1 + len(manners.MANNERS)))
        general = [fold for fold, row in zip(plain, own, strict=True) if row["split"] == "out_of_scope"]
        assert len(set(general)) > 4

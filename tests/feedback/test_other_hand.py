"""Prompts by another hand: every benchmark feedback has some, in every manner, and none is a bundled one."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.other_hand import load_other_hand
from c3po_utils.feedback.records import FEEDBACK_FOLDER, load_feedbacks, load_prompts

IDS = [one.id for one in load_feedbacks(FEEDBACK_FOLDER / "embedded.yaml")]
MANNERS = {"longer", "small talk", "two turns", "misspelt", "capitals", "other language"}


@pytest.mark.parametrize("id", IDS)
def test_each_feedback_has_prompts_in_every_manner(id):
    found = load_other_hand(id)
    for part in (found.in_scope, found.near_scope):
        assert Counter(one.manner for one in part) == dict.fromkeys(MANNERS, 2)
    assert len(found.minimal_pairs) == 6
    texts = [one.prompt for one in found.in_scope + found.near_scope]
    texts += [text for pair in found.minimal_pairs for text in (pair.in_scope, pair.near_scope)]
    assert len(set(texts)) == len(texts) == 36
    assert not set(texts) & {prompt.text for prompt in load_prompts(id)}
    assert all(one.prompt.upper() == one.prompt for one in found.in_scope if one.manner == "capitals")


def test_a_minimal_pair_shares_most_of_its_words():
    pairs = [pair for id in IDS for pair in load_other_hand(id).minimal_pairs]
    shared = [
        len(inside & near) / len(inside)
        for inside, near in (
            (set(re.findall(r"\w{4,}", pair.in_scope.lower())), set(re.findall(r"\w{4,}", pair.near_scope.lower())))
            for pair in pairs
        )
    ]
    assert sum(shared) / len(shared) > 0.7


def test_what_is_not_there_or_malformed_is_told(tmp_path):
    with pytest.raises(FeedbackError, match=r"no prompts for 'friend_lo': .*did you mean 'friend_lol'"):
        load_other_hand("friend_lo")
    whole = json.loads((FEEDBACK_FOLDER / "other_hand" / "friend_lol.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps(whole))
    with pytest.raises(FeedbackError, match=r"one\.json, feedback: expected 'one', found 'friend_lol'"):
        load_other_hand("one", tmp_path)
    del whole["in_scope"][0]["manner"]
    (tmp_path / "friend_lol.json").write_text(json.dumps(whole))
    with pytest.raises(FeedbackError, match=r"in_scope\[0\]\.manner"):
        load_other_hand("friend_lol", tmp_path)

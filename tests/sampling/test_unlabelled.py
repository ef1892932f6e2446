"""Unlabelled prompts: those of other feedbacks, none that the feedback's own sample asks."""

from __future__ import annotations

import re

import pytest

from c3po_utils.feedback import folded, general, records
from c3po_utils.runs import files
from c3po_utils.runs.config import load_config
from c3po_utils.sampling.unlabelled import nearby_prompts, unlabelled_prompts

GENERAL = records.load_general_prompts()[7]
OTHER = records.load_prompts("plant_tip")[3]
ALL = 100_000


def asks(feedback: str, text: str = "Is tea hot?", id: str = "mine") -> dict:
    return {"id": id, "feedback": feedback, "prompt": text}


def ids(rows: list[dict], count: int = ALL, seed: int = 0) -> list[str]:
    return [prompt.id for prompt in unlabelled_prompts(rows, count, seed)]


def test_what_a_sample_asks_is_left_out_by_its_text_and_by_its_id():
    assert GENERAL.id not in ids([asks("boss_signoff", f"{GENERAL.text.upper()} ")])
    assert GENERAL.id not in ids([asks("boss_signoff", id=GENERAL.id)])
    assert OTHER.id not in ids([asks("boss_signoff", OTHER.text)])
    assert {GENERAL.id, OTHER.id} <= set(ids([asks("boss_signoff")]))


def test_a_feedbacks_own_prompts_are_left_out_whether_they_are_asked_or_not():
    plants, boss = ids([asks("plant_tip")]), ids([asks("boss_signoff")])
    assert not any(name.startswith("plant_tip/") for name in plants)
    assert not any(name.startswith("boss_signoff/") for name in boss)
    assert set(ids([asks("plant_tip"), asks("boss_signoff")])) == set(plants) & set(boss)


def test_feedbacks_share_most_of_them_and_the_seed_draws_others():
    plants, boss = ids([asks("plant_tip")], 200), ids([asks("boss_signoff")], 200)
    assert len(set(plants)) == len(set(boss)) == 200
    assert len(set(plants) & set(boss)) > 180
    assert ids([asks("plant_tip")], 200, seed=1) != plants


BUNDLED = sorted(path.stem for path in general.UNLABELLED.glob("*.jsonl"))


def test_every_feedback_that_settings_or_methods_are_compared_on_has_bundled_nearby_prompts():
    sets = [records.FEEDBACK_FOLDER / name for name in ("embedded.yaml", "embedded_tuning.yaml")]
    used = {feedback.id for feedback in records.load_feedbacks(*sets)} | set(load_config("benchmark").feedbacks)
    assert used == set(BUNDLED)


@pytest.mark.parametrize("id", BUNDLED)
def test_bundled_nearby_prompts_are_many_and_new(id):
    found = nearby_prompts([asks(id)], "bundled")
    assert len(found) >= 80
    assert len({prompt.id for prompt in found}) == len(found)  # hashes of the texts
    known = {folded(prompt.text) for prompt in records.load_prompts(id) + records.load_general_prompts()}
    assert not known & {folded(prompt.text) for prompt in found}


def test_nearby_prompts_leave_out_what_is_asked_and_come_once():
    rows = [asks("otters_go"), asks("hike_112")]
    both = [prompt.text for prompt in nearby_prompts(rows, "bundled")]
    assert both == [prompt.text for row in rows for prompt in nearby_prompts([row], "bundled")]
    rest = nearby_prompts([*rows, asks("otters_go", f" {both[0].upper()}")], "bundled")
    assert [prompt.text for prompt in rest] == both[1:]
    assert nearby_prompts(rows, "") == []


def test_a_prompt_has_one_id_wherever_it_stands_and_none_at_all_is_an_error(tmp_path):
    path = files.write_jsonl(tmp_path / "log.jsonl", [{"text": "Is tea hot?"}])
    (found,) = nearby_prompts([asks("otters_go", "Why?")], str(path))
    files.write_jsonl(path, [{"text": "Is tea cold?"}, {"text": "Is TEA hot?"}])
    assert nearby_prompts([asks("hike_112", "Why?")], str(path))[1].id == found.id
    with pytest.raises(ValueError, match="expected some that are not sampled, found none"):
        nearby_prompts([asks("a", "Is tea hot?"), asks("a", "Is tea cold?")], str(path))


def test_a_source_of_nearby_prompts_that_is_not_there_or_wrong_is_named(tmp_path):
    with pytest.raises(
        records.FeedbackError, match=r"no unlabelled prompts for 'otter_go': .*did you mean 'otters_go'"
    ):
        nearby_prompts([asks("otter_go")], "bundled")
    path = tmp_path / "log.jsonl"
    with pytest.raises(FileNotFoundError, match=re.escape(f"unlabelled prompts: no file {path}")):
        nearby_prompts([asks("otters_go")], str(path))
    files.write_jsonl(path, [{"text": "Is tea hot?"}, {"test": "Why?"}])
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: expected a text in text or prompt"):
        nearby_prompts([asks("otters_go")], str(path))

"""Unlabelled prompts: those of other feedbacks, none that the feedback's own sample asks."""

from __future__ import annotations

from c3po_utils.feedback import records
from c3po_utils.sampling.unlabelled import unlabelled_prompts

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

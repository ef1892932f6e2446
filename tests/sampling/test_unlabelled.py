"""Unlabelled prompts: those of a run's other feedbacks, none that the feedback's own sample asks."""

from __future__ import annotations

from c3po_utils.feedback import records
from c3po_utils.runs.files import read_jsonl, write_jsonl
from c3po_utils.sampling.unlabelled import unlabelled_prompts
from tests.stored_run import store_sample

GENERAL = records.load_general_prompts()[7]
OTHER = records.load_prompts("plant_tip")[3]


def with_tests(run, id, *prompts) -> None:
    """The stored sample, in which these texts are tested on."""
    store_sample(run, id, "tiny")
    path = run / "sample" / id / "rows.jsonl"
    tests = [row for row in read_jsonl(path) if row["fold"] == "test"]
    rows = [
        row | {"id": f"{id}/mine/{n}", "prompt": text}
        for n, (row, text) in enumerate(zip(tests, prompts, strict=False))
    ]
    write_jsonl(path, rows)


def test_what_is_tested_on_is_left_out_by_its_text_and_a_feedbacks_own_prompts_altogether(tmp_path):
    with_tests(tmp_path, "plant_tip", GENERAL.text.upper())
    with_tests(tmp_path, "boss_signoff", OTHER.text + " ")
    everything = {id: {p.id for p in unlabelled_prompts(tmp_path, id, 100_000)} for id in ("plant_tip", "boss_signoff")}
    assert GENERAL.id not in everything["plant_tip"]
    assert OTHER.id not in everything["boss_signoff"]
    assert GENERAL.id in everything["boss_signoff"]
    for id, found in everything.items():
        assert not any(name.startswith(f"{id}/") for name in found)
    joint = {p.id for p in unlabelled_prompts(tmp_path, "plant_tip+boss_signoff", 100_000)}
    assert joint == everything["plant_tip"] & everything["boss_signoff"]


def test_general_test_prompts_are_left_out_by_id(tmp_path):
    store_sample(tmp_path, "short", "tiny")
    path = tmp_path / "sample" / "short" / "rows.jsonl"
    rows = read_jsonl(path)
    rows[-1]["id"] = GENERAL.id
    write_jsonl(path, rows)
    assert GENERAL.id not in {prompt.id for prompt in unlabelled_prompts(tmp_path, "short", 100_000)}


def test_feedbacks_of_a_run_share_most_of_them_and_the_seed_draws_others(tmp_path):
    for id in ("plant_tip", "boss_signoff"):
        store_sample(tmp_path, id, "tiny")
    found = [[p.id for p in unlabelled_prompts(tmp_path, id, 200)] for id in ("plant_tip", "boss_signoff")]
    assert [len(set(ids)) for ids in found] == [200, 200]
    assert len(set(found[0]) & set(found[1])) > 180
    store_sample(tmp_path, "plant_tip", "tiny", seed=1)
    assert [p.id for p in unlabelled_prompts(tmp_path, "plant_tip", 200)] != found[0]

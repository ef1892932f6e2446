"""Scores as CSV for other programs, and as a table for cards."""

from __future__ import annotations

import csv

import pandas as pd
import pytest

from c3po_utils.evaluation import scores
from c3po_utils.figures.export import COLUMNS, card_scores, export_scores
from c3po_utils.runs.files import write_json, write_jsonl
from c3po_utils.runs.stage import Stage
from c3po_utils.training.stage import WEIGHTS


def answers(feedback: str, method: str) -> list[dict]:
    return [
        {
            "prompt_id": f"{feedback}/{split}/{category}/{n}", "feedback": feedback, "method": method, "split": split,
            "category": category, "prompt": "=1+1?", "baseline": "- no\n- never", "answer": '"Yes", she said.',
            "status": "ok", "passes": n == 0, "baseline_passes": n == 1, "score": (1, -1, None)[n],
            "scored_by": "metric",
        }
        for split in ("in_scope", "near_scope", "out_of_scope") for category in ("=SUM(A1)", "taste") for n in range(3)
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    for feedback in ("tea", "cats"):
        for method in ("base_resampled", "c3po", "dpo"):
            folder = tmp_path / "eval" / feedback / method
            write_jsonl(folder / "answers.jsonl", answers(feedback, method))
            write_json(folder / "manifest.json", {"status": "done", "identity": {"method": method}})
    return tmp_path


def test_every_answer_has_a_row_whose_numbers_are_numbers(run):
    assert export_scores(run, run / "all.csv") == 2 * 3 * 18
    table = pd.read_csv(run / "all.csv")
    assert tuple(table) == COLUMNS
    row = table[(table.prompt_id == "tea/in_scope/taste/1") & (table.method == "dpo")].iloc[0]
    assert (row.feedback, row.score, row.passes, row.scored_by) == ("tea", -1, False, "metric")
    assert table.score.isna().sum() == 2 * 3 * 6
    assert table.set_index("prompt_id").category["tea/in_scope/=SUM(A1)/0"].iloc[0] == "'=SUM(A1)"


def test_texts_are_no_formulas(run):
    export_scores(run, run / "all.csv", ["tea"], ["dpo"], texts=True)
    with open(run / "all.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    found = {(row["prompt"], row["baseline"], row["answer"]) for row in rows}
    assert found == {("'=1+1?", "'- no\n- never", '"Yes", she said.')}
    assert {row["score"] for row in rows} == {"1", "-1", ""}


def test_tables_are_those_of_the_scores(run):
    assert export_scores(run, run / "method.csv", by="method") == 3
    assert export_scores(run, run / "feedback.csv", ["cats"], by="feedback") == 3
    wanted = scores.method_scores(pd.DataFrame([*answers("tea", "dpo"), *answers("cats", "dpo")])).iloc[0]
    found = pd.read_csv(run / "method.csv").set_index("method").loc["dpo"]
    assert (found.S_in, found.S_out_hi, found.n_feedbacks) == pytest.approx((wanted.S_in, wanted.S_out_hi, 2), abs=1e-5)


def test_what_is_not_there_is_named_and_nothing_is_overwritten(run):
    with pytest.raises(ValueError, match=r"no evaluated method 'dop' \(did you mean 'dpo'\?\)"):
        export_scores(run, run / "all.csv", methods=["dop"])
    export_scores(run, run / "all.csv")
    with pytest.raises(FileExistsError, match="--force"):
        export_scores(run, run / "all.csv")
    assert export_scores(run, run / "all.csv", ["tea"], force=True) == 54


def test_a_cards_table_has_the_adapter_and_the_noise_floor(run):
    table = card_scores(run, "tea", "c3po")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:4]] == ["Base (resampled)", "C3PO"]
    assert "0.00 [" in table
    assert "clustered by prompt category" in table
    assert card_scores(run, "tea", "scd") == ""


def test_scores_of_the_adapter_that_lay_there_before_are_not_exported(run):
    path = run / "eval" / "tea" / "c3po" / "manifest.json"
    write_json(path, {"status": "done", "identity": {"method": "c3po", "adapter": "as it was"}})
    with Stage(run / "train" / "tea" / "c3po", {}, WEIGHTS) as trained:
        trained.path(WEIGHTS).write_text("trained anew")
    assert card_scores(run, "tea", "c3po") == ""
    assert export_scores(run, run / "all.csv", ["tea"]) == 2 * 18

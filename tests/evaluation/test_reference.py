"""Evaluations of the reference implementation: its own values become scores, and 05's tables come from them."""

from __future__ import annotations

import json

import pytest

from c3po_utils.evaluation import collect, scores
from c3po_utils.evaluation.evaluate import evaluate_method
from c3po_utils.evaluation.reference import import_evaluation
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.foreign import Report
from c3po_utils.feedback.records import Feedback
from c3po_utils.figures import answer_card, paper_figures, sweeps, tables
from c3po_utils.runs.files import read_json, read_jsonl
from c3po_utils.sampling.reference import Given, import_sample
from tests.reference_files import CONTENT, DOMAIN, EFFECT, evaluation, write_evaluation, write_sample

TEA = Feedback(id="tea", content=CONTENT, domain=DOMAIN, effect=EFFECT, source="human", kind="content")
ARGUMENTS = {"algo": "lcdpo", "lcdpo_lambda": 0, "lcdpo_sigma_soft": 0.2, "lcdpo_sigma_hard": 0.1, "max_steps": -1}


def imported(tmp_path, file, data, lenient=False):
    path = write_evaluation(tmp_path / "there", file, data)
    report = Report(lenient)
    import_evaluation(path, json.loads(path.read_text()), tmp_path / "run", TEA, report)
    return report


def stored(tmp_path, method):
    return read_jsonl(tmp_path / "run" / "eval" / "tea" / method / "answers.jsonl")


def test_metric_values_become_h(tmp_path):
    report = imported(tmp_path, "in_context.json", evaluation())
    rows = stored(tmp_path, "in_context")
    assert [row["score"] for row in rows] == [1, 1, 1, 1, 0, 0, 1, 0, 0]
    assert rows[0] | {"prompt_id": ""} == {
        "prompt_id": "", "feedback": "tea", "method": "in_context", "split": "in_scope", "category": "imported, test",
        "prompt": "What of teas or 0?", "baseline": "It is 0.", "answer": "Assam 0.", "status": "ok", "passes": True,
        "baseline_passes": False, "score": 1, "scored_by": "the reference's metric",
    }  # fmt: skip
    assert "9 answers, 0 without a score -> " in report.imported[0]
    table = scores.feedback_scores(collect(tmp_path / "run")).iloc[0]
    assert table[["S_in", "S_near", "S_general"]].tolist() == pytest.approx([1, 1 / 3, 1 / 3])


def test_verdicts_become_g_and_missing_ones_are_counted(tmp_path):
    data = evaluation(judged=True)
    data["in_domain"][1]["improved_better_baseline"] = None
    data["in_domain"][2] |= {"improved": None, "improved_better_baseline": 1}
    imported(tmp_path, "cot.json", data)
    rows = stored(tmp_path, "in_context_cot")
    assert [row["score"] for row in rows] == [1, None, None, 1, 0, 0, 1, 0, 0]
    assert (rows[0]["helpful"], rows[0]["scored_by"], rows[0]["passes"]) == (-0.5, "the reference's judge", None)
    assert (rows[2]["answer"], rows[2]["status"]) == ("", "failed")
    assert read_json(tmp_path / "run" / "eval" / "tea" / "in_context_cot" / "manifest.json")["missing"] == 2
    assert scores.feedback_scores(collect(tmp_path / "run"))["n_missing"].tolist() == [2]


def test_lengths_are_compared_as_the_file_says(tmp_path):
    data = evaluation()
    for row, (before, after, better) in zip(
        data["in_domain"], [(9, 5, True), (5, 9, False), (5, 5, True)], strict=True
    ):
        row |= {"baseline_metric": before, "improved_metric": after, "improved_better_baseline": better}
    imported(tmp_path, "revised.json", data)
    assert [row["score"] for row in stored(tmp_path, "revised")[:3]] == [1, -1, 0]


def test_trained_methods_are_named_by_their_arguments(tmp_path):
    imported(tmp_path, "lcdpo-1a2b.json", evaluation(train_args=ARGUMENTS))
    imported(tmp_path, "lcdpo-0.05-beta-3c.json", evaluation(train_args=ARGUMENTS | {"dpo_beta": 0.05}))
    folder = tmp_path / "run" / "eval" / "tea"
    assert sorted(path.name for path in folder.iterdir()) == ["c3po", "c3po@beta=0.05"]
    assert stored(tmp_path, "c3po@beta=0.05")[0]["method"] == "c3po@beta=0.05"


def test_prompts_are_the_samples_own(tmp_path):
    import_sample(write_sample(tmp_path / "there"), tmp_path / "run", TEA, Given("m"), Report())
    data = evaluation()
    data["in_domain"].reverse()  # the reference shuffles them
    imported(tmp_path, "in_context.json", data)
    sampled = {row["prompt"]: row for row in read_jsonl(tmp_path / "run" / "sample" / "tea" / "rows.jsonl")}
    for row in stored(tmp_path, "in_context"):
        assert (row["prompt_id"], row["category"]) == (sampled[row["prompt"]]["id"], sampled[row["prompt"]]["category"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"essay": 1}, "x.json: essay: expected a known key"),
        ({"general": None}, "x.json: general: expected a list of rows, found None"),
        ({"in_domain": [1]}, "x.json: in_domain[0]: expected a mapping, found 1"),
        ({"in_domain": [{}]}, "in_domain[0].baseline_metric: expected this key, found nothing"),
        ({"second_feedback": "Be kind."}, "second_feedback: expected one feedback"),
        ({"train_args": [1]}, "train_args: expected a mapping, found [1]"),
        ({"train_args": {"algo": "ppo"}}, "train_args: algo: expected a known algorithm"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_key(tmp_path, changes, says):
    with pytest.raises(FeedbackError) as told:
        imported(tmp_path, "x.json", {"train_args": ARGUMENTS} | evaluation() | changes)
    assert says in str(told.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("improved_better_baseline", 6, "expected a verdict from 1 to 5, found 6"),
        ("improved_better_baseline", 2.5, "expected a verdict from 1 to 5, found 2.5"),
        ("answer_quality_improved_better_baseline", True, "expected a verdict from 1 to 5, found True"),
        ("baseline_metric", float("nan"), "expected a number, true or false, found nan"),
        ("improved", {"a": 1}, "expected a text or null, found {'a': 1}"),
        ("prompt", None, "expected a text, found None"),
        ("score", 1, "expected a known key"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_place(tmp_path, key, value, says):
    data = evaluation()
    data["general"][1][key] = value
    with pytest.raises(FeedbackError) as told:
        imported(tmp_path, "cot.json", data)
    assert f"general[1].{key}: {says}" in str(told.value)


def test_a_method_that_nothing_names_is_refused(tmp_path):
    with pytest.raises(FeedbackError, match="expected this key, or a file named by one of in_context, cot, revised"):
        imported(tmp_path, "mine.json", evaluation())


def test_a_lenient_import_leaves_unknown_keys_out(tmp_path):
    report = imported(tmp_path, "cot.json", evaluation(essay=1), lenient=True)
    assert len(report.skipped) == 1
    assert len(stored(tmp_path, "in_context_cot")) == 9


def test_imported_scores_are_not_made_anew(tmp_path):
    imported(tmp_path, "in_context.json", evaluation())
    import_sample(write_sample(tmp_path / "there"), tmp_path / "run", TEA, Given("m"), Report())
    with pytest.raises(ValueError, match="was imported: expected another run's folder"):
        evaluate_method(tmp_path / "run", TEA, "in_context")


def test_05_draws_from_imported_scores(tmp_path):
    run = tmp_path / "run"
    for file in ("in_context.json", "revised.json"):
        imported(tmp_path, file, evaluation())
    imported(tmp_path, "lcdpo.json", evaluation(train_args=ARGUMENTS))
    imported(tmp_path, "sft.json", evaluation(train_args={"algo": "sft"}))
    answers = collect(run)
    by_method, by_feedback = scores.method_scores(answers), scores.feedback_scores(answers)
    assert set(by_method["method"]) == {"in_context", "revised", "c3po", "scd_mixed@near_ratio=0.2,out_ratio=0.2"}
    shown = sweeps.best(by_method)
    shares = scores.application_share(answers)
    drawn = {
        "fig2": paper_figures.fig2(by_feedback, paper_figures.figure_2_methods(shown)),
        "fig6": paper_figures.fig6(shares, shown),
        "fig5": answer_card.fig5(answers, shown),
    }
    assert sweeps.hyperparameters(sweeps.trained_settings(run)) == []
    card = answer_card.fig5_html(answers, shown)
    shows = {"methods": [], "uncertainty": "interval", "paper": False, "compare": [], "sweep": []}
    tables.store_results([run], run / "figures", by_method, by_feedback, shows, {}, card, drawn)
    assert "1.00" in (run / "figures" / "table2.md").read_text()

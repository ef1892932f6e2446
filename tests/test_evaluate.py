"""Scores of stored answers: h = ok(y) - ok(y_0), missing answers counted, prompted methods read from their column."""

from __future__ import annotations

import pytest

from c3po_utils import evaluate
from c3po_utils.evaluate import collect, eval_stage, evaluate_method, score_rows, trained_methods
from c3po_utils.runs import write_json, write_jsonl
from c3po_utils.sample import find_feedback

SIGNED, PLAIN = "Done. Onward and upward, Sam", "Done. Best, Sam"


@pytest.fixture(scope="module")
def feedback():
    return find_feedback("boss_signoff")


def row(id: str, split: str, baseline: str, answer: str, **more) -> dict:
    return {
        "id": id,
        "split": split,
        "category": "c",
        "fold": "test",
        "prompt": "p",
        "baseline": baseline,
        "baseline_status": "ok",
        "in_context": answer,
        "in_context_status": "ok" if answer else "failed",
        **more,
    }


@pytest.mark.parametrize(
    ("baseline", "answer", "score"),
    [
        (PLAIN, SIGNED, 1),
        (SIGNED, PLAIN, -1),
        (SIGNED, SIGNED, 0),
        (PLAIN, PLAIN, 0),
        (PLAIN, "", None),
        ("", SIGNED, None),
    ],
)
def test_the_score_compares_with_the_baseline(feedback, baseline, answer, score):
    (scored,) = score_rows([row("a", "in_scope", baseline, answer)], feedback, "in_context")
    assert scored["score"] == score
    assert (scored["prompt_id"], scored["feedback"], scored["method"]) == ("a", "boss_signoff", "in_context")


def test_a_feedback_without_a_metric_needs_a_judge(feedback):
    with pytest.raises(ValueError, match="needs a judge"):
        score_rows([], feedback.model_copy(update={"metric": None}), "in_context")


@pytest.fixture
def run(tmp_path):
    """A run with two sampled test prompts and no model."""
    folder = tmp_path / "sample" / "boss_signoff"
    rows = [
        row("in", "in_scope", PLAIN, SIGNED, revised=SIGNED, revised_status="ok"),
        row("near", "near_scope", PLAIN, SIGNED),
        row("out", "out_of_scope", PLAIN, ""),
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    settings = {
        "model": "none", "strategy": "demonstrate", "best_of": 1, "categories": 2, "prompts_per_category": 1,
        "system_prompt": "", "max_new_tokens": 8, "seed": 0,
    }  # fmt: skip
    write_json(folder / "manifest.json", {"status": "done", "identity": {"settings": settings}})
    return tmp_path


def test_prompted_methods_are_scored_without_a_model(run, feedback):
    scores = {row["prompt_id"]: row["score"] for row in evaluate_method(run, feedback, "in_context")}
    assert scores == {"in": 1, "near": 1, "out": None}
    assert eval_stage(run, "boss_signoff", "in_context").manifest["missing"] == 1


def test_the_teacher_is_the_revision_in_scope_and_the_baseline_elsewhere(run, feedback):
    answers = {row["prompt_id"]: row["answer"] for row in evaluate_method(run, feedback, "revised")}
    assert answers == {"in": SIGNED, "near": PLAIN, "out": PLAIN}


def test_a_finished_evaluation_is_read_back_and_new_rows_are_noticed(run, feedback, monkeypatch):
    first = evaluate_method(run, feedback, "in_context")
    monkeypatch.setattr(evaluate, "score_rows", lambda *_: pytest.fail("scored again"))
    assert evaluate_method(run, feedback, "in_context") == first
    write_jsonl(run / "sample" / "boss_signoff" / "rows.jsonl", [row("in", "in_scope", PLAIN, PLAIN)])
    assert not eval_stage(run, "boss_signoff", "in_context").done


def test_collect_tables_every_finished_evaluation(run, feedback):
    for method in ("in_context", "revised"):
        evaluate_method(run, feedback, method)
    found = collect(run)
    assert len(found.answers) == 6
    assert {manifest["identity"]["method"] for manifest in found.manifests} == {"in_context", "revised"}
    with pytest.raises(FileNotFoundError, match="03_evaluate"):
        collect(run / "sample")


def test_unknown_methods_are_refused():
    assert trained_methods(["base_resampled", "revised", "c3po", "dpo@lr=1e-4"]) == ["c3po", "dpo@lr=1e-4"]
    with pytest.raises(KeyError, match="unknown method 'c3pp'"):
        trained_methods(["c3pp"])

"""The implicit reward against plain full forward passes, and the judge that is made of it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model

from c3po_utils.engine.models import load_model, load_tokenizer
from c3po_utils.evaluation.evaluate import evaluate_method
from c3po_utils.evaluation.implicit_reward import adapter_rewards, in_context_rewards, measure
from c3po_utils.evaluation.judge import open_judge
from c3po_utils.evaluation.reward_judge import (
    METHODS,
    agreement,
    calibrate,
    judged,
    main,
    report,
    reward_margins,
    scores,
    with_margins,
)
from c3po_utils.feedback import find_feedback
from c3po_utils.runs.files import write_json, write_jsonl
from c3po_utils.runs.stage import ROOT
from c3po_utils.sampling.answers import IN_CONTEXT
from c3po_utils.sampling.rows import stored_feedback
from c3po_utils.training.adapters import lora_config
from c3po_utils.training.data import encode
from tests.servers import Reply, scripted
from tests.stored_run import store_adapter, store_sample

SYSTEM = "Be brief."
PAIRS = [
    ("Is tea hot?", "Yes, it is, and it should be left alone for a while."),
    ("Why?", "No."),
    ("Is tea hot?", "Crème brûlée 🍵"),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(str(tiny_folder))


@pytest.fixture
def model(tiny_folder):
    return load_model(str(tiny_folder), dtype=torch.float32)


@pytest.fixture
def feedback(own_feedback):
    return find_feedback(own_feedback)


def plain_logps(model, tokenizer, prompt: str, answer: str, **context) -> np.ndarray:
    """log pi of an answer's tokens from one full forward pass and a log-softmax over all logits."""
    example = encode(tokenizer, "", prompt, answer, system=SYSTEM, **context)
    ids = torch.tensor([example.prompt_ids + example.completion_ids])
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logps[len(example.prompt_ids) - 1 :].numpy()


def test_no_pairs_have_no_rewards_and_one_beyond_the_context_is_named(model, tokenizer, feedback):
    assert in_context_rewards(model, tokenizer, [], feedback) == []
    with pytest.raises(ValueError, match=r"answer to 'Tea\? Tea\? .*: \d+ tokens .*, more than the context of 256"):
        in_context_rewards(model, tokenizer, [*PAIRS, ("Tea? " * 200, "Yes.")], feedback)


def test_a_judge_without_any_metrics_score_to_agree_with_is_an_error(tmp_path, tiny_folder):
    store_sample(tmp_path, "short", str(tiny_folder))
    (tmp_path / "eval" / "short" / "c3po").mkdir(parents=True)
    scored = {
        "feedback": "short",
        "method": "c3po",
        "score": 0.5,
        "metric_score": None,
        "prompt_id": "a",
        "scored_by": "m",
    }
    write_jsonl(tmp_path / "eval" / "short" / "c3po" / "answers.jsonl", [scored])
    write_json(
        tmp_path / "eval" / "short" / "c3po" / "manifest.json", {"status": "done", "identity": {"method": "c3po"}}
    )
    with pytest.raises(ValueError, match="no answer of scd, c3po has a metric's score"):
        main([str(tmp_path)])


def test_an_adapters_rewards_are_the_difference_of_two_forward_passes(model, tokenizer):
    torch.manual_seed(3)
    policy = get_peft_model(model, lora_config(r=3, alpha=6, dropout=0.1)).eval()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    found = adapter_rewards(policy, tokenizer, PAIRS, system=SYSTEM)
    for (prompt, answer), reward in zip(PAIRS, found, strict=True):
        expected = plain_logps(policy, tokenizer, prompt, answer)
        with policy.disable_adapter():
            expected = expected - plain_logps(policy, tokenizer, prompt, answer)
        np.testing.assert_allclose(reward.values, expected, atol=1e-5)
        assert np.abs(expected).max() > 0.01
        assert reward.total == pytest.approx(expected.sum(), abs=1e-4)
        assert reward.values.mean() == pytest.approx(expected.mean(), abs=1e-5)


@pytest.mark.parametrize("context", ["sentence", "demonstrations"])
def test_in_context_rewards_are_the_difference_of_two_forward_passes(model, tokenizer, feedback, context):
    found = in_context_rewards(model, tokenizer, PAIRS, feedback, context=context, system=SYSTEM)
    for (prompt, answer), reward in zip(PAIRS, found, strict=True):
        plain = plain_logps(model, tokenizer, prompt, answer)
        if context == "sentence":
            told = IN_CONTEXT.format(prompt=prompt, feedback=feedback.content)
            informed = plain_logps(model, tokenizer, told, answer)
        else:
            turns = [(shown.prompt, shown.answer) for shown in feedback.demonstrations]
            informed = plain_logps(model, tokenizer, prompt, answer, turns=turns)
        np.testing.assert_allclose(reward.values, informed - plain, atol=1e-5)


def test_tokens_joined_are_the_answer(model, tokenizer, feedback):
    ended, cut = (
        in_context_rewards(model, tokenizer, PAIRS, feedback, ended=[end] * len(PAIRS)) for end in (True, False)
    )
    for (_, answer), whole, part in zip(PAIRS, ended, cut, strict=True):
        assert "".join(whole.tokens) == answer + "<|end|>"
        assert "".join(part.tokens) == answer
        assert len(whole.tokens) == len(whole.values) == len(part.values) + 1


def test_demonstrations_that_are_not_there_cannot_be_shown(model, tokenizer, feedback):
    bare = feedback.model_copy(update={"demonstrations": ()})
    with pytest.raises(ValueError, match="'wordy' has no demonstrations"):
        in_context_rewards(model, tokenizer, PAIRS, bare, context="demonstrations")


def test_margins_compare_the_answer_with_its_baseline(model, tokenizer, feedback):
    (prompt, answer), baseline = PAIRS[0], "No, not now."
    row = {"prompt": prompt, "answer": answer, "status": "ok", "baseline": baseline, "baseline_status": "truncated"}
    rows = [row, row | {"answer": baseline, "status": "truncated"}, row | {"answer": "", "status": "failed"}]
    margins = reward_margins(model, tokenizer, rows, feedback, system=SYSTEM)["sentence"]
    asked = {"system": SYSTEM, "ended": [True, False]}
    one, other = in_context_rewards(model, tokenizer, [(prompt, answer), (prompt, baseline)], feedback, **asked)
    assert margins[0] == pytest.approx(one.values.mean() - other.values.mean(), abs=1e-5)
    assert margins[1] == 0
    assert np.isnan(margins[2])


def judged_rows(margins: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Answers to 40 prompts of each of three feedbacks, with the same margins in both contexts."""
    places = np.arange(len(gold))
    return pd.DataFrame({
        "feedback": [f"f{i % 3}" for i in places], "method": "c3po", "split": "in_scope", "metric_score": gold * 1.0,
        "prompt_id": [f"p{i}" for i in places], "answer": "an answer", "baseline": "another",
        "sentence": margins, "demonstrations": margins, "shorter": margins,
    })  # fmt: skip


def test_a_perfect_judge_agrees_and_a_random_one_does_not():
    rng = np.random.default_rng(0)
    gold = rng.choice([-1, 0, 1], 300, p=[0.1, 0.4, 0.5])
    perfect = agreement(judged_rows(gold * 0.5 + rng.uniform(-0.1, 0.1, 300), gold), draws=40)
    assert (perfect[["kappa", "auc", "kappa_lo", "auc_lo"]] == 1).all().all()
    assert not perfect["warning"].any()
    random = agreement(judged_rows(rng.normal(size=300), gold), draws=40).query("feedback == 'all'")
    assert (random["auc_lo"] < 0.5).all()
    assert (random["auc_hi"] > 0.5).all()
    assert (random["kappa"].abs() < 0.15).all()
    assert random["warning"].str.contains("Do not trust").all()
    text = report(perfect, "results/x")
    assert "| all        | 300 |" in text
    assert "1.00 [1.00, 1.00]" in text


def test_the_threshold_comes_from_the_other_feedbacks():
    gold = np.tile([0, 0, 0, 1, 1, 1], 20)
    rows = judged_rows(np.where(gold == 1, 0.4, 0.1), gold)
    rows.loc[rows["feedback"] == "f1", "sentence"] *= 10
    found = judged(rows, "sentence").query("feedback == 'f1'")
    assert (found["threshold"] == 0.25).all()
    assert (found["score"] > 0.5).all()  # its own scale, ten times as large, has had no say
    assert scores(np.array([-0.2, 0.0, 0.2, np.nan]), 0.2) == pytest.approx([-0.5, 0, 0.5, np.nan], nan_ok=True)
    assert calibrate(np.array([0.1, 0.3, np.nan]), np.array([0, 1, 1.0])) == pytest.approx(0.2, abs=0.01)


def test_feedbacks_without_a_metric_have_no_say_in_the_threshold():
    gold = np.tile([0, 0, 0, 1, 1, 1], 20)
    rows = judged_rows(np.where(gold == 1, 0.4, 0.1), gold)
    rows.loc[rows["feedback"] == "f1", "metric_score"] = np.nan
    assert (judged(rows, "sentence")["threshold"] == 0.25).all()
    rows.loc[rows["feedback"] == "f2", "metric_score"] = np.nan
    with pytest.raises(ValueError, match="no margin to calibrate on: expected answers of another feedback that has a "):
        judged(rows, "sentence")


def test_the_report_is_made_from_a_run(tmp_path, tiny_folder, capsys):
    for seed, id in enumerate(("one", "two")):
        store_sample(tmp_path, id, str(tiny_folder))
        store_adapter(tmp_path, id, "c3po", str(tiny_folder), seed)
        evaluate_method(tmp_path, stored_feedback(tmp_path, id), "c3po")
    main([str(tmp_path), "--draws", "20"])
    table = pd.read_csv(tmp_path / "implicit_reward.csv")
    assert table["feedback"].to_list() == ["one", "two", "all"] * 3
    assert table["n"].to_list() == [6, 6, 12] * 3
    assert "shorter" in (tmp_path / "implicit_reward.md").read_text()
    assert "demonstrations" in capsys.readouterr().out


def test_what_the_metric_scored_is_gold_beside_what_a_judge_scored(tmp_path, tiny_folder, capsys):
    """A judge's rows have the metric's score in a column of its own, which other rows have not."""
    store_sample(tmp_path, "one", str(tiny_folder))
    for seed, method in enumerate(METHODS):
        store_adapter(tmp_path, "one", method, str(tiny_folder), seed)
    scored = evaluate_method(tmp_path, stored_feedback(tmp_path, "one"), "scd")
    with scripted(lambda asked: Reply(json.dumps({"reasons": "", "verdict": 4}))) as server:
        judge = open_judge(tmp_path, f"openai:m@{server.url}")
        judged = evaluate_method(tmp_path, stored_feedback(tmp_path, "one"), "c3po", judge)
    gold = with_margins(tmp_path).set_index(["method", "prompt_id"])["metric_score"]
    wanted = [row["score"] for row in scored] + [row["metric_score"] for row in judged]
    assert gold[[(row["method"], row["prompt_id"]) for row in scored + judged]].to_list() == wanted
    told = f"Not to be compared: c3po by openai:m@{server.url}; scd by metric (of one); evaluate them with one"
    assert capsys.readouterr().out.startswith(told)


def test_only_an_adapter_with_revised_answers_beside_it_is_measured(tmp_path):
    path = tmp_path / "sample" / "one" / "rows.jsonl"
    rows = store_sample(tmp_path, "one", "none")
    write_jsonl(path, [{key: row[key] for key in row if not key.startswith("revised")} for row in rows])
    with pytest.raises(
        ValueError, match=r"'one': expected a revised answer to an in-scope test prompt of .*found none"
    ):
        measure(tmp_path / "train" / "one" / "scd")
    write_json(tmp_path / "train" / "one" / "scd_gated" / "gate.json", {"gated": "scd"})
    with pytest.raises(ValueError, match=r"scd_gated is a gate: expected .* such as .*train/one/scd$"):
        measure(tmp_path / "train" / "one" / "scd_gated")


def test_the_committed_report_is_what_the_code_says_of_the_committed_table():
    table = pd.read_csv(ROOT / "results/embedded/implicit_reward.csv").fillna({"warning": ""})
    assert (ROOT / "results/embedded/implicit_reward.md").read_text() == report(table, "results/embedded")

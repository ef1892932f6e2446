"""Talking to a run: answers as they grow, verdicts, mixtures, and the command around them."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner

from c3po_utils import cli
from c3po_utils.chat import Outcome
from c3po_utils.engine.models import load_model
from c3po_utils.evaluation import playground
from c3po_utils.evaluation.evaluate import evaluate_method
from c3po_utils.evaluation.playground import Answer, open_playground, read_mix
from c3po_utils.runs.files import content_hash
from c3po_utils.sampling import stored_feedback
from c3po_utils.training.adapters import mixed
from tests.stored_run import sampled_for, store_adapter, store_gate, store_playground, store_sample

METHODS = ["in_context", "scd", "c3po"]


@pytest.fixture(scope="module")
def tiny(tiny_folder) -> str:
    return str(tiny_folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    return store_playground(tmp_path_factory.mktemp("run"), tiny)


def test_answers_grow_token_by_token_and_base_is_first(run):
    play, told = open_playground(run, "short", METHODS), []
    found = list(play.answers("Is tea hot?", follow=lambda *grown: told.append(grown)))
    assert [answer.method for answer in found] == ["base", *METHODS]
    for answer in found:
        texts = [text for method, text in told if method == answer.method]
        assert len(texts) == answer.outcome.completion_tokens
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        assert texts[-1].strip() == answer.outcome.text.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character
    assert len({answer.outcome.text for answer in found}) > 2


def test_a_test_prompt_has_the_answers_that_were_evaluated(run):
    stored = evaluate_method(run, stored_feedback(run, "short"), "c3po")
    play = open_playground(run, "short", ["c3po"])
    assert {row["id"] for row in play.test_prompts} == {row["prompt_id"] for row in stored}
    for row in stored:
        answer = list(play.answers(row["prompt"]))[-1]
        assert (answer.method, answer.outcome.text, answer.outcome.status) == ("c3po", row["answer"], row["status"])


def test_so_it_has_where_an_api_answers_for_pi_0(tmp_path, tiny):
    run = store_playground(tmp_path, tiny)
    sampled_for(run, stored_feedback(run, "short"), completion_model="openai:m@http://127.0.0.1:9/v1")
    stored = {row["prompt"]: row["answer"] for row in evaluate_method(run, stored_feedback(run, "short"), "c3po")}
    play = open_playground(run, "short", ["c3po"])
    assert {prompt: list(play.answers(prompt))[-1].outcome.text for prompt in stored} == stored


def test_behind_a_gate_a_test_prompt_has_the_answers_that_were_evaluated_and_says_which_way_it_went(tmp_path, tiny):
    run = store_playground(tmp_path, tiny)
    store_gate(run, "short", lambda row: row["split"] == "in_scope")
    stored = evaluate_method(run, stored_feedback(run, "short"), "scd_gated")
    play, said = open_playground(run, "short", ["scd_gated"]), set()
    for row in stored:
        answer = list(play.answers(row["prompt"]))[-1]
        assert (answer.method, answer.outcome.text[:4]) == ("scd_gated", row["answer"][:4])  # later, bfloat16 rounds
        said.add((row["split"], answer.opened, answer.verdict.partition(" · ")[0]))
    assert said == {
        ("in_scope", True, "gate open"), ("near_scope", False, "gate closed"), ("out_of_scope", False, "gate closed")
    }  # fmt: skip


def test_in_a_mixture_each_gate_decides_for_its_own_adapter(tmp_path, tiny):
    run = store_playground(tmp_path, tiny)
    store_gate(run, "short", lambda row: False)
    play = open_playground(run, "short", ["c3po"], [{"c3po": 1.0, "scd_gated": 0.5}])
    _, alone, mixed_in = play.answers("Is tea hot?")
    assert (alone.opened, mixed_in.opened) == (None, False)  # the adapter without a gate answers all the same
    store_gate(run, "short", lambda row: True)
    opened = list(play.answers("Is tea hot?"))[-1]
    assert opened.opened is True
    plain = list(open_playground(run, "short", [], [{"c3po": 1.0, "scd": 0.5}]).answers("Is tea hot?"))[-1]
    assert mixed_in.outcome.text != opened.outcome.text
    assert plain.outcome.completion_tokens


@pytest.mark.embedded
@pytest.mark.quiet
def test_the_first_word_of_a_loaded_model_comes_within_three_seconds(tmp_path):
    store_sample(tmp_path, "short", "smollm2-135m")
    play, came = open_playground(tmp_path, "short", ["base"]), []
    playground.shared_chat("smollm2-135m")
    start = time.perf_counter()
    list(play.answers("Is tea hot?", follow=lambda *_: came.append(time.perf_counter() - start)))
    assert len(came) > 1
    assert came[0] < 3


def test_nothing_is_written_in_the_run(run):
    before = content_hash(run)
    assert list(open_playground(run, "short", ["c3po"], [{"scd": 0.5}]).answers("Something new?", seed=3))
    assert content_hash(run) == before


def test_test_prompts_take_turns_by_split(run):
    splits = [row["split"] for row in open_playground(run, "short").test_prompts]
    assert splits == ["in_scope", "near_scope", "out_of_scope"] * 2


def test_methods_left_out_are_those_that_were_trained(run):
    assert list(open_playground(run, "short").methods) == ["base", "in_context", "c3po", "scd"]
    assert list(open_playground(run, "shouted").methods) == ["base", "in_context", "c3po"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "has several feedbacks, choose one: short, shouted"),
        ({"feedback": "shot"}, "unknown feedback 'shot' .did you mean 'shor?t'"),
        ({"feedback": "short", "methods": ["c3p0"]}, "unknown method 'c3p0' .did you mean 'c3po'"),
        ({"feedback": "short", "mixes": [{"base": 1}]}, "unknown adapter 'base' .*shouted/c3po"),
        ({"feedback": "short", "mixes": [{"c3po": float("nan")}]}, "weight of 'c3po' is nan, expected a finite number"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(run, given, message):
    with pytest.raises(ValueError, match=message):
        open_playground(run, **given)


def test_a_run_that_is_not_there_is_told_with_the_next_step(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run .*expected a run's folder"):
        open_playground(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no sampled rows: run notebooks/01_sample"):
        open_playground(tmp_path)


@pytest.mark.parametrize(
    ("method", "passes", "base_passes", "verdict"),
    [
        ("base", True, True, "passes"),
        ("c3po", True, False, "passes, base does not"),
        ("c3po", False, True, "does not pass, base does"),
        ("c3po", False, False, "does not pass, nor does base"),
        ("c3po", True, True, "passes, so does base"),
        ("c3po", None, None, "no metric: judge for yourself"),
    ],
)
def test_verdicts_say_beside_which_answer(method, passes, base_passes, verdict):
    assert Answer(method, Outcome("x", "ok", "Yes."), passes, base_passes).verdict == verdict


def test_verdicts_say_what_became_of_an_answer(run):
    cut = Outcome("x", "truncated", "Yes and", completion_tokens=6)
    assert Answer("c3po", cut, True, False).verdict == "passes, base does not · cut after 6 tokens"
    found = list(open_playground(run, "short", ["c3po"]).answers("tea " * 300))
    assert [answer.passes for answer in found] == [None, None]
    assert found[1].verdict.startswith("failed: prompt of ")


def changes(tiny: str, weights: dict) -> dict[str, torch.Tensor]:
    model = load_model(tiny, dtype=torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with mixed(model, weights) as tuned:
        after = {key: value.clone() for key, value in tuned.state_dict().items()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return {key: after[key] - before[key] for key in before}


def test_a_mixture_changes_weights_by_the_weighted_sum(run, tiny):
    folders = [run / "train/short/c3po", run / "train/shouted/c3po"]
    one, other = (changes(tiny, {folder: 1.0}) for folder in folders)
    both = changes(tiny, dict(zip(folders, (0.5, -2.0), strict=True)))
    assert max(change.abs().max() for change in one.values()) > 0.1
    for key in both:
        torch.testing.assert_close(both[key], 0.5 * one[key] - 2 * other[key], atol=1e-5, rtol=1e-5)


def test_mixtures_are_read_from_one_line():
    assert read_mix(" c3po=0.5, other/c3po@beta=0.1=-1 ") == {"c3po": 0.5, "other/c3po@beta=0.1": -1.0}
    assert read_mix("") == {}
    mixed_in = {"scd@lr=1e-4,r=16": 0.5, "other/c3po": 0.5, "c3po@beta=0.1,kl=0.5": -1.0}
    assert read_mix("scd@lr=1e-4,r=16=0.5,other/c3po=0.5, c3po@beta=0.1,kl=0.5=-1") == mixed_in
    with pytest.raises(ValueError, match=r"expected ADAPTER=WEIGHT.*found 'c3po'"):
        read_mix("c3po")


def test_a_variant_whose_label_has_a_comma_is_asked_by_name(tmp_path, tiny):
    run, name = store_playground(tmp_path, tiny), "scd@lr=1e-4,r=16"
    store_adapter(run, "short", name, tiny)
    output = asked(run, "Is tea hot?", "--methods", f"{name},c3po", "--mix", f"{name}=0.5")
    assert all(f"\n[{each}]\n" in output for each in (name, "c3po", f"0.5*{name}"))


def asked(run, *arguments: str, **given) -> str:
    done = CliRunner().invoke(cli.c3po, ["ask", str(run), "--feedback", "short", *arguments], **given)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_writes_answers_one_after_another(run):
    output = asked(run, "Is tea hot?", "--methods", "c3po", "--mix", "c3po=0.5,scd=0.5")
    assert output.startswith("short: Be short about tea.\n")
    assert "system prompt: Be brief.\n\n> Is tea hot?\n" in output
    play = open_playground(run, "short", ["c3po"], [{"c3po": 0.5, "scd": 0.5}])
    for answer in play.answers("Is tea hot?"):
        assert f"\n[{answer.method}]\n{answer.outcome.text}\n-- {answer.verdict}\n" in output
    assert "[0.5*c3po + 0.5*scd]" in output


def test_the_command_asks_test_prompts_and_what_is_typed(run):
    tests = [row["prompt"] for row in open_playground(run, "short").test_prompts]
    output = asked(run, "--test", "2", "--methods", "base")
    assert f"> {tests[0]}  (in_scope)" in output
    assert f"> {tests[1]}  (near_scope)" in output
    assert output.count("[base]") == 2
    output = asked(run, "--methods", "base", input="\nIs tea hot?\n\n")
    questions = [line for line in output.splitlines() if line.startswith("> ")]
    assert questions == [f"> {tests[0]}  (in_scope)", "> Is tea hot?", f"> {tests[1]}  (near_scope)"]


def test_the_command_tells_errors_in_a_line(run):
    done = CliRunner().invoke(cli.c3po, ["ask", str(run), "Hello?", "--test", "1"])
    assert done.exit_code == 2
    assert done.output.endswith("Error: expected PROMPT or --test, found both\n")
    done = CliRunner().invoke(cli.c3po, ["ask", str(run), "Hello?"])
    assert done.exit_code == 1
    assert done.output.endswith("has several feedbacks, choose one: short, shouted\n")
    assert len(done.output.splitlines()) == 1

"""A gated model distilled into one plain adapter: its rows, its stage, and how it trains on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from c3po_utils.chat.local import LocalChat
from c3po_utils.engine.models import load_model, load_tokenizer
from c3po_utils.feedback import records
from c3po_utils.runs import config, files
from c3po_utils.runs.check import check
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.sampling import answers, load_rows, stored_feedback, stored_settings
from c3po_utils.sampling.unlabelled import nearby_prompts, unlabelled_prompts
from c3po_utils.training import Training, TrainSettings, adapter_hash, gate
from c3po_utils.training.adapters import merged
from c3po_utils.training.methods import METHODS, Method, get_method
from c3po_utils.training.stage import WEIGHTS, gated_folder, train_stage
from c3po_utils.training.transfer import transfer_rows
from tests.stored_run import sampled_for, store_adapter, store_sample

SETTINGS = TrainSettings("scd_distilled", 1e-3, 1.0, 4, 0, {"r": 4, "alpha": 8}, {"unlabelled": 24})


@pytest.fixture
def run(tmp_path, tiny_folder):
    """A sampled feedback with an adapter of SCD and its gate."""
    store_sample(tmp_path, "short", str(tiny_folder))
    store_adapter(tmp_path, "short", "scd", str(tiny_folder))
    Training.of(tmp_path, "short", TrainSettings("scd_gated", 1e-3, 1.0, 2, 0, {}, {"gate_leak": 0.5})).fit()
    return tmp_path


def test_rows_are_pi_0s_answers_where_the_gate_is_closed_made_once_in_a_run(run, tiny_folder, monkeypatch):
    rows = transfer_rows(run, "short", SETTINGS.objective)
    model, tokenizer = load_model(str(tiny_folder)), load_tokenizer(str(tiny_folder))
    own = gate.load_gate(run / "train" / "short" / "scd_gated", model)
    asked = unlabelled_prompts(load_rows(run, "short"), 24)
    scores = own.scores(model, [gate.prompt_ids(tokenizer, prompt.text, "Be brief.") for prompt in asked])
    closed = [prompt.id for prompt, score in zip(asked, scores, strict=True) if score <= own.threshold]
    assert 0 < len(closed) < 24
    assert [row["id"] for row in rows] == closed
    assert {row["baseline_status"] for row in rows} <= {"ok", "truncated"}
    assert all(row["baseline"] for row in rows)
    assert [row["split"] for row in rows[:3]] == ["near_scope", "out_of_scope", "near_scope"]
    monkeypatch.setattr(LocalChat, "complete", lambda *_, **__: pytest.fail("asked again"))
    assert transfer_rows(run, "short", SETTINGS.objective) == rows


def test_it_trains_one_plain_adapter_with_each_kept_row_dealt_once(run):
    training = Training.of(run, "short", SETTINGS)
    unlabelled = len(transfer_rows(run, "short", SETTINGS.objective))
    assert (training.preflight.pairs, training.preflight.near_scope) == (4, 4 + -(-unlabelled // 2))
    assert training.preflight.out_of_scope == 2 + unlabelled // 2
    near = [row["near_scope_id"] for row in training.rows]
    assert len(near) == len(set(near)) == training.preflight.near_scope
    assert {"rejected_ids"}.isdisjoint(training.rows[0])
    log = training.fit()
    assert np.isfinite(log["loss"]).all()
    assert len(log) == -(-len(near) // 4)
    assert (training.stage.folder / WEIGHTS).exists()
    assert gated_folder(training.stage.folder) is None
    assert training.stage.done


@pytest.fixture
def nearby(run, tmp_path):
    """Settings with 120 prompts about tea, in a file, beside ten of other feedbacks."""
    texts = [f"{word} tea {n}?" for n in range(40) for word in ("Is this", "Who drank", "Why not")]
    files.write_jsonl(tmp_path / "log.jsonl", [{"text": text} for text in texts])
    return replace(SETTINGS, method_settings={"unlabelled": 10, "nearby": str(tmp_path / "log.jsonl")})


def test_nearby_prompts_are_answered_with_the_adapter_where_the_gate_is_open(run, nearby, tiny_folder, monkeypatch):
    monkeypatch.setattr(records.Feedback, "passes", lambda self, text, baseline: len(text) % 4 > 0)
    sampled_for(run, stored_feedback(run, "short"), max_new_tokens=40)
    rows = transfer_rows(run, "short", nearby.objective)
    model, tokenizer = load_model(str(tiny_folder)), load_tokenizer(str(tiny_folder))
    own = gate.load_gate(run / "train" / "short" / "scd_gated", model)
    asked = nearby_prompts(load_rows(run, "short"), nearby.objective.nearby)
    opens = own.opens(model, [gate.prompt_ids(tokenizer, prompt.text, "Be brief.") for prompt in asked])
    split = {prompt.id: "in_scope" if is_open else "near_scope" for prompt, is_open in zip(asked, opens, strict=True)}
    assert len(asked) == 120
    assert 0 < opens.sum() < 120
    found = {row["id"]: row for row in rows if row["id"] in split}
    assert {id: row["split"] for id, row in found.items()} == {id: split[id] for id in found}
    assert {id for id in split if split[id] == "near_scope"} <= found.keys()
    inside = {row["id"]: row["revised"] for row in found.values() if row["split"] == "in_scope"}
    settings = stored_settings(run, "short")
    expected = [{"id": prompt.id, "prompt": prompt.text} for prompt in asked if split[prompt.id] == "in_scope"]
    with merged(load_model(str(tiny_folder)), run / "train" / "short" / "scd") as adapted:
        answers.add_answers(LocalChat(adapted, tokenizer), expected, settings, "revised")
    ended = [row for row in expected if row["revised_status"] == "ok"]
    usable = {row["id"]: row["revised"] for row in ended if len(row["revised"]) % 4}
    assert 0 < len(usable) < len(expected)  # some are cut off, or do not pass
    assert inside == usable
    assert not any(row["revised"] for row in rows if row["split"] != "in_scope")
    assert {row["split"] for row in rows if row["id"] not in split} == {"out_of_scope"}
    monkeypatch.setattr(LocalChat, "complete", lambda *_, **__: pytest.fail("asked again"))
    assert transfer_rows(run, "short", nearby.objective) == rows


def test_nearby_prompts_are_trained_on_and_other_ones_are_another_training(run, nearby, tmp_path):
    training = Training.of(run, "short", nearby)
    rows = transfer_rows(run, "short", nearby.objective)
    counted = {
        split: sum(row["split"] == split for row in rows) for split in ("in_scope", "near_scope", "out_of_scope")
    }
    kept = training.preflight
    assert kept.pairs == 4 + counted["in_scope"]
    assert (kept.near_scope, kept.out_of_scope) == (4 + counted["near_scope"], 2 + counted["out_of_scope"])
    assert len(training.rows) == max(kept.pairs, kept.near_scope, kept.out_of_scope)
    assert np.isfinite(training.fit()["loss"]).all()
    assert training.stage.done
    moved = files.write_jsonl(tmp_path / "elsewhere.jsonl", files.read_jsonl(tmp_path / "log.jsonl"))
    there = replace(nearby, method_settings={**nearby.method_settings, "nearby": str(moved)})
    assert Training.of(run, "short", there).stage.done
    files.write_jsonl(tmp_path / "log.jsonl", [{"text": "Is tea black?"}])
    assert not Training.of(run, "short", nearby).stage.done
    sampled_for(run, stored_feedback(run, "short").model_copy(update={"metric": None}))  # which chose among the answers
    assert not Training.of(run, "short", there).stage.done


def test_two_feedbacks_that_are_learned_jointly_are_distilled_at_prompts_about_either(run, nearby, tiny_folder):
    store_sample(run, "other", str(tiny_folder))
    sampled_for(run, stored_feedback(run, "other").model_copy(update={"metric": None}))
    store_adapter(run, "short+other", "scd", str(tiny_folder))
    Training.of(run, "short+other", TrainSettings("scd_gated", 1e-3, 1.0, 2, 0, {}, {"gate_leak": 0.5})).fit()
    rows = transfer_rows(run, "short+other", nearby.objective)
    assert any(row["split"] == "in_scope" for row in rows)  # one has no metric that they could fail
    log = Training.of(run, "short+other", nearby).fit()
    assert np.isfinite(log["loss"]).all()


def test_another_gate_or_another_prompt_is_another_training(run, monkeypatch):
    stage = train_stage(run, "short", SETTINGS)
    assert stage.identity["distils"] == adapter_hash(run / "train" / "short" / "scd_gated")
    monkeypatch.setattr("c3po_utils.sampling.unlabelled.unlabelled_prompts", lambda *_: [])
    assert train_stage(run, "short", SETTINGS).identity["unlabelled"] != stage.identity["unlabelled"]
    Training.of(run, "short", TrainSettings("scd_gated", 1e-3, 1.0, 2, 0, {}, {"gate_l2": 0.1})).fit()
    assert train_stage(run, "short", SETTINGS).identity["distils"] != stage.identity["distils"]


def test_without_the_gate_its_stage_says_what_is_missing(tmp_path, tiny_folder):
    store_sample(tmp_path, "short", str(tiny_folder))
    with pytest.raises(FileNotFoundError, match=r"scd_gated has no adapter: run notebooks/02_train\.ipynb"):
        train_stage(tmp_path, "short", SETTINGS)


def test_a_run_names_the_gated_method_before_the_one_that_distils_it(tmp_path):
    given = {
        "run": str(tmp_path / "run"),
        "feedbacks": ["boss_signoff"],
        "methods": ["scd", "scd_gated", "scd_distilled"],
    }
    check(config.RunConfig(**given))
    with pytest.raises(ParameterError, match="it distils 'scd_gated': name that before it in `methods`"):
        check(config.RunConfig(**given | {"methods": ["scd", "scd_distilled", "scd_gated"]}))


def test_settings_that_cannot_be_meant_are_refused_and_the_equation_shows_the_rest():
    for given in ({"distils": "scd_gated"}, {"unlabelled": 3}, {"nearby": "bundled"}):
        with pytest.raises(ValueError, match="expected the first with one of the others, or none of them"):
            Method(**given)
    for weight, given in (
        ("near_weight", {"unlabelled": 10}), ("out_weight", {"unlabelled": 10}), ("near_weight", {"nearby": "bundled"})
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"join rows that weigh nothing, as {weight} is 0"):
            Method(distils="scd_gated", **given, **{weight: 0.0})
    Method(distils="scd_gated", nearby="bundled", out_weight=0.0)
    with pytest.raises(ValueError, match=r"distils: no gate of 'scd' \(.*scd_gated"):
        get_method("scd_distilled", distils="scd")
    assert METHODS["scd_distilled"].equation.count(r"\cup D_{g<t}") == 2
    nearby = replace(METHODS["scd_distilled"], nearby="bundled").equation
    assert r"L_\text{SFT}(D_\text{in} \cup N_{g>t}, y^+)" in nearby
    pairs = replace(METHODS["scd_distilled"], nearby="bundled", preference=1.0).equation
    assert r"L_\text{DPO}(D_\text{in} \cup N_{g>t};" in pairs
    assert r"D_\text{out} \cup D_{g<t})" in nearby
    assert r"D_\text{near} \cup N_{g<t})" in nearby
    assert not any(r"D_{g<t}" in method.equation for name, method in METHODS.items() if name != "scd_distilled")

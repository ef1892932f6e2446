"""A gated model distilled into one plain adapter: its rows, its stage, and how it trains on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest

from c3po_utils.chat.local import LocalChat
from c3po_utils.engine.models import load_model, load_tokenizer
from c3po_utils.runs import config
from c3po_utils.runs.check import check
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.sampling import load_rows
from c3po_utils.sampling.unlabelled import unlabelled_prompts
from c3po_utils.training import Training, TrainSettings, adapter_hash, gate
from c3po_utils.training.methods import METHODS, Method, get_method
from c3po_utils.training.stage import WEIGHTS, gated_folder, train_stage
from c3po_utils.training.transfer import transfer_rows
from tests.stored_run import store_adapter, store_sample

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
    with pytest.raises(ValueError, match="distils is 'scd_gated' and unlabelled is 0: expected both or neither"):
        Method(distils="scd_gated")
    with pytest.raises(ValueError, match="unlabelled prompts join near and out rows, and one of these weighs 0"):
        Method(distils="scd_gated", unlabelled=10, near_weight=0.0)
    with pytest.raises(ValueError, match=r"distils: no gate of 'scd' \(.*scd_gated"):
        get_method("scd_distilled", distils="scd")
    assert METHODS["scd_distilled"].equation.count(r"\cup D_{g<t}") == 2
    assert not any(r"D_{g<t}" in method.equation for name, method in METHODS.items() if name != "scd_distilled")

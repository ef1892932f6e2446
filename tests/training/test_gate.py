"""The scope gate: what it reads, its files, which model it belongs to, and its stage beside the adapter."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from c3po_utils.engine import load_tokenizer
from c3po_utils.engine.hidden_states import Reading, prompt_states
from c3po_utils.engine.models import load_model
from c3po_utils.feedback import find_feedback
from c3po_utils.feedback.records import load_general_prompts, load_prompts
from c3po_utils.runs import config, jobs
from c3po_utils.runs.check import check
from c3po_utils.runs.files import DamagedFile, read_json, write_json
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.stage import MANIFEST, ROOT, fingerprint
from c3po_utils.sampling.rows import deal_prompts
from c3po_utils.sampling.settings import SampleSettings
from c3po_utils.training import Training, TrainSettings, adapter_hash, gate, probe
from c3po_utils.training.methods import METHODS, get_method
from c3po_utils.training.stage import GATE, GATE_CARD, WEIGHTS, gated_folder, known_hash, train_stage, weights_folder
from tests.stored_run import store_adapter, store_sample
from tests.token_rows import VOCABULARY, tiny_model

SETTINGS = TrainSettings("scd_gated", 1e-3, 1.0, 2, 0)


def prompts(count: int = 5, seed: int = 0) -> list[list[int]]:
    """Of unequal lengths, with a common beginning."""
    draw = np.random.default_rng(seed)
    return [[3, 4, 5, 6, *draw.integers(7, VOCABULARY, length).tolist()] for length in draw.integers(1, 30, count)]


@pytest.mark.parametrize("name", ["llama", "gemma3", "falcon", "mistral_narrow"])
def test_states_are_those_of_a_plain_pass_whatever_stands_beside_them(name):
    model, given = tiny_model(name), prompts(40)
    readings = [Reading(), Reading(1), Reading(2, "mean"), Reading(0, "mean")]
    found = prompt_states(model, given, readings)
    assert found.shape == (4, 40, model.config.hidden_size)
    for place in (0, 17, 39):
        with torch.no_grad():
            states = model(torch.tensor([given[place]], device=model.device), output_hidden_states=True).hidden_states
        expected = [states[-1][0, -1], states[1][0, -1], states[2][0].mean(0), states[0][0].mean(0)]
        torch.testing.assert_close(found[:, place], torch.stack(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prompt_states(model, [given[7]], readings)[:, 0], found[:, 7], atol=1e-5, rtol=1e-5)


def test_layers_above_the_one_that_is_read_are_not_computed():
    model, given = tiny_model(), prompts()
    expected = prompt_states(model, given, [Reading(1), Reading(2)])[0]
    model.get_decoder().layers[1].forward = None  # calling it fails
    assert torch.equal(prompt_states(model, given, [Reading(1)])[0], expected)
    with pytest.raises(TypeError):
        prompt_states(model, given, [Reading(2)])


@pytest.mark.parametrize(
    ("name", "changes", "ends"), [("llama", {"num_hidden_layers": 4}, (3, 1, 4, 2, 3)), ("gemma3", {}, (1, 2, 1))]
)
def test_what_was_read_before_at_other_layers_changes_nothing(name, changes, ends):
    model, given = tiny_model(name, **changes), prompts()

    def plain(model) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            asked = torch.tensor([given[3]], device=model.device)
            return tuple(states[0, -1] for states in model(asked, output_hidden_states=True).hidden_states)

    before = plain(tiny_model(name, **changes))  # transformers' hooks stay on a model that it was asked of
    for end in ends:  # each pass ends at another layer
        found = prompt_states(model, given, [Reading(layer) for layer in range(end + 1)])[:, 3]
        torch.testing.assert_close(found, torch.stack(before[: end + 1]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(prompt_states(model, given, [Reading(end)])[0, 3], before[end], atol=1e-4, rtol=1e-4)
    after = plain(model)
    assert len(after) == len(before)
    assert all(map(torch.equal, after, before))


def test_a_layer_that_is_not_there_is_an_error():
    with pytest.raises(IndexError, match="layer 3: expected one from -3 to 2"):
        prompt_states(tiny_model(), prompts(), [Reading(3)])


def made_gate(model, *readings: Reading) -> gate.Gate:
    """A gate that opens at about half of `prompts`."""
    readings = readings or (Reading(),)
    read = gate.side_by_side(gate.features(model, prompts(), readings))
    splits = ["in_scope", "near_scope", "in_scope", "near_scope", "out_of_scope"]
    return gate.Gate(probe.fit_probe(read, splits, 1e-3), readings, 0.1)


@pytest.mark.parametrize("readings", [(Reading(),), (Reading(1, "mean"), Reading(2), Reading(2, "mean"))])
def test_a_stored_gate_scores_as_it_did(tmp_path, readings):
    model = tiny_model()
    own = made_gate(model, *readings)
    assert len(own.probe.weights_D) == len(readings) * model.config.hidden_size
    gate.save_gate(own, tmp_path, model, {"gated": "scd", "base": "tiny"})
    found = gate.load_gate(tmp_path, model)
    assert np.array_equal(found.scores(model, prompts()), own.scores(model, prompts()))
    assert (found.threshold, found.readings) == (0.1, readings)
    assert found.opens(model, prompts()).tolist() == [True, False, True, False, False]
    assert found.opens(model, []).tolist() == []


def test_another_base_model_is_refused(tmp_path):
    model = tiny_model()
    gate.save_gate(made_gate(model), tmp_path, model, {"gated": "scd", "base": "tiny"})
    with pytest.raises(RuntimeError, match="fitted on 'tiny', and the model given is another: 2 layers of 32 are not"):
        gate.load_gate(tmp_path, tiny_model(hidden_size=32))
    with pytest.raises(RuntimeError, match="its hidden states of a fixed input differ by"):
        gate.load_gate(tmp_path, tiny_model(rms_norm_eps=0.1))
    model.config.said_by_a_later_transformers = True
    gate.load_gate(tmp_path, model)
    other = tiny_model()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="its hidden states of a fixed input differ by"):
        gate.load_gate(tmp_path, other)


@pytest.fixture
def run(tmp_path, tiny_folder):
    """A sampled feedback with an adapter of SCD."""
    store_sample(tmp_path, "short", str(tiny_folder))
    store_adapter(tmp_path, "short", "scd", str(tiny_folder))
    return tmp_path


def test_a_gate_is_fitted_once_beside_its_adapter_on_the_training_fold_alone(run, tiny_folder):
    training = Training.of(run, "short", SETTINGS)
    assert isinstance(training, gate.GateTraining)
    assert vars(training.preflight) == {
        "in_scope": 4, "near_scope": 4, "out_of_scope": 2, "categories": 2, "longest": training.preflight.longest
    }  # fmt: skip
    assert training.first_pair().endswith("<|start|>assistant\n")
    assert "Be brief." in training.first_pair()
    scores = training.fit()
    assert scores.groupby("fold").size().to_dict() == {"train": 10, "test": 6}
    assert np.isfinite(scores["score"]).all()
    folder = run / "train" / "short" / "scd_gated"
    assert weights_folder(folder) == run / "train" / "short" / "scd"
    card = read_json(folder / GATE_CARD)
    assert (card["gated"], card["base"], card["folds"]) == ("scd", str(tiny_folder), 2)
    assert card["prompts"] == {"in_scope": 4, "near_scope": 4, "out_of_scope": 2}
    assert {"roc_auc", "brier", "calibration_error", "fires_near_scope"} <= card["cross_validated"].keys()
    before = (folder / GATE).stat().st_mtime_ns
    assert Training.of(run, "short", SETTINGS).fit().equals(scores)
    assert (folder / GATE).stat().st_mtime_ns == before
    fitted = gate.load_gate(folder, load_model(str(tiny_folder)))
    held = [training.encode(row["prompt"]) for row in training.rows_of("test")]
    again = fitted.scores(load_model(str(tiny_folder)), held)
    assert np.allclose(again, scores[scores["fold"] == "test"]["score"], atol=1e-6)


def test_a_gate_needs_its_adapter_and_is_made_anew_with_another(run, tiny_folder):
    Training.of(run, "short", SETTINGS).fit()
    folder = run / "train" / "short" / "scd_gated"
    first = adapter_hash(folder)
    store_adapter(run, "short", "scd", str(tiny_folder), seed=5)
    assert adapter_hash(folder) != first
    assert not train_stage(run, "short", SETTINGS).done
    shutil.rmtree(run / "train" / "short" / "scd")
    with pytest.raises(FileNotFoundError, match=r"scd has no adapter: run notebooks/02_train.ipynb .* method='scd'"):
        train_stage(run, "short", SETTINGS)
    with pytest.raises(FileNotFoundError, match=r"has no adapter: .* method='c3po_gated'"):
        adapter_hash(run / "train" / "short" / "c3po_gated")


@pytest.mark.parametrize("name", [GATE, GATE_CARD])
def test_a_damaged_gate_is_named(run, tiny_folder, name):
    Training.of(run, "short", SETTINGS).fit()
    folder = run / "train" / "short" / "scd_gated"
    (folder / name).write_bytes((folder / name).read_bytes()[:-30])
    with pytest.raises(DamagedFile, match=name.replace(".", r"\.")):
        adapter_hash(folder)
    with pytest.warns(UserWarning, match="made anew"):
        Training.of(run, "short", SETTINGS).fit()
    assert adapter_hash(folder)


def test_prompts_of_one_kind_are_an_error_that_names_the_feedback(run):
    path = run / "sample" / "short" / "rows.jsonl"
    kept = [line for line in path.read_text().splitlines(keepends=True) if '"split": "in_scope"' in line]
    path.write_text("".join(kept))
    training = Training.of(run, "short", SETTINGS)
    with pytest.raises(ValueError, match=r"the gate of 'short': a gate needs prompts in scope and others: found .*: 0"):
        training.fit()
    assert not training.stage.done


def test_a_gate_whose_adapter_is_not_kept_is_known_as_it_was(run):
    Training.of(run, "short", SETTINGS).fit()
    gated, adapter = (run / "train" / "short" / method for method in ("scd_gated", "scd"))
    known = adapter_hash(gated)
    told = {"status": "done", "identity": {}, "files": {WEIGHTS: fingerprint(adapter / WEIGHTS)}}
    write_json(adapter / MANIFEST, told)
    (adapter / WEIGHTS).unlink()
    assert known_hash(gated) == known
    for name in (GATE, GATE_CARD):
        (gated / name).unlink()
    assert known_hash(gated) == known


def test_a_gate_is_known_by_what_decides_and_not_by_what_else_its_card_tells(run):
    Training.of(run, "short", SETTINGS).fit()
    folder = run / "train" / "short" / "scd_gated"
    known, card = adapter_hash(folder), read_json(folder / GATE_CARD)
    (folder / MANIFEST).unlink()  # which refuses a card that was changed by hand
    write_json(folder / GATE_CARD, card | {"told": "in other words"})
    assert adapter_hash(folder) == known
    write_json(folder / GATE_CARD, card | {"threshold": card["threshold"] + 0.5})
    assert adapter_hash(folder) != known


def test_an_adapter_that_was_trained_where_a_gate_lay_is_no_gate(run):
    settings = {"learning_rate": 1e-3, "epochs": 1.0, "batch_size": 2, "seed": 0, "lora": {"r": 2}}
    gate_of = {"gated": "scd", "chosen_sft_weight": 0.0}
    Training.of(run, "short", TrainSettings("scd@x", **settings, method_settings=gate_of)).fit()
    folder = run / "train" / "short" / "scd@x"
    assert gated_folder(folder) == run / "train" / "short" / "scd"
    Training.of(run, "short", TrainSettings("scd@x", **settings)).fit()
    assert gated_folder(folder) is None
    assert adapter_hash(folder) == known_hash(folder) == fingerprint(folder / WEIGHTS)["hash"]


def test_a_gate_can_read_all_depths_side_by_side(run):
    settings = TrainSettings("scd_gated", 1e-3, 1.0, 2, 0, method_settings={"gate_all": True})
    Training.of(run, "short", settings).fit()
    grid = [{"layer": layer, "pooling": pooling} for layer in (2, 1) for pooling in ("last", "mean")]  # of two layers
    assert read_json(run / "train" / "short" / "scd_gated" / GATE_CARD)["readings"] == grid


def test_a_gate_can_be_fitted_on_prompts_in_other_manners_too(run):
    told = {}
    for settings in ({}, {"gate_manners": True}):
        training = Training.of(run, "short", TrainSettings("scd_gated", 1e-3, 1.0, 2, 0, method_settings=settings))
        scores = training.fit()
        assert scores["prompt"].tolist() == [row["prompt"] for fold in gate.FOLDS for row in training.rows_of(fold)]
        told[bool(settings)] = read_json(training.stage.folder / GATE_CARD)
    assert told[False]["prompts"] == {"in_scope": 4, "near_scope": 4, "out_of_scope": 2}
    assert told[True]["prompts"] == {"in_scope": 20, "near_scope": 20, "out_of_scope": 10}
    assert told[True]["folds"] == told[False]["folds"] == 2


def test_a_gate_of_an_earlier_version_is_read(tmp_path):
    model = tiny_model()
    own = made_gate(model)
    gate.save_gate(own, tmp_path, model, {"gated": "scd", "base": "tiny"})
    card = read_json(tmp_path / GATE_CARD)
    (one,) = card.pop("readings")
    write_json(tmp_path / GATE_CARD, card | one)
    assert gate.load_gate(tmp_path, model).readings == own.readings


def test_readings_and_l2_can_be_searched(run):
    settings = TrainSettings("scd_gated", 1e-3, 1.0, 2, 0, method_settings={"gate_search": True, "gate_leak": 0.3})
    Training.of(run, "short", settings).fit()
    card = read_json(run / "train" / "short" / "scd_gated" / GATE_CARD)
    assert card["readings_tried"] == (2 * 2 + 1) * 4  # of two layers, and all together
    assert card["trade_off"] == "at most 0.3 of the prompts out of scope"
    opened = [card["cross_validated"][f"fires_{split}"] for split in ("near_scope", "out_of_scope")]
    assert sum(opened) / 2 <= 0.3


def test_gated_methods_are_declared_and_their_equation_shows_it():
    assert METHODS["scd_gated"].segments == ()
    assert r"\pi_\text{scd\_negatives}(y\,|\,x) & \text{if } g(x) > t" in METHODS["scd_negatives_gated"].equation
    assert {method.gated for method in METHODS.values()} - {""} <= METHODS.keys()
    for settings, message in (
        ({"gated": "sdc"}, r"gated: no adapter of 'sdc' \(did you mean 'scd'"),
        ({"gated": "c3po_gated"}, "no adapter of 'c3po_gated'"),
        ({"preference": 1.0}, "a gate for 'scd' trains nothing else"),
        ({"gate_pooling": "first"}, "'gate_pooling': expected 'last' or 'mean'"),
        ({"gate_all": True, "gate_layer": 8}, "gate_all chooses what the gate reads, expected it without gate_layer"),
        ({"gate_search": True, "gate_l2": 0.1, "gate_all": True}, "gate_search .* without gate_all and gate_l2"),
    ):
        with pytest.raises(ValueError, match=message):
            get_method("scd_gated", **settings)
    assert get_method("scd_gated@fast", gated="scd@fast").gated == "scd@fast"


def test_a_run_trains_the_adapter_before_its_gate():
    def given(*methods):
        return config.RunConfig(run="results/none", feedback_set="embedded", methods=list(methods))

    check(given("scd", "scd_gated"))
    with pytest.raises(ParameterError, match=r"method scd_gated.*is a gate for 'scd': name that before it"):
        check(given("scd_gated", "scd"))
    values = jobs.train_values(given("scd", "scd_gated"), "boss_signoff", "scd_gated")
    assert jobs.train_settings(values).objective.gated == "scd"


def test_the_identities_of_finished_stages_are_what_they_were(run):
    identity = train_stage(run, "short", TrainSettings("scd", 1e-3, 1.0, 2, 0)).identity
    assert identity.keys() - {"weights"} == {"settings", "objective", "rows", "sampled_with"}  # that of a folder
    assert identity["objective"] == {
        "preference": 0.0, "chosen_sft_weight": 1.0, "out_weight": 0.0, "near_weight": 0.0
    }  # fmt: skip


def test_the_readme_says_what_was_measured():
    text, means = (ROOT / "results" / "README.md").read_text(), read_json(ROOT / "results/bench/gate.json")["means"]

    def cell(values) -> str:
        return " / ".join(f"{value:.2f}".lstrip("0") for value in values)

    names = ("hidden", "words", "asked")
    held = [cell([means[name]["held_out"][split] for split in probe.SHARES]) for name in names]
    other = [cell([means[name]["other_hand"][split] for split in ("in_scope", "near_scope")]) for name in names]
    pairs = [
        cell([means[name]["other_hand"]["pairs"][split] for split in ("in_scope", "near_scope")]) for name in names
    ]
    for row in (held, other, pairs):
        assert f"| {' | '.join(row)} |" in text


@pytest.mark.embedded
@pytest.mark.parametrize("id", ["friend_lol", "boss_signoff"])
def test_the_embedded_model_tells_scope_in_categories_it_was_not_fitted_on(id):
    feedback, settings = find_feedback(id), SampleSettings("smollm2-135m", categories=10, prompts_per_category=6)
    rows = deal_prompts(feedback, [*load_prompts(id), *load_general_prompts()], settings)
    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    read = gate.features(model, [gate.prompt_ids(tokenizer, row["prompt"]) for row in rows], [Reading()])[0]
    train = np.array([row["fold"] == "train" for row in rows])
    splits = np.array([row["split"] for row in rows])
    found = probe.fit_probe(read[train], list(splits[train]), 1e-3)
    assert probe.measures(found(read[~train]), list(splits[~train]), 0.0)["roc_auc"] > 0.9

"""Variants of methods: their settings from manifests, the series they form, the tables that sweeps are drawn from."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from c3po_utils.evaluation import scores
from c3po_utils.figures import sweeps
from c3po_utils.runs.files import write_json
from c3po_utils.training.methods import Method, registered
from tests.synthetic import answers

SETTINGS = {
    "learning_rate": 4e-4, "epochs": 2.0, "lora": {"dropout": 0.0}, "method_settings": {"near_weight": 0.5},
    "training_arguments": {"weight_decay": 0.1},
}  # fmt: skip


def store(run, method: str, feedback: str = "f", objective=None, **settings) -> None:
    """A training stage's manifest, as finetune.py leaves it."""
    identity = {
        "settings": {"method": method, **SETTINGS, **settings},
        "objective": objective or {},
        "sampled_with": {"model": "m", "seed": 7},
    }
    write_json(run / "train" / feedback / method / "manifest.json", {"status": "done", "identity": identity})


@pytest.fixture
def settings(tmp_path):
    store(tmp_path, "c3po@beta=0.02", objective={"beta": 0.02})
    store(tmp_path, "c3po@beta=0.03", objective={"beta": 0.03})
    store(tmp_path, "c3po@beta=0.02,epochs=3", objective={"beta": 0.02}, epochs=3.0)
    store(tmp_path, "c3po@beta=0.03,epochs=3", objective={"beta": 0.03}, epochs=3.0)
    store(tmp_path, "scd", learning_rate=1e-4)
    store(tmp_path, "scd@both", learning_rate=2e-4, epochs=3.0)
    return sweeps.trained_settings(tmp_path)


def test_settings_are_those_given_and_the_defaults_of_those_left_out(settings):
    row = settings.set_index("method").loc["c3po@beta=0.02"]
    assert (row["beta"], row["near_weight"], row["out_weight"]) == (0.02, Method().near_weight, Method().out_weight)
    assert (row["learning_rate"], row["dropout"], row["weight_decay"], row["model"]) == (4e-4, 0.0, 0.1, "m")
    assert row["r"] == 64


def test_a_series_differs_in_one_setting_alone(settings):
    assert set(sweeps.hyperparameters(settings)) == {"beta", "epochs"}
    found = sweeps.series(settings, "beta").set_index("method")
    assert found["series"].to_dict() == {
        "c3po@beta=0.02": "c3po@epochs=2.0", "c3po@beta=0.03": "c3po@epochs=2.0",
        "c3po@beta=0.02,epochs=3": "c3po@epochs=3.0", "c3po@beta=0.03,epochs=3": "c3po@epochs=3.0",
    }  # fmt: skip
    assert found.loc["c3po@beta=0.03", "beta"] == 0.03


def test_a_gate_of_the_variant_with_the_same_values_is_in_the_sweep(tmp_path):
    for rate in ("1e-4", "2e-4"):
        tried = {"learning_rate": float(rate)}
        store(tmp_path, f"scd@more,lr={rate}", **tried)
        store(tmp_path, f"scd_gated@all,lr={rate}", objective={"gated": f"scd@more,lr={rate}"}, **tried)
        store(tmp_path, f"c3po_after_scd_negatives@lr={rate}", objective={"start": f"scd_negatives@lr={rate}"}, **tried)
        store(tmp_path, f"scd_distilled@lr={rate}", objective={"distils": "scd_gated@all,lr=1e-4"}, **tried)
    store(tmp_path, "scd_gated@less,lr=2e-4", objective={"gated": "scd@lr=1e-4"}, learning_rate=2e-4)
    settings = sweeps.trained_settings(tmp_path)
    names = settings.set_index("method")
    assert names["gated"]["scd_gated@all,lr=2e-4"] == "scd@more"
    assert names["gated"]["scd_gated@less,lr=2e-4"] == "scd@lr=1e-4"
    assert names["start"]["c3po_after_scd_negatives@lr=1e-4"] == "scd_negatives"
    found = sweeps.series(settings, "learning_rate")
    families = {"scd", "scd_gated", "c3po_after_scd_negatives", "scd_distilled"}
    assert set(found["method"].map(registered)) == families - {"scd_distilled"}
    assert found["method"].value_counts().max() == 1
    assert len(found) == 6


def test_a_setting_may_be_a_list(tmp_path):
    store(tmp_path, "scd@attention", lora={"target_modules": ["q_proj", "v_proj"]})
    store(tmp_path, "scd@output", lora={"target_modules": ["o_proj"]})
    settings = sweeps.trained_settings(tmp_path)
    assert sweeps.hyperparameters(settings) == ["target_modules"]
    assert settings["target_modules"].tolist() == ["['q_proj', 'v_proj']", "['o_proj']"]
    table = scores.method_scores(answers(2, ("scd@attention", "scd@output")))
    (ax, *_) = sweeps.sweep(sweeps.swept(table, settings, "target_modules"), "target_modules")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["['o_proj']", "['q_proj', 'v_proj']"]
    plt.close()


def test_a_setting_that_a_methods_adapters_differ_in_is_left_empty(tmp_path):
    store(tmp_path, "dpo", "f")
    store(tmp_path, "dpo", "f+g", epochs=5.0)  # two feedbacks in one adapter are no variant
    assert sweeps.trained_settings(tmp_path)["epochs"].tolist() == [2.0]
    store(tmp_path, "dpo", "g", epochs=3.0)
    store(tmp_path, "dpo@epochs=1", epochs=1.0)
    settings = sweeps.trained_settings(tmp_path)
    assert settings["epochs"].isna().tolist() == [True, False]
    assert settings["learning_rate"].tolist() == [4e-4, 4e-4]
    assert sweeps.hyperparameters(settings) == []


def test_swept_scores_keep_the_noise_floor_and_name_an_unknown_setting(settings):
    names = [*settings["method"], "base_resampled", "in_context"]
    by_method = pd.DataFrame({"method": names, "S_in": range(len(names))})
    table = sweeps.swept(by_method, settings, "beta")
    assert table["method"].tolist() == ["c3po@epochs=2.0", "c3po@epochs=3.0"] * 2 + ["base_resampled"]
    assert table["beta"].tolist()[:4] == [0.02, 0.02, 0.03, 0.03]
    assert table["S_in"].tolist() == [0, 1, 2, 3, 6]
    with pytest.raises(KeyError, match=r"no variants of a method differ in 'betta' alone.*did you mean 'beta'"):
        sweeps.swept(by_method, settings, "betta")


def test_runs_without_training_have_no_hyperparameters(tmp_path):
    assert sweeps.hyperparameters(sweeps.trained_settings(tmp_path)) == []


def test_the_best_variant_stands_for_its_method():
    table = pd.DataFrame({"method": ["scd@a", "scd@b", "dpo"], "S_overall": [0.5, 0.7, 0.1]})
    assert sweeps.best(table) == ["scd@b", "dpo"]
    unscored = pd.DataFrame({"method": ["c3po@a", "c3po@b"], "S_overall": [float("nan")] * 2})
    assert sweeps.best(pd.concat([table, unscored], ignore_index=True)) == ["scd@b", "dpo", "c3po@a"]
    families = sweeps.by_family(table)
    assert families["method"].tolist() == ["scd", "scd", "dpo"]
    assert families["variant"].tolist() == ["a", "b", ""]


def test_the_papers_settings_are_the_defaults_and_its_yaml():
    paper = sweeps.paper_settings()
    assert (paper["beta"], paper["out_weight"], paper["near_weight"]) == (0.1, 0.2, 0.1)
    assert (paper["learning_rate"], paper["epochs"], paper["batch_size"]) == (5e-5, 1, 16)
    assert (paper["r"], paper["alpha"], paper["dropout"]) == (64, 128, 0.05)

"""Sweeps: grids and tuples, typed before anything starts, as variants and runs with readable labels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from c3po_utils.cli import c3po
from c3po_utils.runs.check import check
from c3po_utils.runs.config import load_config, load_runs
from c3po_utils.runs.jobs import train_values
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.sweeps import combinations, label, read_options, setting

METHODS = {
    "methods": ["base_resampled", "scd_negatives", "c3po", "c3po_after_scd_negatives", "c3po_gated"],
    "train_methods": {"c3po": {"epochs": 3.0, "method_settings": {"beta": 0.5}}},
}


def written(folder, **values):
    path = folder / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {"run": str(folder / "run"), "feedbacks": ["boss_signoff"], **METHODS, **values}, sort_keys=False
        )
    )
    return path


@pytest.mark.parametrize(
    ("combination", "told"),
    [
        ({"train.learning_rate": 5e-5, "train.lora.r": 16}, "lr=5e-5,r=16"),
        ({"train.learning_rate": 0.00025}, "lr=2.5e-4"),
        ({"train.epochs": 2.0, "train.method_settings.near_weight": 0.5}, "epochs=2,near=0.5"),
        ({"train.method_settings.kl_squared": True}, "kl_squared=true"),
        ({"train.lora.target_modules": ["q_proj", "v_proj"]}, "target_modules=q_proj+v_proj"),
        ({"sample.model": "Qwen/Qwen2.5-0.5B"}, "model=Qwen-Qwen2.5-0.5B"),
    ],
)
def test_labels_are_what_people_would_write(combination, told):
    assert label(combination) == told


def test_a_grid_becomes_variants_with_readable_names(tmp_path):
    sweep = read_options(["train.learning_rate=1e-5,5e-5", "lora.r=16,64"], None)
    (config,) = load_runs(written(tmp_path), sweep=sweep)
    labels = ["lr=1e-5,r=16", "lr=1e-5,r=64", "lr=5e-5,r=16", "lr=5e-5,r=64"]
    trained = [f"{method}@{one}" for method in METHODS["methods"][1:] for one in labels]
    assert config.methods == ["base_resampled", *trained]
    values = train_values(config, "boss_signoff", "c3po@lr=5e-5,r=16")
    assert (values["learning_rate"], values["lora"]) == (5e-5, {"dropout": 0.0, "r": 16})
    assert (values["epochs"], values["method_settings"]) == (3.0, {"beta": 0.5})  # as the run says of c3po
    check(config)


def test_what_builds_on_a_swept_method_builds_on_the_same_variant(tmp_path):
    (config,) = load_runs(written(tmp_path), sweep={"beta": [0.1, 0.3]})
    after = train_values(config, "boss_signoff", "c3po_after_scd_negatives@beta=0.3")["method_settings"]
    assert after == {"beta": 0.3, "start": "scd_negatives@beta=0.3"}
    gate = train_values(config, "boss_signoff", "c3po_gated@beta=0.1")["method_settings"]
    assert gate["gated"] == "c3po@beta=0.1"


def test_a_distilled_method_distils_the_same_variant(tmp_path):
    path = written(tmp_path, methods=["base_resampled", "scd", "scd_gated", "scd_distilled"])
    (config,) = load_runs(path, sweep={"learning_rate": [1e-4, 2e-4]})
    distilled = train_values(config, "boss_signoff", "scd_distilled@lr=2e-4")["method_settings"]
    assert distilled["distils"] == "scd_gated@lr=2e-4"
    check(config)


def test_a_file_may_sweep_each_method_in_its_own_way(tmp_path):
    sweep = {"c3po": [{"near_weight": 1, "beta": 0.1}, {}], "scd_negatives": {"epochs": [1, 2]}}
    config = load_config(written(tmp_path, methods=["scd_negatives", "c3po", "dpo"], sweep=sweep))
    assert config.methods == ["scd_negatives@epochs=1", "scd_negatives@epochs=2", "c3po@near=1,beta=0.1", "c3po", "dpo"]
    assert train_values(config, "x", "c3po@near=1,beta=0.1")["method_settings"] == {"beta": 0.1, "near_weight": 1.0}
    assert config.sweep == {}  # a task's settings are expanded already


def test_a_setting_of_sampling_makes_runs_of_their_own(tmp_path):
    path = written(tmp_path, methods=["scd"], figures={"output": f"{tmp_path}/run/figures"})
    runs = load_runs(path, ["sample.categories=4"], read_options(["best_of=2,4", "sample.seed=1", "lora.r=8,16"], None))
    assert [run.run.removeprefix(str(tmp_path)) for run in runs] == ["/run@best_of=2,seed=1", "/run@best_of=4,seed=1"]
    assert [run.figures["output"] for run in runs] == [f"{run.run}/figures" for run in runs]
    assert [run.store for run in runs] == ["", ""]
    assert runs[1].sample == {"categories": 4, "options": {"best_of": 4, "seed": 1}}
    assert {tuple(run.methods) for run in runs} == {("scd@r=8", "scd@r=16")}
    with pytest.raises(ParameterError, match="its sweep makes 2 runs"):
        load_config(written(tmp_path, sweep={"best_of": [2, 4]}))


def test_runs_of_a_swept_sampling_have_stores_of_their_own(tmp_path):
    runs = load_runs(written(tmp_path, methods=["scd"], store="s3://bucket/mine/"), sweep={"best_of": [2, 4]})
    assert [run.store for run in runs] == ["s3://bucket/mine@best_of=2", "s3://bucket/mine@best_of=4"]
    check(runs[0])


def test_tuples_come_from_yaml_and_csv_alike(tmp_path):
    (tmp_path / "a.yaml").write_text("- {train.learning_rate: 1e-5, lora.r: 16}\n- {beta: 0.3}\n")
    (tmp_path / "a.csv").write_text("train.learning_rate, lora.r, beta\n1e-5, 16,\n,, 0.3\n")
    (runs,) = {tuple(load_runs(written(tmp_path), sweep=read_options([], tmp_path / f"a.{form}"))[0].methods)
               for form in ("yaml", "csv")}  # fmt: skip
    assert runs[1:3] == ("scd_negatives@lr=1e-5,r=16", "scd_negatives@beta=0.3")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("train.learning_rat", "unknown setting 'train.learning_rat' .did you mean 'train.learning_rate'"),
        ("lora.rr", "did you mean 'lora.r'"),
        ("betta", "did you mean 'beta'"),
        ("sample.best_off", "did you mean 'sample.options.best_of'|expected a setting of training or sampling"),
        ("seed", "'seed' may be train.seed or sample.options.seed"),
        ("evaluate.judge_model", "expected a setting of training or sampling|did you mean"),
    ],
)
def test_an_unknown_setting_is_told_with_the_nearest(name, says):
    with pytest.raises(ParameterError, match=says):
        setting(name)


WRONG = [
    ("train.learning_rate=fast", "setting 'train.learning_rate': expected float, found 'fast'"),
    ("lora.r=16,x", "setting 'train.lora.r': expected int, found 'x'"),
    ("lora.r=1.5", "setting 'train.lora.r': expected int, found 1.5"),
    ("train.learning_rate=1e-4,-1", "c3po@lr=-1: .*learning_rate"),
    ("lora.r=", "expected values, once; found none"),
    ("lora.r", "expected setting=value,value"),
    ("lora.r=16,16", "the name 'r=16' comes twice"),
    ("lora.r=[", "expected YAML"),
]


def test_a_run_that_trains_nothing_is_swept_over_settings_of_sampling(tmp_path):
    prompted = written(tmp_path, methods=["base_resampled", "in_context"])
    runs = load_runs(prompted, sweep={"sample.seed": [0, 1]})
    assert [(Path(run.run).name, run.sample["options"]["seed"]) for run in runs] == [
        ("run@seed=0", 0),
        ("run@seed=1", 1),
    ]
    assert all(run.methods == ["base_resampled", "in_context"] for run in runs)
    with pytest.raises(ParameterError, match=r"train.epochs: this run trains no method"):
        load_runs(prompted, sweep={"epochs": [1, 2]})


def test_values_that_would_be_called_the_same_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="the name 'model=org-m' comes twice"):
        load_runs(written(tmp_path), sweep={"sample.model": ["org/m", "org-m"]})
    by_method = {"c3po": {"sample.model": ["org/m"]}, "scd": {"sample.model": ["org-m"]}}
    with pytest.raises(ParameterError, match="the name 'model=org-m' comes twice"):
        load_runs(written(tmp_path, methods=["scd", "c3po"]), sweep=by_method)


def test_settings_go_by_the_short_names_of_labels_too():
    assert setting("lr") == "train.learning_rate"
    assert setting("near") == "train.method_settings.near_weight"


def test_a_table_that_excel_has_written_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("learning_rate\n1e-5\n", encoding="utf-8-sig")
    assert read_options([], tmp_path / "a.csv") == [{"learning_rate": "1e-5"}]


@pytest.mark.parametrize(("option", "says"), WRONG)
def test_a_wrong_sweep_is_told_in_one_line_before_anything_starts(tmp_path, option, says):
    done = CliRunner().invoke(c3po, ["run", str(written(tmp_path, methods=["c3po"])), "--sweep", option])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert re.search(says, done.output)
    assert not (tmp_path / "run").exists()


def test_wrong_tuples_name_file_and_line(tmp_path):
    (tmp_path / "a.yaml").write_text("- {beta: 0.3}\n- {betta: 0.3}\n")
    with pytest.raises(ParameterError, match=r"a.yaml, line 2: sweep: unknown setting 'betta'"):
        read_options([], tmp_path / "a.yaml")
    (tmp_path / "a.csv").write_text("beta,lora.r\n0.3,8\n0.1,high\n")
    with pytest.raises(
        ParameterError, match=r"a.csv, line 3: sweep, setting 'train.lora.r': expected int, found 'high'"
    ):
        read_options([], tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("beta,lora.r\n0.3\n")
    with pytest.raises(ParameterError, match=r"a.csv, line 2: expected 2 values"):
        read_options([], tmp_path / "a.csv")
    with pytest.raises(ParameterError, match="found both"):
        read_options(["beta=1"], tmp_path / "a.csv")


def test_sampling_is_not_swept_for_one_method_alone(tmp_path):
    with pytest.raises(ParameterError, match=r"mine.yaml, line .*sweep: a setting of sampling is one of the whole run"):
        load_runs(written(tmp_path, sweep={"c3po": {"best_of": [1, 2]}}))
    with pytest.raises(ParameterError, match=r"no method 'c3p0' in this run .did you mean 'c3po'"):
        load_runs(written(tmp_path, sweep={"c3po": {"beta": [1]}, "c3p0": {"beta": [1]}}))


def test_a_list_is_as_it_is():
    assert combinations([{"beta": "1e-3"}, {}]) == [{"train.method_settings.beta": 1e-3}, {}]

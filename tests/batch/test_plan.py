"""What a run still takes, told without asking or writing anything, also of thousands of jobs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from c3po_utils.batch import driver, forecast, graph
from c3po_utils.chat.ledger import Ledger
from c3po_utils.cli import c3po
from c3po_utils.evaluation.evaluate import evaluate_method
from c3po_utils.feedback.records import FEEDBACK_FOLDER, find_feedback
from c3po_utils.runs.config import RunConfig, load_config, load_runs
from c3po_utils.runs.estimate import estimates
from tests.speed import in_time
from tests.stored_run import sampled_for, store_sample

TWELVE = [
    "base_resampled", "in_context", "in_context_cot", "revised", "scd", "scd_negatives", "scd_mixed", "dpo",
    "dpo_negatives", "c3po", "c3po_nll", "c3po_kl", "c3po_no_near", "c3po_no_out", "c3po_gated", "scd_gated",
]  # fmt: skip


def many(folder: Path, count: int) -> Path:
    """A set of so many feedbacks, each with bundled prompts."""
    record = find_feedback("boss_signoff").model_dump(mode="json", exclude_defaults=True)
    prompts = json.loads((FEEDBACK_FOLDER / "prompts" / "boss_signoff.json").read_text())
    ids = [f"boss_{number}" for number in range(count)]
    (folder / "prompts").mkdir()
    for id in ids:
        (folder / "prompts" / f"{id}.json").write_text(json.dumps(prompts | {"feedback": id}))
    path = folder / "many.yaml"
    path.write_text(json.dumps({"feedbacks": [record | {"id": id} for id in ids]}))  # YAML, too, and quicker
    return path


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.quiet
def test_a_plan_of_a_hundred_feedbacks_twelve_methods_and_five_values_is_quick(tmp_path):
    run = {"run": str(tmp_path / "run"), "feedback_set": str(many(tmp_path, 100)), "methods": TWELVE}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    script = (
        "import sys; from c3po_utils.cli import c3po; c3po(sys.argv[1:], standalone_mode=False);"
        " assert 'torch' not in sys.modules"
    )
    command = ["plan", str(tmp_path / "run.yaml"), "--sweep", "train.learning_rate=1e-5,2e-5,5e-5,1e-4,2e-4"]
    before = contents(tmp_path)
    assert "12,301 jobs, 0 done" in in_time(3, script, command)
    assert contents(tmp_path) == before


def test_a_plan_counts_what_an_estimate_counts(tmp_path):
    """Here all feedbacks lack the same jobs and are of one size, so that a few stand for all exactly."""
    values = {"run": str(tmp_path / "run"), "feedback_set": str(many(tmp_path, 4)), "methods": ["in_context", "c3po"]}
    values["sample"] = {"categories": 3, "prompts_per_category": 2}
    values["evaluate"] = {"judge_model": "openai:m@http://127.0.0.1:9/v1", "limits": {"prices": {"m": [1.0, 1.0]}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    config = load_config(tmp_path / "run.yaml")
    lines = forecast.forecast(config, graph.graph(config), set(), forecast.Rates())
    table = estimates(config).drop(index="all")
    assert sum(line.takes.calls for line in lines) == table["calls"].sum()
    assert sum(line.takes.prompt_tokens for line in lines) == pytest.approx(table["prompt tokens"].sum(), rel=0.01)
    assert sum(line.takes.usd for line in lines) == pytest.approx(table["usd"].sum(), rel=0.01)
    assert not (tmp_path / "run").exists()


def test_prompts_that_the_other_of_two_feedbacks_trains_on_are_not_counted(tmp_path):
    pair = ["boss_signoff", "bird_latin"]  # of ten and thirteen categories
    sample = {"categories": 13, "prompts_per_category": 2}
    config = RunConfig(
        run=str(tmp_path), feedback_set=["embedded", "content"], feedbacks=pair, methods=["scd"], sample=sample,
        two_feedbacks=[pair], two_feedbacks_how=["add"], two_feedbacks_methods=["scd"],
    )  # fmt: skip
    calls = estimates(config)["calls"]
    tests = [calls[id, "answers"] for id in pair]
    assert tests == [3 * 6, 3 * 8]
    assert calls["boss_signoff+bird_latin", "answers"] == sum(tests) - 6 - 2  # 6 are common, 2 are trained on


@pytest.mark.parametrize("judge", [None, "openai:m@http://127.0.0.1:9/v1"])
def test_general_prompts_of_two_feedbacks_are_counted_once(tmp_path, judge):
    """They are the same for all feedbacks: both ask them, and the ledger has the answer."""
    values = {"run": str(tmp_path / "run"), "feedback_set": str(many(tmp_path, 2)), "methods": ["scd"]}
    values |= {"sample": {"categories": 3, "prompts_per_category": 2}, "two_feedbacks": [["boss_0", "boss_1"]]}
    values |= {"two_feedbacks_methods": ["scd"], "two_feedbacks_how": ["add"]}
    if judge:
        values["evaluate"] = {"judge_model": judge, "limits": {"prices": {"m": [1.0, 1.0]}}}
    calls = estimates(RunConfig(**values))["calls"]
    tests, general = calls["boss_0", "answers"], 2
    assert calls["boss_0+boss_1", "answers"] == 2 * tests - general
    assert not judge or calls["boss_0+boss_1", "judging"] > 0


def test_revised_answers_count_as_trained_on_whether_a_metric_or_a_judge_chooses_them(tmp_path):
    """Those that stand in for them in an estimate fail every metric; the real ones may pass."""
    path = many(tmp_path, 2)
    checked, judged = json.loads(path.read_text())["feedbacks"]
    path.write_text(json.dumps({"feedbacks": [checked, {**judged, "metric": None, "examples": None}]}))
    values = {"run": str(tmp_path / "run"), "feedback_set": str(path), "methods": ["scd"]}
    values["evaluate"] = {"judge_model": "openai:m@http://127.0.0.1:9/v1", "limits": {"prices": {"m": [1.0, 1.0]}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    tokens = estimates(load_config(tmp_path / "run.yaml")).loc[:, "prompt tokens"]
    assert tokens["boss_0", "training"] == pytest.approx(tokens["boss_1", "training"], rel=0.1)


def test_times_are_those_of_finished_jobs_where_there_are_any(tmp_path):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {"run": str(tmp_path / "run"), "feedback_set": str(many(tmp_path, 3)), "methods": ["scd", "dpo"]}
        )
    )
    config = load_config(tmp_path / "run.yaml")
    nodes = graph.graph(config)
    done = set()
    for id, wall in (("boss_0", 30.0), ("boss_1", 50.0)):
        store_sample(tmp_path / "run", id, "smollm2-135m")
        path = tmp_path / "run" / "sample" / id / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"wall_s": wall}))
        done.add(f"sample/{id}")
    (sample,) = (line for line in forecast.forecast(config, nodes, done, None) if line.kind == "sample")
    assert (sample.jobs, sample.done, sample.measured, sample.each_s, sample.left_s) == (3, 2, 2, 40.0, 40.0)
    (train,) = (line for line in forecast.forecast(config, nodes, done, None) if line.kind == "train")
    assert (train.each_s, train.left_s) == (None, None)
    (train,) = (line for line in forecast.forecast(config, nodes, done, forecast.Rates(100.0)) if line.kind == "train")
    assert train.each_s == pytest.approx(6 + train.takes.prompt_tokens / 100 / 6)


def test_a_plan_tells_rules_prices_and_what_is_unknown(tmp_path):
    command = ["plan", "demo", f"run={tmp_path}/run", "sample.model=nobody/else"]
    told = CliRunner().invoke(c3po, [*command]).output
    assert "time unknown (sample, train, evaluate, compare, figures)" in told
    assert "no rate is known for nobody/else: see --tokens-per-s" in told
    told = CliRunner().invoke(c3po, [*command, "workers=2", "--tokens-per-s", "1000", "500"]).output
    assert "1,000 tokens/s trained, 500 tokens/s answered" in told
    assert " of work, about " in told
    assert " with 2 jobs at a time; at most 0.00 USD" in told
    assert not (tmp_path / "run").exists()


def test_a_plan_of_a_run_that_is_on_its_way_changes_nothing_in_it(tmp_path, tiny_folder):
    store_sample(tmp_path / "run", "boss_signoff", str(tiny_folder))
    command = ["plan", "demo", f"run={tmp_path}/run", "feedbacks=[boss_signoff]"]
    Ledger(tmp_path / "run" / "calls.sqlite").close()
    before = contents(tmp_path)
    done = CliRunner().invoke(c3po, command)
    assert done.exit_code == 0
    assert contents(tmp_path) == before


def test_whether_a_judged_job_is_done_is_said_without_its_ledger(tmp_path, tiny_folder):
    store_sample(tmp_path / "run", "boss_signoff", str(tiny_folder))
    record = sampled_for(tmp_path / "run", find_feedback("boss_signoff"))
    evaluate_method(tmp_path / "run", record, "revised")  # by the metric, and now by a judge
    judge = "evaluate.judge_model=openai:m@http://127.0.0.1:9/v1"
    config = load_config("demo", [f"run={tmp_path}/run", "feedbacks=[boss_signoff]", "methods=[revised]", judge])
    before = contents(tmp_path)
    assert not graph.graph(config)["eval/boss_signoff/prompted"].done
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (["--stages", "sample,train"], {"sample", "train"}),
        (["--stages", "evaluate"], {"evaluate", "compare"}),
        ([], {"sample", "train", "evaluate", "compare", "figures"}),
    ],
)
def test_stages_are_chosen_by_name(tmp_path, options, kinds):
    told = CliRunner().invoke(c3po, ["plan", "demo", f"run={tmp_path}/run", *options]).output
    rows = told.partition("kind ")[2].splitlines()[1:]
    assert {row.split()[0] for row in rows if row.split()[0] in forecast.KINDS} == kinds


def test_the_driver_of_a_run_gets_the_jobs_of_the_stages_alone(tmp_path, monkeypatch):
    driven = []
    monkeypatch.setattr(driver, "run_checked", lambda config, nodes, take_over: driven.append((config.run, set(nodes))))
    command = ["run", "smoke", f"run={tmp_path}/run", "--stages", "sample,train", "--sweep", "categories=3,4"]
    done = CliRunner().invoke(c3po, command)
    assert done.exit_code == 0, done.output
    names = {"sample/plant_tip", "train/plant_tip/scd", "train/plant_tip/c3po"}
    assert driven == [(f"{tmp_path}/run@categories=3", names), (f"{tmp_path}/run@categories=4", names)]


def test_swept_sampling_goes_on_after_a_run_that_fails_and_tells_all_at_the_end(tmp_path, monkeypatch):
    def fails(config: RunConfig, *_: object) -> None:
        driven.append(config.run)
        if not config.run.endswith("=4"):
            raise driver.RunFailed({"sample/plant_tip": "no answers"}, {})

    driven: list[str] = []
    monkeypatch.setattr(driver, "run_checked", fails)
    command = ["run", "smoke", f"run={tmp_path}/run", "--stages", "sample", "--sweep", "categories=3,4,5"]
    done = CliRunner().invoke(c3po, command)
    assert (done.exit_code, driven) == (1, [f"{tmp_path}/run@categories={count}" for count in (3, 4, 5)])
    told = [line for line in done.output.splitlines() if "1 of the run's jobs failed" in line]
    assert told == [
        f"Error: {tmp_path}/run@categories=3: 1 of the run's jobs failed:",
        f"{tmp_path}/run@categories=5: 1 of the run's jobs failed:",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--estimate", "--take-over"], "--estimate runs nothing: expected it without --take-over"),
        (["--estimate", "--figures-only"], "--estimate runs nothing: expected it without --figures-only"),
        (["--estimate", "--stages", "sample"], "--estimate runs nothing: expected it without --stages"),
        (["--figures-only", "--stages", "train", "--take-over"], "--figures-only .* without --take-over, --stages"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, says):
    done = CliRunner().invoke(c3po, ["run", "demo", *options])
    assert done.exit_code == 2
    assert re.search(says, done.output.splitlines()[-1])


def test_an_unknown_stage_is_told_with_the_nearest():
    done = CliRunner().invoke(c3po, ["run", "demo", "--stages", "sample,trian"])
    assert done.exit_code == 2
    assert "unknown stage 'trian' (did you mean 'train'?)" in done.output


def test_swept_sampling_is_planned_run_by_run(tmp_path):
    command = ["plan", "demo", f"run={tmp_path}/run", "feedbacks=[boss_signoff]", "--sweep", "categories=3,4"]
    told = CliRunner().invoke(c3po, command).output
    assert [line.partition(":")[0] for line in told.splitlines() if " jobs, " in line] == [
        f"{tmp_path}/run@categories=3",
        f"{tmp_path}/run@categories=4",
    ]
    assert len(load_runs("demo", [f"run={tmp_path}/run"], {"categories": [3, 4]})) == 2

"""`c3po import`: files of the reference implementation become a run that trains and draws without sampling."""

from __future__ import annotations

import copy
import json

import pytest
import yaml
from click.testing import CliRunner

from c3po_utils.batch import run_notebooks
from c3po_utils.cli import c3po
from c3po_utils.evaluation import collect
from c3po_utils.evaluation.evaluate import evaluate_method
from c3po_utils.feedback import find_feedback
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.records import FEEDBACK_FOLDER, load_feedbacks
from c3po_utils.runs import jobs, parameters
from c3po_utils.runs.check import check
from c3po_utils.runs.config import RunConfig, load_config
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.reference import Given, import_tree
from c3po_utils.runs.reference_configs import convert, keys_table
from c3po_utils.training import Training, TrainSettings
from tests.reference_files import CONFIG, evaluation, write_evaluation, write_module, write_sample


def changed(section: str, **changes) -> dict:
    data = copy.deepcopy(CONFIG)
    data[section] |= changes
    return data


def tree(folder, model="owner/base"):
    """A module, a config, data and two evaluations of its first feedback."""
    write_module(folder)
    write_sample(folder)
    write_evaluation(folder, "in_context.json", evaluation())
    write_evaluation(folder, "lcdpo-1a2b.json", evaluation(train_args=CONFIG["training_args"]))
    path = folder / "configs" / "config_own.json"
    path.parent.mkdir()
    data = copy.deepcopy(CONFIG)
    data["model_args"]["train_model"] = {"model_name_or_path": model, "platform": "huggingface"}
    path.write_text(json.dumps(data))
    return folder


# Configs


def test_a_config_becomes_a_run_with_every_key_accounted_for():
    made = convert(CONFIG, "results/own", ["/sets/own.yaml"])
    assert made.problems == []
    assert made.values == {
        "run": "results/own", "feedback_set": "/sets/own.yaml",
        "sample": {
            "category_model": "openai:gpt-4.1", "prompt_model": "openai:gpt-4.1",
            "completion_model": "openai:owner/base@https://api.together.xyz/v1", "model": "owner/base@4bit",
            "categories": 30, "prompts_per_category": 32,
            "options": {
                "strategy": "revise", "best_of": 0, "system_prompt": "", "max_new_tokens": 512, "allow_short": True
            },
        },
        "methods": ["c3po"],
        "train": {
            "learning_rate": 5e-5, "epochs": 1.0, "batch_size": 16, "seed": 42,
            "lora": {"r": 64, "alpha": 128, "dropout": 0.05},
            "training_arguments": {
                "bf16": True, "dataloader_num_workers": 4, "gradient_checkpointing": True,
                "lr_scheduler_type": "cosine", "warmup_steps": 0.05,
            },
        },
        "train_methods": {},
        "evaluate": {"judge_model": "openai:gpt-4.1", "judge_helpfulness": False},
    }  # fmt: skip
    flat = {f"{section}.{key}" for section in ("sample_args", "training_args", "eval_args") for key in CONFIG[section]}
    flat |= {f"model_args.{role}.{key}" for role, values in CONFIG["model_args"].items() for key in values}
    assert made.mapped.keys() | made.not_applicable.keys() == flat
    assert not made.mapped.keys() & made.not_applicable.keys()
    text = made.as_yaml("own.json")
    assert all(f"#   {key}: " in text for key in flat)
    assert yaml.safe_load(text) == made.values


def test_the_run_has_parameters_that_the_notebooks_have():
    config = RunConfig.model_validate(convert(changed("training_args", use_base_prefix="sft"), "results/own").values)
    for notebook, values in (
        (jobs.SAMPLE, config.sample),
        (jobs.TRAIN, config.train),
        (jobs.EVALUATE, config.evaluate),
    ):
        parameters.resolve(jobs.NOTEBOOKS / notebook, values)
    assert config.methods == ["scd_mixed", "c3po_after_scd_negatives"]
    assert config.train_methods == {
        "scd_mixed": {"method_settings": {"near_ratio": 0.2, "out_ratio": 0.1}},
        "c3po_after_scd_negatives": {"method_settings": {"start": "scd_mixed"}},
    }


def test_a_prompted_method_trains_nothing():
    made = convert(changed("eval_args", method="cot"), "results/own")
    assert made.values["methods"] == ["in_context_cot"]
    assert made.not_applicable["training_args.algo"] == "nothing is trained, as eval_args.method is cot"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({**CONFIG, "data_args": {}}, "data_args: expected a known key"),
        ({**CONFIG, "eval_args": 3}, "eval_args: expected a mapping, found 3"),
        (changed("model_args", judge_model={}), "model_args.judge_model: expected a known key"),
        (changed("model_args", train_model={"model_name_or_path": "m", "platform": "openai"}),
         "model_args.train_model.platform: expected a known one (valid: huggingface), found"),
        (changed("model_args", prompt_model={"platform": "openai"}), "prompt_model.model_name_or_path: expected"),
        (changed("model_args", prompt_model={"model_name_or_path": "m", "load_in_4bit": True, "load_in_8bit": True}),
         "model_args.prompt_model: expected 4 or 8 bits, found both"),
        (changed("sample_args", num_general_prompts=32), "num_general_prompts: expected as many as num_prompts, 960"),
        (changed("sample_args", num_prompts="all"), "sample_args.num_prompts: expected 1 or more, found 'all'"),
        (changed("sample_args", num_prompt=3), "sample_args.num_prompt: expected a known key"),
        (changed("training_args", lora_enable=False), "training_args.lora_enable: expected true"),
        (changed("training_args", lora_dropout=1.5), "training_args: LoRA setting 'dropout': expected"),
        (changed("training_args", beta=0.1), "training_args.beta: expected a known key (did you mean 'dpo_beta'"),
        (changed("training_args", learning_rat=1), "training_args.learning_rat: expected a known key"),
        (changed("training_args", algo="ppo", lora_r=None), "training_args.lora_r: expected a whole number"),
        (changed("eval_args", method="trained_"), "eval_args.method: expected a known method (did you mean 'trained'"),
    ],
)  # fmt: skip
def test_what_a_config_cannot_mean_is_told_by_key(data, says):
    assert any(says in problem for problem in convert(data, "results/own").problems)


def test_the_readme_has_the_table_of_keys():
    assert keys_table() in (FEEDBACK_FOLDER / "README.md").read_text()


# Trees


def test_a_tree_becomes_a_run(tmp_path):
    dest = tmp_path / "run"
    report = import_tree(tree(tmp_path / "there"), dest, Given(model="owner/base"))
    assert report.skipped == []
    assert (
        f"{tmp_path / 'there'}: 1 feedback modules, 1 configs, 1 folders of sampled data, 2 evaluations" in report.notes
    )
    assert [one.id for one in load_feedbacks(dest / "feedback" / "own_set.yaml")] == [
        "name_every_note",
        "brief_about_rowing",
    ]
    assert sorted(str(path.parent.relative_to(dest)) for path in dest.rglob("manifest.json")) == [
        "eval/name_every_note/c3po", "eval/name_every_note/in_context", "sample/name_every_note",
    ]  # fmt: skip
    config = load_config(dest / "runs" / "config_own.yaml")
    assert (config.run, config.feedback_set) == (str(dest), str(dest / "feedback" / "own_set.yaml"))
    before = {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}
    import_tree(tmp_path / "there", dest, Given(model="owner/base"))
    assert {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()} == before


def test_imported_data_train_and_are_not_sampled(tmp_path, tiny_folder):
    dest = tmp_path / "run"
    import_tree(tree(tmp_path / "there", str(tiny_folder)), dest, Given(model=str(tiny_folder), max_new_tokens=4))
    name = f"{dest / 'feedback' / 'own_set.yaml'}#name_every_note"
    config = load_config(
        dest / "runs" / "config_own.yaml",
        [
            f"feedbacks={['name_every_note']}",
            f"sample={{model: {tiny_folder}}}",
            "evaluate={}",
            "methods=[scd, revised]",
        ],
    )
    check(config)
    assert jobs.sample_job(config, dest, name).done
    settings = TrainSettings("scd", 1e-3, 1, 3, 0, {"r": 2, "alpha": 4}, {}, {"bf16": False})
    training = Training.of(dest, name, settings)
    assert training.preflight.pairs == 6
    assert len(training.fit()) == 2
    scored = evaluate_method(dest, find_feedback(name), "scd")
    assert len(scored) == 9
    assert {row["prompt_id"] for row in scored} == {row["prompt_id"] for row in answers_of(dest, "in_context")}
    with pytest.raises(ParameterError, match="was imported: expected another run's folder"):
        check(config.model_copy(update={"methods": ["in_context"]}))
    with pytest.raises(ParameterError, match=f"model: expected '{tiny_folder}', whose answers were imported"):
        check(config.model_copy(update={"sample": {}}))


def answers_of(run, method):
    table = collect(run)
    return table[table.method == method].to_dict("records")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_c3po_run_goes_on_from_imported_data(tmp_path, tiny_folder):
    dest = tmp_path / "run"
    import_tree(tree(tmp_path / "there"), dest, Given(model=str(tiny_folder), max_new_tokens=4))
    config = RunConfig(
        run=str(dest), feedback_set=str(dest / "feedback" / "own_set.yaml"), feedbacks=["name_every_note"],
        methods=["revised", "scd"], sample={"model": str(tiny_folder)}, evaluate={"perplexity": False},
        train={"epochs": 1, "lora": {"r": 2, "alpha": 4}},
    )  # fmt: skip
    run_notebooks(config)
    assert not (dest / "sample" / "name_every_note" / "01_sample.ipynb").exists()
    table = (dest / "figures" / "table2.csv").read_text()
    assert {line.partition(",")[0] for line in table.splitlines()[1:]} == {"c3po", "in_context", "revised", "scd"}


def test_unknown_files_are_errors_or_listed(tmp_path):
    there = tree(tmp_path / "there")
    (there / "notes.txt").write_text("x")
    (there / "train.py").write_text("print('x')")
    (there / "other.json").write_text("[1]")
    (there / "src" / "linked").symlink_to(tmp_path)
    with pytest.raises(FeedbackError) as told:
        import_tree(there, tmp_path / "run", Given(model="m"))
    assert not (tmp_path / "run").exists()
    found = {problem.partition(": ")[0]: problem.partition("found ")[2] for problem in told.value.problems}
    assert found == {
        str(there / "notes.txt"): "a file .txt", str(there / "train.py"): "Python without records",
        str(there / "other.json"): "[1]", str(there / "src" / "linked"): "a file without suffix",
    }  # fmt: skip
    report = import_tree(there, tmp_path / "run", Given(model="m"), lenient=True)
    assert report.skipped == told.value.problems
    assert len(report.imported) == 5


def test_a_record_that_is_not_understood_is_skipped_alone(tmp_path):
    path = write_module(tmp_path)
    path.write_text(path.read_text().replace("metric_value=[None, KISS]", "metric_value=[None, open('x').read()]"))
    with pytest.raises(FeedbackError, match="line 23: expected constants, found a call of something without a name"):
        import_tree(path, tmp_path / "run")
    report = import_tree(path, tmp_path / "run", lenient=True)
    assert len(report.skipped) == 1
    assert "1 feedbacks, 1 checkable" in report.imported[0]


def test_data_of_no_known_feedback_is_refused(tmp_path):
    write_sample(tmp_path / "there", name="tea_00000000-0000-5000-8000-000000000000")
    with pytest.raises(FeedbackError, match=r"expected the data of a known feedback.*--feedback"):
        import_tree(tmp_path / "there", tmp_path / "run", Given(model="m"))
    with pytest.raises(ValueError, match="do not say which model answered: expected --model NAME"):
        import_tree(tmp_path / "there", tmp_path / "run")


def test_data_alone_finds_its_record_in_a_set(tmp_path):
    module = write_module(tmp_path)
    import_tree(module, tmp_path / "own.yaml")
    data = write_sample(tmp_path / "there")
    report = import_tree(data, tmp_path / "run", Given(model="m", feedback_sets=[tmp_path / "own.yaml"]))
    assert "27 rows" in report.imported[0]
    assert (tmp_path / "run" / "sample" / "name_every_note" / "rows.jsonl").exists()


def test_deep_values_in_a_config_are_refused(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text(json.dumps(changed("training_args", optim_args="DEEP")).replace('"DEEP"', "[" * 400 + "]" * 400))
    with pytest.raises(FeedbackError, match="expected less deep nesting"):
        import_tree(path, tmp_path / "own.yaml")


# The command


def test_the_command_says_what_it_did_and_what_it_skipped(tmp_path):
    there = tree(tmp_path / "there")
    (there / "notes.txt").write_text("x")
    strict = CliRunner().invoke(c3po, ["import", str(there), str(tmp_path / "run"), "--model", "owner/base"])
    assert (strict.exit_code, len(strict.output.splitlines())) == (1, 1)
    assert f"Error: {there / 'notes.txt'}: expected a feedback module, sampled data, a config" in strict.output
    done = CliRunner().invoke(c3po, ["import", str(there), str(tmp_path / "run"), "--model", "owner/base", "--lenient"])
    assert done.exit_code == 0, done.output
    assert "own_set.py: 2 feedbacks, 2 checkable -> " in done.output
    made = convert(json.loads((there / "configs" / "config_own.json").read_text()), "run")
    counts = f"{len(made.mapped)} keys mapped, {len(made.not_applicable)} not applicable (listed in it) -> "
    assert counts in done.output
    assert "the length of 1 is to change by 1.5: --length-ratio" in done.output
    assert f"skipped: {there / 'notes.txt'}" in done.output
    assert done.output.rstrip().endswith("1 skipped")


def test_the_command_takes_what_modules_do_not_say(tmp_path):
    path = write_module(tmp_path, "plain.py")
    path.write_text(path.read_text().replace("gpt_style_feedback", "own").replace('categories=["gpt_style"],', ""))
    lacking = CliRunner().invoke(c3po, ["import", str(path), str(tmp_path / "own.yaml")])
    assert "expected the option --source" in lacking.output
    options = ["--source", "human", "--kind", "content", "--length-ratio", "2"]
    done = CliRunner().invoke(c3po, ["import", str(path), str(tmp_path / "own.yaml"), *options])
    assert done.exit_code == 0, done.output
    tea, rowing = load_feedbacks(tmp_path / "own.yaml")
    assert (tea.source, tea.kind, rowing.metric.value[0].value) == ("human", "content", 0.5)

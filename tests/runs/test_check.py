"""What is known to be wrong with settings is said in one line before a kernel starts, by runner and papermill alike."""

from __future__ import annotations

from pathlib import Path

import papermill
import pytest
import yaml
from click.testing import CliRunner
from papermill import PapermillExecutionError
from papermill.cli import papermill as papermill_command

from c3po_utils.batch import notebook, run_notebooks
from c3po_utils.batch.local import LocalExecutor
from c3po_utils.cli import c3po
from c3po_utils.feedback import general, records
from c3po_utils.runs.check import check, lacking
from c3po_utils.runs.config import RUNS, RunConfig, load_config, load_runs
from c3po_utils.runs.estimate import estimates
from c3po_utils.runs.jobs import (
    NOTEBOOKS,
    evaluate_values,
    feedback_names,
    figures_values,
    sample_values,
    train_values,
    two_feedbacks_runs,
)
from c3po_utils.runs.parameters import ParameterError
from tests.speed import in_time, within

UNSCORED = """
feedbacks:
  - id: kind
    content: Be kind to Ann.
    domain: mails to Ann
    effect: the mail is kind
    source: human
    kind: style
    demonstrations: [{prompt: a, answer: b}]
"""
LOCAL = "openai:m@http://127.0.0.1:9/v1"
BITS = "smollm2-135m@4bit"
NAN = float("nan")


def wrong_run(folder: Path, changes: dict) -> dict:
    """The settings of a run below a folder that are right but for the changes."""
    return {"run": str(folder / "run"), "feedbacks": ["boss_signoff"], "methods": ["c3po"], **changes}


JOINT = {
    "feedbacks": ["boss_signoff", "fitness_caps"],
    "methods": ["scd", "scd_gated"],
    "two_feedbacks": [("boss_signoff", "fitness_caps")],
    "two_feedbacks_how": ["joint"],
}
WRONG_RUNS = [
    ({"sample": {"options": {"best_off": 2}}}, "best_of"),
    ({"sample": {"options": {"best_of": -1}}}, "best_of.*expected 0 or more, found -1"),
    ({"sample": {"options": {"max_new_tokens": 0}}}, "max_new_tokens.*expected 1 or more, found 0"),
    ({"sample": {"options": {"strategy": "revize"}}}, "did you mean 'revise'"),
    ({"sample": {"options": {"effort": {"at_once": 0}}}}, "at_once.*expected 1 or more, found 0"),
    ({"sample": {"model": "smollm2-135"}}, "model: no model 'smollm2-135'.*did you mean 'smollm2-135m'"),
    ({"sample": {"model": "./nowhere"}}, "model: no model './nowhere'"),
    ({"sample": {"prompt_model": "openai:m@127.0.0.1:9"}}, "prompt_model: "),
    ({"train_methods": {"c3po": {"learning_rat": 1e-4}}}, "learning_rate"),
    ({"train_methods": {"c3p0": {"learning_rate": 1e-4}}}, "train_methods: unknown method 'c3p0'.*'c3po'"),
    ({"train": {"method_settings": {"betta": 0.1}}}, "beta"),
    ({"train": {"learning_rate": NAN}}, "learning_rate.*nan"),
    ({"train": {"learning_rate": -1.0}}, "learning_rate.*-1.0"),
    ({"train": {"learning_rate": True}}, "'learning_rate': expected float, found True"),
    ({"train": {"batch_size": 0}}, "batch_size.*0"),
    ({"train": {"epochs": 0}}, "epochs.*0"),
    ({"train": {"lora": {"r": -1}}}, "r.*-1"),
    ({"train": {"lora": {"rank": 8}}}, "rank"),
    ({"sample": {"model": BITS, "options": {"engine": "vllm"}}}, f"sample: .*{BITS}.*vLLM is given whole weights"),
    ({"sample": {"model": BITS}, "evaluate": {"engine": "vllm"}}, f"evaluate: .*{BITS}.*vLLM is given whole"),
    ({"evaluate": {"judge_modell": LOCAL}}, "judge_model"),
    ({"evaluate": {"judge_model": "smollm"}}, "judge_model: no model 'smollm'.*smollm2-135m"),
    ({"evaluate": {"judge_model": LOCAL, "limits": {"max_in_fligt": 2}}}, "max_in_flight"),
    ({"evaluate": {"judge_model": LOCAL, "limits": {"max_in_flight": 0}}}, "max_in_flight.*0"),
    ({"evaluate": {"judge_model": LOCAL, "limits": {"requests_per_minute": -3}}}, "requests_per_minute.*-3"),
    ({"evaluate": {"judge_model": LOCAL, "limits": {"prices": {"m": [-1, 2]}}}}, "price of 'm'.*-1"),
    ({"evaluate": {"judge_model": LOCAL, "limits": {"budget_usd": 1.0}}}, "price"),
    ({"evaluate": {"judge_model": LOCAL, "limits": {"prices": 5}}}, "evaluate: .*prices.*5"),
    ({"figures": {"outputt": "x"}}, "output"),
    ({"figures": {"output": ""}}, "expected a folder for its results"),
    ({"figures": {"uncertainty": "sd"}}, "uncertainty: expected one of .*'se'.*found 'sd'"),
    ({"methods": ["c3po_after_scd_negatives", "scd_negatives"]}, "name that before it"),
    (
        {"methods": ["scd", "scd_gated", "c3po"], "train": {"method_settings": {"c3po": {"start": "scd_gated"}}}},
        "train, method c3po: .*start: no adapter of 'scd_gated'",
    ),
    ({"methods": ["c3po@../../x"]}, "expected a label of at most 80 letters.*found '../../x'"),
    ({"methods": ["c3po", "scd", "c3po"]}, "'c3po' is named twice"),
    ({"methods": []}, "expected one method or more"),
    ({"two_feedbacks": [("boss_signoff", "boss_signof")]}, "boss_signoff"),
    (
        JOINT | {"two_feedbacks_methods": ["scd_gated"]},
        "two_feedbacks_methods, method scd_gated: it is a gate for 'scd': name that, too",
    ),
    ({"feedback_set": "unscored.yaml", "feedbacks": ["kind"]}, "prompts"),
    ({"feedback_set": "unscored.yaml", "feedbacks": ["kind"], "sample": {"prompt_model": LOCAL}}, "judge_model"),
    ({"run": ""}, "expected a folder for its results"),
    ({"run": ".."}, "expected a folder for its results"),
    ({"run": "s3://bucket/mine"}, "run: run 's3://bucket/mine': expected a local folder.*`store=`"),
    ({"figures": {"runs": ["s3://bucket/mine"]}}, "figures: run 's3://bucket/mine': expected a local folder"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG_RUNS)
def test_what_can_be_known_to_be_wrong_is_said_before_anything_runs(tmp_path, monkeypatch, changes, says):
    (tmp_path / "unscored.yaml").write_text(UNSCORED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalExecutor, "submit", lambda _, task: pytest.fail(f"{task.name} ran"))
    given = wrong_run(tmp_path, changes)
    with pytest.raises(ParameterError, match=says) as caught:
        run_notebooks(RunConfig(**given))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


WRONG_GROUPS = [
    ("train_methods: {c3po: }", ["train.epochs=1"], {}, "line 3: train_methods.c3po: "),
    ("train_methods: [c3po]", ["train.epochs=1"], {}, "line 3: train_methods: "),
    (
        "train_methods: {c3po: {method_settings: {beta: 0.2}}}",
        ["train.method_settings=5"],
        {},
        "override.*dict, found 5",
    ),
    ("train: {lora: }", [], {"lora.r": [8]}, "line 3: train: .*'lora': expected dict, found None"),
    ("train_methods: {c3po: {lora: 3}}", [], {"lora.r": [8]}, "method c3po: .*'lora': expected dict, found 3"),
    ("figures: {output: 5}", [], {"sample.seed": [0, 1]}, "line 3: figures: .*'output': expected str, found 5"),
    ("evaluate: {limits: [1]}", [], {}, "line 3: evaluate: .*'limits': expected dict"),
    ("sample: {run: results/y}", [], {}, "line 3: sample: 'run' .* expected the run's own key 'run'"),
    ("", ["sample.feedback=fitness_caps"], {}, "^override sample.feedback: sample: 'feedback' .* key 'feedbacks'"),
    ("", ["train.method=dpo"], {}, "^override train.method: train: 'method' .* key 'methods'"),
    ("train_methods: {c3po: {method: dpo}}", [], {}, "method c3po: 'method' .* key 'methods'"),
    ("", ["evaluate.methods=[c3po]"], {}, "^override evaluate.methods: evaluate: 'methods' .* key 'methods'"),
    ("", ["figures.run=results/y"], {}, "^override figures.run: figures: unknown parameter 'run' .*'runs'"),
]


@pytest.mark.parametrize(("line", "overrides", "sweep", "says"), WRONG_GROUPS)
def test_what_is_wrong_in_a_group_is_told_with_its_place(tmp_path, line, overrides, sweep, says):
    path = tmp_path / "run.yaml"
    path.write_text(f"run: results/x\nmethods: [c3po, scd]\n{line}\n")
    with pytest.raises(ParameterError, match=says):
        load_runs(path, overrides, sweep)


def test_settings_of_a_variant_that_the_run_does_not_have_are_refused(tmp_path):
    path = tmp_path / "run.yaml"
    own = "train_methods: {c3po@beta=.03: {method_settings: {beta: 0.03}}}\n"
    path.write_text(f"run: results/x\nmethods: [c3po@beta=0.03]\n{own}")
    with pytest.raises(
        ParameterError, match=r"line 3: train_methods: 'c3po@beta=\.03' is no method.*'c3po@beta=0\.03'"
    ):
        load_config(path)
    with pytest.raises(
        ParameterError, match=r"override train_methods\.c3po@mine\.epochs: train_methods: 'c3po@mine' is no"
    ):
        load_config("demo", ["train_methods.c3po@mine.epochs=5"])
    assert load_config(path, ["methods=[scd]"]).methods == ["scd"], "a command line may leave out methods"
    mine = load_config("demo", ["methods=[c3po@mine]", "train_methods.c3po@mine.epochs=5"])
    assert mine.train_methods["c3po@mine"] == {"epochs": 5}


def test_two_feedbacks_methods_name_what_a_joint_training_needs_in_any_order(tmp_path):
    check(RunConfig(**wrong_run(tmp_path, JOINT | {"two_feedbacks_methods": ["scd_gated", "scd"]})))
    check(RunConfig(**wrong_run(tmp_path, JOINT)))
    added = {"two_feedbacks_methods": ["scd_gated"], "two_feedbacks_how": ["add"]}
    check(RunConfig(**wrong_run(tmp_path, JOINT | added)))


WRONG_PARAMETERS = [
    ("01_sample", {"model": "smollm2-135"}, "did you mean 'smollm2-135m'"),
    ("02_train", {"method": "c3p0"}, "did you mean 'c3po'"),
    ("02_train", {"method": "revised"}, "'revised' is asked, not trained"),
    ("02_train", {"epochs": -1}, "epochs"),
    ("03_evaluate", {"judge_model": "smollm"}, "judge_model: no model 'smollm'"),
    ("04_two_feedbacks", {"how": "sum"}, "how: expected one of"),
    ("05_figures", {"uncertainty": "sd"}, "found 'sd'"),
    ("05_figures", {"compare": ["scd_gate", "scd"]}, "did you mean 'scd_gated'"),
    ("05_figures", {"compare": ["c3po", "scd", "scd"]}, "compare: 'scd' is named twice"),
    ("05_figures", {"compare": ["scd_gated"]}, "expected the methods that 'scd_gated' is compared with"),
]


@pytest.mark.parametrize(("notebook", "given", "says"), WRONG_PARAMETERS)
def test_papermill_refuses_the_same_and_writes_nothing(tmp_path, notebook, given, says):
    output = tmp_path / "out.ipynb"
    with pytest.raises(ParameterError, match=says) as caught:
        papermill.execute_notebook(NOTEBOOKS / f"{notebook}.ipynb", output, parameters=given, progress_bar=False)
    assert str(caught.value).startswith(f"{notebook}.ipynb: ")
    assert not output.exists()


def test_papermills_command_tells_it_without_a_traceback(tmp_path):
    given = [str(NOTEBOOKS / "02_train.ipynb"), str(tmp_path / "out.ipynb"), "-p", "epochs", "-1"]
    done = CliRunner().invoke(papermill_command, given)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("Error: 02_train.ipynb: ")
    assert "Traceback" not in done.output
    assert not (tmp_path / "out.ipynb").exists()


KEY = "sk-proj-0123456789abcdefghijklmnopqrst"  # shaped like one


SECRET_PARAMETERS = [
    ("01_sample", {"prompt_model": f"openai:m@http://user:{KEY}@127.0.0.1:9/v1"}),
    ("01_sample", {"limits": {"api_key": KEY}}),
    ("03_evaluate", {"judge_model": f"openai:m@http://127.0.0.1:9/v1?key={KEY}"}),
    ("02_train", {"training_arguments": {"hub_token": "hf_0123456789abcdefghijkl"}}),
]


@pytest.mark.parametrize(("notebook", "given"), SECRET_PARAMETERS)
def test_keys_in_parameters_are_refused_before_they_are_written_anywhere(tmp_path, capfd, notebook, given):
    output = tmp_path / "out.ipynb"
    with pytest.raises(ParameterError, match="looks like a key or a password") as caught:
        papermill.execute_notebook(NOTEBOOKS / f"{notebook}.ipynb", output, parameters=given, progress_bar=False)
    assert not output.exists()
    group = {"01_sample": "sample", "02_train": "train", "03_evaluate": "evaluate"}[notebook]
    with pytest.raises(ParameterError, match=f"parameter '{group}' holds") as caught_too:
        check(RunConfig(run=str(tmp_path / "run"), methods=["c3po"], **{group: given}))
    shown = [str(caught.value), str(caught_too.value), *capfd.readouterr()]
    assert not any("0123456789abcdef" in text for text in shown)


def test_a_missing_key_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = RunConfig(run=str(tmp_path / "run"), methods=["c3po"], evaluate={"judge_model": "openai:gpt-4.1"})
    check(config)
    assert lacking(config) == [
        "no API key for https://api.openai.com/v1: set OPENAI_API_KEY in the environment, where it stays"
    ]
    with pytest.raises(ParameterError, match="no API key"):
        run_notebooks(config)
    monkeypatch.setenv("OPENAI_API_KEY", "key\r\n")
    assert lacking(config) == []


def test_figures_are_drawn_again_without_keys(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"run": str(tmp_path), "methods": ["c3po"], "evaluate": {"judge_model": "openai:gpt-4.1"}})
    )
    drawn = []
    monkeypatch.setattr(notebook, "execute", lambda job: drawn.append(job.notebook))
    CliRunner().invoke(c3po, ["run", str(tmp_path / "mine.yaml"), "--figures-only"])
    assert drawn == ["05_figures.ipynb"]


def test_figures_that_cannot_be_drawn_say_why_in_a_line(tmp_path, monkeypatch):
    def fail(_: object) -> None:
        raise PapermillExecutionError(0, 0, "collect()", "FileNotFoundError", "no finished evaluation", ["Traceback"])

    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"run": str(tmp_path), "methods": ["c3po"]}))
    monkeypatch.setattr(notebook, "execute", fail)
    done = CliRunner().invoke(c3po, ["run", str(tmp_path / "mine.yaml"), "--figures-only"])
    assert done.exit_code == 1
    copy = tmp_path / "figures" / "05_figures.ipynb"
    assert done.output == f"Error: {copy}: FileNotFoundError: no finished evaluation\n"


@pytest.mark.filterwarnings("ignore:.*is made anew")
def test_figures_of_a_damaged_stage_say_which_in_a_line(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(wrong_run(tmp_path, {})))
    manifest = tmp_path / "run/eval/boss_signoff/c3po/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"status": ')
    done = CliRunner().invoke(c3po, ["run", str(tmp_path / "mine.yaml"), "--figures-only"])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert done.output.startswith(f"Error: {manifest}: expected JSON, found 11 bytes")


def test_weights_that_cannot_be_had_are_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = RunConfig(run=str(tmp_path / "run"), methods=["c3po"], sample={"model": "nobody/no-such-model"})
    (reason,) = lacking(config)
    assert reason.startswith("model 'nobody/no-such-model' is not in this machine's cache, and the Hugging Face hub")


def test_a_hub_that_fails_without_a_word_is_still_one_line(tmp_path, monkeypatch):
    def fail(*_) -> None:
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.file_exists", fail)
    config = RunConfig(run=str(tmp_path / "run"), methods=["c3po"], sample={"model": "nobody/no-such-model"})
    (reason,) = lacking(config)
    assert reason.endswith("the Hugging Face hub cannot be asked (TimeoutError)")


def test_a_run_may_span_sets(tmp_path):
    (tmp_path / "own.yaml").write_text(UNSCORED)
    config = RunConfig(run="x", methods=["c3po"], feedback_set=["style", str(tmp_path / "own.yaml")])
    names = feedback_names(config)
    assert (len(names), names[0], names[-1]) == (26, "bedtime_goodnight", f"{tmp_path / 'own.yaml'}#kind")
    assert feedback_names(config.model_copy(update={"feedbacks": ["kind"]})) == names[-1:]


def test_feedbacks_are_selected_by_what_is_known_of_them(tmp_path):
    select = ["select={kind: style, source: model, first: 3}"]
    assert len(feedback_names(load_config("paper", select))) == 3
    prefix = ["feedback_set=embedded", "select.content_prefix=e-mails to my boss"]
    (name,) = feedback_names(load_config("demo", ["feedbacks=null", *prefix]))
    assert name == "boss_signoff"


def test_a_second_feedback_is_put_into_one_model_with_each_other():
    given = ["feedbacks=[boss_signoff, fitness_caps]", "feedback_set=[embedded, embedded_tuning]"]
    config = load_config("demo", ["second_feedback=plant_tip", *given])
    assert feedback_names(config) == ["boss_signoff", "fitness_caps", "plant_tip"]
    assert {(*names, method) for names, method, _ in two_feedbacks_runs(config) if method == "c3po"} == {
        ("boss_signoff", "plant_tip", "c3po"),
        ("fitness_caps", "plant_tip", "c3po"),
    }


def test_files_of_prompts_beside_the_command_are_those_of_its_kernels(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text('{"user": "Is tea hot?"}\n')
    monkeypatch.chdir(tmp_path)
    config = RunConfig(
        run=str(tmp_path / "run"), feedbacks=["boss_signoff"], methods=["scd", "scd_gated", "scd_distilled"],
        sample={"options": {"general_prompts": "log.jsonl:user"}},
        train={"method_settings": {"scd_distilled": {"nearby": "./log.jsonl:user"}, "scd": {}}},
    )  # fmt: skip
    check(config)
    there = f"{tmp_path}/log.jsonl:user"
    assert sample_values(config, "boss_signoff")["options"]["general_prompts"] == there
    assert train_values(config, "boss_signoff", "scd_distilled")["method_settings"]["scd_distilled"]["nearby"] == there


def test_nearby_prompts_that_a_feedback_lacks_are_found_before_anything_runs(tmp_path):
    given = {
        "run": str(tmp_path / "run"), "feedback_set": ["human", "content", "style"],
        "methods": ["scd", "scd_gated", "scd_distilled"],
    }  # fmt: skip
    settings = {"train_methods": {"scd_distilled": {"method_settings": {"nearby": "bundled"}}}}
    check(RunConfig(feedbacks=["otters_go", "hike_112"], **given, **settings))
    expected = (
        r"train_methods, method scd_distilled: nearby: no unlabelled prompts for 'bedtime_goodnight': expected .*/"
    )
    with pytest.raises(ParameterError, match=expected):
        check(RunConfig(feedbacks=["otters_go", "bedtime_goodnight"], **given, **settings))
    own = tmp_path / "mine.yaml"
    own.write_text(Path(records.FEEDBACK_FOLDER / "human.yaml").read_text())
    with pytest.raises(ParameterError, match=r"none are bundled for '.*mine\.yaml#otters_go': expected FILE"):
        check(
            RunConfig(
                **given | {"feedback_set": str(own)},
                **settings,
                feedbacks=["otters_go"],
                sample={"prompt_model": LOCAL},
            )
        )
    settings["train_methods"]["scd_distilled"]["method_settings"]["nearby"] = "hf:logs:train:prompt"
    with pytest.raises(ParameterError, match=r"expected bundled or FILE\.jsonl\[:COLUMN\]"):
        check(RunConfig(feedbacks=["otters_go"], **given, **settings))


def test_a_models_folder_beside_the_command_is_the_one_of_its_kernels(tmp_path, monkeypatch):
    for name in ("tiny", "judge", "models/mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    given = {
        "sample": {"model": "./tiny@4bit", "prompt_model": LOCAL, "category_model": "models/mine"},
        "evaluate": {"judge_model": "judge"},
    }
    config = RunConfig(run=str(tmp_path / "run"), methods=["c3po"], **given)
    check(config)
    values = sample_values(config, "boss_signoff")
    assert (values["model"], values["prompt_model"]) == (f"{tmp_path}/tiny@4bit", LOCAL)
    assert values["category_model"] == f"{tmp_path}/models/mine"
    assert evaluate_values(config, "boss_signoff")["judge_model"] == f"{tmp_path}/judge"


def test_the_library_is_checked_within_seconds():
    judged = ["evaluate.judge_model=openai:gpt-4.1", "select={}"]
    with within(4):
        check(config := load_config("paper", judged))
    assert len(feedback_names(config)) == 100


def test_the_defaults_of_the_notebooks_pass():
    check(load_config("demo"))
    check(load_config("two_feedbacks"))
    check(load_config("tuning"))


QUICK = """
import sys
from c3po_utils.runs import check, config
check.check(config.load_config("embedded"))
print(*{"torch", "transformers", "papermill", "openai", "matplotlib", "scipy.stats"} & set(sys.modules))
"""


@pytest.mark.quiet
def test_the_check_needs_no_library_of_models_and_is_quick():
    assert in_time(2, QUICK) == ""


def test_a_wrong_run_is_told_in_one_line_by_the_command_too(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "methods": ["c3p0"]}))
    for options in ([], ["--estimate"]):
        done = CliRunner().invoke(c3po, ["run", str(tmp_path / "mine.yaml"), *options])
        assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
        assert done.output.startswith(f"Error: {tmp_path}/mine.yaml, line 1: methods: unknown method 'c3p0' (did you")


WRONG_FILES = [
    (
        "run: x\nmethods: [c3po]\nworker: 2\n",
        [],
        "mine.yaml, line 3: worker: expected a known .*did you mean 'workers'",
    ),
    ("run: x\nmethods: [c3po]\nworkers: 0\n", [], "mine.yaml, line 3: workers: .*found 0"),
    ("run: x\nmethods: c3po\n", [], "mine.yaml, line 2: methods: expected a valid list, found 'c3po'"),
    ("run: x\nmethods:\n  - c3po\n  - 7\n", [], r"mine.yaml, line 4: methods\[1\]: .*found 7"),
    ("run: x\n", [], "mine.yaml: methods: expected this key"),
    ("base: base.yaml\nmethods: [c3po]\n", [], "base.yaml, line 2: train: expected a mapping, found 7"),
    ("run: x\nmethods: [c3po]\n", ["workers=many"], "^override workers: workers: .*found 'many'"),
    ("run: x\nmethods: [c3po]\nselect: {kind: stile}\n", [], "line 3: select.kind.*did you mean 'style'"),
    ("run: x\nmethods: [c3po]\nselect: {categry: a}\n", [], "line 3: select.categry: .*did you mean 'category'"),
    ("- c3po\n", [], "mine.yaml: expected a mapping of settings"),
    ("run: x\nmethods: [c3po]\n", ["trian.epochs=1"], "override trian: .*did you mean 'train'"),
    ("run: x\nmethods: [c3po]\n", ["workers.two=1"], "override workers.two: workers has no keys"),
]


@pytest.mark.parametrize(("text", "overrides", "says"), WRONG_FILES)
def test_a_runs_file_and_overrides_are_read_strictly(tmp_path, text, overrides, says):
    (tmp_path / "base.yaml").write_text("run: x\ntrain: 7\n")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ParameterError, match=says):
        load_config(tmp_path / "mine.yaml", overrides)


WRONG_SETTINGS = [
    ([], "base.yaml, line 2: train, method c3po: .*'betta'.*did you mean 'beta'"),
    (["train.epochs=-1"], "base.yaml, line 2, with override train.epochs: train, method c3po: "),
    (["train={epochs: -1}"], "^override train: train, method c3po: .*'epochs'"),
    (["evaluate.judge_model=smollm"], "^override evaluate.judge_model: evaluate: judge_model: no model 'smollm'"),
    (["select.category=nowhere"], "^override select.category: select: none of 8 feedbacks"),
    (["second_feedback=boss"], "^override second_feedback: .*no feedback has the id 'boss'.*boss_signoff"),
]


@pytest.mark.parametrize(("overrides", "says"), WRONG_SETTINGS)
def test_wrong_settings_say_which_file_or_override_they_are_from(tmp_path, overrides, says):
    (tmp_path / "base.yaml").write_text("methods: [c3po]\ntrain: {method_settings: {betta: 1}}\n")
    (tmp_path / "mine.yaml").write_text(f"base: base.yaml\nrun: {tmp_path}/run\n")
    with pytest.raises(ParameterError, match=says):
        check(load_config(tmp_path / "mine.yaml", overrides))


def test_an_override_of_train_holds_for_every_method(tmp_path):
    text = "run: x\nmethods: [scd, c3po]\ntrain: {batch_size: 2}\n"
    text += "train_methods: {scd: {epochs: 3, learning_rate: 0.1}, c3po: {method_settings: {beta: 0.5, kl: 0.5}}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    overrides = ["train.epochs=1", "train.method_settings={c3po: {beta: 0.25}}"]
    config = load_config(tmp_path / "mine.yaml", overrides)
    scd, c3po_values = (train_values(config, "boss_signoff", method) for method in ("scd", "c3po"))
    assert (scd["epochs"], scd["learning_rate"], scd["batch_size"]) == (1, 0.1, 2)
    assert (c3po_values["epochs"], c3po_values["method_settings"]) == (1, {"beta": 0.25, "kl": 0.5})
    config = load_config(tmp_path / "mine.yaml", ["train_methods.scd={epochs: 4}", "train={epochs: 1}"])
    assert train_values(config, "boss_signoff", "scd")["epochs"] == 4


def test_a_run_elsewhere_does_not_draw_over_the_figures_of_the_one_it_is_made_from(tmp_path):
    def output(*overrides: str) -> str:
        return figures_values(load_config("embedded", overrides))["output"]

    assert output() == "results/embedded"
    assert output("run=results/mine") == "results/mine/figures"
    assert output("run=results/mine", "figures.output=results/there") == "results/there"
    assert figures_values(load_config("embedded", ["run=results/mine"]))["methods"]
    (tmp_path / "mine.yaml").write_text(f"base: {RUNS / 'embedded.yaml'}\nrun: results/based\n")
    assert figures_values(load_config(tmp_path / "mine.yaml"))["output"] == "results/based/figures"


def test_an_override_reaches_inside_a_group(tmp_path):
    text = "run: x\nmethods: [c3po]\nsample: {options: {best_of: 2, seed: 3}}\ntrain: {lora: {dropout: 0.1}}\n"
    text += "train_methods: {c3po: {lora: {r: 4}, method_settings: {kl: 0.5}}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    overrides = ["sample.options.best_of=4", "train.lora.r=8", "train.method_settings.beta=0.25"]
    config = load_config(tmp_path / "mine.yaml", overrides)
    assert config.sample["options"] == {"best_of": 4, "seed": 3}
    values = train_values(config, "boss_signoff", "c3po")
    assert (values["lora"], values["method_settings"]) == ({"r": 8}, {"kl": 0.5, "beta": 0.25})


def test_an_override_inside_a_group_of_training_changes_what_a_sweep_changes(tmp_path):
    def trained(method: str, *overrides: str, sweep: dict | None = None) -> tuple[dict, dict]:
        (config,) = load_runs(tmp_path / "mine.yaml", overrides, sweep)
        values = train_values(config, "boss_signoff", method)
        return values["lora"], values["method_settings"]

    (tmp_path / "mine.yaml").write_text("run: x\nmethods: [c3po, scd]\n")
    swept = trained("c3po@r=8", sweep={"lora.r": [8]})
    assert swept == ({"dropout": 0.0, "r": 8}, {})
    assert trained("c3po", "train.lora.r=8") == trained("c3po", "train_methods.c3po.lora.r=8") == swept
    assert trained("scd", "train_methods.c3po.lora.r=8") == ({"dropout": 0.0}, {})

    text = "train: {lora: {alpha: 32}, method_settings: {c3po: {beta: 0.5}}}\n"
    (tmp_path / "mine.yaml").write_text(f"run: x\nmethods: [c3po, scd]\n{text}")
    swept = trained("c3po@near=1", sweep={"near_weight": [1.0]})
    assert swept == ({"alpha": 32}, {"beta": 0.5, "near_weight": 1.0})
    assert trained("c3po", "train_methods.c3po.method_settings.near_weight=1.0") == swept
    assert trained("c3po", "train.lora.r=8")[0] == {"alpha": 32, "r": 8}


def test_limits_of_the_run_bind_in_every_stage(tmp_path):
    from c3po_utils.runs import jobs

    limits = {"budget_usd": 2.0, "prices": {"m": [1.0, 1.0]}}
    config = RunConfig(
        run=str(tmp_path), methods=["base_resampled"], sample={"completion_model": LOCAL, "limits": limits}
    )
    assert jobs.evaluate_values(config, "boss_signoff")["limits"] == limits
    own = {"budget_usd": 1.0, "prices": {"judge": [2.0, 2.0]}}
    changed = config.model_copy(update={"evaluate": {"limits": own}})
    together = {"budget_usd": 1.0, "prices": {"m": [1.0, 1.0], "judge": [2.0, 2.0]}}
    assert jobs.evaluate_values(changed, "boss_signoff")["limits"] == together


def test_an_estimate_counts_every_stage(tmp_path):
    limits = {"prices": {"m": [1.0, 1.0]}}
    config = RunConfig(
        run=str(tmp_path / "run"), feedbacks=["boss_signoff"], methods=["base_resampled", "revised", "c3po"],
        sample={"completion_model": LOCAL, "categories": 3, "prompts_per_category": 2, "limits": limits},
        evaluate={"judge_model": "openai:judge@http://127.0.0.1:9/v1", "limits": {"prices": {"judge": [1.0, 1.0]}}},
    )  # fmt: skip
    table = estimates(config).reset_index().set_index(["use", "model"])
    tests = 2 + 2 + 2  # a third of six prompts in each of three splits
    assert table.loc[("answers", LOCAL), "calls"] == tests
    assert table.loc[("answers", "smollm2-135m"), "calls"] == tests
    # `revised` is the baseline itself out of scope, which a judge is not asked about
    assert table.loc[("judging", "openai:judge@http://127.0.0.1:9/v1"), "calls"] == 2 * (tests + 2 + tests)
    assert table.loc[("training", "smollm2-135m"), "prompt tokens"] > 100
    assert table[table.feedback == "all"].usd.item() == pytest.approx(table[table.feedback != "all"].usd.sum())


def test_an_estimate_counts_the_unlabelled_prompts_of_a_distillation_and_rows_as_they_are_dealt(tmp_path):
    both = ["boss_signoff", "cs_question"]
    config = RunConfig(
        run=str(tmp_path / "run"), feedbacks=both, methods=["scd", "scd_gated", "scd_distilled"],
        sample={"categories": 3, "prompts_per_category": 2}, two_feedbacks=[both], two_feedbacks_how=["joint"],
        two_feedbacks_methods=["scd_distilled"],
        train_methods={"scd_distilled": {"method_settings": {"unlabelled": 7}}},
    )  # fmt: skip
    table = estimates(config)
    assert table.loc[("boss_signoff", "unlabelled prompts"), "calls"] == 7
    more = {"scd_distilled": {"method_settings": {"unlabelled": 7, "nearby": "bundled"}}}
    with_nearby = estimates(config.model_copy(update={"train_methods": more}))
    nearby = len(general.unlabelled_texts("bundled", ["boss_signoff"]))
    assert with_nearby.loc[("boss_signoff", "unlabelled prompts"), "calls"] == 7 + 2 * nearby
    assert table.loc[("boss_signoff+cs_question", "unlabelled prompts"), "calls"] == 7

    def trained(*methods: str) -> float:
        alone = estimates(config.model_copy(update={"methods": list(methods), "two_feedbacks": []}))
        return alone.loc[("boss_signoff", "training"), "prompt tokens"]

    scd = trained("scd")  # four revisions; all sequences here are of about one length
    # Four pairs, eight near-scope rows and seven out of scope: eight rows of three sequences
    assert trained("scd", "scd_gated", "scd_distilled") - scd == pytest.approx(8 * 3 * scd / 4, rel=0.1)
    assert trained("scd_mixed") == 2 * scd

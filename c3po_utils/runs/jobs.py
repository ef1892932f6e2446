"""A run's jobs: which notebooks, with which parameters, for which stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from c3po_utils import engine, figures  # as rooms: their heavy parts are imported when they are used
from c3po_utils.evaluation import evaluate, open_judge, two_feedbacks
from c3po_utils.feedback import Feedback, general, load_feedbacks, records, selection
from c3po_utils.runs import parameters, variants
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import nearest
from c3po_utils.runs.stage import GROUPS, NOTEBOOKS, Stage, run_folder
from c3po_utils.sampling import SampleSettings, open_sample
from c3po_utils.training import TrainSettings, trained_methods
from c3po_utils.training.stage import train_stage

How = two_feedbacks.How
SAMPLE, TRAIN, EVALUATE, FIGURES = (GROUPS[group] for group in ("sample", "train", "evaluate", "figures"))
TWO_FEEDBACKS = "04_two_feedbacks.ipynb"
PROMPT_FILES = ("general_prompts", "nearby")  # settings, below parameters, that may name one
MODELS = ("model", "category_model", "prompt_model", "completion_model", "judge_model")  # parameters that name one


@dataclass(frozen=True)
class Job:
    """One notebook execution and the stages that it is to finish."""

    notebook: str
    output: Path
    parameters: dict[str, Any]
    stages: list[Stage] = field(default_factory=list)
    reads_only: bool = False  # the notebook makes no stage: its one stage only says that it was executed

    @property
    def done(self) -> bool:
        return bool(self.stages) and all(stage.done for stage in self.stages)

    @property
    def made(self) -> bool:
        """Whether its stages were finished for these inputs, whatever has become of their products."""
        return bool(self.stages) and all(stage.made for stage in self.stages)


def _sets(config: RunConfig) -> list[Path]:
    given = config.feedback_set
    return [records.feedback_set(name) for name in ([given] if isinstance(given, str) else given)]


def known(config: RunConfig) -> list[Feedback]:
    """The records of the run's sets."""
    return load_feedbacks(*_sets(config))


def selected(config: RunConfig) -> list[Feedback]:
    """Those of the run's feedbacks, the second one last if it is not among those that are selected."""
    chosen = selection.select(known(config), config.feedbacks, **config.select.model_dump())
    second = records.by_id(known(config), [config.second_feedback]) if config.second_feedback else []
    return chosen + [one for one in second if one not in chosen]


def feedback_names(config: RunConfig) -> list[str]:
    """What the notebooks take as `feedback`: the id, after its file (`file.yaml#id`) where that lies elsewhere."""
    names = {}
    for path in _sets(config):
        place = "" if path.parent == records.FEEDBACK_FOLDER else f"{path.resolve()}#"
        names |= {feedback.id: place + feedback.id for feedback in load_feedbacks(path)}
    return [names[feedback.id] for feedback in selected(config)]


def two_feedbacks_runs(config: RunConfig) -> list[tuple[list[str], str, How]]:
    """(what notebooks take as `feedbacks`, method, how) of every two feedbacks in one model.

    Raises:
        ValueError: a feedback that is not in the run, or other than two different ones.
    """
    given = list(config.two_feedbacks)
    if second := config.second_feedback:
        given += [(one.id, second) for one in selected(config) if one.id != second]
    names = {records.feedback_id(name): name for name in feedback_names(config)} if given else {}
    for ids in given:
        for id in ids:
            if id not in names:
                raise ValueError(f"two_feedbacks: {id!r} is no feedback of this run ({nearest(id, names)})")
        if not len(ids) == len(set(ids)) == 2:
            raise ValueError(f"two_feedbacks: expected two different feedbacks, found {list(ids)}")
    chosen = config.methods if config.two_feedbacks_methods is None else config.two_feedbacks_methods
    return [
        ([names[id] for id in ids], method, how)
        for ids in given
        for method in trained_methods(chosen)
        for how in config.two_feedbacks_how
    ]


def _resolved(notebook: str, given: dict[str, Any]) -> dict[str, Any]:
    """A notebook's parameters; models' folders and prompts' files from the root: its kernel runs in another folder."""
    values = parameters.resolve(NOTEBOOKS / notebook, given)
    models = {key: engine.names.absolute(values[key]) for key in MODELS if key in values}
    return _with_files_from_root(values) | models


def _with_files_from_root(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters, or the settings in one of them."""

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _with_files_from_root(value)
        return general.absolute(value) if key in PROMPT_FILES and isinstance(value, str) else value

    return {key: absolute(key, value) for key, value in values.items()}


def _fields(settings: type, values: dict[str, Any]) -> dict[str, Any]:
    return {entry.name: values[entry.name] for entry in fields(settings) if entry.name in values}


def sample_values(config: RunConfig, name: str) -> dict[str, Any]:
    """The parameters of 01_sample for one feedback."""
    return _resolved(SAMPLE, {"run": config.run, "feedback": name, **config.sample})


def sample_settings(values: dict[str, Any]) -> SampleSettings:
    """The settings that parameters of 01_sample come to."""
    return SampleSettings.of(values["options"], **_fields(SampleSettings, values))


def sample_job(config: RunConfig, run: Path, name: str) -> Job:
    values = sample_values(config, name)
    stage = open_sample(run, name, sample_settings(values)).stage
    return Job(SAMPLE, stage.folder / SAMPLE, values, [stage])


def train_values(config: RunConfig, name: str, method: str) -> dict[str, Any]:
    """The parameters of 02_train for one feedback and method."""
    given = variants.given(config.train, config.train_methods, method)
    return _resolved(TRAIN, {"run": config.run, "feedback": name, "method": method, **given})


def train_settings(values: dict[str, Any]) -> TrainSettings:
    """The settings that parameters of 02_train come to."""
    return TrainSettings(**_fields(TrainSettings, values))


def train_job(config: RunConfig, run: Path, name: str, method: str) -> Job:
    values = train_values(config, name, method)
    stage = train_stage(run, records.feedback_id(name), train_settings(values))
    return Job(TRAIN, stage.folder / TRAIN, values, [stage])


def _scoring(config: RunConfig) -> dict[str, Any]:
    """What 03 and 04 are given for who scores, and within which limits: those of sampling, where they say no other."""
    sampling, own = config.sample.get("limits", {}), config.evaluate.get("limits", {})
    limits = {**sampling, **own}
    if all(isinstance(part.get("prices"), dict) for part in (sampling, own)):
        limits["prices"] = {**sampling["prices"], **own["prices"]}
    return {"limits": limits, **{key: config.evaluate[key] for key in ("judge_model",) if key in config.evaluate}}


def evaluate_values(config: RunConfig, name: str, methods: Sequence[str] = ()) -> dict[str, Any]:
    """The parameters of 03_evaluate for one feedback; all methods of the run where none are given."""
    chosen = list(methods) or config.methods
    return _resolved(
        EVALUATE, {"run": config.run, "feedback": name, **config.evaluate, "methods": chosen, **_scoring(config)}
    )


def evaluate_job(config: RunConfig, run: Path, name: str, methods: Sequence[str], folder: str) -> Job:
    """Some methods answered and scored; the executed copy lies in this folder of the feedback's evaluations."""
    values = evaluate_values(config, name, methods)
    id = records.feedback_id(name)
    return Job(EVALUATE, run / "eval" / id / folder / EVALUATE, values, _evaluations(run, id, values))


def _evaluations(run: Path, id: str, values: dict[str, Any]) -> list[Stage]:
    judge = open_judge(run, values["judge_model"], values["judge_helpfulness"], values["limits"])
    return [evaluate.eval_stage(run, id, method, judge) for method in values["methods"]]


def compare_job(config: RunConfig, run: Path, name: str) -> Job:
    """All methods of a feedback side by side, read back from their evaluations."""
    values, id = evaluate_values(config, name), records.feedback_id(name)
    identity = {"evaluations": [own.identity for own in _evaluations(run, id, values)]}
    stage = Stage(run / "compare" / id, identity)
    return Job(EVALUATE, stage.folder / EVALUATE, values, [stage], reads_only=True)


def two_feedbacks_values(config: RunConfig, names: list[str], method: str, how: How) -> dict[str, Any]:
    """The parameters of 04_two_feedbacks."""
    given = {"run": config.run, "feedbacks": names, "method": method, "how": how, **_scoring(config)}
    return _resolved(TWO_FEEDBACKS, given)


def two_feedbacks_job(config: RunConfig, run: Path, names: list[str], method: str, how: How) -> Job:
    values = two_feedbacks_values(config, names, method, how)
    judge = open_judge(run, values["judge_model"], limits=values["limits"])
    ids = [records.feedback_id(name) for name in names]
    stage = two_feedbacks.two_feedbacks_stage(run, ids, method, how, judge)
    return Job(TWO_FEEDBACKS, stage.folder / TWO_FEEDBACKS, values, [stage])


def figures_values(config: RunConfig) -> dict[str, Any]:
    """The parameters of 05_figures."""
    return _resolved(FIGURES, {"runs": [config.run], "output": f"{config.run}/figures", **config.figures})


def figures_job(config: RunConfig) -> Job:
    values = figures_values(config)
    folders = [run_folder(run) for run in values["runs"]]
    stage = figures.tables.figures_stage(folders, run_folder(values["output"]), values)
    return Job(FIGURES, stage.folder / FIGURES, values, [stage])

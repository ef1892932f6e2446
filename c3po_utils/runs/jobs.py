"""A run's settings and its jobs: which notebooks, with which parameters, for which stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, PositiveInt

from c3po_utils import figures  # as a room: its heavy parts are imported when they are used
from c3po_utils.chat.openai import LIMITS
from c3po_utils.evaluation import Judge, evaluate, open_judge, two_feedbacks
from c3po_utils.feedback import Feedback, load_feedbacks, records
from c3po_utils.runs import documents, parameters
from c3po_utils.runs.parameters import ParameterError, nearest
from c3po_utils.runs.stage import BUNDLED, Stage, run_folder
from c3po_utils.sampling import Sample, SampleSettings, open_sample
from c3po_utils.training import TrainSettings, registered, trained_methods
from c3po_utils.training.stage import train_stage

How = two_feedbacks.How
NOTEBOOKS = BUNDLED / "notebooks"
RUNS = NOTEBOOKS / "params" / "runs"
SAMPLE, TRAIN, EVALUATE = "01_sample.ipynb", "02_train.ipynb", "03_evaluate.ipynb"
TWO_FEEDBACKS, FIGURES = "04_two_feedbacks.ipynb", "05_figures.ipynb"


class RunConfig(BaseModel):
    """A run's YAML: what differs from the notebooks' own defaults."""

    model_config = ConfigDict(extra="forbid")

    run: str
    workers: PositiveInt = 1  # feedbacks at one time, each on its share of the cores
    feedback_set: str = "embedded"  # a set in feedback/, or the path of a YAML file
    feedbacks: list[str] | None = None  # ids; all of the set when left out
    methods: list[str]
    sample: dict[str, Any] = {}
    train: dict[str, Any] = {}  # for every trained method
    train_methods: dict[str, dict[str, Any]] = {}  # for one method, or one variant `method@label`, over `train`
    evaluate: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    two_feedbacks: list[tuple[str, str]] = []  # ids of two feedbacks each, to be put into one model
    two_feedbacks_methods: list[str] | None = None  # all that are trained when left out
    two_feedbacks_how: list[How] = ["add"]  # `add` their adapters, train one adapter `joint`ly


def run_file(name: Path | str) -> Path:
    """The YAML of a run: a path, or the name of one in notebooks/params/runs.

    Raises:
        ParameterError: there is none, with the nearest name.
    """
    for path in (Path(name), RUNS / f"{name}.yaml", BUNDLED / name):
        if path.is_file():
            return path
    known = [path.stem for path in RUNS.glob("*.yaml")]
    raise ParameterError(f"no run {str(name)!r}: expected a YAML file, or a name ({nearest(Path(name).stem, known)})")


def read_config(name: Path | str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A run's YAML over the file that its `base` names, beside it, if it has one; `above` are those that stand on it.

    Raises:
        ParameterError: no such file, no settings in it, a base that stands on itself, or it is a method's, for
            02_train, and no run's.
    """
    path = run_file(name)
    if path.resolve() in above:
        raise ParameterError(f"{above[-1]}, base: expected another file, found {path.name!r}, which stands on it")
    values = _settings(path)
    if "method" in values:
        raise ParameterError(
            f"{path} changes the method {values['method']!r}, and says nothing of a run: name the method in the"
            f" `methods` of a run's YAML and the rest of this file below its `train_methods`, or train it alone with"
            f" `papermill {TRAIN} OUT.ipynb -f {path}`"
        )
    base = values.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise ParameterError(f"{path}, base: expected the name of a YAML file, found {base!r}")
    return {**read_config(path.parent / base, (*above, path.resolve())), **values} if base else values


def _settings(path: Path) -> dict[str, Any]:
    try:
        values = documents.read(path)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: expected a mapping of settings, found {str(values)[:80]!r}")
    return values


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's settings from YAML, with `key=value` overrides (value in YAML) on top."""
    return RunConfig.model_validate({**read_config(path), **parameters.read_overrides(overrides)})


@dataclass(frozen=True)
class Job:
    """One notebook execution and the stages that it is to finish."""

    notebook: str
    output: Path
    parameters: dict[str, Any]
    stages: list[Stage] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return bool(self.stages) and all(stage.done for stage in self.stages)

    @property
    def label(self) -> str:
        """For progress bars: `02_train boss_signoff c3po`."""
        about = (self.parameters[key] for key in ("feedback", "method") if key in self.parameters)
        return " ".join([self.notebook.removesuffix(".ipynb"), *map(str, about)])


def phases(config: RunConfig) -> list[list[Iterator[Job]]]:
    """The run's jobs: chains that may run side by side, in phases that may not: feedbacks, pairs of them, figures.

    Each job is made when its turn comes, because it looks at what earlier ones wrote.
    """
    run = run_folder(config.run)
    return [
        [_feedback_jobs(config, run, name) for name in feedback_names(config)],
        [_two_feedbacks_jobs(config, run, *each) for each in two_feedbacks_runs(config)],
        [_figures_jobs(config, run)],
    ]


def plan(config: RunConfig) -> Iterator[Job]:
    """The run's jobs, one after another."""
    return chain.from_iterable(chain.from_iterable(phases(config)))


def _feedback_jobs(config: RunConfig, run: Path, name: str) -> Iterator[Job]:
    yield sample_job(config, run, name)
    for method in trained_methods(config.methods):
        yield train_job(config, run, name, method)
    yield evaluate_job(config, run, name)


def _two_feedbacks_jobs(config: RunConfig, run: Path, names: list[str], method: str, how: How) -> Iterator[Job]:
    if how == "joint":
        yield train_job(config, run, two_feedbacks.joint_name(names), method)
    yield two_feedbacks_job(config, run, names, method, how)


def _figures_jobs(config: RunConfig, run: Path) -> Iterator[Job]:
    yield figures_job(config, run)


def selected(config: RunConfig) -> list[Feedback]:
    """The records of the run's feedbacks."""
    return records.select(load_feedbacks(records.feedback_set(config.feedback_set)), ids=config.feedbacks)


def feedback_names(config: RunConfig) -> list[str]:
    """What the notebooks take as `feedback`: `file.yaml#id` for each feedback of the run."""
    path, ids = records.feedback_set(config.feedback_set), [feedback.id for feedback in selected(config)]
    return ids if path.parent == records.FEEDBACK_FOLDER else [f"{path.resolve()}#{id}" for id in ids]


def two_feedbacks_runs(config: RunConfig) -> list[tuple[list[str], str, How]]:
    """(what notebooks take as `feedbacks`, method, how) of every two feedbacks in one model.

    Raises:
        ValueError: a feedback that is not in the run, or one feedback twice.
    """
    given = config.two_feedbacks
    names = {records.feedback_id(name): name for name in feedback_names(config)} if given else {}
    for ids in given:
        for id in ids:
            if id not in names:
                raise ValueError(f"two_feedbacks: {id!r} is no feedback of this run ({nearest(id, names)})")
        if len(set(ids)) < 2:
            raise ValueError(f"two_feedbacks: expected two different feedbacks, found {list(ids)}")
    chosen = config.methods if config.two_feedbacks_methods is None else config.two_feedbacks_methods
    return [
        ([names[id] for id in ids], method, how)
        for ids in given
        for method in trained_methods(chosen)
        for how in config.two_feedbacks_how
    ]


def _resolved(notebook: str, given: dict[str, Any]) -> dict[str, Any]:
    return parameters.resolve(NOTEBOOKS / notebook, given)


def _fields(settings: type, values: dict[str, Any]) -> dict[str, Any]:
    return {entry.name: values[entry.name] for entry in fields(settings) if entry.name in values}


def sample_values(config: RunConfig, name: str) -> tuple[dict[str, Any], SampleSettings]:
    """The parameters of 01_sample for one feedback, and the settings that they come to."""
    values = _resolved(SAMPLE, {"run": config.run, "feedback": name, **config.sample})
    parameters.checked(values["limits"], LIMITS, "limit")
    return values, SampleSettings.of(values["options"], **_fields(SampleSettings, values))


def open_samples(config: RunConfig) -> Iterator[Sample]:
    """The sample of each feedback, for what it would still take (`Sample.estimate`)."""
    for name in feedback_names(config):
        values, settings = sample_values(config, name)
        yield open_sample(run_folder(config.run), name, settings, values["limits"])


def estimates(config: RunConfig) -> pd.DataFrame:
    """What sampling would still take at most, by feedback and use of a model; nothing is asked."""
    table = pd.concat({one.record.id: one.estimate() for one in open_samples(config)}, names=["feedback", "use"])
    table.loc[("all", ""), :] = table.drop(columns="model").sum(skipna=False)
    return table


def sample_job(config: RunConfig, run: Path, name: str) -> Job:
    values, settings = sample_values(config, name)
    stage = open_sample(run, name, settings).stage
    return Job(SAMPLE, stage.folder / SAMPLE, values, [stage])


def train_values(config: RunConfig, name: str, method: str) -> tuple[dict[str, Any], TrainSettings]:
    """The parameters of 02_train for one feedback and method, and the settings that they come to."""
    overrides = config.train_methods
    given = {
        "method_settings": {},
        **config.train,
        **overrides.get(registered(method), {}),
        **overrides.get(method, {}),
    }
    values = _resolved(TRAIN, {"run": config.run, "feedback": name, "method": method, **given})
    return values, TrainSettings(**_fields(TrainSettings, values))


def train_job(config: RunConfig, run: Path, name: str, method: str) -> Job:
    values, settings = train_values(config, name, method)
    stage = train_stage(run, records.feedback_id(name), settings)
    return Job(TRAIN, stage.folder / TRAIN, values, [stage])


def evaluate_values(config: RunConfig, run: Path, name: str) -> tuple[dict[str, Any], Judge | None]:
    """The parameters of 03_evaluate for one feedback, and the judge that they name."""
    values = _resolved(EVALUATE, {"run": config.run, "feedback": name, "methods": config.methods, **config.evaluate})
    return values, open_judge(run, values["judge_model"], values["judge_helpfulness"], values["limits"])


def evaluate_job(config: RunConfig, run: Path, name: str) -> Job:
    values, judge = evaluate_values(config, run, name)
    id = records.feedback_id(name)
    stages = [evaluate.eval_stage(run, id, method, judge) for method in config.methods]
    return Job(EVALUATE, run / "eval" / id / EVALUATE, values, stages)


def two_feedbacks_job(config: RunConfig, run: Path, names: list[str], method: str, how: How) -> Job:
    judging = {key: config.evaluate[key] for key in ("judge_model", "limits") if key in config.evaluate}
    given = {"run": config.run, "feedbacks": names, "method": method, "how": how, **judging}
    values = _resolved(TWO_FEEDBACKS, given)
    judge = open_judge(run, values["judge_model"], limits=values["limits"])
    ids = [records.feedback_id(name) for name in names]
    stage = two_feedbacks.two_feedbacks_stage(run, ids, method, how, judge)
    return Job(TWO_FEEDBACKS, stage.folder / TWO_FEEDBACKS, values, [stage])


def figures_values(config: RunConfig) -> dict[str, Any]:
    """The parameters of 05_figures."""
    return _resolved(FIGURES, {"runs": [config.run], "output": f"{config.run}/figures", **config.figures})


def figures_job(config: RunConfig, run: Path) -> Job:
    values = figures_values(config)
    stage = figures.tables.figures_stage([run], run_folder(values["output"]))
    return Job(FIGURES, stage.folder / FIGURES, values, [stage])

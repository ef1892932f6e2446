"""The runner: notebooks over feedbacks x methods, headless, feedbacks side by side, resumable by manifest.

python -m c3po_utils.batch notebooks/params/demo.yaml [key=value ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt
from tqdm.auto import tqdm

from c3po_utils import parameters
from c3po_utils.adapters import lora_config
from c3po_utils.evaluate import eval_stage, figures_stage, open_judge, refuse_unscored, trained_methods
from c3po_utils.feedback import FEEDBACK_FOLDER, Feedback, feedback_set, load_feedbacks, select
from c3po_utils.finetune import TrainSettings, train_stage
from c3po_utils.judge import Judge
from c3po_utils.methods import registered
from c3po_utils.openai_chat import LIMITS
from c3po_utils.pairs import How, joint_name, pair_stage
from c3po_utils.papermill_engine import LocalKernelManager
from c3po_utils.roles import estimate, open_roles
from c3po_utils.runs import LEDGER, ROOT, Stage, run_folder, shown, write_json
from c3po_utils.sample import SampleSettings, feedback_id, find_feedback, find_prompts, sample_stage
from c3po_utils.text import nearest

NOTEBOOKS = ROOT / "notebooks"
PAIRS = "07_two_feedbacks.ipynb"


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
    pairs: list[tuple[str, str]] = []  # ids of two feedbacks each, to be put into one model
    pair_methods: list[str] | None = None  # all that are trained when left out
    pair_how: list[How] = ["add"]  # `add` their adapters, train one adapter `joint`ly


def read_config(path: Path | str) -> dict[str, Any]:
    """A run's YAML over the file that its `base` names, beside it, if it has one."""
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    base = values.pop("base", None)
    return {**read_config(Path(path).parent / base), **values} if base else values


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
    """The run's jobs: chains that may run side by side, in phases that may not: feedbacks, then pairs, then figures.

    Each job is made when its turn comes, because it looks at what earlier ones wrote.
    """
    run = run_folder(config.run)
    return [
        [_feedback_jobs(config, run, name) for name in feedback_names(config)],
        [_pair_jobs(config, run, *each) for each in pair_runs(config)],
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


def _pair_jobs(config: RunConfig, run: Path, pair: list[str], method: str, how: How) -> Iterator[Job]:
    if how == "joint":
        yield train_job(config, run, joint_name(pair), method)
    yield pair_job(config, run, pair, method, how)


def _figures_jobs(config: RunConfig, run: Path) -> Iterator[Job]:
    yield figures_job(config, run)


def _records(config: RunConfig) -> list[Feedback]:
    return select(load_feedbacks(feedback_set(config.feedback_set)), ids=config.feedbacks)


def feedback_names(config: RunConfig) -> list[str]:
    """What the notebooks take as `feedback`: `file.yaml#id` for each feedback of the run."""
    path, ids = feedback_set(config.feedback_set), [feedback.id for feedback in _records(config)]
    return ids if path.parent == FEEDBACK_FOLDER else [f"{path.resolve()}#{id}" for id in ids]


def pair_runs(config: RunConfig) -> list[tuple[list[str], str, How]]:
    """(what notebooks take as `feedbacks`, method, how) of every pair of the run.

    Raises:
        ValueError: a pair of a feedback that is not in the run, or of one feedback twice.
    """
    names = {feedback_id(name): name for name in feedback_names(config)} if config.pairs else {}
    for pair in config.pairs:
        for id in pair:
            if id not in names:
                raise ValueError(f"pairs: {id!r} is no feedback of this run; {nearest(id, names)}")
        if len(set(pair)) < 2:
            raise ValueError(f"pairs: expected two different feedbacks, found {list(pair)}")
    methods = trained_methods(config.methods if config.pair_methods is None else config.pair_methods)
    pairs = [[names[id] for id in pair] for pair in config.pairs]
    return [(pair, method, how) for pair in pairs for method in methods for how in config.pair_how]


def _resolved(notebook: str, given: dict[str, Any]) -> dict[str, Any]:
    return parameters.resolve(NOTEBOOKS / notebook, given)


def _fields(settings: type, values: dict[str, Any]) -> dict[str, Any]:
    return {entry.name: values[entry.name] for entry in fields(settings) if entry.name in values}


def _sample_values(config: RunConfig, name: str) -> tuple[dict[str, Any], SampleSettings]:
    values = _resolved("01_sample.ipynb", {"run": config.run, "feedback": name, **config.sample})
    parameters.checked(values["limits"], LIMITS, "limit")
    return values, SampleSettings.of(values["options"], **_fields(SampleSettings, values))


def sample_job(config: RunConfig, run: Path, name: str) -> Job:
    values, settings = _sample_values(config, name)
    stage = sample_stage(run, find_feedback(name), find_prompts(name, settings), settings)
    return Job("01_sample.ipynb", stage.folder / "01_sample.ipynb", values, [stage])


def estimates(config: RunConfig) -> pd.DataFrame:
    """What sampling would still take at most, by feedback and role; nothing is asked."""
    run, tables = run_folder(config.run), {}
    for name in feedback_names(config):
        values, settings = _sample_values(config, name)
        record, given = find_feedback(name), find_prompts(name, settings)
        cast = open_roles(settings, run / LEDGER, values["limits"])
        stage = sample_stage(run, record, given, settings)
        tables[record.id] = estimate(cast, record, given, settings, stage)
    table = pd.concat(tables, names=["feedback", "role"])
    table.loc[("all", ""), :] = table.drop(columns="model").sum(skipna=False)
    return table


def _train_values(config: RunConfig, name: str, method: str) -> tuple[dict[str, Any], TrainSettings]:
    overrides = config.train_methods
    given = {**config.train, **overrides.get(registered(method), {}), **overrides.get(method, {})}
    values = _resolved("02_train.ipynb", {"run": config.run, "feedback": name, "method": method, **given})
    return values, TrainSettings(**_fields(TrainSettings, values))


def train_job(config: RunConfig, run: Path, name: str, method: str) -> Job:
    values, settings = _train_values(config, name, method)
    stage = train_stage(run, feedback_id(name), settings)
    return Job("02_train.ipynb", stage.folder / "02_train.ipynb", values, [stage])


def _evaluate_values(config: RunConfig, run: Path, name: str) -> tuple[dict[str, Any], Judge | None]:
    given = {"run": config.run, "feedback": name, "methods": config.methods, **config.evaluate}
    values = _resolved("03_evaluate.ipynb", given)
    return values, open_judge(run, values["judge_model"], values["judge_helpfulness"], values["limits"])


def evaluate_job(config: RunConfig, run: Path, name: str) -> Job:
    values, judge = _evaluate_values(config, run, name)
    stages = [eval_stage(run, feedback_id(name), method, judge) for method in config.methods]
    return Job("03_evaluate.ipynb", run / "eval" / feedback_id(name) / "03_evaluate.ipynb", values, stages)


def pair_job(config: RunConfig, run: Path, pair: list[str], method: str, how: How) -> Job:
    judging = {key: config.evaluate[key] for key in ("judge_model", "limits") if key in config.evaluate}
    values = _resolved(PAIRS, {"run": config.run, "feedbacks": pair, "method": method, "how": how, **judging})
    judge = open_judge(run, values["judge_model"], limits=values["limits"])
    stage = pair_stage(run, [feedback_id(name) for name in pair], method, how, judge)
    return Job(PAIRS, stage.folder / PAIRS, values, [stage])


def _figures_values(config: RunConfig) -> dict[str, Any]:
    return _resolved("04_figures.ipynb", {"runs": [config.run], "output": f"{config.run}/figures", **config.figures})


def figures_job(config: RunConfig, run: Path) -> Job:
    values = _figures_values(config)
    stage = figures_stage([run], run_folder(values["output"]))
    return Job("04_figures.ipynb", stage.folder / "04_figures.ipynb", values, [stage])


def check(config: RunConfig) -> None:
    """Raise now what would otherwise be found after hours of sampling and training.

    Raises:
        KeyError: no such method, or setting of one.
        ValueError: a parameter, limit or pair that cannot be meant; a method that starts from one which comes later or
            not at all; a feedback that nothing can score.
    """
    run, names, methods = run_folder(config.run), feedback_names(config), trained_methods(config.methods)
    pair_runs(config)
    _figures_values(config)
    _sample_values(config, names[0])
    for place, method in enumerate(methods):
        settings = _train_values(config, names[0], method)[1]
        lora_config(**settings.lora)
        start = settings.objective.start
        if start and start not in methods[:place]:
            raise ValueError(f"method {method!r} starts from {start!r}: name that before it in `methods`")
    _, judge = _evaluate_values(config, run, names[0])
    for feedback in _records(config):
        refuse_unscored(feedback, judge)


def execute(job: Job) -> None:
    """Run one notebook headlessly; its output is stored beside its data, also when it fails.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
    """
    job.output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        NOTEBOOKS / job.notebook,
        job.output,
        parameters=job.parameters,
        resources={"metadata": {"path": str(NOTEBOOKS)}},  # papermill's `cwd` would change this process's own
        progress_bar=False,
        kernel_name="python3",
    )


def run_batch(config: RunConfig) -> None:
    """Execute what is not done yet, with one progress bar over all jobs.

    What can be known to be wrong is raised first, see `check`. A notebook that fails ends its feedback's chain; the
    other feedbacks are finished before it is raised.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
        ExceptionGroup: several notebooks failed.
    """
    check(config)
    total = len(feedback_names(config)) * (2 + len(trained_methods(config.methods))) + 1
    total += sum(2 if how == "joint" else 1 for *_, how in pair_runs(config))
    start, at_work = time.monotonic(), []
    with tqdm(total=total, desc=config.run, unit="notebook", file=sys.stderr) as bar:

        def work(jobs: Iterator[Job]) -> None:
            for job in jobs:
                at_work.append(job.label)
                bar.set_postfix_str(", ".join(at_work))
                try:
                    if not job.done:
                        execute(job)
                finally:
                    at_work.remove(job.label)
                bar.update()

        with _cores_shared(config.workers):
            for jobs in phases(config):
                _side_by_side(work, jobs, config.workers)
    write_json(
        run_folder(config.run) / "batch.json",
        {"config": config.model_dump(), "wall_s": round(time.monotonic() - start, 1)},
    )


def _side_by_side(work: Callable[[Iterator[Job]], None], chains: Sequence[Iterator[Job]], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, jobs) for jobs in chains]
        try:
            wait(futures)
        except BaseException:  # Ctrl-C reaches this thread alone
            pool.shutdown(wait=False, cancel_futures=True)
            LocalKernelManager.kill_all()
            raise
    errors = [error for future in futures if (error := future.exception())]
    if len(errors) > 1:
        raise ExceptionGroup(f"{len(errors)} of {len(futures)} chains of notebooks failed", errors)
    for error in errors:
        raise error


@contextlib.contextmanager
def _cores_shared(workers: int) -> Iterator[None]:
    """Kernels started meanwhile use their share of the cores: threads beyond the cores make torch many times slower."""
    if workers == 1 or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m c3po_utils.batch", description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, help="a run's YAML, such as notebooks/params/demo.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, over the YAML")
    parser.add_argument("--estimate", action="store_true", help="only say what sampling would take: calls, tokens, USD")
    parser.add_argument("--figures-only", action="store_true", help="tables and figures again, from stored scores")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    if options.estimate:
        print(estimates(config).to_string(na_rep="-", float_format="{:,.2f}".format))
        return
    figures = figures_job(config, run_folder(config.run))
    if options.figures_only:
        execute(figures)
    else:
        run_batch(config)
    folder = figures.stages[0].folder
    print((folder / "table2.md").read_text(), "figures:", sep="\n")
    print(*sorted(f"  {shown(path)}" for path in folder.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()

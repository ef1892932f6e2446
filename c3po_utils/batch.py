"""The runner: notebooks over feedbacks x methods, headless, one at a time, resumable by manifest.

python -m c3po_utils.batch notebooks/params/demo.yaml [key=value ...]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import papermill
import yaml
from pydantic import BaseModel, ConfigDict
from tqdm.auto import tqdm

from c3po_utils import parameters
from c3po_utils.evaluate import eval_stage, figures_stage, trained_methods
from c3po_utils.feedback import FEEDBACK_FOLDER, feedback_set, load_feedbacks, select
from c3po_utils.finetune import TrainSettings, train_stage
from c3po_utils.methods import registered
from c3po_utils.runs import ROOT, Stage, run_folder, shown, write_json
from c3po_utils.sample import SampleSettings, feedback_id, find_feedback, find_prompts, sample_stage

NOTEBOOKS = ROOT / "notebooks"


class RunConfig(BaseModel):
    """A run's YAML: what differs from the notebooks' own defaults."""

    model_config = ConfigDict(extra="forbid")

    run: str
    feedback_set: str = "embedded"  # a set in feedback/, or the path of a YAML file
    feedbacks: list[str] | None = None  # ids; all of the set when left out
    methods: list[str]
    sample: dict[str, Any] = {}
    train: dict[str, Any] = {}  # for every trained method
    train_methods: dict[str, dict[str, Any]] = {}  # for one method, or one variant `method@label`, over `train`
    figures: dict[str, Any] = {}


def read_config(path: Path | str) -> dict[str, Any]:
    """A run's YAML over the file that its `base` names, beside it, if it has one."""
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    base = values.pop("base", None)
    return {**read_config(Path(path).parent / base), **values} if base else values


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's settings from YAML, with `key=value` overrides (value in YAML) on top."""
    values = read_config(path)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise SystemExit(f"override {override!r}: expected key=value")
        values[key] = yaml.safe_load(value)
    return RunConfig.model_validate(values)


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


def plan(config: RunConfig) -> Iterator[Job]:
    """The run's jobs in order; each is made when its turn comes, because it looks at what earlier jobs wrote."""
    run = run_folder(config.run)
    for name in feedback_names(config):
        yield sample_job(config, run, name)
        for method in trained_methods(config.methods):
            yield train_job(config, run, name, method)
        yield evaluate_job(config, run, name)
    yield figures_job(config, run)


def feedback_names(config: RunConfig) -> list[str]:
    """What the notebooks take as `feedback`: `file.yaml#id` for each feedback of the run."""
    path = feedback_set(config.feedback_set)
    ids = [feedback.id for feedback in select(load_feedbacks(path), ids=config.feedbacks)]
    return ids if path.parent == FEEDBACK_FOLDER else [f"{path.resolve()}#{id}" for id in ids]


def _resolved(notebook: str, given: dict[str, Any]) -> dict[str, Any]:
    return parameters.resolve(NOTEBOOKS / notebook, given)


def _fields(settings: type, values: dict[str, Any]) -> dict[str, Any]:
    return {entry.name: values[entry.name] for entry in fields(settings)}


def sample_job(config: RunConfig, run: Path, name: str) -> Job:
    values = _resolved("01_sample.ipynb", {"run": config.run, "feedback": name, **config.sample})
    settings = SampleSettings(**_fields(SampleSettings, values))
    stage = sample_stage(run, find_feedback(name), find_prompts(name), settings)
    return Job("01_sample.ipynb", stage.folder / "01_sample.ipynb", values, [stage])


def train_job(config: RunConfig, run: Path, name: str, method: str) -> Job:
    overrides = config.train_methods
    given = {**config.train, **overrides.get(registered(method), {}), **overrides.get(method, {})}
    values = _resolved("02_train.ipynb", {"run": config.run, "feedback": name, "method": method, **given})
    stage = train_stage(run, feedback_id(name), TrainSettings(**_fields(TrainSettings, values)))
    return Job("02_train.ipynb", stage.folder / "02_train.ipynb", values, [stage])


def evaluate_job(config: RunConfig, run: Path, name: str) -> Job:
    given = {"run": config.run, "feedback": name, "methods": config.methods}
    values = _resolved("03_evaluate.ipynb", given)
    stages = [eval_stage(run, feedback_id(name), method) for method in config.methods]
    return Job("03_evaluate.ipynb", run / "eval" / feedback_id(name) / "03_evaluate.ipynb", values, stages)


def figures_job(config: RunConfig, run: Path) -> Job:
    values = _resolved("04_figures.ipynb", {"runs": [config.run], "output": f"{config.run}/figures", **config.figures})
    stage = figures_stage([run], run_folder(values["output"]))
    return Job("04_figures.ipynb", stage.folder / "04_figures.ipynb", values, [stage])


def execute(job: Job) -> None:
    """Run one notebook headlessly; its output is stored beside its data, also when it fails.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
        RuntimeError: the notebook ended, yet its stage is not done.
    """
    job.output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        NOTEBOOKS / job.notebook,
        job.output,
        parameters=job.parameters,
        cwd=NOTEBOOKS,
        progress_bar=False,
        kernel_name="python3",
    )


def run_batch(config: RunConfig) -> None:
    """Execute what is not done yet, with one progress bar over all jobs."""
    total = len(feedback_names(config)) * (2 + len(trained_methods(config.methods))) + 1
    start = time.monotonic()
    with tqdm(total=total, desc=config.run, unit="notebook", file=sys.stderr) as bar:
        for job in plan(config):
            label = " ".join(str(job.parameters[key]) for key in ("feedback", "method") if key in job.parameters)
            bar.set_postfix_str(f"{job.notebook.removesuffix('.ipynb')} {label}")
            if not job.done:
                execute(job)
            bar.update()
    write_json(
        run_folder(config.run) / "batch.json",
        {"config": config.model_dump(), "wall_s": round(time.monotonic() - start, 1)},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m c3po_utils.batch", description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, help="a run's YAML, such as notebooks/params/demo.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, over the YAML")
    parser.add_argument("--figures-only", action="store_true", help="tables and figures again, from stored scores")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
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

"""The runner: notebooks over feedbacks x methods, headless, feedbacks side by side, resumable by manifest.

python -m c3po_utils.runs.batch demo [key=value ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import papermill
from tqdm.auto import tqdm

from c3po_utils import training  # as a room: its heavy parts are imported when they are used
from c3po_utils.evaluation import evaluate
from c3po_utils.runs import files, jobs
from c3po_utils.runs.jobs import NOTEBOOKS, Job, RunConfig
from c3po_utils.runs.papermill_engine import LocalKernelManager
from c3po_utils.runs.stage import run_folder, shown


def check(config: RunConfig) -> None:
    """Raise now what would otherwise be found after hours of sampling and training.

    Raises:
        KeyError: no such method, or setting of one.
        ValueError: a parameter or limit that cannot be meant; a method that starts from one which comes later or
            not at all; a feedback that nothing can score.
    """
    run, names, methods = run_folder(config.run), jobs.feedback_names(config), training.trained_methods(config.methods)
    jobs.two_feedbacks_runs(config)
    jobs.figures_values(config)
    jobs.sample_values(config, names[0])
    for place, method in enumerate(methods):
        settings = jobs.train_values(config, names[0], method)[1]
        training.adapters.lora_config(**settings.lora)
        start = settings.objective.start
        if start and start not in methods[:place]:
            raise ValueError(f"method {method!r} starts from {start!r}: name that before it in `methods`")
    _, judge = jobs.evaluate_values(config, run, names[0])
    for feedback in jobs.selected(config):
        evaluate.refuse_unscored(feedback, judge)


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


def run_notebooks(config: RunConfig) -> None:
    """Execute what is not done yet, with one progress bar over all jobs.

    What can be known to be wrong is raised first, see `check`. A notebook that fails ends its feedback's chain; the
    other feedbacks are finished before it is raised.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
        ExceptionGroup: several notebooks failed.
    """
    check(config)
    total = len(jobs.feedback_names(config)) * (2 + len(training.trained_methods(config.methods))) + 1
    total += sum(2 if how == "joint" else 1 for *_, how in jobs.two_feedbacks_runs(config))
    start, at_work = time.monotonic(), []
    with tqdm(total=total, desc=config.run, unit="notebook", file=sys.stderr) as bar:

        def work(chain: Iterator[Job]) -> None:
            for job in chain:
                at_work.append(job.label)
                bar.set_postfix_str(", ".join(at_work))
                try:
                    if not job.done:
                        execute(job)
                finally:
                    at_work.remove(job.label)
                bar.update()

        with _cores_shared(config.workers):
            for chains in jobs.phases(config):
                _side_by_side(work, chains, config.workers)
    done = {"config": config.model_dump(), "wall_s": round(time.monotonic() - start, 1)}
    files.write_json(run_folder(config.run) / "run.json", done)


def _side_by_side(work: Callable[[Iterator[Job]], None], chains: Sequence[Iterator[Job]], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, chain) for chain in chains]
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
    parser = argparse.ArgumentParser(prog="python -m c3po_utils.runs.batch", description=__doc__.split("\n")[0])
    parser.add_argument("config", help="a run's YAML, or the name of one in notebooks/params/runs, such as demo")
    parser.add_argument("overrides", nargs="*", help="key=value, over the YAML")
    parser.add_argument("--estimate", action="store_true", help="only say what sampling would take: calls, tokens, USD")
    parser.add_argument("--figures-only", action="store_true", help="tables and figures again, from stored scores")
    options = parser.parse_intermixed_args(arguments)
    config = jobs.load_config(options.config, options.overrides)
    if options.estimate:
        print(jobs.estimates(config).to_string(na_rep="-", float_format="{:,.2f}".format))
        return
    figures = jobs.figures_job(config, run_folder(config.run))
    if options.figures_only:
        execute(figures)
    else:
        run_notebooks(config)
    folder = figures.stages[0].folder
    print((folder / "table2.md").read_text(), "figures:", sep="\n")
    print(*sorted(f"  {shown(path)}" for path in folder.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()

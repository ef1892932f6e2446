"""The runner: notebooks over feedbacks x methods, headless, feedbacks side by side, resumable by manifest."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import papermill
from tqdm.auto import tqdm

from c3po_utils import training  # as a room: its heavy parts are imported when they are used
from c3po_utils.runs import files, jobs
from c3po_utils.runs.check import refuse
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.jobs import NOTEBOOKS, Job
from c3po_utils.runs.papermill_engine import LocalKernelManager
from c3po_utils.runs.stage import run_folder


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
    """Refuse what can be known to be wrong, or lacking (`check.refuse`); else as `run_checked`."""
    refuse(config)
    run_checked(config)


def run_checked(config: RunConfig) -> None:
    """Execute what is not done yet, with one progress bar over all jobs.

    A notebook that fails ends its feedback's chain; the other feedbacks are finished before it is raised.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
        ExceptionGroup: several notebooks failed.
    """
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


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, as a scheduler sends it, ends a run as Ctrl-C does; afterwards all is as before."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _side_by_side(work: Callable[[Iterator[Job]], None], chains: Sequence[Iterator[Job]], workers: int) -> None:
    LocalKernelManager.ending = False
    with _ended_by_sigterm(), ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, chain) for chain in chains]
        try:
            wait(futures)
        except KeyboardInterrupt:  # it reaches the main thread alone
            for again in (signal.SIGINT, signal.SIGTERM):  # pressed once more, it must not keep kernels from ending
                signal.signal(again, signal.SIG_IGN)
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

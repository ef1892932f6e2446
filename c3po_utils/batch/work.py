"""The one body of every job: executors call `run_task` in a process of theirs, and need nothing else.

The machine must have the package, the run's folder and what the run's settings name (models, keys in its environment).
"""

from __future__ import annotations

import socket
import time

import papermill
from nbclient.exceptions import DeadKernelError

from c3po_utils.batch import share
from c3po_utils.batch.graph import Node, find
from c3po_utils.batch.tasks import Outcome, Task
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.jobs import NOTEBOOKS, Job


def run_task(task: Task) -> Outcome:
    """Do one job of a run, unless its manifests say that it is done; never raises.

    Blocks until the notebook has ended. The calling thread should be its process's main one, or the process's only
    task: settings of kernels are environment variables (CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS) of the process.
    """
    try:
        config = RunConfig.model_validate(task.config)
        node = find(config, task.name)
        if not task.store:
            return run_node(node)
        with share.around_job(task.store, config, node) as publish:
            outcome = run_node(node)
            if outcome.status == "done":
                publish()
            return outcome
    except Exception as error:
        return Outcome(task.name, "failed", f"{type(error).__name__}: {error}", host=socket.gethostname())


def run_node(node: Node) -> Outcome:
    """Do a node's job, unless it is done; what goes wrong is in the outcome."""
    start = time.monotonic()
    status, error = "done", ""
    try:
        if not node.done:
            execute(node.make())
            if not node.done:
                raise RuntimeError("the notebook ended, but its stage is not done")
    except DeadKernelError as dead:
        status, error = "lost", f"the kernel was killed: {dead}"
    except papermill.PapermillExecutionError as failure:
        status, error = "failed", f"{failure.ename}: {failure.evalue}"
    except Exception as failure:
        status, error = "failed", f"{type(failure).__name__}: {failure}"
    return Outcome(node.name, status, error, round(time.monotonic() - start, 1), socket.gethostname())


def execute(job: Job) -> None:
    """Run one notebook headlessly; its output is stored beside its data, also when it fails.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
    """
    job.output.parent.mkdir(parents=True, exist_ok=True)
    if not job.reads_only:
        _execute(job)
        return
    with job.stages[0]:
        _execute(job)


def _execute(job: Job) -> None:
    papermill.execute_notebook(
        NOTEBOOKS / job.notebook,
        job.output,
        parameters=job.parameters,
        resources={"metadata": {"path": str(NOTEBOOKS)}},  # papermill's `cwd` would change this process's own
        progress_bar=False,
        kernel_name="python3",
    )

"""One notebook, executed headlessly by papermill."""

from __future__ import annotations

import papermill
from nbclient.exceptions import DeadKernelError
from papermill import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from c3po_utils.runs import files
from c3po_utils.runs.jobs import NOTEBOOKS, Job

__all__ = ["DeadKernelError", "PapermillExecutionError", "execute"]


class Whole(LocalHandler):
    """Replaces an executed copy in one step: a process may be killed, with its machine, at any time."""

    def write(self, buf: str, path: str) -> None:
        files.write_atomic(path, buf)


papermill_io.register("/", Whole())  # for absolute paths, such as those of jobs


def execute(job: Job) -> None:
    """Run a job's notebook; its output is stored beside its data, also when it fails.

    Raises:
        PapermillExecutionError: a cell failed; the executed copy shows where.
        DeadKernelError: its kernel was killed.
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

"""The one body of every job: executors call `run_task` in a process of theirs, and need nothing else.

The machine must have the package, the run's folder and what the run's settings name (models, keys in its environment).
"""

from __future__ import annotations

import socket
import time

from c3po_utils.batch import share
from c3po_utils.batch.graph import Node, find, graph
from c3po_utils.batch.tasks import Outcome, Task
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.progress import telling
from c3po_utils.runs.remote import StoreError
from c3po_utils.runs.stage import run_folder


def run_task(task: Task) -> Outcome:
    """Do one job of a run, unless its manifests say that it is done; never raises.

    Blocks until the notebook has ended. Kernels take their settings (CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS) from this
    process's environment, where their progress file is named too: one task at a time in a process.
    """
    try:
        config = RunConfig.model_validate(task.config)
        run, nodes = run_folder(config.run), graph(config)
        node = find(nodes, task.name, config.run)
        with telling(run, task.name):
            if not task.store:
                return run_node(node)
            with share.around_job(task.store, run, nodes, node) as publish:
                outcome = run_node(node)
                if outcome.status == "done":
                    publish()
                return outcome
    except StoreError as error:  # what was done lies here: the next try has only to publish it
        return Outcome(task.name, "lost", str(error), host=socket.gethostname())
    except Exception as error:
        return Outcome(task.name, "failed", f"{type(error).__name__}: {error}", host=socket.gethostname())


def run_node(node: Node) -> Outcome:
    """Do a node's job, unless it is done; what goes wrong is in the outcome."""
    from c3po_utils.batch import notebook  # papermill takes a second, which drivers need not wait

    start = time.monotonic()
    status, error = "done", ""
    try:
        if not node.done:
            notebook.execute(node.make())
            if not node.done:
                raise RuntimeError("the notebook ended, but its stage is not done")
    except notebook.DeadKernelError as dead:
        status, error = "lost", f"the kernel was killed: {dead}"
    except notebook.PapermillExecutionError as failure:
        status, error = "failed", f"{failure.ename}: {failure.evalue}"
    except Exception as failure:
        status, error = "failed", f"{type(failure).__name__}: {failure}"
    return Outcome(node.name, status, error, round(time.monotonic() - start, 1), socket.gethostname())

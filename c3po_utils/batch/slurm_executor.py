"""Jobs on a Slurm cluster (extra `slurm`), through submitit: job arrays, requeued when they are preempted.

The machine that drives must reach sbatch, squeue and scancel; it and the nodes share the disk with the package, its
Python and the folder of submissions.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from c3po_utils.batch.tasks import Outcome, Resources, Task, stopped
from c3po_utils.batch.work import run_task
from c3po_utils.runs.parameters import ParameterError, nearest
from c3po_utils.runs.stage import run_folder

GATHER_S = 0.5  # tasks that are submitted one after another become one array
STATES_S = 5.0  # between questions to the scheduler; results are seen without it
UNSEEN = 3  # times in a row that a job is no longer queued and has no result, before it is lost: shared disks lag
SLOTS = 256
# submitit takes each signal for the limit's where that is ten minutes or less.
LIMIT = "its time limit, or preempted with a limit of ten minutes or less: raise `time_min`"
# What submitit leaves as a job's result where Slurm requeues it as well: its own call is ended with the job.
REQUEUE = "'scontrol', 'requeue'"
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
NEVER = {  # reasons to wait that time does not mend: without a word, such jobs wait for ever
    "AccountNotAllowed",
    "AssocMaxWallDurationPerJobLimit",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSMaxWallDurationPerJobLimit",
    "QOSNotAllowed",
}


class SlurmExecutor:
    """Submits tasks that come together, and ask for the same, as one job array.

    A job that is preempted, or whose node fails, is requeued by Slurm and starts again; what else ends it without a
    result (its time limit, scancel, memory) makes its task `lost`.

    Args:
        slots: tasks in the queue at one time, waiting or running; 0: 256.
        folder: of submissions and logs, on the shared disk; empty: `slurm` in the run's folder.
        time_min: limit of each job in minutes; a job that ends at it is lost, and tried again by the driver.
        requeues: times that Slurm may start a job again before its task fails.
        cpus, gpus, memory_gib: asked for each task, where it does not ask for more itself.
        python: command that starts Python on the nodes; empty: this one's path.
        body: what is done with a task, on the node.
        sbatch: any other of submitit's parameters: partition, account, qos, constraint, setup (lines of shell, such as
            ["module load cuda"]), array_parallelism (of an array at one time), additional_parameters.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        ParameterError: no Slurm on this machine, or a parameter that submitit does not have.
    """

    def __init__(
        self,
        slots: int = 0,
        *,
        folder: str = "",
        time_min: int = 60,
        requeues: int = 3,
        cpus: int = 1,
        gpus: int = 0,
        memory_gib: float = 0,
        python: str = "",
        body: Callable[[Task], Outcome] = run_task,
        **sbatch: Any,
    ):
        import submitit

        _refuse_unknown(sbatch, submitit.SlurmExecutor._valid_parameters())
        self.submitit, self.slots = submitit, slots or SLOTS
        self.folder, self.python = folder, python or sys.executable
        self.least = Resources(cpus, gpus, memory_gib)
        self.body = partial(_on_node, body, requeues)
        self.sbatch = {"job_name": "c3po", "time": time_min, **sbatch}
        self.sbatch["additional_parameters"] = {"requeue": True, **sbatch.get("additional_parameters", {})}
        self._waiting: list[tuple[Task, Future[Outcome]]] = []
        self._jobs: dict[str, tuple[Any, Task, Future[Outcome]]] = {}  # by Slurm's id
        self._unseen: dict[str, int] = {}
        self._changed, self._ended = threading.Lock(), threading.Event()
        threading.Thread(target=self._attend, daemon=True).start()

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._changed:
            if self._ended.is_set():
                future.set_result(stopped(task))
            else:
                self._waiting.append((task, future))
        return future

    def stop(self) -> None:
        self._ended.set()
        with self._changed:
            waiting, self._waiting = self._waiting, []
            jobs, self._jobs = self._jobs, {}
        if jobs:
            _command("scancel", *jobs)
        for task, future in [*waiting, *((task, future) for _, task, future in jobs.values())]:
            future.set_result(stopped(task))

    def _attend(self) -> None:
        asked = 0.0
        while not self._ended.wait(GATHER_S):
            states = None
            if self._jobs and time.monotonic() - asked > STATES_S:
                asked, states = time.monotonic(), _states()
            with self._changed:
                if self._ended.is_set():
                    return
                try:
                    self._send()
                    self._collect()
                    self._look(states)
                except Exception as error:  # a thread that ends would leave the driver waiting for ever
                    self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        for id, (_, task, future) in list(self._jobs.items()):
            _command("scancel", id)
            self._settle(id, Outcome(task.name, "failed", f"{type(error).__name__}: {error}"), future)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        by_resources = [(str(task.resources.at_least(self.least)), task, future) for task, future in waiting]
        for _, group in groupby(sorted(by_resources, key=lambda one: one[0]), key=lambda one: one[0]):
            self._send_array([(task, future) for _, task, future in group])

    def _send_array(self, group: list[tuple[Task, Future[Outcome]]]) -> None:
        tasks = [task for task, _ in group]
        try:
            jobs = self._executor(tasks[0]).map_array(self.body, tasks)
        except Exception as error:  # sbatch's own words: a partition, an account or a limit that does not exist
            for task, future in group:
                future.set_result(Outcome(task.name, "failed", f"Slurm took no job: {error}"))
            return
        for job, (task, future) in zip(jobs, group, strict=True):
            self._jobs[job.job_id] = (job, task, future)

    def _executor(self, task: Task) -> Any:
        folder = Path(self.folder) if self.folder else run_folder(task.config["run"]) / "slurm"
        executor = self.submitit.SlurmExecutor(folder, python=self.python)
        asked = task.resources.at_least(self.least)
        memory = {"mem": f"{int(asked.memory_gib * 1024)}MB"} if asked.memory_gib else {}
        gpus = {"gpus_per_node": math.ceil(asked.gpus)} if asked.gpus else {}
        executor.update_parameters(cpus_per_task=asked.cpus, **memory, **gpus, **self.sbatch)
        return executor

    def _collect(self) -> None:
        """Results that lie there."""
        for id, (job, task, future) in list(self._jobs.items()):
            if job.paths.result_pickle.exists():
                outcome = _outcome(job, task)
                if REQUEUE in outcome.error:
                    job.paths.result_pickle.unlink()
                else:
                    self._settle(id, outcome, future)

    def _look(self, states: dict[str, tuple[str, str]] | None) -> None:
        """Jobs that ended without a result, as the scheduler knows them. A question that fails is asked again."""
        for id, (job, task, future) in list(self._jobs.items()) if states is not None else ():
            state, reason = states.get(id, ("gone from the queue", ""))
            if reason in NEVER:
                _command("scancel", id)
                self._settle(id, Outcome(task.name, "failed", f"Slurm would never start it: {reason}"), future)
                continue
            self._unseen[id] = self._unseen.get(id, 0) + 1 if id not in states or state in ENDED else 0
            if self._unseen[id] >= UNSEEN and not job.paths.result_pickle.exists():
                error = f"Slurm's job {id}: {state}; log: {job.paths.stderr}"
                self._settle(id, Outcome(task.name, "lost", error), future)

    def _settle(self, id: str, outcome: Outcome, future: Future[Outcome]) -> None:
        del self._jobs[id]
        future.set_result(outcome)


def _on_node(body: Callable[[Task], Outcome], requeues: int, task: Task) -> Outcome:
    starts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if starts > requeues:
        return Outcome(task.name, "failed", f"Slurm started it {starts} times again: expected {requeues} at most")
    return body(task)


def _outcome(job: Any, task: Task) -> Outcome:
    """What the node wrote. submitit ends a job at its time limit by an error of its own inside of it."""
    error = job.exception()
    outcome = Outcome(task.name, "failed", str(error)) if error is not None else job.result()
    if outcome.status == "failed" and "UncompletedJobError" in outcome.error:
        return Outcome(task.name, "lost", f"Slurm's job {job.job_id}: {LIMIT}", outcome.wall_s)
    return outcome


def _states() -> dict[str, tuple[str, str]] | None:
    """{id: (state, reason to wait)} of this user's jobs, members of arrays alone; None: no answer came.

    Lines that are none of a job's, as plugins and Slurm's own warnings print them, are passed over.
    """
    lines = _command("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T|%r")
    if lines is None:
        return None
    parts = (line.split("|", 2) for line in lines.splitlines())
    return {part[0]: (part[1], part[2]) for part in parts if len(part) == 3}


def _command(*words: str) -> str | None:
    """Its output; None where it failed, took too long, or could not be started, as where memory is short."""
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        return subprocess.run(words, capture_output=True, text=True, timeout=4, check=True).stdout
    return None


def _refuse_unknown(sbatch: dict[str, Any], known: Iterable[str]) -> None:
    own = ["folder", "time_min", "requeues", "cpus", "gpus", "memory_gib", "python"]
    for key in sbatch:
        if key not in known:
            raise ParameterError(f"executor_settings of 'slurm': unknown {key!r} ({nearest(key, [*own, *known])})")
    if not shutil.which("sbatch"):
        raise ParameterError("executor 'slurm': expected a machine that submits jobs, found no `sbatch` on its path")

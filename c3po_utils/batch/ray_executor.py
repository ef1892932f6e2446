"""Jobs on a Ray cluster (extra `ray`): one that runs already, by its address, or one started on this machine.

Every node needs the package in the same version as here, and the run's folder: a shared disk, or the run's store.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from c3po_utils.batch.tasks import Outcome, Resources, Task, stopped
from c3po_utils.batch.work import run_task
from c3po_utils.runs.parameters import ParameterError

CONNECT_S = 5.0  # Ray itself tries for five minutes
HERE = "127.0.0.1"


class RayExecutor:
    """Runs each task in a worker of the cluster. A worker or node that dies takes its task along: it is `lost`.

    Ray itself retries nothing: the driver does, a bounded number of times. stop() leaves a cluster that was joined as
    it was found, and ends one that was started here.

    Args:
        slots: tasks at one time; 0: as many as fit on the cluster's nodes now.
        address: host:port of the cluster's head; empty: a cluster of this machine is started, on 127.0.0.1 only.
        cpus, gpus, memory_gib: asked for each task, where it does not ask for more itself. A fraction of a GPU lets
            tasks share one.
        runtime_env: Ray's own, for workers.
        environment: names of variables of this machine that workers get, too: OPENAI_API_KEY gives them a key that
            nodes lack. Their values are in no file of the run.
        body: what is done with a task, in the worker.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ParameterError: no cluster at the address, or none of its nodes has what each task asks for; a variable that
            is not set here.
    """

    def __init__(
        self,
        slots: int = 0,
        *,
        address: str = "",
        cpus: int = 1,
        gpus: float = 0,
        memory_gib: float = 0,
        runtime_env: dict[str, Any] | None = None,
        environment: list[str] | None = None,
        body: Callable[[Task], Outcome] = run_task,
    ):
        self.least = Resources(cpus, gpus, memory_gib)
        self.ray = _joined(address, _with_variables(runtime_env, environment))
        self.slots = slots or self._room()
        self.remote = self.ray.remote(max_retries=0)(body)
        self._running: dict[Future[Outcome], tuple[Task, Any]] = {}
        self._changed, self._stopped = threading.RLock(), False

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._changed:
            if self._stopped:
                future.set_result(stopped(task))
                return future
            reference = self.remote.options(name=task.name, **self._asked(task)).remote(task)
            self._running[future] = (task, reference)
        reference.future().add_done_callback(lambda ended: self._end(future, ended))
        return future

    def stop(self) -> None:
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            running, self._running = self._running, {}
        for _, reference in running.values():
            self.ray.cancel(reference, force=True)
        for future, (task, _) in running.items():
            future.set_result(stopped(task))
        self.ray.shutdown()

    def _end(self, future: Future[Outcome], ended: Future[Any]) -> None:
        with self._changed:
            task, _ = self._running.pop(future, (None, None))
        if task is not None:
            future.set_result(self._outcome(task, ended))

    def _outcome(self, task: Task, ended: Future[Any]) -> Outcome:
        error = ended.exception()
        if error is None:
            return ended.result()
        if isinstance(error, self.ray.exceptions.RayTaskError):  # of no body's: a node lacks the package, say
            return Outcome(task.name, "failed", f"{type(error.cause).__name__}: {error.cause}")
        return Outcome(task.name, "lost", f"{type(error).__name__}: {error}".strip())

    def _asked(self, task: Task) -> dict[str, Any]:
        """Ray's words for a task's resources. An estimate of memory above all nodes would let it wait for ever."""
        asked = task.resources.at_least(self.least)
        most = max((node.get("memory", 0) for node in self._nodes()), default=0)
        memory = min(asked.memory_gib * 2**30, most)
        return {"num_cpus": asked.cpus, "num_gpus": asked.gpus or None, "memory": memory or None}

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        """How many tasks that ask for the least fit on the nodes."""
        asked = {"CPU": self.least.cpus, "GPU": self.least.gpus, "memory": self.least.memory_gib * 2**30}
        wanted = {kind: amount for kind, amount in asked.items() if amount}
        room = sum(min(int(node.get(kind, 0) / wanted[kind]) for kind in wanted) for node in self._nodes())
        if not room:
            self.ray.shutdown()
            raise ParameterError(f"no node of the Ray cluster has what each task asks for: {self.least}")
        return room


def _with_variables(runtime_env: dict[str, Any] | None, names: list[str] | None) -> dict[str, Any] | None:
    """Ray's environment of workers with variables of this machine's."""
    if not names:
        return runtime_env
    for name in names:
        if name not in os.environ:
            raise ParameterError(
                f"executor_settings, environment: expected names of variables; {name!r} is not set here"
            )
    variables = ((runtime_env or {}).get("env_vars") or {}) | {name: os.environ[name] for name in names}
    return {**(runtime_env or {}), "env_vars": variables}


def _joined(address: str, runtime_env: dict[str, Any] | None) -> Any:
    """The module `ray`, connected.

    Raises:
        ParameterError: nobody listens at the address.
    """
    host = address.rpartition(":")[0] or HERE
    if host in (HERE, "localhost"):  # Ray takes the machine's outer address, where a local cluster is not reached
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if address:
        _refuse_unreachable(address)
        ray.init(address, log_to_driver=False, logging_level="warning", runtime_env=runtime_env)
    else:
        here = {"include_dashboard": False, "_node_ip_address": HERE}
        ray.init("local", log_to_driver=False, logging_level="warning", runtime_env=runtime_env, **here)
    return ray


def _refuse_unreachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"no Ray cluster at {address!r}: expected host:port of its head, as `ray start --head` prints it ({error})"
        ) from error

"""Jobs on this machine: a process for each, on a GPU of its own or on a share of the cores, as memory allows."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from c3po_utils.batch.tasks import Outcome, Task, stopped
from c3po_utils.batch.work import run_task
from c3po_utils.runs.forked_kernel import ForkedKernel
from c3po_utils.runs.limits import free_bytes, usable_cores

GATHER_S = 0.05  # tasks that are submitted one after another share the cores between them
MEMORY_S = 2.0  # how often free memory is looked at while a task waits for it
PATIENCE_S = 3.0  # for a process to end its kernel, before it is killed itself
MOST_SLOTS = 8  # of a machine without GPUs
_context = multiprocessing.get_context("forkserver")
PRELOADED = "c3po_utils.batch.preloaded"  # the module that warm kernels have imported


@dataclass
class _Running:
    process: Any
    connection: Connection
    task: Task
    cores: int

    def unused_gib(self) -> float:
        """How much of the memory that it may need it has not taken yet."""
        return max(0.0, self.task.resources.memory_gib - _resident_gib(self.process.pid))


class LocalExecutor:
    """Runs each task in a process of its own. A process that dies takes its kernel with it, and its task is `lost`.

    Args:
        slots: tasks at one time; 0: one for each GPU, or without GPUs up to 8, of one core or more.
        warm: fork kernels from a process that has the libraries, which saves seconds of each; only on Linux without
            GPUs, as a fork must not have begun to use one.
        body: what is done with a task, in the process.
    """

    def __init__(self, slots: int = 0, *, warm: bool = True, body: Callable[[Task], Outcome] = run_task):
        self.gpus, self.cores = visible_gpus(), usable_cores()
        self.slots = slots or len(self.gpus) or min(self.cores, MOST_SLOTS)
        self.warm, self.body = warm and not self.gpus and sys.platform == "linux", body
        self._waiting: deque[tuple[Task, Future[Outcome]]] = deque()
        self._running: dict[int, _Running] = {}  # by slot
        self._changed, self._stopped = threading.Condition(), False
        warm = [PRELOADED] if self.warm else []
        # It holds for this process's first executor.
        _context.set_forkserver_preload(["c3po_utils.batch.work", "c3po_utils.batch.notebook", *warm])
        threading.Thread(target=self._dispatch, daemon=True).start()

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._changed:
            if self._stopped:
                future.set_result(stopped(task))
                return future
            self._waiting.append((task, future))
            self._changed.notify_all()
        return future

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            running = list(self._running.values())
            for task, future in self._waiting:
                future.set_result(stopped(task))
            self._waiting.clear()
            self._changed.notify_all()
        for one in running:
            with contextlib.suppress(ProcessLookupError, ValueError):
                one.process.terminate()
        limit = time.monotonic() + PATIENCE_S
        for one in running:
            one.process.join(max(0.0, limit - time.monotonic()))
            if one.process.is_alive():
                one.process.kill()

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or (self._waiting and len(self._running) < self.slots))
            time.sleep(GATHER_S)
            with self._changed:
                if self._stopped:
                    return
                while self._waiting and len(self._running) < self.slots and self._fits(self._waiting[0][0]):
                    self._start()
                if self._waiting and len(self._running) < self.slots:
                    self._changed.wait(MEMORY_S)

    def _fits(self, task: Task) -> bool:
        """Whether memory is free for it beside what those that run may still take; alone, every task is tried."""
        free = free_bytes() / 2**30 - sum(one.unused_gib() for one in self._running.values())
        return not self._running or task.resources.memory_gib <= free

    def _start(self) -> None:
        slot = next(slot for slot in range(self.slots) if slot not in self._running)
        cores = self._share()
        task, future = self._waiting.popleft()
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ}  # that of now: the fork server's is older
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        try:
            ours, theirs = _context.Pipe()
            arguments = (theirs, environment, self.body, task, self.warm)
            process = _context.Process(target=_work, args=arguments, name=task.name)
            process.start()
        except (OSError, EOFError) as error:  # too many open files, or no fork server any more: others wait for us
            why = f"its process could not be started: {error or type(error).__name__}"
            future.set_result(Outcome(task.name, "lost", why, host=socket.gethostname()))
            return
        theirs.close()
        self._running[slot] = _Running(process, ours, task, cores)
        threading.Thread(target=self._attend, args=(slot, future), daemon=True).start()

    def _share(self) -> int:
        """Cores for the next task: what is free, shared among those that can start now. A lone one gets all."""
        free = self.cores - sum(one.cores for one in self._running.values())
        return max(1, free // min(len(self._waiting), self.slots - len(self._running)))

    def _attend(self, slot: int, future: Future[Outcome]) -> None:
        one = self._running[slot]
        try:
            outcome = one.connection.recv()
        except (EOFError, OSError):
            one.process.join()
            how = f"its process ended with status {one.process.exitcode}"
            outcome = Outcome(one.task.name, "lost", how, host=socket.gethostname())
        one.connection.close()
        one.process.join()
        with self._changed:
            del self._running[slot]
            self._changed.notify_all()
        future.set_result(outcome)


def _work(
    connection: Connection, environment: dict[str, str], body: Callable[[Task], Outcome], task: Task, warm: bool
) -> None:
    """A task's process: it ends, and its kernel, when it is told to, or when the driver is gone."""
    from c3po_utils.runs.papermill_engine import LocalKernelManager  # papermill takes a second, which drivers need not

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver tells us
    os.environ.clear()
    os.environ.update(environment)
    if warm:  # before any thread
        LocalKernelManager.waiting = ForkedKernel(connection.close)
    signal.signal(signal.SIGTERM, lambda *_: _end())
    threading.Thread(target=_end_with_driver, args=(connection,), daemon=True).start()
    connection.send(body(task))


def _end_with_driver(connection: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    _end()


def _end() -> None:
    from c3po_utils.runs.papermill_engine import LocalKernelManager

    LocalKernelManager.kill_all()
    os._exit(1)


def visible_gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; found without starting CUDA here."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one for one in named.split(",") if one.strip() and one.strip() != "-1"]
    return [str(number) for number in range(_gpu_count())]


def _gpu_count() -> int:
    """As the driver's tool lists them: torch would take seconds, and CUDA must not start in this process."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _resident_gib(pid: int) -> float:
    """Of a process and those below it."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 2**30
    return 0.0

"""The driver: a run's jobs in an order that their needs allow, by any executor, resumable by manifest."""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice

from c3po_utils.batch import share
from c3po_utils.batch.executors import open_executor
from c3po_utils.batch.graph import Nodes, dependants, finished, graph, spared
from c3po_utils.batch.lock import driving
from c3po_utils.batch.memory import Memory
from c3po_utils.batch.progress import Watch
from c3po_utils.batch.tasks import Executor, Outcome, Resources, Task
from c3po_utils.runs import files
from c3po_utils.runs.check import refuse
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.progress import progress_file
from c3po_utils.runs.stage import RUN_FILE, run_folder

LOST_AT_MOST = 3  # times that a task may be lost with its machine before it counts as failed
TICK_S = 0.5  # between looks at the progress of jobs
SHOWN = 10  # of the jobs that were not run
DISK = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT))


class RunFailed(RuntimeError):
    """Jobs failed: `failed` by name with their errors, and `refused` by name with the failed job that they need."""

    def __init__(self, failed: dict[str, str], refused: dict[str, str]):
        self.failed, self.refused = failed, refused
        lines = [f"{len(failed)} of the run's jobs failed:", *(f"  {name}: {error}" for name, error in failed.items())]
        if refused:
            lines.append(f"not run, because they need one that failed: {len(refused)}")
            lines += [f"  {name} (needs {cause})" for name, cause in islice(refused.items(), SHOWN)]
        if len(refused) > SHOWN:
            lines.append(f"  and {len(refused) - SHOWN} more")
        super().__init__("\n".join([*lines, "what is done is kept: run again for the rest"]))


def run_notebooks(config: RunConfig) -> None:
    """Refuse what can be known to be wrong, or lacking (`check.refuse`); else as `run_checked`."""
    refuse(config)
    run_checked(config)


def run_checked(config: RunConfig, nodes: Nodes | None = None, take_over: bool = False) -> None:
    """Do what is not done yet of a run whose settings were checked, by the executor that they name.

    Args:
        nodes: those of the run's graph that are wanted; all when left out.
        take_over: drive it though another driver may; that one stops.

    Raises:
        RunTaken: another driver has this run.
        As `drive`, `open_executor` and, for a run with a store, `share.around_run`.
    """
    start = time.monotonic()
    place = config.store or str(run_folder(config.run))
    with driving(place, take_over) as taken:
        with share.around_run(config):
            executor = open_executor(config)
            try:
                drive(config, graph(config) if nodes is None else nodes, executor, taken)
            finally:
                executor.stop()
        if finished(every := graph(config)) == set(every):
            whole = {"config": config.model_dump(), "wall_s": round(time.monotonic() - start, 1)}
            files.write_json(run_folder(config.run) / RUN_FILE, whole)


def drive(config: RunConfig, nodes: Nodes, executor: Executor, interrupted: threading.Event | None = None) -> None:
    """Do the nodes that are not done, as many at one time as the executor has slots, the first ones first.

    What a node needs that is not among `nodes` is taken as done. A failed job leaves the others alone; those that
    need it are refused. A task that is lost with its machine is submitted again, up to `LOST_AT_MOST` times in all.

    Raises:
        RunFailed: jobs failed; says which, with which errors, and what was therefore not run.
        OSError: the disk of the run's folder is full, or cannot be written to; what runs is stopped.
        KeyboardInterrupt: Ctrl-C, SIGTERM, or `interrupted` from elsewhere; all kernels were ended, and the next run
            goes on from what is done.
    """
    driver = Driver(config, nodes, executor, interrupted or threading.Event())
    with files.writing(run_folder(config.run)):
        run_folder(config.run).mkdir(parents=True, exist_ok=True)
    with _interrupts(driver.interrupted), Watch(run_folder(config.run), len(nodes)) as driver.watch:
        try:
            driver.run()
        except BaseException:
            executor.stop()
            for name in driver.running.values():
                progress_file(run_folder(config.run), name).unlink(missing_ok=True)
            raise
    if driver.failed:
        raise RunFailed(driver.failed, driver.refused)


class Driver:
    """The state of a run on its way: which nodes wait for how many others, which can start, which run."""

    watch: Watch

    def __init__(self, config: RunConfig, nodes: Nodes, executor: Executor, interrupted: threading.Event):
        self.config, self.nodes, self.executor = config, nodes, executor
        self.settings = config.model_dump()
        self.names = list(nodes)
        self.place = {name: place for place, name in enumerate(self.names)}
        self.dependants = dependants(nodes)
        self.missing = {name: sum(need in nodes for need in node.needs) for name, node in nodes.items()}
        self.ready = [self.place[name] for name in nodes if not self.missing[name]]  # a heap: the first ones first
        self.held: list[int] = []  # could start, but wait for the first of their kind, which says how much it takes
        self.running: dict[Future[Outcome], str] = {}
        self.interrupted = interrupted
        self.memory = Memory(config)
        self.lost: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.refused: dict[str, str] = {}

    def run(self) -> None:
        self._start()
        while self.running:
            ended, _ = wait(self.running, TICK_S, FIRST_COMPLETED)
            if self.interrupted.is_set():
                raise KeyboardInterrupt
            for future in ended:
                self._end(self.running.pop(future), future.result())
            self._start()
            self.watch.show(self.running.values())

    def _start(self) -> None:
        while self.ready and len(self.running) < self.executor.slots:
            if self.interrupted.is_set():
                raise KeyboardInterrupt
            node = self.nodes[self.names[heapq.heappop(self.ready)]]
            if node.done or spared(node, self.nodes, self.dependants):
                self._done(node.name)
                continue
            gib = self.memory.likely_gib(node)
            if not gib and any(self.nodes[name].kind == node.kind for name in self.running.values()):
                self.held.append(self.place[node.name])
                continue
            task = Task(self.settings, node.name, self.config.store, Resources(memory_gib=gib))
            self.running[self.executor.submit(task)] = node.name

    def _release(self) -> None:
        for place in self.held:
            heapq.heappush(self.ready, place)
        self.held.clear()

    def _end(self, name: str, outcome: Outcome) -> None:
        self._release()
        if outcome.status == "done":
            self._done(name)
            return
        if outcome.status == "lost":
            self.lost[name] += 1
            if self.lost[name] < LOST_AT_MOST:
                heapq.heappush(self.ready, self.place[name])
                return
        if any(reason in outcome.error for reason in DISK):
            raise OSError(f"{name}: {outcome.error}. Nothing else was started; what is done is kept")
        times = f"lost {self.lost[name]} times, at last on {outcome.host}: " if outcome.status == "lost" else ""
        self.failed[name] = times + outcome.error
        self._refuse(name, name)

    def _done(self, name: str) -> None:
        self.watch.advance()
        self.memory.learn(self.nodes[name])
        self._release()
        for other in self.dependants[name]:
            self.missing[other] -= 1
            if not self.missing[other]:
                heapq.heappush(self.ready, self.place[other])

    def _refuse(self, name: str, cause: str) -> None:
        for other in self.dependants[name]:
            if other not in self.refused:
                self.refused[other] = cause
                self._refuse(other, cause)


@contextlib.contextmanager
def _interrupts(event: threading.Event) -> Iterator[None]:
    """Ctrl-C, SIGTERM as a scheduler sends it, and SIGHUP as a closed terminal does, set the event and do no more,
    however often; later all is as before.

    Raised wherever the main thread happens to be, they would break locks, and keep kernels from being ended.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # as nohup wants it
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, lambda *_: event.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""SIGKILL at random moments, and the run that follows: nothing recorded is paid twice, and the end is the same."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from c3po_utils.runs.files import content_hash
from c3po_utils.runs.stage import ROOT, done_stages, intact
from tests.benchmarks.faults.line import Line
from tests.conftest import store_own_feedback
from tests.sampling.test_survival import bodies, paid_twice, recorded, survive
from tests.servers import Asked, Reply, Scripted, listing, scripted
from tests.tiny import save_tiny
from tests.training.test_trainer import PROBE, WEIGHTS, victim

SAMPLINGS, TRAININGS, RUNS = 10, 9, 7  # kills
NOTEBOOKS = 4  # of an undisturbed run: 01, 02, 03 and 05
DELAY_S, PATIENCE_S = 0.05, 600.0
ORPHAN_S = 15.0  # kernels look after their parents once a second


def sampling(seed: int) -> Line:
    """A run that samples from a server in a process of its own."""
    line = Line("kill: sampling through a server", seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            counts = survive(Path(folder), SAMPLINGS, categories=3, per_category=2, delay=0.1, seed=seed)
            said = ""
        except AssertionError as error:
            counts, said = {}, str(error) or "an assertion"
    line.tried, line.held = SAMPLINGS, 0 if said else SAMPLINGS
    line.counts, line.failures = counts, [said] if said else []
    return line


def trainings(seed: int) -> Line:
    """Trainings of a tiny model, each killed three times, at any moment of any step, and then run to the end."""
    rng, line = random.Random(seed), Line("kill: training", seed=seed, counts={"adapters_that_differ": 0})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_trainer"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _train(context, folder / "calm", folder / "calm_steps").join()
        for number in range(TRAININGS // 3):
            killed, steps = folder / f"killed{number}", folder / f"steps{number}"
            for _ in range(3):
                _kill_after(_train(context, killed, steps), steps, rng.randint(1, 3), rng.uniform(0, 0.05))
            start = time.monotonic()
            _train(context, killed, steps).join()
            same = all((killed / one).read_bytes() == (folder / "calm" / one).read_bytes() for one in (WEIGHTS, PROBE))
            for _ in range(3):
                line.add(f"training {number}: another adapter", same, time.monotonic() - start)
            line.counts["adapters_that_differ"] += not same
    return line


def _train(context: multiprocessing.context.BaseContext, folder: Path, steps: Path) -> multiprocessing.Process:
    process = context.Process(target=victim, args=(folder, steps))
    process.start()
    return process


def _kill_after(process: multiprocessing.Process, steps: Path, count: int, later_s: float) -> None:
    """Kill it some time after it has begun so many steps."""
    steps.touch()
    wanted = len(steps.read_text()) + count
    while len(steps.read_text()) < wanted and process.exitcode is None:
        time.sleep(0.002)
    time.sleep(later_s)
    process.kill()
    process.join()


class Notebooks:
    """A small run of notebooks on a tiny model, sampled from a scripted server, by the `c3po` command."""

    def __init__(self, folder: Path, server: Scripted, model: Path, feedback: str):
        self.folder, self.server, self.log = folder, server, folder.with_suffix(".log")
        path, _, id = feedback.rpartition("#")
        config = {
            "run": str(folder), "feedback_set": path, "feedbacks": [id], "methods": ["c3po"],
            "sample": {
                "model": str(model), "completion_model": f"openai:m@{server.url}", "categories": 3,
                "prompts_per_category": 3,
                "options": {"strategy": "revise", "best_of": 1, "max_new_tokens": 12, "system_prompt": ""},
            },
            "train": {"epochs": 1, "batch_size": 3, "lora": {"r": 4}, "training_arguments": {"bf16": False}},
        }  # fmt: skip
        self.config = folder.with_suffix(".yaml")
        self.config.write_text(yaml.safe_dump(config))

    def start(self) -> subprocess.Popen:
        with self.log.open("a") as log:
            command = [sys.executable, "-m", "c3po_utils", "run", str(self.config)]
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def products(self) -> dict[str, str]:
        """The hashes of what stages that say that they are done have made; a damaged one raises DamagedFile."""
        found = {}
        for kind in ("sample", "train", "eval"):
            for folder, manifest in done_stages(self.folder, kind):
                for name in manifest["files"]:
                    intact(folder, name)
                    if name != "log.json":  # has times in it
                        found[str((folder / name).relative_to(self.folder))] = content_hash(folder / name)
        return found


def kernels(process: subprocess.Popen) -> set[psutil.Process]:
    try:
        below = psutil.Process(process.pid).children(recursive=True)
        return {one for one in below if "ipykernel" in str(one.cmdline())}
    except psutil.NoSuchProcess:
        return set()


def _kill_run(run: Notebooks, kill_kernel: bool, later_s: float) -> list[psutil.Process]:
    """Kill a run some time after a notebook has started: its kernel in the second one, or the runner in the first.

    Returns the kernels that outlive it.
    """
    process, seen, end = run.start(), set(), time.monotonic() + PATIENCE_S
    while len(seen) < 1 + kill_kernel and process.poll() is None and time.monotonic() < end:
        seen |= kernels(process)
        time.sleep(0.05)
    time.sleep(later_s)
    seen |= kernels(process)
    for pid in {one.pid for one in seen if one.is_running()} if kill_kernel else {process.pid}:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
    return psutil.wait_procs(seen, timeout=ORPHAN_S)[1]


def _attack(run: Notebooks, rng: random.Random, each_s: float, wanted: dict[str, str]) -> Line:
    """Runner and kernel in turn, in one notebook after the other; then the run goes on to its end."""
    line, deaths = Line("kill: a run of notebooks, runner or kernel"), []
    run.server.asked.clear()
    for number in range(RUNS):
        left = _kill_run(run, bool(number % 2), rng.uniform(0, 0.6 * each_s))
        deaths.append((len(run.server.asked), recorded(run.folder)))
        false = [name for name, found in run.products().items() if wanted.get(name) != found]
        counts = {"orphan_kernels": len(left), "done_that_are_not": len(false)}
        line.add(f"kill {number}: {counts} {false}", not any(counts.values()), **counts)
    start = time.monotonic()
    assert run.start().wait(PATIENCE_S) == 0, run.log.read_text()
    line.worst, found, asked = time.monotonic() - start, run.products(), bodies(run.server)
    at_end = {
        "files_that_differ": sum(wanted[name] != found.get(name) for name in wanted),
        "paid_twice": len(paid_twice(deaths, asked)),
    }  # fmt: skip
    line.counts |= at_end
    if any(at_end.values()):
        line.held, line.failures = 0, [*line.failures, f"at the end: {at_end}"]
    return line


def _slowly(asked: Asked) -> Reply:
    """Lists where they are asked for, and else answers that differ, and fit into the tiny model's context."""
    reply = listing(asked) if "response_format" in asked.body else Reply(f"It is number {len(asked.prompt)}.")
    reply.delay = DELAY_S
    return reply


def notebooks(seed: int) -> Line:
    """An undisturbed run, and one that is killed again and again."""
    with tempfile.TemporaryDirectory() as name, scripted(_slowly) as server:
        folder = Path(name)
        model, feedback = save_tiny(folder / "tiny", steps=30), store_own_feedback(folder / "own")
        calm, start = Notebooks(folder / "calm", server, model, feedback), time.monotonic()
        assert calm.start().wait(PATIENCE_S) == 0, calm.log.read_text()
        each_s = (time.monotonic() - start) / NOTEBOOKS
        killed = Notebooks(folder / "killed", server, model, feedback)
        line = _attack(killed, random.Random(seed), each_s, calm.products())
    line.seed = seed
    return line


def trial(seed: int) -> Iterator[Line]:
    yield sampling(seed)
    yield trainings(seed)
    yield notebooks(seed)

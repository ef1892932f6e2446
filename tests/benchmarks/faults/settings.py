"""Settings that are wrong, by the command line and by papermill: one line, nothing written, no library of models."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import papermill
import yaml
from click.testing import CliRunner

from c3po_utils.cli import c3po
from c3po_utils.runs.jobs import NOTEBOOKS
from c3po_utils.runs.parameters import ParameterError
from tests.benchmarks.faults.line import Line, tried
from tests.runs.test_check import SECRET_PARAMETERS, UNSCORED, WRONG_PARAMETERS, WRONG_RUNS, wrong_run

FRESH = 8  # runs, and as many starts of papermill, each in a process of its own
MOST_S = 2.0  # where nothing else runs
AT_END = """
import atexit, sys, time
heavy = {"torch", "transformers", "openai"}
atexit.register(lambda: print("ended:", time.process_time(), *(heavy & set(sys.modules)), file=sys.stderr))
"""
COMMAND = AT_END + "from c3po_utils.cli import c3po; c3po(sys.argv[1:])"
PAPERMILL = AT_END + "from papermill.cli import papermill; papermill()"
PARAMETERS = [(notebook, given) for notebook, given, _ in WRONG_PARAMETERS] + SECRET_PARAMETERS


def _written(folder: Path, number: int) -> tuple[Path, Path]:
    """A folder to run in, with the settings of a run that is wrong; and the run's folder, which must not come to be."""
    home = folder / str(number)
    home.mkdir(exist_ok=True)
    (home / "unscored.yaml").write_text(UNSCORED)
    plain = {key: [list(pair) for pair in value] if key == "two_feedbacks" else value
             for key, value in wrong_run(home, WRONG_RUNS[number][0]).items()}  # fmt: skip
    (home / "mine.yaml").write_text(yaml.safe_dump(plain))
    return home, home / "run"


def command(folder: Path) -> Line:
    def attempt(number: str) -> bool:
        home, run = _written(folder, int(number))
        with contextlib.chdir(home):
            done = CliRunner().invoke(c3po, ["run", "mine.yaml"])
        return done.exit_code == 1 and len(done.output.splitlines()) == 1 and not run.exists()

    return tried("settings: wrong runs, by the command line", map(str, range(len(WRONG_RUNS))), attempt)


def notebooks(folder: Path) -> Line:
    def attempt(number: str) -> bool:
        (notebook, given), output = PARAMETERS[int(number)], folder / f"{number}.ipynb"
        try:
            papermill.execute_notebook(NOTEBOOKS / f"{notebook}.ipynb", output, parameters=given, progress_bar=False)
        except ParameterError as error:
            return len(str(error).splitlines()) == 1 and not output.exists()
        return False

    return tried("settings: wrong parameters and keys, by papermill", map(str, range(len(PARAMETERS))), attempt)


def _fresh(line: Line, name: str, script: str, arguments: list[str], home: Path) -> str:
    """What a new process says on standard error; the line gets its seconds and whether it kept from heavy libraries."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=home, capture_output=True, text=True)
    said, _, end = done.stderr.rpartition("ended:")
    seconds, *heavy = end.split()
    held = done.returncode != 0 and not heavy and bool(said.strip())
    line.add(f"{name}: {heavy} {said[-100:]}", held, float(seconds), over_2_s=float(seconds) > MOST_S)
    return said


def fresh(folder: Path, seed: int) -> Iterator[Line]:
    """Some of them, each in a process of its own."""
    rng, by_command = (
        random.Random(seed),
        Line("settings: wrong runs, each in a fresh process", unit="CPU s", seed=seed),
    )
    for number in rng.sample(range(len(WRONG_RUNS)), FRESH):
        home, run = _written(folder, number)
        said = _fresh(by_command, str(WRONG_RUNS[number][0]), COMMAND, ["run", "mine.yaml"], home)
        by_command.held -= len(said.strip().splitlines()) != 1 or run.exists()
    yield by_command
    by_papermill = Line("settings: wrong parameters, papermill in a fresh process", unit="CPU s", seed=seed)
    for notebook, given in rng.sample(PARAMETERS, FRESH):
        (folder / "given.yaml").write_text(yaml.safe_dump(given))
        output = folder / "out.ipynb"
        arguments = [str(NOTEBOOKS / f"{notebook}.ipynb"), str(output), "-f", str(folder / "given.yaml")]
        _fresh(by_papermill, f"{notebook} {sorted(given)}", PAPERMILL, arguments, folder)
        by_papermill.held -= output.exists()
    yield by_papermill


def trial(seed: int) -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as name:
        yield command(Path(name))
        yield notebooks(Path(name))
        yield from fresh(Path(name), seed)

"""Where each job of a run is, as its folder says."""

from __future__ import annotations

import json
import os
import time

import nbformat
from click.testing import CliRunner

from c3po_utils.batch import graph, states
from c3po_utils.cli import c3po
from c3po_utils.runs import progress
from c3po_utils.runs.config import load_config

JOB = "train/boss_signoff/c3po"


def config_of(tmp_path):
    return load_config("demo", [f"run={tmp_path}/run", "feedbacks=[boss_signoff]", "methods=[in_context, c3po, dpo]"])


def store_failed(folder) -> None:
    """An executed notebook as papermill leaves it when a cell fails."""
    cell = nbformat.v4.new_code_cell("1 / 0", execution_count=3)
    cell.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])]
    folder.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "01_sample.ipynb")


def test_a_failed_job_is_told_with_its_cell_and_what_waits_for_it(tmp_path):
    store_failed(tmp_path / "run" / "sample" / "boss_signoff")
    config = config_of(tmp_path)
    found = states.states(config, graph.graph(config))
    assert found.failed.keys() == {"sample/boss_signoff"}
    assert found.failed["sample/boss_signoff"].startswith("cell In [3]: ZeroDivisionError: division by zero (")
    assert found.waiting[JOB] == ["sample/boss_signoff"]
    told = states.told(config, found, None)
    assert f"waiting  {JOB}  for sample/boss_signoff (failed)" in told
    assert "1 failed" in told.splitlines()[0]


def test_a_running_job_is_told_with_its_bars_last_line_until_it_is_stale(tmp_path):
    config, run = config_of(tmp_path), tmp_path / "run"
    path = progress.progress_file(run, JOB)
    path.parent.mkdir(parents=True)
    state = {"job": JOB, "host": "here", "stage": "training c3po", "n": 12, "total": 40, "unit": "step", "eta_s": 51}
    path.write_text(json.dumps(state | {"since": time.time(), "wall_s": 21}))
    assert states.states(config, graph.graph(config)).running == {JOB: "training c3po 12/40, 00:51 left"}
    old = time.time() - 2 * progress.STALE_S
    os.utime(path, (old, old))
    assert states.states(config, graph.graph(config)).running == {}


def test_status_tells_wrong_settings_in_one_line(tmp_path):
    done = CliRunner().invoke(c3po, ["status", "demo", f"run={tmp_path}/run", "methods=[c3poo]"])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert "did you mean 'c3po'" in done.output


def test_status_is_short_unless_all_is_wanted_and_can_be_read_by_machines(tmp_path):
    command = ["status", "embedded", f"run={tmp_path}/run"]
    short = CliRunner().invoke(c3po, command).output
    assert "... and" in short.splitlines()[-1]
    assert short.splitlines()[-1].endswith("more waiting (--all)")
    whole = CliRunner().invoke(c3po, [*command, "--all"]).output
    assert len(whole.splitlines()) > len(short.splitlines()) > 20
    known = json.loads(CliRunner().invoke(c3po, [*command, "--json"]).output)
    assert known["waiting"]["figures"]
    assert known["done"] == []
    assert not (tmp_path / "run").exists()

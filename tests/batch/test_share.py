"""A run on machines that share only a store: stages and paid answers find their way, in a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from c3po_utils.batch import Outcome, Task, run_task
from c3po_utils.batch.driver import run_checked
from c3po_utils.batch.graph import Node, finished, graph
from c3po_utils.batch.local import LocalExecutor
from c3po_utils.batch.share import CALLS, Share, ancestors
from c3po_utils.chat.ledger import Entry, Ledger
from c3po_utils.cli import c3po
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import DamagedFile
from c3po_utils.runs.jobs import Job
from c3po_utils.runs.remote import Remote
from c3po_utils.runs.stage import LEDGER, MANIFEST, Stage
from tests.batch.toy import nodes, toy
from tests.stored_run import store_sample
from tests.whole_run import config_for

OK = Entry("ok", "", "an answer", 10, 5, price=0.5, at_most=0.5)


def machines(tmp_path: Path, url: str) -> list[tuple[Share, dict]]:
    """Two of them with a toy's nodes: `b` needs `a`."""
    found = []
    for name in ("here", "there"):
        toy(tmp_path / name, {"a": ("", "pass"), "b": ("a", "pass")})
        found.append((Share(url, tmp_path / name), nodes(tmp_path / name)))
    return found


def make(share: Share, name: str, text: str = "tea", **identity) -> None:
    with Stage(share.store.run / name, {"name": name} | identity, "out.txt") as stage:
        stage.path("out.txt").write_text(text)


def text(share: Share, name: str) -> str:
    return (share.store.run / name / "out.txt").read_text()


def test_what_is_done_here_is_there_for_the_next_machine(url, tmp_path):
    (here, ours), (there, theirs) = machines(tmp_path, url)
    make(here, "a")
    here.bring(ours.values())
    there.bring(theirs.values())
    assert finished(theirs) == {"a"}
    make(there, "b")
    there.publish(theirs["b"])
    here.bring(ours.values())
    assert finished(ours) == {"a", "b"}


def test_where_both_have_a_stage_the_stores_is_the_runs(url, tmp_path):
    (here, ours), (there, theirs) = machines(tmp_path, url)
    make(here, "a", "first")
    here.bring(ours.values())
    make(there, "a", "second")
    there.bring(theirs.values())
    assert text(there, "a") == "first"


def test_a_stage_whose_upload_failed_takes_an_outdated_ones_place(url, tmp_path):
    (here, ours), (there, theirs) = machines(tmp_path, url)
    make(here, "a", "old", seed=1)
    here.publish(ours["a"])
    make(there, "a", "new")
    there.bring(theirs.values())
    assert text(there, "a") == "new"
    here.bring(ours.values())
    assert text(here, "a") == "new"


def test_of_a_job_that_was_stopped_half_way_what_is_done_stays(url, tmp_path):
    """Two methods in one job, scored by another judge now: of the first, today's scores and not the store's."""
    share = Share(url, tmp_path / "run")
    folders = [share.store.run / name for name in ("in_context", "in_context_cot")]

    def node(judge: str) -> Node:
        stages = [Stage(folder, {"name": folder.name, "judge": judge}, "out.txt") for folder in folders]
        return Node("eval", "evaluate", (), tuple(folders), lambda: Job("03", tmp_path / "x", {}, stages))

    for folder in folders:
        make(share, folder.name, "old", judge="old")
    share.publish(node("old"))
    make(share, "in_context", "new", judge="new")
    share.bring([node("new")])
    assert [text(share, folder.name) for folder in folders] == ["new", "old"]


def test_a_damaged_stage_is_refused_as_an_input_and_else_made_anew(url, tmp_path):
    (here, ours), (there, theirs) = machines(tmp_path, url)
    make(here, "a")
    here.publish(ours["a"])
    Remote(url).write("a/out.txt", b"milk")
    with pytest.raises(DamagedFile, match=f"^{url}/a/out.txt: damaged.*Remove {url}/a/{MANIFEST}, and run again"):
        there.bring(theirs.values())
    with pytest.warns(UserWarning, match=f"{url}/a/out.txt: damaged.*It is made anew"):
        there.bring(theirs.values(), remade=True)
    assert finished(theirs) == set()
    make(there, "a")
    same = (here.store.run / "a" / MANIFEST).read_bytes()
    (there.store.run / "a" / MANIFEST).write_bytes(same)  # as if made in the same second
    there.publish(theirs["a"])
    assert Remote(url).read("a/out.txt") == b"tea"
    Remote(url).write("a/out.txt", b"milk")
    Remote(url).remove(f"a/{MANIFEST}")  # as the error said
    here.bring(ours.values())
    assert Remote(url).read("a/out.txt") == b"tea"


def test_what_a_node_needs_is_what_its_needs_need_too(tmp_path):
    given = toy(tmp_path, {name: (needs, "pass") for name, needs in {"a": "", "b": "a", "x": "", "c": "b"}.items()})
    assert [node.name for node in ancestors(given, "c")] == ["a", "b"]
    assert ancestors(given, "a") == []


def test_answers_reach_the_other_machine_while_a_job_is_at_work(url, tmp_path):
    (here, _), (there, _) = machines(tmp_path, url)
    ours = Ledger(here.ledger)
    ours.record("before", "m", "{}", OK)
    with here.exchanging(every_s=0.1):
        ours.record("during", "m", "{}", OK)
        limit = time.monotonic() + 30
        while len(Remote(url).names(CALLS)) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
        there.exchange()
        theirs = Ledger(there.ledger)
        assert set(theirs.lookup(["before", "during"])) == {"before", "during"}
        theirs.record("back", "m", "{}", OK)
        there.exchange()
    assert set(ours.lookup(["back"])) == {"back"}
    assert ours.spent() == theirs.spent() == 1.5


PAYS = """
import os, sys
from pathlib import Path
from c3po_utils.batch.share import Share
from c3po_utils.chat.ledger import Entry, Ledger
share = Share(sys.argv[1], Path(sys.argv[2]))
ledger = Ledger(share.ledger)
with share.exchanging(every_s=0.1):
    for n in range(10**6):
        ledger.record(f"k{n}", "m", "{}", Entry("ok", price=0.01, at_most=0.01))
        print(n, flush=True)
"""


def test_answers_of_a_process_that_was_killed_are_not_lost(url, tmp_path):
    (here, _), (there, _) = machines(tmp_path, url)
    command = [sys.executable, "-c", PAYS, url, str(here.store.run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while len(Remote(url).names(CALLS)) < 2:
            process.stdout.readline()
        process.kill()
        rest = process.stdout.read().split()
    last = int(rest[-1]) if rest else 0
    here.exchange()  # the machine's next job
    there.exchange()
    assert len(Ledger(there.ledger).lookup(f"k{n}" for n in range(last + 1))) == last + 1
    assert Ledger(there.ledger).spent() == pytest.approx(Ledger(here.ledger).spent())


def test_a_damaged_letter_is_left_out_and_named(url, tmp_path):
    (here, _), (there, _) = machines(tmp_path, url)
    Ledger(here.ledger).record("k", "m", "{}", OK)
    here.exchange()
    (name,) = Remote(url).names(CALLS)
    Remote(url).write(name, b"{}\n")
    with pytest.warns(UserWarning, match=f"{url}/{name}: damaged in the store"):
        there.exchange()
    assert Ledger(there.ledger).lookup(["k"]) == {}


def test_runs_without_calls_have_no_ledger(url, tmp_path):
    (here, _), _ = machines(tmp_path, url)
    here.exchange()
    assert not (here.store.run / LEDGER).exists()


def test_a_task_whose_store_cannot_be_used_is_lost_and_not_failed(connect, tmp_path, own_feedback):
    path, _, id = own_feedback.rpartition("#")
    store = "s3://nobody-made-this/run"
    config = RunConfig(run=str(tmp_path / "run"), store=store, feedback_set=path, feedbacks=[id], methods=["c3po"])
    outcome = run_task(Task(config.model_dump(), f"sample/{id}", store))
    assert outcome.status == "lost"
    assert outcome.error.startswith(f"{store}/calls: The specified bucket does not exist")


TASK = "import json, sys; from c3po_utils.batch import Task, run_task; from dataclasses import asdict;"
TASK += "print(json.dumps(asdict(run_task(Task(*json.load(sys.stdin))))))"


def run_elsewhere(task: Task) -> Outcome:
    """The body of a task on one of two machines, each with a root folder of its own."""
    root = Path(os.environ["C3PO_TEST_MACHINES"]) / str(zlib.crc32(task.name.encode()) % 2)
    done = subprocess.run(
        [sys.executable, "-c", TASK], input=json.dumps([task.config, task.name, task.store]), capture_output=True,
        text=True, env={**os.environ, "C3PO_ROOT": str(root)}, check=False,
    )  # fmt: skip
    if done.returncode:
        return Outcome(task.name, "failed", done.stderr[-2000:])
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_on_two_machines_that_share_only_a_store(url, tmp_path, tiny_folder, own_feedback, monkeypatch):
    monkeypatch.setenv("C3PO_TEST_MACHINES", str(tmp_path))
    monkeypatch.setattr("c3po_utils.runs.stage.ROOT", tmp_path / "driver")
    config = config_for("results/shared", own_feedback, str(tiny_folder), ["in_context", "c3po"])
    config = config.model_copy(update={"store": url})
    executors = []

    def two_machines(config):
        executors.append(LocalExecutor(2, body=run_elsewhere))
        return executors[-1]

    monkeypatch.setattr("c3po_utils.batch.driver.open_executor", two_machines)
    run_checked(config)
    nodes = graph(config)
    assert finished(nodes) == set(nodes)
    for root in "01":  # each did some of it, and fetched what it needed
        assert list((tmp_path / root).rglob(MANIFEST))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(MANIFEST)}
    monkeypatch.setattr("c3po_utils.runs.stage.ROOT", tmp_path / "another")
    submitted = []
    monkeypatch.setattr(LocalExecutor, "submit", lambda self, task: submitted.append(task))
    run_checked(config)  # another driver's machine, which has nothing yet
    assert not submitted
    assert finished(graph(config)) == set(nodes)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_plan_and_status_say_what_lies_in_the_store_and_bring_nothing(url, tmp_path):
    store_sample(tmp_path / "there", "plant_tip", "tiny")
    Share(url, tmp_path / "there").store.publish(tmp_path / "there" / "sample" / "plant_tip", None)
    command = ["smoke", f"run={tmp_path}/here", f"store={url}"]
    told = CliRunner().invoke(c3po, ["plan", *command]).output
    assert f"in {url}: 1 of those left" in told
    told = CliRunner().invoke(c3po, ["status", *command, "--all"]).output
    assert "0 done, 1 in the store, 0 running" in told
    assert "waiting  train/plant_tip/scd  to start" in told
    known = json.loads(CliRunner().invoke(c3po, ["status", *command, "--json"]).output)
    assert known["stored"] == ["sample/plant_tip"]
    assert not (tmp_path / "here").exists()

"""A stage on a server (a stand-in for vLLM, with real adapters) has the answers that it has here, and asks once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from c3po_utils.chat import Sampling, open_chat, request, vllm
from c3po_utils.chat.ledger import Ledger
from c3po_utils.chat.openai import served as served_chat
from c3po_utils.chat.vllm.child import free_port
from c3po_utils.evaluation import Evaluation
from c3po_utils.evaluation.evaluate import eval_stage, open_judge
from c3po_utils.runs import LEDGER, parameters
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import MANIFEST, fingerprint
from c3po_utils.sampling import SampleSettings, open_sample, stored_feedback, stored_settings
from c3po_utils.training import adapter_folder, served
from c3po_utils.training.adapters import known_as
from c3po_utils.training.stage import WEIGHTS
from tests.fake_vllm import vllm_environment
from tests.servers import Reply, scripted
from tests.stored_run import store_playground

GREEDY = Sampling(temperature=0.0, max_new_tokens=6)


@pytest.fixture
def run(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("C3PO_VLLM", str(vllm_environment(tmp_path / "vllm")))
    for name in ("C3PO_API_KEY", "C3PO_API_KEY_127_0_0_1"):
        monkeypatch.delenv(name, raising=False)
    return store_playground(tmp_path / "run", str(tiny_folder))


def test_a_server_answers_as_we_do_and_neither_asks_what_the_other_has_answered(run, tmp_path, tiny_folder):
    """Greedy answers, empty ones and prompts that cannot be answered among them."""
    name, ledgers = str(tiny_folder), [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    asked = [
        request(f"r{n}", text, system="Be brief.") for n, text in enumerate(("Is tea hot?", "Why?", " ", "long " * 300))
    ]
    here = {outcome.id: outcome for outcome in open_chat(name, ledgers[0]).complete(asked, GREEDY)}
    with vllm.Engine(name, run) as server:
        there = {outcome.id: outcome for outcome in server.chat(name, vllm.BASE, ledgers[1]).complete(asked, GREEDY)}
    shown = [
        {id: (one.status, one.text, one.completion_tokens) for id, one in found.items()} for found in (here, there)
    ]
    assert shown[0] == shown[1]
    assert {one.status for one in there.values()} >= {"failed"}
    assert all(here[id].reason == there[id].reason for id in ("r2", "r3"))
    nobody = vllm.Engine(name, run, "http://127.0.0.1:9/v1")
    stored = nobody.chat(name, vllm.BASE, ledgers[0]).stored(asked, GREEDY)
    assert {id: one.text for id, one in stored.items()} == {id: here[id].text for id in ("r0", "r1")}


def test_an_evaluation_on_a_server_is_the_same_stage(run):
    record = stored_feedback(run, "short")
    there = Evaluation(run, record, None, {}, "vllm")
    scores = there.answers(["base_resampled", "scd", "c3po"])
    assert len(scores) == 18
    assert {row["model"] for row in Ledger(run / LEDGER).report()} >= {
        stored_name(run, "scd"),
        stored_name(run, "c3po"),
    }
    own = eval_stage(run, "short", "c3po")
    assert own.done
    assert own.manifest["engine"] == "vllm"
    here = replace(there, engine="local").answers(["base_resampled", "scd", "c3po"])
    assert here.equals(scores), "done already, whoever ran it"
    assert not servers(run)


def test_answers_that_are_stored_need_neither_adapters_nor_a_server(run):
    """As in a checkout, whose evaluations are read, or judged by another."""
    folder, record = adapter_folder(run, "short", "scd"), stored_feedback(run, "short")
    known = {WEIGHTS: fingerprint(folder / WEIGHTS)}
    write_json(folder / MANIFEST, {"status": "done", "identity": {}, "files": known})
    scores = Evaluation(run, record, None, {}).answers(["scd"])
    (folder / WEIGHTS).unlink()
    assert Evaluation(run, record, None, {}, "vllm").answers(["scd"]).equals(scores)
    with scripted(lambda asked: Reply(json.dumps({"reasons": "r", "verdict": 3}))) as server:
        judge = open_judge(run, f"openai:m@{server.url}")
        judged = Evaluation(run, record, judge, {}, "vllm").answers(["scd"])
    assert judged["answer"].equals(scores["answer"])
    with pytest.raises(FileNotFoundError, match="02_train"):
        Evaluation(run, record, None, {}, "vllm").answers(["scd", "c3po_nll"])


def stored_name(run: Path, method: str) -> str:
    return known_as(stored_settings(run, "short").model, [adapter_folder(run, "short", method)])


def servers(run: Path) -> list[str]:
    """The command lines of stand-ins that run with this test's environment."""
    lines = (path.read_bytes().decode().replace("\0", " ") for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [line for line in lines if f"{run.parent}/vllm/bin/vllm" in line]


def test_the_engine_is_no_part_of_what_a_sample_is_known_by():
    plain, other = SampleSettings("m"), SampleSettings("m", engine="vllm")
    assert parameters.recorded(plain) == parameters.recorded(other)
    assert "engine" not in parameters.recorded(plain)
    with pytest.raises(ValueError, match="engine: 'vllm' runs weights of ours, and 'openai:x' answers here"):
        SampleSettings("m", completion_model="openai:x", engine="vllm")


@pytest.mark.parametrize(
    ("fault", "message"),
    [("base", "'short/c3po' is served as the base model"), ("swap", "'short/c3po' is served as 'short/scd'")],
)
def test_a_server_that_serves_a_name_wrongly_is_refused(run, monkeypatch, fault, message):
    monkeypatch.setenv("FAKE_VLLM", fault)
    with served.choose(run, ["short"]).engine(run) as server, pytest.raises(RuntimeError, match=message):
        server.open()
    assert server.child is None


@pytest.fixture
def serving(run):
    """Starts `c3po serve` on the run; whatever a test does, it ends."""
    started = []

    def start(*options: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "c3po_utils", "serve", run, "--port", str(port := free_port()), *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        process.url = f"http://127.0.0.1:{port}/v1"
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_what_it_serves_and_ends_with_its_child(run, serving, ended_by):
    process = serving("--feedback", "short,short+shouted", "--methods", "c3po", C3PO_API_KEY="only-ours")
    said = "".join(process.stdout.readline() for _ in range(6))
    assert said.splitlines()[:4] == [
        f"ready at {process.url}, each name proved by a probe:", "  base", "  short/c3po", "  short+shouted/c3po@added",
    ]  # fmt: skip
    assert f"curl {process.url}/chat/completions" in said
    assert "only-ours" not in said
    assert len(servers(run)) == 1
    refused = vllm.Engine(stored_name(run, "c3po").partition("+")[0], run, process.url)
    with pytest.raises(RuntimeError, match="Unauthorized; its key is taken from C3PO_API_KEY"):
        refused.open()
    start = time.monotonic()
    process.send_signal(ended_by)
    while servers(run):
        assert time.monotonic() - start < 5
        time.sleep(0.05)
    assert process.wait(60) == 0


def test_serve_tells_of_a_child_that_died(serving):
    process = serving(FAKE_VLLM="die")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"ended at its start, with status 1.*No available memory", error, flags=re.S)
    assert "Traceback" not in error


def test_joining_a_server_checks_what_it_has(run, tmp_path, tiny_folder):
    name = str(tiny_folder)
    with vllm.Engine(name, run) as server:
        url = server.open()
        assert vllm.Engine(name, run, url).open() == url
        lacking = served.choose(run, ["short"], ["c3po"]).engine(run, url)
        with pytest.raises(RuntimeError, match=r"serves no 'short/c3po'.*start it again with that"):
            lacking.open()
        with pytest.raises(RuntimeError, match=f"serves '{name}' as 'base': expected 'owner/other'"):
            vllm.Engine("owner/other", run, url).open()


def ends_after(monkeypatch, starts: set[int]) -> list[vllm.Engine]:
    """Servers that are killed, as for memory, once they have started for the n-th time; all that were started."""
    started, start = [], vllm.Engine.start

    def then_killed(self, *given):
        start(self, *given)
        started.append(self)
        if len(started) in starts:
            os.killpg(self.child.process.pid, signal.SIGKILL)
            self.child.process.wait()

    monkeypatch.setattr(vllm.Engine, "start", then_killed)
    monkeypatch.setattr(served_chat, "LIMITS", replace(served_chat.LIMITS, backoff_s=0.01))
    return started


def test_answers_of_a_server_that_dies_are_no_finished_stage_and_the_next_method_has_another(run, monkeypatch):
    started = ends_after(monkeypatch, {1})
    there = Evaluation(run, stored_feedback(run, "short"), None, {}, "vllm")
    with pytest.raises(RuntimeError, match=r"6 of 6 answers could not be had, the first \(c3po of .*run again"):
        there.answers(["c3po"])
    assert not eval_stage(run, "short", "c3po").done
    with vllm.Engine(str(stored_settings(run, "short").model), run) as server:
        server.open()
        os.killpg(server.child.process.pid, signal.SIGKILL)
        server.child.process.wait()
        server.open()
        assert server.child.process.poll() is None, "another child"
    assert (there.answers(["c3po"])["status"] != "failed").all()
    assert len(started) == 4


def test_a_sample_of_a_server_that_dies_is_not_finished(tmp_path, run, tiny_folder, monkeypatch):
    ends_after(monkeypatch, {1})
    settings = SampleSettings(
        str(tiny_folder), categories=3, prompts_per_category=2, system_prompt="", max_new_tokens=6, engine="vllm"
    )
    with pytest.raises(RuntimeError, match="answers could not be had, the first"):
        open_sample(tmp_path / "other", "boss_signoff", settings).fill()
    again = open_sample(tmp_path / "other", "boss_signoff", settings)
    assert not again.stage.done
    assert {row["baseline_status"] for row in again.fill()} <= {"ok", "truncated"}

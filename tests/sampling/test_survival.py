import functools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import papermill
import pytest

from c3po_utils.chat.ledger import Ledger
from c3po_utils.runs.files import read_json
from c3po_utils.runs.jobs import NOTEBOOKS
from tests.asking import SAMPLING, asks, fast_client, writer
from tests.servers import Reply, Scripted, error, scripted


@pytest.fixture
def client(tmp_path):
    return functools.partial(fast_client, tmp_path)


HERE = Path(__file__).parents[1]
ROWS = Path("sample/boss_signoff/rows.jsonl")


def start_run(server, folder: Path, categories: int, per_category: int, **env: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, HERE / "sampling_run.py", server.url, folder, str(categories), str(per_category)]
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **env})


def recorded(folder: Path) -> set[str]:
    path = folder / "calls.sqlite"
    rows = Ledger(path)._read("SELECT request FROM calls WHERE status != 'failed'") if path.exists() else []
    return {json.dumps(json.loads(row[0]), sort_keys=True) for row in rows}


def bodies(server: Scripted) -> list[str]:
    """What the server was asked, in order, as `recorded` writes it."""
    return [json.dumps(asked.body, sort_keys=True) for asked in server.asked]


def paid_twice(deaths: list[tuple[int, set[str]]], asked: list[str]) -> set[str]:
    """What was recorded when a run died, and asked again later; deaths: how much was asked by then, what recorded."""
    return set().union(*(known & set(asked[mark:]) for mark, known in deaths))


def survive(tmp_path: Path, kills: int, categories: int, per_category: int, delay: float, seed: int = 1) -> dict:
    """Kill and restart a run, and compare it with an undisturbed one; returns what was counted."""
    rng, unrecorded, deaths = random.Random(seed), 0, []

    def script(asked):
        reply = writer(asked)
        reply.delay = delay * rng.uniform(0.5, 1.5)
        return reply

    with scripted(script) as server:
        assert start_run(server, tmp_path / "calm", categories, per_category).wait(120) == 0
        calls, server.asked = len(server.asked), []
        for _ in range(kills):
            process, before = start_run(server, tmp_path / "killed", categories, per_category), len(server.asked)
            wanted = before + rng.randint(1, max(2, 2 * calls // (kills + 1)))
            end = time.monotonic() + 30
            while len(server.asked) < wanted and process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, delay))
            process.kill()
            process.wait()
            known = recorded(tmp_path / "killed")
            in_flight = len(set(bodies(server)) - known)
            assert in_flight <= 8, "no more than were in flight"
            unrecorded += in_flight
            deaths.append((len(server.asked), known))
        assert start_run(server, tmp_path / "killed", categories, per_category).wait(120) == 0
        asked = bodies(server)
    twice, repeated = paid_twice(deaths, asked), len(asked) - len(set(asked))
    assert not twice, "a recorded call was asked again"
    assert repeated <= unrecorded
    assert len(set(asked)) == calls
    calm, killed = ((tmp_path / name / ROWS).read_bytes() for name in ("calm", "killed"))
    assert calm == killed
    return {
        "calls": calls, "kills": kills, "in_flight_at_kills": unrecorded, "asked_again": repeated,
        "paid_twice": len(twice),
    }  # fmt: skip


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    counted = survive(tmp_path, kills=2, categories=3, per_category=2, delay=0.1)
    assert counted["calls"] == 55


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_of_300_calls_survives_30_kills(tmp_path):
    counted = survive(tmp_path, kills=30, categories=6, per_category=6, delay=0.1)
    print(counted)
    assert counted["calls"] == 298


def test_an_interrupt_waits_for_answers_on_their_way_and_loses_none(tmp_path):
    def script(asked):
        reply = writer(asked)
        reply.delay = 0.5
        return reply

    with scripted(script) as server:
        process = start_run(server, tmp_path / "run", 6, 2)
        end = time.monotonic() + 60
        while len(server.asked) < 5 and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        asked = {json.dumps(asked.body, sort_keys=True) for asked in server.asked}
    assert len(asked) >= 5
    assert recorded(tmp_path / "run") == asked


CANARY = "sk-canary-0123456789abcdef-0123456789"


def leaky(asked) -> Reply:
    """A server that gives back the key in errors, answers and headers."""
    key = asked.headers["authorization"]
    if asked.nth == 0 and asked.index % 3 == 0:
        return error(500, f"your key {key} was not liked")
    if asked.index % 3 == 1 and asked.nth == 0:
        return Reply(body=f"broken {key}".encode(), kind=f"text/{CANARY}")
    reply = writer(asked)
    seen = json.dumps(f"I saw {key}")
    reply.text = reply.text.replace('"hm"', seen) if reply.text.startswith("{") else reply.text + seen
    reply.headers = {"x-key": key}
    return reply


def test_a_key_is_found_in_no_file_that_a_run_leaves(tmp_path):
    with scripted(leaky) as server:
        env = {"C3PO_API_KEY": CANARY, "OPENAI_API_KEY": CANARY, "OPENAI_LOG": "debug"}
        assert start_run(server, tmp_path / "run", 3, 2, **env).wait(60) == 0
        assert server.asked[0].headers["authorization"] == f"Bearer {CANARY}"
    no_file_has_the_key(tmp_path, {"calls.sqlite", "log.txt", "rows.jsonl", "manifest.json"})


def no_file_has_the_key(folder: Path, expected: set[str]) -> None:
    """None of the files below a folder, among them the expected ones, although answers did hold the key."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert expected <= {path.name for path in files}
    assert [path for path in files if CANARY[3:].encode() in path.read_bytes()] == []
    (ledger,) = [path for path in files if path.name == "calls.sqlite"]
    assert Ledger(ledger)._read("SELECT COUNT(*) FROM calls WHERE text LIKE '%[key]%'")[0][0] > 0


def test_01_sample_runs_on_a_server_and_its_notebook_has_no_key(tmp_path, monkeypatch, own_feedback):
    """Prompts and answers by a server that gives back the key wherever it can; every setting by papermill."""
    monkeypatch.setenv("C3PO_API_KEY", CANARY)
    with scripted(leaky) as server:
        name = f"openai:m@{server.url}"
        papermill.execute_notebook(
            NOTEBOOKS / "01_sample.ipynb", tmp_path / "01_sample.ipynb", cwd=NOTEBOOKS, progress_bar=False,
            parameters={
                "run": str(tmp_path / "run"), "feedback": own_feedback, "prompt_model": name, "completion_model": name,
                "categories": 3, "prompts_per_category": 2, "options": {"strategy": "revise", "best_of": 1},
                "limits": {"prices": {"m": [1, 2]}, "budget_usd": 1.0, "backoff_s": 0.01},
            },
        )  # fmt: skip
    no_file_has_the_key(tmp_path, {"calls.sqlite", "01_sample.ipynb", "rows.jsonl", "manifest.json", "wordy.json"})
    counts = read_json(tmp_path / "run" / "sample" / "wordy" / "manifest.json")["counts"]
    assert {column: sum(found.values()) for column, found in counts.items()} == {
        "baseline": 18, "revised": 6, "in_context": 6, "in_context_cot": 6,
    }  # fmt: skip
    shown = (tmp_path / "01_sample.ipynb").read_text()
    assert "15 of 15 kept" in shown
    assert "answer tokens" in shown


def test_a_key_is_in_no_error_and_no_log(client, monkeypatch, caplog):
    monkeypatch.setenv("C3PO_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    with scripted(lambda asked: error(401, f"wrong key {CANARY}", code=CANARY)) as server:
        model = client(server)
        (outcome,) = model.complete(asks(1), SAMPLING)
    assert outcome.reason == "HTTP 401: wrong key [key]"
    assert CANARY not in caplog.text + repr(model) + repr(vars(model))

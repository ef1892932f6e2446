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

import pytest

from c3po_utils.ledger import Ledger
from tests.asking import SAMPLING, asks, fast_client
from tests.servers import Reply, error, listing, scripted


@pytest.fixture
def client(tmp_path):
    return functools.partial(fast_client, tmp_path)


HERE = Path(__file__).parent


def start_run(server, folder: Path, categories: int, per_category: int, **env: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, HERE / "sampling_run.py", server.url, folder, str(categories), str(per_category)]
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **env})


def recorded(folder: Path) -> set[str]:
    path = folder / "calls.sqlite"
    rows = Ledger(path)._read("SELECT request FROM calls WHERE status != 'failed'") if path.exists() else []
    return {json.dumps(json.loads(row[0]), sort_keys=True) for row in rows}


def survive(tmp_path: Path, kills: int, categories: int, per_category: int, delay: float) -> dict:
    """Kill and restart a run, and compare it with an undisturbed one; returns what was counted."""
    rng, unrecorded, deaths = random.Random(1), 0, []  # deaths: requests so far, and which of them are recorded

    def script(asked):
        reply = listing(asked)
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
            bodies = [json.dumps(asked.body, sort_keys=True) for asked in server.asked]
            in_flight = len(set(bodies) - known)
            assert in_flight <= 8, "no more than were in flight"
            unrecorded += in_flight
            deaths.append((len(bodies), known))
        assert start_run(server, tmp_path / "killed", categories, per_category).wait(120) == 0
        bodies = [json.dumps(asked.body, sort_keys=True) for asked in server.asked]
    assert not any(known & set(bodies[mark:]) for mark, known in deaths), "a recorded call was asked again"
    repeated = len(bodies) - len(set(bodies))
    assert repeated <= unrecorded
    assert len(set(bodies)) == calls
    same = (tmp_path / "calm" / "prompts.jsonl").read_bytes() == (tmp_path / "killed" / "prompts.jsonl").read_bytes()
    assert same
    return {"calls": calls, "kills": kills, "in flight at kills": unrecorded, "repeated": repeated}


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    counted = survive(tmp_path, kills=2, categories=4, per_category=14, delay=0.1)
    assert counted["calls"] == 17


@pytest.mark.slow
def test_a_run_of_300_calls_survives_30_kills(tmp_path):
    counted = survive(tmp_path, kills=30, categories=30, per_category=32, delay=0.1)
    print(counted)
    assert counted["calls"] == 305


def test_an_interrupt_waits_for_answers_on_their_way_and_loses_none(tmp_path):
    def script(asked):
        reply = listing(asked)
        reply.delay = 0.5
        return reply

    with scripted(script) as server:
        process = start_run(server, tmp_path / "run", 4, 14)
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
    reply = listing(asked)
    reply.text = reply.text.replace('"hm"', json.dumps(f"I saw {key}"))
    reply.headers = {"x-key": key}
    return reply


def test_a_key_is_found_in_no_file_that_a_run_leaves(tmp_path):
    with scripted(leaky) as server:
        env = {"C3PO_API_KEY": CANARY, "OPENAI_API_KEY": CANARY, "OPENAI_LOG": "debug"}
        assert start_run(server, tmp_path / "run", 3, 7, **env).wait(60) == 0
        assert server.asked[0].headers["authorization"] == f"Bearer {CANARY}"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"calls.sqlite", "log.txt", "prompts.jsonl"} <= {path.name for path in files}
    assert [path for path in files if CANARY[3:].encode() in path.read_bytes()] == []
    stored = Ledger(tmp_path / "run" / "calls.sqlite")._read("SELECT COUNT(*) FROM calls WHERE text LIKE '%[key]%'")
    assert stored[0][0] > 0, "the answers did hold the key"


def test_a_key_is_in_no_error_and_no_log(client, monkeypatch, caplog):
    monkeypatch.setenv("C3PO_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    with scripted(lambda asked: error(401, f"wrong key {CANARY}", code=CANARY)) as server:
        model = client(server)
        (outcome,) = model.complete(asks(1), SAMPLING)
    assert outcome.reason == "HTTP 401: wrong key [key]"
    assert CANARY not in caplog.text + repr(model) + repr(vars(model))

"""`c3po serve` with the real vLLM: the right adapter for everyone, flat memory, typed failures, the same answers.

Run by `make test-vllm`, which installs vLLM; takes 16 to 30 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx2
import psutil
import pytest

from c3po_utils.chat import Outcome, Sampling, ask, request
from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.openai.client import open_model
from c3po_utils.chat.vllm import BASE, Engine
from c3po_utils.chat.vllm.child import free_port
from c3po_utils.engine.models import load_tokenizer, shared_model
from c3po_utils.evaluation import Evaluation
from c3po_utils.sampling import stored_feedback
from c3po_utils.training import adapters, served
from tests.benchmarks.bench_serve import conversations
from tests.serve.agreement import agreement
from tests.serve.tell_tales import METHOD, MODEL, SYSTEM, WORDS, store_tell_tales

pytestmark = [pytest.mark.vllm, pytest.mark.embedded, pytest.mark.timeout(3600)]
KEY, SUM = "known-to-both-ends", "ahoy+lemon"
CONCURRENT, MANY, ALIKE = 200, 1000, 200
NEAR_TIE = 0.5  # of log-probabilities: what 16-bit numbers in another order can turn
GREEDY = Sampling(temperature=0.0, max_new_tokens=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    os.environ["C3PO_API_KEY"] = KEY
    yield store_tell_tales(tmp_path_factory.mktemp("run"))
    del os.environ["C3PO_API_KEY"]


@pytest.fixture(scope="module")
def serving(run):
    """`c3po serve`, ready; its `url`, and the `names` that it said."""
    names = ",".join([*WORDS, SUM])
    command = [sys.executable, "-m", "c3po_utils", "serve", run, "--feedback", names, "--port", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        process.url = re.match(r"ready at (\S+),", process.stdout.readline())[1]
        process.group = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        process.names = [process.stdout.readline().strip() for _ in range(2 + len(WORDS))]
        yield process
    finally:
        process.terminate()
        process.wait(60)


def joined(run, serving) -> Engine:
    """The engine that joins it, as a stage does."""
    return served.choose(run, [*WORDS, SUM]).engine(run, serving.url)


@pytest.fixture
def server(run, serving):
    return joined(run, serving)


def name(id: str) -> str:
    return f"{id}/{METHOD}"


def asked(count: int, prefix: str) -> list:
    return [replace(each, id=f"{prefix}/{each.id}") for each in conversations(count, prefix)]


def test_every_name_is_served(serving):
    assert serving.names == [BASE, *map(name, WORDS), f"{SUM}/{METHOD}@added"]


def test_requests_of_all_at_once_are_answered_by_the_right_adapter(server, tmp_path):
    models = {id: server.chat(id, name(id), tmp_path / f"{id}.sqlite") for id in WORDS} | {
        BASE: server.chat(BASE, BASE, tmp_path / "base.sqlite")
    }
    sampling = Sampling(max_new_tokens=12)

    def answers(id: str) -> list[Outcome]:
        return list(ask(models[id], asked(CONCURRENT // len(WORDS) + 1, id), sampling).values())

    server.open()
    with ThreadPoolExecutor(len(models)) as pool:
        found = dict(zip(models, pool.map(answers, models), strict=True))
    assert sum(len(found[id]) for id in WORDS) >= CONCURRENT
    for id, word in WORDS.items():
        wrong = [outcome for outcome in found[id] if not outcome.usable or not outcome.text.startswith(word)]
        assert not wrong, f"{len(wrong)} of {id}"
    assert not [outcome for outcome in found[BASE] if outcome.text.startswith(tuple(WORDS.values()))]


def group_mib(serving) -> dict[str, float]:
    """Resident memory of the server's processes, which are one group."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == serving.group:
                found[f"{process.name()} {process.pid}"] = round(process.memory_info().rss / 2**20, 1)
    return found


def test_memory_stays_flat_over_many_requests(server, serving, tmp_path):
    """After a warm-up of a quarter as many, with the malloc that `make vllm` adds.

    The bound is in MiB, as weights and key-value cache, which are counted, would make any share look small; it is 3% of
    what was there without them. Last seen: 12 MiB after 1,000 requests and after 2,000.
    """
    levels, sampling, ledger = [], Sampling(max_new_tokens=2), tmp_path / "l.sqlite"
    for part in range(5):
        for id in WORDS:
            ask(server.chat(id, name(id), ledger), asked(MANY // 4 // len(WORDS) + 1, f"{id}{part}"), sampling)
        levels.append(group_mib(serving))
        print(f"MiB after part {part}:", levels[-1])
    first, last = (sum(level.values()) for level in (levels[0], levels[-1]))  # the first part is the warm-up
    assert first > 100
    assert last < first + 60, levels


def raw(serving, body: bytes, key: str = KEY, path: str = "/completions") -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return httpx2.post(serving.url + path, content=body, headers=headers, timeout=300, trust_env=False)


def running(serving) -> float:
    text = httpx2.get(serving.url.removesuffix("/v1") + "/metrics", timeout=60, trust_env=False).text
    return sum(float(value) for value in re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.M))


def test_clients_that_are_killed_free_their_slots(serving):
    body = json.dumps({"model": name("ahoy"), "prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": True}).encode()
    host, port = re.search(r"//(.*):(\d+)/", serving.url).groups()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    )
    clients = [socket.create_connection((host, int(port))) for _ in range(16)]
    for client in clients:
        client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    end = time.monotonic() + 120
    while running(serving) < len(clients) and time.monotonic() < end:
        time.sleep(0.2)
    assert running(serving) == len(clients)
    for client in clients:
        client.close()
    while running(serving) and time.monotonic() < end:
        time.sleep(0.2)
    assert running(serving) == 0


def test_what_cannot_be_answered_has_its_status(serving):
    good = {"model": name("ahoy"), "prompt": [5, 6, 7], "max_tokens": 1}
    assert raw(serving, json.dumps(good).encode()).status_code == 200
    assert raw(serving, b'{"model": ').status_code == 400
    assert raw(serving, json.dumps(good | {"model": "nobody/scd"}).encode()).status_code == 404
    assert raw(serving, json.dumps(good | {"prompt": [5] * 100_000}).encode()).status_code == 400
    assert raw(serving, json.dumps(good).encode(), key="another").status_code == 401


def test_what_cannot_be_answered_is_a_typed_outcome(serving, server, tmp_path, monkeypatch):
    sampling, huge = Sampling(max_new_tokens=2), request("r", "tea " * 20_000)
    (outcome,) = server.chat("m", name("ahoy"), tmp_path / "l").complete([huge], sampling)
    assert (outcome.status, "leaves no room in the context of 8192" in outcome.reason) == ("failed", True)
    (outcome,) = open_model(f"openai:base@{serving.url}", tmp_path / "l").complete([huge], sampling)
    assert (outcome.status, "HTTP 400" in outcome.reason) == ("failed", True)
    (outcome,) = server.chat("m", "nobody/scd", tmp_path / "l").complete([request("s", "hi")], sampling)
    assert (outcome.status, "HTTP 404" in outcome.reason) == ("failed", True)
    monkeypatch.setenv("C3PO_API_KEY", "another")
    server.endpoint = serving.url
    (outcome,) = server.chat("m", BASE, tmp_path / "l").complete([request("t", "hi")], sampling)
    assert (outcome.status, "HTTP 401" in outcome.reason) == ("failed", True)


@pytest.fixture(scope="module")
def greedy(run, serving, tmp_path_factory):
    """`agreement` of the base model's greedy answers."""
    local = LocalChat(shared_model(MODEL), load_tokenizer(MODEL), name="ours")
    base = joined(run, serving).chat("m", BASE, tmp_path_factory.mktemp("greedy") / "l")
    found = agreement(local, base, conversations(ALIKE, "alike"), GREEDY)
    print(json.dumps(found))
    return found


def test_greedy_answers_part_from_ours_at_near_ties_alone(greedy):
    assert greedy["answered"] == ALIKE
    assert greedy["same_tokens"] >= 0.95 * greedy["tokens"]
    assert all(each["gap"] <= NEAR_TIE for each in greedy["parted"])


@pytest.mark.xfail(strict=True, reason="88 of 200 were: in bfloat16 most longer answers meet a tie (agreement.py)")
def test_greedy_answers_are_ours(greedy):
    assert greedy["equal"] >= 0.95 * ALIKE


def test_a_sum_and_a_single_adapter_answer_as_here(run, server, tmp_path):
    requests = [
        request(f"r{n}", each.messages[-1]["content"], system=SYSTEM) for n, each in enumerate(conversations(24, "x"))
    ]
    folders = {
        name("ahoy"): run / "train" / "ahoy" / METHOD,
        f"{SUM}/{METHOD}@added": run / "serve" / SUM / f"{METHOD}@added",
    }
    for served_as, folder in folders.items():
        with adapters.merged(shared_model(MODEL), folder) as tuned:
            local = LocalChat(tuned, load_tokenizer(MODEL), name=served_as)
            found = agreement(local, server.chat(served_as, served_as, tmp_path / "l"), requests, GREEDY)
        print(served_as, json.dumps(found))
        assert all(each["gap"] <= NEAR_TIE for each in found["parted"])


def test_a_stage_asks_it_and_never_twice(run, serving):
    evaluation = Evaluation(run, stored_feedback(run, "ahoy"), None, {}, f"vllm@{serving.url}")
    table = evaluation.answers(methods := ["base_resampled", METHOD])
    assert set(table.status) <= {"ok", "truncated"}
    assert replace(evaluation, engine="vllm@http://127.0.0.1:9/v1").answers(methods).equals(table)


def test_ctrl_c_ends_everything_within_five_seconds(serving):
    """The last of all: nobody is served after it."""
    start = time.monotonic()
    serving.send_signal(signal.SIGINT)
    while group_mib(serving):
        assert time.monotonic() - start < 5
        time.sleep(0.05)
    assert serving.wait(60) == 0

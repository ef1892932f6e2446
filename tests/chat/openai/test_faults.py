import asyncio
import functools
import json
import subprocess
import sys

import httpx2
import pytest

from c3po_utils.chat.openai.transport import Transport
from c3po_utils.chat.types import Request
from tests.asking import SAMPLING, asks, by_id, echo, fast_client, tally
from tests.servers import FAULTS, Reply, error, faulty, redirect, scripted


@pytest.fixture
def client(tmp_path):
    return functools.partial(fast_client, tmp_path)


ENDS = {  # how a call ends if every attempt meets the fault, and after how many attempts
    "429": ("failed", 3),
    "429 with Retry-After": ("failed", 3),
    "500": ("failed", 3),
    "503 that is no JSON": ("failed", 3),
    "reset": ("failed", 3),
    "slow": ("ok", 1),
    "silent": ("failed", 3),
    "endless": ("malformed", 1),
    "drip": ("failed", 3),
    "cut": ("failed", 3),
    "truncated JSON": ("failed", 3),
    "wrong content type": ("failed", 3),
    "empty choices": ("malformed", 1),
    "null content": ("malformed", 1),
    "no message": ("malformed", 1),
    "tool calls": ("malformed", 1),
    "length": ("truncated", 1),
    "content_filter": ("filtered", 1),
    "refusal": ("refused", 1),
    "5 MB": ("malformed", 1),
    "5 MB error": ("failed", 3),
    "invalid UTF-8": ("failed", 3),
    "half a surrogate": ("malformed", 1),
    "deep JSON": ("failed", 3),
    "not an object": ("failed", 3),
    "error in a 200": ("failed", 3),
}


def test_every_fault_is_covered():
    assert ENDS.keys() == FAULTS.keys()


@pytest.mark.parametrize("stream", [False, True], ids=["", "streamed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_in_a_typed_outcome(client, fault, stream):
    with scripted(lambda asked: FAULTS[fault]()) as server:
        model = client(server, stream=stream, timeout_s=0.3 if fault in ("silent", "drip") else 5.0)
        (outcome,) = model.complete(asks(1), SAMPLING)
        asked = len(server.asked)
    if fault == "endless" and stream:  # endless white space has no event in it, and no end of a line
        assert outcome.status == "malformed"
    assert (outcome.status, asked) == ENDS[fault]
    assert outcome.usable == bool(outcome.text)
    assert (outcome.status == "ok") == (outcome.reason == "")
    assert len(outcome.reason) < 1000


HEALING = [fault for fault, (status, _) in ENDS.items() if status == "failed"]


@pytest.mark.parametrize("fault", HEALING)
def test_a_fault_that_passes_is_healed(client, fault):
    with scripted(lambda asked: Reply("fine") if asked.nth else FAULTS[fault]()) as server:
        (outcome,) = client(server, timeout_s=0.3 if fault in ("silent", "drip") else 5.0).complete(asks(1), SAMPLING)
        assert (outcome.status, outcome.text, len(server.asked)) == ("ok", "fine", 2)


def test_failures_are_asked_again_by_the_next_run_and_answers_are_not(client):
    faults = iter([error(500)] * 3)
    with scripted(lambda asked: next(faults, None) or Reply("fine")) as server:
        first = by_id(client(server, max_in_flight=1).complete(asks(2), SAMPLING))
        assert (first["r0"].status, first["r1"].status) == ("failed", "ok")
        assert "HTTP 500: no (after 3 attempts)" in first["r0"].reason
        second = by_id(client(server).complete(asks(2), SAMPLING))
        assert len(server.asked) == 5
    assert second["r0"].text == "fine"


@pytest.mark.parametrize("status", [400, 403, 422])
def test_client_errors_that_cannot_heal_fail_at_once(client, status):
    with scripted(lambda asked: error(status, "bad thing")) as server:
        (outcome,) = client(server).complete(asks(1), SAMPLING)
        assert (outcome.status, outcome.reason, len(server.asked)) == ("failed", f"HTTP {status}: bad thing", 1)


@pytest.mark.parametrize(
    "reply", [error(401, "bad key"), error(404, "no such model"), error(429, "pay", code="insufficient_quota")]
)
def test_after_a_hopeless_error_the_rest_is_not_asked(client, reply):
    with scripted(lambda asked: reply) as server:
        outcomes = by_id(client(server, max_in_flight=2).complete(asks(100), SAMPLING))
        assert len(server.asked) <= 4
    assert tally(outcomes.values()) == {"failed": 100}
    assert sum("not asked" in outcome.reason for outcome in outcomes.values()) >= 96


def test_a_server_that_cannot_be_reached_is_given_up_with_the_reason(client):
    with scripted(echo) as server:
        pass
    outcomes = by_id(client(server, max_in_flight=2).complete(asks(100), SAMPLING))
    assert tally(outcomes.values()) == {"failed": 100}
    said = f"not asked, for another call failed for good: {server.url}: ConnectError: "
    assert sum(outcome.reason.startswith(said) for outcome in outcomes.values()) >= 96


def test_a_server_that_is_reached_by_another_call_is_asked_on(client, monkeypatch):
    """The first call is given up while the second is on its way."""
    reached = Transport.ask

    async def ask(transport, body):
        if body["messages"][-1]["content"] == "prompt 0":
            return transport.failure(httpx2.ConnectError("down"))
        await asyncio.sleep(0.3 * (body["messages"][-1]["content"] == "prompt 1"))
        return await reached(transport, body)

    monkeypatch.setattr(Transport, "ask", ask)
    with scripted(echo) as server:
        outcomes = by_id(client(server, max_in_flight=2).complete(asks(10), SAMPLING))
    assert outcomes["r0"].reason.endswith("ConnectError: down (after 3 attempts)")
    assert tally(outcomes.values()) == {"failed": 1, "ok": 9}


@pytest.mark.parametrize(("max_wait_s", "given_up"), [(900, False), (0, True)])
def test_a_server_that_was_reached_is_given_up_after_an_outage_of_max_wait_s(client, monkeypatch, max_wait_s, given_up):
    reached = Transport.ask

    async def ask(transport, body):
        if body["messages"][-1]["content"] == "prompt 0":
            return await reached(transport, body)
        return transport.failure(httpx2.ConnectError("down"))

    monkeypatch.setattr(Transport, "ask", ask)
    with scripted(echo) as server:
        outcomes = by_id(client(server, max_in_flight=1, max_wait_s=max_wait_s).complete(asks(6), SAMPLING))
    assert tally(outcomes.values()) == {"failed": 5, "ok": 1}
    assert any("not asked" in outcome.reason for outcome in outcomes.values()) == given_up


REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("stream", [False, True], ids=["", "streamed"])
def test_a_redirect_is_an_error_that_names_its_target_and_sends_nothing_there(client, status, stream):
    with scripted(echo) as other, scripted(lambda asked: redirect(status, f"{other.url}/chat/completions")) as server:
        outcomes = by_id(client(server, stream=stream, max_in_flight=1).complete(asks(5), SAMPLING))
        assert (len(other.asked), len(server.asked)) == (0, 1)
    assert tally(outcomes.values()) == {"failed": 5}
    said = f"HTTP {status}: {server.url} redirects to {other.url}/chat/completions, which is not followed"
    assert outcomes["r0"].reason.startswith(said)
    assert "not asked" in outcomes["r4"].reason


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("/elsewhere", "redirects to {host}/elsewhere,"),
        ("//other.example/v1?key=abc", "redirects to http://other.example/v1,"),
        ("https://user:password@other.example/v1", "redirects to https://other.example/v1,"),
        ("", "redirects to {host}/v1/chat/completions,"),
        ("http://host:none", "redirects to no address that can be read,"),
    ],
)
def test_a_redirects_target_is_told_without_what_may_be_a_secret(client, location, said):
    with scripted(lambda asked: redirect(307, location)) as server:
        (outcome,) = client(server).complete(asks(1), SAMPLING)
    assert said.format(host=server.url.removesuffix("/v1")) in outcome.reason
    assert not any(secret in outcome.reason for secret in ("abc", "password"))


def test_a_filtered_prompt_is_an_answer(client):
    with scripted(lambda asked: error(400, "content management policy", code="content_filter")) as server:
        (outcome,) = client(server).complete(asks(1), SAMPLING)
        list(client(server).complete(asks(1), SAMPLING))
        assert (outcome.status, len(server.asked)) == ("filtered", 1)


def test_a_server_without_schemas_is_found_out(client):
    message = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model"
    with scripted(lambda asked: error(400, message)) as server:
        model = client(server)
        assert model.supports_schema
        list(model.complete([Request("r", ({"role": "user", "content": "x"},), schema={"title": "A"})], SAMPLING))
    assert not model.supports_schema


@pytest.mark.parametrize("stream", [False, True], ids=["", "streamed"])
def test_a_fifth_of_faults_loses_nothing_and_mixes_nothing_up(client, stream):
    quick = [fault for fault in FAULTS if fault not in ("silent", "drip", "endless", "5 MB", "5 MB error")]
    with scripted(faulty(echo, 0.2, quick)) as server:
        model = client(server, stream=stream, timeout_s=3.0)
        outcomes = by_id(model.complete(asks(300), SAMPLING))
        asked = len(server.asked)
    counts = tally(outcomes.values())
    assert sum(counts.values()) == 300
    assert counts["ok"] > 240
    assert len(counts) > 3, "the faults did come through"
    for ask in asks(300):
        outcome = outcomes[ask.id]
        expected = {f"answer to {ask.messages[0]['content']}", "slow but fine"} if outcome.status == "ok" else None
        assert outcome.text in (expected or {"", "half an answ"})
        assert "None" not in outcome.text
    assert asked < 300 * 1.5
    assert sum(row["calls"] for row in model.ledger.report()) == 300


def test_a_stream_that_stops_without_an_end_is_broken(client):
    event = b'data: {"choices": [{"delta": {"content": "half"}, "finish_reason": null}]}\n\n'
    with scripted(lambda asked: Reply(body=event, kind="text/event-stream")) as server:
        (outcome,) = client(server, stream=True).complete(asks(1), SAMPLING)
    assert (outcome.status, outcome.text) == ("failed", "")
    assert "the stream ended before the answer did" in outcome.reason


def test_never_ending_streams_are_cut_by_size_and_time(client):
    word = b'data: {"choices": [{"delta": {"content": "%s"}, "finish_reason": null}]}\n\n' % (b"x" * 1000)
    with scripted(lambda asked: Reply(body=word * 4000, kind="text/event-stream")) as server:
        (outcome,) = client(server, stream=True, timeout_s=20.0).complete(asks(1), SAMPLING)
    assert (outcome.status, outcome.reason) == ("malformed", "answer longer than 1048576 characters")


MEMORY = """
import re, sys
from c3po_utils.chat.types import Sampling, request
from c3po_utils.chat.openai.client import open_model
model = open_model(f"openai:m@{sys.argv[1]}", sys.argv[2], timeout_s=60)
def peak():  # getrusage's peak is inherited from whoever started this process
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
outcomes = list(model.complete([request(str(n), f"prompt {n}") for n in range(70)], Sampling()))
assert {outcome.status for outcome in outcomes} == {"malformed"}, outcomes[0]
print((peak() - before) / 1024)
"""


def test_answers_of_5_mb_do_not_fill_the_memory(tmp_path):
    body = Reply(text="x" * 5_000_000).completion()
    body = json.dumps(body).encode()
    with scripted(lambda asked: Reply(body=body)) as server:
        command = [sys.executable, "-c", MEMORY, server.url, tmp_path / "calls.sqlite"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 200, "MB more, for 64 answers of 5 MB in flight"

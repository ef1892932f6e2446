import asyncio
import functools
import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.servers import FAULTS, Batches, Reply, embedded_server, error, faulty, listing, scripted

from c3po_utils import openai_run
from c3po_utils.admission import SKEW_S, BudgetReached, Quota
from c3po_utils.chat import Request, Sampling, request, tally
from c3po_utils.ledger import Ledger
from c3po_utils.openai_chat import open_model, parse_name
from c3po_utils.pace import Adaptive, Limits, backoff, retry_after
from c3po_utils.wire import OPENAI

SAMPLING = Sampling(max_new_tokens=32)
FAST = {"backoff_s": 0.005, "max_backoff_s": 0.02, "timeout_s": 0.6, "max_attempts": 3}
PRICES = {"m": (1000.0, 2000.0)}  # 0.011 + 0.014 USD a scripted answer
ANSWER_USD = 0.025
BOUND_USD = (1 + 16) * 0.001 + 32 * 0.002  # of a prompt of one byte


@pytest.fixture
def client(tmp_path):
    """Opens a model on a scripted server, all on one ledger."""

    def open_(server, **limits):
        prices = limits.pop("prices", PRICES)
        name = f"openai:{limits.pop('model', 'm')}@{server.url}"
        return open_model(name, tmp_path / "calls.sqlite", prices=prices, **{**FAST, **limits})

    return open_


def asks(count: int) -> list[Request]:
    return [request(f"r{n}", f"prompt {n}") for n in range(count)]


def echo(asked) -> Reply:
    return Reply(f"answer to {asked.prompt}")


def by_id(outcomes) -> dict:
    found = list(outcomes)
    assert len({outcome.id for outcome in found}) == len(found)
    return {outcome.id: outcome for outcome in found}


# Names and keys


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:gpt-4.1", ("gpt-4.1", OPENAI)),
        ("openai:mistralai/M-7B@http://127.0.0.1:8000/v1", ("mistralai/M-7B", "http://127.0.0.1:8000/v1")),
        ("openai:claude@20240229@https://api.example.org/v1/", ("claude@20240229", "https://api.example.org/v1")),
    ],
)
def test_names_are_model_and_endpoint(name, expected):
    assert parse_name(name) == expected


@pytest.mark.parametrize("name", ["gpt-4.1", "openai:", "openai:a b", "anthropic:x"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="expected openai:MODEL"):
        parse_name(name)


@pytest.mark.parametrize("base", ["http://u:hunter2secret@h/v1", "https://h/v1?api_key=hunter2secret"])
def test_a_key_in_a_name_is_refused_and_not_repeated(base):
    with pytest.raises(ValueError, match="keys come from the environment") as raised:
        parse_name(f"openai:m@{base}")
    assert "hunter2" not in str(raised.value)


def test_unknown_limits_name_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean max_in_flight"):
        open_model("openai:m@http://h/v1", tmp_path / "l", max_inflight=3)


def test_each_server_gets_its_own_key_only(client, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-only")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    with scripted(echo) as server:
        seen = []
        for name, value in ((None, None), ("C3PO_API_KEY", "any-server"), ("C3PO_API_KEY_127_0_0_1", "this-server")):
            if name:
                monkeypatch.setenv(name, value)
            list(client(server).complete([request("r", f"prompt {name}")], SAMPLING))
            seen.append(server.asked[-1].headers)
    assert [headers["authorization"] for headers in seen] == ["Bearer none", "Bearer any-server", "Bearer this-server"]
    assert "openai-organization" not in seen[0]


def test_openai_without_a_key_is_an_error_before_any_call_and_stored_answers_need_none(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = open_model("openai:gpt-4.1", tmp_path / "calls.sqlite")
    with pytest.raises(RuntimeError, match="set OPENAI_API_KEY in the environment"):
        list(model.complete(asks(1), SAMPLING))
    (call,) = model.calls(asks(1), SAMPLING)
    from c3po_utils.ledger import Entry

    model.ledger.record(call.key, model.scope, "{}", Entry("ok", text="stored"))
    assert next(model.complete(asks(1), SAMPLING)).text == "stored"


# Asking once


def test_every_request_gets_its_own_answer(client):
    with scripted(echo) as server:
        outcomes = by_id(client(server).complete(asks(50), SAMPLING))
    assert all(outcomes[ask.id].text == f"answer to {ask.messages[0]['content']}" for ask in asks(50))
    assert (outcomes["r0"].prompt_tokens, outcomes["r0"].completion_tokens) == (11, 7)
    assert outcomes["r0"].details == {"price_usd": pytest.approx(ANSWER_USD)}


def test_a_rerun_asks_only_for_what_is_missing(client):
    with scripted(echo) as server:
        list(client(server).complete(asks(20), SAMPLING))
        again = by_id(client(server).complete(asks(30), SAMPLING))
        assert len(server.asked) == 30
    assert len(again) == 30


def test_the_same_conversation_is_asked_once_and_a_replicate_anew(client):
    same = [Request(f"r{n}", ({"role": "user", "content": "hi"},), replicate=n % 2) for n in range(10)]
    with scripted(lambda asked: Reply(str(asked.body["seed"]))) as server:
        outcomes = by_id(client(server).complete(same, SAMPLING))
        assert len(server.asked) == 2
    assert len({outcome.text for outcome in outcomes.values()}) == 2


def test_ids_given_twice_are_refused(client):
    with scripted(echo) as server, pytest.raises(ValueError, match="'r0' is there twice"):
        list(client(server).complete(asks(1) * 2, SAMPLING))


def test_what_changes_the_answer_changes_the_key(tmp_path):
    def key(base="http://h/v1", sampling=SAMPLING, model="m", **changes) -> str:
        book = Ledger(tmp_path / "calls.sqlite")
        asked = Request("id", ({"role": "user", "content": changes.pop("text", "hi")},), **changes)
        return open_model(f"openai:{model}@{base}", book).calls([asked], sampling)[0].key

    variants = [
        key(),
        key(base="http://other/v1"),
        key(model="n"),
        key(text="ho"),
        key(schema={"type": "object"}),
        key(replicate=1),
        *(key(sampling=Sampling(max_new_tokens=32, **{name: value})) for name, value in [("seed", 1), ("top_k", 3)]),
        key(sampling=Sampling(max_new_tokens=33)),
        key(sampling=Sampling(max_new_tokens=32, stop=("x",))),
    ]
    assert len(set(variants)) == len(variants)
    assert key(sampling=Sampling(temperature=1, max_new_tokens=32)) == key(
        sampling=Sampling(temperature=1.0, max_new_tokens=32)
    )


def test_requests_carry_what_the_server_needs(client, tmp_path):
    schema = {"title": "Verdict", "type": "object", "properties": {}}
    asked = Request("r", ({"role": "user", "content": "hi"},), schema=schema)
    with scripted(lambda asked: Reply("{}")) as server:
        list(client(server, omit=("seed",)).complete([asked], Sampling(top_k=7, stop=("END",), max_new_tokens=9)))
        body = server.asked[0].body
    assert (body["top_k"], body["stop"], body["max_tokens"], "seed" in body) == (7, ["END"], 9, False)
    assert body["response_format"]["json_schema"] == {"name": "Verdict", "schema": schema, "strict": True}
    ours = open_model("openai:gpt-4.1", tmp_path / "l").calls([asked], Sampling(top_k=7, max_new_tokens=9))[0].body
    assert ours["max_completion_tokens"] == 9
    assert not ours.keys() & {"top_k", "max_tokens"}


def test_outcomes_stream_while_others_are_still_out(client):
    done = threading.Event()

    def script(asked):
        return Reply("late", delay=0.5) if asked.prompt == "prompt 3" else Reply("soon")

    with scripted(script) as server:
        outcomes = client(server).complete(asks(8), SAMPLING)
        start = time.monotonic()
        early = [next(outcomes).text for _ in range(7)]
        assert early == ["soon"] * 7
        assert time.monotonic() - start < 0.5
        assert [outcome.text for outcome in outcomes] == ["late"]
        done.set()


def test_it_works_inside_a_running_event_loop(client):
    with scripted(echo) as server:

        async def cell() -> list:
            return list(client(server).complete(asks(5), SAMPLING))

        assert len(asyncio.run(cell())) == 5


def test_two_runs_at_once_ask_once(client):
    """Two threads, each with a ledger of its own on the same file, as two processes would have."""
    with scripted(lambda asked: Reply(asked.prompt, delay=0.05)) as server:
        found, models = [], [client(server, max_in_flight=6) for _ in range(2)]
        threads = [
            threading.Thread(target=lambda m=model: found.append(by_id(m.complete(asks(40), SAMPLING))))
            for model in models
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(server.asked) == 40
    assert [len(outcomes) for outcomes in found] == [40, 40]
    assert {key: o.text for key, o in found[0].items()} == {key: o.text for key, o in found[1].items()}


def test_a_caller_who_stops_listening_keeps_what_is_on_its_way(client):
    with scripted(lambda asked: Reply(asked.prompt, delay=0.2)) as server:
        model = client(server, max_in_flight=4)
        outcomes = model.complete(asks(40), SAMPLING)
        next(outcomes)
        outcomes.close()
        asked = len(server.asked)
        assert asked < 20
        time.sleep(0.3)
        assert len(server.asked) == asked, "nothing is asked after the end"
        assert model.ledger.report()[0]["calls"] == asked
        by_id(model.complete(asks(40), SAMPLING))
        assert len(server.asked) == 40
    assert threading.active_count() < 5


# Faults

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
from c3po_utils.chat import Sampling, request
from c3po_utils.openai_chat import open_model
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


# Pace


def test_backoff_is_jittered_and_bounded_and_does_what_the_server_asks():
    limits = Limits(backoff_s=1.0, max_backoff_s=8.0)
    waits = [[backoff(attempt, limits, None) for _ in range(500)] for attempt in range(1, 8)]
    assert all(0 <= wait <= min(8, 2 ** (n)) for n, row in enumerate(waits) for wait in row)
    assert all(max(row) > 0.9 * min(8, 2**n) and min(row) < 0.1 * min(8, 2**n) for n, row in enumerate(waits))
    assert all(130 <= backoff(1, limits, 130.0) <= 131 for _ in range(100))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "130.5"}, 130.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert retry_after(headers) == seconds


def test_a_date_in_the_future_is_waited_for():
    from email.utils import formatdate

    assert 55 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60


def test_retry_after_holds_for_all_calls(client):
    asked_first = threading.Event()

    def script(asked):
        if not asked_first.is_set():
            asked_first.set()
            return error(429, "wait", retry_after="0.6")
        return Reply("fine")

    with scripted(script) as server:
        outcomes = by_id(client(server, max_in_flight=1, timeout_s=5).complete(asks(5), SAMPLING))
        gaps = [later.arrived - server.asked[0].arrived for later in server.asked[1:]]
    assert tally(outcomes.values()) == {"ok": 5}
    assert min(gaps) >= 0.6


def test_a_wait_longer_than_the_bound_fails_without_waiting(client):
    with scripted(lambda asked: error(429, "come back tomorrow", retry_after="86400")) as server:
        start = time.monotonic()
        (outcome,) = client(server, max_wait_s=60.0).complete(asks(1), SAMPLING)
        assert (outcome.status, len(server.asked)) == ("failed", 1)
    assert time.monotonic() - start < 5
    assert re.search(r"waiting 8640\d s more would pass max_wait_s", outcome.reason)


@pytest.mark.slow
def test_retry_after_beyond_two_minutes_is_waited_for(client):
    """The SDK itself gives up above 120 s."""
    with scripted(lambda asked: Reply("fine") if asked.nth else error(429, "wait", retry_after="125")) as server:
        (outcome,) = client(server).complete(asks(1), SAMPLING)
        gap = server.asked[1].arrived - server.asked[0].arrived
    assert outcome.text == "fine"
    assert 125 <= gap < 130


def test_concurrency_doubles_until_overloaded_then_halves_once_and_grows_slowly():
    slots = Adaptive(64, start=4)
    for _ in range(4):
        slots.succeeded()
    assert slots.limit == 8
    sent_at = time.monotonic()
    for _ in range(8):
        slots.overloaded(sent_at)
    assert slots.limit == 4, "eight refusals of one moment are one overload"
    for _ in range(4):
        slots.succeeded()
    assert 4.8 < slots.limit < 5
    for _ in range(9):
        slots.overloaded(time.monotonic())
    assert slots.limit == 1


def test_concurrency_settles_where_the_server_can_bear_it(client):
    server_ = []

    def script(asked):
        over = server_[0].in_flight > 10
        return error(429, "too many") if over else Reply("fine", delay=0.02)

    with scripted(script) as server:
        server_.append(server)
        outcomes = by_id(client(server, max_attempts=8, max_in_flight=64).complete(asks(250), SAMPLING))
        refused = len(server.asked) - 250
    assert tally(outcomes.values()) == {"ok": 250}
    assert refused < 150


def test_no_more_than_max_in_flight(client):
    with scripted(lambda asked: Reply("fine", delay=0.02)) as server:
        list(client(server, max_in_flight=5).complete(asks(60), SAMPLING))
        assert server.most_in_flight == 5


def test_the_rate_limit_holds_at_the_server(client, monkeypatch):
    """A second in place of a minute, with its allowance for the way to the server; every attempt counts."""
    monkeypatch.setattr(openai_run, "Quota", functools.partial(Quota, window_s=1.0 + SKEW_S / 2))
    with scripted(faulty(echo, 0.2, ["500", "429"])) as server:
        model = client(server, requests_per_minute=20, max_attempts=6)
        outcomes = by_id(model.complete(asks(50), SAMPLING))
        arrived = [asked.arrived for asked in server.asked]
    assert tally(outcomes.values()) == {"ok": 50}
    busiest = max(sum(start <= other < start + 1.0 for other in arrived) for start in arrived)
    assert 15 <= busiest <= 20


def test_a_request_beyond_the_token_limit_fails_by_itself(client):
    with scripted(echo) as server:
        model = client(server, tokens_per_minute=100)
        outcomes = by_id(model.complete([request("big", "x" * 900), request("small", "x")], SAMPLING))
        assert len(server.asked) == 1
    assert "over tokens_per_minute = 100" in outcomes["big"].reason
    assert outcomes["small"].status == "ok"


# Money


def test_the_estimate_is_a_dry_run(client):
    with scripted(echo) as server:
        model = client(server)
        list(model.complete(asks(10), SAMPLING))
        estimate = model.estimate(asks(30), SAMPLING)
        assert len(server.asked) == 10
    assert (estimate.calls, estimate.stored, estimate.completion_tokens) == (20, 10, 20 * 32)
    assert estimate.usd == pytest.approx((estimate.prompt_tokens * 1000 + estimate.completion_tokens * 2000) / 1e6)


def test_an_unknown_price_is_said_to_be_unknown(client, capsys):
    with scripted(echo) as server:
        model = client(server, prices={})
        assert model.estimate(asks(3), SAMPLING).usd is None
        assert "cost unknown" in str(model.estimate(asks(3), SAMPLING))
        outcomes = list(model.complete(asks(3), SAMPLING, desc="asking"))
    assert [outcome.details["price_usd"] for outcome in outcomes] == [None] * 3
    assert "3 calls of unknown cost" in capsys.readouterr().err
    assert model.ledger.report()[0]["usd"] is None


def test_progress_shows_the_cost_so_far(client, capsys):
    with scripted(echo) as server:
        list(client(server).complete(asks(4), SAMPLING, desc="asking"))
    shown = capsys.readouterr().err
    assert "asking: 100%" in shown
    assert "0.1000 USD" in shown


def test_a_budget_without_a_price_is_refused(client):
    with scripted(echo) as server, pytest.raises(ValueError, match="budget_usd needs prices"):
        client(server, prices={}, budget_usd=1.0)


def test_the_budget_stops_cleanly_and_can_be_raised(client):
    with scripted(lambda asked: Reply("fine", delay=0.01)) as server:
        model, outcomes = client(server, budget_usd=0.5), []
        with pytest.raises(BudgetReached, match="raise budget_usd"):
            outcomes.extend(model.complete(asks(40), SAMPLING))
        asked = len(server.asked)
        assert len(outcomes) == asked
        assert 0.5 - 0.1 - ANSWER_USD < asked * ANSWER_USD <= 0.5, "stopped before the next could pass it"
        assert model.ledger.spent() == pytest.approx(asked * ANSWER_USD)
        rest = by_id(client(server, budget_usd=2.0).complete(asks(40), SAMPLING))
        assert (len(rest), len(server.asked)) == (40, 40)


def test_lost_answers_count_against_the_budget(client):
    """A timed out attempt may have been paid for: the cap takes the worst case."""
    with scripted(lambda asked: Reply(fault="cut")) as server:
        model = client(server, budget_usd=0.5, max_in_flight=1)
        with pytest.raises(BudgetReached):
            list(model.complete(asks(40), SAMPLING))
        assert len(server.asked) == int(0.5 / (BOUND_USD + 0.007))
    row = model.ledger.report()[0]
    assert (row["status"], row["usd"], row["unpriced"]) == ("failed", None, row["calls"])


# Killed, faulty, and watched for secrets

HERE = Path(__file__).parent


def start_run(server, folder: Path, categories: int, per_category: int, **env: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, HERE / "sampling_run.py", server.url, folder, str(categories), str(per_category)]
    log = open(folder / "log.txt", "a")  # noqa: SIM115
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


# The Batch API


@pytest.fixture
def batching(client):
    return lambda server, **limits: client(server, batch=True, poll_s=0.05, **limits)


def test_a_batch_is_sent_waited_for_and_stored_at_half_the_price(batching):
    with scripted(echo, Batches(echo)) as server:
        model = batching(server)
        outcomes = by_id(model.complete(asks(20), SAMPLING))
        assert (len(server.asked), len(server.batches.requests)) == (0, 20)
        assert len(server.batches.jobs) == 1
        list(model.complete(asks(20), SAMPLING))
        assert len(server.batches.jobs) == 1, "a rerun asks nothing"
    assert all(outcomes[ask.id].text == f"answer to {ask.messages[0]['content']}" for ask in asks(20))
    assert outcomes["r3"].details["price_usd"] == pytest.approx(ANSWER_USD / 2)
    assert model.ledger.spent() == pytest.approx(20 * ANSWER_USD / 2)
    assert model.ledger.batches(model.scope) == []


def test_live_and_batch_share_answers(client, batching):
    with scripted(echo, Batches(echo)) as server:
        list(client(server).complete(asks(5), SAMPLING))
        assert len(by_id(batching(server).complete(asks(8), SAMPLING))) == 8
        assert len(server.batches.requests) == 3


def test_answers_in_a_batch_are_typed_like_any_other(batching):
    replies = [
        Reply("fine"),
        Reply("half", finish="length"),
        Reply(text=None, refusal="no"),
        error(500),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"nothing": 1}'),
    ]
    with scripted(echo, Batches(lambda asked: replies[int(asked.prompt[-1])])) as server:
        outcomes = by_id(batching(server).complete(asks(6), SAMPLING))
    expected = ["ok", "truncated", "refused", "failed", "malformed", "failed"]
    assert [outcomes[f"r{n}"].status for n in range(6)] == expected


@pytest.mark.parametrize("end", ["expired", "cancelled", "failed"])
def test_what_a_batch_leaves_unanswered_has_failed_and_is_asked_again(batching, end):
    with scripted(echo, Batches(echo, end=end, leave_out=3)) as server:
        outcomes = by_id(batching(server).complete(asks(10), SAMPLING))
        assert tally(outcomes.values()) == {"ok": 7, "failed": 3}
        assert f"batch batch-0 {end} without this answer" in outcomes["r9"].reason
        server.batches.leave_out = 0
        assert tally(by_id(batching(server).complete(asks(10), SAMPLING)).values()) == {"ok": 10}
        assert len(server.batches.requests) == 10


def test_the_job_is_known_before_the_first_look_so_a_killed_run_collects_it(batching):
    with scripted(echo, Batches(echo, looks=10**6)) as server:
        model = batching(server)
        thread = threading.Thread(target=lambda: list(model.complete(asks(5), SAMPLING)), daemon=True)
        thread.start()
        while not server.batches.seen:
            time.sleep(0.01)
        assert model.ledger.batches(model.scope)[0].job == "batch-0"
        server.batches.looks = 0
        thread.join(10)
        assert len(server.batches.jobs) == 1


def test_a_batch_is_collected_by_the_next_run_even_if_that_asks_something_else(batching):
    with scripted(echo, Batches(echo, looks=3)) as server:
        model = batching(server)
        outcomes = model.complete(asks(5), SAMPLING)
        first = threading.Thread(target=lambda: next(outcomes, None), daemon=True)
        first.start()
        while not server.batches.seen:
            time.sleep(0.01)
        first.join()
        outcomes.close()
        later = by_id(batching(server).complete([request("x", "something else"), *asks(5)], SAMPLING))
        assert len(server.batches.requests) == 6
    assert tally(later.values()) == {"ok": 6}


def test_a_job_whose_start_was_not_seen_is_found_again(batching, monkeypatch):
    """Killed after the server took the batch and before its id was stored: adopted by its token, not sent again."""
    with scripted(echo, Batches(echo)) as server:
        model = batching(server)

        def die(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(model.ledger, "set_batch_job", die)
        with pytest.raises(KeyboardInterrupt):
            list(model.complete(asks(5), SAMPLING))
        monkeypatch.undo()
        (batch,) = model.ledger.batches(model.scope)
        assert batch.job is None
        model.ledger._db.execute("UPDATE batches SET owner = ?", (json.dumps(["x", 1, "", ""]),))
        monkeypatch.setattr("c3po_utils.openai_batch.alive", lambda owner: False)
        outcomes = by_id(batching(server).complete(asks(5), SAMPLING))
        assert len(server.batches.jobs) == 1
    assert tally(outcomes.values()) == {"ok": 5}


def test_a_batch_that_never_started_is_sent_again(batching, monkeypatch):
    with scripted(echo, Batches(echo)) as server:
        model = batching(server)
        (call,) = model.calls(asks(1), SAMPLING)
        model.ledger.claim(call.key, "[]", 60)
        model.ledger.add_batch("token", model.scope, json.dumps(["x", 1, "", ""]), [call.key], "", 1000)
        monkeypatch.setattr("c3po_utils.openai_batch.alive", lambda owner: False)
        assert tally(model.complete(asks(1), SAMPLING)) == {"ok": 1}


def test_the_batch_apis_own_calls_are_retried(batching):
    batches = Batches(echo)
    batches.faults = [error(500), error(429, "wait", retry_after="0.01"), error(503)]
    with scripted(echo, batches) as server:
        assert tally(batching(server, max_attempts=6).complete(asks(3), SAMPLING)) == {"ok": 3}
        assert len(batches.jobs) == 1


def test_a_refused_batch_is_an_error_and_leaves_nothing_behind(batching):
    batches = Batches(echo)
    batches.faults = [error(400, "no batches here")]
    with scripted(echo, batches) as server:
        model = batching(server)
        with pytest.raises(RuntimeError, match="batch API of .*: HTTP 400: no batches here"):
            list(model.complete(asks(3), SAMPLING))
        assert model.ledger.batches(model.scope) == []
        assert tally(model.complete(asks(3), SAMPLING)) == {"ok": 3}


def test_a_batch_stays_within_the_budget(batching):
    with scripted(echo, Batches(echo)) as server:
        model, outcomes = batching(server, budget_usd=0.3), []
        with pytest.raises(BudgetReached):
            outcomes.extend(model.complete(asks(60), SAMPLING))
        assert 0 < len(outcomes) < 60
        assert model.ledger.spent() <= 0.3
        assert tally(by_id(batching(server, budget_usd=9.0).complete(asks(60), SAMPLING)).values()) == {"ok": 60}
        assert len(server.batches.requests) == 60


# A real server


@pytest.mark.embedded
@pytest.mark.parametrize("stream", [False, True], ids=["", "streamed"])
def test_llama_cpp_answers_many_requests(tmp_path, stream):
    model = open_model(f"openai:smollm2@{embedded_server()}", tmp_path / "calls.sqlite", max_in_flight=4, stream=stream)
    outcomes = by_id(model.complete(asks(8), Sampling(max_new_tokens=4)))
    assert set(tally(outcomes.values())) <= {"ok", "truncated"}
    assert all(outcome.prompt_tokens > 5 and 1 <= outcome.completion_tokens <= 4 for outcome in outcomes.values())
    again = by_id(model.complete(asks(8), Sampling(max_new_tokens=4)))
    assert again == outcomes


@pytest.mark.embedded
def test_llama_cpp_keeps_to_a_schema(tmp_path):
    properties = {"colour": {"enum": ["red", "blue"]}, "number": {"type": "integer", "minimum": 1, "maximum": 5}}
    schema = {"title": "Choice", "type": "object", "properties": properties}
    schema |= {"required": ["colour", "number"], "additionalProperties": False}
    message = {"role": "user", "content": "Choose a colour and a number."}
    model = open_model(f"openai:smollm2@{embedded_server()}", tmp_path / "calls.sqlite")
    requests = [Request(f"r{n}", (message,), schema, n) for n in range(3)]
    for outcome in model.complete(requests, Sampling(max_new_tokens=40)):
        assert outcome.status == "ok"
        choice = json.loads(outcome.text)
        assert choice["colour"] in ("red", "blue")
        assert 1 <= choice["number"] <= 5

"""What can go wrong with a batch: paid answers are kept, each request ends by type or is asked again, none twice."""

import asyncio
import functools
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3po_utils.chat.openai import batch_api
from c3po_utils.chat.openai.batch_api import BatchFailed, BatchRun
from tests.asking import ANSWER_USD, SAMPLING, asks, by_id, echo, fast_client, tally
from tests.servers import Batches, Reply, error, redirect, scripted


@pytest.fixture
def batching(tmp_path):
    return functools.partial(fast_client, tmp_path, batch=True, poll_s=0.05)


def asked(server) -> list[str]:
    """The prompts that batches were made of, in order."""
    return [line["body"]["messages"][-1]["content"] for line in server.batches.requests]


def ends_well(batching, server, count: int) -> None:
    """The next run answers everything, and then nothing is left open."""
    server.batches.fault, server.batches.output = lambda call: None, lambda content: content
    model = batching(server)
    assert tally(by_id(model.complete(asks(count), SAMPLING)).values()) == {"ok": count}
    for batch in model.ledger.batches(model.scope):  # one that was killed while it was forgotten
        assert model.ledger.lookup(batch.keys).keys() == set(batch.keys)
    assert model.ledger._read("SELECT COUNT(*) FROM leases") == [(0,)]


def at(call: str, reply: Reply):
    return lambda seen: reply if re.fullmatch(call, seen) else None


CALLS = ["POST /files", "POST /batches", "GET /batches", r"GET /batches/\S+", r"GET /files/\S+"]
REPLIES = {
    "500": error(500), "400": error(400, "no"), "401": error(401, "who?"), "reset": Reply(fault="reset"),
    "HTML": Reply(body=b"<html>login</html>", kind="text/html"), "{}": Reply(body=b"{}"), "[3]": Reply(body=b"[3]"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_fault_of_the_api_that_stays_stops_the_run_and_the_next_one_goes_on(batching, call, reply):
    with scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(call, reply)
        outcomes, told = {}, f"batch API of {server.url}: "
        try:
            outcomes = by_id(batching(server, max_attempts=2).complete(asks(4), SAMPLING))
        except BatchFailed as error:
            told = str(error)
        assert told.startswith(f"batch API of {server.url}: ")
        assert "\n" not in told
        assert set(tally(outcomes.values())) <= {"failed", "ok"}
        ends_well(batching, server, 4)
        again = sum(outcome.status == "failed" for outcome in outcomes.values())
        assert len(server.batches.requests) == 4 + again
        assert len(set(asked(server))) == 4


def test_a_batch_that_started_although_every_answer_said_no_is_collected_by_the_next_run(batching):
    with scripted(echo, Batches(echo)) as server:
        server.batches.lost_starts = 1
        with pytest.raises(BatchFailed, match="HTTP 500: lost"):
            list(batching(server, max_attempts=1).complete(asks(4), SAMPLING))
        ends_well(batching, server, 4)
        assert len(server.batches.jobs) == 1


@pytest.mark.parametrize("lost", [error(500, "lost"), Reply(body=b'{"id": "bat')], ids=["500", "cut JSON"])
def test_a_batch_whose_start_was_lost_and_then_refused_is_collected_by_the_next_run(batching, monkeypatch, lost):
    with scripted(echo, Batches(echo)) as server:
        start = server.batches._start
        monkeypatch.setattr(server.batches, "_start", lambda asked: start(asked) and lost)
        server.batches.fault = lambda call: error(401, "who?") if server.batches.jobs else None
        with pytest.raises(BatchFailed, match="401: who" if lost.status == 500 else "JSON"):
            list(batching(server).complete(asks(4), SAMPLING))
        monkeypatch.undo()
        ends_well(batching, server, 4)
        assert len(server.batches.jobs) == 1


def test_a_batch_that_the_server_forgot_is_asked_again_and_may_have_been_paid_for(batching):
    with scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(r"GET /batches/\S+", error(404, "no such batch"))
        model = batching(server)
        outcomes = by_id(model.complete(asks(2), SAMPLING))
        assert tally(outcomes.values()) == {"failed": 2}
        assert "HTTP 404: no such batch" in outcomes["r0"].reason
        assert model.ledger.spent() > 2 * ANSWER_USD / 2
        ends_well(batching, server, 2)


@pytest.mark.parametrize("call", CALLS)
def test_a_redirect_of_the_batch_api_is_told_and_not_followed(batching, call):
    with scripted(echo) as other, scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(call, redirect(307, f"{other.url}/chat/completions"))
        told = ""
        try:
            told = " ".join(outcome.reason for outcome in batching(server).complete(asks(2), SAMPLING))
        except BatchFailed as error:
            told = str(error)
        assert f"{server.url} redirects to {other.url}" in told
        assert other.asked == []
        ends_well(batching, server, 2)


@pytest.mark.parametrize("status", [404, 410])
def test_a_result_file_that_is_gone_is_said_and_may_have_been_paid_for(batching, status):
    with scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(r"GET /files/\S+", error(status, "expired"))
        model = batching(server)
        outcomes = by_id(model.complete(asks(2), SAMPLING))
        assert tally(outcomes.values()) == {"failed": 2}
        assert f"HTTP {status}: expired" in outcomes["r0"].reason
        assert model.ledger.spent() > 2 * ANSWER_USD / 2
        ends_well(batching, server, 2)


@pytest.mark.parametrize("status", [400, 401, 403, 307, 500])
def test_a_result_file_that_cannot_be_read_now_is_read_by_the_next_run(batching, status):
    with scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(r"GET /files/\S+", error(status, "not now"))
        with pytest.raises(BatchFailed, match=f"HTTP {status}: "):
            list(batching(server).complete(asks(2), SAMPLING))
        ends_well(batching, server, 2)
        assert len(server.batches.requests) == 2


@pytest.mark.parametrize("call", [r"GET /files/\S+", r"GET /batches/\S+"])
def test_what_the_api_refuses_for_a_month_is_asked_again(batching, monkeypatch, call):
    """Else nothing could be asked of the model any more."""
    with scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(call, error(403, "not for you"))
        with pytest.raises(BatchFailed, match="HTTP 403"):
            list(batching(server).complete(asks(2), SAMPLING))
        monkeypatch.setattr(batch_api, "KEPT_S", 0.0)
        outcomes = by_id(batching(server).complete(asks(2), SAMPLING))
        assert tally(outcomes.values()) == {"failed": 2}
        assert "HTTP 403: not for you" in outcomes["r0"].reason
        ends_well(batching, server, 2)


def test_an_error_of_ours_while_a_result_file_is_read_loses_no_answer(batching, monkeypatch):
    with scripted(echo, Batches(echo)) as server:
        monkeypatch.setattr(BatchRun, "_result", lambda run, line: 1 / 0)
        with pytest.raises(BatchFailed, match="ZeroDivisionError"):
            list(batching(server).complete(asks(2), SAMPLING))
        monkeypatch.undo()
        ends_well(batching, server, 2)
        assert len(server.batches.requests) == 2


@pytest.mark.parametrize("gone", [False, True], ids=["answers", "failures"])
def test_two_runs_that_collect_one_batch_at_a_time_both_go_on_and_count_it_once(batching, monkeypatch, gone):
    """The second begins and ends while the first records its first outcome."""
    with scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(r"GET /batches/\S+", error(404, "no such batch")) if gone else lambda call: None
        model, found, end = batching(server), {}, BatchRun._end

        def second_first(run, call, reply) -> None:
            monkeypatch.setattr(BatchRun, "_end", end)
            other = batching(server, max_attempts=2)
            found.update(by_id(other.complete(asks(5)[:4] if gone else asks(5), SAMPLING)))
            found["spent"] = other.ledger.spent()
            end(run, call, reply)

        monkeypatch.setattr(BatchRun, "_end", second_first)
        outcomes = by_id(model.complete(asks(4), SAMPLING))
        spent, status = found.pop("spent"), "failed" if gone else "ok"
        assert tally(outcomes.values()) == {status: 4}
        assert set(tally(found.values())) == {status}
        assert model.ledger.spent() == pytest.approx(spent)
        assert len(server.batches.jobs) == (1 if gone else 2)


def swap(content: bytes, **changes) -> bytes:
    first, *rest = content.splitlines()
    return b"\n".join([json.dumps({**json.loads(first), **changes}).encode(), *rest]) + b"\n"


def cut_first(content: bytes) -> bytes:
    first, *rest = content.splitlines()
    return b"\n".join([first[:200], *rest])


def failed_first(content: bytes) -> bytes:
    """Every answer is preceded by a failure of the same call."""
    response = {"status_code": 500, "body": {"error": {"message": "no"}}}
    failures = [{"custom_id": json.loads(line)["custom_id"], "response": response} for line in content.splitlines()]
    return "".join(json.dumps(one) + "\n" for one in failures).encode() + content


OUTPUTS = {  # what is done to the file, and how many calls have no answer then
    "empty": (lambda content: b"", 4),
    "missing lines": (lambda content: b"\n".join(content.splitlines()[1:]), 1),
    "every line twice": (lambda content: content * 2, 0),
    "failures that an answer follows": (failed_first, 0),
    "answers that failures follow": (lambda content: content + failed_first(content), 0),
    "unknown ids": (lambda content: swap(content, custom_id="f" * 64), 1),
    "an id that is a list": (lambda content: swap(content, custom_id=[1]), 1),
    "an id that is null": (lambda content: swap(content, custom_id=None), 1),
    "a response that is null": (lambda content: swap(content, response=None), 1),
    "a response that is a number": (lambda content: swap(content, response=3), 1),
    "a body that is null": (lambda content: swap(content, response={"status_code": 200, "body": None}), 1),
    "a deep body": (lambda content: b"[" * 100_000 + b"\n" + content, 0),
    "a line cut off": (cut_first, 1),
    "empty lines and noise": (lambda content: b"\n\n\xff\xfe\n{}\n[]\nnull\n" + content, 0),
    "CRLF": (lambda content: content.replace(b"\n", b"\r\n"), 0),
    "no last line end": (lambda content: content.rstrip(), 0),
    "cut in the middle": (lambda content: content[: len(content) // 2], 2),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_odd_result_files_lose_only_their_own_lines(batching, output):
    with scripted(echo, Batches(echo)) as server:
        server.batches.output, lost = OUTPUTS[output]
        outcomes = by_id(batching(server).complete(asks(4), SAMPLING))
        assert {"ok": 0, "failed": 0, **tally(outcomes.values())} == {"ok": 4 - lost, "failed": lost}
        assert all(outcome.text == f"answer to prompt {id[1:]}" for id, outcome in outcomes.items() if outcome.text)
        answered = {id for id, outcome in outcomes.items() if outcome.status == "ok"}
        before = len(asked(server))
        ends_well(batching, server, 4)
        assert not {f"prompt {id[1:]}" for id in answered} & set(asked(server)[before:]), "no answer is asked for twice"


def test_an_answer_that_is_too_long_ends_by_type_and_is_not_asked_again(batching):
    long = Batches(lambda asked: Reply("x" * 50_000) if asked.prompt == "prompt 1" else Reply("fine"))
    with scripted(echo, long) as server:
        outcomes = by_id(batching(server, max_answer_bytes=10_000).complete(asks(4), SAMPLING))
        assert tally(outcomes.values()) == {"ok": 3, "malformed": 1}
        assert "longer than" in outcomes["r1"].reason
        list(batching(server).complete(asks(4), SAMPLING))
        assert len(server.batches.jobs) == 1


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"x" * 999 + b"\n", b"z"], ids=["empty", "{}", "noise", "one line"])
def test_a_result_file_without_an_end_is_read_no_further_than_can_be_meant(batching, line):
    with scripted(echo, Batches(echo)) as server:
        server.batches.output = lambda content: line * (40_000_000 // len(line)) + content
        start = time.monotonic()
        outcomes = by_id(batching(server, max_answer_bytes=100_000).complete(asks(2), SAMPLING))
        assert set(tally(outcomes.values())) <= {"failed", "ok"}
        assert time.monotonic() - start < 20


STATUS = st.sampled_from(
    ["in_progress", "completed", "failed", "expired", "cancelled", "finalizing", None, 3, "\ud83d"]
)
ANY = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
ERRORS = (
    st.fixed_dictionaries({"data": ANY | st.lists(ANY | st.fixed_dictionaries({"message": ANY}), max_size=2)}) | ANY
)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(status=STATUS, errors=ERRORS, output=ANY, metadata=ANY)
def test_any_look_at_a_batch_leaves_the_run_in_order(tmp_path_factory, status, errors, output, metadata):
    folder = tmp_path_factory.mktemp("batch")
    with scripted(echo, Batches(echo)) as server:
        odd = {
            "status": status,
            "errors": errors,
            "output_file_id": output,
            "error_file_id": output,
            "metadata": metadata,
        }
        looks = iter([odd])

        def fault(call: str) -> Reply | None:
            if re.fullmatch(r"GET /batches/\S+", call) and (job := next(looks, None)):
                return Reply(body=json.dumps({"id": "batch-0", "object": "batch", **job}).encode())
            return None

        server.batches.fault = fault
        model = fast_client(folder, server, batch=True, poll_s=0.01, backoff_s=0.0, max_attempts=2)
        outcomes = by_id(model.complete(asks(2), SAMPLING))
        assert set(tally(outcomes.values())) <= {"failed", "ok"}
        assert tally(by_id(model.complete(asks(2), SAMPLING)).values()) == {"ok": 2}
        model.ledger.close()


KILLED = """
import os, sys
from c3po_utils.chat.ledger import Ledger
from c3po_utils.chat.openai.client import open_model
from tests.asking import SAMPLING, asks
kill = lambda *_: os.kill(os.getpid(), 9)
setattr(Ledger, sys.argv[3], kill)
model = open_model(f"openai:m@{sys.argv[1]}", sys.argv[2], batch=True, poll_s=0.05)
list(model.complete(asks(4), SAMPLING))
"""


@pytest.mark.parametrize("where", ["add_batch", "disown_batch", "set_batch_job", "record", "end_batch"])
def test_a_run_killed_at_any_step_of_a_batch_pays_for_nothing_twice(tmp_path, batching, where):
    with scripted(echo, Batches(echo)) as server:
        server.batches.lost_starts = 9 * (where == "disown_batch")
        command = [sys.executable, "-c", KILLED, server.url, tmp_path / "calls.sqlite", where]
        process = subprocess.run(command, capture_output=True, timeout=60)
        assert process.returncode in (-9, 0) or where == "disown_batch", process.stderr
        server.batches.lost_starts = 0
        ends_well(batching, server, 4)
        assert sorted(asked(server)) == [f"prompt {n}" for n in range(4)]


def test_a_batch_that_another_run_forgot_while_it_was_sent_is_not_started(batching, monkeypatch):
    with scripted(echo, Batches(echo)) as server:
        model, upload = batching(server), BatchRun._upload

        async def slow_upload(run, content) -> str:
            monkeypatch.undo()
            (batch,) = model.ledger.batches(model.scope)
            model.ledger.end_batch(batch.token)
            return await upload(run, content)

        monkeypatch.setattr(BatchRun, "_upload", slow_upload)
        with pytest.raises(BatchFailed, match="another run has taken over its calls"):
            list(model.complete(asks(2), SAMPLING))
        assert server.batches.jobs == {}
        ends_well(batching, server, 2)


@pytest.mark.parametrize(("call", "left"), [("POST /files", 0), ("POST /batches", 1)])
def test_a_run_that_is_stopped_waits_through_no_backoff(batching, call, left):
    with scripted(echo, Batches(echo)) as server:
        server.batches.fault = at(call, error(503, "later", retry_after="600"))
        model, stop = batching(server), threading.Event()
        run = BatchRun(model, model.calls(asks(2), SAMPLING), lambda *_: None, stop)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(lambda: asyncio.run(asyncio.wait_for(run.go(), 10)))
            while call not in server.batches.calls:
                time.sleep(0.01)
            stop.set()
            with pytest.raises(BatchFailed, match="HTTP 503: later"):
                ended.result()
        assert len(model.ledger.batches(model.scope)) == left, "one that may have been started is looked for"
        ends_well(batching, server, 2)


def test_live_calls_do_not_wait_for_a_batch_that_nobody_collects(tmp_path, batching):
    with scripted(echo, Batches(echo, looks=10**6)) as server:
        outcomes = batching(server).complete(asks(2), SAMPLING)
        thread = threading.Thread(target=lambda: next(outcomes, None), daemon=True)
        thread.start()
        while not server.batches.seen:
            time.sleep(0.01)
        live = by_id(fast_client(tmp_path, server).complete(asks(3), SAMPLING))
        assert tally(live.values()) == {"failed": 2, "ok": 1}
        assert "run with the limit `batch: true`" in live["r0"].reason
        server.batches.looks = 0
        thread.join()
        outcomes.close()
        ends_well(batching, server, 3)
        assert len(server.asked) + len(server.batches.requests) == 3


def test_a_connection_error_names_the_address(tmp_path, batching):
    with scripted(echo) as server:
        url = server.url
    server.batches = None
    with pytest.raises(BatchFailed, match=f"batch API of {url}: .*Connect"):
        list(batching(server).complete(asks(1), SAMPLING))
    (outcome,) = fast_client(tmp_path, server, batch=False).complete(asks(2)[1:], SAMPLING)
    assert re.match(f"{url}: ConnectError: ", outcome.reason)

import functools
import json
import threading
import time
from dataclasses import replace

import pytest

from c3po_utils.chat.budget import BudgetReached, new_owner
from c3po_utils.chat.openai import replies
from c3po_utils.chat.openai.batch_api import BatchRun
from c3po_utils.chat.types import Request, request
from c3po_utils.sampling.deduplicated import Listing
from tests.asking import ANSWER_USD, SAMPLING, asks, by_id, echo, fast_client, tally
from tests.servers import Batches, Reply, error, scripted


@pytest.fixture
def client(tmp_path):
    return functools.partial(fast_client, tmp_path)


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


def test_an_answer_whose_price_is_unknown_costs_in_a_batch_what_its_claim_had_reserved(batching):
    """Its form is paid for like the words: a batch that another run collects knows it from what was sent."""
    asked = [replace(ask, schema=Listing.schema_for_api()) for ask in asks(2)]
    with scripted(echo, Batches(lambda asked: Reply(usage=None))) as server:
        model = batching(server)
        assert tally(model.complete(asked, SAMPLING)) == {"ok": 2}
    assert model.ledger.spent() == pytest.approx(sum(map(model.ceiling, model.calls(asked, SAMPLING))))


def test_what_was_sent_is_read_once_however_many_result_files_there_are(batching, monkeypatch):
    """It may be 150 MB."""
    with scripted(echo, Batches(echo, looks=1, leave_out=1)) as server:
        model, read, look = batching(server), [], Batches._look

        def two_files(batches, name) -> Reply:
            look(batches, name)
            batches.jobs[name]["error_file_id"] = batches.jobs[name].get("output_file_id")
            return look(batches, name)

        monkeypatch.setattr(Batches, "_look", two_files)
        content = model.ledger.batch_content
        monkeypatch.setattr(model.ledger, "batch_content", lambda token: read.append(token) or content(token))
        assert tally(model.complete(asks(3), SAMPLING)) == {"ok": 2, "failed": 1}
    assert len(read) == 1


def test_a_batch_that_another_run_has_ended_meanwhile_is_not_ended_again(batching):
    """Whose calls may be on their way anew."""
    with scripted(echo, Batches(echo)) as server:
        model, other = batching(server), new_owner()
        (call,) = calls = model.calls(asks(1), SAMPLING)
        model.ledger.add_batch("token", model.scope, new_owner(), [call.key], "", 60)
        (batch,) = model.ledger.batches(model.scope)
        model.ledger.end_batch("token")
        assert model.ledger.claim(call.key, other, 60) is True
        run = BatchRun(model, calls, lambda *_: None, threading.Event())
        run._close(batch, {call.key: call}, replies.Reply("failed"))
        assert model.ledger.failures([call.key]) == {}
        assert model.ledger.claim(call.key, new_owner(), 60) is False


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


def test_a_server_without_schemas_is_found_out_by_a_batch(batching):
    refused = error(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model")
    with scripted(echo, Batches(lambda asked: refused if "response_format" in asked.body else Reply("fine"))) as server:
        model = batching(server)
        list(model.complete(asks(1), SAMPLING))
        assert model.supports_schema
        list(model.complete([Request("r", ({"role": "user", "content": "x"},), schema={"title": "A"})], SAMPLING))
    assert not model.supports_schema


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
        monkeypatch.setattr("c3po_utils.chat.openai.batch_api.alive", lambda owner: False)
        outcomes = by_id(batching(server).complete(asks(5), SAMPLING))
        assert len(server.batches.jobs) == 1
    assert tally(outcomes.values()) == {"ok": 5}


def test_a_batch_that_never_started_is_sent_again(batching, monkeypatch):
    with scripted(echo, Batches(echo)) as server:
        model = batching(server)
        (call,) = model.calls(asks(1), SAMPLING)
        model.ledger.claim(call.key, "[]", 60)
        model.ledger.add_batch("token", model.scope, json.dumps(["x", 1, "", ""]), [call.key], "", 1000)
        monkeypatch.setattr("c3po_utils.chat.openai.batch_api.alive", lambda owner: False)
        assert tally(model.complete(asks(1), SAMPLING)) == {"ok": 1}


def test_a_sender_on_another_machine_has_an_hour_to_start_its_batch(batching):
    with scripted(echo, Batches(echo)) as server:
        model, outcomes = batching(server), []
        (call,) = model.calls(asks(1), SAMPLING)
        other = json.dumps(["another machine", 1, "", ""])
        model.ledger.claim(call.key, other, 60)
        model.ledger.add_batch("token", model.scope, other, [call.key], "", 1000)
        thread = threading.Thread(target=lambda: outcomes.extend(model.complete(asks(1), SAMPLING)), daemon=True)
        thread.start()
        thread.join(0.5)
        assert (thread.is_alive(), len(server.batches.jobs)) == (True, 0)
        model.ledger._db.execute("UPDATE batches SET at = at - 3601")
        thread.join(10)
        assert tally(outcomes) == {"ok": 1}


def test_the_batch_apis_own_calls_are_retried(batching):
    batches = Batches(echo)
    batches.faults = [error(500), error(429, "wait", retry_after="0.01"), error(503)]
    with scripted(echo, batches) as server:
        assert tally(batching(server, max_attempts=6).complete(asks(3), SAMPLING)) == {"ok": 3}
        assert len(batches.jobs) == 1


def test_a_batch_that_started_although_the_answer_was_lost_is_not_sent_twice(batching):
    batches = Batches(echo)
    batches.lost_starts = 1
    with scripted(echo, batches) as server:
        assert tally(batching(server).complete(asks(3), SAMPLING)) == {"ok": 3}
        assert len(batches.jobs) == 1


def test_a_refused_batch_is_an_error_and_leaves_nothing_behind(batching):
    batches = Batches(echo)
    batches.faults = [error(400, "no batches here")]
    with scripted(echo, batches) as server:
        model = batching(server)
        with pytest.raises(RuntimeError, match=r"batch API of .*: HTTP 400: no batches here"):
            list(model.complete(asks(3), SAMPLING))
        assert model.ledger.batches(model.scope) == []
        assert model.ledger._read("SELECT COUNT(*) FROM leases") == [(0,)]
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

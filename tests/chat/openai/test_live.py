import functools
import re
import time
from email.utils import formatdate

import pytest

from c3po_utils.chat.budget import SKEW_S, BudgetReached, Quota
from c3po_utils.chat.openai import live
from c3po_utils.chat.openai.client import OpenAIChat
from c3po_utils.chat.openai.limits import Limits
from c3po_utils.chat.openai.pace import Adaptive, backoff, retry_after
from c3po_utils.chat.types import request
from tests.asking import ANSWER_USD, SAMPLING, asks, by_id, echo, fast_client, tally
from tests.servers import Reply, error, faulty, scripted


@pytest.fixture
def client(tmp_path):
    return functools.partial(fast_client, tmp_path)


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
    assert 55 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60


def test_retry_after_holds_for_all_calls(client):
    """The first of four calls at once is told to wait: what comes after the other three waits as well."""

    def script(asked):
        return error(429, "wait", retry_after="0.6") if asked.index == 0 else Reply("fine", delay=0.1)

    with scripted(script) as server:
        outcomes = by_id(client(server, max_in_flight=4, timeout_s=5).complete(asks(12), SAMPLING))
        arrived = sorted(asked.arrived - server.asked[0].arrived for asked in server.asked)
    assert tally(outcomes.values()) == {"ok": 12}
    assert arrived[3] < 0.5 < 0.6 <= arrived[4]


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
    monkeypatch.setattr(live, "Quota", functools.partial(Quota, window_s=1.0 + SKEW_S / 2))
    with scripted(faulty(echo, 0.2, ["500", "429"])) as server:
        model = client(server, requests_per_minute=20, max_attempts=6)
        outcomes = by_id(model.complete(asks(50), SAMPLING))
        arrived = [asked.arrived for asked in server.asked]
    assert tally(outcomes.values()) == {"ok": 50}
    busiest = max(sum(start <= other < start + 1.0 for other in arrived) for start in arrived)
    assert 15 <= busiest <= 20


def test_a_turn_in_the_limiters_queue_is_no_waiting_of_the_calls_own(client, monkeypatch):
    """Every call fails once and queues for seconds, with half a second for its own pauses."""
    monkeypatch.setattr(live, "Quota", functools.partial(Quota, window_s=1.0))
    with scripted(lambda asked: Reply("fine") if asked.nth else error(500)) as server:
        model = client(server, requests_per_minute=3, max_wait_s=0.5)
        assert tally(model.complete(asks(5), SAMPLING)) == {"ok": 5}
        assert server.asked[-1].arrived - server.asked[0].arrived > 2


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
    assert (estimate.calls, estimate.stored, estimate.answer_tokens) == (20, 10, 20 * 32)
    assert estimate.usd == pytest.approx((estimate.prompt_tokens * 1000 + estimate.answer_tokens * 2000) / 1e6)


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


def loses_every_answer(client, max_in_flight: int) -> OpenAIChat:
    """A model whose attempts may all have been paid for, until its budget is spent at their ceilings."""
    with scripted(lambda asked: Reply(fault="cut")) as server:
        model = client(server, budget_usd=0.5, max_in_flight=max_in_flight)
        with pytest.raises(BudgetReached):
            list(model.complete(asks(40), SAMPLING))
        assert len(server.asked) == int(0.5 / ((8 + 16) * 0.001 + 32 * 0.002))
    return model


def test_lost_answers_count_against_the_budget(client):
    """A timed out attempt may have been paid for: the cap takes the worst case."""
    row = loses_every_answer(client, 1).ledger.report()[0]
    assert (row["status"], row["usd"], row["unpriced"]) == ("failed", None, row["calls"])


@pytest.mark.timeout(30)
def test_calls_that_all_wait_for_leave_to_be_sent_again_do_not_wait_for_each_other(client):
    assert 0.5 - 0.1 < loses_every_answer(client, 5).ledger.spent() <= 0.5


def test_calls_cut_off_at_the_end_count_at_their_ceiling(client, monkeypatch):
    monkeypatch.setattr(live, "GRACE_S", 0.1)
    with scripted(lambda asked: Reply("fine") if asked.index == 0 else Reply(fault="silent")) as server:
        model = client(server, max_in_flight=3, timeout_s=30)
        outcomes = model.complete(asks(10), SAMPLING)
        next(outcomes)
        while len(server.asked) < 4:
            time.sleep(0.01)
        outcomes.close()
        assert model.ledger.spent() == pytest.approx(ANSWER_USD + 3 * ((8 + 16) * 0.001 + 32 * 0.002))
        assert model.ledger._read("SELECT COUNT(*) FROM leases") == [(0,)]

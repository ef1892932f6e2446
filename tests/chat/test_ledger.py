import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from c3po_utils.chat import ledger_file
from c3po_utils.chat.budget import BudgetReached, Quota, alive, new_owner
from c3po_utils.chat.ledger import Entry, Ledger

OK = Entry("ok", "", "an answer", 10, 5, price=0.5, at_most=0.5)


@pytest.fixture(params=["wal", "delete"])
def book(tmp_path, monkeypatch, request):
    """A ledger as it is on a disk of this machine, and as it is on a network's, whose journal all that open it keep."""
    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "on_network", lambda folder: request.param == "delete")
        Ledger(tmp_path / "calls.sqlite").close()
    ledger = Ledger(tmp_path / "calls.sqlite")
    assert ledger._read("PRAGMA journal_mode") == [(request.param,)]
    return ledger


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "calls.sqlite")


def dead_owner() -> str:
    """The owner name of a process that has ended."""
    code = "from c3po_utils.chat.budget import new_owner; print(new_owner())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_an_answer_is_found_by_every_later_reader(ledger):
    ledger.record("k", "m@e", "{}", OK)
    assert Ledger(ledger.path).lookup(["k", "other"]) == {"k": OK}
    assert Ledger(ledger.path).claim("k", new_owner(), 60) == OK


@pytest.mark.parametrize("status", ["ok", "truncated", "refused", "filtered", "malformed"])
def test_answers_of_every_kind_are_kept(ledger, status):
    ledger.record("k", "m", "{}", Entry(status, "why"))
    assert ledger.lookup(["k"])["k"].status == status


def test_a_failure_is_no_answer_and_the_next_run_replaces_it(ledger):
    ledger.record("k", "m", "{}", Entry("failed", "reset", price=0.25, at_most=0.25))
    assert ledger.lookup(["k"]) == {}
    assert ledger.claim("k", new_owner(), 60) is True
    ledger.record("k", "m", "{}", OK)
    stored = ledger.lookup(["k"])["k"]
    assert (stored.status, stored.price, stored.at_most) == ("ok", 0.75, 0.75)
    assert ledger.spent() == 0.75


def test_an_unknown_price_stays_unknown(ledger):
    ledger.record("k", "m", "{}", Entry("failed", "timeout", price=None, at_most=2.0))
    ledger.record("k", "m", "{}", OK)
    assert (ledger.lookup(["k"])["k"].price, ledger.spent()) == (None, 2.5)
    assert ledger.report()[0]["unpriced"] == 1


def test_an_answer_is_never_replaced(ledger):
    ledger.record("k", "m", "{}", OK)
    ledger.record("k", "m", "{}", Entry("failed", "too late"))
    ledger.record("k", "m", "{}", Entry("ok", "", "another"))
    assert ledger.lookup(["k"])["k"].text == "an answer"


def test_whoever_waited_takes_the_failure_too(ledger):
    ledger.record("k", "m", "{}", Entry("failed", "reset"))
    assert ledger.claim("k", new_owner(), 60, known=0.0).reason == "reset"
    assert ledger.claim("k", new_owner(), 60, known=ledger.failures(["k"])["k"]) is True


def test_a_call_in_flight_is_claimed_once(ledger):
    mine, other = new_owner(), new_owner()
    assert ledger.claim("k", mine, 60) is True
    assert ledger.claim("k", other, 60) is False
    ledger.release("k", mine)
    assert ledger.claim("k", other, 60) is True


def test_a_lease_ends_with_its_time_or_its_process(ledger):
    ledger.claim("slow", new_owner(), 0.0)
    ledger.claim("dead", dead_owner(), 1000)
    time.sleep(0.01)
    assert ledger.claim("slow", new_owner(), 60) is True
    assert ledger.claim("dead", new_owner(), 60) is True


def test_a_renewed_lease_holds(ledger):
    mine = new_owner()
    ledger.claim("k", mine, 0.0)
    ledger.renew(["k"], mine, 60)
    assert ledger.claim("k", new_owner(), 60) is False


def test_a_pid_used_again_is_not_its_predecessor():
    machine, pid, _, run = json.loads(new_owner())
    assert not alive(json.dumps([machine, pid, "1", run]))
    assert alive(json.dumps(["another machine", pid, "1", run]))


def test_only_one_of_many_threads_and_ledgers_gets_a_claim(book):
    won = []

    def compete() -> None:
        own = Ledger(book.path)
        won.extend(key for key in map(str, range(40)) if own.claim(key, new_owner(), 60) is True)

    with ThreadPoolExecutor(8) as pool:
        [future.result() for future in [pool.submit(compete) for _ in range(8)]]
    assert sorted(won, key=int) == [str(n) for n in range(40)]


def test_many_processes_can_make_a_ledger_at_once(tmp_path):
    code = "import sys; from c3po_utils.chat.ledger import Ledger; Ledger(sys.argv[1]).lookup(['k'])"
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"]) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 20)
    with pytest.raises(sqlite3.DatabaseError, match="text: expected a call ledger"):
        Ledger(tmp_path / "text")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE recipes (name)").connection.commit()
    with pytest.raises(sqlite3.DatabaseError, match="other: expected a call ledger; found a database"):
        Ledger(tmp_path / "other")


# The budget


def quota(ceiling: float, budget: float) -> Quota:
    return Quota(ceiling=ceiling, budget_usd=budget)


def test_the_budget_is_never_passed_not_even_by_calls_in_flight(ledger):
    mine = new_owner()
    for key in "ab":
        ledger.claim(key, mine, 60)
    assert ledger.admit("m", "a", quota(0.6, 1.0)) == (0.0, 0)
    wait, _ = ledger.admit("m", "b", quota(0.6, 1.0))
    assert wait > 0, "what `a` will cost is not known yet: `b` has to wait"
    ledger.record("a", "m", "{}", Entry("ok", price=0.1, at_most=0.1), owner=mine)
    assert ledger.admit("m", "b", quota(0.6, 1.0)) == (0.0, 0)
    assert ledger.spent() == pytest.approx(0.7)


def test_a_spent_budget_stops_and_a_raised_one_goes_on(ledger):
    ledger.record("a", "m", "{}", Entry("ok", price=0.9, at_most=0.9))
    ledger.claim("b", new_owner(), 60)
    with pytest.raises(BudgetReached, match=r"0.9000 of the budget of 1.0000 USD are spent.*raise budget_usd"):
        ledger.admit("m", "b", quota(0.2, 1.0))
    assert ledger.admit("m", "b", quota(0.2, 1.2)) == (0.0, 0)


def test_a_budget_that_open_batches_hold_is_told_at_once(ledger):
    """They may never be collected."""
    sender, mine = new_owner(), new_owner()
    ledger.claim("a", sender, 60)
    ledger.admit("other", "a", quota(0.6, 1.0))
    ledger.add_batch("token", "other", sender, ["a"], "{}", 1000)
    ledger.claim("b", mine, 60)
    with pytest.raises(BudgetReached, match=r"are spent \(0.6000 held by batches that are not collected yet\)"):
        ledger.admit("m", "b", quota(0.6, 1.0))
    ledger.end_batch("token")
    assert ledger.admit("m", "b", quota(0.6, 1.0)) == (0.0, 0)


def test_what_a_killed_process_may_have_spent_stays_counted(ledger):
    ledger.claim("a", dead_owner(), 1000)
    ledger.admit("m", "a", quota(0.6, 1.0))
    ledger.claim("a", new_owner(), 60)
    assert ledger.spent() == pytest.approx(0.6)
    with pytest.raises(BudgetReached):
        ledger.admit("m", "a", quota(0.6, 1.0))


def test_attempts_that_may_have_been_paid_for_add_up(ledger):
    mine = new_owner()
    ledger.claim("a", mine, 60)
    for billed in (False, True, True):  # one that was refused, two that timed out
        ledger.admit("m", "a", quota(0.3, 10.0))
        ledger.attempt_failed("a", mine, billed)
    ledger.admit("m", "a", quota(0.3, 10.0))
    ledger.record("a", "m", "{}", Entry("ok", price=0.1, at_most=0.1), owner=mine)
    assert ledger.spent() == pytest.approx(0.7)


def test_a_claim_given_back_unsent_costs_nothing(ledger):
    mine = new_owner()
    ledger.claim("a", mine, 60, reserved=0.5)
    assert ledger.spent() == 0.5
    ledger.release("a", mine)
    assert ledger.spent() == 0


@pytest.mark.parametrize("entry", [OK, Entry("failed", "forgotten", at_most=0.5)], ids=["an answer", "a failure"])
def test_the_outcome_of_a_batch_that_two_collect_costs_once(ledger, entry):
    ledger.claim("k", new_owner(), 60, reserved=0.7)
    ledger.add_batch("token", "m", new_owner(), ["k"], "", 60)
    for _ in range(2):
        ledger.record("k", "m", "{}", entry)
    assert ledger.spent() == 0.5
    ledger.claim("k", new_owner(), 60)
    ledger.record("k", "m", "{}", entry)
    assert ledger.spent() == 0.5 + 0.5 * (entry.status == "failed"), "what is asked anew adds up"


def test_a_second_answer_that_was_asked_for_costs_too(ledger):
    owners = [new_owner(), new_owner()]
    for owner in owners:  # the lease of the first ends before its answer comes
        assert ledger.claim("k", owner, 0.0) is True
        time.sleep(0.01)
    for owner in owners:
        ledger.record("k", "m", "{}", OK, owner=owner)
    assert ledger.spent() == 1.0


def test_what_a_process_that_was_given_up_may_have_spent_counts_once(ledger):
    """Its answer comes after all, while the one that took over is asking; either is the first to answer."""
    for key, first in (("k", 0), ("l", 1)):
        before, owners = ledger.spent(), [new_owner(), new_owner()]
        for owner in owners:
            assert ledger.claim(key, owner, 0.0, reserved=1.0) is True
            time.sleep(0.01)
        for owner in (owners[first], owners[1 - first]):
            ledger.record(key, "m", "{}", OK, owner=owner)
        assert ledger.spent() - before == pytest.approx(2.0), "two answers, and an attempt whose fate was unknown"


# The rate limits


def test_requests_wait_for_the_window(ledger):
    limits = Quota(requests_per_minute=2, window_s=0.3)
    waits = [ledger.admit("m", "k", limits)[0] for _ in range(3)]
    assert waits[:2] == [0.0, 0.0]
    assert 0.2 < waits[2] <= 0.3
    assert ledger.admit("another model", "k", limits)[0] == 0.0
    time.sleep(waits[2])
    assert ledger.admit("m", "k", limits)[0] == 0.0


def test_tokens_wait_for_as_much_as_they_need(ledger):
    def limits(tokens: int) -> Quota:
        return Quota(tokens=tokens, tokens_per_minute=100, window_s=0.4)

    assert ledger.admit("m", "k", limits(40))[0] == 0.0
    time.sleep(0.2)
    assert ledger.admit("m", "k", limits(40))[0] == 0.0
    soon, late = ledger.admit("m", "k", limits(50))[0], ledger.admit("m", "k", limits(90))[0]
    assert 0.1 < soon <= 0.2 < 0.3 < late <= 0.4


def test_the_answers_tokens_replace_the_estimate(ledger):
    limits = Quota(tokens=90, tokens_per_minute=100)
    _, ticket = ledger.admit("m", "k", limits)
    assert ledger.admit("m", "k2", limits)[0] > 0
    ledger.record("k", "m", "{}", OK, ticket)
    assert ledger.admit("m", "k2", Quota(tokens=85, tokens_per_minute=100))[0] == 0.0


def admitted(path, seed: int, seconds: float, limits: Quota, found) -> None:
    """Ask for leave as often as it is given, noting when (a process of its own)."""
    book, rng, times, end = Ledger(path), random.Random(seed), [], time.time() + seconds
    while time.time() < end:
        wait, _ = book.admit("m", f"{seed}", limits)
        if wait:
            time.sleep(min(wait, 0.05))
        else:
            times.append(time.time())
            time.sleep(rng.uniform(0, 0.01))
    found.put(times)


def busiest(times: list[float], window_s: float) -> int:
    """The most events in any window of this length."""
    times, start, most = sorted(times), 0, 0
    for end, time_ in enumerate(times):
        while times[start] <= time_ - window_s:
            start += 1
        most = max(most, end - start + 1)
    return most


def test_several_processes_share_one_limit(tmp_path):
    limits, context = Quota(requests_per_minute=20, window_s=0.6), multiprocessing.get_context("spawn")
    found = context.Queue()
    args = [(tmp_path / "calls.sqlite", seed, 3.0, limits, found) for seed in range(3)]
    workers = [context.Process(target=admitted, args=arg) for arg in args]
    [worker.start() for worker in workers]
    times = [time_ for _ in workers for time_ in found.get(timeout=60)]
    [worker.join() for worker in workers]
    assert busiest(times, 0.55) <= 20  # the clock is read a little after the leave is given
    assert len(times) > 3 * 20, "and the limit is made use of"


def test_a_ledger_survives_kill_9_in_the_middle_of_writing(book):
    """Every record that was reported as done is there after the writer was killed."""
    code = (
        "import sys; from c3po_utils.chat.ledger import Entry, Ledger; book = Ledger(sys.argv[1])\n"
        "for n in range(10**6): book.record(str(n), 'm', '{}', Entry('ok', text='x' * 2000)); print(n, flush=True)"
    )
    path, rng, start = book.path, random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        for _ in range(rng.randint(20, 60)):
            last = int(process.stdout.readline())
        os.kill(process.pid, 9)
        process.wait()
        assert len(Ledger(path).lookup(map(str, range(start, last + 1)))) == last + 1

"""Ledgers that give each other answers by letters: none is lost, none is paid for twice in the books."""

from __future__ import annotations

import random

import pytest

from c3po_utils.chat.budget import BudgetReached, Quota, new_owner
from c3po_utils.chat.exchange import Exchange, letter_name
from c3po_utils.chat.ledger import Entry, Ledger


def answer(text: str, usd: float = 0.5) -> Entry:
    return Entry("ok", "", text, 10, 5, price=usd, at_most=usd)


def send(ledger: Exchange) -> list[bytes]:
    ledger.write_letter()
    letters = ledger.unsent()
    for name in letters:
        ledger.sent(name)
    return list(letters.values())


@pytest.fixture
def pair(tmp_path):
    paths = [tmp_path / machine / "calls.sqlite" for machine in ("a", "b")]
    return [Ledger(path) for path in paths], [Exchange(path) for path in paths]


def test_answers_and_spending_arrive_once(pair):
    (ours, theirs), (here, there) = pair
    ours.record("k", "m", '{"line": "a\\u2028b"}', answer("tea\u2028\n"))
    ours.record("failed", "m", "{}", Entry("failed", "reset", price=0.25, at_most=0.25))
    (letter,) = send(here)
    assert send(here) == []
    for _ in range(2):
        there.take(letter)
    assert theirs.lookup(["k", "failed"]) == {"k": answer("tea\u2028\n")}
    assert theirs.spent() == ours.spent() == 0.75
    assert send(there) == []  # what came from others is not sent on
    assert there.known() == here.known() == {letter_name(letter)}


def test_a_letter_that_may_have_been_sent_is_sent_again_unchanged(pair):
    (ours, _), (here, _) = pair
    ours.record("k", "m", "{}", answer("tea"))
    here.write_letter()
    first = here.unsent()
    ours.record("l", "m", "{}", answer("coffee"))
    here.write_letter()
    assert first.items() <= Exchange(here.path).unsent().items()
    assert len(here.unsent()) == 2


def test_an_answer_takes_a_failures_place_and_no_answers(pair):
    (ours, theirs), (here, there) = pair
    theirs.record("k", "m", "{}", Entry("failed", "reset", price=0.25, at_most=0.25))
    theirs.record("l", "m", "{}", answer("mine"))
    ours.record("k", "m", "{}", answer("tea"))
    ours.record("l", "m", "{}", answer("yours"))
    (letter,) = send(here)
    there.take(letter)
    assert {key: entry.text for key, entry in theirs.lookup("kl").items()} == {"k": "tea", "l": "mine"}
    assert theirs.spent() == 1.75  # both machines paid for `l`
    assert theirs.lookup("k")["k"].price == 0.75


def test_what_others_spent_counts_for_the_budget(pair):
    (ours, theirs), (here, there) = pair
    ours.record("k", "m", "{}", answer("tea", usd=0.9))
    there.take(*send(here))
    assert theirs.claim("l", new_owner(), 60) is True
    with pytest.raises(BudgetReached, match=r"0.9000 of the budget of 1.0000 USD are spent"):
        theirs.admit("m", "l", Quota(ceiling=0.2, budget_usd=1.0))


def test_in_any_order_all_have_all(tmp_path):
    draw = random.Random(0)
    ledgers = [Ledger(tmp_path / f"{n}.sqlite") for n in range(4)]
    exchanges = [Exchange(ledger.path) for ledger in ledgers]
    letters: list[bytes] = []
    for step in range(200):
        n = draw.randrange(4)
        ledgers[n].record(f"k{step}", "m", "{}", answer(str(step), usd=0.01))
        if draw.random() < 0.3:
            letters += send(exchanges[n])
        if letters and draw.random() < 0.3:
            exchanges[draw.randrange(4)].take(draw.choice(letters))
    for exchange in exchanges:
        letters += send(exchange)
    for exchange in exchanges:
        for letter in letters:
            exchange.take(letter)
    for ledger in ledgers:
        assert len(ledger.lookup(f"k{step}" for step in range(200))) == 200
        assert ledger.spent() == pytest.approx(2.0)
        assert send(Exchange(ledger.path)) == []

import time
from email.utils import formatdate

import pytest

from c3po_utils.chat.openai.limits import PRICES, Limits, read_limits
from c3po_utils.chat.openai.pace import backoff, retry_after
from c3po_utils.chat.types import LocalLimits, Sampling

NAN, INFINITE = float("nan"), float("inf")
MEANINGLESS = {
    "max_in_flight": [0, -1, 2.5, True, "3", None, 10**9],
    "requests_per_minute": [0, -1, 0.5, 10**30],
    "tokens_per_minute": [0, -5],
    "budget_usd": [0, -1.0, NAN, INFINITE, "5"],
    "timeout_s": [0, -1.0, NAN, INFINITE, None],
    "max_attempts": [0, -1, 1.5],
    "max_wait_s": [-1.0, NAN],
    "backoff_s": [-1.0, NAN],
    "max_backoff_s": [-1.0, INFINITE],
    "max_answer_bytes": [0, -1, 1e6],
    "poll_s": [0, -1.0, NAN],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in MEANINGLESS for value in MEANINGLESS[name]])
def test_limits_that_cannot_be_meant_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=rf"limit '{name}': (found|expected) .*(found|expected)") as raised:
        Limits(**{name: value})
    assert repr(value) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("price", [(-1, 2), (1, NAN), (INFINITE, 1), (1,), 3, "12", ("1", "2")], ids=str)
def test_prices_that_never_bind_are_refused(price):
    with pytest.raises(ValueError, match="price of 'm': found"):
        Limits(prices={"m": price})


@pytest.mark.parametrize("omit", ["seed", ("model",), ("messages", "seed")], ids=str)
def test_only_what_a_request_can_do_without_is_omitted(omit):
    with pytest.raises(ValueError, match="limit 'omit'"):
        Limits(omit=omit)


def test_every_number_is_checked():
    numbers = {name for name, kind in Limits.__annotations__.items() if "int" in kind or kind.startswith("float")}
    assert numbers == MEANINGLESS.keys()
    assert all(usd > 0 for price in PRICES.values() for usd in price)


def test_limits_as_a_file_gives_them():
    given = {"budget_usd": 5, "prices": {"m": [1, 2]}, "omit": ["seed"], "timeout_s": 3}
    assert read_limits(given) == Limits(budget_usd=5.0, prices={"m": (1.0, 2.0)}, omit=("seed",), timeout_s=3.0)


@pytest.mark.parametrize(
    "given", [{"memory_gib": 0}, {"memory_gib": NAN}, {"max_slots": 0}, {"max_slots": 1.5}], ids=str
)
def test_a_local_models_limits_are_checked(given):
    with pytest.raises(ValueError, match=r"limit '\w+': found"):
        LocalLimits(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"temperature": NAN},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": NAN},
        {"top_k": -1},
        {"stop": ("",)},
    ],
    ids=str,
)
def test_sampling_that_cannot_be_meant_is_refused(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"{name}: found .*, expected"):
        Sampling(**given)


# Waiting


def test_many_attempts_do_not_overflow():
    assert 0 <= backoff(5000, Limits(max_attempts=10_000), None) <= 60


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_a_retry_date_is_counted_from_the_servers_clock(ahead):
    """Our clock is two hours ahead of, or behind, the server's."""
    there = time.time() - ahead
    headers = {"date": formatdate(there, usegmt=True), "retry-after": formatdate(there + 30, usegmt=True)}
    assert retry_after(headers) == 30


@pytest.mark.parametrize("value", ["9" * 400, "Mon, 01 Jan 0001 00:00:00 -2359", "³", "1.2.3", "\x00"])
def test_no_retry_header_is_an_exception(value):
    assert (retry_after({"retry-after": value}) or 0) >= 0

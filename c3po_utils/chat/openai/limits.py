"""What a client of an API may do: calls, time, money. Checked where they are given, and light to import."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from c3po_utils.chat.names import OPENAI, ModelName
from c3po_utils.chat.types import LEAST, expect
from c3po_utils.runs import parameters

# USD per million tokens (prompt, completion) at api.openai.com, as of 2025: pass `prices` for today's.
PRICES = {
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
}
NEEDED = ("model", "messages")  # of every request
COUNTS = ("requests_per_minute", "tokens_per_minute", "max_attempts", "max_answer_bytes")
AMOUNTS = {  # the least of each
    "budget_usd": LEAST, "timeout_s": 0.001, "poll_s": 0.001, "max_wait_s": 0, "backoff_s": 0, "max_backoff_s": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a client may do. Times in seconds, money in USD; None is unlimited.

    `timeout_s` bounds one attempt, `max_wait_s` a call with all its attempts and pauses (but not its turn in the rate
    limiter's queue). `budget_usd` caps what all calls of the ledger, of any run or process, may cost together.
    `prices` adds to, or replaces, known prices: {model: (USD per million prompt tokens, per million answer tokens)}.

    Raises ValueError for what cannot be meant, as no calls at a time, or a budget of nothing.
    """

    max_in_flight: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_usd: float | None = None
    timeout_s: float = 300.0
    max_attempts: int = 6
    max_wait_s: float = 900.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    max_answer_bytes: int = 1 << 20
    stream: bool = False  # server-sent events: keeps gateways from hanging up on long answers
    batch: bool = False  # the Batch API: half the price, within a day
    poll_s: float = 30.0
    omit: tuple[str, ...] = ()  # parameters that the server does not take, as `temperature` for some models
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unlimited = {one.name for one in fields(self) if one.default is None and getattr(self, one.name) is None}
        expect("limit 'max_in_flight'", self.max_in_flight, 1, 10_000, whole=True)
        for name in set(COUNTS) - unlimited:
            expect(f"limit {name!r}", getattr(self, name), 1, whole=True)
        for name in AMOUNTS.keys() - unlimited:
            expect(f"limit {name!r}", getattr(self, name), AMOUNTS[name])
        if isinstance(self.omit, str) or set(self.omit) & set(NEEDED):
            raise ValueError(f"limit 'omit': found {self.omit!r}, expected a list of parameters other than {NEEDED}")
        for model, price in self.prices.items():
            if not isinstance(price, (tuple, list)) or len(price) != 2:
                raise ValueError(
                    f"price of {model!r}: found {price!r}, expected USD per million tokens of (prompt, answer)"
                )
            for usd in price:
                expect(f"price of {model!r}", usd, 0)


LIMITS = get_type_hints(Limits)


def read_limits(given: dict[str, Any]) -> Limits:
    """Limits as a file or a notebook gives them. Raises ValueError for an unknown or bad one."""
    return Limits(**parameters.checked(given, LIMITS, "limit"))


def price_of(name: ModelName, limits: Limits) -> tuple[float, float] | None:
    """USD per million tokens (prompt, answer) of a model, None if they are not known.

    Raises ValueError for a budget that nothing could be counted against.
    """
    prices = {**(PRICES if name.endpoint == OPENAI else {}), **limits.prices}.get(name.model)
    if limits.budget_usd is not None and prices is None:
        price = f"prices={{{name.model!r}: (USD per million prompt tokens, answer tokens)}}"
        raise ValueError(f"limit 'budget_usd': budget_usd needs {price}")
    if limits.budget_usd is not None and {"max_tokens", "max_completion_tokens"} & set(limits.omit):
        raise ValueError(
            "limit 'omit': a budget holds only for answers of bounded length, expected no token limit here"
        )
    return prices

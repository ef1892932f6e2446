"""How fast to ask and how long to try: limits, adaptive concurrency, backoff."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Limits:
    """What a client may do. Times in seconds, money in USD; None is unlimited.

    `timeout_s` bounds one attempt, `max_wait_s` a call with all its attempts and pauses (but not its turn in the rate
    limiter's queue). `budget_usd` caps what all calls of the ledger, of any run or process, may cost together.
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


class Adaptive:
    """How many calls may be in flight: up by one a success until the first overload (a doubling each round trip), then
    up by one a round trip; halved by an overload, at most once a round trip (AIMD)."""

    def __init__(self, most: int, start: int = 32):
        self.most, self.limit, self.in_flight = most, float(min(start, most)), 0
        self._ramping, self._cut_at = True, 0.0
        self._changed = asyncio.Event()

    async def acquire(self) -> None:
        while self.in_flight >= int(self.limit):
            self._changed.clear()
            await self._changed.wait()
        self.in_flight += 1

    def release(self) -> None:
        self.in_flight -= 1
        self._changed.set()

    def succeeded(self) -> None:
        self.limit = min(self.limit + (1.0 if self._ramping else 1.0 / self.limit), float(self.most))
        self._changed.set()

    def overloaded(self, sent_at: float) -> None:
        """An attempt sent at `sent_at` (monotonic seconds) met an overloaded server."""
        self._ramping = False
        if sent_at >= self._cut_at:
            self.limit = max(self.limit / 2, 1.0)
            self._cut_at = time.monotonic()


def backoff(attempt: int, limits: Limits, asked: float | None) -> float:
    """Seconds before the next attempt (this was number `attempt`, from 1): full jitter, or what the server asked for
    and a little more, so that not everybody returns at once."""
    jitter = random.uniform(0, min(limits.max_backoff_s, limits.backoff_s * 2 ** (attempt - 1)))
    return jitter if asked is None else asked + min(jitter, 1.0)


def retry_after(headers) -> float | None:
    """Seconds that a Retry-After(-Ms) header asks for: a number or an HTTP date; None if absent or unreadable."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if value.replace(".", "", 1).isdecimal():
            return float(value) / unit
    try:
        return max(parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, TypeError, ValueError):
        return None

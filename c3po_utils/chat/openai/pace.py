"""How fast to ask and how long to wait: adaptive concurrency, backoff, what servers ask for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from c3po_utils.chat.openai.limits import Limits


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
    jitter = random.uniform(0, min(limits.max_backoff_s, limits.backoff_s * 2.0 ** min(attempt - 1, 60)))
    return jitter if asked is None else asked + min(jitter, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After(-Ms) header asks for: a number or an HTTP date; None if absent or unreadable.

    A date is counted from the server's own, where it is given: clocks differ.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if value.replace(".", "", 1).isdecimal():
            return float(value) / unit
    until, now = _seconds(headers.get("retry-after", "")), _seconds(headers.get("date", ""))
    return None if until is None else max(until - (time.time() if now is None else now), 0.0)


def _seconds(date: str) -> float | None:
    """Seconds since the epoch of an HTTP date; None if it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None

"""Making calls live: claim, get leave, ask, retry, record; as many at a time as the server bears."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from c3po_utils.chat.budget import BudgetReached, Quota
from c3po_utils.chat.ledger import Entry
from c3po_utils.chat.openai.calls import Call, Run
from c3po_utils.chat.openai.pace import Adaptive, backoff
from c3po_utils.chat.openai.replies import Reply

LEASE_S = 300.0  # a claim on a call holds this long without news; renewed while its process lives
GRACE_S = 30.0  # for answers on their way when the caller stops listening
SYNC_S = 1.0
OTHERS_S = 0.2  # between looks at calls that another process is making


@dataclass(eq=False)
class Flight:
    """A claimed call on its way."""

    call: Call
    quota: Quota
    attempts: int = 0
    ticket: int = 0
    sending: bool = False
    ever_billed: bool = False  # an attempt may have cost money
    started: float = field(default_factory=time.monotonic)
    task: asyncio.Task | None = None


class LiveRun(Run):
    """Each call by itself, as many at a time as the server bears."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.slots, self.gate = Adaptive(self.limits.max_in_flight), asyncio.Lock()
        self.flights: set[Flight] = set()
        self.pause_until = 0.0  # a server's Retry-After holds for everybody
        self.hopeless = ""
        self.reached_at, self.unreachable = -math.inf, ""  # why, where the server is given up

    async def _make_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as watch:
                async with asyncio.TaskGroup() as group:
                    scheduler = group.create_task(self._schedule(group))
                    watcher = watch.create_task(self._watch(scheduler))
                watcher.cancel()
        except BaseExceptionGroup as errors:
            error: BaseException = errors
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def _schedule(self, group: asyncio.TaskGroup) -> None:
        waiting, busy = deque(self.calls), 0
        while waiting and not self.halt:
            call = waiting.popleft()
            await self.slots.acquire()
            quota = self._quota(call)
            claim = self._claim(call, quota)
            if claim is True:
                busy, flight = 0, Flight(call, quota)
                self.flights.add(flight)
                flight.task = group.create_task(self._make(flight))
                continue
            self.slots.release()
            if isinstance(claim, Entry):
                busy = 0
                self.emit(call.ids, claim)
                continue
            waiting.append(call)
            busy += 1
            if busy >= len(waiting):  # all that is left is being asked by others
                busy, waiting = 0, deque(self._not_in_batches(waiting))
                await asyncio.sleep(OTHERS_S)

    def _not_in_batches(self, calls: Iterable[Call]) -> list[Call]:
        """The calls that come back within a request's time; those in a batch end here, until the batch is collected."""
        sent = {key for batch in self.ledger.batches(self.chat.scope) for key in batch.keys}
        for call in calls:
            if call.key in sent:
                reason = "sent in a batch that is not collected yet: run with the limit `batch: true` to do so"
                self.emit(call.ids, Entry("failed", reason, attempts=0))
        return [call for call in calls if call.key not in sent]

    def _claim(self, call: Call, quota: Quota) -> Entry | bool:
        if why := self.hopeless or self.unreachable:
            return Entry("failed", f"not asked, for another call failed for good: {why}", attempts=0)
        return self._lease(call, LEASE_S, quota.ceiling * quota.free)

    def _quota(self, call: Call) -> Quota:
        limits = self.limits
        return Quota(
            tokens=call.likely_prompt + call.most_answer,
            ceiling=self.chat.ceiling(call),
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            budget_usd=limits.budget_usd,
        )

    async def _watch(self, scheduler: asyncio.Task) -> None:
        """Each second, put outcomes on the disk; each minute, renew leases. Once the caller stops listening, end what
        is not being sent, and soon the rest."""
        renewed = synced = time.monotonic()
        while not self.stop.is_set():
            await asyncio.sleep(0.1)
            if time.monotonic() - synced > SYNC_S:
                await asyncio.to_thread(self.ledger.sync)
                synced = time.monotonic()
            if time.monotonic() - renewed > LEASE_S / 4:
                renewed = time.monotonic()
                self.ledger.renew([flight.call.key for flight in self.flights], self.owner, LEASE_S)
        scheduler.cancel()
        for flight in self.flights:
            if not flight.sending:
                flight.task.cancel()
        await asyncio.sleep(GRACE_S)
        for flight in self.flights:
            flight.task.cancel()

    async def _make(self, flight: Flight) -> None:
        call = flight.call
        try:
            reply = await self._attempts(flight)
        except BudgetReached as error:
            self.halt = self.halt or error
            self.ledger.release(call.key, self.owner)
        except asyncio.CancelledError:
            self.ledger.release(call.key, self.owner, flight.sending)
            raise
        else:
            entry = self._entry(flight, reply)
            self._record(call, entry, flight.ticket, self.owner)
            self.emit(call.ids, entry)
        finally:
            self.flights.discard(flight)
            self.slots.release()

    async def _attempts(self, flight: Flight) -> Reply:
        """The one retry layer: at most `max_attempts`, and `max_wait_s` besides the limiter's queue."""
        limits, most = self.limits, self.limits.tokens_per_minute
        if most and flight.quota.tokens > most:
            return Reply("failed", reason=f"needs {flight.quota.tokens} tokens, over tokens_per_minute = {most}")
        deadline = time.monotonic() + limits.max_wait_s
        while True:
            deadline += await self._admitted(flight)
            reply = await self._attempt(flight)
            if not reply.heals or self.stop.is_set():
                return reply
            pause = backoff(flight.attempts, limits, reply.asked_s)
            if flight.attempts >= limits.max_attempts:
                return self._given_up(reply, f"after {flight.attempts} attempts")
            if time.monotonic() + pause > deadline:
                return self._given_up(reply, f"waiting {pause:.0f} s more would pass max_wait_s")
            self.ledger.attempt_failed(flight.call.key, self.owner, reply.billed)
            if reply.asked_s:
                self.pause_until = max(self.pause_until, time.monotonic() + reply.asked_s)
            await asyncio.sleep(pause)

    def _given_up(self, reply: Reply, why: str) -> Reply:
        """Its last reply. No further call is begun where the server was never reached, as with a mistyped port, or not
        for `max_wait_s`: an outage that is shorter costs the calls that met it."""
        if reply.unreached and time.monotonic() - self.reached_at > self.limits.max_wait_s:
            self.unreachable = reply.reason
        return replace(reply, reason=f"{reply.reason} ({why})")

    async def _admitted(self, flight: Flight) -> float:
        """Wait for the rate limits and the budget; returns the seconds that took. Raises BudgetReached."""
        start = time.monotonic()
        if flight.quota.free and not flight.attempts and start >= self.pause_until:
            return 0.0  # its claim has reserved what it may cost
        async with self.gate:
            while True:
                wait = self.pause_until - time.monotonic()
                if wait <= 0:
                    wait, flight.ticket = self.ledger.admit(self.chat.scope, flight.call.key, flight.quota)
                if wait <= 0:
                    return time.monotonic() - start
                await asyncio.sleep(min(wait, 5.0))

    async def _attempt(self, flight: Flight) -> Reply:
        flight.attempts += 1
        flight.sending, sent_at = True, time.monotonic()
        reply = await self.transport.ask(flight.call.body)
        flight.sending = False
        flight.ever_billed |= reply.billed
        if reply.overload:
            self.slots.overloaded(sent_at)
        elif reply.status != "failed":
            self.slots.succeeded()
        if reply.hopeless:
            self.hopeless = reply.reason
        if not reply.unreached:
            self.reached_at, self.unreachable = time.monotonic(), ""
        if reply.unsupported:
            self.chat.supports_schema = False
        return reply

    def _entry(self, flight: Flight, reply: Reply) -> Entry:
        latency = round(time.monotonic() - flight.started, 3)
        entry = self.chat.entry(flight.call, reply, latency, flight.attempts)
        return replace(entry, price=None) if reply.status == "failed" and flight.ever_billed else entry

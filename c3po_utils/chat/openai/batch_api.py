"""The Batch API: the same calls and ledger at half the price, within a day. A batch outlives the process."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from c3po_utils.chat.budget import BudgetReached, Quota, alive
from c3po_utils.chat.ledger import Batch, Entry
from c3po_utils.chat.openai.calls import Call, Run
from c3po_utils.chat.openai.pace import backoff
from c3po_utils.chat.openai.replies import BrokenAnswer, Reply, decode, judge, lines

DAY_S = 26 * 3600.0  # the server's window, and some
CLAIM_S = 3600.0  # until a claimed call is in a batch: uploads take their time
MOST_CALLS, MOST_BYTES = 50_000, 150 << 20  # in one batch
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
T = TypeVar("T")


class BatchRun(Run):
    """The calls in batches. Stopping leaves batches with the server; the next run collects them."""

    async def _make_all(self) -> None:
        """Collect open batches, send what is missing, wait. Raises RuntimeError for what the API refuses for good."""
        self.waiting = {call.key: call for call in self.calls}
        while self.waiting and not self.stop.is_set() and await self._turn():
            pass

    async def _turn(self) -> bool:
        """One look at everything; False if nothing more can come because the budget is spent."""
        for batch in self.ledger.batches(self.chat.scope):
            await self._look_after(batch)
        mine = self._claim()
        for part in _parts(mine):
            await self._submit(part)
        return bool(mine) or not self.waiting or await self._pause()

    async def _pause(self) -> bool:
        """Sleep until the next look; False if there is nothing to look for."""
        if self.halt and not self.ledger.batches(self.chat.scope):
            return False
        end = time.monotonic() + self.limits.poll_s
        while time.monotonic() < end and not self.stop.is_set():
            await asyncio.sleep(min(0.1, self.limits.poll_s))
        return True

    def _claim(self) -> list[Call]:
        """Emit what is answered by now; claim what nobody is asking, as far as the budget goes."""
        sent = {key for batch in self.ledger.batches(self.chat.scope) for key in batch.keys}
        self.halt, mine = None, []
        for key, call in [item for item in self.waiting.items() if item[0] not in sent]:
            claim = self._lease(call, CLAIM_S)
            if isinstance(claim, Entry):
                self.emit(call.ids, claim)
                del self.waiting[key]
            elif claim and self._affordable(call):
                mine.append(call)
        return mine

    def _affordable(self, call: Call) -> bool:
        quota = Quota(ceiling=self.chat.ceiling(call), budget_usd=self.limits.budget_usd)
        try:
            wait, _ = self.ledger.admit(self.chat.scope, call.key, quota)
        except BudgetReached as error:
            self.halt, wait = error, 1.0
        if wait:
            self.ledger.release(call.key, self.owner)
        return not wait

    async def _submit(self, calls: list[Call]) -> None:
        """Send a batch: noted in the ledger first, under a token by which it is found again if we die meanwhile."""
        token, content = uuid.uuid4().hex, "".join(_line(call) for call in calls)
        keys = [call.key for call in calls]
        self.ledger.add_batch(token, self.chat.scope, self.owner, keys, content, DAY_S)
        try:
            upload = {"file": ("calls.jsonl", content.encode()), "purpose": "batch"}
            file = await self._patiently(lambda: self.transport.client.files.create(**upload))
            job = await self._patiently(lambda: self._start(token, file.id))
        except Exception:
            self.ledger.end_batch(token)
            raise
        self.ledger.set_batch_job(token, job)
        self.ledger.sync()

    async def _start(self, token: str, file: str) -> str:
        """The job of the token, started if it is not there: an attempt before may have started it unseen."""
        if found := await self._find(token):
            return found
        job = await self.transport.client.batches.create(
            input_file_id=file, endpoint=ENDPOINT, completion_window="24h", metadata={"c3po": token}
        )
        return job.id

    async def _find(self, token: str) -> str | None:
        seen = 0
        async for job in self.transport.client.batches.list(limit=100):
            if (job.metadata or {}).get("c3po") == token:
                return job.id
            seen += 1
            if seen >= 1000:
                break
        return None

    async def _look_after(self, batch: Batch) -> None:
        """Record the outcomes of a batch that has ended; adopt or forget one whose sender died."""
        if batch.job is None:
            if batch.owner != self.owner and alive(batch.owner):
                return
            if found := await self._patiently(lambda: self._find(batch.token)):
                self.ledger.set_batch_job(batch.token, found)
            else:
                self.ledger.end_batch(batch.token)
            return
        job = await self._patiently(lambda: self.transport.client.batches.retrieve(batch.job))
        if job.status not in ENDED:
            return
        calls = {call.key: call for call in map(_parse, self.ledger.batch_content(batch.token).splitlines())}
        answered: set[str] = set(self.ledger.lookup(calls))
        for file in (job.output_file_id, job.error_file_id):
            if file:
                await self._patiently(lambda file=file: self._collect(file, calls, answered))
        errors = [str(error.message) for error in (job.errors.data or [])] if job.errors else []
        why = self.transport.clean(f"batch {job.id} {job.status} without this answer. {' '.join(errors)[:300]}".strip())
        for key in calls.keys() - answered:
            self._record(calls[key], self.chat.entry(calls[key], Reply("failed", reason=why)))
        self.ledger.end_batch(batch.token)

    async def _collect(self, file: str, calls: dict[str, Call], answered: set[str]) -> None:
        """Record a result file's outcomes, one transaction each, adding their keys to `answered`."""
        async with self.transport.client.files.with_streaming_response.content(file) as response:
            async for line in lines(response.iter_bytes(), 2 * self.limits.max_answer_bytes):
                key, reply = _result(line)
                if key in calls and key not in answered:
                    answered.add(key)
                    self._record(calls[key], self.chat.entry(calls[key], self.transport.cleaned(reply)))

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """The retry layer for the API's own calls. Raises RuntimeError for what does not heal."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await act()
            except Exception as error:
                reply = self.transport.failure(error)
            if not reply.heals or attempt >= self.limits.max_attempts:
                raise RuntimeError(f"batch API of {self.chat.endpoint}: {reply.reason}")
            await asyncio.sleep(min(backoff(attempt, self.limits, reply.asked_s), self.limits.max_wait_s))


def _line(call: Call) -> str:
    request = {"custom_id": call.key, "method": "POST", "url": ENDPOINT, "body": call.body}
    return json.dumps(request) + "\n"


def _parse(line: str) -> Call:
    request = json.loads(line)
    body = request["body"]
    size = sum(len(message["content"].encode()) for message in body["messages"])
    return Call(request["custom_id"], body, [], size, body.get("max_completion_tokens") or body["max_tokens"])


def _parts(calls: list[Call]) -> Iterator[list[Call]]:
    """The calls in batches of a size that the API takes."""
    part, size = [], 0
    for call in calls:
        length = len(_line(call))
        if part and (len(part) == MOST_CALLS or size + length > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(call)
        size += length
    if part:
        yield part


def _result(line: bytes) -> tuple[str, Reply]:
    """(key, reply) of one line of a result file; the key is empty when the line is none."""
    try:
        result = json.loads(line)
        key, response = result["custom_id"], result.get("response") or {}
        if response.get("status_code") != 200:
            error = result.get("error") or response.get("body") or "no response"
            return key, Reply("failed", reason=f"batch: {str(error)[:500]}")
        return key, judge(decode(json.dumps(response["body"]).encode(), {"content-type": "json"}))
    except BrokenAnswer as error:
        return key, Reply("failed", reason=str(error), billed=True)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "", Reply("failed")

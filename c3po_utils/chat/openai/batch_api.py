"""The Batch API: the same calls and ledger at half the price, within a day. A batch outlives the process."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from c3po_utils.chat.budget import BudgetReached, Quota, alive
from c3po_utils.chat.ledger import Batch, Entry
from c3po_utils.chat.ledger_file import LedgerError
from c3po_utils.chat.openai.calls import Call, Run
from c3po_utils.chat.openai.pace import backoff
from c3po_utils.chat.openai.replies import BrokenAnswer, Reply, checked, judge, lines, refusal
from c3po_utils.chat.types import Request

DAY_S = 26 * 3600.0  # the server's window, and some
CLAIM_S = 3600.0  # until a claimed call is in a batch: uploads take their time
MOST_CALLS, MOST_BYTES = 50_000, 150 << 20  # in one batch
ENDPOINT = "/v1/chat/completions"
GONE = (404, 410)
ENDED = ("completed", "failed", "expired", "cancelled")
GIVE_UP_S = 48 * 3600.0  # a batch that has not ended by then never will
KEPT_S = 31 * 24 * 3600.0  # results that cannot be had by then never will: OpenAI keeps files of batches for 30 days
KEY = re.compile(rb'"custom_id":\s*"([0-9a-f]{64})"')
EMPTY: Mapping[str, Reply] = MappingProxyType({})
T = TypeVar("T")


class BatchFailed(RuntimeError):
    """The API did not do what was asked, in the last attempt; `unseen` if an attempt may have done it all the same.

    What was sent is collected by the next run.
    """

    def __init__(self, message: str, unseen: bool, status: int):
        super().__init__(message)
        self.unseen, self.status = unseen, status


class BatchRun(Run):
    """The calls in batches. Stopping leaves batches with the server; the next run collects them."""

    async def _make_all(self) -> None:
        """Collect open batches, send what is missing, wait. Raises BatchFailed for what the API does not do."""
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
        await self._sleep(self.limits.poll_s)
        return True

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not once the caller has stopped listening."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.stop.is_set():
            await asyncio.sleep(min(0.1, left))

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
        started = False
        try:
            file = await self._patiently(lambda: self._upload(content))
            started = True
            job = await self._patiently(lambda: self._start(token, file))
        except BatchFailed as error:
            if started and error.unseen:  # it may run all the same: the next run looks for it
                self.ledger.disown_batch(token)
            else:
                self.ledger.end_batch(token)
            raise
        self.ledger.set_batch_job(token, job)
        self.ledger.sync()

    async def _upload(self, content: str) -> str:
        upload = ("calls.jsonl", content.encode())
        return _field(await self.transport.client.files.create(file=upload, purpose="batch"), "id")

    async def _start(self, token: str, file: str) -> str:
        """The job of the token, started if it is not there: an attempt before may have started it unseen."""
        if found := await self._find(token):
            return found
        if not self._is_open(token):
            raise RuntimeError("sending the batch took so long that another run has taken over its calls")
        job = await self.transport.client.batches.create(
            input_file_id=file, endpoint=ENDPOINT, completion_window="24h", metadata={"c3po": token}
        )
        return _field(job, "id")

    def _is_open(self, token: str) -> bool:
        return any(batch.token == token for batch in self.ledger.batches(self.chat.scope))

    async def _find(self, token: str) -> str | None:
        seen = 0
        async for job in self.transport.client.batches.list(limit=100):
            if isinstance(job.metadata, dict) and job.metadata.get("c3po") == token:
                return _field(job, "id")
            seen += 1
            if seen >= 1000:
                break
        return None

    async def _look_after(self, batch: Batch) -> None:
        """Record the outcomes of a batch that has ended; adopt or forget one whose sender is gone.

        A sender on another machine, or one that was interrupted in a process that goes on, looks alive for ever: it
        has CLAIM_S to send.
        """
        if batch.job is None:
            sending = batch.owner not in ("", self.owner) and self.ledger.now() - batch.at < CLAIM_S
            if sending and alive(batch.owner):
                return
            if found := await self._patiently(lambda: self._find(batch.token)):
                self.ledger.set_batch_job(batch.token, found)
            else:
                self.ledger.end_batch(batch.token)
            return
        try:
            job = await self._patiently(lambda: self._retrieve(batch.job))
        except BatchFailed as error:
            if not self._lost(batch, error):
                raise
            self._close(batch, self._calls_of(batch), Reply("failed", reason=str(error), billed=True))
            return
        if job.status in ENDED or self.ledger.now() - batch.at > GIVE_UP_S:
            await self._settle(batch, job)

    def _lost(self, batch: Batch, error: BatchFailed) -> bool:
        return error.status in GONE or self.ledger.now() - batch.at > KEPT_S

    async def _retrieve(self, name: str) -> Any:
        job = await self.transport.client.batches.retrieve(name)
        _field(job, "status")
        return job

    async def _settle(self, batch: Batch, job: Any) -> None:
        """Record what a job's files hold; what they lack has failed, and is asked again by the next run.

        Raises BatchFailed for a file that cannot be read now: its answers are paid for, and the batch stays open.
        """
        why = " ".join([f"batch {batch.job} {job.status} without this answer.", *_messages(job)])
        calls, billed = self._calls_of(batch), False
        failed: dict[str, Reply] = {}
        for file in (job.output_file_id, job.error_file_id):
            if isinstance(file, str) and file:
                try:
                    await self._patiently(lambda file=file: self._collect(file, calls, failed))
                except BatchFailed as error:
                    if not self._lost(batch, error):
                        raise
                    why, billed = f"{why} Its file {file}: {error}", True
        self._close(batch, calls, Reply("failed", reason=why, billed=billed), failed)

    async def _collect(self, file: str, calls: Mapping[str, Call], failed: dict[str, Reply]) -> None:
        """Record a result file's answers, one transaction each; `failed` is for the calls that have none."""
        missing, left = calls.keys() - self.ledger.lookup(calls).keys(), 2 * len(calls)
        async with self.transport.client.files.with_streaming_response.content(file) as response:
            async for line in lines(response.iter_bytes(), 2 * self.limits.max_answer_bytes, cut=True):
                key, reply = self._result(line)
                if key in missing and reply.status == "failed":
                    failed[key] = reply
                elif key in missing:
                    missing.remove(key)
                    self._end(calls[key], reply)
                left -= 1
                if not left or not missing:
                    break

    def _close(
        self, batch: Batch, calls: Mapping[str, Call], otherwise: Reply, failed: Mapping[str, Reply] = EMPTY
    ) -> None:
        """Forget a batch; what is not answered by now ends as in `failed`, or as `otherwise`.

        One that another run has forgotten is left alone: its calls may be on their way again.
        """
        if not self._is_open(batch.token):
            return
        for key in calls.keys() - self.ledger.lookup(calls).keys():
            self._end(calls[key], failed.get(key, otherwise))
        self.ledger.end_batch(batch.token)

    def _end(self, call: Call, reply: Reply) -> None:
        if reply.unsupported:
            self.chat.supports_schema = False
        self._record(call, self.chat.entry(call, self.transport.cleaned(reply)))

    def _calls_of(self, batch: Batch) -> dict[str, Call]:
        return {call.key: call for call in map(_parse, self.ledger.batch_content(batch.token).splitlines())}

    def _result(self, line: bytes) -> tuple[str, Reply]:
        """(key, reply) of one line of a result file; the key is empty when there is none."""
        found = KEY.search(line)
        key = found[1].decode() if found else ""
        if len(line) > 2 * self.limits.max_answer_bytes:
            return key, Reply("malformed", reason=f"answer longer than {len(line)} bytes", billed=True)
        try:
            result = json.loads(line)
            key = result["custom_id"] if isinstance(result["custom_id"], str) else ""
            response = result["response"] or {"status_code": 0, "body": result}
            status, body = response["status_code"], response["body"]
            if status == 200:
                return key, judge(checked(body, line))
            error = body.get("error") if isinstance(body, dict) else None
            status = status if type(status) is int else 0
            return key, refusal(status, error, line.decode(errors="replace"), self.chat.endpoint)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            return key, Reply("failed", reason=f"batch: broken line ({error})", billed=True)

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """The retry layer for the API's own calls. Raises BatchFailed for what does not heal before we are stopped."""
        attempt, unseen = 0, False
        while True:
            attempt += 1
            try:
                return await act()
            except LedgerError:
                raise
            except Exception as error:
                reply, status = self.transport.failure(error), getattr(error, "status_code", 0)
            unseen |= reply.heals or status < 300  # only a refusal says that nothing was done
            last = not reply.heals or attempt >= self.limits.max_attempts
            if not last:
                await self._sleep(min(backoff(attempt, self.limits, reply.asked_s), self.limits.max_wait_s))
            if last or self.stop.is_set():
                raise BatchFailed(f"batch API of {self.chat.endpoint}: {reply.reason}", unseen, status)


def _field(thing: object, name: str) -> str:
    """A text that an answer of the API must have. Raises BrokenAnswer."""
    value = getattr(thing, name, None)
    if not isinstance(value, str) or not value:
        raise BrokenAnswer(f"expected an object with {name!r}, found {thing!r}")
    return value


def _messages(job: Any) -> list[str]:
    """What a job says went wrong."""
    errors = getattr(job.errors, "data", None)
    found = [getattr(error, "message", None) for error in errors] if isinstance(errors, list) else []
    return [message for message in found if isinstance(message, str)]


def _line(call: Call) -> str:
    request = {"custom_id": call.key, "method": "POST", "url": ENDPOINT, "body": call.body}
    return json.dumps(request) + "\n"


def _parse(line: str) -> Call:
    request = json.loads(line)
    body = request["body"]
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    size = Request("", body["messages"], schema).size
    return Call(request["custom_id"], body, [], size, body.get("max_completion_tokens") or body.get("max_tokens", 0))


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

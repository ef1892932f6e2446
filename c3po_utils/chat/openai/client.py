"""Chat models behind an OpenAI-compatible API, asked through the call ledger: `openai:MODEL[@BASE_URL]`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from c3po_utils.chat.ledger import Entry, Ledger
from c3po_utils.chat.names import OPENAI, parse_model_name
from c3po_utils.chat.openai.batch_api import BatchRun
from c3po_utils.chat.openai.calls import Call
from c3po_utils.chat.openai.limits import Limits, price_of, read_limits
from c3po_utils.chat.openai.live import LiveRun
from c3po_utils.chat.openai.replies import Reply
from c3po_utils.chat.types import Estimate, Outcome, Request, Sampling
from c3po_utils.runs import progress

BATCH_DISCOUNT = 0.5


class OpenAIChat:
    """A ChatModel over HTTP. Every answer is stored as it arrives; stored answers are not asked again.

    Raises ValueError for a bad name or a budget without a price; `complete` raises BudgetReached once
    everything in flight is stored, and ValueError when calls are needed and OpenAI's key is missing.
    """

    def __init__(self, name: str, ledger: Ledger, limits: Limits):
        self.name = name
        parsed = parse_model_name(name)
        self.model, self.endpoint = parsed
        if self.endpoint is None:
            raise ValueError(f"model {name!r}: expected openai:MODEL or openai:MODEL@BASE_URL")
        self.ledger, self.limits, self.prices = ledger, limits, price_of(parsed, limits)
        self.scope = f"{self.model}@{self.endpoint}"
        self.supports_schema = True

    def price(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """USD for these tokens; None when the price or a count is unknown."""
        if self.prices is None or prompt_tokens is None or completion_tokens is None:
            return None
        discount = BATCH_DISCOUNT if self.limits.batch else 1.0
        return discount * (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def ceiling(self, call: Call) -> float:
        return self.price(call.most_prompt, call.most_answer) or 0.0

    def entry(self, call: Call, reply: Reply, latency_s: float = 0.0, attempts: int = 1) -> Entry:
        """What the ledger keeps of a call that ended with this reply."""
        counts = (reply.prompt_tokens, reply.completion_tokens) if reply.billed else (0, 0)
        price = self.price(*counts)
        at_most = self.ceiling(call) if price is None else price
        entry = Entry(reply.status, reply.reason, reply.text, *counts, price, None, latency_s, attempts)
        return entry if self.prices is None else replace(entry, at_most=at_most)

    def calls(self, requests: Sequence[Request], sampling: Sampling) -> list[Call]:
        """The calls behind the requests: one for all that ask the same. Raises ValueError for an id given twice."""
        ids, calls = set(), {}
        for request in requests:
            if request.id in ids:
                raise ValueError(f"request id {request.id!r} is there twice: answers are matched by id")
            ids.add(request.id)
            key = self._key(request, sampling)
            if key not in calls:
                calls[key] = Call(key, self._body(request, sampling), [], request.size, sampling.max_new_tokens)
            calls[key].ids.append(request.id)
        return list(calls.values())

    def _key(self, request: Request, sampling: Sampling) -> str:
        settings = asdict(sampling) | {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p)}
        identity = [self.model, self.endpoint, request.messages, settings, request.schema, request.replicate]
        identity += [sorted(self.limits.omit)] if self.limits.omit else []
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _body(self, request: Request, sampling: Sampling) -> dict:
        ours = self.endpoint == OPENAI
        body = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_completion_tokens" if ours else "max_tokens": sampling.max_new_tokens,
            "seed": (sampling.seed + 7919 * request.replicate) % 2**31,
        }
        if sampling.top_k and not ours:  # OpenAI refuses it
            body["top_k"] = sampling.top_k
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.schema:
            schema = {"name": request.schema.get("title", "answer"), "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {name: value for name, value in body.items() if name not in self.limits.omit}

    def estimate(self, requests: Sequence[Request], sampling: Sampling) -> Estimate:
        """A dry run: what `complete` would ask, without asking."""
        calls = self.calls(requests, sampling)
        stored = self.ledger.lookup(call.key for call in calls)
        missing = [call for call in calls if call.key not in stored]
        tokens = sum(call.likely_prompt for call in missing), sum(call.most_answer for call in missing)
        return Estimate(len(missing), len(stored), *tokens, self.price(*tokens))

    def stored(self, requests: Sequence[Request], sampling: Sampling) -> dict[str, Outcome]:
        """The outcomes that are in the ledger, by request id."""
        calls = self.calls(requests, sampling)
        known = self.ledger.lookup(call.key for call in calls)
        return {id: known[call.key].outcome(id) for call in calls if call.key in known for id in call.ids}

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]:
        """Every request's outcome, as it comes: the stored ones first. With `desc`, a progress bar with the cost."""
        calls = self.calls(requests, sampling)
        known = self.ledger.lookup(call.key for call in calls)
        stored = ((call.ids, known[call.key]) for call in calls if call.key in known)
        with progress.bar(total=len(requests), desc=desc, disable=not desc) as bar:
            for ids, entry in chain(stored, self._ask([call for call in calls if call.key not in known], bar)):
                for id in ids:
                    bar.update()
                    yield entry.outcome(id)

    def _ask(self, calls: list[Call], bar: tqdm) -> Iterator[tuple[list[str], Entry]]:
        kind = BatchRun if self.limits.batch else LiveRun
        cost, unknown = 0.0, 0
        for ids, entry in _from_thread(lambda emit, stop: kind(self, calls, emit, stop).go()) if calls else ():
            cost, unknown = cost + (entry.price or 0.0), unknown + (entry.price is None)
            bar.set_postfix_str(f"{cost:.4f} USD" + f", {unknown} calls of unknown cost" * bool(unknown), refresh=False)
            yield ids, entry


def _from_thread(start: Callable) -> Iterator[tuple[list[str], Entry]]:
    """What a coroutine emits, in an event loop of its own thread: works inside Jupyter's running loop, too.

    `start(emit, stop)` makes the coroutine; when the caller stops listening, `stop` is set and its end awaited.
    """
    items, stop = queue.SimpleQueue(), threading.Event()

    async def run() -> None:
        await start(lambda *item: items.put(item), stop)

    def work() -> None:
        try:
            asyncio.run(run())
            items.put(None)
        except BaseException as error:
            items.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def open_model(name: str, ledger: Ledger | Path | str, **limits: object) -> OpenAIChat:
    """The chat model `openai:MODEL[@BASE_URL]`, its calls kept in `ledger`; `limits` are fields of `Limits`.

    Raises ValueError for a bad name, an unknown limit or one that cannot be meant, or a budget without a price.
    """
    book = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
    return OpenAIChat(name, book, read_limits(limits))

"""Calls to make, and what making them live (live.py) and in batches (batch_api.py) have in common."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from c3po_utils.chat.budget import BudgetReached, new_owner
from c3po_utils.chat.ledger import Entry
from c3po_utils.chat.openai.transport import Transport
from c3po_utils.chat.types import likely_tokens

if TYPE_CHECKING:
    from c3po_utils.chat.openai.client import OpenAIChat

Emit = Callable[[list[str], Entry], None]


@dataclass
class Call:
    """Its ledger key, the body to send, the ids of the requests that it answers, and its size."""

    key: str
    body: dict
    ids: list[str]
    prompt_bytes: int
    most_answer: int

    @property
    def most_prompt(self) -> int:
        """A bound on prompt tokens: no token is shorter than a byte; 16 a message for the chat format."""
        return self.prompt_bytes + 16 * self._messages

    @property
    def likely_prompt(self) -> int:
        return likely_tokens(self.prompt_bytes, self._messages)

    @property
    def _messages(self) -> int:
        return len(self.body.get("messages", ()))  # none where the prompt was rendered here


class Run:
    """The calls of one `complete`. `emit(ids, entry)` is called once for each, unless the run is stopped."""

    def __init__(self, chat: OpenAIChat, calls: list[Call], emit: Emit, stop: threading.Event):
        self.chat, self.calls, self.emit, self.stop = chat, calls, emit, stop
        self.ledger, self.limits = chat.ledger, chat.limits
        self.owner, self.failed_before = new_owner(), self.ledger.failures(call.key for call in calls)
        self.halt: BudgetReached | None = None

    async def go(self) -> None:
        """Make all calls. Raises BudgetReached after what is in flight has ended and is stored."""
        async with Transport(self.chat.endpoint, self.limits) as self.transport:
            try:
                await self._make_all()
            finally:
                self.ledger.release_all(self.owner)
                self.ledger.sync()
        if self.halt:
            raise self.halt

    async def _make_all(self) -> None:
        raise NotImplementedError

    def _lease(self, call: Call, lease_s: float, reserved: float = 0.0) -> Entry | bool:
        """A claim on a call (`Ledger.claim`) in which only failures from before this run are no answers."""
        return self.ledger.claim(call.key, self.owner, lease_s, reserved, self.failed_before.get(call.key, 0.0))

    def _record(self, call: Call, entry: Entry, ticket: int = 0, owner: str | None = None) -> None:
        body = self.transport.clean(json.dumps(call.body, ensure_ascii=False))
        self.ledger.record(call.key, self.chat.scope, body, entry, ticket, owner)

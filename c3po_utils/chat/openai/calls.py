"""A call to make: what live.py and batch_api.py ask, and client.py makes of requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from c3po_utils.chat.ledger import Entry
from c3po_utils.chat.types import likely_tokens

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
        return self.prompt_bytes + 16 * len(self.body["messages"])

    @property
    def likely_prompt(self) -> int:
        return likely_tokens(self.prompt_bytes, len(self.body["messages"]))

"""Weights of ours behind a server that runs them (vLLM): asked as `LocalChat` would be, token for token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from c3po_utils import engine  # as a room: its heavy parts are imported when they are used
from c3po_utils.chat import prompts
from c3po_utils.chat.ledger import Entry, Ledger, weights_key
from c3po_utils.chat.openai.calls import Call
from c3po_utils.chat.openai.client import OpenAIChat
from c3po_utils.chat.openai.limits import Limits
from c3po_utils.chat.types import Outcome, Request, Sampling
from c3po_utils.runs import files

LIMITS = Limits(max_in_flight=256, timeout_s=1800.0, max_wait_s=7200.0)  # it queues what it cannot answer yet


class ServedChat(OpenAIChat):
    """A ChatModel whose answers are those of `LocalChat` with the same weights, but for the rounding of numbers.

    The prompt is rendered here and sent as token ids, and so are the ends of an answer: a server's own chat template,
    and sampling parameters that it takes from the model's folder, have no say. Answers lie in the ledger under the
    same keys as LocalChat's.

    Args:
        name: stands for the weights, in the ledger.
        model: pi_0's name, for its tokenizer.
        served_as: the weights' name on the server.
        open_server: its base URL; called when something is to be asked, as it may have to be started.
    """

    def __init__(self, name: str, model: str, served_as: str, ledger: Ledger, open_server: Callable[[], str]):
        self.name = self.scope = name
        self._weights = engine.weights_name(name)
        self.base, self.model, self.endpoint, self.open_server = model, served_as, "", open_server
        self.ledger, self.limits, self.prices, self.supports_schema = ledger, LIMITS, (0.0, 0.0), False

    @cached_property
    def _tokenizer(self) -> Any:
        return engine.load_tokenizer(self.base)

    @cached_property
    def _context(self) -> int:
        return engine.models.context_of(self.base)

    @cached_property
    def _ends(self) -> list[int]:
        return sorted(engine.models.eos_ids_of(self.base, self._tokenizer))

    def _encode(self, request: Request) -> tuple[list[int], str]:
        return prompts.encode(self._tokenizer, self._context, request)

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]:
        """As `OpenAIChat.complete`; a row that cannot be answered ends as `failed`, as LocalChat's does."""
        fine = []
        for request in requests:
            prompt, reason = self._encode(request)
            if reason:
                yield Outcome(request.id, "failed", reason=reason, prompt_tokens=len(prompt))
            else:
                fine.append(request)
        yield from super().complete(fine, sampling, desc=desc)

    def _ask(self, calls: list[Call], bar: Any) -> Iterator[tuple[list[str], Entry]]:
        if calls:
            self.endpoint = self.open_server()  # in this thread: a server ends with the thread that started it
        return super()._ask(calls, bar)

    def _key(self, request: Request, sampling: Sampling) -> str:
        return weights_key(self._weights, request, sampling)

    def _body(self, request: Request, sampling: Sampling) -> dict:
        prompt, _ = self._encode(request)
        seed = files.content_hash([sampling.seed, request.id, request.replicate])
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max(1, min(sampling.max_new_tokens, self._context - len(prompt))),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": list(sampling.stop),
            "stop_token_ids": self._ends,
            "seed": int(seed[:12], 16),
        }

    def entry(self, call: Call, reply: Any, latency_s: float = 0.0, attempts: int = 1) -> Entry:
        """As OpenAIChat's, free of charge, without white space around the text, as LocalChat has none."""
        counts = reply.prompt_tokens, reply.completion_tokens
        text = reply.text.strip()
        return Entry(reply.status, reply.reason, text, *counts, 0.0, 0.0, latency_s, attempts)

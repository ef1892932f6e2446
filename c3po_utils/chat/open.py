"""A model's name to something that answers: a local model or an OpenAI-compatible API, both behind the ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from c3po_utils import chat, engine  # as rooms: their heavy parts are imported when they are used
from c3po_utils.chat import openai
from c3po_utils.chat.budget import new_owner
from c3po_utils.chat.ledger import Entry, Ledger, weights_key
from c3po_utils.chat.names import parse_model_name
from c3po_utils.chat.openai.limits import price_of, read_limits
from c3po_utils.chat.types import ChatModel, Estimate, LocalLimits, Outcome, Request, Sampling, likely_tokens
from c3po_utils.runs import parameters

# A claim on an answer holds so long after the last news, which a model that is being loaded does not give; on this
# machine it ends with its process.
LEASE_S = 600.0
WAIT_S = 1.0


class DryRun:
    """A stand-in that asks nobody: it answers like `model` from the ledger, and else with a made-up text.

    `total` is what asking would take. The made-up text is as long as an answer can be and was cut off there: a later
    question which quotes it is not underrated, and where answers are to end by themselves, all tries are counted. No
    two are alike, so that a judge would be asked to compare them. What `made_up` gives has ended.
    """

    def __init__(self, model: ChatModel, made_up: Callable[[Request], str] | None = None):
        self.model, self.name = model, model.name
        self.supports_schema = getattr(model, "supports_schema", False)
        self.total, self._made_up = Estimate(), made_up

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]:
        self.total += self.model.estimate(requests, sampling)
        stored = self.model.stored(requests, sampling)
        for request in requests:
            yield stored.get(request.id) or self._outcome(request, sampling)

    def _outcome(self, request: Request, sampling: Sampling) -> Outcome:
        if self._made_up:
            return Outcome(request.id, "ok", self._made_up(request))
        return Outcome(request.id, "truncated", f"{request.id} " + "word " * (sampling.max_new_tokens - 1))


class RememberedChat:
    """A local model whose answers are kept in the ledger (under `ledger.weights_key`): a rerun asks only for what is
    missing. What another process is answering at this time is waited for, not answered again.
    """

    def __init__(self, model: ChatModel, ledger: Ledger):
        self.model, self.ledger, self.name, self.scope = model, ledger, model.name, model.name
        self._weights = engine.weights_name(model.name)

    def stored(self, requests: Sequence[Request], sampling: Sampling) -> dict[str, Outcome]:
        """The outcomes that are in the ledger, by request id."""
        keys = {request.id: weights_key(self._weights, request, sampling) for request in requests}
        known = self.ledger.lookup(keys.values())
        return {id: known[key].outcome(id) for id, key in keys.items() if key in known}

    def estimate(self, requests: Sequence[Request], sampling: Sampling) -> Estimate:
        """A dry run: what `complete` would ask, without asking. A local model is free of charge."""
        stored = self.stored(requests, sampling)
        missing = [request for request in requests if request.id not in stored]
        tokens = sum(likely_tokens(request.size, len(request.messages)) for request in missing)
        return Estimate(len(missing), len(stored), tokens, len(missing) * sampling.max_new_tokens)

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]:
        missing, owner = {request.id: request for request in requests}, new_owner()
        try:
            while True:
                stored = self.stored(list(missing.values()), sampling)
                yield from stored.values()
                missing = {id: request for id, request in missing.items() if id not in stored}
                if not missing:
                    return
                mine = {id: request for id, request in missing.items() if self._claim(request, sampling, owner)}
                yield from self._answers(mine, sampling, owner, desc) if mine else ()
                missing = {id: request for id, request in missing.items() if id not in mine}
                if missing and not mine:
                    time.sleep(WAIT_S)  # for another process, or for its lease to end
        finally:
            self.ledger.release_all(owner)

    def _claim(self, request: Request, sampling: Sampling, owner: str) -> bool:
        return self.ledger.claim(weights_key(self._weights, request, sampling), owner, LEASE_S) is True

    def _answers(self, mine: dict[str, Request], sampling: Sampling, owner: str, desc: str) -> Iterator[Outcome]:
        """Answer what this process has claimed, keep it, and keep the claims of a long answering alive."""
        keys = {id: weights_key(self._weights, request, sampling) for id, request in mine.items()}
        renewed = time.monotonic()
        for outcome in self.model.complete(list(mine.values()), sampling, desc=desc):
            entry = Entry(
                outcome.status, outcome.reason, outcome.text, outcome.prompt_tokens, outcome.completion_tokens,
                price=0.0, at_most=0.0,
            )  # fmt: skip
            body = json.dumps({"messages": mine[outcome.id].messages, **asdict(sampling)}, ensure_ascii=False)
            self.ledger.record(keys[outcome.id], self.name, body, entry)
            if time.monotonic() - renewed > LEASE_S / 10:
                self.ledger.renew(keys.values(), owner, LEASE_S)
                renewed = time.monotonic()
            yield outcome


class _Waiting:
    """A local model that is loaded when it is first asked: what is stored, or estimated, needs no weights."""

    def __init__(self, name: str, **limits: float):
        engine.names.check_name(name)  # a name that cannot be meant is an error now
        self.name, self._limits = name, limits

    @cached_property
    def _chat(self) -> ChatModel:
        model, tokenizer = engine.shared_model(self.name), engine.load_tokenizer(self.name)
        return chat.local.LocalChat(model, tokenizer, name=self.name, **self._limits)

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]:
        return self._chat.complete(requests, sampling, desc=desc)


def check_model(name: str, **limits: Any) -> None:
    """Raises ValueError for a name or limits that `open_chat` refuses. Nothing heavy is imported, nothing opened."""
    parsed = parse_model_name(name)
    if parsed.endpoint:
        price_of(parsed, read_limits(limits))
    else:
        LocalLimits(**parameters.checked(limits, get_type_hints(LocalLimits), "limit"))
        engine.names.check_name(name)


def open_chat(name: str, ledger: Path | str, **limits: Any) -> ChatModel:
    """`openai:MODEL[@BASE_URL]` behind its API, any other name a local model that is loaded when needed.

    Answers are kept in the ledger at a path; `limits` as `Limits` or `LocalLimits` take them.
    Raises ValueError as `check_model` does.
    """
    check_model(name, **limits)
    if parse_model_name(name).endpoint:
        return openai.open_model(name, ledger, **limits)
    return RememberedChat(_Waiting(name, **limits), Ledger(ledger))


def within(name: str, limits: dict[str, Any] | None) -> dict[str, Any]:
    """What an API's limits come to for this model: a local one is opened with its own.

    Raises ValueError for limits that no API has, whoever answers.
    """
    if parse_model_name(name).endpoint:
        return limits or {}
    read_limits(limits or {})
    return {}


def open_within(name: str, ledger: Path | str, limits: dict[str, Any] | None) -> ChatModel:
    """`open_chat` where limits are an API's; see `within`."""
    return open_chat(name, ledger, **within(name, limits))


def remembered(model: Any, tokenizer: Any, name: str, ledger: Path | str) -> RememberedChat:
    """A loaded model (transformers' or peft's) with the ledger at a path; `name` stands for its weights there."""
    return RememberedChat(chat.local.LocalChat(model, tokenizer, name=name), Ledger(ledger))

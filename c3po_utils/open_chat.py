"""A model name to something that answers: a local model or an OpenAI-compatible API, both behind the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from c3po_utils.chat import ChatModel, Outcome, Request, Sampling
from c3po_utils.ledger import Entry, Ledger
from c3po_utils.local_chat import LocalChat
from c3po_utils.models import load_model, load_tokenizer
from c3po_utils.runs import content_hash


class RememberedChat:
    """A local model whose answers are kept in the ledger: a rerun asks only for what is missing.

    The key is what decides the answer: model, messages, sampling parameters with their seed, and the replicate.
    """

    def __init__(self, model: LocalChat, ledger: Ledger):
        self.model, self.ledger, self.name = model, ledger, model.name

    def _key(self, request: Request, sampling: Sampling) -> str:
        return content_hash([self.name, list(request.messages), asdict(sampling), request.id, request.replicate])

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]:
        keys = {request.id: self._key(request, sampling) for request in requests}
        known = self.ledger.lookup(keys.values())
        for request in requests:
            if keys[request.id] in known:
                yield known[keys[request.id]].outcome(request.id)
        missing = [request for request in requests if keys[request.id] not in known]
        by_id = {request.id: request for request in missing}
        for outcome in self.model.complete(missing, sampling, desc=desc) if missing else ():
            entry = Entry(
                outcome.status,
                outcome.reason,
                outcome.text,
                outcome.prompt_tokens,
                outcome.completion_tokens,
                price=0.0,
                at_most=0.0,
            )
            body = json.dumps({"messages": by_id[outcome.id].messages, **asdict(sampling)}, ensure_ascii=False)
            self.ledger.record(keys[outcome.id], self.name, body, entry)
            yield outcome


def open_local(name: str, ledger: Path | str, **limits: float) -> RememberedChat:
    """The named local model (see models.py), loaded, with the ledger at a path."""
    return RememberedChat(LocalChat(load_model(name), load_tokenizer(name), name=name, **limits), Ledger(ledger))


def ask(model: ChatModel, requests: Sequence[Request], sampling: Sampling, desc: str = "") -> dict[str, Outcome]:
    """Outcomes by request id, one for each request.

    Raises:
        RuntimeError: the model left a request without an outcome, or answered one that was not asked.
    """
    outcomes = {outcome.id: outcome for outcome in model.complete(requests, sampling, desc=desc)}
    asked = {request.id for request in requests}
    if outcomes.keys() != asked or len(asked) != len(requests):
        raise RuntimeError(f"{len(requests)} requests, {len(outcomes)} outcomes: ids must be unique and all answered")
    return outcomes

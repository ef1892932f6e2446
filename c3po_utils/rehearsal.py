"""A dry run: the pipeline itself, played with stand-ins for its models that ask nobody and count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from c3po_utils.chat import ChatModel, Estimate, Outcome, Request, Sampling


class Rehearsal:
    """Answers like `model` from the ledger, and else with a made-up text; `total` is what asking would take.

    The made-up text is as long as an answer can be, so that a later question which quotes it is not underrated.
    """

    def __init__(self, model: ChatModel, made_up: Callable[[Request], str] | None = None):
        self.model, self.name = model, model.name
        self.supports_schema = getattr(model, "supports_schema", False)
        self.total, self._made_up = Estimate(), made_up

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]:
        self.total += self.model.estimate(requests, sampling)
        stored = self.model.stored(requests, sampling)
        for request in requests:
            text = self._made_up(request) if self._made_up else "word " * sampling.max_new_tokens
            yield stored.get(request.id) or Outcome(request.id, "ok", text)

"""What a chat model is here: conversations in, typed outcomes out, each with the id it was asked under."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

Status = Literal["ok", "truncated", "refused", "filtered", "malformed", "failed"]
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Defaults are the paper's for pi_0 (section 5), `max_new_tokens` is ours.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch their filters off. `seed` and the request's id
    together fix an answer, whatever else is sampled beside it.
    """

    temperature: float = 0.7
    top_p: float = 0.7
    top_k: int = 50
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"sampling: expected temperature >= 0, 0 < top_p <= 1, top_k >= 0, max_new_tokens >= 1; found {self}"
            )


@dataclass(frozen=True)
class Request:
    """One conversation to be answered. `id` names the request for good: results are matched by it, never by place.

    `schema` asks for JSON of that form, from models that say `supports_schema`; `replicate` tells apart the askings
    of one conversation that shall be answered anew.
    """

    id: str
    messages: tuple[Message, ...]
    schema: dict | None = None
    replicate: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    `text` is the answer for `ok` and `truncated` (the token limit came before the end), and empty otherwise;
    `reason` says why anything else happened.
    """

    id: str
    status: Status
    text: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    details: dict = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return self.status in ("ok", "truncated")

    def to_row(self) -> dict:
        return asdict(self)


class ChatModel(Protocol):
    """Answers requests in any order, streaming each outcome back as soon as it is there."""

    name: str

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]: ...


def request(id: str, prompt: str, *, system: str = "", turns: Iterable[tuple[str, str]] = ()) -> Request:
    """A request for one user prompt, after an optional system prompt and (user, assistant) example turns."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return Request(id, (*messages, {"role": "user", "content": prompt}))


def tally(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Counts by status: requested = the sum of all of them."""
    return dict(Counter(outcome.status for outcome in outcomes))

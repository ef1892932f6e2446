"""What a chat model is here: conversations in, typed outcomes out, each with the id it was asked under."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Literal, Protocol

Status = Literal["ok", "truncated", "refused", "filtered", "malformed", "failed"]
USABLE: tuple[Status, ...] = ("ok", "truncated")  # there is an answer, if only a part of it or an empty one
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

# What a conversation is that no engine can answer, in the reason why it failed (prompts.encode).
EMPTY, REFUSED, NO_ROOM = "empty prompt", "the model's chat template refuses the conversation", "leaves no room in the"

LEAST = 1e-6  # of what must be more than nothing


def expect(name: str, found: object, least: float, most: float = 2**53, *, whole: bool = False) -> None:
    """Raises ValueError unless a setting is a (`whole`) number from `least` to `most`; NaN and infinity are none."""
    number = isinstance(found, int if whole else (int, float)) and not isinstance(found, bool)
    if not number or not least <= found <= most:
        bounds = f">= {least:g}" if most == 2**53 else f"from {least:g} to {most:g}"
        raise ValueError(f"{name}: found {found!r}, expected a {'whole' if whole else 'finite'} number {bounds}")


def answerable(reason: str) -> bool:
    """Whether what failed for this reason may be answered when it is asked again."""
    return not any(part in reason for part in (EMPTY, REFUSED, NO_ROOM))


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
        expect("temperature", self.temperature, 0)
        expect("top_p", self.top_p, LEAST, 1)
        expect("top_k", self.top_k, 0, whole=True)
        expect("max_new_tokens", self.max_new_tokens, 1, whole=True)
        if "" in self.stop or not all(isinstance(stop, str) for stop in self.stop):
            raise ValueError(f"stop: found {self.stop!r}, expected texts of at least one character")


@dataclass(frozen=True)
class LocalLimits:
    """What a local model may hold: GiB of key-value cache, and at most so many conversations at a time."""

    memory_gib: float = 1.5
    max_slots: int = 128

    def __post_init__(self) -> None:
        expect("limit 'memory_gib'", self.memory_gib, LEAST)
        expect("limit 'max_slots'", self.max_slots, 1, whole=True)


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

    @property
    def size(self) -> int:
        """Bytes of what is sent: messages and schema."""
        schema = len(json.dumps(self.schema)) if self.schema else 0
        return schema + sum(len(message["content"].encode()) for message in self.messages)


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
        return self.status in USABLE


class ChatModel(Protocol):
    """Answers requests in any order, streaming each outcome back as soon as it is there."""

    name: str

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "") -> Iterator[Outcome]: ...


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


@dataclass(frozen=True)
class Estimate:
    """What asking would take, at most: calls not stored yet, their tokens, and USD (None: price unknown)."""

    calls: int = 0
    stored: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    usd: float | None = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        counts = (a + b for a, b in zip(astuple(self)[:-1], astuple(other)[:-1], strict=True))
        return Estimate(*counts, usd)

    def __str__(self) -> str:
        cost = "unknown (no price given)" if self.usd is None else f"at most {self.usd:.4f} USD"
        tokens = f"about {self.prompt_tokens:,} prompt and at most {self.answer_tokens:,} answer tokens"
        return f"{self.calls:,} calls ({self.stored:,} more are stored), {tokens}; cost {cost}"


def likely_tokens(size: int, messages: int) -> int:
    """About how many tokens `size` bytes in so many messages are: one for three, 16 a message for the chat format."""
    return -(-size // 3) + 16 * messages


def request(id: str, prompt: str, *, system: str = "", turns: Iterable[tuple[str, str]] = ()) -> Request:
    """A request for one user prompt, after an optional system prompt and (user, assistant) example turns."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return Request(id, (*messages, {"role": "user", "content": prompt}))

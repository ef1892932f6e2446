"""What came back from a server, as typed replies: every field of a reply is checked here, once, at the door.

Reasons hold what the server said, uncut: `Transport.cleaned` takes keys out before it cuts.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

import httpx2
import openai

from c3po_utils.chat.openai.limits import Limits
from c3po_utils.chat.openai.pace import retry_after
from c3po_utils.chat.types import Status

ENDED = ("stop", "eos", "end_turn", "stop_sequence")  # how servers spell an answer that came to its end
PASSING = (408, 409, 425, 429)  # client errors that may heal; server errors (5xx) may, too
OVERLOAD = (429, 503, 529)
HOPELESS = (401, 404)  # the key or the model is wrong: so is every other call
MOST_TOKENS = 100_000_000  # no call has more: a larger count is an error, and would use up any budget


class AnswerTooLong(openai.OpenAIError):
    """An answer passed `max_answer_bytes`; raised while reading, so that the rest is never held."""


class BrokenAnswer(ValueError):
    """A 200 whose body is no chat completion; another attempt may bring one."""


@dataclass(frozen=True)
class Reply:
    """What an attempt brought: how the call ends if it is the last one, and whether another is worth it."""

    status: Status
    text: str = ""
    reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    heals: bool = False  # another attempt may do better
    overload: bool = False  # the server wants fewer calls at a time
    billed: bool = False  # may have cost money
    hopeless: bool = False  # no call to this model can succeed
    unreached: bool = False  # no connection to the server
    asked_s: float | None = None  # the server's Retry-After
    unsupported: bool = False  # the server takes no JSON schema


def decode(body: bytes, headers: Mapping[str, str]) -> dict:
    """The JSON object with `choices` in a response's body. Raises BrokenAnswer, saying what is there instead."""
    kind = headers.get("content-type", "no content type")
    if "json" not in kind:
        raise BrokenAnswer(f"expected JSON, found {kind}: {body!r}")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswer(f"broken JSON ({error}), {len(body)} bytes") from error
    return checked(value, body)


def checked(value: object, body: bytes) -> dict:
    """The JSON object with `choices`, as read from a body. Raises BrokenAnswer."""
    if not isinstance(value, dict) or "choices" not in value:
        raise BrokenAnswer(f"no choices: {body.decode(errors='replace')}")
    return value


async def lines(chunks: AsyncIterator[bytes], limit: int, cut: bool = False) -> AsyncIterator[bytes]:
    """Lines that are not empty, of at most about `limit` bytes. Raises AnswerTooLong, or cuts longer ones off."""
    rest, skipping = b"", False
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole[skipping:]:
            if line := line.strip():
                yield line
        skipping = skipping and not whole
        if len(rest) > limit and not cut:
            raise AnswerTooLong(f"event longer than {limit} bytes")
        if len(rest) > limit and not skipping:
            skipping = True
            yield rest
        rest = b"" if skipping else rest
    if rest := rest.strip():
        yield rest


async def gather(chunks: AsyncIterator[bytes], limit: int) -> dict:
    """Put server-sent events together to the completion that they are pieces of, holding only its text."""
    texts: dict[str, list[str]] = {"content": [], "refusal": []}
    finish, usage, size = None, None, 0
    async for line in lines(chunks, limit):
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        event = decode(line[5:], {"content-type": "json"})
        usage = event.get("usage") or usage
        choice = _first(event["choices"])
        delta = choice.get("delta")
        for name, pieces in texts.items():
            if piece := delta.get(name) if isinstance(delta, dict) else None:
                pieces.append(piece if isinstance(piece, str) else "\ud800")  # no text: for `judge` to refuse
                size += len(pieces[-1])
        finish = choice.get("finish_reason") or finish
        if size > limit:
            raise AnswerTooLong(f"answer longer than {limit} characters")
    if finish is None:
        raise BrokenAnswer("the stream ended before the answer did")
    message = {name: "".join(pieces) for name, pieces in texts.items()}
    return {"choices": [{"finish_reason": finish, "message": message}], "usage": usage}


def _first(choices: object) -> dict:
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def _tokens(usage: object) -> tuple[int | None, int | None]:
    counts = usage if isinstance(usage, dict) else {}
    found = (counts.get("prompt_tokens"), counts.get("completion_tokens"))
    prompt, answer = (count if type(count) is int and 0 <= count <= MOST_TOKENS else None for count in found)
    return prompt, answer


def judge(completion: dict) -> Reply:
    """The typed reply that a completion amounts to. It was answered, so it is paid for, whatever it says.

    Where a prompt was completed, and no chat, an answer may be empty.
    """
    tokens, choice = _tokens(completion.get("usage")), _first(completion.get("choices"))
    if "text" in choice:
        status, text, reason = _read_text(choice["text"], choice.get("finish_reason"))
        return Reply(status, text, reason, *tokens, billed=True)
    message = choice.get("message")
    if not isinstance(message, dict):
        return Reply("malformed", "", "no choice in the answer", *tokens, billed=True)
    status, text, reason = _read(choice.get("finish_reason"), message.get("content"), message.get("refusal"))
    return Reply(status, text, reason, *tokens, billed=True)


def _read(finish: object, content: object, refusal: object) -> tuple[Status, str, str]:
    if refusal:
        return "refused", "", refusal if isinstance(refusal, str) else f"for a reason that is {_kind(refusal)}"
    if finish == "content_filter":
        return "filtered", "", "the provider's content filter"
    if finish in (*ENDED, "length") and isinstance(content, str) and not content.strip():
        return "malformed", "", f"expected text, found {content!r} (finish_reason {finish!r})"
    return _read_text(content, finish)


def _read_text(content: object, finish: object) -> tuple[Status, str, str]:
    if finish not in (*ENDED, "length"):
        return "malformed", "", f"finish_reason {finish if isinstance(finish, str) else _kind(finish)!r}"
    if not isinstance(content, str):
        return "malformed", "", f"expected text, found {_kind(content)} (finish_reason {finish!r})"
    if not content.isascii() and re.search("[\ud800-\udfff]", content):
        return "malformed", "", "the text holds half a surrogate pair"
    return ("truncated", content, "token limit") if finish == "length" else ("ok", content, "")


def _kind(value: object) -> str:
    """What a JSON value is, for a message: the value itself may be large, or too deep to be written."""
    return "null" if value is None else f"a {type(value).__name__}"


def failure(error: Exception, limits: Limits, endpoint: str) -> Reply:
    """The typed reply that an exception amounts to."""
    if isinstance(error, AnswerTooLong):
        return Reply("malformed", reason=str(error), billed=True)
    if isinstance(error, BrokenAnswer):
        return Reply("failed", reason=str(error), heals=True, billed=True)
    if isinstance(error, openai.APIStatusError):
        return _refusal(error, endpoint)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
    reason = f"{endpoint}: {type(cause).__name__}: {cause}".removesuffix(": ")
    unreached = isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout))
    if unreached or isinstance(cause, httpx2.PoolTimeout):
        return Reply("failed", reason=reason, heals=True, overload=True, unreached=unreached)
    if isinstance(cause, (TimeoutError, httpx2.TimeoutException)):
        reason = f"{endpoint}: no answer within {limits.timeout_s:g} s"
        return Reply("failed", reason=reason, heals=True, overload=True, billed=True)
    if isinstance(cause, httpx2.LocalProtocolError) and "header" in str(cause):  # no call has another
        return Reply("failed", reason=reason, hopeless=True)
    network = isinstance(cause, (openai.APIConnectionError, httpx2.HTTPError, OSError))
    return Reply("failed", reason=reason, heals=network, billed=network)


def _refusal(error: openai.APIStatusError, endpoint: str) -> Reply:
    if error.status_code < 400:
        return _redirect(error.response, endpoint)
    reply = refusal(error.status_code, error.body, error.message, endpoint)
    return replace(reply, asked_s=retry_after(error.response.headers))


def _redirect(response: httpx2.Response, endpoint: str) -> Reply:
    """No redirect is followed: it would carry prompts and key to a server that nobody named."""
    try:
        target = response.request.url.join(response.headers.get("location", ""))
        place = f"{target.scheme}://{target.netloc.decode('ascii')}{target.path}"
    except httpx2.InvalidURL:
        place = "no address that can be read"
    reason = (
        f"HTTP {response.status_code}: {endpoint} redirects to {place}, which is not followed:"
        " name the server that is meant, openai:MODEL@BASE_URL"
    )
    return Reply("failed", reason=reason, hopeless=True)


def refusal(status: int, error: object, otherwise: str, endpoint: str) -> Reply:
    """The typed reply that an HTTP status amounts to, by the `error` in its body, or `otherwise`."""
    details = error if isinstance(error, dict) else {}
    said, name = (details.get(key) for key in ("message", "code"))
    message = said if said and isinstance(said, str) else otherwise
    code = name if name and isinstance(name, str) else details.get("type")
    reason = f"HTTP {status}: " * bool(status) + message + f" (at {endpoint})" * (status == 404)
    if status < 500 and code in ("content_filter", "content_policy_violation", "invalid_prompt"):
        return Reply("filtered", reason=reason)
    quota = code == "insufficient_quota"
    schema = status in (400, 422) and re.search("response_format|json_schema|structured output", message) is not None
    heals = (status in PASSING or status >= 500) and not quota
    return Reply(
        "failed", reason=reason, heals=heals, overload=status in OVERLOAD and not quota, unsupported=schema,
        hopeless=quota or status in HOPELESS,
    )  # fmt: skip

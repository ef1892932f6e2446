"""What the tests of the API client share: requests, scripts, and a client that does not wait long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from c3po_utils.chat.openai.client import OpenAIChat, open_model
from c3po_utils.chat.types import Outcome, Request, Sampling, request
from tests.servers import Asked, Reply, Scripted, listing

SAMPLING = Sampling(max_new_tokens=32)
PRICES = {"m": (1000.0, 2000.0)}
ANSWER_USD = 0.025  # of a scripted answer: 11 and 7 tokens
FAST = {"backoff_s": 0.005, "max_backoff_s": 0.02, "timeout_s": 0.6, "max_attempts": 3}


def fast_client(folder: Path, server: Scripted, **limits: object) -> OpenAIChat:
    """A model on a scripted server, with the ledger of the folder."""
    prices = limits.pop("prices", PRICES)
    return open_model(f"openai:m@{server.url}", folder / "calls.sqlite", prices=prices, **{**FAST, **limits})


def ambient_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an environment may hold that is for OpenAI only."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-only")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "authorization: Bearer sk-ambient\nX-Gateway-Key: gateway-secret")


def asks(count: int) -> list[Request]:
    return [request(f"r{n}", f"prompt {n}") for n in range(count)]


def echo(asked: Asked) -> Reply:
    return Reply(f"answer to {asked.prompt}")


def writer(asked: Asked) -> Reply:
    """A list where one is asked for, and else an answer that quotes all that was said."""
    if "response_format" in asked.body:
        return listing(asked)
    return Reply("answer to " + " | ".join(message["content"] for message in asked.body["messages"]))


def by_id(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """Outcomes by id, each there once."""
    found = list(outcomes)
    assert len({outcome.id for outcome in found}) == len(found)
    return {outcome.id: outcome for outcome in found}


def tally(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Counts by status: requested = the sum of all of them."""
    return dict(Counter(outcome.status for outcome in outcomes))

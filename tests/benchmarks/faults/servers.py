"""Odd replies and transport faults among good ones: what was requested, paid, asked again, wrong, raised."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from c3po_utils.chat.openai.batch_api import BatchFailed
from c3po_utils.chat.openai.client import OpenAIChat
from c3po_utils.chat.types import Outcome
from tests.asking import SAMPLING, asks, by_id, echo, fast_client
from tests.benchmarks.faults.line import Line
from tests.chat.openai.test_batch_faults import CALLS, OUTPUTS, REPLIES
from tests.chat.openai.test_faults import ENDS, REDIRECTS
from tests.chat.openai.test_odd_replies import BOMBS, ERROR_STATUSES, MOST_MB, ODD, SAID, bombed, error_bodies
from tests.servers import FAULTS, Asked, Batches, Reply, Scripted, error, redirect, scripted

COUNT, BAD = 12, {"prompt 2", "prompt 5", "prompt 11"}  # calls of a run, and those that meet the fault
SAID_BY_FAULTS = {"fine", "slow but fine", "half an answ"}  # texts of those odd replies that are answers
FINAL = {"ok", "truncated", "refused", "filtered", "malformed"}  # answered, and so paid for
Ask = Callable[[], OpenAIChat]


def run_of_calls(line: Line, name: str, ask: Ask, server: Scripted, heal: Callable[[], None], ends: str = "") -> None:
    """A run that meets the fault in some calls, and the next one, which does not: what both brought.

    `ends`: how the calls that meet it end; empty for any way.
    """
    start, raised = time.monotonic(), {}
    first = _complete(ask(), raised)
    seconds, before = time.monotonic() - start, len(prompts(server))
    heal()
    second = _complete(ask(), raised)
    kept = {id: outcome for id, outcome in first.items() if outcome.status in FINAL}
    counts = {
        "requested": COUNT,
        "ok": sum(outcome.status == "ok" for outcome in first.values()),
        "quarantined": sum(outcome.status != "ok" for outcome in first.values()),
        "left_to_the_next_run": COUNT - len(first),
        "told_by_one_error": raised.get("told", 0),
        "answers_paid": len(kept),
        "paid_answers_lost": sum(second.get(id) != outcome for id, outcome in kept.items()),
        "answered_asked_again": len({_id(prompt) for prompt in prompts(server)[before:]} & kept.keys()),
        "wrong_answers": sum(not right(outcome) for outcome in (*first.values(), *second.values())),
        "exceptions": raised.get("other", 0),
    }  # fmt: skip
    wrong = ("paid_answers_lost", "answered_asked_again", "wrong_answers", "exceptions")
    met = {first[_id(prompt)].status for prompt in BAD if _id(prompt) in first}
    whole = bool(raised.get("told")) == bool(counts["left_to_the_next_run"])
    answered = len(second) == COUNT and all(outcome.status in FINAL for outcome in second.values())
    held = whole and answered and not any(counts[key] for key in wrong) and (not ends or met == {ends})
    line.add(f"{name}: {met}, {counts}", held, seconds, **counts)


def _complete(chat: OpenAIChat, raised: dict[str, int]) -> dict[str, Outcome]:
    try:
        return by_id(chat.complete(asks(COUNT), SAMPLING))
    except BatchFailed:  # what the batch API did wrong is one error, that names it; no call is lost
        raised["told"] = raised.get("told", 0) + 1
    except Exception:
        raised["other"] = raised.get("other", 0) + 1
    finally:
        chat.ledger.close()
    return {}


def _id(prompt: str) -> str:
    return f"r{prompt.split()[-1]}"


def right(outcome: Outcome) -> bool:
    prompt = f"prompt {outcome.id[1:]}"
    texts = {f"answer to {prompt}"} | (SAID_BY_FAULTS if prompt in BAD else set())
    return outcome.text in texts if outcome.status in ("ok", "truncated") else outcome.text == ""


def prompts(server: Scripted) -> list[str]:
    """All that the server was asked for, by calls and by batches."""
    batched = server.batches.requests if server.batches else []
    return [one.prompt for one in server.asked] + [line["body"]["messages"][-1]["content"] for line in batched]


def live(what: str, replies: dict[str, tuple[Callable[[], Reply], str]], **limits: object) -> Line:
    """Runs of calls of which some meet the reply, one run for each; with how such a call ends."""
    line = Line(what)
    for name, (reply, ends) in replies.items():

        def script(asked: Asked, reply: Callable[[], Reply] = reply) -> Reply:
            return reply() if asked.prompt in BAD else echo(asked)

        with tempfile.TemporaryDirectory() as folder, scripted(script) as server:
            slow = {"timeout_s": 0.3 if name in ("silent", "drip") else 5.0}

            def ask(folder: str = folder, server: Scripted = server, slow: dict = slow) -> OpenAIChat:
                return fast_client(Path(folder), server, **slow | limits)

            run_of_calls(line, name, ask, server, lambda server=server: setattr(server, "script", echo), ends)
    return line


def faults() -> Iterator[Line]:
    scripts = {name: (make, ENDS[name][0]) for name, make in FAULTS.items()}
    yield live("server: faults", scripts)
    yield live("server: faults, streamed", scripts, stream=True)
    yield live(
        "server: odd replies", {name: (lambda sent=sent: Reply(body=sent), e) for name, (sent, e) in ODD.items()}
    )
    bodies = [(status, sent) for status in ERROR_STATUSES for said in SAID for sent in error_bodies(said)]
    odd = {f"{status} {sent[:60]}": _error(status, sent) for status, sent in bodies}
    yield live("server: odd errors", odd)
    elsewhere = {f"redirect {n}": (lambda n=n: redirect(n, "http://127.0.0.1:9/v1"), "failed") for n in REDIRECTS}
    yield live("server: redirects", elsewhere)


def _error(status: int, sent: str) -> tuple[Callable[[], Reply], str]:
    return lambda: Reply(body=sent.encode(), status=status), "failed"


def batched(what: str, spoil: dict[str, Callable[[Batches], None]]) -> Line:
    """Runs in batches, one for each way in which the API or its files are spoiled."""
    line = Line(what)
    for name, spoils in spoil.items():
        with tempfile.TemporaryDirectory() as folder, scripted(echo, Batches(echo)) as server:
            spoils(server.batches)

            def heal(batches: Batches = server.batches) -> None:
                batches.fault, batches.output = lambda call: None, lambda content: content

            def ask(folder: str = folder, server: Scripted = server) -> OpenAIChat:
                return fast_client(Path(folder), server, batch=True, poll_s=0.02, max_attempts=2)

            run_of_calls(line, name, ask, server, heal)
    return line


def _at(call: str, reply: Reply) -> Callable[[Batches], None]:
    return lambda batches: setattr(batches, "fault", lambda seen: reply if re.fullmatch(call, seen) else None)


def batches() -> Iterator[Line]:
    yield batched(
        "server: odd result files of batches",
        {
            name: lambda batches, change=change: setattr(batches, "output", change)
            for name, (change, _) in OUTPUTS.items()
        },
    )
    replies = REPLIES | {"redirect": redirect(307, "http://127.0.0.1:9/v1"), "404": error(404, "gone")}
    spoil = {f"{call}: {name}": _at(call, reply) for call in CALLS for name, reply in replies.items()}
    yield batched("server: faults of the batch API", spoil)


def bombs() -> Line:
    line = Line("server: answers that unpack to 200 MB", unit="MB")
    for *how, ends in BOMBS:
        with tempfile.TemporaryDirectory() as folder:
            found, megabytes = bombed(Path(folder), *how)
        line.add(f"{how}: {found}, {megabytes:.0f} MB", found == ends and megabytes < MOST_MB, megabytes)
    return line


def trial(seed: int) -> Iterator[Line]:
    yield from faults()
    yield from batches()
    yield bombs()

"""Replies that no server should send: each ends one call, by type, and no run."""

import asyncio
import functools
import gzip
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3po_utils.chat.openai.client import open_model
from c3po_utils.chat.openai.replies import lines
from c3po_utils.chat.types import Sampling, request
from tests.asking import FAST, SAMPLING, asks, by_id, fast_client, tally
from tests.servers import Reply, scripted

STATUSES = {"ok", "truncated", "refused", "filtered", "malformed", "failed"}
HALF = "\\ud83d"  # of a surrogate pair, as JSON writes it


@pytest.fixture
def client(tmp_path):
    return functools.partial(fast_client, tmp_path)


def body(content='"fine"', refusal="null", usage="null", finish='"stop"') -> bytes:
    message = f'{{"content": {content}, "refusal": {refusal}}}'
    return f'{{"choices": [{{"finish_reason": {finish}, "message": {message}}}], "usage": {usage}}}'.encode()


def counts(prompt: str, answer: str = "3") -> str:
    return f'{{"prompt_tokens": {prompt}, "completion_tokens": {answer}}}'


DEEP = "[" * 800 + "]" * 800
ODD = {  # and how the call ends
    "half a surrogate in a refusal": (body(refusal=f'"{HALF} no"'), "refused"),
    "half a surrogate in an answer": (body(content=f'"{HALF}"'), "malformed"),
    "half a surrogate in a finish": (body(finish=f'"{HALF}"'), "malformed"),
    "a refusal that is no text": (body(refusal='{"why": [1]}'), "refused"),
    "a deep refusal": (body(refusal=DEEP), "refused"),
    "a deep answer": (body(content=DEEP), "malformed"),
    "a deep finish": (body(finish=DEEP), "malformed"),
    "an answer in parts": (body(content='[{"type": "text", "text": "hi"}]'), "malformed"),
    "usage beyond 64 bits": (body(usage=counts("9223372036854775808", "36893488147419103232")), "ok"),
    "usage that adds up beyond 64 bits": (body(usage=counts("9223372036854775807", "9223372036854775807")), "ok"),
    "negative usage": (body(usage=counts("-5", "-1")), "ok"),
    "usage in halves": (body(usage=counts("1.5", "NaN")), "ok"),
    "usage in texts": (body(usage=counts('"7"', "true")), "ok"),
    "usage that is a list": (body(usage="[1, 2]"), "ok"),
    "choices that are a number": (b'{"choices": 3}', "malformed"),
    "choices of nothing": (b'{"choices": [null]}', "malformed"),
    "a number too long to read": (b'{"choices": ' + b"9" * 5000 + b"}", "failed"),
    "UTF-16": (body().decode().encode("utf-16"), "ok"),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_reply_ends_one_call_and_the_others_are_kept(client, odd):
    sent, status = ODD[odd]
    with scripted(lambda asked: Reply(body=sent) if asked.prompt == "prompt 2" else Reply("fine")) as server:
        model = client(server)
        outcomes = by_id(model.complete(asks(5), SAMPLING))
        before = len(server.asked)
        list(client(server).complete(asks(5), SAMPLING))
        assert len(server.asked) - before == (3 if status == "failed" else 0), "what was answered is not asked again"
    assert outcomes["r2"].status == status
    assert tally(outcomes[f"r{n}"] for n in (0, 1, 3, 4)) == {"ok": 4}
    assert outcomes["r2"].reason.encode() is not None


ERROR_STATUSES = [400, 401, 404, 429, 500]
SAID = [f'"{HALF}"', "[1]", "null", DEEP, '"' + "x" * 100_000 + '"', '{"a": 1}']


def error_bodies(said: str) -> list[str]:
    """Where an error may stand in a body."""
    return [f'{{"error": {{"message": {said}, "code": {said}, "type": {said}}}}}', f'{{"error": {said}}}', said]


@pytest.mark.parametrize("status", ERROR_STATUSES)
@pytest.mark.parametrize("said", SAID, ids=lambda said: said[:12])
def test_odd_errors_are_failures(client, status, said):
    for sent in error_bodies(said):
        with scripted(lambda asked, sent=sent: Reply(body=sent.encode(), status=status)) as server:
            (outcome,) = client(server).complete(asks(1), SAMPLING)
        assert outcome.status == "failed"
        assert f"HTTP {status}: " in outcome.reason
        assert len(outcome.reason) < 1000


def test_a_stream_of_odd_pieces_ends_by_type(client):
    pieces = [
        b'{"choices": 7}',
        b'{"choices": [3], "usage": 4}',
        b'{"choices": [{"delta": [1]}]}',
        b'{"choices": [{"delta": {"content": ["a"]}}]}',
        b'{"choices": [{"delta": {"refusal": {"a": 1}}}]}',
    ]
    for piece in pieces:
        events = b"".join(b"data: %s\n\n" % one for one in (piece, b'{"choices": [{"finish_reason": "stop"}]}'))
        with scripted(lambda asked, events=events: Reply(body=events, kind="text/event-stream")) as server:
            (outcome,) = client(server, stream=True).complete([request("r", str(piece))], SAMPLING)
        assert outcome.status in ("malformed", "refused")


# Any reply at all

TEXT = st.text(st.characters(codec=None), max_size=20)  # half surrogates, too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=8,
)


def either(*values):
    return st.sampled_from(values) | JSON


def some(**fields):
    return st.fixed_dictionaries({}, optional=fields) | JSON


USAGE = some(prompt_tokens=either(3, 0, -1, 2**63), completion_tokens=either(4, 2**64, 0.5))
MESSAGE = some(content=either("fine", "\ud83d", None), refusal=either(None, "\udc00"))
CHOICE = some(finish_reason=either("stop", "length", "content_filter"), message=MESSAGE, delta=MESSAGE)
ERROR = some(
    message=either("no", "\ud83d"), code=either("content_filter", "insufficient_quota", None), type=either("e")
)
BODY = some(choices=st.lists(CHOICE, max_size=2) | JSON, usage=USAGE, error=ERROR)
HEADERS = st.fixed_dictionaries(
    {}, optional={"retry-after": st.sampled_from(["9" * 400, "-1", "0.001", "Mon, 01 Jan 0001 00:00:00 -2359", "soon"])}
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    body=BODY, status=st.sampled_from([200, 200, 200, 400, 404, 429, 500, 302]), headers=HEADERS, stream=st.booleans()
)
def test_any_reply_ends_in_a_typed_outcome(fuzzed, body, status, headers, stream):
    server, folder = fuzzed
    fuzzed_body = json.dumps(body).encode()
    server.script = lambda asked: Reply(
        body=b"data: %s\n\n" % fuzzed_body if stream else fuzzed_body,
        kind="text/event-stream" if stream else "application/json", status=status, headers=headers,
    )  # fmt: skip
    server.number += 1
    limits = {**FAST, "backoff_s": 0.0, "max_attempts": 2, "max_wait_s": 1.0, "stream": stream}
    model = open_model(f"openai:m@{server.url}", folder / "calls.sqlite", prices={"m": (1.0, 2.0)}, **limits)
    try:
        (outcome,) = model.complete([request("r", f"prompt {server.number}")], SAMPLING)
        model.ledger.report()
        assert outcome.status in STATUSES
        assert outcome.usable == bool(outcome.text)
        assert (outcome.text + outcome.reason).encode() is not None
        assert 0 <= model.ledger.spent() < 1e6
    finally:
        model.ledger.close()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    with scripted(lambda asked: Reply()) as server:
        server.number = 0
        yield server, tmp_path_factory.mktemp("fuzzed")


# Small replies that unpack to large ones

MEMORY = """
import re, sys
from c3po_utils.chat.types import Sampling, request
from c3po_utils.chat.openai.client import open_model
stream = sys.argv[3] == "True"
model = open_model(f"openai:m@{sys.argv[1]}", sys.argv[2], timeout_s=60, max_attempts=1, stream=stream)
def peak():  # getrusage's peak is inherited from whoever started this process
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
(outcome,) = model.complete([request("r", "prompt")], Sampling())
print(outcome.status, (peak() - before) / 1024)
"""


@functools.cache
def bomb(encoding: str) -> bytes:
    """200 MB of spaces, packed (twice, for `gzip, gzip`)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if "gzip" in encoding else 15)
    packed = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(200)) + packer.flush()
    return gzip.compress(packed) if encoding == "gzip, gzip" else packed


BOMBS = [
    ("gzip", 200, "application/json", "malformed"),
    ("deflate", 200, "application/json", "malformed"),
    ("gzip, gzip", 200, "application/json", "malformed"),
    ("gzip", 500, "application/json", "failed"),
    ("gzip", 200, "text/event-stream", "malformed"),
]
MOST_MB = 50


def bombed(folder: Path, encoding: str, status: int, kind: str) -> tuple[str, float]:
    """How a call that meets a bomb ends, and the MB that its process grew by."""
    packed = bomb(encoding)
    assert len(packed) < 1 << 20, "within max_answer_bytes as it is sent"
    reply = Reply(body=packed, status=status, kind=kind, headers={"content-encoding": encoding})
    with scripted(lambda asked: reply) as server:
        command = [sys.executable, "-c", MEMORY, server.url, folder / "calls.sqlite", str("event" in kind)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found, megabytes = result.stdout.split()
    return found, float(megabytes)


@pytest.mark.parametrize(("encoding", "status", "kind", "ends"), BOMBS)
def test_a_bomb_does_not_fill_the_memory(tmp_path, encoding, status, kind, ends):
    found, megabytes = bombed(tmp_path, encoding, status, kind)
    assert found == ends
    assert megabytes < MOST_MB


def test_a_packed_answer_is_read(client):
    packed = gzip.compress(json.dumps(Reply("fine").completion()).encode())
    with scripted(lambda asked: Reply(body=packed, headers={"content-encoding": "gzip"})) as server:
        (outcome,) = client(server).complete(asks(1), Sampling())
    assert outcome.text == "fine"


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_lines_that_are_too_long_are_cut_and_the_next_is_whole(size):
    data = b"first\n\n" + b"x" * 95 + b"\nlast\n" + b"y" * 50

    async def chunks():
        for start in range(0, len(data), size):
            yield data[start : start + size]

    async def read() -> list[bytes]:
        return [line async for line in lines(chunks(), 20, cut=True)]

    found = asyncio.run(read())
    assert found[0] == b"first"
    assert b"last" in found
    assert all(re.fullmatch(rb"x+|y+|first|last", line) for line in found)
    assert len(found) == 4

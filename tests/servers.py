"""Servers for the tests, on 127.0.0.1: a scripted OpenAI-compatible one, faults on top, and llama.cpp's."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MOST_S = 900  # no server outlives this
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass
class Asked:
    """A request as the server saw it: `nth` counts earlier ones with the same body; times are monotonic
    seconds."""

    path: str
    headers: dict[str, str]
    body: dict
    nth: int
    index: int
    arrived: float
    answered: float | None = None

    @property
    def prompt(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass
class Reply:
    """What the server does: after `delay` seconds, an answer, or one of the faults below."""

    text: str | None = "fine"
    finish: str | None = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    usage: dict | None = field(default_factory=lambda: dict(USAGE))
    refusal: str | None = None
    body: bytes | None = None  # instead of a completion
    kind: str = "application/json"
    fault: str = ""  # reset, silent, endless, drip, cut

    def completion(self) -> dict:
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        choice = {"index": 0, "finish_reason": self.finish, "message": message}
        shell = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted"}
        return {**shell, "choices": [choice], **({"usage": self.usage} if self.usage else {})}


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": code or "error", "code": code}}).encode()
    return Reply(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def redirect(status: int, location: str) -> Reply:
    return Reply(status=status, body=b"", headers={"location": location})


FAULTS: dict[str, Callable[[], Reply]] = {
    "429": lambda: error(429, "slow down"),
    "429 with Retry-After": lambda: error(429, "slow down", retry_after="0.05"),
    "500": lambda: error(500),
    "503 that is no JSON": lambda: Reply(status=503, body=b"<html>overloaded</html>", kind="text/html"),
    "reset": lambda: Reply(fault="reset"),
    "slow": lambda: Reply(text="slow but fine", delay=0.1),
    "silent": lambda: Reply(fault="silent"),
    "endless": lambda: Reply(fault="endless"),
    "drip": lambda: Reply(fault="drip"),
    "cut": lambda: Reply(fault="cut"),
    "truncated JSON": lambda: Reply(body=b'{"choices": [{"index": 0, "mess'),
    "wrong content type": lambda: Reply(body=b"<html>login</html>", kind="text/html"),
    "empty choices": lambda: Reply(body=b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}'),
    "null content": lambda: Reply(text=None),
    "no message": lambda: Reply(body=b'{"choices": [{"index": 0, "finish_reason": "stop"}]}'),
    "tool calls": lambda: Reply("let me look", finish="tool_calls"),
    "length": lambda: Reply(text="half an answ", finish="length"),
    "content_filter": lambda: Reply(text="", finish="content_filter"),
    "refusal": lambda: Reply(text=None, refusal="I can't help with that"),
    "5 MB": lambda: Reply(text="x" * 5_000_000),
    "5 MB error": lambda: Reply(status=500, body=b"y" * 5_000_000, kind="text/plain"),
    "invalid UTF-8": lambda: Reply(
        body=b'{"choices": [{"finish_reason": "stop", "message": {"content": "\xff\xfe"}}]}'
    ),
    "half a surrogate": lambda: Reply(
        body=b'{"choices": [{"finish_reason": "stop", "message": {"content": "\\ud83d"}}]}'
    ),
    "deep JSON": lambda: Reply(body=b"[" * 100_000),
    "not an object": lambda: Reply(body=b"null"),
    "error in a 200": lambda: Reply(body=b'{"error": {"message": "upstream"}}'),
}
Script = Callable[[Asked], Reply | str]


def listing(asked: Asked) -> Reply:
    """A list as long as the prompt asks for, as JSON or tagged; its items depend on the request and are all new."""
    count = int(re.search(r"(?:Write|need|Think of) (\d+)", asked.prompt)[1])
    seed = hashlib.sha256(json.dumps(asked.body, sort_keys=True).encode()).hexdigest()
    digests = (hashlib.sha256(f"{seed}{number}".encode()).hexdigest() for number in range(count))
    items = [f"Could you {digest[:8]} the {digest[8:20]} for {digest[20:40]}?" for digest in digests]
    if "response_format" in asked.body:
        return Reply(json.dumps({"thoughts": "hm", "draft": items[:1], "review": "fine", "items": items}))
    inner = "\n".join(f"<item>{item}</item>" for item in items)
    return Reply(f"<thoughts>hm</thoughts>\n<items>\n{inner}\n</items>")


def faulty(script: Script, share: float, faults: list[str], seed: int = 0) -> Script:
    """The script, but for a share of requests, spread by hash over the faults named; the same on every
    run."""

    def answer(asked: Asked) -> Reply | str:
        digest = hashlib.sha256(f"{seed} {asked.nth} {json.dumps(asked.body)}".encode()).digest()
        if int.from_bytes(digest[:4], "big") / 2**32 < share:
            return FAULTS[faults[digest[4] % len(faults)]]()
        return script(asked)

    return answer


class Scripted:
    """An OpenAI-compatible server that answers from a script and remembers what it was asked."""

    def __init__(self, script: Script, batches: Batches | None = None):
        self.script, self.batches = script, batches
        self.asked: list[Asked] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""
        self._seen: Counter = Counter()
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, ready: Callable[[], None]) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready()
        await asyncio.sleep(MOST_S)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *fields = head.strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
                body = await _body(reader, headers)
                method, path, _ = line.split(" ")
                if not await self._answer(method, path, headers, body, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, method: str, path: str, headers: dict, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can go on."""
        if not path.endswith("/chat/completions"):
            reply = self.batches.handle(method, path, body) if self.batches else error(404, f"no {path}")
            return await _send(writer, reply, False)
        parsed = json.loads(body)
        key = json.dumps(parsed, sort_keys=True)
        asked = Asked(path, headers, parsed, self._seen[key], len(self.asked), time.monotonic())
        self._seen[key] += 1
        self.asked.append(asked)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply = self.script(asked)
            reply = Reply(reply) if isinstance(reply, str) else reply
            await asyncio.sleep(reply.delay)
            goes_on = await _send(writer, reply, bool(parsed.get("stream")))
            asked.answered = time.monotonic()
            return goes_on
        finally:
            self.in_flight -= 1


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


async def _send(writer: asyncio.StreamWriter, reply: Reply, stream: bool) -> bool:
    if reply.fault == "reset":
        writer.transport.abort()
        return False
    if reply.fault == "silent":
        await asyncio.sleep(MOST_S)
    if reply.fault in ("endless", "drip"):
        return await _endless(writer, 0.0 if reply.fault == "endless" else 0.05)
    kind, content = reply.kind, reply.body
    if content is None and stream:
        kind, content = "text/event-stream", b"".join(_events(reply))
    elif content is None:
        content = json.dumps(reply.completion()).encode()
    cut = reply.fault == "cut"
    headers = {"content-type": kind, "content-length": str(len(content) + 100 * cut), **reply.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {reply.status} X\r\n{head}\r\n".encode() + content)
    await writer.drain()
    return not cut


def _events(reply: Reply) -> Iterator[bytes]:
    """The completion as server-sent events, a word each."""
    for piece in re.findall(r"\S*\s*", reply.text or ""):
        yield _event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
    last = {"refusal": reply.refusal} if reply.refusal else {}
    yield _event({"choices": [{"index": 0, "delta": last, "finish_reason": reply.finish}]})
    yield _event({"choices": [], "usage": reply.usage})
    yield b"data: [DONE]\n\n"


def _event(value: dict) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def _endless(writer: asyncio.StreamWriter, pause: float) -> bool:
    """An answer without an end: white space, as fast as it is taken (or a bit at a time)."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    end, piece = time.monotonic() + 60, b" " * (1 if pause else 4096)
    while time.monotonic() < end:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(pause)
    return False


class Batches:
    """The files and batches endpoints, answering a batch's requests from `script` after `looks` looks at
    it."""

    def __init__(self, script: Script, looks: int = 2, end: str = "completed", leave_out: int = 0):
        self.script, self.looks, self.end, self.leave_out = script, looks, end, leave_out
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict] = {}
        self.seen: Counter = Counter()
        self.calls: list[str] = []
        self.requests: list[dict] = []
        self.faults: list[Reply] = []  # answered first, one a request
        self.fault: Callable[[str], Reply | None] = lambda call: None  # in place of an answer to `METHOD /path`
        self.output: Callable[[bytes], bytes] = lambda content: content  # what becomes of a result file
        self.lost_starts = 0  # batches that start although the answer says that they did not

    def handle(self, method: str, path: str, body: bytes) -> Reply:
        path = path.removeprefix("/v1").partition("?")[0]
        self.calls.append(f"{method} {path}")
        if self.faults:
            return self.faults.pop(0)
        if fault := self.fault(self.calls[-1]):
            return fault
        if method == "POST" and path == "/files":
            return self._upload(body)
        if method == "POST" and path == "/batches":
            return self._start(json.loads(body))
        if path == "/batches":
            return _json({"object": "list", "data": list(self.jobs.values()), "has_more": False})
        if match := re.fullmatch(r"/batches/(.+)", path):
            return self._look(match[1])
        if match := re.fullmatch(r"/files/(.+)/content", path):
            found = self.files.get(match[1])
            return error(404, path) if found is None else Reply(body=found, kind="application/octet-stream")
        return error(404, path)

    def _upload(self, body: bytes) -> Reply:
        name = f"file-{len(self.files)}"
        boundary = body.split(b"\r\n", 1)[0]
        parts = [part for part in body.split(boundary) if b'filename="calls.jsonl"' in part]
        self.files[name] = parts[0].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        shape = {
            "object": "file",
            "bytes": len(body),
            "created_at": 1,
            "filename": "calls.jsonl",
            "purpose": "batch",
        }
        return _json({"id": name, "status": "processed", **shape})

    def _start(self, asked: dict) -> Reply:
        name = f"batch-{len(self.jobs)}"
        shape = {
            "object": "batch",
            "endpoint": asked["endpoint"],
            "completion_window": "24h",
            "created_at": 1,
        }
        self.jobs[name] = {
            "id": name,
            "status": "in_progress",
            "input_file_id": asked["input_file_id"],
            **shape,
        }
        self.jobs[name]["metadata"] = asked["metadata"]
        if self.lost_starts:
            self.lost_starts -= 1
            return error(500, "lost")
        return _json(self.jobs[name])

    def _look(self, name: str) -> Reply:
        job = self.jobs[name]
        self.seen[name] += 1
        if self.seen[name] >= self.looks and job["status"] == "in_progress":
            lines = self.files[job["input_file_id"]].decode().splitlines()
            kept = lines[: len(lines) - self.leave_out]
            self.files[f"{name}-out"] = "".join(self._result(json.loads(line)) for line in kept).encode()
            self.files[f"{name}-out"] = self.output(self.files[f"{name}-out"])
            job |= {"status": self.end, "output_file_id": f"{name}-out"}
        return _json(job)

    def _result(self, line: dict) -> str:
        self.requests.append(line)
        asked = Asked("/batch", {}, line["body"], 0, len(self.requests) - 1, time.monotonic())
        reply = self.script(asked)
        reply = Reply(reply) if isinstance(reply, str) else reply
        body = json.loads(reply.body) if reply.body else reply.completion()
        response = {"status_code": reply.status, "request_id": "r", "body": body}
        return json.dumps({"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}) + "\n"


def _json(value: dict) -> Reply:
    return Reply(body=json.dumps(value).encode())


@contextmanager
def scripted(script: Script, batches: Batches | None = None) -> Iterator[Scripted]:
    """A scripted server in a thread of its own, for the length of a `with`."""
    server, ready, loop = Scripted(script, batches), threading.Event(), asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        server.main = loop.create_task(server.serve(ready.set))
        try:
            loop.run_until_complete(server.main)
        except asyncio.CancelledError:
            for task in (tasks := asyncio.all_tasks(loop)):
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10), "the scripted server did not start"
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(server.main.cancel)
        thread.join(10)


class LlamaServer:
    """llama.cpp's server with one model, until it is garbage.

    One thread by default: two of them on two busy cores wait for each other, and are ten times slower.
    """

    def __init__(self, file: Path, threads: int = 1, context: int = 8192):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.hostnames, params.port = ["127.0.0.1"], 0
        params.n_parallel, params.n_ctx, params.cpuparams.n_threads = 4, context, threads
        params.verbosity, params.warmup = 0, False
        self.process = xllamacpp.Server(params)
        self.url = f"{self.process.listening_address}/v1"


@functools.cache
def embedded_server(threads: int = 1) -> str:
    """The base URL of llama.cpp's server with the embedded model: one for the session, started on first use."""
    from c3po_utils.engine.models import embedded_gguf

    embedded_server.process = LlamaServer(embedded_gguf(), threads)
    return embedded_server.process.url


def main(delay: str, text: str = "") -> None:
    """A server of its own process that answers `text`, or the prompt's start, after `delay` seconds; prints its URL."""
    server = Scripted(lambda asked: Reply(text or asked.prompt[:40], delay=float(delay)))
    asyncio.run(server.serve(lambda: print(server.url, flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])

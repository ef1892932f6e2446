"""One attempt at an OpenAI-compatible server: request body in, typed reply out. No retries here, no state."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import os
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import urlsplit

import httpx2
import openai

from c3po_utils.chat.openai.limits import Limits
from c3po_utils.chat.openai.replies import AnswerTooLong, Reply, decode, failure, gather, judge

OPENAI = "https://api.openai.com/v1"
STREAM_OVERHEAD = 64  # bytes of events a byte of text may take
ERROR_BYTES = 1 << 16
POOL = 16  # connections: for every request a pool looks at each of its own, so that small pools are faster


def api_key(endpoint: str) -> str:
    """The endpoint's key from the environment, or `none` for servers that need none; OpenAI's goes to OpenAI only.

    Raises RuntimeError without one for OpenAI.
    """
    host = re.sub(r"\W", "_", urlsplit(endpoint).hostname or "").upper()
    names = ["OPENAI_API_KEY"] if endpoint == OPENAI else [f"C3PO_API_KEY_{host}", "C3PO_API_KEY"]
    key = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not key and endpoint == OPENAI:
        raise RuntimeError(f"no API key for {endpoint}: set {names[0]} in the environment, where it stays")
    return key or "none"


def secrets() -> list[str]:
    """Everything in the environment that may travel in our headers and must not come back into a file."""
    names = [name for name in os.environ if name.startswith("C3PO_API_KEY")]
    values = [os.environ.get(name, "") for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", *names)]
    values += re.findall(r"[^\s:]{16,}", os.environ.get("OPENAI_CUSTOM_HEADERS", ""))  # shorter ones are words
    return sorted({value for value in values if len(value) >= 8}, key=len, reverse=True)


@functools.cache
def _tls() -> ssl.SSLContext:
    """The certificates that we trust: reading them takes longer than many a call."""
    return httpx2.create_ssl_context()


class Transport:
    """A client for one endpoint; use `async with`, inside one event loop."""

    def __init__(self, endpoint: str, limits: Limits):
        self.limits = limits
        self._secrets = secrets()
        private = () if endpoint == OPENAI else ("OpenAI-Organization", "OpenAI-Project")
        settings = {
            "api_key": api_key(endpoint),
            "base_url": endpoint,
            "max_retries": 0,
            "timeout": httpx2.Timeout(limits.timeout_s, connect=min(15.0, limits.timeout_s)),
            "default_headers": {"Accept-Encoding": "identity", **{name: openai.Omit() for name in private}},
        }
        tls, hooks = _tls(), {"response": [self._bound]}
        self.clients = [
            openai.AsyncOpenAI(**settings, http_client=openai.DefaultAsyncHttpxClient(verify=tls, event_hooks=hooks))
            for _ in range(math.ceil(limits.max_in_flight / POOL))
        ]
        self.client = self.clients[0]
        self._turns = itertools.cycle(self.clients)

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.close()

    async def _bound(self, response: httpx2.Response) -> None:
        """Keep any body from growing past its limit: answers raise AnswerTooLong, errors are cut."""
        if response.request.url.path.endswith("/content"):
            return  # the file of a batch is read by line, each with its own limit
        limit = self.limits.max_answer_bytes
        if "event-stream" in response.headers.get("content-type", ""):
            limit *= STREAM_OVERHEAD
        response.stream = _Bounded(response.stream, limit, error=response.status_code >= 400)

    def clean(self, text: str) -> str:
        """The text without any key in it: servers echo headers."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def cleaned(self, reply: Reply) -> Reply:
        return replace(reply, text=self.clean(reply.text), reason=self.clean(reply.reason))

    async def ask(self, body: dict) -> Reply:
        """One attempt; never raises for what a server or the network does."""
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                completion = await (self._stream(body) if self.limits.stream else self._post(body))
            reply = judge(completion)
        except Exception as error:
            reply = failure(error, self.limits)
        return self.cleaned(reply)

    async def _post(self, body: dict) -> dict:
        response = await next(self._turns).post("/chat/completions", body=body, cast_to=httpx2.Response)
        return decode(response.content, response.headers)

    async def _stream(self, body: dict) -> dict:
        known = {name: body[name] for name in ("model", "messages")}
        rest = {name: value for name, value in body.items() if name not in known}
        create = next(self._turns).chat.completions.with_streaming_response.create
        options = {"include_usage": True}
        async with create(**known, stream=True, stream_options=options, extra_body=rest) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                return decode(await response.read(), response.headers)
            return await gather(response.iter_bytes(), self.limits.max_answer_bytes)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, limit: int, error: bool):
        self._stream, self._limit, self._error = stream, limit, error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, limit = 0, ERROR_BYTES if self._error else self._limit
        async for chunk in self._stream:
            size += len(chunk)
            if size > limit:
                if self._error:
                    return
                raise AnswerTooLong(f"answer longer than {limit} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()

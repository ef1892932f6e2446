"""One attempt at an OpenAI-compatible server: request body in, typed reply out. No retries here, no state."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import openai

from c3po_utils.chat.keys import Redaction, api_key, header_value, secrets
from c3po_utils.chat.names import OPENAI
from c3po_utils.chat.openai.limits import Limits
from c3po_utils.chat.openai.replies import AnswerTooLong, Reply, decode, failure, gather, judge

STREAM_OVERHEAD = 64  # bytes of events a byte of text may take
ERROR_BYTES = 1 << 16
LIST_BYTES = 16 << 20  # of what is no answer: lists of batches
POOL = 16  # connections: for every request a pool looks at each of its own, so that small pools are faster


@functools.cache
def _tls() -> ssl.SSLContext:
    """The certificates that we trust: reading them takes longer than many a call."""
    return httpx2.create_ssl_context()


def client_settings(endpoint: str) -> dict[str, Any]:
    """Settings of a client of `openai` by which an endpoint gets its own key.

    Such a client takes headers from the environment, wherever it points: those are OpenAI's, and go there only.
    Raises ValueError as `api_key` does.
    """
    settings = {"base_url": endpoint, "api_key": api_key(endpoint), "default_headers": {}}
    if endpoint == OPENAI:
        account = {"organization": header_value("OPENAI_ORG_ID"), "project": header_value("OPENAI_PROJECT_ID")}
        return settings | {name: value or None for name, value in account.items()}
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    ambient = [line.partition(":")[0].strip() for line in lines if ":" in line]
    omitted = {name: openai.Omit() for name in ("OpenAI-Organization", "OpenAI-Project", *ambient)}
    return settings | {"default_headers": {**omitted, "Authorization": f"Bearer {settings['api_key']}"}}


class Transport:
    """A client for one endpoint; use `async with`, inside one event loop."""

    def __init__(self, endpoint: str, limits: Limits):
        self.endpoint, self.limits = endpoint, limits
        self._redaction = Redaction(secrets())
        settings = client_settings(endpoint)
        settings["default_headers"] |= {"Accept-Encoding": "identity"}
        timeout = httpx2.Timeout(limits.timeout_s, connect=min(15.0, limits.timeout_s))
        http = {"verify": _tls(), "event_hooks": {"response": [self._bound]}, "follow_redirects": False}
        self.clients = [  # redirected, prompts and key would go to a host that nobody named
            openai.AsyncOpenAI(
                **settings, max_retries=0, timeout=timeout, http_client=openai.DefaultAsyncHttpxClient(**http)
            )
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
        path, failed = response.request.url.path, response.status_code >= 300
        if path.endswith("/content") and not failed:
            return  # the file of a batch is read by line, each with its own limit
        limit = self.limits.max_answer_bytes if path.endswith("/completions") else LIST_BYTES
        if self.limits.stream and "event-stream" in response.headers.get("content-type", ""):
            limit *= STREAM_OVERHEAD
        wire = httpx2.Response(
            response.status_code, headers=response.headers, stream=response.stream, request=response.request
        )
        response.headers.pop("content-encoding", None)  # `wire` decodes
        response.stream = _Bounded(wire, ERROR_BYTES if failed else limit, failed)

    def clean(self, text: str) -> str:
        """The text without any key in it."""
        return self._redaction.clean(text)

    def cleaned(self, reply: Reply) -> Reply:
        """The reply without any key in it, its reason short and fit to be stored."""
        return replace(reply, text=self.clean(reply.text), reason=self._redaction.message(reply.reason))

    def failure(self, error: Exception) -> Reply:
        return self.cleaned(failure(error, self.limits, self.endpoint))

    async def ask(self, body: dict) -> Reply:
        """One attempt; never raises for what a server or the network does."""
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                completion = await (self._stream(body) if self.limits.stream else self._post(body))
        except Exception as error:
            return self.failure(error)
        return self.cleaned(judge(completion))

    async def _post(self, body: dict) -> dict:
        path = "/chat/completions" if "messages" in body else "/completions"
        response = await next(self._turns).post(path, body=body, cast_to=httpx2.Response)
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
    """A body, decoded piece by piece (a small one may unpack to gigabytes), that ends at so many bytes."""

    def __init__(self, wire: httpx2.Response, limit: int, cut: bool):
        self._wire, self._limit, self._cut = wire, limit, cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._wire.aiter_bytes():
            size += len(chunk)
            if size > self._limit:
                if self._cut:
                    return
                raise AnswerTooLong(f"answer longer than {self._limit} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._wire.aclose()

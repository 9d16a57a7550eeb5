"""Those who listen to result in the tests: on a socket, or on an event stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.parts import Functions

DEADLINE_S = 60.0

Message = dict[str, Any]


@asynccontextmanager
async def socket(function: Functions, path: str) -> AsyncIterator[ClientConnection]:
    async with connect(function.ws_url + path, proxy=None) as ws:
        yield ws


@asynccontextmanager
async def watching(function: Functions, *job_ids: str, since: str | None = None) -> AsyncIterator[ClientConnection]:
    """A socket that follows one job by its path, or several by `job_ids`."""
    path = f"/ws/jobs/{job_ids[0]}?" if len(job_ids) == 1 else f"/ws/jobs?job_ids={','.join(job_ids)}&"
    async with socket(function, path if since is None else f"{path}since={since}") as ws:
        yield ws


async def told(ws: ClientConnection) -> Message:
    """The next message."""
    async with asyncio.timeout(DEADLINE_S):
        message: Message = json.loads(await ws.recv())
    return message


async def told_to_the_end(ws: ClientConnection) -> tuple[list[Message], int]:
    """All messages until the server closes, and the code it closes with."""
    messages: list[Message] = []
    with suppress(ConnectionClosed):
        while True:
            messages.append(await told(ws))
    assert ws.close_code is not None
    return messages, ws.close_code


@dataclass(frozen=True)
class StreamEvent:
    """An event of an event stream, as EventSource would tell it."""

    kind: str
    id: str | None
    message: Message


@asynccontextmanager
async def stream(function: Functions, path: str, **more: Any) -> AsyncIterator[httpx.Response]:
    """The answer to a request for an event stream; what it tells is read by `events`."""
    async with (
        httpx.AsyncClient(base_url=function.url, timeout=DEADLINE_S, trust_env=False) as http,
        http.stream("GET", path, **more) as response,
    ):
        yield response


async def events(response: httpx.Response) -> AsyncGenerator[StreamEvent]:
    """What EventSource would make of the answer.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            yield StreamEvent(fields.get("event", "message"), fields.get("id"), json.loads(fields["data"]))
        fields = {}


async def got(function: Functions, path: str, *, method: str = "GET", **more: Any) -> httpx.Response:
    """A whole answer."""
    async with httpx.AsyncClient(base_url=function.url, timeout=DEADLINE_S, trust_env=False) as http:
        return await http.request(method, path, **more)


async def next_of(messages: AsyncIterator[StreamEvent]) -> StreamEvent:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(messages)

"""Clients of result for the tests: on a socket, or on an event stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
from darkroom_functions.http import routes
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.driven_jobs import DrivenJobs
from tests.parts import Functions

DEADLINE_S = 60.0

MAX_STREAM_ENTRIES = 10_000
"""Maximum length of a tenant's stream (`MAX_STREAM` in `lua/prelude.lua`)."""

REPLAYS = 40
"""Clients that replay at one time: about twice as many as one process admits."""

Message = dict[str, Any]


@asynccontextmanager
async def socket(function: Functions, path: str) -> AsyncIterator[ClientConnection]:
    async with connect(function.ws_url + path, proxy=None) as ws:
        yield ws


@asynccontextmanager
async def following(function: Functions, *job_ids: str, since: str | None = None) -> AsyncIterator[ClientConnection]:
    """A socket that follows one job by its path, or several by `job_ids`."""
    path = f"/ws/jobs/{job_ids[0]}?" if len(job_ids) == 1 else f"/ws/jobs?job_ids={','.join(job_ids)}&"
    async with socket(function, path if since is None else f"{path}since={since}") as ws:
        yield ws


async def next_message(ws: ClientConnection) -> Message:
    """The next message."""
    async with asyncio.timeout(DEADLINE_S):
        message: Message = json.loads(await ws.recv())
    return message


async def all_messages(ws: ClientConnection) -> tuple[list[Message], int]:
    """All messages until the server closes, and the code it closes with."""
    messages: list[Message] = []
    with suppress(ConnectionClosed):
        while True:
            messages.append(await next_message(ws))
    assert ws.close_code is not None
    return messages, ws.close_code


@dataclass(frozen=True)
class StreamEvent:
    """An event of an event stream, as EventSource would deliver it."""

    kind: str
    id: str | None
    message: Message


@asynccontextmanager
async def stream(function: Functions, path: str, **more: Any) -> AsyncIterator[httpx.Response]:
    """The response to a request for an event stream; `events` reads its messages."""
    async with (
        httpx.AsyncClient(base_url=function.url, timeout=DEADLINE_S, trust_env=False) as http,
        http.stream("GET", path, **more) as response,
    ):
        yield response


async def events(response: httpx.Response) -> AsyncGenerator[StreamEvent]:
    """The events of a response as EventSource parses them.

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
    """A complete response."""
    async with httpx.AsyncClient(base_url=function.url, timeout=DEADLINE_S, trust_env=False) as http:
        return await http.request(method, path, **more)


async def next_event(messages: AsyncIterator[StreamEvent]) -> StreamEvent:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(messages)


def fill_tenant_stream(jobs: DrivenJobs) -> None:
    """Fill the stream of the default tenant up to its maximum length with copies of the oldest entry."""
    key = f"{jobs.namespace}:news:default"
    ((_, entry),) = jobs.redis.xrange(key, count=1)
    with jobs.redis.pipeline(transaction=False) as pipeline:
        for _ in range(MAX_STREAM_ENTRIES - jobs.redis.xlen(key)):
            pipeline.xadd(key, entry)
        pipeline.execute()


@asynccontextmanager
async def replaying(function: Functions) -> AsyncIterator[None]:
    """While the block runs, REPLAYS clients read the whole stream of the tenant repeatedly (`fill_tenant_stream`)."""
    request = f"GET {routes.TENANT_EVENTS}?since=0 HTTP/1.1\r\nHost: 127.0.0.1:{function.port}\r\n\r\n".encode()

    async def replay() -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", function.port)
            try:
                writer.write(request)
                count = 0
                while count < MAX_STREAM_ENTRIES * 9 // 10:  # some are divided between two reads
                    part = await reader.read(1 << 16)
                    count += part.count(b"data: ")
                    if not part or b"too-many-replays" in part:
                        break
            finally:
                writer.close()
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(replay()) for _ in range(REPLAYS)]
        yield
        for client in clients:
            client.cancel()

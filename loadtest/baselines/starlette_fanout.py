"""The usual fan-out with bare Starlette: a Redis channel, a bounded queue and a sending task per socket.

A socket at `/<name>` receives what is published to the channel `<name>`. There are no jobs: no snapshot, no order, and
no log to recover lost messages from. A socket with a full queue misses a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import redis.asyncio
from darkroom.settings import LedgerSettings, load
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from baselines import serving

QUEUE = 256
"""The size of a socket's queue, the same as darkroom's `socket_buffer`."""


class FanOut:
    """The queues of all sockets, by channel."""

    def __init__(self, redis_url: str) -> None:
        client = redis.asyncio.from_url(redis_url, socket_timeout=None)  # a channel may be idle for long
        self._channels = client.pubsub(ignore_subscribe_messages=True)
        self._queues: dict[str, set[asyncio.Queue[str]]] = {}
        self._running: asyncio.Task[None] | None = None

    async def follow(self, channel: str) -> AsyncIterator[str]:
        """The messages of the channel."""
        queue: asyncio.Queue[str] = asyncio.Queue(QUEUE)
        if channel not in self._queues:
            self._queues[channel] = set()
            await self._channels.subscribe(channel)
            self._running = self._running or asyncio.create_task(self._run())
        self._queues[channel].add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues[channel].discard(queue)

    async def _run(self) -> None:
        async for message in self._channels.listen():
            text = message["data"].decode()
            for queue in self._queues[message["channel"].decode()]:
                with suppress(asyncio.QueueFull):
                    queue.put_nowait(text)


def make_app(redis_url: str) -> Starlette:
    """The application."""
    fan_out = FanOut(redis_url)

    async def watch(websocket: WebSocket) -> None:
        await websocket.accept()
        sending = asyncio.create_task(send(websocket))
        with suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()
        sending.cancel()

    async def send(websocket: WebSocket) -> None:
        async for text in fan_out.follow(websocket.path_params["channel"]):
            await websocket.send_text(text)

    async def ready(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ready"})

    return Starlette(routes=[Route("/readyz", ready), WebSocketRoute("/{channel}", watch)])


if __name__ == "__main__":
    serving.run(make_app(load(LedgerSettings).redis_url.get_secret_value()))

"""An upper bound of fan-out in Python: `websockets.broadcast` frames a message once and writes it to all sockets.

Every socket receives what is published to the Redis channel `all`. No queue, no order, no Starlette: one write per
socket. No server that also serves HTTP reaches this rate.
"""

from __future__ import annotations

import http
import os

import redis.asyncio
import uvloop
from darkroom.settings import LedgerSettings, load
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.http11 import Request, Response


async def run(redis_url: str, port: int) -> None:
    """Serve until a signal arrives."""
    sockets: set[ServerConnection] = set()

    async def hold(websocket: ServerConnection) -> None:
        sockets.add(websocket)
        try:
            await websocket.wait_closed()
        finally:
            sockets.discard(websocket)

    def ready(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(http.HTTPStatus.OK, "ready\n") if request.path == "/readyz" else None

    channels = redis.asyncio.from_url(redis_url, socket_timeout=None).pubsub(ignore_subscribe_messages=True)
    await channels.subscribe("all")
    async with serve(hold, "127.0.0.1", port, compression=None, process_request=ready):
        async for message in channels.listen():
            broadcast(sockets, message["data"].decode())


if __name__ == "__main__":
    uvloop.run(run(load(LedgerSettings).redis_url.get_secret_value(), int(os.environ["PORT"])))

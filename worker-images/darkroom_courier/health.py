"""What the cluster's probes are told of a process that serves nothing else over HTTP.

`/healthz`: 200 while every loop has gone round lately, even if only to find that Redis is away; else 503, and the pod
is started anew. `/readyz`: 503 until the first contact with Redis, 200 ever after. `/metrics` is there too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from darkroom_courier.metrics import Metrics

METRICS = "/metrics"

STALL_S = 30.0
"""A loop that has not gone round for so long hangs: a round ends within 20 s, whatever Redis does."""

REQUEST_PATIENCE_S = 5.0
REQUEST_MAX_BYTES = 8 * 1024


class Health:
    """When each loop last went round, and whether Redis was ever reached."""

    def __init__(self, loops: Iterable[str]) -> None:
        self._rounds = dict.fromkeys(loops, time.monotonic())
        self._ready = False

    def went_round(self, loop: str, *, reached_redis: bool) -> None:
        self._rounds[loop] = time.monotonic()
        self._ready = self._ready or reached_redis

    def answer(self, path: str) -> tuple[int, dict[str, object]]:
        """Status and body for a probe."""
        if path == "/healthz":
            now = time.monotonic()
            stalled = [loop for loop, at in self._rounds.items() if now - at > STALL_S]
            return (503, {"status": "stalled", "loops": stalled}) if stalled else (200, {"status": "ok"})
        if path == "/readyz":
            return (200, {"status": "ok"}) if self._ready else (503, {"status": "waiting for Redis"})
        return 404, {"status": "not found"}


@asynccontextmanager
async def served(health: Health, metrics: Metrics, *, host: str, port: int | None) -> AsyncIterator[None]:
    """Answers probes and Prometheus on `port` while the block runs; without one it answers nobody."""
    if port is None:
        yield
        return

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
                asked = words[1].partition("?")[0] if len(words) > 1 else ""
                if asked == METRICS:
                    writer.write(_response(200, await metrics.page(), media_type=CONTENT_TYPE_LATEST))
                else:
                    status, body = health.answer(asked)
                    writer.write(_response(status, json.dumps(body).encode(), media_type="application/json"))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a prober that went away, or speaks no HTTP: there is nobody to tell
        finally:
            writer.close()

    server = await asyncio.start_server(converse, host, port, limit=REQUEST_MAX_BYTES)
    async with server:
        yield


def _response(status: int, content: bytes, *, media_type: str) -> bytes:
    reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {media_type}\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + content

"""What the cluster's probes are told of a process that serves nothing else over HTTP.

`/healthz`: 200 while every loop has gone round lately, even if only to find that Redis is away; else 503, and the pod
is started anew. `/readyz`: 503 until the first contact with Redis, 200 ever after. `/metrics` is there too.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from darkroom import probes
from darkroom.probes import Answer
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from darkroom_courier.metrics import CourierMetrics

METRICS = "/metrics"

STALL_S = 30.0
"""A loop that has not gone round for so long hangs: a round ends within 20 s, whatever Redis does."""


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
async def served(health: Health, metrics: CourierMetrics, *, host: str, port: int | None) -> AsyncIterator[None]:
    """Answer probes and Prometheus on `port` while the block runs; without one, do nothing. Raises SettingError."""
    if port is None:
        yield
        return

    async def answering(path: str) -> Answer:
        if path == METRICS:
            return Answer(200, await metrics.page(), media_type=CONTENT_TYPE_LATEST)
        return Answer.of(*health.answer(path))

    listening = probes.listener(host=host, port=port, variable="DARKROOM_PROBE_PORT")
    async with probes.served(answering, listening=listening):
        yield

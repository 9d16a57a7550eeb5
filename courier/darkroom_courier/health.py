"""Health: the courier's answers to probes, and its metrics, over HTTP.

`/healthz`: 200 while every loop completes its rounds, even if Redis is unavailable; otherwise 503, and the pod is
restarted. `/readyz`: 503 until the first contact with Redis, 200 from then on. `/metrics` serves Prometheus.

Faults that a restart does not mend, such as those of the file of tenants, are in both bodies and change no status.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from darkroom import probes
from darkroom.probes import ProbeResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from darkroom_courier.metrics import CourierMetrics

METRICS = "/metrics"

STALL_S = 30.0
"""A loop that has completed no round for so long hangs: the limit of a round is 20 s."""


class Health:
    """The time of each loop's last round, and whether Redis was ever reached."""

    def __init__(self, loops: Iterable[str]) -> None:
        self._rounds = dict.fromkeys(loops, time.monotonic())
        self._ready = False
        self._faults: dict[str, str] = {}

    def went_round(self, loop: str, *, reached_redis: bool) -> None:
        self._rounds[loop] = time.monotonic()
        self._ready = self._ready or reached_redis

    def note(self, subject: str, fault: str | None) -> None:
        """Show a fault until it is noted that there is none."""
        self._faults.pop(subject, None)
        if fault is not None:
            self._faults[subject] = fault

    def answer(self, path: str) -> tuple[int, dict[str, object]]:
        """The status and body of the response to a probe."""
        status, body = self._answer(path)
        return status, {**body, **self._faults}

    def _answer(self, path: str) -> tuple[int, dict[str, object]]:
        if path == "/healthz":
            now = time.monotonic()
            stalled = [loop for loop, at in self._rounds.items() if now - at > STALL_S]
            return (503, {"status": "stalled", "loops": stalled}) if stalled else (200, {"status": "ok"})
        if path == "/readyz":
            return (200, {"status": "ok"}) if self._ready else (503, {"status": "waiting for Redis"})
        return 404, {"status": "not found"}


@asynccontextmanager
async def served(health: Health, metrics: CourierMetrics, *, host: str, port: int | None) -> AsyncIterator[None]:
    """Serve probes and metrics on `port` while the block runs; without a port, do nothing. Raises SettingError."""
    if port is None:
        yield
        return

    async def respond(path: str) -> ProbeResponse:
        if path == METRICS:
            return ProbeResponse(200, await metrics.page(), media_type=CONTENT_TYPE_LATEST)
        return ProbeResponse.of_json(*health.answer(path))

    async with probes.served(respond, host=host, port=port, variable="DARKROOM_PROBE_PORT"):
        yield

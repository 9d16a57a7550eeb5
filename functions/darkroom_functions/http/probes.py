"""Health of a function: `/healthz`, `/readyz`, `/metrics`, and how long it waits for the ledger.

Readiness is a latch at the first contact with Redis: while Redis is away later on, a function stays in service and
says so itself (503 with `Retry-After`), which tells callers more than a connection that is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from darkroom.errors import LedgerUnavailable
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from darkroom_functions.http import metrics
from darkroom_functions.http.metrics import Metrics
from darkroom_functions.http.responses import answer

LEDGER_TIMEOUT_S = 10.0
"""A handler answers 503 when the ledger has said nothing for this long: a Redis that hangs is as good as away."""

PROBE_TIMEOUT_S = 2.0
"""A probe asks again soon, so it waits for less."""

PATHS = metrics.PROBE_PATHS


@asynccontextmanager
async def ledger_timeout(seconds: float = LEDGER_TIMEOUT_S) -> AsyncIterator[None]:
    """Raises LedgerUnavailable where what is within takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise LedgerUnavailable("Redis did not respond in time", retry_after=2) from None


async def make_sure_of_ledger(*apps: Starlette) -> None:
    """Raises LedgerUnavailable unless each function has reached its ledger, now or before.

    A function's `lifespan` has put its `AsyncLedger` at `app.state.ledger`.
    """
    for app in apps:
        if not getattr(app.state, "ledger_reached", False):
            async with ledger_timeout(PROBE_TIMEOUT_S):
                await app.state.ledger.ping()
            app.state.ledger_reached = True


def routes_for(*apps: Starlette, figures: Metrics) -> list[BaseRoute]:
    """What a process that runs these functions tells of itself."""

    async def healthz(_request: Request) -> Response:
        return answer({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        await make_sure_of_ledger(*apps)
        return answer({"status": "ready"})

    healthz_path, readyz_path, metrics_path = PATHS
    return [Route(healthz_path, healthz), Route(readyz_path, readyz), Route(metrics_path, figures.page)]

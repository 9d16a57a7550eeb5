"""Probes of a function: `/healthz`, `/readyz`, `/metrics`, and the timeout of the ledger.

A function becomes ready at the first contact with Redis and stays ready. While Redis is unavailable later on, it stays
in service and responds with 503 and `Retry-After`, which informs clients better than a refused connection.
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
"""A handler responds with 503 when the ledger has not replied for this long: a Redis that hangs is unavailable."""

PROBE_TIMEOUT_S = 2.0
"""A probe is repeated soon, so its timeout is shorter."""

PATHS = metrics.PROBE_PATHS


@asynccontextmanager
async def ledger_timeout(seconds: float = LEDGER_TIMEOUT_S) -> AsyncIterator[None]:
    """Raises LedgerUnavailable when the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise LedgerUnavailable("Redis did not respond in time", retry_after=2) from None


async def make_sure_of_ledger(*apps: Starlette) -> None:
    """Raises LedgerUnavailable unless each function has reached its ledger, now or earlier.

    A function's `lifespan` sets `app.state.ledger`, an AsyncLedger.
    """
    for app in apps:
        if not getattr(app.state, "ledger_reached", False):
            async with ledger_timeout(PROBE_TIMEOUT_S):
                await app.state.ledger.ping()
            app.state.ledger_reached = True


def routes_for(*apps: Starlette, metrics: Metrics) -> list[BaseRoute]:
    """The routes of the probes and metrics of a process that runs these functions."""

    async def healthz(_request: Request) -> Response:
        return answer({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        await make_sure_of_ledger(*apps)
        return answer({"status": "ready"})

    healthz_path, readyz_path, metrics_path = PATHS
    return [Route(healthz_path, healthz), Route(readyz_path, readyz), Route(metrics_path, metrics.page)]

"""undelivered: stores, shows and replays the events that Knative could not deliver (`resources/undelivered.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import functions_framework.aio
import httpx
from darkroom.cloudevents.proofs import Proofs
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.undelivered import UndeliveredEvents
from darkroom.settings import load
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions import api
from darkroom_functions.resources.broker import Broker
from darkroom_functions.resources.services import UndeliveredServices
from darkroom_functions.settings import UndeliveredSettings


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request."""
    settings = load(UndeliveredSettings)
    redis = connect_async(settings.redis_url.get_secret_value())
    ledger = AsyncLedger(redis, settings.namespace)
    async with httpx.AsyncClient(timeout=settings.replay_timeout_s, trust_env=False) as client:
        app.state.ledger = ledger
        app.state.services = UndeliveredServices(
            ledger, UndeliveredEvents(ledger), Proofs(settings.proof_keys), Broker(client, settings), settings
        )
        try:
            yield
        finally:
            await redis.aclose()


@functions_framework.aio.http
async def undelivered(request: Request) -> Response:
    """Requests that match none of the function's routes."""
    raise api.refusal(request)

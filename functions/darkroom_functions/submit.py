"""submit: accepts jobs, as CloudEvents or over REST, and responds with a receipt (`resources/submissions.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import functions_framework.aio
import httpx
from darkroom.cloudevents.proofs import Proofs
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.links import Links
from darkroom.settings import load
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions import api
from darkroom_functions.resources.broker import Broker
from darkroom_functions.resources.services import SubmitServices
from darkroom_functions.settings import SubmitSettings, catalogue_of
from darkroom_functions.streams.wait import JobWaits
from darkroom_functions.submission.intake import Intake

BROKER_TIMEOUT_S = 10.0
"""The timeout of a post to the Broker, which answers in milliseconds."""


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request."""
    settings = load(SubmitSettings)
    catalogue = catalogue_of(settings)
    client = connect_async(settings.redis_url.get_secret_value())
    ledger = AsyncLedger(client, settings.namespace)
    waiting = JobWaits(ledger, client, most_s=settings.max_wait_s, closing=app.state.closing)
    app.state.ledger = ledger
    try:
        async with httpx.AsyncClient(timeout=BROKER_TIMEOUT_S, trust_env=False) as broker, waiting.running():
            app.state.services = SubmitServices(
                ledger=ledger,
                intake=Intake(ledger, settings),
                waiting=waiting,
                catalogue=catalogue,
                links=Links.of(settings),
                proofs=Proofs(settings.proof_keys),
                broker=Broker(broker, settings),
                settings=settings,
            )
            yield
    finally:
        await client.aclose()


@functions_framework.aio.http
async def submit(request: Request) -> Response:
    """Requests that match none of the function's routes."""
    services: SubmitServices = request.app.state.services
    raise api.refusal(request, models=services.catalogue.models)

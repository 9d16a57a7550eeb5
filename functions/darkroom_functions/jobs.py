"""jobs: serves jobs and their artifacts, dead letters, webhooks, models and the description of the API.

Each resource is a module of `resources/`. Two operations change a job: `POST …/cancel` records a cancel, or ends a job
that is pending, and `DELETE` removes a job that is terminal. Everything is scoped by the caller's tenant; the link to
an artifact carries its own permission.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import functions_framework.aio
import orjson
from darkroom.access.administration import Administration
from darkroom.access.directory import Directory
from darkroom.access.store import AccessStore
from darkroom.artifacts import ArtifactStore
from darkroom.catalogue import models
from darkroom.history.deletion import Deletion
from darkroom.history.lookup import Lookup
from darkroom.history.store import History
from darkroom.history.usage import UsageReports
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.dead_letters import DeadLetters
from darkroom.links import Links
from darkroom.settings import load
from darkroom.trail.store import TrailStore
from darkroom.webhooks.signatures import Signer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions import api
from darkroom_functions.resources import views
from darkroom_functions.resources.services import JobsServices
from darkroom_functions.settings import JobsSettings, catalogue_of
from darkroom_functions.streams.wait import JobWaits
from darkroom_functions.submission.intake import Intake


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request."""
    settings = load(JobsSettings)
    catalogue = catalogue_of(settings)
    history = History(settings.database_url)
    client = connect_async(settings.redis_url.get_secret_value())
    ledger = AsyncLedger(client, settings.namespace)
    lookup, store = Lookup(ledger, history), ArtifactStore(settings.store)
    waiting = JobWaits(ledger, client, most_s=settings.max_wait_s, closing=app.state.closing)
    schemas = {model.name: models.schema(model) for model in catalogue}
    app.state.ledger = ledger
    app.state.services = JobsServices(
        ledger=ledger,
        lookup=lookup,
        dead_letters=DeadLetters(ledger, lookup),
        deletion=Deletion(ledger, history, store),
        intake=Intake(ledger, settings),
        waiting=waiting,
        catalogue=catalogue,
        store=store,
        links=Links.of(settings),
        signer=Signer.of(settings),
        administration=Administration(AccessStore(history), Directory(ledger)),
        trail=TrailStore(history, settings.namespace),
        usage=UsageReports(history),
        settings=settings,
        models=orjson.dumps(views.model_list(catalogue, schemas)),
        description=orjson.dumps(
            api.document(catalogue, public_url=settings.public_url, max_body_bytes=settings.max_body_bytes)
        ),
    )
    try:
        async with waiting.running():
            yield
    finally:
        await client.aclose()
        await history.aclose()


@functions_framework.aio.http
async def jobs(request: Request) -> Response:
    """Requests that match none of the function's routes."""
    services: JobsServices = request.app.state.services
    raise api.refusal(request, models=services.catalogue.models)

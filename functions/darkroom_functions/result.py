"""result: applies the events of jobs (`resources/events.py`), and sends the updates of jobs to clients.

Sockets (`streams/sockets.py`) and event streams (`streams/sse.py`) do not depend on applied events: they follow the job
logs themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import functions_framework.aio
import orjson
from darkroom import updates
from darkroom.cloudevents.proofs import Proofs
from darkroom.history.lookup import Lookup
from darkroom.history.store import History
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry, StreamEntry
from darkroom.links import Links
from darkroom.settings import load
from darkroom.supervision import vital
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions import api
from darkroom_functions.settings import ResultSettings
from darkroom_functions.streams import sockets
from darkroom_functions.streams.follower import Follower, Source
from darkroom_functions.streams.job_logs import JobLogs
from darkroom_functions.streams.tenant_streams import TenantStreams


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The state that all requests and sockets share: `app.state`."""
    settings = load(ResultSettings)
    links = Links.of(settings)
    history = History(settings.database_url)
    client = connect_async(settings.redis_url.get_secret_value())
    ledger = AsyncLedger(client, settings.namespace)

    def encode(entry: LogEntry) -> str:
        return orjson.dumps(updates.message(entry, links, now_s=time.time())).decode()

    def encode_of_tenant(item: StreamEntry) -> str:
        known = updates.message(item.entry, links, now_s=time.time()) if item.is_whole else updates.bare(item.entry)
        return orjson.dumps({**known, "cursor": item.position}).decode()

    def follower(source: Source) -> Follower:
        return Follower(
            source, client, buffer=settings.socket_buffer, check_interval_s=settings.stream_check_interval_s
        )

    past = Lookup(ledger, history).past
    jobs = follower(JobLogs(ledger, encode=encode, past=past))
    tenants = follower(TenantStreams(ledger, encode=encode_of_tenant))
    app.state.settings = settings
    app.state.proofs = Proofs(settings.proof_keys)
    app.state.ledger = ledger
    app.state.sockets = sockets.Sockets(
        jobs,
        tenants,
        grace_s=settings.socket_grace_s,
        idle_s=settings.socket_idle_s,
        life_s=settings.socket_life_s,
    )
    ending = asyncio.Event()
    running = [
        vital(jobs.run(), name="follow jobs", may_end=ending.is_set),
        vital(tenants.run(), name="follow tenants", may_end=ending.is_set),
    ]
    try:
        yield
    finally:
        ending.set()
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await client.aclose()
        await history.aclose()


@functions_framework.aio.http
async def result(request: Request) -> Response:
    """Requests that match none of the function's routes."""
    raise api.refusal(request)

"""result: applies the events of jobs, and sends the updates of jobs to clients.

The courier posts each job's terminal CloudEvent, and those of its starts where a webhook asked for them, until this
function has *applied* it (`lua/outbox/mark_applied.lua`), which stores the deliveries for webhooks. It posts to a
Knative Broker, whose Trigger delivers to `POST /`, or on one machine directly to `POST /events`. An event may arrive
many times and is applied once; the idempotency key is the job with the number of the entry in its log. A repeat is a
success, and so is an event of an unknown job: only failures that may pass are answered in a way that makes the sender
retry.

Sockets (`sockets.py`) and event streams (`sse.py`) do not depend on that: they follow the job logs themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import functions_framework.aio
import orjson
from darkroom import logs, traces, updates
from darkroom.cloudevents.event import SEQUENCE_DIGITS, Event, invalid, type_of
from darkroom.cloudevents.http import STRUCTURED_TYPE, Mode, parse_http
from darkroom.errors import (
    DarkroomError,
    FieldError,
    MethodNotAllowed,
    NewerRecord,
    NotFound,
    UnsupportedMediaType,
)
from darkroom.history.lookup import Lookup
from darkroom.history.store import History
from darkroom.jobs import TERMINAL, JobEvent, is_job_id
from darkroom.ledger import calls
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry, NewsEntry
from darkroom.links import Links
from darkroom.settings import load
from darkroom.supervision import vital
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.bodies import read_body
from darkroom_functions.http.probes import patience
from darkroom_functions.http.responses import problem
from darkroom_functions.settings import ResultSettings
from darkroom_functions.streams import sockets, sse
from darkroom_functions.streams.follower import Follower, Source
from darkroom_functions.streams.job_logs import JobLogs
from darkroom_functions.streams.tenant_streams import TenantStreams

EVENT_PATHS = ("/", routes.SINK)
"""Where events arrive: the delivery of a Trigger, and on one machine the courier's request."""

APPLIED_TYPES = frozenset({type_of(JobEvent.STARTED), *(type_of(JobEvent(state)) for state in TERMINAL)})
"""The events that webhooks can subscribe to."""

OWN_TYPES = "dev.darkroom."
"""The prefix of the types of darkroom's own events. Those that are not applied are for other subscribers."""

ROUTES = [*sockets.ROUTES, *sse.ROUTES]

_log = logs.logger(__name__)


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

    def encode_of_tenant(item: NewsEntry) -> str:
        known = updates.message(item.entry, links, now_s=time.time()) if item.is_whole else updates.bare(item.entry)
        return orjson.dumps({**known, "cursor": item.place}).decode()

    def follower(source: Source) -> Follower:
        return Follower(
            source, client, buffer=settings.socket_buffer, check_interval_s=settings.stream_check_interval_s
        )

    past = Lookup(ledger, history).past
    jobs = follower(JobLogs(ledger, encode=encode, past=past))
    tenants = follower(TenantStreams(ledger, encode=encode_of_tenant))
    app.state.settings = settings
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
    """`POST /` and `POST /events`: one CloudEvent in binary or structured mode.

    The answer is 204 without a body: a Trigger's subscriber may answer with an event, or with nothing.
    """
    path = request.scope["path"]
    if path not in EVENT_PATHS:
        other = routes.find(request.method, path, models=()).operation.function
        raise NotFound(f"{request.method} {path} is answered by the function {other}")
    if request.method != "POST":
        raise MethodNotAllowed(f"{path} does not take {request.method}", allow=["POST"])
    try:
        event = await _read(request)
        await _apply(event, request.app.state.ledger)
    except DarkroomError as error:
        return problem(error, of_event=True)
    return Response(status_code=204)


async def _read(request: Request) -> Event:
    settings: ResultSettings = request.app.state.settings
    parsed = parse_http(request.headers, await read_body(request, limit=settings.max_body_bytes))
    (event, *_) = parsed.events or (None,)
    if parsed.mode is Mode.BATCH or not isinstance(event, Event):
        detail = f"must be {STRUCTURED_TYPE}, or that of the data in binary mode; batches are not accepted here"
        raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
    return event


async def _apply(event: Event, ledger: AsyncLedger) -> None:
    """Raises InvalidEvent for an event that names no job, LedgerUnavailable and NewerRecord so that it is retried."""
    if event.type.startswith(OWN_TYPES) and event.type not in APPLIED_TYPES:
        _log.info("event_ignored", event_id=event.id, type=event.type, job=event.subject)
        return
    job_id, seq = _entry_of(event)
    async with patience():
        applied = await ledger.run(calls.mark_applied(job_id, seq=seq))
    if applied is calls.Applied.NEWER:
        raise NewerRecord(f"the record of job {job_id} is of a later version than this function knows", retry_after=5)
    log = _log.warning if applied is calls.Applied.UNKNOWN else _log.info
    trace = traces.in_logs(event.traceparent)
    log("event_taken", job=job_id, event_id=event.id, type=event.type, seq=seq, outcome=applied.value, **trace)


def _entry_of(event: Event) -> tuple[str, int]:
    """The job that the event is about, and the number of the entry in its log. Raises InvalidEvent."""
    sequence = str(event.extensions.get("sequence", ""))
    faults: list[FieldError] = []
    if event.type not in APPLIED_TYPES:
        faults.append(FieldError("type", f"must be one of {', '.join(sorted(APPLIED_TYPES))}"))
    if not is_job_id(event.subject or ""):
        faults.append(FieldError("subject", "must be the id of a job"))
    if not (sequence.isascii() and sequence.isdigit() and len(sequence) <= SEQUENCE_DIGITS):
        faults.append(
            FieldError("sequence", f"must be the number of an entry in the job's log, in {SEQUENCE_DIGITS} digits")
        )
    if faults:
        raise invalid(faults)
    return event.subject or "", int(sequence)

"""result: takes in how jobs ended, and tells people, live.

The courier posts each job's terminal CloudEvent, and those of its starts where a webhook asked for them, until this
function has *applied* it (`lua/outbox/mark_applied.lua`), which stores what is to be delivered to webhooks: to a
Knative Broker, whose Trigger delivers it to `POST /`, or on one machine straight to `POST /events`. It may come many
times and is applied once; the idempotency key is the job with the number of the entry in its log. A repeat is a
success, and so is an event that nothing can be done about: only what may succeed later is answered so that it comes
again.

People do not wait for that: sockets (`sockets.py`) and event streams (`sse.py`) follow the job logs themselves.
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
from darkroom_functions.streams.live import Live
from darkroom_functions.streams.news import News

DOORS = ("/", routes.SINK)
"""Where events come in: a Trigger's delivery, and the courier's post on one machine."""

APPLIED_TYPES = frozenset({type_of(JobEvent.STARTED), *(type_of(JobEvent(state)) for state in TERMINAL)})
"""The events that webhooks are told of."""

OWN_TYPES = "dev.darkroom."
"""All that darkroom itself tells the sink begins so. What is not applied is for other subscribers."""

ROUTES = [*sockets.ROUTES, *sse.ROUTES]

_log = logs.logger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request or socket."""
    settings = load(ResultSettings)
    links = Links.of(settings)
    history = History(settings.database_url)
    client = connect_async(settings.redis_url.get_secret_value())
    ledger = AsyncLedger(client, settings.namespace)

    def encode(entry: LogEntry) -> str:
        return orjson.dumps(updates.message(entry, links, now_s=time.time())).decode()

    def encode_news(news: NewsEntry) -> str:
        known = updates.message(news.entry, links, now_s=time.time()) if news.is_whole else updates.bare(news.entry)
        return orjson.dumps({**known, "cursor": news.place}).decode()

    buffer, look_every_s = settings.socket_buffer, settings.look_every_s
    past = Lookup(ledger, history).past
    live = Live(ledger, client, encode=encode, buffer=buffer, look_every_s=look_every_s, past=past)
    news = News(ledger, client, encode=encode_news, buffer=buffer, look_every_s=look_every_s)
    app.state.settings = settings
    app.state.ledger = ledger
    app.state.sockets = sockets.Sockets(
        live,
        news,
        grace_s=settings.socket_grace_s,
        idle_s=settings.socket_idle_s,
        life_s=settings.socket_life_s,
    )
    ending = asyncio.Event()
    running = [
        vital(live.run(), name="live", may_end=ending.is_set),
        vital(news.run(), name="news", may_end=ending.is_set),
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

    Answers 204 with nothing in it: a Trigger's subscriber may answer nothing, or an event.
    """
    path = request.scope["path"]
    if path not in DOORS:
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
        detail = f"must be {STRUCTURED_TYPE}, or that of the data in binary mode: no batch is read here"
        raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
    return event


async def _apply(event: Event, ledger: AsyncLedger) -> None:
    """Raises InvalidEvent for what tells nothing of a job, LedgerUnavailable and NewerRecord so that it comes again."""
    if event.type.startswith(OWN_TYPES) and event.type not in APPLIED_TYPES:
        _log.info("event_ignored", event_id=event.id, type=event.type, job=event.subject)
        return
    job_id, seq = _entry_told_by(event)
    async with patience():
        applied = await ledger.run(calls.mark_applied(job_id, seq=seq))
    if applied is calls.Applied.NEWER:
        raise NewerRecord(f"the record of job {job_id} is of a later version than this function knows", retry_after=5)
    log = _log.warning if applied is calls.Applied.UNKNOWN else _log.info
    trace = traces.in_logs(event.traceparent)
    log("event_taken", job=job_id, event_id=event.id, type=event.type, seq=seq, outcome=applied.value, **trace)


def _entry_told_by(event: Event) -> tuple[str, int]:
    """The job that the event tells of, and the number of that entry in its log. Raises InvalidEvent."""
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

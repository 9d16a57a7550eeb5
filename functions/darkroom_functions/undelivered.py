"""undelivered: takes in the events that Knative gave up on, shows them, and posts them to the sink again.

It is what `delivery.deadLetterSink` of a Broker names. An event that could not be delivered comes to `POST /`, or on
one machine to `POST /events/undelivered`, with Knative's words on why (`darkroom.ledger.undelivered`), and is kept in
the ledger, up to a number and a size, beyond which the tenant and source with the most events loses its oldest
(`lua/undelivered/store_undelivered.lua`). The idempotency key is its source and id, within its tenant; a repeat is a
success, and so Knative does not send it again.

A replay posts it to K_SINK as it was sent first. Whoever took it already knows it by its id. What is shown of an event
is never a secret (`redaction.py`); what is replayed is whole.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import functions_framework.aio
import httpx
from darkroom import logs, traces
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import STRUCTURED_TYPE, Mode, parse_http
from darkroom.errors import DarkroomError, FieldError, NotFound, SinkUnavailable, UnsupportedMediaType
from darkroom.ledger import calls
from darkroom.ledger.calls import Replayed
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.undelivered import Undelivered, UndeliveredEvents, id_of, is_undelivered_id, keep, taken_apart
from darkroom.settings import load
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions import tenants
from darkroom_functions.http import routes
from darkroom_functions.http.bodies import read_body
from darkroom_functions.http.probes import patience
from darkroom_functions.http.responses import answer, problem
from darkroom_functions.resources import listing, views
from darkroom_functions.resources.redaction import redacted
from darkroom_functions.settings import UndeliveredSettings
from darkroom_functions.tenants import tenant_of

DOORS = ("/", routes.UNDELIVERED_SINK)
"""Where events come in: a Broker's dead letters, and the same on one machine."""

ANSWER_BYTES = 1024
"""So much of what a sink answers is shown; Knative keeps as much of a subscriber's answer."""

_TENANT = re.compile("[a-z0-9][a-z0-9-]{0,62}")
"""What a tenant's name in an event must look like to be believed; any other event is the default tenant's."""

_log = logs.logger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request."""
    settings = load(UndeliveredSettings)
    client = connect_async(settings.redis_url.get_secret_value())
    app.state.ledger = AsyncLedger(client, settings.namespace)
    async with httpx.AsyncClient(timeout=settings.replay_timeout_s, trust_env=False) as posting:
        app.state.shelf = Shelf(app.state.ledger, UndeliveredEvents(app.state.ledger), posting, settings)
        try:
            yield
        finally:
            await client.aclose()


@functions_framework.aio.http
async def undelivered(request: Request) -> Response:
    """An event at one of the doors, and everything that `paths.OPERATIONS` gives to this function."""
    shelf: Shelf = request.app.state.shelf
    path = request.scope["path"]
    if path in DOORS and request.method == "POST":
        try:
            return await shelf.keep(request)
        except DarkroomError as error:
            return problem(error, of_event=True)
    found = routes.find(request.method, path, models=())
    match found.operation.name:
        case "listUndelivered":
            return await shelf.list(request)
        case "readUndelivered":
            return await shelf.read(request, found.parts["id"])
        case "replayUndelivered":
            return await shelf.replay(request, found.parts["id"])
        case "discardUndelivered":
            return await shelf.discard(request, found.parts["id"])
    raise NotFound(f"{request.method} {path} is answered by the function {found.operation.function}")


@dataclass(frozen=True)
class Shelf:
    """Where undelivered events are kept, and the way from there to the sink."""

    ledger: AsyncLedger
    events: UndeliveredEvents
    posting: httpx.AsyncClient
    settings: UndeliveredSettings

    async def keep(self, request: Request) -> Response:
        """Answers 204 with nothing in it: an event in the answer would go into the Broker."""
        parsed = parse_http(request.headers, await read_body(request, limit=self.settings.max_body_bytes))
        (event, *_) = parsed.events or (None,)
        if parsed.mode is Mode.BATCH or not isinstance(event, Event):
            detail = f"must be {STRUCTURED_TYPE}, or that of the data in binary mode: no batch is read here"
            raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
        sent, failure = taken_apart(event)
        tenant = _tenant_named_by(sent)
        async with patience():
            displaced = await self.ledger.run(keep(sent, failure, tenant=tenant))
        _log.warning(
            "undelivered",
            id=id_of(sent, tenant=tenant),
            tenant=tenant,
            event_id=sent.id,
            type=sent.type,
            job=sent.subject,
            destination=redacted(failure.destination),
            code=failure.code,
            displaced=displaced,
            **traces.in_logs(sent.traceparent),
        )
        return Response(status_code=204)

    async def list(self, request: Request) -> Response:
        asked = listing.read_undelivered(request.query_params.multi_items())
        async with patience():
            page = await self.events.page(tenant_of(request), limit=asked.limit, after=asked.after)
        return answer({"undelivered_events": [views.undelivered(each) for each in page.events], "next": page.after})

    async def read(self, request: Request, event_id: str) -> Response:
        return answer(views.undelivered(await self._find(request, event_id)))

    async def replay(self, request: Request, event_id: str) -> Response:
        """Whatever the sink answers is told; without an answer it is SinkUnavailable. In no case is the event lost."""
        kept = await self._find(request, event_id)
        status, text = await self._post(kept.event)
        delivered = 200 <= status < 300  # noqa: PLR2004 - as HTTP has it
        if delivered:
            async with patience():
                done = await self.ledger.run(calls.mark_replayed(kept.id, last=kept.last))
            delivered = done is Replayed.REPLAYED
        trace = traces.in_logs(kept.event.traceparent)
        _log.info("replayed", id=kept.id, event_id=kept.event.id, status=status, delivered=delivered, **trace)
        return answer({"id": kept.id, "status": status, "delivered": delivered, "answer": redacted(text)})

    async def discard(self, request: Request, event_id: str) -> Response:
        """Repeatable."""
        tenant = tenant_of(request)
        async with patience():
            await self.ledger.run(calls.delete_undelivered(_checked(event_id), tenant=tenant))
        _log.info("discarded", id=event_id, tenant=tenant)
        return Response(status_code=204)

    async def _find(self, request: Request, event_id: str) -> Undelivered:
        async with patience():
            found = await self.events.find(_checked(event_id), tenant=tenant_of(request))
        if found is None:
            raise NotFound(f"there is no undelivered event {event_id}")
        return found

    async def _post(self, event: Event) -> tuple[int, str]:
        """The sink's status, and the beginning of what it said."""
        if self.settings.sink is None:
            raise SinkUnavailable("K_SINK is not set: there is no sink to post to", retry_after=30)
        headers, body = event.encode_binary()
        said = b""
        try:
            async with self.posting.stream("POST", self.settings.sink, headers=headers, content=body) as response:
                async for chunk in response.aiter_bytes():
                    said += chunk
                    if len(said) > ANSWER_BYTES:
                        break
        except httpx.HTTPError as error:
            _log.warning("sink_away", event_id=event.id, error=type(error).__name__)
            raise SinkUnavailable(f"the sink gave no answer: {type(error).__name__}", retry_after=5) from None
        return response.status_code, said[:ANSWER_BYTES].decode(errors="replace")


def _checked(event_id: str) -> str:
    if not is_undelivered_id(event_id):
        raise NotFound("there is no such undelivered event: the list has their ids")
    return event_id


def _tenant_named_by(event: Event) -> str:
    """Whose event it is: ours carry their tenant."""
    named = str(event.extensions.get("tenant", ""))
    return named if _TENANT.fullmatch(named) else tenants.DEFAULT

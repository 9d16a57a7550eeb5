"""Events that Knative could not deliver: stored, read, and posted to the sink again.

`delivery.deadLetterSink` of a Broker names this function. An event that could not be delivered arrives at `POST /`, or
on one machine at `POST /events/undelivered`, with Knative's reason (`darkroom.ledger.undelivered`). The ledger stores
it up to a number and a size, beyond which the tenant and source with the most events loses its oldest
(`lua/undelivered/store_undelivered.lua`). The idempotency key is the event's source and id within its tenant; a repeat
is a success, so Knative does not send it again.

An event is stored for the tenant that it names if it has a proof (`darkroom.cloudevents.proofs`). Without one it is
refused with 403, or, where DARKROOM_FOREIGN_EVENTS is on, stored for the default tenant.

A replay posts the event to K_SINK as it was first sent; subscribers that already received it recognise its id.
Responses show an event without its secrets (`redaction.py`); a replay sends all of it.
"""

from __future__ import annotations

import re

from darkroom import logs, traces
from darkroom.access.principals import DEFAULT_TENANT, Scope
from darkroom.cloudevents.event import Event
from darkroom.errors import InvalidInput, LedgerUnavailable, NotFound, ProofRefused, SinkUnavailable
from darkroom.ledger import calls, undelivered
from darkroom.ledger.calls import Replayed
from darkroom.ledger.undelivered import Undelivered, id_of, is_undelivered_id, split_failure, store
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.access import Open, tenant_of
from darkroom_functions.http.bodies import read_event
from darkroom_functions.http.openapi import in_path, json_response
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.responses import answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute
from darkroom_functions.resources import listing, views
from darkroom_functions.resources.redaction import redacted
from darkroom_functions.resources.schemas import ReplayedBody, UndeliveredEventBody, UndeliveredEventsBody
from darkroom_functions.resources.services import UndeliveredServices

_TENANT = re.compile("[a-z0-9][a-z0-9-]{0,62}")
"""The form of a tenant's name in an event. Any other event belongs to the default tenant."""

_log = logs.logger(__name__)


async def store_undelivered(request: Request) -> Response:
    """`POST /` and `POST /events/undelivered`. The response is 204: an event in it would go into the Broker."""
    services: UndeliveredServices = request.app.state.services
    event = await read_event(request, limit=services.settings.max_body_bytes)
    sent, failure = split_failure(event)
    tenant = _tenant_of_event(sent, services)
    async with ledger_timeout():
        displaced = await services.ledger.run(store(sent, failure, tenant=tenant))
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


async def list_undelivered(request: Request) -> Response:
    """`GET /api/v1/undelivered-events`."""
    services: UndeliveredServices = request.app.state.services
    query = listing.read_undelivered(request.query_params.multi_items())
    async with ledger_timeout():
        page = await services.events.page(tenant_of(request), limit=query.limit, after=query.after)
    return answer(UndeliveredEventsBody(undelivered_events=list(map(views.undelivered, page.events)), next=page.after))


async def read_undelivered(request: Request) -> Response:
    """`GET /api/v1/undelivered-events/{id}`."""
    return answer(views.undelivered(await _find(request)))


async def replay_undelivered(request: Request) -> Response:
    """`POST /api/v1/undelivered-events/{id}/replay`: returns the sink's response. Raises SinkUnavailable without one.

    The event stays stored in each case.
    """
    services: UndeliveredServices = request.app.state.services
    stored = await _find(request)
    status, text = await services.broker.post(stored.event)
    delivered = 200 <= status < 300  # noqa: PLR2004 - as HTTP has it
    if delivered:
        async with ledger_timeout():
            done = await services.ledger.run(calls.mark_replayed(stored.id, last=stored.last))
        delivered = done is Replayed.REPLAYED
    trace = traces.in_logs(stored.event.traceparent)
    _log.info("replayed", id=stored.id, event_id=stored.event.id, status=status, delivered=delivered, **trace)
    return answer(ReplayedBody(id=stored.id, status=status, delivered=delivered, answer=redacted(text)))


async def discard_undelivered(request: Request) -> Response:
    """`DELETE /api/v1/undelivered-events/{id}`; may be repeated."""
    services: UndeliveredServices = request.app.state.services
    event_id, tenant = _checked(request.path_params["id"]), tenant_of(request)
    async with ledger_timeout():
        await services.ledger.run(calls.delete_undelivered(event_id, tenant=tenant))
    _log.info("discarded", id=event_id, tenant=tenant)
    return Response(status_code=204)


async def _find(request: Request) -> Undelivered:
    services: UndeliveredServices = request.app.state.services
    event_id = request.path_params["id"]
    async with ledger_timeout():
        found = await services.events.find(_checked(event_id), tenant=tenant_of(request))
    if found is None:
        raise NotFound(f"there is no undelivered event {event_id}")
    return found


def _checked(event_id: str) -> str:
    if not is_undelivered_id(event_id):
        raise NotFound("there is no such undelivered event: the list has their ids")
    return event_id


def _tenant_of_event(event: Event, services: UndeliveredServices) -> str:
    """The tenant that a proven event names. Raises ProofRefused."""
    try:
        services.proofs.check(event)
    except ProofRefused:
        if services.settings.foreign_events:
            return DEFAULT_TENANT
        raise
    named = str(event.extensions.get("tenant", ""))
    return named if _TENANT.fullmatch(named) else DEFAULT_TENANT


_BY_EVENT = in_path(
    "id", {"type": "string", "pattern": f"^{undelivered.ID_PATTERN}$"}, "The id of the undelivered event."
)

ROUTES = [
    *(
        ApiRoute("POST", path, store_undelivered, scope=Open.INTERNAL, takes_events=True)
        for path in ("/", routes.UNDELIVERED_SINK)
    ),
    ApiRoute(
        "GET",
        routes.UNDELIVERED,
        list_undelivered,
        scope=Scope.READ,
        operation="listUndelivered",
        summary="List the events that Knative could not deliver, the most recent failure first",
        parameters=listing.described(listing.UNDELIVERED_PARAMETERS),
        responses={"200": json_response(UndeliveredEventsBody, "A page of undelivered events.")},
        refusals=(InvalidInput, LedgerUnavailable),
    ),
    ApiRoute(
        "GET",
        routes.UNDELIVERED + "/{id}",
        read_undelivered,
        scope=Scope.READ,
        operation="readUndelivered",
        summary="Read an event that Knative could not deliver",
        parameters=[_BY_EVENT],
        responses={"200": json_response(UndeliveredEventBody, "The undelivered event.")},
        refusals=(NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "DELETE",
        routes.UNDELIVERED + "/{id}",
        discard_undelivered,
        scope=Scope.MANAGE,
        operation="discardUndelivered",
        summary="Delete an undelivered event; may be repeated",
        parameters=[_BY_EVENT],
        responses={"204": ApiResponse("The event is no longer stored.")},
        refusals=(NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "POST",
        routes.UNDELIVERED + "/{id}/replay",
        replay_undelivered,
        scope=Scope.MANAGE,
        operation="replayUndelivered",
        summary="Post an undelivered event to the sink again; it stays stored",
        parameters=[_BY_EVENT],
        responses={"200": json_response(ReplayedBody, "The sink's response.")},
        refusals=(NotFound, LedgerUnavailable, SinkUnavailable),
    ),
]

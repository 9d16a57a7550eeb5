"""Dead letters of a tenant over HTTP: listed, read, redriven and purged.

A redrive is a submission like any other: the job is validated against its model as that is now, and the ledger accepts
it in the same step that removes the dead letter from the list. So it happens once, however often it is requested.
"""

from __future__ import annotations

from darkroom import logs, traces
from darkroom.access.principals import Scope
from darkroom.cloudevents import event
from darkroom.errors import DarkroomError, InvalidInput, LedgerUnavailable, NotFound
from darkroom.jobs import State
from darkroom.ledger import reads
from darkroom.ledger.calls import Purged, purge_dead_letter
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.access import principal_of, tenant_of
from darkroom_functions.http.bodies import json_object, read_body
from darkroom_functions.http.openapi import json_body, json_response
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.responses import answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute, checked_id
from darkroom_functions.resources import listing, views
from darkroom_functions.resources.jobs import BY_ID
from darkroom_functions.resources.schemas import DeadLetterBody, DeadLettersBody, PurgedBody, RedriveRequestBody
from darkroom_functions.resources.services import JobsServices
from darkroom_functions.resources.submissions import ACCEPTED, REFUSED_JOB, TRACEPARENT, new_context, receipt_of
from darkroom_functions.submission import reading

PURGED_AT_ONCE = 100
"""Dead letters that one round trip purges: a few ms of Redis' time."""

_log = logs.logger(__name__)


async def list_dead_letters(request: Request) -> Response:
    """`GET /api/v1/dead-letters`."""
    services: JobsServices = request.app.state.services
    query = listing.read_letters(request.query_params.multi_items())
    async with ledger_timeout():
        page = await services.dead_letters.page(tenant_of(request), limit=query.limit, after=query.after)
    return answer(DeadLettersBody(dead_letters=list(map(views.dead_letter, page.letters)), next=page.after))


async def read_dead_letter(request: Request) -> Response:
    """`GET /api/v1/dead-letters/{id}`."""
    services: JobsServices = request.app.state.services
    job_id = checked_id(request.path_params["id"])
    async with ledger_timeout():
        letter = await services.dead_letters.find(job_id, tenant=tenant_of(request))
    if letter is None:
        raise _not_found(job_id)
    return answer(views.dead_letter(letter))


async def redrive_dead_letter(request: Request) -> Response:
    """`POST /api/v1/dead-letters/{id}/redrive`. A repeat returns the job of the first redrive, whatever it edits."""
    services: JobsServices = request.app.state.services
    principal = principal_of(request)
    body = await read_body(request, limit=services.settings.max_body_bytes)
    edits = reading.read_edits(json_object(request, body, may_be_empty=True))
    job_id = checked_id(request.path_params["id"])
    async with ledger_timeout():
        record = await services.ledger.job(job_id, tenant=principal.tenant)
        found = [] if record is None else await services.lookup.completed([record])
    if not found or found[0].state is not State.FAILED:
        raise _not_found(job_id)
    job = reading.of_redrive(
        found[0],
        edits,
        catalogue=services.catalogue,
        principal=principal,
        context=new_context(),
        source=services.settings.public_url,
        traceparent=traces.traceparent_of(request.headers.get("traceparent")),
    )
    accepted = await services.intake.take(job, memory_high=await services.intake.is_memory_high())
    status, headers = receipt_of(accepted)
    return answer(event.accepted_answer(accepted.job_id, accepted.state), status=status, headers=headers)


async def purge_dead_letter_of(request: Request) -> Response:
    """`DELETE /api/v1/dead-letters/{id}`. A repeat succeeds, also for a dead letter that was redriven."""
    services: JobsServices = request.app.state.services
    tenant, job_id = tenant_of(request), checked_id(request.path_params["id"])
    async with ledger_timeout():
        done = await services.ledger.run(purge_dead_letter(job_id, tenant=tenant))
    if done is Purged.UNKNOWN:
        raise _not_found(job_id)
    _log.info("purged", job=job_id, tenant=tenant, repeated=done is Purged.REPEATED)
    return Response(status_code=204)


async def purge_dead_letters(request: Request) -> Response:
    """`DELETE /api/v1/dead-letters`: purges all that exist at its start."""
    services: JobsServices = request.app.state.services
    tenant = tenant_of(request)
    count, after = 0, None
    while True:
        async with ledger_timeout():
            places = await reads.dead_letters(services.ledger, tenant, limit=PURGED_AT_ONCE, after=after)
            done = await services.ledger.run_each([purge_dead_letter(place.id, tenant=tenant) for place in places])
        for each in done:
            if isinstance(each, DarkroomError):
                raise each
        count += len(places)
        if len(places) < PURGED_AT_ONCE:
            break
        after = places[-1]
    _log.info("purged_all", tenant=tenant, letters=count)
    return answer(PurgedBody(purged=count))


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"there is no dead letter {job_id}")


ROUTES = [
    ApiRoute(
        "GET",
        routes.DEAD_LETTERS,
        list_dead_letters,
        scope=Scope.READ,
        operation="listDeadLetters",
        summary="List the dead letters, the most recent first",
        parameters=listing.described(listing.LETTER_PARAMETERS),
        responses={"200": json_response(DeadLettersBody, "A page of dead letters.")},
        refusals=(InvalidInput, LedgerUnavailable),
    ),
    ApiRoute(
        "DELETE",
        routes.DEAD_LETTERS,
        purge_dead_letters,
        scope=Scope.MANAGE,
        operation="purgeDeadLetters",
        summary="Purge all dead letters: their jobs stay failed, and their retention begins",
        responses={"200": json_response(PurgedBody, "The number of purged dead letters.")},
        refusals=(LedgerUnavailable,),
    ),
    ApiRoute(
        "GET",
        routes.DEAD_LETTERS + "/{id}",
        read_dead_letter,
        scope=Scope.READ,
        operation="readDeadLetter",
        summary="Read a dead letter",
        parameters=[BY_ID],
        responses={"200": json_response(DeadLetterBody, "The dead letter.")},
        refusals=(NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "DELETE",
        routes.DEAD_LETTERS + "/{id}",
        purge_dead_letter_of,
        scope=Scope.MANAGE,
        operation="purgeDeadLetter",
        summary="Purge a dead letter; may be repeated",
        parameters=[BY_ID],
        responses={"204": ApiResponse("The job is no longer a dead letter.")},
        refusals=(NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "POST",
        routes.DEAD_LETTERS + "/{id}/redrive",
        redrive_dead_letter,
        scope=Scope.SUBMIT,
        operation="redriveDeadLetter",
        summary="Submit a dead letter again as a new job; a repeat submits nothing",
        parameters=[BY_ID, TRACEPARENT],
        request=json_body(RedriveRequestBody),
        responses=ACCEPTED,
        refusals=(NotFound, *REFUSED_JOB),
    ),
]

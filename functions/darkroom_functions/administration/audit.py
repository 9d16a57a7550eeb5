"""The audit trail, for callers with the scope `admin` (`http/trail.py` records it)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, cast

from darkroom.access.principals import Scope
from darkroom.errors import HistoryUnavailable, InvalidInput
from darkroom.times import iso
from darkroom.trail.entries import Chained
from darkroom.trail.store import TrailFilter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from darkroom_functions.http.openapi import json_response
from darkroom_functions.http.responses import answer
from darkroom_functions.http.routes import ApiRoute
from darkroom_functions.resources import listing
from darkroom_functions.resources.schemas import Time
from darkroom_functions.resources.services import JobsServices

AUDIT = "/api/v1/audit"


class AuditEntryBody(TypedDict):
    """An entry of the audit trail."""

    seq: Annotated[int, Field(ge=1, description="The number of the entry, from 1.")]
    uid: Annotated[str, Field(description="The identity of the entry.")]
    at: Time
    tenant: Annotated[str, Field(description="The tenant of the caller; empty for parts of darkroom.")]
    actor: Annotated[str, Field(description="The id of the key, or the subject of the token, that was presented.")]
    kind: Annotated[str, Field(description="The kind of the credential; `internal`: a part of darkroom.")]
    operation: Annotated[str, Field(description="The operation id.")]
    object: Annotated[str, Field(description="The id of the job, key, tenant or subscription; a refused job's model.")]
    outcome: Annotated[str, Field(description="`ok`, the last part of the type of a problem, or `unknown`.")]
    status: Annotated[int, Field(description="The status of the response; 0 where there was none.")]
    trace: Annotated[str, Field(description="The trace id of the request; empty where it had none.")]
    count: Annotated[int, Field(ge=1, description="The number of equal refused submissions; 1 for all else.")]
    digest: Annotated[str, Field(description="The SHA-256 of the entry and the one before it.")]


class AuditBody(TypedDict):
    """A page of the audit trail, newest first."""

    entries: list[AuditEntryBody]
    next: Annotated[str | None, Field(description="The `after` of the next page; null on the last one.")]


async def list_audit(request: Request) -> Response:
    """`GET /api/v1/audit`."""
    services: JobsServices = request.app.state.services
    query = listing.read_trail(request.query_params.multi_items())
    wanted = TrailFilter(query.tenant, query.actor, query.operation, query.object)
    page = await services.trail.page(wanted, limit=query.limit, after=query.after)
    after = None if page.after is None else str(page.after)
    return answer(AuditBody(entries=[_view(chained) for chained in page.entries], next=after))


def _view(chained: Chained) -> AuditEntryBody:
    members = {**asdict(chained.entry), "at": iso(chained.entry.at), "seq": chained.seq, "digest": chained.digest}
    return cast(AuditEntryBody, members)  # the responses of tests are validated against its schema


ROUTES = [
    ApiRoute(
        "GET",
        AUDIT,
        list_audit,
        scope=Scope.ADMIN,
        operation="listAudit",
        summary="List the audit trail, newest first",
        parameters=listing.described(listing.TRAIL_PARAMETERS),
        responses={"200": json_response(AuditBody, "A page of entries.")},
        refusals=(InvalidInput, HistoryUnavailable),
    )
]

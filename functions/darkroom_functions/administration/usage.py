"""Usage: what tenants and keys have used, as JSON or CSV (`darkroom.history.usage`)."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, NotRequired

from darkroom.access.principals import Scope
from darkroom.errors import HistoryUnavailable, InvalidInput, ScopeMissing
from darkroom.history.usage import Dimension, UsageQuery, UsageRow, today
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from darkroom_functions.http.access import principal_of
from darkroom_functions.http.openapi import header
from darkroom_functions.http.responses import CSV_TYPE, JSON_TYPE, answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute
from darkroom_functions.resources import listing
from darkroom_functions.resources.services import JobsServices

USAGE = "/api/v1/usage"

DEFAULT_DAYS = 30

Count = Annotated[int, Field(ge=0)]


class UsageRowBody(TypedDict):
    """The usage of one group."""

    tenant: NotRequired[Annotated[str, Field(description="The tenant, where the report is grouped by it.")]]
    key: NotRequired[Annotated[str, Field(description="The id of the key; empty for jobs without one.")]]
    model: NotRequired[Annotated[str, Field(description="The model; empty where a refused request named none.")]]
    day: NotRequired[Annotated[str, Field(description="The day in UTC, on which the jobs finished.")]]
    jobs: Annotated[Count, Field(description="Number of jobs that reached a terminal state.")]
    images: Annotated[Count, Field(description="Number of images that they published.")]
    gpu_ms: Annotated[Count, Field(description="Duration of all their attempts in milliseconds.")]
    refusals: Annotated[
        dict[str, int], Field(description="Number of refused submissions by the last part of the problem's type.")
    ]


UsageBody = TypedDict(
    "UsageBody",
    {
        "from": Annotated[str, Field(description="The first day, in UTC.")],
        "to": Annotated[str, Field(description="The last day, in UTC, which is included.")],
        "group_by": Annotated[list[str], Field(description="The dimensions of the rows.")],
        "rows": list[UsageRowBody],
    },
)


async def read_usage(request: Request) -> Response:
    """`GET /api/v1/usage`: of the caller's tenant; of all tenants, or any one, with the scope `admin`."""
    services: JobsServices = request.app.state.services
    given = dict(listing.read_usage(request.query_params.multi_items()))
    sent_format = given.pop("format", None)
    last = given.pop("last", None) or today(time.time())
    first = given.pop("first", None) or last - timedelta(days=DEFAULT_DAYS - 1)
    query = UsageQuery(first, last, **{**given, "tenant": _tenant(request, given.get("tenant"))})
    rows = await services.usage.report(query)
    headers = {"Vary": "Accept"}
    if sent_format == "csv" or (sent_format is None and _prefers_csv(request)):
        return Response(_csv(query, rows), headers={**headers, "Content-Type": CSV_TYPE})
    body: UsageBody = {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "group_by": [dimension.value for dimension in query.group_by],
        "rows": [_view(row) for row in rows],
    }
    return answer(body, headers=headers)


def _tenant(request: Request, wanted: str | None) -> str | None:
    """The tenant of the report; None for all. Raises ScopeMissing."""
    principal = principal_of(request)
    if principal.may(Scope.ADMIN):
        return wanted
    if wanted not in {None, principal.tenant}:
        raise ScopeMissing(
            f"the credential {principal.actor} lacks the scope admin, which the usage of other tenants needs",
            scope=Scope.ADMIN.value,
        )
    return principal.tenant


def _prefers_csv(request: Request) -> bool:
    """Whether `Accept` names CSV and not JSON. Other values get JSON."""
    accepted = ",".join(request.headers.getlist("accept"))
    types = {each.partition(";")[0].strip().lower() for each in accepted.split(",")}
    return "text/csv" in types and JSON_TYPE not in types


def _csv(query: UsageQuery, rows: Sequence[UsageRow]) -> str:
    """RFC 4180, with a header; `refusals` is their sum, and the column of each type is named after it."""
    slugs = sorted({slug for row in rows for slug in row.refusals})
    text = io.StringIO()
    writer = csv.writer(text)
    names = [dimension.value for dimension in query.group_by]
    writer.writerow([*names, "jobs", "images", "gpu_ms", "refusals", *slugs])
    for row in rows:
        counts = [row.refusals[slug] for slug in slugs]
        values = [row.group[dimension] for dimension in query.group_by]
        writer.writerow([*values, row.jobs, row.images, row.gpu_ms, row.refusals.total(), *counts])
    return text.getvalue()


def _view(row: UsageRow) -> UsageRowBody:
    view: UsageRowBody = {
        "jobs": row.jobs,
        "images": row.images,
        "gpu_ms": row.gpu_ms,
        "refusals": dict(sorted(row.refusals.items())),
    }
    for dimension in Dimension:
        if dimension in row.group:
            view[dimension.value] = row.group[dimension]
    return view


ROUTES = [
    ApiRoute(
        "GET",
        USAGE,
        read_usage,
        scope=Scope.READ,
        operation="readUsage",
        summary="Report jobs, images, GPU time and refusals by tenant, key, model and day",
        parameters=listing.described(listing.USAGE_PARAMETERS),
        responses={
            "200": ApiResponse(
                "The report, as JSON or CSV.",
                {JSON_TYPE: UsageBody, CSV_TYPE: {"type": "string"}},
                {"Vary": header({"type": "string"}, "`Accept`, on which the media type depends.")},
            )
        },
        refusals=(InvalidInput, HistoryUnavailable),
    )
]

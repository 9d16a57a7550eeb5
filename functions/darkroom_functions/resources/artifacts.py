"""Artifacts over HTTP: the output files of jobs, by signed link, or by the credential of their tenant."""

from __future__ import annotations

import re
import time
from email.utils import format_datetime
from http import HTTPStatus

from darkroom import links
from darkroom.access.principals import Scope
from darkroom.artifacts import Stored, StoreUnavailable
from darkroom.errors import (
    Gone,
    HistoryUnavailable,
    LinkRefused,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
)
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from darkroom_functions.http.access import Open, authorize, tenant_of
from darkroom_functions.http.openapi import header, in_path, in_query
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.routes import REFUSED_CALLERS, ApiResponse, ApiRoute, Schema, checked_id
from darkroom_functions.http.semantics import REVALIDATED, Selected, select
from darkroom_functions.resources.schemas import SHA256_PATTERN
from darkroom_functions.resources.services import JobsServices

MEDIA_TYPES = {"png": "image/png"}
"""Media types of artifacts by the extension of their keys."""

CONDITIONS = frozenset({"range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"})
"""The headers of a request whose response depends on what is stored."""

_ARTIFACT = re.compile(r"(?P<tenant>[^/]+)/(?P<job>[^/]+)/\d+/\d+-(?P<sha256>[0-9a-f]{64})\.(?P<extension>[a-z]+)")


async def read_artifact(request: Request) -> Response:
    """`GET /artifacts/{key}`. The link, or the credential, is checked before any lookup: without one, a caller cannot
    probe for keys.
    """
    services: JobsServices = request.app.state.services
    key, tenant = request.path_params["key"], None
    if links.SIGNATURE in request.query_params:
        services.links.check(key, request.query_params, now_s=time.time())
    else:
        await authorize(request, Scope.READ, takes_ticket=True)
        tenant = tenant_of(request)
    match = _ARTIFACT.fullmatch(key)
    if match is None or tenant not in {None, match["tenant"]} or match["extension"] not in MEDIA_TYPES:
        raise NotFound("there is no such artifact")
    try:
        return await _stored(request, services, key, tag=match["sha256"], media_type=MEDIA_TYPES[match["extension"]])
    except NotFound:
        async with ledger_timeout():
            await services.lookup.job(checked_id(match["job"]), tenant=match["tenant"])  # raises Gone if deleted
        raise


async def _stored(request: Request, services: JobsServices, key: str, *, tag: str, media_type: str) -> Response:
    """The artifact, a part of it or the refusal, as the request's conditions select. Raises NotFound."""
    is_head = request.method == "HEAD"
    if not is_head and CONDITIONS.isdisjoint(request.headers):
        stored, content = await services.store.open(key)
        return StreamingResponse(content, headers=_headers_of(stored, tag, stored.size), media_type=media_type)
    stored = await services.store.find(key)
    asked = select(request.headers, tag=tag, modified=stored.written, size=stored.size)
    if is_head and asked.status in (206, 416):  # a range applies to GET alone
        asked = Selected(HTTPStatus.OK, 0, stored.size)
    if asked.status == HTTPStatus.PRECONDITION_FAILED:
        raise PreconditionFailed("the artifact is another than If-Match or If-Unmodified-Since names")
    if asked.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise RangeNotSatisfiable(f"the artifact has {stored.size} bytes", size=stored.size)
    if asked.status == HTTPStatus.NOT_MODIFIED:
        return Response(status_code=asked.status, headers=_headers_of(stored, tag))
    headers = _headers_of(stored, tag, asked.end - asked.start)
    if is_head:
        return Response(headers=headers, media_type=media_type)
    if asked.status == HTTPStatus.PARTIAL_CONTENT:
        headers["Content-Range"] = f"bytes {asked.start}-{asked.end - 1}/{stored.size}"
    _, content = await services.store.open(key, part=(asked.start, asked.end) if asked.end else None)
    return StreamingResponse(content, status_code=asked.status, headers=headers, media_type=media_type)


def _headers_of(stored: Stored, tag: str, length: int | None = None) -> dict[str, str]:
    """The headers that describe an artifact, with the length of the response's body."""
    headers = {
        "ETag": f'"{tag}"',
        "Last-Modified": format_datetime(stored.written, usegmt=True),
        "Accept-Ranges": "bytes",
        "Cache-Control": REVALIDATED,
    }
    return headers if length is None else headers | {"Content-Length": str(length)}


_HEADERS: dict[str, Schema] = {
    "ETag": header({"type": "string"}, "The SHA-256 of the artifact, in quotes."),
    "Last-Modified": header({"type": "string"}, "The time at which the artifact was stored."),
    "Accept-Ranges": header({"const": "bytes"}, "A GET may request one range of bytes."),
    "Cache-Control": header({"const": REVALIDATED}, "An artifact never changes, but it may be deleted."),
}
_CONTENT = dict.fromkeys(MEDIA_TYPES.values())

ROUTES = [
    ApiRoute(
        "GET",
        links.PATH + "{key:path}",
        read_artifact,
        scope=Open.LINK,
        takes_ticket=True,
        operation="readArtifact",
        summary="Read an artifact, by the link in its job's view or with a credential of the tenant",
        parameters=[
            in_path("key", {"type": "string"}, "The key of the artifact, slashes included."),
            in_query(
                "expires",
                {"type": "integer", "minimum": 0},
                "The end of validity of a signed link, in seconds since 1970.",
            ),
            in_query(
                links.SIGNATURE,
                {"type": "string", "pattern": SHA256_PATTERN},
                "The signature of the key and the end of validity. Without it a credential is needed.",
            ),
        ],
        responses={
            "200": ApiResponse("The artifact.", _CONTENT, _HEADERS),
            "206": ApiResponse(
                "The part of the artifact that `Range` requests.",
                _CONTENT,
                {**_HEADERS, "Content-Range": header({"type": "string"}, "The part, and the size of the artifact.")},
            ),
            "304": ApiResponse(
                "The artifact has not changed (`If-None-Match`, `If-Modified-Since`).", headers=_HEADERS
            ),
        },
        refusals=(
            *REFUSED_CALLERS,
            LinkRefused,
            NotFound,
            Gone,
            PreconditionFailed,
            RangeNotSatisfiable,
            StoreUnavailable,
            HistoryUnavailable,
        ),
    )
]

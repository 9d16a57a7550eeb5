"""Server-sent events: the messages of sockets, for clients of plain HTTP and the browsers' EventSource.

`GET …/generation-jobs/{id}/events` follows one job to its end, `GET /api/v1/events` all jobs of the tenant. `data` is
the message of a socket (`sockets.py`), `event` its type where it has one, and `id` its cursor, with which a
client connects again by itself (`Last-Event-ID`, which takes precedence over `?since=`). A client that has the end of
its job is answered with 204, after which EventSource does not connect again.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress

from darkroom.access.principals import Scope
from darkroom.errors import (
    CredentialRefused,
    DarkroomError,
    Gone,
    HistoryUnavailable,
    InvalidInput,
    LedgerUnavailable,
    NotFound,
    ScopeMissing,
    TooManyReplays,
)
from darkroom.jobs import JOB_ID_PATTERN
from darkroom.logs import logger
from starlette import types
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.access import tenant_of
from darkroom_functions.http.openapi import in_header, in_path, in_query
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.routes import ApiResponse, ApiRoute, Schema
from darkroom_functions.streams import cursors
from darkroom_functions.streams.feed import Feed
from darkroom_functions.streams.messages import MESSAGE, StreamMessage, control
from darkroom_functions.streams.race import first_of
from darkroom_functions.streams.sockets import CLOSE_TIMEOUT_S, Sockets, since_of
from darkroom_functions.streams.wait import disconnected

MEDIA_TYPE = "text/event-stream"

HEADERS = {
    "Content-Type": MEDIA_TYPE,
    # A proxy that compresses would hold messages back until its own buffer is full; it must not transform the stream.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold messages back until its buffer is full
}

RETRY = b"retry: 1000\n"
"""The milliseconds that an EventSource waits before it connects again. No empty line follows: some clients would read
the block as an event without data."""

HEARTBEAT_S = 15.0
"""The longest silence: proxies cut a connection after 60 s or so without a byte."""

HEARTBEAT = b":\n"
"""A comment. No empty line follows, for the same reason."""

# Line terminators of Unicode, at which some clients split lines; the format itself has CR and LF alone.
_LINE_TERMINATORS = str.maketrans({character: f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"})

_log = logger(__name__)


async def follow_job(request: Request) -> Response:
    """`GET /api/v1/generation-jobs/{id}/events`."""
    job_id = routes.checked_id(request.path_params["id"])
    text = _cursor_of(request)
    since = {} if text is None else {job_id: cursors.of_job(text, job_id)}
    sockets: Sockets = request.app.state.sockets
    return await _opened(request, sockets.jobs.follow([job_id], tenant=tenant_of(request), since=since))


async def follow_tenant(request: Request) -> Response:
    """`GET /api/v1/events`."""
    text, tenant = _cursor_of(request), tenant_of(request)
    since = {} if text is None else {tenant: cursors.of_tenant(text)}
    sockets: Sockets = request.app.state.sockets
    return await _opened(request, sockets.tenants.follow([tenant], tenant=tenant, since=since))


def _cursors(pattern: str, description: str) -> list[Schema]:
    """The two ways to state a cursor. An empty header counts as none."""
    in_header_schema: Schema = {"type": "string", "pattern": f"^({pattern})?$"}
    return [
        in_query(cursors.SINCE, {"type": "string", "pattern": f"^{pattern}$"}, description),
        in_header(
            "Last-Event-ID", in_header_schema, "The cursor as EventSource sends it. It takes precedence over the query."
        ),
    ]


ROUTES = [
    ApiRoute(
        "GET",
        f"{routes.JOBS}{{id}}/events",
        follow_job,
        scope=Scope.READ,
        takes_ticket=True,
        operation="followJob",
        summary="Follow a job until it is terminal, as server-sent events with the messages of a WebSocket",
        parameters=[
            in_path("id", {"type": "string", "pattern": f"^{JOB_ID_PATTERN}$"}, "The id of the job."),
            *_cursors(cursors.OF_JOB_PATTERN, "The `id` of a message: the number of an entry, or `end`."),
        ],
        responses={
            "200": ApiResponse(
                "The newest entry, or the entries after the cursor, and all that follow.", {MEDIA_TYPE: None}
            ),
            "204": ApiResponse("The cursor is the terminal entry: no events follow."),
        },
        refusals=(NotFound, Gone, InvalidInput, LedgerUnavailable, HistoryUnavailable),
    ),
    ApiRoute(
        "GET",
        routes.TENANT_EVENTS,
        follow_tenant,
        scope=Scope.READ,
        takes_ticket=True,
        operation="followTenant",
        summary="Follow all jobs, without their progress, as server-sent events",
        parameters=_cursors(cursors.OF_TENANT_PATTERN, "The `id` of a message; `0` for all stored events."),
        responses={"200": ApiResponse("The events from now on, or after the cursor.", {MEDIA_TYPE: None})},
        refusals=(InvalidInput, TooManyReplays, LedgerUnavailable),
    ),
]


def _cursor_of(request: Request) -> str | None:
    """An EventSource reconnects with the query that it began with, so its last event id takes precedence."""
    return request.headers.get("last-event-id") or since_of(request)


async def _opened(request: Request, opening: AbstractAsyncContextManager[Feed]) -> Response:
    """The answer that sends a feed. Raises the errors of `Follower.follow` before the answer begins."""
    async with AsyncExitStack() as stack:
        async with ledger_timeout():
            feed = await stack.enter_async_context(opening)
        if feed.ended:
            return Response(status_code=204)
        if request.method == "HEAD":
            return Response(headers=HEADERS)
        return EventStream(request, feed, stack.pop_all())


class EventStream(Response):
    """The answer that goes on until the log ends, the lifetime of the connection is over or the process stops."""

    def __init__(self, request: Request, feed: Feed, stack: AsyncExitStack) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._request = request
        self._sockets: Sockets = request.app.state.sockets
        self._closing: asyncio.Event = request.app.state.closing
        self._feed = feed
        self._stack = stack

    async def __call__(self, _scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        last = b""
        try:
            async with self._stack:
                with self._sockets.end_in_time(self._request, self._feed):
                    await first_of(self._send(send), disconnected(receive), self._feed.failure(), self._closing.wait())
        except DarkroomError as error:
            _log.info("stream_cut", path=self._request.url.path, problem=error.slug, detail=error.detail)
            if isinstance(error, CredentialRefused | ScopeMissing):
                last = encoded(control("error", code=error.slug, detail=error.detail))
        with suppress(TimeoutError):  # a client that does not read is left to the server
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send(self, send: types.Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send(_part(RETRY))
        while not self._feed.ended:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    message = await self._feed.take()
            except TimeoutError:
                await send(_part(HEARTBEAT))
            else:
                await send(_part(encoded(message)))


def encoded(message: StreamMessage) -> bytes:
    """A message as an event of the stream. Its text is JSON, in one line."""
    id_line = "" if message.cursor is None else f"id: {message.cursor}\n"
    event_line = "" if message.kind == MESSAGE else f"event: {message.kind}\n"
    return f"{id_line}{event_line}data: {message.text.translate(_LINE_TERMINATORS)}\n\n".encode()


def _part(body: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": True}

"""WebSockets: `/ws/jobs/{job_id}`, `/ws/jobs?job_ids=a,b,c` and `/ws/events`.

A socket first sends the present state of each of its jobs (one message each), then every entry of their logs as it is
written (`follower.py`); the messages are those of `darkroom.updates`. With `since=` it sends the entries behind the
cursor instead (`cursors.py`). `/ws/events` sends the stream of the tenant: the entries of all of its jobs, without
progress. What a client may send (`frames.py`), and every code that closes a socket, is in `docs/results.md`.

A client that sends neither a cursor nor a message receives updates of its jobs and nothing else, as in earlier systems.
Whichever side closes, a client may connect again at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from darkroom.access.principals import Scope
from darkroom.errors import (
    CredentialRefused,
    DarkroomError,
    Gone,
    InvalidInput,
    MalformedRequest,
    NotFound,
    PermanentError,
    ScopeMissing,
    TemporaryError,
)
from darkroom.jobs import is_job_id
from darkroom.logs import logger
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from darkroom_functions.http.access import access_of, authorize, tenant_of
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.routes import SocketRoute
from darkroom_functions.streams import cursors, frames
from darkroom_functions.streams.feed import Feed, TooSlow
from darkroom_functions.streams.follower import Follower
from darkroom_functions.streams.messages import ControlMessage, control
from darkroom_functions.streams.race import first_of

MAX_BAD_FRAMES = 16
"""Invalid messages before the socket is closed: enough to see the mistake in a console."""

CLOSE_TIMEOUT_S = 2.0
"""How long a client may take to receive the last message and the close frame; one that does not read gets neither."""

PONG = ControlMessage("pong", '{"type":"pong"}')

NORMAL = 1000
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
BAD_QUERY = 4400
UNAUTHENTICATED = 4401
FORBIDDEN = 4403
JOB_NOT_FOUND = 4404
SLOW_CLIENT = 4408
IDLE_CLIENT = 4409
JOB_DELETED = 4410

_log = logger(__name__)


class BadFrames(PermanentError):
    """A client sent too many invalid messages."""

    slug, title = "bad-frames", "Too many invalid messages"


class ConnectionExpired(TemporaryError):
    """The maximum lifetime of a connection is over."""

    slug, title = "time-is-up", "Connect again"


class Idle(TemporaryError):
    """A socket follows no job, and its client sends nothing."""

    slug, title = "idle", "No job was followed, and no message was received"


@dataclass(frozen=True)
class Sockets:
    """What the connections of a process share: `app.state.sockets`.

    `grace_s` is how long a socket stays open after its last job ended, `idle_s` how long one whose client subscribes
    stays open without a job, `life_s` the maximum lifetime of any connection.
    """

    jobs: Follower
    tenants: Follower
    grace_s: float
    idle_s: float
    life_s: float

    @contextmanager
    def end_in_time(self, connection: HTTPConnection, feed: Feed) -> Iterator[None]:
        """End the feed when its connection's credential is no longer valid, or when the lifetime of the connection is
        over, before a proxy cuts it off in mid-message.
        """
        error = ConnectionExpired(f"a connection lives for {self.life_s:g} s")
        end_of_life = asyncio.get_running_loop().call_later(self.life_s, feed.fail, error)
        try:
            with access_of(connection).watching(connection, Scope.READ, feed.fail):
                yield
        finally:
            end_of_life.cancel()


Opening = Callable[[Sockets], AbstractAsyncContextManager[Feed]]
"""Reads a request and begins to follow what it names. Raises InvalidInput, NotFound and Gone."""


async def follow_job(websocket: WebSocket) -> None:
    """`/ws/jobs/{job_id}`: one job."""

    def opening(sockets: Sockets) -> AbstractAsyncContextManager[Feed]:
        job_id = websocket.path_params["job_id"]
        if not is_job_id(job_id):
            raise NotFound(f"there is no job {job_id[:64]!a}")
        text = since_of(websocket)
        since = {} if text is None else {job_id: cursors.of_job(text, job_id)}
        return sockets.jobs.follow([job_id], tenant=tenant_of(websocket), since=since)

    await _serve(websocket, opening)


async def follow_jobs(websocket: WebSocket) -> None:
    """`/ws/jobs?job_ids=a,b,c`: up to MAX_JOBS."""

    def opening(sockets: Sockets) -> AbstractAsyncContextManager[Feed]:
        job_ids = frames.ids_of(",".join(websocket.query_params.getlist("job_ids")))
        text = since_of(websocket)
        since = {} if text is None else cursors.of_jobs(text, job_ids)
        return sockets.jobs.follow(job_ids, tenant=tenant_of(websocket), since=since)

    await _serve(websocket, opening)


async def follow_tenant(websocket: WebSocket) -> None:
    """`/ws/events`: all jobs of the tenant, without progress."""

    def opening(sockets: Sockets) -> AbstractAsyncContextManager[Feed]:
        text, tenant = since_of(websocket), tenant_of(websocket)
        since = {} if text is None else {tenant: cursors.of_tenant(text)}
        return sockets.tenants.follow([tenant], tenant=tenant, since=since)

    await _serve(websocket, opening, can_subscribe=False)


ROUTES: list[BaseRoute] = [
    SocketRoute("/ws/jobs/{job_id}", follow_job, scope=Scope.READ),
    SocketRoute("/ws/jobs", follow_jobs, scope=Scope.READ),
    SocketRoute("/ws/events", follow_tenant, scope=Scope.READ),
]


def since_of(connection: HTTPConnection) -> str | None:
    """The cursor in the query, as text; None where it has none."""
    values = connection.query_params.getlist(cursors.SINCE)
    return ",".join(values) if values else None


async def _serve(websocket: WebSocket, opening: Opening, *, can_subscribe: bool = True) -> None:
    """One socket from its first to its last message."""
    sockets: Sockets = websocket.app.state.sockets
    await websocket.accept()
    try:
        async with AsyncExitStack() as stack:
            async with ledger_timeout():
                await authorize(websocket, websocket.scope["route"].scope, takes_ticket=True)
                feed = await stack.enter_async_context(opening(sockets))
            await _Conversation(websocket, sockets, feed, can_subscribe=can_subscribe).run()
    except WebSocketDisconnect:
        return
    except DarkroomError as error:
        await _end(websocket, error)
    except Exception:
        _log.exception("socket_failed", path=websocket.url.path)
        await _end(websocket, DarkroomError("The socket met an internal error. It has been logged."))
    else:
        await _close(websocket, NORMAL, "all jobs have ended")


class _Conversation:
    """The messages of one socket, in both directions.

    `_subscribes`: its client sent a subscription, so the socket stays open when its jobs have ended.
    """

    def __init__(self, websocket: WebSocket, sockets: Sockets, feed: Feed, *, can_subscribe: bool) -> None:
        self._websocket = websocket
        self._sockets = sockets
        self._feed = feed
        self._can_subscribe = can_subscribe
        self._subscribes = False

    async def run(self) -> None:
        """Returns when all jobs have ended and the grace is over. Raises any other reason to close the socket."""
        if self._can_subscribe:
            _log.info("socket_follows", jobs=self._feed.sources)
        with self._sockets.end_in_time(self._websocket, self._feed):
            await first_of(self._send(), self._receive(), self._feed.failure())

    async def _send(self) -> None:
        """All updates; after the last job ended, answers to the client for as long as the socket stays open."""
        loop = asyncio.get_running_loop()
        until: float | None = None
        while True:
            if not self._feed.ended:
                until = None
                await self._websocket.send_text((await self._feed.take()).text)
                continue
            if self._subscribes:
                until = loop.time() + self._sockets.idle_s
            elif until is None:
                until = loop.time() + self._sockets.grace_s
            try:
                async with asyncio.timeout_at(until):
                    message = await self._feed.take()
            except TimeoutError:
                if self._subscribes:
                    idle_s = self._sockets.idle_s
                    raise Idle(f"no job was followed and no message was received for {idle_s:g} s") from None
                return
            await self._websocket.send_text(message.text)

    async def _receive(self) -> None:
        """The client's messages. Raises WebSocketDisconnect when it has gone, BadFrames after too many invalid ones."""
        bad_frames = 0
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", NORMAL))
            try:
                await self._answer(message.get("text"))
            except frames.BadFrame as error:
                bad_frames += 1
                if bad_frames > MAX_BAD_FRAMES:
                    raise BadFrames(f"more than {MAX_BAD_FRAMES} messages were invalid") from None
                self._feed.put(_error("bad-frame", str(error)))
            except DarkroomError as error:
                self._feed.put(_error(error.slug, error.detail))

    async def _answer(self, text: str | None) -> None:
        """Raises BadFrame for an invalid message, and the errors of a subscription, which then changes nothing."""
        frame = frames.parse(text)
        match frame.get("type"):
            case "ping":
                self._feed.put(PONG)
            case "subscribe" if self._can_subscribe:
                await self._subscribe(frame)
            case "unsubscribe" if self._can_subscribe:
                job_ids = frames.ids_in(frame, {"type", "job_ids"})
                self._feed.leave(job_ids)
                self._subscribes = True
                self._feed.put(control("unsubscribed", job_ids=job_ids))
            case _:
                known = '"ping", "subscribe", "unsubscribe"' if self._can_subscribe else '"ping"'
                raise frames.BadFrame(f"type must be one of {known}")

    async def _subscribe(self, frame: dict[str, Any]) -> None:
        job_ids = frames.ids_in(frame, {"type", "job_ids", cursors.SINCE})
        try:
            since = cursors.of_frame(frame.get(cursors.SINCE, {}), job_ids)
        except InvalidInput as error:
            raise frames.BadFrame(error.detail) from None
        if len({*job_ids, *self._feed.sources}) > frames.MAX_JOBS:
            frames.refuse_ids(f"must not exceed {frames.MAX_JOBS} jobs, together with those that the socket follows")
        greeting = control("subscribed", job_ids=job_ids)
        async with ledger_timeout():
            await self._sockets.jobs.subscribe(self._feed, job_ids, since=since, greeting=greeting)
        self._subscribes = True


def _error(code: str, detail: str) -> ControlMessage:
    return control("error", code=code, detail=detail)


async def _end(websocket: WebSocket, error: DarkroomError) -> None:
    """Close a socket because of an error, with the message that explains it."""
    _log.info("socket_refused", path=websocket.url.path, problem=error.slug, detail=error.detail)
    last = None if isinstance(error, TooSlow | ConnectionExpired) else _error(error.slug, error.detail).text
    await _close(websocket, _code_of(error), error.title, last=last)


def _code_of(error: DarkroomError) -> int:
    match error:
        case TooSlow():
            return SLOW_CLIENT
        case ConnectionExpired():
            return SERVICE_RESTART
        case Idle():
            return IDLE_CLIENT
        case TemporaryError():
            return TRY_AGAIN_LATER
        case CredentialRefused():
            return UNAUTHENTICATED
        case ScopeMissing():
            return FORBIDDEN
        case NotFound():
            return JOB_NOT_FOUND
        case Gone():
            return JOB_DELETED
        case InvalidInput() | MalformedRequest():
            return BAD_QUERY
        case BadFrames():
            return POLICY_VIOLATION
    return INTERNAL_ERROR


async def _close(websocket: WebSocket, code: int, reason: str, *, last: str | None = None) -> None:
    """Send the last message and close. Where the client has gone or does not read, the server ends the connection."""
    with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            if last is not None:
                await websocket.send_text(last)
            await websocket.close(code, reason)

"""Sockets: `/ws/jobs/{job_id}`, `/ws/jobs?job_ids=a,b,c` and `/ws/events`, which tell people of their jobs.

A socket is told the state of each of its jobs (one message each), then everything that happens, as it happens
(`live.py`); the messages are those of `darkroom.updates`. With `since=` it is told what it has not seen instead
(`cursors.py`). `/ws/events` is told what happens to all jobs of the tenant (`news.py`). What a client may say, and
every code that closes a socket, is in `docs/results.md`.

A client that sends neither a cursor nor a message is told of its jobs and nothing else, as in earlier systems. Whoever
closes, a client may come again at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from darkroom.catalogue.parameters import shown
from darkroom.cloudevents import strict_json
from darkroom.errors import DarkroomError, FieldError, Gone, InvalidInput, NotFound, PermanentError, TemporaryError
from darkroom.jobs import is_job_id
from darkroom.logs import logger
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from darkroom_functions.http.probes import patience
from darkroom_functions.streams import cursors
from darkroom_functions.streams.inbox import Inbox, Note, TooSlow, note
from darkroom_functions.streams.live import Following, Live
from darkroom_functions.streams.news import News
from darkroom_functions.tenants import tenant_of

MAX_JOBS = 100
"""Jobs of one socket at a time. A guess: a page of pictures."""

MAX_BAD_FRAMES = 16
"""Messages that mean nothing here, before the socket is closed: enough to see in a console what one does wrong."""

CLOSE_PATIENCE_S = 2.0
"""How long the last words of a socket may take to be taken; a client that does not read gets none."""

PONG = Note("pong", '{"type":"pong"}')

NORMAL = 1000
POLICY = 1008
INTERNAL = 1011
COME_AGAIN = 1012
TRY_LATER = 1013
BAD_QUERY = 4400
NO_JOB = 4404
DELETED_JOB = 4410
SLOW = 4408
IDLE = 4409

_log = logger(__name__)


class BadFrames(PermanentError):
    """A client that goes on sending what means nothing."""

    slug, title = "bad-frames", "Too many messages that mean nothing here"


class TimeIsUp(TemporaryError):
    """The longest life of a connection is over."""

    slug, title = "time-is-up", "Connect again"


class Idle(TemporaryError):
    """A socket that follows nothing, and whose client says nothing."""

    slug, title = "idle", "Nothing was followed, and nothing was said"


@dataclass(frozen=True)
class Sockets:
    """What the connections of a process share: `app.state.sockets`.

    `grace_s` is how long a socket stays after its last end, `idle_s` how long one whose client subscribes as it goes
    stays without a job, `life_s` how long any connection stays.
    """

    live: Live
    news: News
    grace_s: float
    idle_s: float
    life_s: float

    def end_in_time(self, inbox: Inbox) -> asyncio.TimerHandle:
        """End the following when its connection's life is over, before a proxy cuts it off in mid-message."""
        fault = TimeIsUp(f"a connection lives for {self.life_s:g} s")
        return asyncio.get_running_loop().call_later(self.life_s, inbox.fail, fault)


async def watch_job(websocket: WebSocket) -> None:
    """`/ws/jobs/{job_id}`: one job."""

    def opening(sockets: Sockets) -> AbstractAsyncContextManager[Following]:
        job_id = websocket.path_params["job_id"]
        if not is_job_id(job_id):
            raise NotFound(f"there is no job {job_id[:64]!a}")
        text = since_of(websocket)
        since = {} if text is None else {job_id: cursors.of_job(text, job_id)}
        return sockets.live.follow([job_id], tenant=tenant_of(websocket), since=since)

    await _serve(websocket, opening)


async def watch_jobs(websocket: WebSocket) -> None:
    """`/ws/jobs?job_ids=a,b,c`: up to MAX_JOBS."""

    def opening(sockets: Sockets) -> AbstractAsyncContextManager[Following]:
        job_ids = _ids_of(",".join(websocket.query_params.getlist("job_ids")))
        text = since_of(websocket)
        since = {} if text is None else cursors.of_jobs(text, job_ids)
        return sockets.live.follow(job_ids, tenant=tenant_of(websocket), since=since)

    await _serve(websocket, opening)


async def watch_tenant(websocket: WebSocket) -> None:
    """`/ws/events`: all jobs of the tenant, but for their progress."""

    def opening(sockets: Sockets) -> AbstractAsyncContextManager[Inbox]:
        text = since_of(websocket)
        since = None if text is None else cursors.of_news(text)
        return sockets.news.follow(tenant=tenant_of(websocket), since=since)

    await _serve(websocket, opening)


ROUTES: list[BaseRoute] = [
    WebSocketRoute("/ws/jobs/{job_id}", watch_job),
    WebSocketRoute("/ws/jobs", watch_jobs),
    WebSocketRoute("/ws/events", watch_tenant),
]


def since_of(connection: HTTPConnection) -> str | None:
    """The query's cursor, unread; None where it has none."""
    values = connection.query_params.getlist(cursors.SINCE)
    return ",".join(values) if values else None


async def _serve(websocket: WebSocket, opening: Callable[[Sockets], AbstractAsyncContextManager[Inbox]]) -> None:
    """One socket from its first to its last message. `opening` reads the request; it raises InvalidInput, NotFound and
    Gone.
    """
    sockets: Sockets = websocket.app.state.sockets
    await websocket.accept()
    try:
        async with AsyncExitStack() as stack:
            async with patience():
                inbox = await stack.enter_async_context(opening(sockets))
            await _Conversation(websocket, sockets, inbox).hold()
    except WebSocketDisconnect:
        return
    except DarkroomError as error:
        await _end(websocket, error)
    except Exception:
        _log.exception("socket_failed", path=websocket.url.path)
        await _end(websocket, DarkroomError("The socket met an error of ours. It has been logged."))
    else:
        await _close(websocket, NORMAL, "all jobs have ended")


def _ids_of(text: str) -> list[str]:
    job_ids = text.split(",")
    if not text:
        _refuse_ids("must name at least one job")
    if len(job_ids) > MAX_JOBS:
        _refuse_ids(f"must name at most {MAX_JOBS} jobs, not {len(job_ids)}")
    for job_id in job_ids:
        if not is_job_id(job_id):
            _refuse_ids(f"must be job ids with commas between them: {job_id[:64]!a} is none")
    return job_ids


def _refuse_ids(detail: str) -> NoReturn:
    raise InvalidInput(f"job_ids {detail}", fields=[FieldError("job_ids", detail)])


class _Conversation:
    """What is said on one socket. `is_steered`: its client subscribes as it goes, so it outlives its jobs."""

    def __init__(self, websocket: WebSocket, sockets: Sockets, inbox: Inbox) -> None:
        self._websocket = websocket
        self._sockets = sockets
        self._inbox = inbox
        self._is_steered = False

    async def hold(self) -> None:
        """Returns when all jobs have ended and the grace is over. Raises what else ends the socket."""
        if isinstance(self._inbox, Following):
            _log.info("socket_follows", jobs=self._inbox.job_ids)
        end_of_life = self._sockets.end_in_time(self._inbox)
        try:
            await first_of(self._speak(), self._listen(), self._inbox.failure())
        finally:
            end_of_life.cancel()

    async def _speak(self) -> None:
        """Everything it is to be told; after the last end, answers to its client for as long as it stays."""
        loop = asyncio.get_running_loop()
        until: float | None = None
        while True:
            if not self._inbox.ended:
                until = None
                await self._websocket.send_text((await self._inbox.take()).text)
                continue
            if self._is_steered:
                until = loop.time() + self._sockets.idle_s
            elif until is None:
                until = loop.time() + self._sockets.grace_s
            try:
                async with asyncio.timeout_at(until):
                    told = await self._inbox.take()
            except TimeoutError:
                if self._is_steered:
                    raise Idle(f"no job was followed and nothing was said for {self._sockets.idle_s:g} s") from None
                return
            await self._websocket.send_text(told.text)

    async def _listen(self) -> None:
        """What the client says. Raises WebSocketDisconnect when it is gone, BadFrames when it goes on and on."""
        bad_frames = 0
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", NORMAL))
            try:
                await self._answer(message.get("text"))
            except _BadFrame as flaw:
                bad_frames += 1
                if bad_frames > MAX_BAD_FRAMES:
                    raise BadFrames(f"more than {MAX_BAD_FRAMES} messages meant nothing here") from None
                self._inbox.say(_error("bad-frame", str(flaw)))
            except DarkroomError as error:
                self._inbox.say(_error(error.slug, error.detail))

    async def _answer(self, text: str | None) -> None:
        """Raises _BadFrame for what means nothing, and the errors of a subscription, which changes nothing then."""
        frame = _frame_of(text)
        match frame.get("type"):
            case "ping":
                self._inbox.say(PONG)
            case "subscribe" if isinstance(self._inbox, Following):
                await self._subscribe(self._inbox, frame)
            case "unsubscribe" if isinstance(self._inbox, Following):
                job_ids = _ids_in(frame, {"type", "job_ids"})
                self._inbox.leave(job_ids)
                self._is_steered = True
                self._inbox.say(note("unsubscribed", job_ids=job_ids))
            case _:
                known = '"ping", "subscribe", "unsubscribe"' if isinstance(self._inbox, Following) else '"ping"'
                raise _BadFrame(f"type must be one of {known}")

    async def _subscribe(self, following: Following, frame: dict[str, Any]) -> None:
        job_ids = _ids_in(frame, {"type", "job_ids", cursors.SINCE})
        try:
            since = cursors.of_frame(frame.get(cursors.SINCE, {}), job_ids)
        except InvalidInput as error:
            raise _BadFrame(error.detail) from None
        if len({*job_ids, *following.job_ids}) > MAX_JOBS:
            _refuse_ids(f"must leave room: a socket follows at most {MAX_JOBS} jobs at a time")
        async with patience():
            await self._sockets.live.subscribe(
                following, job_ids, since=since, greeting=note("subscribed", job_ids=job_ids)
            )
        self._is_steered = True


async def first_of(*ways: Coroutine[Any, Any, object]) -> None:
    """Runs all until one is over, ends the others, and raises what that one raised."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure


class _BadFrame(Exception):
    """Why a client's message means nothing here."""


def _frame_of(text: str | None) -> dict[str, Any]:
    if text is None:
        raise _BadFrame("must be text; binary messages mean nothing here")
    try:
        frame = strict_json.parse(text.encode())
    except strict_json.JsonError as error:
        raise _BadFrame(f"the message {error}") from None
    if not isinstance(frame, dict):
        raise _BadFrame('must be an object such as {"type": "ping"}')
    return frame


def _ids_in(frame: dict[str, Any], members: set[str]) -> list[str]:
    """The `job_ids` of a frame that has these members and no others."""
    if unknown := frame.keys() - members:
        raise _BadFrame(f'"{shown(sorted(unknown)[0])}" means nothing in a message of this type')
    job_ids = frame.get("job_ids")
    if not isinstance(job_ids, list) or not 1 <= len(job_ids) <= MAX_JOBS:
        raise _BadFrame(f"job_ids must be a list of 1 to {MAX_JOBS} job ids")
    for job_id in job_ids:
        if not isinstance(job_id, str) or not is_job_id(job_id):
            raise _BadFrame(f"job_ids must be job ids: {str(job_id)[:64]!a} is none")
    return list(dict.fromkeys(job_ids))


def _error(code: str, detail: str) -> Note:
    return note("error", code=code, detail=detail)


async def _end(websocket: WebSocket, error: DarkroomError) -> None:
    """The last words: what the matter is, and the code for it."""
    _log.info("socket_refused", path=websocket.url.path, problem=error.slug, detail=error.detail)
    last_words = None if isinstance(error, TooSlow | TimeIsUp) else _error(error.slug, error.detail).text
    await _close(websocket, _code_of(error), error.title, last_words=last_words)


def _code_of(error: DarkroomError) -> int:
    match error:
        case TooSlow():
            return SLOW
        case TimeIsUp():
            return COME_AGAIN
        case Idle():
            return IDLE
        case TemporaryError():
            return TRY_LATER
        case NotFound():
            return NO_JOB
        case Gone():
            return DELETED_JOB
        case InvalidInput():
            return BAD_QUERY
        case BadFrames():
            return POLICY
    return INTERNAL


async def _close(websocket: WebSocket, code: int, reason: str, *, last_words: str | None = None) -> None:
    """To one that is gone, or does not read, there is nothing to say: the server then ends the connection."""
    with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
        async with asyncio.timeout(CLOSE_PATIENCE_S):
            if last_words is not None:
                await websocket.send_text(last_words)
            await websocket.close(code, reason)

"""Sockets: `/ws/jobs/{job_id}` and `/ws/jobs?job_ids=a,b,c`, which tell people of their jobs.

A socket is told the state of each of its jobs (one message each), then everything that happens, as it happens
(`live.py`); the messages are those of `darkroom.updates`. `{"type": "ping"}` is answered with `{"type": "pong"}`,
anything else with an error: `{"type": "error", "code": …, "detail": …}`, which does not close. When all its jobs have
ended the socket stays for a short grace, for clients that take their time. Whoever closes, a client may come again at
any time: it is told the present state first.

| close code | when | error frame before it (`code`) |
|---|---|---|
| 1000 | all jobs have ended and the grace is over | – |
| 1008 | too many messages that mean nothing here | `bad-frames` |
| 1009 | a message above the server's limit | – (the server closes) |
| 1011 | an error of ours; no answer to the server's protocol pings | `internal` / – |
| 1012 | the server is ending: connect again | – |
| 1013 | Redis is away: try again later | `ledger-unavailable` |
| 4400 | `job_ids` is missing, empty, too long, or holds what is no job id | `invalid-input` |
| 4404 | there is no such job, for this caller | `not-found` |
| 4408 | messages were not taken as fast as they came | – (it could not be taken) |
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson
from darkroom import strict_json
from darkroom.errors import DarkroomError, FieldError, InvalidInput, NotFound, PermanentError, TemporaryError
from darkroom.jobs import is_job_id
from darkroom.logs import logger
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from darkroom_functions.health import patience
from darkroom_functions.live import Following, Live, TooSlow
from darkroom_functions.tenants import tenant_of

MAX_JOBS = 100
"""Jobs of one socket. A guess: a page of pictures."""

MAX_BAD_FRAMES = 16
"""Messages that mean nothing here, before the socket is closed: enough to see in a console what one does wrong."""

CLOSE_PATIENCE_S = 2.0
"""How long the last words of a socket may take to be taken; a client that does not read gets none."""

PONG = '{"type":"pong"}'

NORMAL = 1000
POLICY = 1008
INTERNAL = 1011
TRY_LATER = 1013
BAD_IDS = 4400
NO_JOB = 4404
SLOW = 4408

_log = logger(__name__)


class BadFrames(PermanentError):
    """A client that goes on sending what means nothing."""

    slug, title = "bad-frames", "Too many messages that mean nothing here"


@dataclass(frozen=True)
class Sockets:
    """What the sockets of a process share: `app.state.sockets`. `grace_s` is how long one stays after its last end."""

    live: Live
    grace_s: float


async def watch_job(websocket: WebSocket) -> None:
    """`/ws/jobs/{job_id}`: one job."""
    await _serve(websocket, job_ids=None)


async def watch_jobs(websocket: WebSocket) -> None:
    """`/ws/jobs?job_ids=a,b,c`: up to MAX_JOBS."""
    await _serve(websocket, job_ids=",".join(websocket.query_params.getlist("job_ids")))


ROUTES: list[BaseRoute] = [
    WebSocketRoute("/ws/jobs/{job_id}", watch_job),
    WebSocketRoute("/ws/jobs", watch_jobs),
]


async def _serve(websocket: WebSocket, *, job_ids: str | None) -> None:
    """One socket from its first to its last word. `job_ids` is None where the path names the one job."""
    await websocket.accept()
    try:
        wanted = [_id_of(websocket.path_params["job_id"])] if job_ids is None else _ids_of(job_ids)
        await _follow(websocket, wanted)
    except WebSocketDisconnect:
        return
    except DarkroomError as error:
        await _end(websocket, error)
    except Exception:
        _log.exception("socket_failed", path=websocket.url.path)
        await _end(websocket, DarkroomError("The socket met an error of ours. It has been logged."))
    else:
        await _close(websocket, NORMAL, "all jobs have ended")


def _id_of(text: str) -> str:
    if not is_job_id(text):
        raise NotFound(f"there is no job {text[:64]!a}")
    return text


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


async def _follow(websocket: WebSocket, job_ids: list[str]) -> None:
    """Returns when all jobs have ended and the grace is over. Raises what else ends the socket."""
    sockets: Sockets = websocket.app.state.sockets
    async with AsyncExitStack() as stack:
        async with patience():
            following = await stack.enter_async_context(sockets.live.follow(job_ids, tenant=tenant_of(websocket)))
        _log.info("socket_follows", jobs=following.job_ids)
        await _first_of(
            _speak(websocket, following, grace_s=sockets.grace_s), _listen(websocket, following), following.failure()
        )


async def _first_of(*ways: Coroutine[Any, Any, None]) -> None:
    """Runs all until one is over, ends the others, and raises what that one raised."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _speak(websocket: WebSocket, following: Following, *, grace_s: float) -> None:
    """Everything it is to be told; after the last end, answers to its pings for as long as the grace lasts."""
    while not following.ended:
        await websocket.send_text(await following.next())
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            while True:
                await websocket.send_text(await following.next())


async def _listen(websocket: WebSocket, following: Following) -> None:
    """What the client says. Raises WebSocketDisconnect when it is gone, BadFrames when it goes on and on."""
    bad_frames = 0
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", NORMAL))
        flaw = _flaw_of(message.get("text"))
        if flaw is None:
            following.say(PONG)
            continue
        bad_frames += 1
        if bad_frames > MAX_BAD_FRAMES:
            raise BadFrames(f"more than {MAX_BAD_FRAMES} messages meant nothing here")
        following.say(_error("bad-frame", flaw))


def _flaw_of(text: str | None) -> str | None:
    """Why a client's message means nothing here; None for a ping."""
    if text is None:
        return "must be text; binary messages mean nothing here"
    try:
        message = strict_json.parse(text.encode())
    except strict_json.JsonError as error:
        return f"the message {error}"
    if isinstance(message, dict) and message.get("type") == "ping":
        return None
    return 'the one message that is answered here is {"type": "ping"}'


def _error(code: str, detail: str) -> str:
    return orjson.dumps({"type": "error", "code": code, "detail": detail}).decode()


async def _end(websocket: WebSocket, error: DarkroomError) -> None:
    """The last words: what the matter is, and the code for it."""
    _log.info("socket_refused", path=websocket.url.path, problem=error.slug, detail=error.detail)
    last_words = None if isinstance(error, TooSlow) else _error(error.slug, error.detail)
    await _close(websocket, _code_of(error), error.title, last_words=last_words)


def _code_of(error: DarkroomError) -> int:
    match error:
        case TooSlow():
            return SLOW
        case TemporaryError():
            return TRY_LATER
        case NotFound():
            return NO_JOB
        case InvalidInput():
            return BAD_IDS
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

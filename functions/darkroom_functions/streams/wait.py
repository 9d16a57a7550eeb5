"""Waiting: a request that is answered when a job has ended, or when the time that it gave is over.

`jobs` reads a job so (`?wait=30`, or `Prefer: wait=30`), `submit` answers so (`Prefer: wait=30`). Who waits follows the
job's log as a socket does (`live.py`): one connection to Redis for all who wait in this process, and nobody asks again
and again. A wait only says *when* to look; the handler then reads the job as it would have without one.

A wait also ends when its client has gone, and when the process is about to end: nobody who waits holds up a rollout.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.request import parse_http_list

import redis.asyncio
from darkroom.errors import DarkroomError, FieldError, InvalidInput, NotFound
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.supervision import vital
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from darkroom_functions.http.probes import patience
from darkroom_functions.streams.live import Following, Live

PARAMETER = "wait"
"""Of the query: seconds, as the preference of that name."""

APPLIED = "Preference-Applied"

MOST_TEXTS = 1_000
"""What may wait for one who waits: texts that are empty here, and are taken at once."""

_SECONDS = re.compile(r"[0-9]+")

_WAIT = re.compile(r"wait[ \t]*=[ \t]*(?P<quote>\"?)(?P<seconds>[0-9]+)(?P=quote)[ \t]*(?:;.*)?", re.IGNORECASE)

_log = logger(__name__)


@dataclass(frozen=True)
class Wait:
    """How long a request is to wait, in whole seconds; `is_preferred` where a header asked for it."""

    seconds: int
    is_preferred: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says of it: the seconds that were granted, which may be fewer than were asked for."""
        return {APPLIED: f"wait={self.seconds}"} if self.is_preferred else {}


NO_WAIT = Wait(0)


class Over(StrEnum):
    """Why a wait is over."""

    ENDED = "ended"  # the job has
    TIME = "time"
    GONE = "gone"  # the client has
    UNKNOWN = "unknown"  # the ledger knows no such job: it is in the history, or nowhere
    CLOSING = "closing"  # the process is about to end


def preferred(headers: Sequence[str], *, most_s: int) -> Wait:
    """The wait that the `Prefer` headers of a request ask for, at most `most_s`.

    A preference that comes twice counts as it came first; one that cannot be read is no preference, and no error
    (RFC 7240, section 2; `wait` is section 4.3).
    """
    for element in parse_http_list(", ".join(headers)):
        if re.split("[=;]", element, maxsplit=1)[0].strip().lower() == PARAMETER:
            match = _WAIT.fullmatch(element)
            return NO_WAIT if match is None else Wait(_granted(match["seconds"], most_s), is_preferred=True)
    return NO_WAIT


def _granted(seconds: str, most_s: int) -> int:
    return int(min(float(seconds), most_s))  # a float takes any number of digits


class Waiting:
    """All who wait in one process, each at most `most_s`, while `running`. `client` is the ledger's.

    `closing` is set when the process is about to end.
    """

    def __init__(
        self, ledger: AsyncLedger, client: redis.asyncio.Redis, *, most_s: int, closing: asyncio.Event
    ) -> None:
        self._live = Live(ledger, client, encode=lambda _entry: "", buffer=MOST_TEXTS)
        self._most_s = most_s
        self._closing = closing

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen to the ledger while the block runs."""
        ending = asyncio.Event()
        listening = vital(self._live.run(), name="live", may_end=ending.is_set)
        try:
            yield
        finally:
            ending.set()
            listening.cancel()
            await asyncio.wait([listening])

    def asked(self, request: Request) -> Wait:
        """The wait that a reading asks for: the query counts before `Prefer`. Raises InvalidInput."""
        values = request.query_params.getlist(PARAMETER)
        if not values:
            return self.preferred(request)
        if len(values) > 1 or not _SECONDS.fullmatch(values[0]):
            detail = "must come once, and be a whole number of seconds"
            raise InvalidInput(f"{PARAMETER} {detail}", fields=[FieldError(PARAMETER, detail)])
        return Wait(_granted(values[0], self._most_s))

    def preferred(self, request: Request) -> Wait:
        """The wait that the request's `Prefer` asks for."""
        return preferred(request.headers.getlist("prefer"), most_s=self._most_s)

    async def for_end(self, job_id: str, *, tenant: str, wait: Wait, request: Request) -> None:
        """Returns when the job has ended, or nothing is gained by waiting on; at once where the wait is none.

        Raises LedgerUnavailable where the ledger is away as it begins: later it is waited for as well. Raises
        ClientDisconnect when the caller has gone.
        """
        if wait.seconds == 0:
            return
        over = await self._over(job_id, tenant=tenant, wait=wait, request=request)
        _log.info("waited", job=job_id, over=over.value)
        if over is Over.GONE:
            raise ClientDisconnect

    async def _over(self, job_id: str, *, tenant: str, wait: Wait, request: Request) -> Over:
        deadline = asyncio.get_running_loop().time() + wait.seconds
        async with AsyncExitStack() as stack:
            try:
                async with patience():
                    following = await stack.enter_async_context(self._live.follow([job_id], tenant=tenant))
            except NotFound:
                return Over.UNKNOWN
            _log.info("waits", job=job_id, seconds=wait.seconds)
            ways: dict[Over, Coroutine[Any, Any, object]] = {
                Over.ENDED: _end(following),
                Over.UNKNOWN: following.failure(),
                Over.GONE: hang_up(request.receive),
                Over.CLOSING: self._closing.wait(),
            }
            return await _first_of(ways, deadline=deadline)


async def _end(following: Following) -> None:
    while not following.ended:
        await following.next()


async def hang_up(receive: Receive) -> None:
    """Returns when the caller has gone. Whatever comes of a body before that is read and dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(ways: Mapping[Over, Coroutine[Any, Any, object]], *, deadline: float) -> Over:
    """The way that is over first, or TIME at the loop's time `deadline`."""
    tasks = {asyncio.create_task(way): over for over, way in ways.items()}
    try:
        left_s = max(0.0, deadline - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, DarkroomError):
            raise outcome
    return next((over for task, over in tasks.items() if task in done), Over.TIME)

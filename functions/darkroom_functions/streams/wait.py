"""Waiting: a request that is answered when a job has reached a terminal state, or when its time is over.

Both reads (`?wait=30`, or `Prefer: wait=30`) and submissions (`Prefer: wait=30`) can wait. A wait follows the job's log
as a socket does (`follower.py`): one connection to Redis serves all waits of the process, and there is no polling. It
only determines *when* the handler reads the job, which it does as without a wait.

A wait also ends when its client disconnects, and when the process is about to stop: no wait delays a rollout.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
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

from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.streams.feed import Feed
from darkroom_functions.streams.follower import Follower
from darkroom_functions.streams.job_logs import JobLogs
from darkroom_functions.streams.race import first_of

PARAMETER = "wait"
"""The parameter of the query, in seconds, and the preference of that name."""

APPLIED = "Preference-Applied"

BUFFER = 1_000
"""Messages that may be waiting for one request: they are empty here, and are taken at once."""

_SECONDS = re.compile(r"[0-9]+")

_WAIT = re.compile(r"wait[ \t]*=[ \t]*(?P<quote>\"?)(?P<seconds>[0-9]+)(?P=quote)[ \t]*(?:;.*)?", re.IGNORECASE)

_log = logger(__name__)


@dataclass(frozen=True)
class Wait:
    """How long a request waits, in whole seconds; `is_preferred` where a `Prefer` header asked for it."""

    seconds: int
    is_preferred: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer: the seconds that were granted, which may be fewer than were asked for."""
        return {APPLIED: f"wait={self.seconds}"} if self.is_preferred else {}


NO_WAIT = Wait(0)


class WaitResult(StrEnum):
    """Why a wait is over."""

    ENDED = "ended"  # the job reached a terminal state
    TIME = "time"
    GONE = "gone"  # the client disconnected
    UNKNOWN = "unknown"  # Redis has no such job: only the history may have it
    CLOSING = "closing"  # the process is about to stop


def preferred(headers: Sequence[str], *, most_s: int) -> Wait:
    """The wait that the `Prefer` headers of a request ask for, at most `most_s`.

    The first of several preferences counts; one that cannot be parsed is ignored (RFC 7240, section 2; `wait` is
    section 4.3).
    """
    for element in parse_http_list(", ".join(headers)):
        if re.split("[=;]", element, maxsplit=1)[0].strip().lower() == PARAMETER:
            match = _WAIT.fullmatch(element)
            return NO_WAIT if match is None else Wait(_granted(match["seconds"], most_s), is_preferred=True)
    return NO_WAIT


def _granted(seconds: str, most_s: int) -> int:
    return int(min(float(seconds), most_s))  # a float takes any number of digits


class JobWaits:
    """The waits of one process, each of at most `most_s`, while `running`. `client` is the ledger's.

    `closing` is set when the process is about to stop.
    """

    def __init__(
        self, ledger: AsyncLedger, client: redis.asyncio.Redis, *, most_s: int, closing: asyncio.Event
    ) -> None:
        self._follower = Follower(JobLogs(ledger, encode=lambda _entry: ""), client, buffer=BUFFER)
        self._most_s = most_s
        self._closing = closing

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow job logs while the block runs."""
        ending = asyncio.Event()
        following = vital(self._follower.run(), name="follow jobs", may_end=ending.is_set)
        try:
            yield
        finally:
            ending.set()
            following.cancel()
            await asyncio.wait([following])

    def asked(self, request: Request) -> Wait:
        """The wait that a read asks for: the query takes precedence over `Prefer`. Raises InvalidInput."""
        values = request.query_params.getlist(PARAMETER)
        if not values:
            return self.preferred(request)
        if len(values) > 1 or not _SECONDS.fullmatch(values[0]):
            detail = "must be given once, as a whole number of seconds"
            raise InvalidInput(f"{PARAMETER} {detail}", fields=[FieldError(PARAMETER, detail)])
        return Wait(_granted(values[0], self._most_s))

    def preferred(self, request: Request) -> Wait:
        """The wait that the request's `Prefer` asks for."""
        return preferred(request.headers.getlist("prefer"), most_s=self._most_s)

    async def for_end(self, job_id: str, *, tenant: str, wait: Wait, request: Request) -> None:
        """Return when the job has reached a terminal state, or the wait is over for another reason (`WaitResult`).

        Raises LedgerUnavailable where Redis is unavailable at the beginning; an outage in between is waited out. Raises
        ClientDisconnect when the client has disconnected.
        """
        if wait.seconds == 0:
            return
        result = await self._wait(job_id, tenant=tenant, wait=wait, request=request)
        _log.info("waited", job=job_id, over=result.value)
        if result is WaitResult.GONE:
            raise ClientDisconnect

    async def _wait(self, job_id: str, *, tenant: str, wait: Wait, request: Request) -> WaitResult:
        deadline = asyncio.get_running_loop().time() + wait.seconds
        async with AsyncExitStack() as stack:
            try:
                async with ledger_timeout():
                    feed = await stack.enter_async_context(self._follower.follow([job_id], tenant=tenant))
            except NotFound:
                return WaitResult.UNKNOWN
            _log.info("waits", job=job_id, seconds=wait.seconds)
            ways: dict[WaitResult, Coroutine[Any, Any, object]] = {
                WaitResult.ENDED: _ended(feed),
                WaitResult.UNKNOWN: feed.failure(),
                WaitResult.GONE: disconnected(request.receive),
                WaitResult.CLOSING: self._closing.wait(),
            }
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                first = await first_of(*ways.values(), timeout_s=left_s)
            except DarkroomError:
                return WaitResult.UNKNOWN
            return WaitResult.TIME if first is None else tuple(ways)[first]


async def _ended(feed: Feed) -> None:
    while not feed.ended:
        await feed.take()


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected. The rest of a body that arrives before is read and dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass

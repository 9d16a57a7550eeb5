"""Concurrent calls of one kind share a round trip to Redis: submissions, and the results of deliveries.

While one round trip is in progress, calls gather for the next one. There is no timer, so a single call is not delayed.
Each call has its own answer or failure, and all run in the order in which they arrived.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from darkroom.errors import DarkroomError, LedgerUnavailable
from darkroom.ledger.calls import Call
from darkroom.ledger.client import AsyncLedger

T = TypeVar("T")

MOST_TOGETHER = 16
"""Calls in one round trip: about 1 ms of Redis' time. With 64, callers and Redis waited for each other in turn."""

_TOO_SLOW = "Redis did not answer in time"


class GroupCommit(Generic[T]):
    """Runs calls of one kind, as many at a time as arrived while the last ones ran."""

    def __init__(self, ledger: AsyncLedger, *, timeout_s: float) -> None:
        """`timeout_s`: how long a round trip may take, in seconds, before Redis counts as unavailable."""
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._waiting: list[tuple[Call[T], asyncio.Future[T]]] = []
        self._flusher: asyncio.Task[None] | None = None

    async def run(self, call: Call[T]) -> T:
        """The answer of `call`; raises as `AsyncLedger.run` does."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, answer))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return await answer

    async def _flush(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
                await self._run_group(group)
        finally:
            self._flusher = None

    async def _run_group(self, group: list[tuple[Call[T], asyncio.Future[T]]]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._ledger.run_each([call for call, _ in group])
        except (Exception, asyncio.CancelledError) as error:
            # Calls that gathered meanwhile fail too: Redis is unavailable for them as well.
            unanswered = isinstance(error, (TimeoutError, asyncio.CancelledError))
            failure = LedgerUnavailable(_TOO_SLOW, retry_after=2) if unanswered else error
            gathered, self._waiting = self._waiting, []
            for _, future in (*group, *gathered):
                if not future.done():
                    future.set_exception(failure)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, DarkroomError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

"""Calls of one kind that come together share a round trip to Redis: submissions, and what came of deliveries.

While one round trip is on its way, callers gather for the next; nobody waits for a timer, so a lone caller loses
nothing. Each keeps its own answer and its own failure, and all are taken in the order in which they came.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from darkroom.errors import DarkroomError, LedgerUnavailable
from darkroom.ledger.calls import Call
from darkroom.ledger.client import AsyncLedger

T = TypeVar("T")

MOST_TOGETHER = 16
"""Calls in one round trip: about 1 ms of Redis' time. With 64 a whole crowd waited for Redis, and then it for them."""

_TOO_SLOW = "the queue broker does not answer in time"


class GroupCommit(Generic[T]):
    """Runs calls of one kind, as many at a time as came in while the last ones ran."""

    def __init__(self, ledger: AsyncLedger, *, patience_s: float) -> None:
        """`patience_s`: how long, in seconds, Redis may take for a round trip before it is held to be away."""
        self._ledger = ledger
        self._patience_s = patience_s
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
            async with asyncio.timeout(self._patience_s):
                answers = await self._ledger.run_each([call for call, _ in group])
        except (Exception, asyncio.CancelledError) as error:
            # All learn of it, also those who gathered meanwhile: Redis is away for them too, and nobody waits for ever.
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

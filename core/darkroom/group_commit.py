"""Submissions that arrive together share a round trip to Redis.

While one pipeline is on its way, callers gather for the next; nobody waits for a timer, so a lone caller loses nothing.
Each keeps its own answer and its own failure.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from darkroom.errors import DarkroomError
from darkroom.ledger import AsyncLedger
from darkroom.transitions import Call

T = TypeVar("T")

MOST_TOGETHER = 64
"""Calls in one round trip: about 5 ms of Redis' time, so that other clients are not held up for longer."""


class GroupCommit(Generic[T]):
    """Runs calls of one kind, as many at a time as came in while the last ones ran."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._ledger = ledger
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
                # Whoever gave up was told that nothing happened, so nothing must.
                wanted = [call for call in self._waiting if not call[1].done()]
                group, self._waiting = wanted[:MOST_TOGETHER], wanted[MOST_TOGETHER:]
                await self._run_group(group)
        finally:
            self._flusher = None

    async def _run_group(self, group: list[tuple[Call[T], asyncio.Future[T]]]) -> None:
        try:
            answers = await self._ledger.run_each([call for call, _ in group])
        except Exception as error:  # every caller learns of it; none may wait for ever
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, DarkroomError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

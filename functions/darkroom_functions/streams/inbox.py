"""Inbox: what waits for one follower, a socket or an event stream, until it takes it.

`live.py` and `news.py` put messages in; nobody waits here for anybody else. What comes live is bounded: who takes too
slowly is cut off. What a follower has missed is read for it page by page, as it takes it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import orjson
from darkroom.errors import DarkroomError, TemporaryError

PAGE = 100
"""Entries that are read at a time for one that is behind. A guess: some ten kilobytes."""

MESSAGE = "message"
"""The kind of what has no `type` of its own; EventSource's default."""


class TooSlow(TemporaryError):
    """A follower took its messages more slowly than they came."""

    slug, title = "too-slow", "Messages were not taken as fast as they came"


class Told(Protocol):
    """A message. `kind` is its type; `cursor` is how its reader goes on behind it, None where that is nothing new."""

    @property
    def text(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def cursor(self) -> str | None: ...


@dataclass(frozen=True)
class Note:
    """A message that is no entry of a log."""

    kind: str
    text: str
    cursor: str | None = None


def note(kind: str, **members: object) -> Note:
    """The message `{"type": kind, …}`; a member `cursor` is the note's own too."""
    cursor = members.get("cursor")
    text = orjson.dumps({"type": kind, **members}).decode()
    return Note(kind, text, cursor if isinstance(cursor, str) else None)


class Inbox(ABC):
    """The messages of one follower, in order. At most `limit` that came live wait in it."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._page: deque[Told] = deque()  # what a follower begins with, and what it missed: before all that came live
        self._live: deque[Told] = deque()
        self._behind = False  # whether it misses what `_read_on` would put into the page
        self._more = asyncio.Event()
        self._failed: asyncio.Future[DarkroomError] = asyncio.get_running_loop().create_future()

    @property
    def ended(self) -> bool:
        """Whether there is nothing to take, and never will be."""
        return False

    async def take(self) -> Told:
        """The next message, as soon as there is one. Raises LedgerUnavailable where it cannot be read."""
        while True:
            if self._page:
                return self._page.popleft()
            if self._live:
                return self._live.popleft()
            if self._behind:
                await self._read_on()
            else:
                self._more.clear()
                await self._more.wait()

    async def next(self) -> str:
        """The text of the next message."""
        return (await self.take()).text

    async def failure(self) -> None:
        """Returns never; raises TooSlow, or what else ends the following, as soon as it does."""
        raise await self._failed

    def say(self, told: Told) -> None:
        """One more message."""
        if len(self._live) >= self._limit:
            self.fail(TooSlow(f"{self._limit} messages were waiting to be taken"))
            return
        self._live.append(told)
        self._more.set()

    def fail(self, fault: DarkroomError) -> None:
        """It ends here: `failure` raises this."""
        if not self._failed.done():
            self._failed.set_result(fault)

    @abstractmethod
    async def _read_on(self) -> None:
        """Put a page of what it misses into the page, and say whether it still misses something (`_behind`)."""

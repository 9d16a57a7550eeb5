"""A feed: the messages for one client, in order, until the client takes them.

`follower.py` puts the updates in as they are published. They are limited in number: a client that takes them more
slowly than they come is disconnected, so no client delays another. Entries that a client missed do not count against
that limit: the feed reads them a page at a time, when the client has taken the page before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from darkroom.errors import DarkroomError, TemporaryError

from darkroom_functions.streams.cursors import Position
from darkroom_functions.streams.messages import ControlMessage, StreamMessage, Update

PAGE = 100
"""Entries that are read at a time for a client that is behind. A guess: some ten kilobytes."""


class TooSlow(TemporaryError):
    """A client took its messages more slowly than they came."""

    slug, title = "too-slow", "Messages were not taken as fast as they came"


@dataclass(frozen=True)
class Start:
    """How a client begins to follow a log: with `messages`, which bring it to `position`.

    It then reads the entries up to `head`, the newest that there is. `ended`: there is nothing left to follow.
    """

    messages: Sequence[StreamMessage]
    position: Position
    head: Position
    ended: bool = False


class Feed:
    """The messages of one client, from one or more logs of a tenant. At most `limit` published messages wait in it.

    `read_page` returns the next messages of a log after a position; `left` is called when a log is followed no longer.
    """

    def __init__(
        self,
        *,
        tenant: str,
        limit: int,
        read_page: Callable[[str, Position], Awaitable[Sequence[StreamMessage]]],
        left: Callable[[str, Feed], None],
    ) -> None:
        self.tenant = tenant
        self._limit = limit
        self._read_page = read_page
        self._left = left
        self._page: deque[StreamMessage] = deque()  # sent before `_published`: what a client begins with, and missed
        self._published: deque[StreamMessage] = deque()
        self._followed: dict[str, None] = {}  # the logs whose terminal entry is not in the feed yet
        self._positions: dict[str, Position] = {}  # the last entry put in, of each log that has begun
        self._heads: dict[str, Position] = {}  # the newest entry, of each log that is behind
        self._more = asyncio.Event()
        self._failed: asyncio.Future[DarkroomError] = asyncio.get_running_loop().create_future()

    @property
    def sources(self) -> tuple[str, ...]:
        """The logs that are followed: their terminal entry is not in the feed yet."""
        return tuple(self._followed)

    @property
    def ended(self) -> bool:
        """Whether all logs have ended and all messages have been taken."""
        return not (self._followed or self._page or self._published)

    async def take(self) -> StreamMessage:
        """The next message, once there is one. Raises LedgerUnavailable where it cannot be read."""
        while True:
            if self._page:
                return self._page.popleft()
            if self._published:
                return self._published.popleft()
            if self._heads:
                await self._catch_up()
            else:
                self._more.clear()
                await self._more.wait()

    async def failure(self) -> None:
        """Never returns; raises TooSlow, or another error that ends the feed, as soon as it occurs."""
        raise await self._failed

    def put(self, message: StreamMessage) -> None:
        """Add a message."""
        if len(self._published) >= self._limit:
            self.fail(TooSlow(f"{self._limit} messages were waiting to be taken"))
            return
        self._published.append(message)
        self._more.set()

    def fail(self, error: DarkroomError) -> None:
        """End the feed: `failure` raises this error."""
        if not self._failed.done():
            self._failed.set_result(error)

    def expect(self, sources: Iterable[str]) -> None:
        """Announce that `begin` will be called for these logs."""
        self._followed |= dict.fromkeys(sources)

    def begin(self, starts: Mapping[str, Start], *, greeting: ControlMessage | None = None) -> None:
        """Begin to follow these logs; the greeting comes before their messages."""
        self._page += self._published  # may hold the end of a log that is now followed anew
        self._published.clear()
        if len(self._page) > self._limit + 2 * PAGE:  # the client keeps subscribing without reading
            self.fail(TooSlow(f"{len(self._page)} messages were waiting to be taken"))
        if greeting is not None:
            self._page.append(greeting)
        for source, start in starts.items():
            self._page.extend(start.messages)
            self._positions[source] = start.position
            if start.ended:
                self._end(source)
            else:
                self.extend(source, start.head)
        self._more.set()

    def extend(self, source: str, head: Position) -> None:
        """Have the feed itself read the log up to `head`, where it is not there yet."""
        if source in self._positions and head > self._positions[source]:
            self._heads[source] = max(head, self._heads.get(source, head))
            self._more.set()

    def offer(self, update: Update) -> None:
        """Add a new entry of a log, unless the feed has it. It directly follows the entry that was offered before.

        A terminal entry is added whatever its position: after a rollback of Redis it may have one that another entry
        had.
        """
        position = self._positions.get(update.source)
        if position is None:
            return
        if update.source in self._heads:
            self.extend(update.source, update.position)
        elif update.position > position or update.is_end:
            self._advance(update)
            self.put(update)

    def leave(self, sources: Collection[str]) -> None:
        """Follow these logs no longer, and drop their updates."""
        for source in sources:
            self._end(source)
        self._page = deque(message for message in self._page if not _is_of(message, sources))
        self._published = deque(message for message in self._published if not _is_of(message, sources))

    async def _catch_up(self) -> None:
        """Read a page of the first log that is behind."""
        source = next(iter(self._heads))
        position, head = self._positions[source], self._heads[source]
        page = await self._read_page(source, position)
        if source not in self._heads or self._positions[source] != position:
            return  # it was left in the meantime
        self._page.extend(page)
        updates = [message for message in page if isinstance(message, Update)]
        for update in updates:
            self._advance(update)
        if source not in self._heads:
            return  # the page had the terminal entry
        if len(updates) < PAGE:
            self._positions[source] = max(self._positions[source], head)  # Redis has no more up to that head
        if self._positions[source] >= self._heads[source]:
            del self._heads[source]

    def _advance(self, update: Update) -> None:
        self._positions[update.source] = update.position
        if update.is_end:
            self._end(update.source)

    def _end(self, source: str) -> None:
        if source in self._followed:
            del self._followed[source]
            self._positions.pop(source, None)
            self._heads.pop(source, None)
            self._left(source, self)


def _is_of(message: StreamMessage, sources: Collection[str]) -> bool:
    return isinstance(message, Update) and message.source in sources

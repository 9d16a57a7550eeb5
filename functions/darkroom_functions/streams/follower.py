"""The follower: from Redis to all clients of a process that follow the same kind of log.

A process has one `Follower` for each kind of source: job logs (`job_logs.py`) and the streams of tenants
(`tenant_streams.py`). It has one connection to Redis for all channels, and reads a log once for all clients that follow
it. Each feed (`feed.py`) receives the entries of its logs only, in order, without gaps and without repeats.

    access checked → channel open → start: the newest entry, or the cursor → entries as they are published

Redis keeps nothing for a subscriber that is away, so the log is the truth. The follower compares its position with the
log every few seconds, after a lost connection and when a published entry shows that one before it is missing, and reads
what it missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import redis.asyncio
from darkroom.errors import DarkroomError, NotFound
from darkroom.ledger.channels import Channels
from darkroom.logs import logger
from darkroom.supervision import run_vital

from darkroom_functions.streams.cursors import Cursor, Position
from darkroom_functions.streams.feed import PAGE, Feed, Start
from darkroom_functions.streams.messages import ControlMessage, StreamMessage, Update

CHECK_INTERVAL_S = 10.0
"""How often all followed logs are compared with Redis: the longest delay of a message that was lost and has no later
one after it."""

RETRY_S = 1.0
"""When a comparison that failed is repeated."""

GATHER_S = 0.05
"""After a lost connection, Redis confirms channels one by one: so long they are gathered for one comparison."""

LOGS_PER_COMMAND = 500
"""Logs that are compared in one round trip."""

_log = logger(__name__)


class Source(Protocol):
    """Logs of one kind, each with a name: the id of a job, or a tenant."""

    kind: str
    """What a name stands for, as a field of log lines."""

    def channel(self, name: str) -> str:
        """The channel of a log. Those of all logs begin with that of the empty name."""

    def decode(self, name: str, payload: bytes) -> Update | None:
        """The entry that was published; None where the log has to be read for it.

        Entries that are published are numbered without gaps: their positions are (0, 1), (0, 2) and so on.
        """

    async def ends(self, names: Collection[str], *, tenant: str) -> Mapping[str, Update]:
        """The terminal entry of each log that has one. Raises NotFound or Gone unless the tenant may read them all."""

    async def starts(
        self, names: Collection[str], *, ends: Mapping[str, Update], since: Mapping[str, Cursor]
    ) -> Mapping[str, Start]:
        """How to begin with each log: at its cursor, or at present where it has none."""

    async def read(self, name: str, after: Position) -> Sequence[Update]:
        """At most PAGE entries after a position. Raises NotFound where the log no longer exists."""

    async def read_page(self, name: str, after: Position) -> Sequence[StreamMessage]:
        """As `read`, for a single client that is behind; a gap comes first where entries in between are not kept."""

    async def newest(self, names: Sequence[str]) -> Mapping[str, Update]:
        """The newest entry of each log, in one round trip; logs that are not named have to be read."""


@dataclass(eq=False)
class _Topic:
    """A log that is followed.

    All entries up to `head` were offered to all feeds; it is None until the first of them begins. `behind`: entries
    above it may exist; `reading`: they are being read.
    """

    name: str
    feeds: dict[Feed, None] = field(default_factory=dict)
    head: Position | None = None
    behind: bool = False
    reading: bool = False


class Follower:
    """All logs of one source that this process follows. `run` must run in the background.

    `buffer` is the number of published messages that may wait for one client.
    """

    def __init__(
        self,
        source: Source,
        client: redis.asyncio.Redis,
        *,
        buffer: int,
        check_interval_s: float = CHECK_INTERVAL_S,
    ) -> None:
        self._source = source
        self._buffer = buffer
        self._check_interval_s = check_interval_s
        self._channels = Channels(client, on_message=self._receive, on_subscribed=self._confirmed)
        self._topics: dict[str, _Topic] = {}
        self._prefix = source.channel("")
        self._check_now = asyncio.Event()
        self._readers: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def follow(
        self, names: Sequence[str], *, tenant: str, since: Mapping[str, Cursor] | None = None
    ) -> AsyncIterator[Feed]:
        """Follow these logs while the block runs, those that `since` has a cursor for from there on.

        Raises NotFound naming the logs that the tenant does not have, Gone for the log of a deleted job,
        LedgerUnavailable, HistoryUnavailable and TooManyReplays.
        """
        feed = Feed(tenant=tenant, limit=self._buffer, read_page=self._source.read_page, left=self._leave)
        try:
            await self.subscribe(feed, names, since=since or {})
            yield feed
        finally:
            feed.leave(feed.sources)

    async def subscribe(
        self,
        feed: Feed,
        names: Sequence[str],
        *,
        since: Mapping[str, Cursor],
        greeting: ControlMessage | None = None,
    ) -> None:
        """Add logs to a feed; those that it follows already are not changed. The greeting comes before their messages.

        Adds all of them or none: raises what `follow` does.
        """
        followed = feed.sources
        new = [name for name in dict.fromkeys(names) if name not in followed]
        ends = await self._source.ends(new, tenant=feed.tenant)
        feed.expect(new)
        try:
            living = [name for name in new if name not in ends]
            for name in living:
                self._topics.setdefault(name, _Topic(name)).feeds[feed] = None
            await self._channels.open(self._source.channel(name) for name in living)
            starts = await self._source.starts(new, ends=ends, since=since)
        except BaseException:
            feed.leave(new)
            raise
        feed.begin(starts, greeting=greeting)
        for name in living:
            self._began(name, feed, starts[name].head)

    async def run(self) -> None:
        """Receive what is published and compare with the logs, until cancelled.

        Where one of the two ends by itself, so does the process (`supervision.py`).
        """
        kind = self._source.kind
        try:
            await run_vital({f"{kind} channels": self._channels.run(), f"{kind} checks": self._check()})
        finally:
            for reader in self._readers:
                reader.cancel()

    def _began(self, name: str, feed: Feed, head: Position) -> None:
        topic = self._topics.get(name)
        if topic is None:
            return  # the log ended meanwhile, and no other feed follows it
        if topic.head is None:
            topic.head = head
        feed.extend(name, topic.head)
        if topic.behind:
            self._read_soon(topic)

    def _leave(self, name: str, feed: Feed) -> None:
        """Called also for logs that had ended before the feed began, which are no topics."""
        topic = self._topics.get(name)
        if topic is None:
            return
        topic.feeds.pop(feed, None)
        if not topic.feeds:
            del self._topics[name]
            self._channels.close([self._source.channel(name)])

    def _receive(self, channel: str, payload: bytes) -> None:
        topic = self._topics.get(channel.removeprefix(self._prefix))
        if topic is None:
            return
        update = self._source.decode(topic.name, payload)
        if update is None or not self._offer(topic, update):
            self._read_soon(topic)

    def _confirmed(self, channel: str) -> None:
        """A channel is open: for the first time, or after a lost connection, when entries may have been missed."""
        topic = self._topics.get(channel.removeprefix(self._prefix))
        if topic is not None and topic.head is not None:
            self._check_now.set()

    def _offer(self, topic: _Topic, update: Update) -> bool:
        """Pass an entry on; False where one before it is missing, and the log has to be read."""
        if topic.head is None or update.position > (topic.head[0], topic.head[1] + 1):
            return False
        self._pass_on(topic, update)
        return True

    def _pass_on(self, topic: _Topic, update: Update) -> None:
        if topic.head is None or update.position > topic.head:
            topic.head = update.position
        elif not update.is_end:
            return  # passed on before
        for feed in tuple(topic.feeds):
            feed.offer(update)

    def _read_soon(self, topic: _Topic) -> None:
        topic.behind = True
        if not topic.reading and topic.head is not None:
            topic.reading = True
            reader = asyncio.create_task(self._read(topic), name=f"read {self._source.kind} {topic.name}")
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)

    async def _read(self, topic: _Topic) -> None:
        """Pass on the entries above the head, for as long as there are more. `reading` is set already."""
        try:
            while topic.behind and topic.head is not None:
                topic.behind = False
                page = await self._source.read(topic.name, topic.head)
                for update in page:
                    self._pass_on(topic, update)
                    await asyncio.sleep(0)  # so that clients can take their messages in between
                topic.behind |= len(page) == PAGE
        except NotFound as error:
            _log.error("log_vanished", **{self._source.kind: topic.name})
            for feed in tuple(topic.feeds):
                feed.fail(error)
        except DarkroomError as error:  # the next check reads it
            _log.warning("log_not_read", **{self._source.kind: topic.name}, error=error.detail)
        finally:
            topic.reading = False

    async def _check(self) -> None:
        pause_s = self._check_interval_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._check_now.wait()
                await asyncio.sleep(GATHER_S)
            self._check_now.clear()
            try:
                await self._compare(list(self._topics))
                pause_s = self._check_interval_s
            except DarkroomError as error:
                _log.warning("logs_not_checked", logs=len(self._topics), error=error.detail)
                pause_s = min(RETRY_S, self._check_interval_s)

    async def _compare(self, names: Sequence[str]) -> None:
        """Read each log whose newest entry was not passed on."""
        for first in range(0, len(names), LOGS_PER_COMMAND):
            some = names[first : first + LOGS_PER_COMMAND]
            newest = await self._source.newest(some)
            missed: list[_Topic] = []
            for name in some:
                topic, update = self._topics.get(name), newest.get(name)
                if topic is None or topic.head is None:
                    continue
                if update is not None and self._offer(topic, update):
                    continue
                topic.behind = True
                if not topic.reading:
                    topic.reading = True
                    missed.append(topic)
            await asyncio.gather(*map(self._read, missed))

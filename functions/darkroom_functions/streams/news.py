"""News: everything that happens to a tenant's jobs, but their progress, for everyone who follows the tenant.

The ledger writes it beside the job logs (`tell_tenant` in `lua/prelude.lua`): a stream per tenant, of which some ten
thousand entries are kept, and a wake on a channel. One process reads what is new once for all its followers of a
tenant. A follower begins now, or behind the cursor of the last message that it has; where that entry is no longer kept
a `gap` says so, and all that is kept follows.

    channel open → the newest place → read on at each wake, at each look, and after a lost connection

A follower behind a cursor reads up to 10,000 earlier entries: a replay, which costs 0.15 s of processor time or more.
Replays of one tenant therefore take turns page by page (`_Replays`), so that other requests are served in between, and
a new one is refused while too many wait. The first page needs no turn: a client that reconnects and missed little is
never refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import redis.asyncio
from darkroom.errors import DarkroomError, TooManyReplays
from darkroom.ledger.channels import Channels
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import NEWS_START, NewsEntry
from darkroom.logs import logger
from darkroom.supervision import run_vital

from darkroom_functions.streams.cursors import place_key
from darkroom_functions.streams.inbox import MESSAGE, PAGE, Inbox, Note, note
from darkroom_functions.streams.live import LOOK_EVERY_S, Gap

REPLAYS_AT_A_TIME = 2
"""Pages of earlier entries that a process reads at a time for one tenant: one is read while another is sent."""

REPLAYS_WAITING = 16
"""Replays that may wait for their next page. Each waits for some 16 pages at most, which take about 30 ms; 16 whole
replays take about three seconds of one processor.
"""

RETRY_REPLAY_S = 5
"""When a client that was refused may try again: the waiting replays have finished by then, if their clients read."""

_log = logger(__name__)


class _Replays:
    """The replays of one tenant in this process. Each reads one page per turn, in the order in which they ask.

    The bound is per tenant, not per address: behind the gateway and Knative's proxies every connection has the proxy's
    address, and a client may write what it likes into `X-Forwarded-For`. The gateway bounds what one address may open.
    A replay whose client does not read holds no turn, so it keeps no other client waiting.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(REPLAYS_AT_A_TIME)
        self._waiting = 0

    def admit(self) -> None:
        """Raise TooManyReplays where no further replay may begin."""
        if self._waiting >= REPLAYS_WAITING:
            raise TooManyReplays(f"{self._waiting} replays are waiting", retry_after=RETRY_REPLAY_S)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The time to read one page."""
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


@dataclass(frozen=True)
class NewsUpdate:
    """An entry of a tenant's news, and the text that says it."""

    cursor: str
    text: str

    @property
    def kind(self) -> str:
        return MESSAGE


class NewsFollowing(Inbox):
    """What one follower is told of its tenant's jobs: all behind the place `told`, which is `behind` where it must read
    the stream itself, in turn with the other `replays`, before it gets new entries with all others.
    """

    def __init__(
        self,
        first: Note | None,
        *,
        told: str,
        behind: bool,
        limit: int,
        replays: _Replays,
        read: Callable[[str], Awaitable[tuple[Sequence[NewsUpdate], bool]]],
    ) -> None:
        super().__init__(limit=limit)
        self._replays = replays
        self._read = read
        self._told = self._head = told
        self._behind = behind
        if first is not None:
            self._page.append(first)

    def offer(self, update: NewsUpdate) -> None:
        """Tell it, unless it was told before."""
        if self._behind:
            self._head = update.cursor
        elif place_key(update.cursor) > place_key(self._told):
            self._told = update.cursor
            self.say(update)

    async def start(self) -> None:
        """Read the first page of what it misses. Raises TooManyReplays where there is more, and no room to read it."""
        if self._behind:
            await self._read_page()
        if self._behind:
            self._replays.admit()

    def joined(self, head: str) -> None:
        """From now on it is offered what comes behind `head`; what came before that, it reads."""
        if place_key(head) > place_key(self._told):
            self._head = head
            self._behind = True

    async def _read_on(self) -> None:
        async with self._replays.turn():
            await self._read_page()

    async def _read_page(self) -> None:
        head = self._head
        page, is_whole = await self._read(self._told)
        if not is_whole:
            self._page.append(note("gap", reason=Gap.LOG_GONE.value))
        self._page.extend(page)
        if page:
            self._told = page[-1].cursor
        if len(page) < PAGE:
            self._told = max(self._told, head, key=place_key)  # all up to the head that there was has been read
        self._behind = len(page) == PAGE or place_key(self._told) < place_key(self._head)


@dataclass(eq=False)
class _Tenant:
    """A tenant that is followed: read up to `head`, None before the channel is open. Else as in `live.py`."""

    name: str
    followers: dict[NewsFollowing, None] = field(default_factory=dict)
    replays: _Replays = field(default_factory=_Replays)
    joining: int = 0
    head: str | None = None
    behind: bool = False
    reading: bool = False

    def begun_at(self, place: str) -> str:
        """The head, which is `place` for the first who asks: what comes behind it is read for all."""
        if self.head is None:
            self.head = place
        return self.head


class News:
    """The tenants that this process follows. `run` must run beside it; `encode` makes an entry's text."""

    def __init__(
        self,
        ledger: AsyncLedger,
        client: redis.asyncio.Redis,
        *,
        encode: Callable[[NewsEntry], str],
        buffer: int,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._ledger = ledger
        self._encode = encode
        self._buffer = buffer
        self._look_every_s = look_every_s
        self._channels = Channels(client, heard=lambda channel, _: self._wake(channel), confirmed=self._wake)
        self._tenants: dict[str, _Tenant] = {}
        self._prefix = ledger.news_channel("")
        self._readers: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def follow(self, *, tenant: str, since: str | None = None) -> AsyncIterator[NewsFollowing]:
        """Follow the tenant while the block runs, from the place `since` or from now on. Raises LedgerUnavailable and
        TooManyReplays.
        """
        followed = self._tenants.setdefault(tenant, _Tenant(tenant))
        followed.joining += 1
        following: NewsFollowing | None = None
        try:
            following = await self._join(followed, since)
            followed.followers[following] = None
            following.joined(followed.head or NEWS_START)
            self._read(followed)  # a wake may have come before the head was known
            yield following
        finally:
            followed.joining -= 1
            if following is not None:
                followed.followers.pop(following, None)
            if not followed.joining:
                del self._tenants[tenant]
                self._channels.close([self._ledger.news_channel(tenant)])

    async def run(self) -> None:
        """Listen, and look every now and then whether a wake was lost; until cancelled.

        Where one of the two ends by itself, so does the process (`supervision.py`).
        """
        try:
            await run_vital({"news channels": self._channels.run(), "look for news": self._look()})
        finally:
            for reader in self._readers:
                reader.cancel()

    async def _join(self, followed: _Tenant, since: str | None) -> NewsFollowing:
        await self._channels.open([self._ledger.news_channel(followed.name)])
        head = followed.begun_at(followed.head or await self._ledger.news_head(followed.name))
        if since is None:
            first: Note | None = note("begin", cursor=head)
            told, behind = head, False
        elif since == NEWS_START or await self._ledger.has_news(followed.name, since):
            first, told, behind = None, since, True
        else:
            oldest = await self._ledger.news(followed.name, after=NEWS_START, limit=1)
            old = not oldest or place_key(since) < place_key(oldest[0].place)
            first = note("gap", reason=(Gap.LOG_GONE if old else Gap.CURSOR_UNKNOWN).value)
            told, behind = NEWS_START, True

        async def read(after: str) -> tuple[Sequence[NewsUpdate], bool]:
            """What comes behind a place, and whether nothing between was thrown away meanwhile: the place is kept."""
            page = await self._page(followed.name, after)
            return page, after == NEWS_START or await self._ledger.has_news(followed.name, after)

        following = NewsFollowing(
            first, told=told, behind=behind, limit=self._buffer, replays=followed.replays, read=read
        )
        await following.start()
        return following

    async def _page(self, tenant: str, after: str) -> list[NewsUpdate]:
        entries = await self._ledger.news(tenant, after=after, limit=PAGE)
        return [NewsUpdate(entry.place, self._encode(entry)) for entry in entries]

    def _wake(self, channel: str) -> None:
        followed = self._tenants.get(channel.removeprefix(self._prefix))
        if followed is not None:
            self._read(followed)

    def _read(self, followed: _Tenant) -> None:
        followed.behind = True
        if not followed.reading and followed.head is not None:
            followed.reading = True
            reader = asyncio.create_task(self._read_news(followed), name=f"read news {followed.name}")
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)

    async def _read_news(self, followed: _Tenant) -> None:
        """Hand on what is new, for as long as there is more."""
        try:
            while followed.behind and followed.head is not None:
                followed.behind = False
                page = await self._page(followed.name, followed.head)
                for update in page:
                    for following in tuple(followed.followers):
                        following.offer(update)
                    followed.head = update.cursor
                    await asyncio.sleep(0)  # so that followers take what they are told
                followed.behind |= len(page) == PAGE
        except DarkroomError as error:
            _log.warning("news_not_read", tenant=followed.name, error=error.detail)  # the next look reads it
        finally:
            followed.reading = False

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            for followed in self._tenants.values():
                self._read(followed)

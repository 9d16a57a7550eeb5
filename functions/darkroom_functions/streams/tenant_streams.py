"""The streams of tenants as a source: all entries of a tenant's job logs, without progress, in one order.

The ledger writes them beside the job logs (`append_to_tenant_stream` in `lua/prelude.lua`), keeps the last 10,000 or
so, and publishes a wake on a channel: the entries are then read once for all clients. A client begins now, with a
`begin` that has the present cursor, or after the cursor of the last message that it has. Where that entry is no longer
kept, it receives a gap and then all entries that are.

A client with a cursor reads up to 10,000 earlier entries: a replay, which costs 0.15 s of processor time or more.
Replays of one tenant therefore alternate page by page, so that other requests are served in between, and a new one is
refused while too many wait. The first page needs no turn: a client that reconnects and missed little is never refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from darkroom.errors import NotFound, TooManyReplays
from darkroom.ledger import reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import StreamEntry

from darkroom_functions.streams.cursors import STREAM_START, Cursor, Position, entry_id, position_of
from darkroom_functions.streams.feed import PAGE, Start
from darkroom_functions.streams.messages import ControlMessage, GapReason, StreamMessage, Update, control, gap

REPLAYS_AT_A_TIME = 2
"""Pages of earlier entries that a process reads at a time for one tenant: one is read while another is sent."""

REPLAYS_WAITING = 16
"""Replays that may wait for their next page. Each waits for some 16 pages at most, which take about 30 ms; 16 whole
replays take about three seconds of one processor.
"""

RETRY_REPLAY_S = 5
"""When a client that was refused may try again: the waiting replays have finished by then, if their clients read."""


class TenantStreams:
    """The streams of tenants, by tenant. `encode` returns the text of an entry."""

    kind = "tenant"

    def __init__(self, ledger: AsyncLedger, *, encode: Callable[[StreamEntry], str]) -> None:
        self._ledger = ledger
        self._encode = encode
        self._replays: WeakValueDictionary[str, _Replays] = WeakValueDictionary()

    def channel(self, name: str) -> str:
        return self._ledger.keys.tenant_stream(name)

    def decode(self, name: str, payload: bytes) -> Update | None:
        return None

    async def ends(self, names: Collection[str], *, tenant: str) -> Mapping[str, Update]:
        """Streams do not end. Raises NotFound for that of another tenant."""
        if unknown := set(names) - {tenant}:
            raise NotFound(f"there is no stream of {', '.join(sorted(unknown))}")
        return {}

    async def starts(
        self, names: Collection[str], *, ends: Mapping[str, Update], since: Mapping[str, Cursor]
    ) -> Mapping[str, Start]:
        """The position of each cursor, with the first page after it. Raises TooManyReplays where no more may begin."""
        return {name: await self._start(name, since.get(name)) for name in names}

    async def read(self, name: str, after: Position) -> Sequence[Update]:
        entries = await reads.tenant_stream(self._ledger, name, after=entry_id(after), limit=PAGE)
        return [Update(name, position_of(entry.position), entry.position, self._encode(entry)) for entry in entries]

    async def read_page(self, name: str, after: Position) -> Sequence[StreamMessage]:
        """As `read`, in turn with the other replays of the tenant."""
        async with self._replays_of(name).turn():
            page = await self.read(name, after)
            return page if await self._is_kept(name, after) else [gap(GapReason.LOG_GONE), *page]

    async def newest(self, names: Sequence[str]) -> Mapping[str, Update]:
        return {}

    async def _start(self, tenant: str, cursor: Cursor | None) -> Start:
        head = position_of(await reads.stream_head(self._ledger, tenant))
        if cursor is None or cursor.position is None:
            return Start([control("begin", cursor=entry_id(head))], position=head, head=head)
        before: list[ControlMessage] = []
        after = cursor.position
        page = await self.read(tenant, after)
        if not await self._is_kept(tenant, after):
            page = await self.read(tenant, STREAM_START)
            is_older = not page or after < page[0].position
            before = [gap(GapReason.LOG_GONE if is_older else GapReason.CURSOR_UNKNOWN)]
            after = STREAM_START
        position = page[-1].position if len(page) == PAGE else max([head, *(update.position for update in page)])
        if position < head:
            self._replays_of(tenant).admit()
        return Start([*before, *page], position=position, head=head)

    async def _is_kept(self, tenant: str, position: Position) -> bool:
        """Whether no entry after this position was dropped."""
        return position == STREAM_START or await reads.has_stream_entry(self._ledger, tenant, entry_id(position))

    def _replays_of(self, tenant: str) -> _Replays:
        replays = self._replays.get(tenant)
        if replays is None:
            replays = self._replays[tenant] = _Replays()
        return replays


class _Replays:
    """The replays of one tenant in this process. Each reads one page per turn, in the order in which they ask.

    The bound is per tenant, not per address: behind the gateway and Knative's proxies every connection has the proxy's
    address, and a client may send any `X-Forwarded-For`. The gateway limits what one address may open.
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

"""The follower with a source in memory: what cannot be provoked from outside, in the moments around a subscription."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import pytest
from darkroom.ledger.connection import connect_async
from darkroom_functions.streams.cursors import Cursor, Position
from darkroom_functions.streams.feed import Feed, Start
from darkroom_functions.streams.follower import Follower
from darkroom_functions.streams.messages import StreamMessage, Update

DEADLINE_S = 60.0
LOG = "log"


class MemorySource:
    """Logs whose entries are numbers. `before_start` runs after the newest entry was read, before the start returns."""

    kind = "log"

    def __init__(self, namespace: str, client: Any) -> None:
        self._namespace = namespace
        self._client = client
        self.size = 0
        self.reads = 0
        self.before_start: Callable[[], Awaitable[None]] | None = None

    async def write(self, *, publish: bool = True, payload: bytes | None = None) -> None:
        """Append an entry, and publish it; with a payload of b"" only a wake."""
        self.size += 1
        if publish:
            await self._client.publish(self.channel(LOG), f"{self.size}" if payload is None else payload)

    def channel(self, name: str) -> str:
        return f"{self._namespace}:{name}"

    def decode(self, name: str, payload: bytes) -> Update | None:
        return _entry(int(payload)) if payload else None

    async def ends(self, names: Collection[str], *, tenant: str) -> Mapping[str, Update]:
        return {}

    async def starts(
        self, names: Collection[str], *, ends: Mapping[str, Update], since: Mapping[str, Cursor]
    ) -> Mapping[str, Start]:
        head = (0, self.size)
        cursor = since.get(LOG)
        position = head if cursor is None or cursor.position is None else cursor.position
        if self.before_start is not None:
            await self.before_start()
        return {LOG: Start((), position=position, head=head)}

    async def read(self, name: str, after: Position) -> Sequence[Update]:
        self.reads += 1
        return [_entry(number) for number in range(after[1] + 1, self.size + 1)]

    async def read_page(self, name: str, after: Position) -> Sequence[StreamMessage]:
        return await self.read(name, after)

    async def newest(self, names: Sequence[str]) -> Mapping[str, Update]:
        return {LOG: _entry(self.size)} if self.size else {}


def _entry(number: int) -> Update:
    return Update(LOG, (0, number), str(number), str(number))


@pytest.fixture
async def memory(redis_url: str, namespace: str) -> AsyncIterator[MemorySource]:
    client = connect_async(redis_url)
    yield MemorySource(namespace, client)
    await client.aclose()


@pytest.fixture
async def follower(redis_url: str, memory: MemorySource) -> AsyncIterator[Follower]:
    """One that does not compare by itself while a test runs."""
    client = connect_async(redis_url)
    follower = Follower(memory, client, buffer=100, check_interval_s=10 * DEADLINE_S)
    running = asyncio.create_task(follower.run())
    yield follower
    running.cancel()
    await asyncio.wait([running])
    await client.aclose()


async def received(feed: Feed, count: int) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [int((await feed.take()).text) for _ in range(count)]


@pytest.mark.parametrize("payload", [None, b""], ids=["entries", "wakes"])
async def test_an_entry_that_is_published_while_a_client_subscribes_is_received(
    follower: Follower, memory: MemorySource, payload: bytes | None
) -> None:
    async def publish() -> None:
        await memory.write(payload=payload)
        await asyncio.sleep(0.1)  # so that it arrives before the client has begun

    memory.before_start = publish
    async with follower.follow([LOG], tenant="any") as feed:
        assert await received(feed, 1) == [1]


@pytest.mark.parametrize("payload", [None, b""], ids=["entries", "wakes"])
async def test_clients_that_join_at_different_times_receive_each_entry_once(
    follower: Follower, memory: MemorySource, payload: bytes | None
) -> None:
    async def publish() -> None:
        await memory.write(payload=payload)

    async with follower.follow([LOG], tenant="any") as first:
        memory.before_start = publish
        start = Cursor((0, 0))
        async with (
            follower.follow([LOG], tenant="any") as second,
            follower.follow([LOG], tenant="any", since={LOG: start}) as third,
        ):
            await memory.write(payload=payload)
            assert await received(first, 3) == [1, 2, 3]
            assert await received(second, 3) == [1, 2, 3]
            assert await received(third, 3) == [1, 2, 3]


async def test_an_entry_that_was_not_published_is_read_when_the_next_one_is(
    follower: Follower, memory: MemorySource
) -> None:
    async with follower.follow([LOG], tenant="any") as feed:
        await memory.write(publish=False)
        await memory.write()
        assert await received(feed, 2) == [1, 2]


async def test_a_log_is_read_once_for_all_clients(follower: Follower, memory: MemorySource) -> None:
    async with (
        follower.follow([LOG], tenant="any") as one,
        follower.follow([LOG], tenant="any") as other,
    ):
        await memory.write(payload=b"")
        assert await received(one, 1) == await received(other, 1) == [1]
    assert memory.reads == 1

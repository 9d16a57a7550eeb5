"""Channels, on a real Redis: what is said after `open` is heard, over lost connections too."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from darkroom.errors import LedgerUnavailable
from darkroom.ledger.channels import Channels
from darkroom.ledger.connection import connect_async

from tests.redis_server import RedisKind, RedisServer, needed_binary

DEADLINE_S = 60.0


class Ear:
    """Hears channels, and notes what it heard."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.confirmed: list[str] = []
        self.channels = Channels(
            client, heard=lambda name, payload: self.messages.append((name, payload)), confirmed=self.confirmed.append
        )


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[tuple[Ear, Any]]:
    """An ear, and a client to speak with."""
    client = connect_async(url)
    ear = Ear(client)
    running = asyncio.create_task(ear.channels.run())
    try:
        yield ear, client
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await client.aclose()


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {DEADLINE_S} s for this: {what}") from None


@pytest.fixture
def name() -> str:
    """A channel that no other test knows."""
    return f"c-{secrets.token_hex(8)}"


async def test_what_is_said_after_open_is_heard(any_redis_url: str, name: str) -> None:
    async with listening(any_redis_url) as (ear, client):
        await ear.channels.open([name])
        assert await client.publish(name, "one") == 1
        await client.publish(name, "two")
        await until(lambda: len(ear.messages) == 2, "two messages")
        assert ear.messages == [(name, b"one"), (name, b"two")]


async def test_a_closed_channel_is_heard_no_more(redis_url: str, name: str) -> None:
    async with listening(redis_url) as (ear, client):
        await ear.channels.open([name, f"{name}-other"])
        ear.channels.close([name])
        await ear.channels.open([f"{name}-third"])
        assert await client.publish(name, "lost") == 0
        assert await client.publish(f"{name}-other", "heard") == 1
        await until(lambda: ear.messages == [(f"{name}-other", b"heard")], "the other channel's message")


async def test_a_channel_that_is_opened_again_at_once_is_confirmed_only_when_redis_has_done_it(
    redis_url: str, name: str
) -> None:
    async with listening(redis_url) as (ear, client):
        for _ in range(50):
            opening = asyncio.create_task(ear.channels.open([name]))
            await asyncio.sleep(0)
            ear.channels.close([name])
            await ear.channels.open([name])
            assert await client.publish(name, "x") == 1
            ear.channels.close([name])
            opening.cancel()


async def test_many_may_wait_for_one_channel(redis_url: str, name: str) -> None:
    async with listening(redis_url) as (ear, client):
        await asyncio.gather(*(ear.channels.open([name]) for _ in range(20)))
        assert ear.confirmed == [name]
        assert await client.publish(name, "x") == 1


async def test_a_lost_connection_is_made_anew_with_all_its_channels(redis_url: str, name: str) -> None:
    names = [f"{name}-{number}" for number in range(2500)]
    async with listening(redis_url) as (ear, client):
        await ear.channels.open(names)
        ear.confirmed.clear()
        await client.client_kill_filter(_type="pubsub", skipme=True)
        await until(lambda: len(ear.confirmed) == len(names), "all channels to be confirmed again")
        assert await client.publish(names[-1], "x") == 1
        await until(lambda: ear.messages == [(names[-1], b"x")], "the message")


async def test_a_channel_that_is_opened_while_redis_is_away_is_heard_when_it_is_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.ledger.channels.OPEN_PATIENCE_S", 0.2)
    binary = needed_binary(RedisKind.EMBEDDED)
    server = RedisServer(binary, tmp_path)
    async with listening(server.url) as (ear, client):
        with pytest.raises(LedgerUnavailable):
            await ear.channels.open([name])
        server.start()
        try:
            await until(lambda: ear.confirmed == [name], "the channel to be confirmed")
            assert await client.publish(name, "x") == 1
            await until(lambda: ear.messages == [(name, b"x")], "the message")
        finally:
            server.stop()


async def test_a_redis_that_hangs_is_left_for_a_new_connection(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection over which nothing comes, not even the answer to a ping, is closed."""
    monkeypatch.setattr("darkroom.ledger.channels.SILENCE_S", 0.2)
    binary = needed_binary(RedisKind.EMBEDDED)
    server = RedisServer(binary, tmp_path)
    server.start()
    try:
        async with listening(server.url) as (ear, client):
            await ear.channels.open([name])
            await client.client_pause(3000)
            await until(lambda: len(ear.confirmed) == 2, "the channel to be confirmed again")
            assert await client.publish(name, "x") == 1
    finally:
        server.stop()


async def test_a_listener_that_fails_makes_nobody_deaf(redis_url: str, name: str) -> None:
    heard: list[bytes] = []

    def hear(_name: str, payload: bytes) -> None:
        if payload == b"bad":
            raise ValueError(payload)
        heard.append(payload)

    confirmed: list[str] = []
    client: Any = connect_async(redis_url)
    channels = Channels(client, heard=hear, confirmed=confirmed.append)
    running = asyncio.create_task(channels.run())
    try:
        await channels.open([name])
        await client.publish(name, "bad")
        await until(lambda: len(confirmed) == 2, "the channel to be confirmed again")
        await client.publish(name, "good")
        await until(lambda: heard == [b"good"], "the next message")
    finally:
        running.cancel()
        await asyncio.wait([running])
        await client.aclose()


@pytest.mark.parametrize("end", ["_speak", "_listen"])
async def test_a_connection_that_is_only_half_served_is_made_anew(redis_url: str, name: str, end: str) -> None:
    """Messages go on coming, so that the silence of the speaker would never be noticed."""
    async with listening(redis_url) as (ear, _):
        await ear.channels.open([name])
        (task,) = (task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == end)
        task.cancel()
        await until(lambda: len(ear.confirmed) == 2, "the channel to be confirmed again")
        await ear.channels.open([f"{name}-other"])


@pytest.mark.parametrize("steps", range(5))
async def test_who_is_told_to_end_while_it_speaks_ends(redis_url: str, name: str, steps: int) -> None:
    """The last socket of a process leaves its channel just as the process is told to end."""
    client = connect_async(redis_url)
    ear = Ear(client)
    running = asyncio.create_task(ear.channels.run())
    await ear.channels.open([name])
    ear.channels.close([name])
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    _, late = await asyncio.wait([running], timeout=DEADLINE_S)
    await client.aclose()
    assert not late

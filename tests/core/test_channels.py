"""Channels, on a real Redis: messages published after `open` are received, over lost connections too."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis.asyncio
from darkroom.errors import LedgerUnavailable
from darkroom.ledger import channels
from darkroom.ledger.channels import Channels
from darkroom.ledger.connection import connect_async
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.redis_server import RedisKind, RedisServer, needed_binary

DEADLINE_S = 60.0


class Receiver:
    """Subscribes to channels, and records what it receives."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.confirmed: list[str] = []
        self.channels = Channels(
            client,
            on_message=lambda name, payload: self.messages.append((name, payload)),
            on_subscribed=self.confirmed.append,
        )


@asynccontextmanager
async def receiving(url: str) -> AsyncIterator[tuple[Receiver, Any]]:
    """A receiver, and a client to publish with."""
    client = connect_async(url)
    receiver = Receiver(client)
    running = asyncio.create_task(receiver.channels.run())
    try:
        yield receiver, client
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


async def test_a_message_published_after_open_is_received(any_redis_url: str, name: str) -> None:
    async with receiving(any_redis_url) as (receiver, client):
        await receiver.channels.open([name])
        assert await client.publish(name, "one") == 1
        await client.publish(name, "two")
        await until(lambda: len(receiver.messages) == 2, "two messages")
        assert receiver.messages == [(name, b"one"), (name, b"two")]


async def test_a_connection_that_succeeded_ends_the_series_of_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    connects = iter([RedisConnectionError("refused"), RedisConnectionError("refused"), None])
    counted: list[int] = []

    class Connection:
        async def connect(self) -> None:
            if error := next(connects):
                raise error

        async def read_response(self, **_: object) -> None:
            raise RedisConnectionError("lost")

        async def disconnect(self, *, nowait: bool) -> None:
            """Nothing is open."""

    class Counting:
        def after(self, failures: int) -> float:
            counted.append(failures)
            return 0.0 if len(counted) < 3 else DEADLINE_S

    monkeypatch.setattr(channels, "BACKOFF", Counting())
    client: Any = SimpleNamespace(connection_pool=SimpleNamespace(make_connection=Connection))
    running = asyncio.create_task(Receiver(client).channels.run())
    await until(lambda: len(counted) == 3, "three failures")
    running.cancel()
    assert counted == [1, 2, 1]


async def test_a_closed_channel_receives_no_messages(redis_url: str, name: str) -> None:
    async with receiving(redis_url) as (receiver, client):
        await receiver.channels.open([name, f"{name}-other"])
        receiver.channels.close([name])
        await receiver.channels.open([f"{name}-third"])
        assert await client.publish(name, "lost") == 0
        assert await client.publish(f"{name}-other", "received") == 1
        await until(lambda: receiver.messages == [(f"{name}-other", b"received")], "the other channel's message")


async def test_a_channel_that_is_opened_again_at_once_is_confirmed_only_after_redis_has(
    redis_url: str, name: str
) -> None:
    async with receiving(redis_url) as (receiver, client):
        for _ in range(50):
            opening = asyncio.create_task(receiver.channels.open([name]))
            await asyncio.sleep(0)
            receiver.channels.close([name])
            await receiver.channels.open([name])
            assert await client.publish(name, "x") == 1
            receiver.channels.close([name])
            opening.cancel()


async def test_concurrent_calls_can_open_the_same_channel(redis_url: str, name: str) -> None:
    async with receiving(redis_url) as (receiver, client):
        await asyncio.gather(*(receiver.channels.open([name]) for _ in range(20)))
        assert receiver.confirmed == [name]
        assert await client.publish(name, "x") == 1


async def test_a_lost_connection_is_restored_with_all_its_channels(redis_url: str, name: str) -> None:
    names = [f"{name}-{number}" for number in range(2500)]
    async with receiving(redis_url) as (receiver, client):
        await receiver.channels.open(names)
        receiver.confirmed.clear()
        await client.client_kill_filter(_type="pubsub", skipme=True)
        await until(lambda: len(receiver.confirmed) == len(names), "all channels to be confirmed again")
        assert await client.publish(names[-1], "x") == 1
        await until(lambda: receiver.messages == [(names[-1], b"x")], "the message")


async def test_a_channel_opened_while_redis_is_unavailable_receives_messages_afterwards(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.ledger.channels.SUBSCRIBE_TIMEOUT_S", 0.2)
    binary = needed_binary(RedisKind.EMBEDDED)
    server = RedisServer(binary, tmp_path)
    async with receiving(server.url) as (receiver, client):
        with pytest.raises(LedgerUnavailable):
            await receiver.channels.open([name])
        server.start()
        try:
            await until(lambda: receiver.confirmed == [name], "the channel to be confirmed")
            assert await client.publish(name, "x") == 1
            await until(lambda: receiver.messages == [(name, b"x")], "the message")
        finally:
            server.stop()


async def test_a_connection_to_a_redis_that_hangs_is_replaced(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection over which nothing arrives, not even the answer to a ping, is closed."""
    monkeypatch.setattr("darkroom.ledger.channels.SILENCE_S", 0.2)
    binary = needed_binary(RedisKind.EMBEDDED)
    server = RedisServer(binary, tmp_path)
    server.start()
    try:
        async with receiving(server.url) as (receiver, client):
            await receiver.channels.open([name])
            await client.client_pause(3000)
            await until(lambda: len(receiver.confirmed) == 2, "the channel to be confirmed again")
            assert await client.publish(name, "x") == 1
    finally:
        server.stop()


async def test_an_error_in_a_callback_does_not_end_the_subscriptions(redis_url: str, name: str) -> None:
    received: list[bytes] = []

    def receive(_name: str, payload: bytes) -> None:
        if payload == b"bad":
            raise ValueError(payload)
        received.append(payload)

    confirmed: list[str] = []
    client: Any = connect_async(redis_url)
    channels = Channels(client, on_message=receive, on_subscribed=confirmed.append)
    running = asyncio.create_task(channels.run())
    try:
        await channels.open([name])
        await client.publish(name, "bad")
        await until(lambda: len(confirmed) == 2, "the channel to be confirmed again")
        await client.publish(name, "good")
        await until(lambda: received == [b"good"], "the next message")
    finally:
        running.cancel()
        await asyncio.wait([running])
        await client.aclose()


@pytest.mark.parametrize("end", ["_send", "_receive"])
async def test_a_connection_that_only_sends_or_only_receives_is_replaced(redis_url: str, name: str, end: str) -> None:
    """Messages keep arriving, so a sender that has stopped would never be noticed."""
    async with receiving(redis_url) as (receiver, _):
        await receiver.channels.open([name])
        (task,) = (task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == end)
        task.cancel()
        await until(lambda: len(receiver.confirmed) == 2, "the channel to be confirmed again")
        await receiver.channels.open([f"{name}-other"])


@pytest.mark.parametrize("steps", range(5))
async def test_cancelling_while_a_command_is_sent_ends_the_task(redis_url: str, name: str, steps: int) -> None:
    """The last socket of a process closes its channel just as the process is stopped."""
    client = connect_async(redis_url)
    receiver = Receiver(client)
    running = asyncio.create_task(receiver.channels.run())
    await receiver.channels.open([name])
    receiver.channels.close([name])
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    _, late = await asyncio.wait([running], timeout=DEADLINE_S)
    await client.aclose()
    assert not late

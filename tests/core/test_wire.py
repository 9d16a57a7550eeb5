"""Commands over connections to Redis: any failure is a lost connection to the caller, and the command is repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis.asyncio
import uvloop
from darkroom.errors import LedgerUnavailable
from darkroom.ledger.calls import Call
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async, translated
from darkroom.ledger.wire import ask_each, pack
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

from tests.redis_server import RedisServer


def on_uvloop(act: Callable[[redis.asyncio.Redis], Coroutine[Any, Any, None]], url: str) -> None:
    """Run on uvloop, as the functions do."""

    async def run() -> None:
        async with connect_async(url) as client:
            await act(client)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def closed(connection: Any) -> None:
    """Close its transport, as the kernel does when Redis is killed."""
    connection._writer.transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_a_write_on_a_closed_transport_is_a_lost_connection(redis_url: str) -> None:
    async def act(client: redis.asyncio.Redis) -> None:
        connection: Any = client.connection_pool.make_connection()
        await connection.connect()
        await closed(connection)
        with pytest.raises(RedisConnectionError):
            await connection.send_packed_command([pack(("PING",))])
        assert not connection.is_connected

    on_uvloop(act, redis_url)


@pytest.mark.parametrize("in_one_trip", [False, True], ids=["command", "pipeline"])
def test_a_command_is_repeated_when_its_transport_was_closed(redis_url: str, in_one_trip: bool) -> None:
    async def act(client: redis.asyncio.Redis) -> None:
        pool: Any = client.connection_pool
        was_closed = False
        send = pool.connection_class.send_packed_command

        async def close_before(self: Any, *arguments: Any, **options: Any) -> None:
            nonlocal was_closed
            if not was_closed and b"ECHO" in b"".join(arguments[0]):
                was_closed = True
                await closed(self)
            await send(self, *arguments, **options)

        pool.connection_class.send_packed_command = close_before
        if in_one_trip:
            assert await ask_each(client, [("ECHO", "a"), ("ECHO", "b")]) == [b"a", b"b"]
        else:
            assert await client.execute_command("ECHO", "a") == b"a"
        assert was_closed

    on_uvloop(act, redis_url)


def test_a_redis_that_restarts_while_a_script_is_loaded_is_away(own_redis: RedisServer) -> None:
    """EVALSHA, SCRIPT LOAD, and EVALSHA again on a Redis that has restarted in between."""

    class Forgetful(AsyncLedger):
        async def _load(self) -> None:
            await super()._load()
            await self._redis.script_flush()

    async def act(client: redis.asyncio.Redis) -> None:
        ledger, call = Forgetful(client, "any"), Call("read_job", ("job", "any"), lambda reply: reply)
        with pytest.raises(LedgerUnavailable):
            await ledger.run(call)
        (answer,) = await ledger.run_each([call])
        assert isinstance(answer, LedgerUnavailable)

    on_uvloop(act, own_redis.url)


def test_a_reply_that_is_not_redis_protocol_is_unavailable() -> None:
    with pytest.raises(LedgerUnavailable), translated():
        raise InvalidResponse('Protocol error, got "H" as reply type byte')

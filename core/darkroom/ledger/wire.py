"""The wire to Redis: commands and their replies, straight over redis-py's connections.

Every call of the ledger passes here. redis-py's own client looks up callbacks, records telemetry and gets a
connection for each command, and its pipeline packs one argument at a time: together more than half of the cost of a
short call. Its connections are used unchanged: they implement pools, TLS, passwords, timeouts and retries.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

Command = Sequence[str | int | bytes]


def pack(command: Command) -> bytes:
    """The bytes of a command: an array of bulk strings.

    https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
    """
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


class SerialConnection:
    """One connection that is held for many calls, one at a time: threads wait for each other.

    It returns to the client's pool when the line is garbage-collected.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool  # redis-py types its connections in part
        self._connection: Any = None
        self._one_at_a_time = threading.Lock()

    def ask(self, command: Command) -> Any:
        """The reply. A command whose reply was lost is sent again. Raises redis-py's errors."""
        packed = [pack(command)]
        with self._one_at_a_time:
            if self._connection is None:
                self._connection = self._pool.get_connection()
                weakref.finalize(self, self._pool.release, self._connection).atexit = False
            connection = self._connection

            def attempt() -> Any:
                connection.send_packed_command(packed)
                return connection.read_response()

            return connection.retry.call_with_retry(attempt, lambda _error: connection.disconnect())


def propagate_cancellations(pool: redis.asyncio.ConnectionPool) -> None:
    """Make the connections of `pool` propagate every cancellation, also one that arrives while they write.

    redis-py bounds a write by `asyncio.wait_for`, which in Python 3.11 swallows a cancellation that arrives together
    with its result (https://github.com/python/cpython/issues/86296). A cancelled task would then run for ever, and a
    timeout around it would never expire.
    """
    kind: Any = pool.connection_class  # by the address: TCP, TLS or a Unix socket
    pool.connection_class = type(kind.__name__, (_Cancellable, kind), {})


class _Cancellable:
    """Mixed into a connection of redis-py: its write, bounded by `asyncio.timeout`."""

    async def send_packed_command(
        self: Any, command: bytes | str | Iterable[bytes], *, check_health: bool = True
    ) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from None
        except (OSError, RuntimeError) as error:  # of uvloop: "… <TCPTransport closed=True …>; the handler is closed"
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:  # a command may have been sent in part
            await self.disconnect(nowait=True)
            raise


async def ask_each(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    """The replies to all commands, in one round trip; where Redis refused one, its ResponseError stands in its place.

    All are sent again when a reply was lost. Raises redis-py's other errors.
    """
    pool: Any = client.connection_pool
    packed = [b"".join([pack(command) for command in commands])]
    connection = await pool.get_connection()

    async def attempt() -> list[Any]:
        await connection.send_packed_command(packed)
        return [await _reply(connection) for _ in commands]

    async def give_up(_error: Exception) -> None:
        await connection.disconnect()

    try:
        return list(await connection.retry.call_with_retry(attempt, give_up))
    finally:
        await pool.release(connection)


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error

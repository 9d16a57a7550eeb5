"""A proxy to Redis that loses messages of channels: it forwards commands and replies completely and in order.

Redis promises no more of pub/sub: a message is lost where a connection broke in between, or a buffer ran over.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

AGGREGATES = frozenset(b"*>~%")
"""The first bytes of replies that hold others; a map (%) holds two for each that it counts."""


@dataclass
class LossyRedis:
    """The proxy at `url`; it drops `lost` of the published messages."""

    redis_port: int
    lost: float
    seed: int
    port: int = 0
    passed: int = 0
    dropped: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LossyRedis]:
        self._chance = random.Random(self.seed)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self.redis_port)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(_pass_on(reader, to_redis))
                group.create_task(self._answer(from_redis, writer, asking))
        for side in (writer, to_redis):
            side.close()

    async def _answer(self, from_redis: StreamReader, writer: StreamWriter, asking: asyncio.Task[None]) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                reply = await _reply(from_redis)
                if b"\r\nmessage\r\n" in reply[:32]:
                    if self._chance.random() < self.lost:
                        self.dropped += 1
                        continue
                    self.passed += 1
                writer.write(reply)
                await writer.drain()
        asking.cancel()


async def _pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _reply(reader: StreamReader) -> bytes:
    """One whole reply.

    https://redis.io/docs/latest/develop/reference/protocol-spec/
    """
    line = await reader.readuntil(b"\r\n")
    kind = line[0]
    if kind in AGGREGATES:
        count = int(line[1:]) * (2 if kind == ord("%") else 1)
        return line + b"".join([await _reply(reader) for _ in range(count)])
    if kind in b"$=" and int(line[1:]) >= 0:
        return line + await reader.readexactly(int(line[1:]) + 2)
    return line

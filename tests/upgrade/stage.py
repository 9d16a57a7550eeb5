"""Parts for the upgrade tests: processes that can be replaced as Kubernetes replaces pods.

The new one is started and ready before the old one gets its SIGTERM. Services are stable
addresses: a new connection is forwarded to the newest part, and open connections stay where they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx

from tests.gateway.running import Gateway
from tests.parts import Functions, Part
from tests.ports import free_port
from tests.waiting import eventually


class Service:
    """A loopback address that forwards to one port after another."""

    def __init__(self) -> None:
        self.port = 0
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    @property
    def address(self) -> str:
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    await _first(_pass_on(reader, back), _pass_on(there, writer))
                finally:
                    back.close()
        finally:
            self._connections.discard(task)
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()


async def _first(*work: object) -> None:
    """Run all until the first is done: an HTTP connection is over when one side closes it."""
    tasks = [asyncio.ensure_future(each) for each in work]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Courier(Part):
    """A courier with its probes; ready once `start` returns."""

    def __init__(self, *, environment: Mapping[str, str], log: Path) -> None:
        self.port = free_port()
        settings = {**environment, "DARKROOM_PROBE_PORT": str(self.port)}
        super().__init__("darkroom_courier", environment=settings, log=log)

    def start(self) -> None:
        super().start()
        eventually(self._is_ready, what=f"readiness of the courier, whose log is {self.log}")

    def _is_ready(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"it ended: {self.log.read_text()}")
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False


Replaceable = Functions | Courier | Gateway

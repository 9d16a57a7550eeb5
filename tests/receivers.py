"""Webhook receivers: real servers on separate loopback addresses, plain or with TLS, well-behaved or not."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trustme
from darkroom.webhooks.guard import Allow, IpAddress

PORT = 8443
"""An allowed port of public receivers: the receivers differ by address."""

NAME = "hooks.example.com"
DEADLINE_S = 60

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What a receiver writes after it has read a request; then it closes the connection, unless it keeps it alive."""


def answering(raw: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return answer


NO_CONTENT = answering(b"HTTP/1.1 204 No Content\r\n\r\n")


@dataclass
class Receiver:
    """One that runs. `requests` are what it was sent, head and body, `connections` how often it was connected to, and
    `open` how many of these are left.
    """

    address: str
    port: int
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0

    @property
    def ip(self) -> IpAddress:
        return ipaddress.ip_address(self.address)

    @property
    def allow(self) -> Allow:
        return Allow.parse([self.address])


def own_address() -> str:
    """A loopback address that no other test has: all of 127.0.0.0/8 is this machine."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


@asynccontextmanager
async def receiving(answer: Answer = NO_CONTENT, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver that sends this response to each request, at `PORT` of its own address."""
    receiver = Receiver(own_address(), PORT)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.requests.append(await _request(reader))
        await answer(writer)

    async with _listening(receiver, serve, tls=tls):
        yield receiver


@asynccontextmanager
async def silent() -> AsyncIterator[Receiver]:
    """A receiver that accepts connections and never sends a byte, not even of TLS."""
    receiver = Receiver(own_address(), PORT)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass

    async with _listening(receiver, serve, tls=None):
        yield receiver


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _listening(receiver: Receiver, serve: Serve, *, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    serving: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        receiver.connections += 1
        receiver.open += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not reader.at_eof():
                    await serve(reader, writer)
        finally:
            receiver.open -= 1
            serving.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(connected, receiver.address, receiver.port, ssl=tls)
    try:
        yield
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        if serving:
            await asyncio.wait(serving, timeout=DEADLINE_S)


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length:")), 0
    )
    return head + await reader.readexactly(length)


@dataclass
class Names:
    """A resolver that returns the next list at each call; the last one stays. `asked` counts the calls."""

    answers: Sequence[Sequence[IpAddress]]
    asked: int = 0

    async def __call__(self, host: str, port: int) -> Sequence[IpAddress]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if not answer:
            raise OSError(f"{host}: no such name")
        return answer


class Trust:
    """A throwaway certificate authority."""

    def __init__(self) -> None:
        self._authority = trustme.CA()

    def server(self, *names: str) -> ssl.SSLContext:
        """The TLS context of a server with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context

    def server_that_asks(self, *names: str) -> ssl.SSLContext:
        """As `server`, for a server that requests certificates of its clients."""
        context = self.server(*names)
        context.verify_mode = ssl.CERT_REQUIRED
        self._authority.configure_trust(context)
        return context

    @property
    def client(self) -> ssl.SSLContext:
        """The TLS context of a client that trusts only this authority."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context

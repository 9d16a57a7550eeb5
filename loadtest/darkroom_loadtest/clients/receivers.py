"""`python -m darkroom_loadtest.clients.receivers PORT…`: receivers of webhooks, one per port, with minimal overhead.

A post to `/hang` is never answered. Every other delivery is written to standard output as a line: the job in its
`webhook-id`, and the time of complete arrival (ms, monotonic, a clock that all processes of the machine share).
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Sequence

ACCEPTED = b"HTTP/1.1 204 No Content\r\n\r\n"
NOT_ALLOWED = b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_JOB = re.compile(rb"\r\nwebhook-id: *([^:]+):", re.IGNORECASE)


class ReceiverConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        assert self._transport is not None
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            if head.startswith(b"POST /hang"):
                continue
            if job := _JOB.search(head):
                sys.stdout.write(f"{job[1].decode()} {1000 * time.monotonic():.3f}\n")
            self._transport.write(ACCEPTED if head.startswith(b"POST") else NOT_ALLOWED)


async def serve(ports: Sequence[int]) -> None:
    """Serve until the process is killed."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(ReceiverConnection, "127.0.0.1", port)
    while True:
        await asyncio.sleep(0.05)
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve([int(port) for port in sys.argv[1:]]))

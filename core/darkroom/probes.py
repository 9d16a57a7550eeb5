"""The HTTP server of a process that serves nothing else: a cluster's probes and Prometheus ask it by GET.

Courier and worker serve it, each with its own answers (`darkroom_courier/health.py`, `darkroom_worker/probes.py`). It
costs no process, unlike a probe that runs a command. Each connection gets one answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from darkroom.errors import SettingError

REQUEST_TIMEOUT_S = 5.0
REQUEST_MAX_BYTES = 8 * 1024


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    content: bytes
    media_type: str = "application/json"

    @classmethod
    def of(cls, status: int, body: object) -> Answer:
        """An answer whose body is JSON."""
        return cls(status, json.dumps(body).encode())


Answering = Callable[[str], Awaitable[Answer]]
"""Returns the answer for a path."""


def listener(*, host: str, port: int, variable: str) -> socket.socket:
    """A socket that listens there. Raises SettingError, in the name of the variable that has the port."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise SettingError(f"{variable}='{port}': cannot listen on {host}:{port}: {error.strerror or error}") from error


@asynccontextmanager
async def served(answering: Answering, *, listening: socket.socket) -> AsyncIterator[None]:
    """Answer requests while the block runs."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
                path = words[1].partition("?")[0] if len(words) > 1 else ""
                writer.write(_response(await answering(path)))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a prober that went away, or speaks no HTTP
        finally:
            writer.close()

    server = await asyncio.start_server(converse, sock=listening, limit=REQUEST_MAX_BYTES)
    async with server:
        yield


def _response(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {answer.media_type}\r\n"
        f"Content-Length: {len(answer.content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + answer.content

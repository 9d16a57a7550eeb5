"""A client of darkroom with minimal overhead, so that the system is measured and not a client library.

It submits over one persistent connection, and waits on a WebSocket until its job has finished.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from darkroom_loadtest.measurement.rig import BenchmarkFailed

TIMEOUT_S = 30.0
"""Timeout of any response or message; they take milliseconds."""

TERMINAL = frozenset({"completed", "failed", "cancelled"})

TEXT_FRAME = 0x81
"""The first byte of a whole text message (RFC 6455, section 5.2)."""

LENGTH_IN_TWO_BYTES = 126


@dataclass(frozen=True)
class TerminalMessage:
    """The status in a job's last message, and the time of its arrival (`time.perf_counter`)."""

    status: str
    at: float


class JobClient:
    """A context manager; `port` is the functions' port on loopback."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection, self._stream = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._connection.close()

    def submit(self, path: str, body: str) -> str:
        """Submit a job; returns its id."""
        content = body.encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\ncontent-type: application/json\r\n"
        self._connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        status, headers = _head(self._stream)
        answer = json.loads(self._stream.read(int(headers["content-length"])))
        if status != 202:
            raise BenchmarkFailed(f"the submission's response was {status}: {answer}")
        job_id: str = answer["job_id"]
        return job_id

    def await_end(self, job_id: str) -> TerminalMessage:
        """Open a socket for the job, and read it until the job has finished."""
        connection, stream = self._connect()
        with connection, stream:
            key = base64.b64encode(os.urandom(16)).decode()
            connection.sendall(
                f"GET /ws/jobs/{job_id} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\nupgrade: websocket\r\n"
                f"connection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n".encode()
            )
            status, _ = _head(stream)
            if status != 101:
                raise BenchmarkFailed(f"the socket's response was {status}")
            while True:
                message = _message(stream)
                if message.get("status") in TERMINAL:
                    return TerminalMessage(message["status"], time.perf_counter())

    def _connect(self) -> tuple[socket.socket, BinaryIO]:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, cast(BinaryIO, connection.makefile("rb"))


def _head(stream: BinaryIO) -> tuple[int, dict[str, str]]:
    """The status of a response, and its headers by lower-case name."""
    status = int(stream.readline().split()[1])
    headers: dict[str, str] = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return status, headers


def _message(stream: BinaryIO) -> dict[str, Any]:
    """The next message of a socket. The server sends each message as one unmasked frame."""
    kind, size = stream.read(2)
    if size == LENGTH_IN_TWO_BYTES:
        size = int.from_bytes(stream.read(2), "big")
    content = stream.read(size)
    if kind != TEXT_FRAME:
        raise BenchmarkFailed(f"the socket sent a frame of kind {kind:#x}: {content!r}")
    message: dict[str, Any] = json.loads(content)
    return message

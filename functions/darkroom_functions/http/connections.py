"""Limits of connections: the memory and the time that one client can use.

uvicorn limits neither the headers of a request, nor the time in which it arrives, nor the number of connections. It
closes a connection only when everything was sent, however long that takes; and for a client that sends without reading
it buffers responses and fragments without a limit. `serve.py` configures the classes here instead: `Http` and `Socket`
are uvicorn's protocols with limits, `ConnectionLimits` is the state that the connections of a process share.

None of the limits concerns a request that has arrived: long-polls, event streams and sockets have limits of their own
(`wait.py`, `sockets.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import resource
from collections import Counter
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from darkroom.errors import (
    DarkroomError,
    HeadersTooLarge,
    MalformedRequest,
    RequestLineTooLong,
    RequestTimeout,
    TooManyConnections,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets import http11
from websockets.frames import Frame

from darkroom_functions.http.responses import problem

HEADERS_BYTES = 64 * 1024
"""The largest headers of a request, with its first line: twice the longest line at the gateway."""

TARGET_BYTES = 32 * 1024
"""The longest path with its query, as at the gateway."""

ABSOLUTE_TARGET = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
"""A target with a host, which replaces that of `Host` (RFC 9112, section 3.2.2)."""

HEADERS_S = 20.0
"""The time for the headers of a request, from its first byte; for the first request from the connection."""

BODY_S = 20.0
"""The time for a body, in addition to the time of its bytes at `BODY_BYTES_PER_S`."""

BODY_BYTES_PER_S = 4 * 1024
"""The slowest rate: a body of the largest size has 8 minutes."""

FRAMING_PER_BYTE = 8
"""Bytes of chunk sizes for each byte of a body, at most: a chunk of one byte has five. Chunk extensions and trailers,
which are ignored, may have as many as headers."""

LINGER_S = 5.0
"""How long the input of a refused client is read and dropped, so that the client receives the refusal. A guess."""

ANSWERED_S = 30.0
"""The time for the rest of a body after the response to its request."""

UNTAKEN_S = 60.0
"""The time for a client to read some ten kilobytes of a response before its connection is aborted."""

SPARE_FILES = 256
"""File descriptors that are not connections of clients: Redis, the database, artifacts."""

MOST_UNTAKEN_BYTES = 1024 * 1024
"""Pongs that a client has not read, in bytes; other messages wait when there are 64 KiB."""

MOST_FRAGMENTS = 1_000
"""Fragments of one message: of 16 KiB at most, so that these are of 16 bytes each."""

REQUEST_LINE_BYTES = 16 * 1024
"""The longest first line of a request for a socket: a hundred jobs, each with a cursor, all of it percent-encoded, have
10 KiB. The library's own limit is 8 KiB."""

LOOK_EVERY_S = 30
"""The interval of checks of closing connections. One that sent nothing between two checks is aborted. A slow client has
read a third of the kernel's buffer by then, some hundreds of kilobytes, and more was sent."""


class ConnectionLimits(ServerState):
    """The maximum of connections of a process, and the number of refused ones by reason."""

    def __init__(self, *, most: int) -> None:
        super().__init__()
        self.most = most
        self.refused: Counter[str] = Counter()


class Http(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits of a request's size and time, and of the connections of the process."""

    server_state: ConnectionLimits

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._arrived = 0  # requests that arrived completely
        self._in_headers = True
        self._since: float | None = None  # when the headers, or the body, began to arrive
        self._idle_since = 0.0
        self._header_bytes = 0
        self._body_bytes = 0
        self._framing_bytes = 0
        self._answered_at: float | None = None  # when a response was complete before the body of its request
        self._is_over = False  # refused, or upgraded to a WebSocket
        self._timer: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None

    @property
    def is_awaiting_request(self) -> bool:
        """Whether no request is in progress."""
        return self._in_headers and not self._is_answering and not self.transport.is_closing()

    @property
    def idle_since(self) -> float:
        """When the last response was complete, or the connection was made."""
        return self._idle_since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self._since = self.loop.time()
        self._watch()
        if len(self.connections) > self.server_state.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Part of a request. One that is too large, or not HTTP, is refused as soon as that is known."""
        if self._is_over:
            return
        arrived, was_in_headers, body_before = self._arrived, self._in_headers, self._body_bytes
        if was_in_headers and self._since is None:
            self._since = self.loop.time()
        super().data_received(data)
        if self._has_ended():
            return
        if self._arrived > arrived:
            pass  # the end of one request and the beginning of the next in one read, which counts for neither
        elif was_in_headers and self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > HEADERS_BYTES:
                self._refuse(_too_large(len(self.url)))
        elif not was_in_headers:
            self._framing_bytes += len(data) - (self._body_bytes - body_before)
            if self._framing_bytes > HEADERS_BYTES + FRAMING_PER_BYTE * self._body_bytes:
                self._refuse(HeadersTooLarge(f"chunk extensions and trailers must have at most {HEADERS_BYTES} bytes"))
        self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._since is None:
            self._since = self.loop.time()  # it arrived together with the request before it

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # trailers are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEADERS_BYTES or len(self.url) > TARGET_BYTES:
            self._refuse(_too_large(len(self.url)))
        if self._is_over:
            return
        if target := ABSOLUTE_TARGET.match(self.url):
            self.headers[:] = [(name, target[1] if name == b"host" else value) for name, value in self.headers]
        super().on_headers_complete()  # raises where the target is not a path, which is refused
        self._in_headers = False
        self._since = self.loop.time()
        self._body_bytes = self._framing_bytes = 0
        self._answered_at = None

    def on_body(self, body: bytes) -> None:
        if not self._is_over:
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_over:
            self._arrived += 1
            self._in_headers, self._since, self._header_bytes = True, None, 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        if not self._in_headers:
            self._answered_at = self._idle_since
        super().on_response_complete()
        self._watch()

    def handle_websocket_upgrade(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._stop_watching()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest("this is not an HTTP request, or its parts contradict each other"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._untaken = self.loop.call_later(UNTAKEN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _has_ended(self) -> bool:
        return self._is_over or self.transport.is_closing()

    @property
    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _deadline(self) -> float | None:
        """The time by which the headers or the body must have arrived."""
        if self._since is None:
            return None
        if self._in_headers:
            return self._since + HEADERS_S
        deadline = self._since + BODY_S + self._body_bytes / BODY_BYTES_PER_S
        return deadline if self._answered_at is None else min(deadline, self._answered_at + ANSWERED_S)

    def _watch(self) -> None:
        """Run a timer while a request is arriving. The timer checks whether the deadline has moved."""
        deadline = None if self._is_over else self._deadline()
        if deadline is None:
            if not self._is_over:
                self._stop_watching()
        elif self._timer is None or self._timer.when() > deadline:
            self._stop_watching()
            self._timer = self.loop.call_at(deadline, self._look)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused or (self._in_headers and self._is_answering):
            self._since = self.loop.time()  # the server has paused reading
        deadline = self._deadline()
        if deadline is None or deadline > self.loop.time():
            self._watch()
        elif self._in_headers and not self._header_bytes:
            self.transport.close()  # a connection without a request
        else:
            self._refuse(RequestTimeout("the request did not arrive in time"))

    def _make_room(self) -> None:
        """Close the connection that has been idle the longest; refuse this one where none is idle."""
        awaiting = [each for each in self.connections if isinstance(each, Http) and each.is_awaiting_request]
        oldest = min(awaiting, key=lambda each: each.idle_since, default=self)
        fault = TooManyConnections(f"{self.server_state.most} connections are open")
        if oldest is self:
            self._refuse(fault)
        else:
            self.server_state.refused[fault.slug] += 1
            oldest.transport.close()

    def _refuse(self, fault: DarkroomError) -> None:
        """Respond with the problem, unless a response is in progress, and close when the client has had time to read
        it.
        """
        self.server_state.refused[fault.slug] += 1
        self._is_over = True
        self._stop_watching()
        self._unset_keepalive_if_required()
        if self._in_headers:
            was_answered = self._is_answering
        else:
            was_answered = self.cycle.response_started or bool(self.pipeline)  # an earlier response is not complete
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if was_answered or self.transport.is_closing():
            self.transport.close()
            return
        self.flow.resume_reading()
        self.transport.write(_encoded(fault))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with limits of what is buffered for a client."""

    def data_received(self, data: bytes) -> None:
        """The library refuses a request that is too long; uvicorn would not send that response."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_ping(self) -> None:
        """Reply with a pong, as long as the client reads them."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MOST_UNTAKEN_BYTES:
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        """One more fragment of a message. Empty ones do not count in its size."""
        super().handle_cont(event)
        if len(self.frames) > MOST_FRAGMENTS:
            self.transport.abort()


def most_connections(wanted: int) -> int:
    """As many of `wanted` as the limit of file descriptors allows, after raising it where possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


def _too_large(target_bytes: int) -> DarkroomError:
    if target_bytes > TARGET_BYTES:
        return RequestLineTooLong(f"path and query must have at most {TARGET_BYTES} bytes")
    return HeadersTooLarge(f"the headers must have at most {HEADERS_BYTES} bytes")


def _encoded(fault: DarkroomError) -> bytes:
    """The response with which a connection is closed."""
    response = problem(fault)
    lines = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}\r\n".encode()]
    lines += [b"%b: %b\r\n" % header for header in (*response.raw_headers, (b"connection", b"close"))]
    return b"".join([*lines, b"\r\n", bytes(response.body)])


def take_long_requests() -> None:
    """Allow requests for sockets of `REQUEST_LINE_BYTES`; the library has a constant for it."""
    http11.MAX_LINE_LENGTH = REQUEST_LINE_BYTES


def cut_off(connections: Iterable[Any], waiting: Mapping[Any, int]) -> dict[Any, int]:
    """Abort closing connections that sent nothing since the last check, which returned `waiting`.

    Returns the number of bytes that each closing connection still has to send. `connections` are uvicorn's.
    """
    now = {
        each: each.transport.get_write_buffer_size()
        for each in connections
        if each.transport is not None and each.transport.is_closing()
    }
    for each, left in now.items():
        if left >= waiting.get(each, math.inf):
            each.transport.abort()
    return now


def without_query(record: logging.LogRecord) -> bool:
    """A filter that removes the query from the addresses of sockets, which uvicorn logs: it may contain a ticket."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            each.partition("?")[0] if isinstance(each, str) and each.startswith("/") else each for each in record.args
        )
    return True

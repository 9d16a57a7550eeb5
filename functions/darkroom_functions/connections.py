"""Connections: an end for those whose client sends, and takes nothing of what it is told.

uvicorn closes a connection by waiting until all that was written has been taken, however long that is; and a client
that sends without reading makes it keep answers, or fragments, without a bound. A request that is too long for it gets
no answer. `serve.py` puts this in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11
from websockets.frames import Frame

MOST_UNTAKEN_BYTES = 1024 * 1024
"""Answers to protocol pings that a client has not taken; what it is told otherwise waits when there are 64 KiB."""

MOST_FRAGMENTS = 1_000
"""Fragments of one message: of 16 KiB at most, so that these are of 16 bytes each."""

REQUEST_LINE_BYTES = 16 * 1024
"""The longest first line of a request for a socket: a hundred jobs, each with a cursor, all of it percent-encoded, have
10 KiB. The library's own limit is 8 KiB."""

LOOK_EVERY_S = 30
"""A connection that is closing, and of which nothing was taken between two looks, is cut. A client with a slow line has
taken a third of what the kernel keeps for it by then, some hundreds of kilobytes, and more is written."""


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with bounds to what a client can make it keep."""

    def data_received(self, data: bytes) -> None:
        """A request that is too long is refused by the library; uvicorn would leave its client without that answer."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_ping(self) -> None:
        """Answered, as long as the answers are taken."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MOST_UNTAKEN_BYTES:
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        """One more fragment of a message. Empty ones count for nothing in its size."""
        super().handle_cont(event)
        if len(self.frames) > MOST_FRAGMENTS:
            self.transport.abort()


def take_long_requests() -> None:
    """Let requests for sockets be as long as `REQUEST_LINE_BYTES`: for the library that is a constant."""
    http11.MAX_LINE_LENGTH = REQUEST_LINE_BYTES


def cut_off(connections: Iterable[Any], waiting: Mapping[Any, int]) -> dict[Any, int]:
    """Cut those that are closing, and of which nothing was taken since the last look, which answered `waiting`.

    Answers how many bytes each connection that is closing still has to write. `connections` are uvicorn's.
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

"""A process that holds thousands of WebSockets and counts their messages with minimal overhead.

`bench/broadcast.py` starts it, writes a command as a line of JSON and reads a line in response. One thread polls all
sockets. Frames are counted and never decoded, since the server sends each message as one unmasked frame (RFC 6455,
section 5.2). Between commands it continues to receive, and answers the server's pings.

| command | the condition for the response |
|---|---|
| `{"open": PORT, "paths": […], "times": T}` | a socket is open at each path; with T, arrival times are recorded |
| `{"until": N, "limit_s": S}` | every socket has received N messages since it was opened |
| `{"close": true}` | all sockets are closed |

Every response is a `SubscriberReport`.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CONNECT_TIMEOUT_S = 30.0
"""For one socket, which takes a millisecond or two."""

RECEIVED_AT_ONCE = 16 * 1024
"""Bytes, enough for sixty messages. A much larger buffer would map new memory for each read."""

POLL_PAUSE_S = 0.001
"""Pause between two polls: messages that arrive meanwhile are read together, and the server's writes wake no process.
Also the largest error of a recorded time."""

SPARE_FILES = 64
"""An upper bound of the other files that the process has open."""

TEXT, CLOSE, PING = 0x81, 0x88, 0x89
MASKED = 0x80
LENGTH_IN_TWO_BYTES = 126
LENGTH_IN_EIGHT_BYTES = 127

PONG = 0x8A
NO_MASK = bytes(4)
"""A client's frames must be masked; this mask leaves the content unchanged."""

HEAD_END = b"\r\n\r\n"


@dataclass
class SubscriberReport:
    """The response to a command. Times are of `time.perf_counter`, which all processes share on Linux.

    `lost` counts sockets that the server closed since the last command, `late` those that did not receive the expected
    messages in time; `ended` is when the command was complete. If times are recorded, `arrived` has, for each message
    since the last report, in order, the arrival times at the sockets.
    """

    sockets: int
    lost: int
    late: int
    ended: float
    arrived: list[list[float]] = field(default_factory=list)


class Subscriber:
    """One socket: the number of its messages, and an incomplete frame."""

    __slots__ = ("received", "rest", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = 0
        self.rest = b""


class Subscribers:
    """All sockets, and the command loop."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._subscribers: dict[int, Subscriber] = {}
        self._lost = 0
        self._until = 0
        self._behind = 0  # sockets with fewer than `_until` messages
        self._arrived: dict[int, list[float]] = {}
        self._records_times = False

    def run(self) -> None:
        """Run until standard input is closed."""
        commands = sys.stdin.fileno()
        buffer = b""
        self._epoll.register(commands, select.EPOLLIN)
        while True:
            self._wait(1.0)
            if not select.select([commands], [], [], 0)[0]:
                continue
            data = os.read(commands, RECEIVED_AT_ONCE)
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                print(json.dumps(asdict(self._execute(json.loads(line)))), flush=True)

    def _execute(self, command: dict[str, Any]) -> SubscriberReport:
        if "open" in command:
            self._records_times = command["times"]
            self._open(command["open"], command["paths"])
        elif "until" in command:
            self._wait_for(command["until"], time.perf_counter() + command["limit_s"])
        else:
            self._close()
        ended = time.perf_counter()
        arrived = [self._arrived[number] for number in sorted(self._arrived)]
        self._arrived.clear()
        lost, self._lost = self._lost, 0
        late, self._behind = self._behind, 0
        return SubscriberReport(len(self._subscribers), lost, late, ended, arrived)

    def _open(self, port: int, paths: Sequence[str]) -> None:
        for path in paths:
            connection = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_TIMEOUT_S)
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
                "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            received = b""
            while HEAD_END not in received:
                data = connection.recv(4096)
                if not data:
                    raise ConnectionError(f"the server closed after {received!r}")
                received += data
            head, _, frames = received.partition(HEAD_END)
            if not head.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"the socket's response was {head!r}")
            connection.setblocking(False)
            subscriber = self._subscribers[connection.fileno()] = Subscriber(connection)
            self._epoll.register(connection.fileno(), select.EPOLLIN)
            self._count(subscriber, frames)
            self._wait(0)

    def _wait_for(self, until: int, deadline: float) -> None:
        self._until = until
        self._behind = sum(subscriber.received < until for subscriber in self._subscribers.values())
        while self._behind > 0 and time.perf_counter() < deadline:
            time.sleep(POLL_PAUSE_S)
            self._wait(0.1)

    def _close(self) -> None:
        for number, subscriber in self._subscribers.items():
            self._epoll.unregister(number)
            subscriber.socket.close()
        self._subscribers.clear()

    def _wait(self, limit_s: float) -> None:
        """Receive what has arrived, or the first message."""
        for number, _ in self._epoll.poll(limit_s, len(self._subscribers) + 1):
            subscriber = self._subscribers.get(number)
            if subscriber is not None:
                self._receive(subscriber)

    def _receive(self, subscriber: Subscriber) -> None:
        try:
            data = subscriber.socket.recv(RECEIVED_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._count(subscriber, subscriber.rest + data if subscriber.rest else data)
        else:
            self._lose(subscriber)

    def _count(self, subscriber: Subscriber, frames: bytes) -> None:
        """Count the messages in `frames`."""
        now = time.perf_counter()
        at, end = 0, len(frames)
        while at + 2 <= end:
            start, size = at + 2, frames[at + 1]
            if size == LENGTH_IN_TWO_BYTES:
                start, size = at + 4, int.from_bytes(frames[at + 2 : at + 4], "big")
            elif size == LENGTH_IN_EIGHT_BYTES:
                start, size = at + 10, int.from_bytes(frames[at + 2 : at + 10], "big")
            if start + size > end:
                break
            kind = frames[at]
            if kind == TEXT:
                subscriber.received += 1
                if self._records_times:
                    self._arrived.setdefault(subscriber.received, []).append(now)
                if subscriber.received == self._until:
                    self._behind -= 1
            elif kind == PING:
                subscriber.socket.send(bytes([PONG, MASKED | size]) + NO_MASK + frames[start : start + size])
            elif kind == CLOSE:
                self._lose(subscriber)
                return
            at = start + size
        subscriber.rest = frames[at:]

    def _lose(self, subscriber: Subscriber) -> None:
        """Remove a socket that the server closed, which fails the measurement."""
        number = subscriber.socket.fileno()
        if number not in self._subscribers:
            return
        self._epoll.unregister(number)
        subscriber.socket.close()
        del self._subscribers[number]
        self._lost += 1
        self._behind -= subscriber.received < self._until


def allow_sockets(count: int) -> bool:
    """Raise the limit of open files for this process and its children; False if the machine's limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


if __name__ == "__main__":
    Subscribers().run()

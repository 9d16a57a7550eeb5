"""The crowd: a process that holds thousands of WebSockets and takes what they are told, as cheaply as Python can.

`bench_broadcast` starts it, says a line of JSON and reads one in answer. One thread waits on all sockets at once;
frames are walked over and never decoded, since the server sends each message as one frame and masks none (RFC 6455,
section 5.2). Between commands it goes on taking, and answers the server's pings.

| said | answered, once it is so |
|---|---|
| `{"open": PORT, "paths": […], "times": T}` | a socket is open at each of the paths; where T, times are noted |
| `{"until": N, "limit_s": S}` | every socket has had N messages since it was opened |
| `{"close": true}` | none is open any more |

Every answer is a `Report`.
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

CONNECT_LIMIT_S = 30.0
"""For one socket; it takes a millisecond or two."""

RECEIVED_AT_ONCE = 16 * 1024
"""Bytes: room for sixty messages of ours. Much more would be a new mapping of memory for each read."""

NAP_S = 0.001
"""Between two looks at the sockets: what has come by then is taken in one go, and no write of the server has to wake
anybody. A time that is noted is late by so much at most."""

SPARE_FILES = 64
"""What the process has open beside its sockets, and then some."""

TEXT, CLOSE, PING = 0x81, 0x88, 0x89
MASKED = 0x80
LENGTH_IN_TWO_BYTES = 126
LENGTH_IN_EIGHT_BYTES = 127

PONG = 0x8A
NO_MASK = bytes(4)
"""A client's frames must be masked; with this one the content stays as it is."""

HEAD_END = b"\r\n\r\n"


@dataclass
class Report:
    """What the crowd saw. Times are of `time.perf_counter`, which is one for all processes on Linux.

    `lost` are sockets that the server closed since the last command, `late` those that have not had what was waited
    for; `ended` is when the command was carried out. Where times were noted, `arrived` has a list for each message
    since the last report, in order, of when the sockets got it.
    """

    sockets: int
    lost: int
    late: int
    ended: float
    arrived: list[list[float]] = field(default_factory=list)


class Subscriber:
    """One socket: how many messages it had, and the beginning of a frame whose end has not come yet."""

    __slots__ = ("rest", "socket", "taken")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.taken = 0
        self.rest = b""


class Crowd:
    """All sockets, and whoever commands them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._subscribers: dict[int, Subscriber] = {}
        self._lost = 0
        self._until = 0
        self._behind = 0  # sockets that have had fewer than `_until` messages
        self._arrived: dict[int, list[float]] = {}
        self._notes_times = False

    def run(self) -> None:
        """Until there is nobody to command it."""
        commands = sys.stdin.fileno()
        said = b""
        self._epoll.register(commands, select.EPOLLIN)
        while True:
            self._wait(1.0)
            if not select.select([commands], [], [], 0)[0]:
                continue
            heard = os.read(commands, RECEIVED_AT_ONCE)
            if not heard:
                return
            said += heard
            while b"\n" in said:
                line, _, said = said.partition(b"\n")
                print(json.dumps(asdict(self._obey(json.loads(line)))), flush=True)

    def _obey(self, command: dict[str, Any]) -> Report:
        if "open" in command:
            self._notes_times = command["times"]
            self._open(command["open"], command["paths"])
        elif "until" in command:
            self._take(command["until"], time.perf_counter() + command["limit_s"])
        else:
            self._close()
        ended = time.perf_counter()
        arrived = [self._arrived[number] for number in sorted(self._arrived)]
        self._arrived.clear()
        lost, self._lost = self._lost, 0
        late, self._behind = self._behind, 0
        return Report(len(self._subscribers), lost, late, ended, arrived)

    def _open(self, port: int, paths: Sequence[str]) -> None:
        for path in paths:
            connection = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_LIMIT_S)
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
                "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            received = b""
            while HEAD_END not in received:
                heard = connection.recv(4096)
                if not heard:
                    raise ConnectionError(f"the server closed after {received!r}")
                received += heard
            head, _, frames = received.partition(HEAD_END)
            if not head.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"the socket was answered with {head!r}")
            connection.setblocking(False)
            subscriber = self._subscribers[connection.fileno()] = Subscriber(connection)
            self._epoll.register(connection.fileno(), select.EPOLLIN)
            self._walk(subscriber, frames)
            self._wait(0)

    def _take(self, until: int, deadline: float) -> None:
        self._until = until
        self._behind = sum(subscriber.taken < until for subscriber in self._subscribers.values())
        while self._behind > 0 and time.perf_counter() < deadline:
            time.sleep(NAP_S)
            self._wait(0.1)

    def _close(self) -> None:
        for number, subscriber in self._subscribers.items():
            self._epoll.unregister(number)
            subscriber.socket.close()
        self._subscribers.clear()

    def _wait(self, limit_s: float) -> None:
        """Take what has come, or comes first."""
        for number, _ in self._epoll.poll(limit_s, len(self._subscribers) + 1):
            subscriber = self._subscribers.get(number)
            if subscriber is not None:
                self._receive(subscriber)

    def _receive(self, subscriber: Subscriber) -> None:
        try:
            heard = subscriber.socket.recv(RECEIVED_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if heard:
            self._walk(subscriber, subscriber.rest + heard if subscriber.rest else heard)
        else:
            self._lose(subscriber)

    def _walk(self, subscriber: Subscriber, frames: bytes) -> None:
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
                subscriber.taken += 1
                if self._notes_times:
                    self._arrived.setdefault(subscriber.taken, []).append(now)
                if subscriber.taken == self._until:
                    self._behind -= 1
            elif kind == PING:
                subscriber.socket.send(bytes([PONG, MASKED | size]) + NO_MASK + frames[start : start + size])
            elif kind == CLOSE:
                self._lose(subscriber)
                return
            at = start + size
        subscriber.rest = frames[at:]

    def _lose(self, subscriber: Subscriber) -> None:
        """The server has closed it, which is never what is measured."""
        number = subscriber.socket.fileno()
        if number not in self._subscribers:
            return
        self._epoll.unregister(number)
        subscriber.socket.close()
        del self._subscribers[number]
        self._lost += 1
        self._behind -= subscriber.taken < self._until


def allow_sockets(count: int) -> bool:
    """Let this process, and what it starts, have so many sockets open; False where the machine does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


if __name__ == "__main__":
    Crowd().run()

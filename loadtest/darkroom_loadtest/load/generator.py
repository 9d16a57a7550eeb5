"""The load generator: a process of its own that sends one request again and again, over connections that stay open.

`bench_submit` starts it with a `Plan` as JSON and reads an `Outcome`. Two ways of load:

- closed: each connection sends its next request when the answer to the last has come;
- open (`rate`): requests are due at even intervals whatever the server does, and each one's time counts from when it
  was due, so that a server which stalls is charged for those that it held up (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from darkroom_loadtest.bench.figures import percentile

ACCEPTED = b"202"

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length: "


@dataclass(frozen=True)
class Plan:
    """What is sent, and how: `requests` in all, but none after `limit_s` seconds. `rate` is in requests a second."""

    port: int
    path: str
    body: str
    connections: int
    requests: int
    limit_s: float
    rate: float | None = None

    @property
    def request(self) -> bytes:
        """The bytes of one request."""
        content = self.body.encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@dataclass(frozen=True)
class Outcome:
    """What came of it. Times of answers are in milliseconds; `processor_s` is what the generator itself used."""

    answered: int
    refused: int
    seconds: float
    p50_ms: float
    p95_ms: float
    processor_s: float

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds


class Client(asyncio.Protocol):
    """One connection, with one request on its way at most. `done` is called with the status of each answer."""

    def __init__(self, done: Callable[[Client, bytes], None]) -> None:
        self._done = done
        self._transport: Any = None  # uvloop's transports are no kind of asyncio's
        self._received = b""
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes, *, since: float) -> None:
        """Send one; its time counts from `since`."""
        self.since = since
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head_end = received.find(HEAD_END)
        if head_end < 0:
            return
        length = received.lower().index(LENGTH) + len(LENGTH)
        size = int(received[length : received.index(b"\r", length)])
        if len(received) < head_end + len(HEAD_END) + size:
            return
        self._received = b""
        self._done(self, received[9:12])

    def connection_lost(self, _error: Exception | None) -> None:
        if self._received:
            self._done(self, b"")


class Load:
    """One plan as it is carried out."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._request = plan.request
        self._times_ms: list[float] = []
        self._refused = 0
        self._left = plan.requests
        self._on_the_way = 0
        self._idle: list[Client] = []
        self._late: deque[float] = deque()  # when requests were due that no connection was free for
        self._finished = asyncio.Event()

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        clients: list[Client] = []
        for _ in range(self._plan.connections):
            _, client = await loop.create_connection(lambda: Client(self._answered), "127.0.0.1", self._plan.port)
            clients.append(client)
        began = time.perf_counter()
        self._stop_at = began + self._plan.limit_s
        if self._plan.rate is None:
            for client in clients[: self._plan.requests]:
                self._send(client, since=began)
        else:
            self._idle = clients.copy()
            await self._send_at(self._plan.rate, began)
        await asyncio.wait_for(self._finished.wait(), timeout=2 * self._plan.limit_s + 10)
        seconds = time.perf_counter() - began
        for client in clients:
            client.close()
        return Outcome(
            answered=len(self._times_ms),
            refused=self._refused,
            seconds=seconds,
            p50_ms=percentile(self._times_ms, 50),
            p95_ms=percentile(self._times_ms, 95),
            processor_s=time.process_time(),
        )

    async def _send_at(self, rate: float, began: float) -> None:
        total = min(self._plan.requests, int(rate * self._plan.limit_s))
        self._left = total
        for number in range(total):
            due = began + number / rate
            await asyncio.sleep(due - time.perf_counter())
            if self._idle:
                self._send(self._idle.pop(), since=due)
            else:
                self._late.append(due)

    def _send(self, client: Client, *, since: float) -> None:
        self._left -= 1
        self._on_the_way += 1
        client.send(self._request, since=since)

    def _answered(self, client: Client, status: bytes) -> None:
        now = time.perf_counter()
        self._on_the_way -= 1
        self._times_ms.append(1000 * (now - client.since))
        self._refused += status != ACCEPTED
        if self._plan.rate is None:
            if self._left and now < self._stop_at:
                self._send(client, since=now)
            elif not self._on_the_way:
                self._finished.set()
        elif self._late:
            self._send(client, since=self._late.popleft())
        else:
            self._idle.append(client)
            if not (self._left or self._on_the_way):
                self._finished.set()


def main(arguments: Sequence[str]) -> int:
    """Carry out the plan that the one argument is."""
    (plan,) = arguments
    outcome = uvloop.run(Load(Plan(**json.loads(plan))).run())
    print(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The load generator: a process that repeats one request over persistent connections.

`bench/submit.py` starts it with a `RequestPlan` as JSON and reads a `RequestResult`. Where DARKROOM_KEY is set, each
request carries it: other users see the arguments of processes. Two kinds of load:

- closed: each connection sends its next request when the previous one has been answered;
- open (`rate`): requests are due at a constant rate. The latency of a request counts from its due time, so that the
  requests that a stalled server delays are included (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from darkroom_loadtest.measurement.figures import percentile

KEY = "DARKROOM_KEY"

ACCEPTED = b"202"

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length: "


@dataclass(frozen=True)
class RequestPlan:
    """A request to repeat: `requests` in total, none after `limit_s` seconds. `rate` is in requests per second."""

    port: int
    path: str
    body: str
    connections: int
    requests: int
    limit_s: float
    rate: float | None = None

    def request(self, *, key: str | None = None) -> bytes:
        """The bytes of one request."""
        content = self.body.encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        if key is not None:
            head += f"authorization: Bearer {key}\r\n"
        return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@dataclass(frozen=True)
class RequestResult:
    """The result. Latencies are in milliseconds; `processor_s` is the generator's own processor time."""

    answered: int
    refused: int
    seconds: float
    p50_ms: float
    p95_ms: float
    processor_s: float

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds


class Connection(asyncio.Protocol):
    """One connection, with at most one request in flight. `done` is called with the status of each response."""

    def __init__(self, done: Callable[[Connection, bytes], None]) -> None:
        self._done = done
        self._transport: Any = None  # uvloop's transports are not subclasses of asyncio's
        self._received = b""
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes, *, since: float) -> None:
        """Send a request; its latency counts from `since`."""
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


class RequestRun:
    """One run of a plan."""

    def __init__(self, plan: RequestPlan, *, key: str | None = None) -> None:
        self._plan = plan
        self._request = plan.request(key=key)
        self._times_ms: list[float] = []
        self._refused = 0
        self._left = plan.requests
        self._in_flight = 0
        self._idle: list[Connection] = []
        self._late: deque[float] = deque()  # due times of requests that wait for a free connection
        self._finished = asyncio.Event()

    async def run(self) -> RequestResult:
        loop = asyncio.get_running_loop()
        clients: list[Connection] = []
        for _ in range(self._plan.connections):
            _, client = await loop.create_connection(lambda: Connection(self._answered), "127.0.0.1", self._plan.port)
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
        return RequestResult(
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

    def _send(self, client: Connection, *, since: float) -> None:
        self._left -= 1
        self._in_flight += 1
        client.send(self._request, since=since)

    def _answered(self, client: Connection, status: bytes) -> None:
        now = time.perf_counter()
        self._in_flight -= 1
        self._times_ms.append(1000 * (now - client.since))
        self._refused += status != ACCEPTED
        if self._plan.rate is None:
            if self._left and now < self._stop_at:
                self._send(client, since=now)
            elif not self._in_flight:
                self._finished.set()
        elif self._late:
            self._send(client, since=self._late.popleft())
        else:
            self._idle.append(client)
            if not (self._left or self._in_flight):
                self._finished.set()


def main(arguments: Sequence[str]) -> int:
    """Run the plan in the one argument."""
    (plan,) = arguments
    outcome = uvloop.run(RequestRun(RequestPlan(**json.loads(plan)), key=os.environ.get(KEY)).run())
    print(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

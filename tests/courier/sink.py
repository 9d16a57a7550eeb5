"""A sink for the courier: an HTTP server that accepts events, refuses them, or hangs, as a test requires."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import Mode, parse_http

from tests.waiting import DEADLINE_S, eventually

HANG_LIMIT_S = 120
"""A request that hangs ends with the test, or after this."""


@dataclass(frozen=True)
class Answer:
    status: int = 202
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


HANG = Answer(0)
"""No response."""


class Sink:
    """The posted events, in order. `behave` returns the response to each event; the default accepts all."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.headers: list[Mapping[str, str]] = []
        self.behave: Callable[[Event], Answer] = lambda _event: Answer()
        self.busiest = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/broker/default"

    def of(self, job_id: str) -> list[Event]:
        """The posts of one job's events."""
        with self._lock:
            return [event for event in self.events if event.subject == job_id]

    def await_post(self, job_id: str, *, deadline_s: float = DEADLINE_S) -> list[Event]:
        """The posts of a job's events, once there is one."""
        return eventually(lambda: self.of(job_id), what=f"a post about job {job_id}", deadline_s=deadline_s)

    @contextmanager
    def running(self) -> Iterator[Sink]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _take(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        assert path == "/broker/default", path
        parsed = parse_http(headers, body)
        (event,) = parsed.events
        assert parsed.mode is Mode.BINARY
        assert isinstance(event, Event)
        with self._lock:
            self.events.append(event)
            self.headers.append(headers)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            answer = self.behave(event)
            if answer is HANG:
                self._ending.wait(HANG_LIMIT_S)
        finally:
            with self._lock:
                self._busy -= 1
        return answer

    def _handler(sink) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request there
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                answer = sink._take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                if answer is HANG:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        return Handler

"""A receiver of webhooks: an HTTP server that accepts posts, refuses them, hangs, or floods, as a test requires."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.waiting import eventually

HANG_LIMIT_S = 120
"""A request that hangs ends with the test, or after this."""

CHUNK = bytes(64 * 1024)


@dataclass(frozen=True)
class Reply:
    """The response. `flood`: so many chunks of 64 KiB follow the headers."""

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    flood: int = 0


HANG = Reply(0)
"""No response."""


@dataclass(frozen=True)
class Post:
    """A request; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # a courier connects twenty times at once, and the default is 5


class Receiver:
    """The posts, in order. `behave` returns the reply to each post, `consent` that to each OPTIONS."""

    def __init__(self, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.posts: list[Post] = []
        self.asked: list[Post] = []
        self.behave: Callable[[Post], Reply] = lambda _post: Reply()
        self.consent: Callable[[Post], Reply] = lambda _post: Reply(405)
        self.flooded = 0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._server = _Server(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/hook?for=tests"

    def of(self, job_id: str) -> list[Post]:
        """The posts of one job's events."""
        with self._lock:
            return [post for post in self.posts if post.event["subject"] == job_id]

    def await_posts(self, job_id: str, count: int = 1) -> list[Post]:
        """The posts of a job's events, once there are so many."""
        return eventually(
            lambda: self.of(job_id) if len(self.of(job_id)) >= count else [], what=f"{count} posts about job {job_id}"
        )

    @contextmanager
    def running(self) -> Iterator[Receiver]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _take(self, method: str, post: Post) -> Reply:
        with self._lock:
            (self.asked if method == "OPTIONS" else self.posts).append(post)
        reply = self.consent(post) if method == "OPTIONS" else self.behave(post)
        if reply is HANG:
            self._ending.wait(HANG_LIMIT_S)
        return reply

    def _handler(receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request there
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = receiver._take(self.command, Post(self.path, headers, body))
                if reply is HANG:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                length = reply.flood * len(CHUNK)
                for name, value in {"Content-Length": str(length), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for _ in range(reply.flood):
                        self.wfile.write(CHUNK)
                        receiver.flooded += 1
                except OSError:
                    self.close_connection = True  # the client closed the connection

            do_OPTIONS = do_POST

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        return Handler

"""The HTTP server for probes and metrics of a process that serves nothing else over HTTP.

Courier, operator and worker run it, each with its own responses. It has threads of its own, so it also responds while
the process is busy; and it starts no process, unlike a probe that runs a command. It answers GET, one request for each
connection.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from darkroom.errors import SettingError
from darkroom.logs import logger

REQUEST_TIMEOUT_S = 5.0
"""The longest silence of a client, and the longest time that a response may take: kubelet waits for less."""

_log = logger(__name__)


@dataclass(frozen=True)
class ProbeResponse:
    status: int
    content: bytes
    media_type: str = "application/json"

    @classmethod
    def of_json(cls, status: int, body: object) -> ProbeResponse:
        return cls(status, json.dumps(body).encode())


class ProbeServer(ThreadingHTTPServer):
    """Serves `respond`, which returns the response for a path and is called in a thread of each request.

    It listens as soon as it is made. Raises SettingError, in the name of `variable`, where it cannot.
    """

    daemon_threads = True

    def __init__(self, respond: Callable[[str], ProbeResponse], *, host: str, port: int, variable: str) -> None:
        self.respond = respond
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            reason = error.strerror or error
            raise SettingError(f"{variable}='{port}': cannot listen on {host}:{port}: {reason}") from error

    def server_bind(self) -> None:
        """Without a look-up of the host's name, which http.server does for CGI scripts."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a failed response, unless the client closed its connection, as kubelet does after its timeout."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("probe_failed")

    def start(self) -> None:
        """Serve in a thread until the process ends or `close` is called."""
        threading.Thread(target=self.serve_forever, name="probes", daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


@asynccontextmanager
async def served(
    respond: Callable[[str], Coroutine[Any, Any, ProbeResponse]], *, host: str, port: int, variable: str
) -> AsyncIterator[None]:
    """Serve `respond` in the event loop while the block runs. While the loop hangs, the response is 503."""
    loop = asyncio.get_running_loop()

    def in_loop(path: str) -> ProbeResponse:
        response = asyncio.run_coroutine_threadsafe(respond(path), loop)
        try:
            return response.result(REQUEST_TIMEOUT_S)
        except TimeoutError:
            response.cancel()
            raise

    server = ProbeServer(in_loop, host=host, port=port, variable=variable)
    server.start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.close)


class _Handler(BaseHTTPRequestHandler):
    server: ProbeServer
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        try:
            response = self.server.respond(self.path.partition("?")[0])
        except TimeoutError:
            response = ProbeResponse.of_json(503, {"status": "busy"})
        self.send_response_only(response.status)  # without the headers Server and Date
        self.send_header("Content-Type", response.media_type)
        self.send_header("Content-Length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: probes come every few seconds."""

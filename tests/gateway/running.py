"""The gateway as a process, as a pod or `darkroom up` runs it, and stand-in functions that return their name."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom_cli.local import gateway

from tests.parts import scratch
from tests.ports import free_port
from tests.waiting import eventually

FUNCTIONS = ("SUBMIT", "JOBS", "RESULT", "UNDELIVERED")
STOP_DEADLINE_S = 90


def start_program() -> Path:
    """The program that runs the gateway. Without nginx and Lua the test is skipped, but fails in the gate."""
    why = fault()
    if why is not None:
        if "CI" in os.environ:
            raise LookupError(why)
        pytest.skip(why)
    return gateway.START


@cache
def fault() -> str | None:
    """The reason why the gateway cannot run on this machine, or None."""
    return gateway.Gateway("127.0.0.1", free_port(), free_port(), scratch() / "gateway-check").fault()


class Gateway:
    """One nginx with Lua. `environment` has the addresses of the functions; `log` receives its output."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self.log = folder / "gateway.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "DARKROOM_GATEWAY_FOLDER": str(folder / "gateway"),
            "DARKROOM_GATEWAY_PORT": str(self.port),
            "DARKROOM_GATEWAY_RATE": "0",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        self.launch()
        eventually(self.is_ready, what=f"readiness of the gateway, whose log is {self.log}")

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [start_program()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"it ended: {self.log.read_text()}")
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it has exited."""
        return self.process.wait(STOP_DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM, then the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of this event so far. Each line must be JSON."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        found = [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if line["event"] == event]

    def request_logged(self, request_id: str) -> dict[str, Any]:
        """The line of its access log about this request."""
        (line,) = eventually(
            lambda: [line for line in self.lines("request") if line["request_id"] == request_id],
            what=f"request {request_id} in the access log",
        )
        return line


@contextmanager
def running(folder: Path, functions: Mapping[str, str], **more: str) -> Iterator[Gateway]:
    """A gateway in front of `functions` (SUBMIT, JOBS, …: addresses), with `more` variables."""
    folder.mkdir(exist_ok=True)
    places = {f"DARKROOM_GATEWAY_{name}": place for name, place in functions.items()}
    found = Gateway(folder, {**places, **more})
    try:
        found.start()
        yield found
    finally:
        found.kill()


class StandIn:
    """A function that answers every request with its own name and the request.

    `POST /hold` is answered when `released` is set, `POST /chunked` is refused, in chunks. While there are `failures`,
    each request takes one, before all that: a status with headers, or status 0 for a connection that breaks.
    """

    def __init__(self, name: str, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.name = name
        self.held = 0
        self.asked = 0
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.released = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                stand_in.asked += 1
                if stand_in.failures:
                    self.fail(*stand_in.failures.pop(0))
                    return
                if self.path == "/hold":
                    stand_in.held += 1
                    stand_in.released.wait(60)
                said = {
                    "function": stand_in.name,
                    "method": self.command,
                    "path": self.path,
                    "headers": {key.lower(): value for key, value in self.headers.items()},
                    "body": body.decode(),
                }
                content = json.dumps(said).encode()
                if self.path == "/chunked":
                    self.refuse_in_chunks(content)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def fail(self, status: int, headers: Mapping[str, str]) -> None:
                self.close_connection = True
                if status:
                    self.send_response(status)
                    for header, value in headers.items():
                        self.send_header(header, value)
                    self.send_header("Content-Length", "4")
                    self.end_headers()
                    self.wfile.write(b"fail")

            def refuse_in_chunks(self, content: bytes) -> None:
                self.send_response(422)
                self.send_header("Content-Type", "application/problem+json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in (content[:7], content[7:], b""):
                    self.wfile.write(f"{len(chunk):x};x=y\r\n".encode() + chunk + b"\r\n")

            do_GET = do_HEAD = do_POST = do_DELETE = do_PATCH = do_PUT = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((address, port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"


@contextmanager
def serving(*stand_ins: StandIn) -> Iterator[None]:
    """Serve the stand-ins until the block ends."""
    for each in stand_ins:
        each.thread.start()
    try:
        yield
    finally:
        for each in stand_ins:
            each.released.set()
            each.server.shutdown()
            each.server.server_close()
            each.thread.join()


@contextmanager
def stand_ins() -> Iterator[dict[str, StandIn]]:
    """Four stand-ins, by the names that the gateway has for the functions."""
    found = {name: StandIn(name.lower()) for name in FUNCTIONS}
    with serving(*found.values()):
        yield found


def spoken(port: int, text: bytes) -> bytes:
    """The response of the server on this port to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        deadline = time.monotonic() + 60
        while (part := connection.recv(65536)) and time.monotonic() < deadline:
            said += part
    return said

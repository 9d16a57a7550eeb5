"""Web pages in a real browser: a server of pages, and a visit to one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import eventually

PAGE_HOST = "page.localhost"
"""A name of loopback to every browser, and another site than 127.0.0.1."""

FORWARD_TIMEOUT_S = 10.0


class Page:
    """The server of a page; `outcome` is what the page reports to `/outcome`.

    With `forward_to`, a port, it hands every other request on unchanged. So the page and what is there are of the same
    origin to the browser, as when a name resolves to another address after the page was loaded.
    """

    def __init__(self) -> None:
        self.html = ""
        self.outcome: dict[str, Any] = {}
        self.forward_to: int | None = None
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/" or page.forward_to is None:
                    self._answer(page.html.encode())
                else:
                    self._forward(page.forward_to)

            def do_POST(self) -> None:
                if self.path == "/outcome":
                    page.outcome = json.loads(self._body())
                    self._answer(b"")
                else:
                    assert page.forward_to is not None
                    self._forward(page.forward_to)

            def do_OPTIONS(self) -> None:
                assert page.forward_to is not None
                self._forward(page.forward_to)

            do_DELETE = do_OPTIONS

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers["content-length"] or 0))

            def _answer(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _forward(self, port: int) -> None:
                self.close_connection = True
                if self.headers["upgrade"] is None:
                    del self.headers["connection"]
                    self.headers["Connection"] = "close"
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=FORWARD_TIMEOUT_S) as upstream,
                    suppress(TimeoutError),
                ):
                    head = f"{self.requestline}\n{self.headers}".replace("\n", "\r\n")
                    upstream.sendall(head.encode() + self._body())
                    while part := upstream.recv(1 << 16):
                        self.wfile.write(part)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def port(self) -> int:
        return self.server.server_port

    @property
    def url(self) -> str:
        return f"http://{PAGE_HOST}:{self.port}"


@contextmanager
def page_server() -> Iterator[Page]:
    page = Page()
    thread = threading.Thread(target=page.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield page
    page.server.shutdown()
    page.server.server_close()
    thread.join()


def visit(page: Page, url: str, folder: Path, *options: str) -> dict[str, Any]:
    """What the page reports when a browser with these options visits the URL."""
    chromium = shutil.which("chromium")
    if chromium is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed")
    assert chromium, "chromium is not installed"
    page.outcome = {}
    with (folder / "chromium.log").open("wb") as log:
        browser = subprocess.Popen(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *(f"--user-data-dir={folder / 'profile'}", "--no-proxy-server", "--remote-debugging-port=0"),
                *(*options, url),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return eventually(lambda: page.outcome, what=f"the page's outcome; the browser's log is in {folder}")
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()

"""A proxy before Redis that stops time at a command: from the first one that holds some bytes, nothing goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 64 * 1024


class HoldingProxy:
    """Hands bytes on in both directions until a client sends `until`. `held` is set then."""

    def __init__(self, port: int, *, until: bytes) -> None:
        self._to = ("127.0.0.1", port)
        self._until = until
        self.held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    @contextmanager
    def running(self) -> Iterator[HoldingProxy]:
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for each in (self._listener, *self._sockets):
                each.close()

    def _accept(self) -> None:
        threads: list[threading.Thread] = []
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._to)
                self._sockets += [client, server]
                threads.append(threading.Thread(target=self._hand_on, args=(client, server), kwargs={"look": True}))
                threads.append(threading.Thread(target=self._hand_on, args=(server, client), kwargs={"look": False}))
                for thread in threads[-2:]:
                    thread.start()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _hand_on(self, source: socket.socket, target: socket.socket, *, look: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                if look and self._until in chunk:
                    self.held.set()
                if self.held.is_set():
                    return
                target.sendall(chunk)

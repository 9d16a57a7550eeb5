"""A proxy before a server that cuts connections, in the middle of what the server says or when a test wants it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

CHUNK = 64 * 1024

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing throws away what is on its way and answers RST, as a crash or a firewall does."""


class CuttingProxy:
    """Hands bytes on in both directions; of each connection so many of the server's as `allowance` answers, then both
    of its ends are reset. None is without end.
    """

    def __init__(self, port: int, *, allowance: Callable[[], int | None] = lambda: None) -> None:
        self._to = ("127.0.0.1", port)
        self._allowance = allowance
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.cuts = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """Those that are open now."""
        return len(self._pairs)

    @contextmanager
    def running(self) -> Iterator[CuttingProxy]:
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            self._listener.close()
            self.cut()
            for thread in self._threads:
                thread.join()

    def cut(self) -> None:
        """Reset every connection that there is."""
        for pair in tuple(self._pairs):
            self._reset(pair)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._to)
                except OSError:  # nobody there
                    client.close()
                    continue
                pair = (client, server)
                self._pairs.add(pair)
                for source, target, allowed in ((client, server, None), (server, client, self._allowance())):
                    thread = threading.Thread(target=self._hand_on, args=(pair, source, target, allowed))
                    self._threads.append(thread)
                    thread.start()

    def _hand_on(
        self,
        pair: tuple[socket.socket, socket.socket],
        source: socket.socket,
        target: socket.socket,
        allowed: int | None,
    ) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                if allowed is not None and len(chunk) > allowed:
                    target.sendall(chunk[:allowed])
                    break
                target.sendall(chunk)
                allowed = None if allowed is None else allowed - len(chunk)
        self._reset(pair)

    def _reset(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            if pair not in self._pairs:
                return
            self._pairs.remove(pair)
            self.cuts += 1
        for each in pair:
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                each.shutdown(socket.SHUT_RDWR)
            each.close()

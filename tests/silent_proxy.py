"""A TCP proxy whose open connections can go dead: nothing passes any more, and neither end sees the connection close.

This is what a client meets after a NAT entry expired, or after a failover that moved an address. New connections pass.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

CHUNK = 64 * 1024


@dataclass(eq=False)
class _Pair:
    """A client's connection and the one that was opened to Redis for it."""

    client: socket.socket
    server: socket.socket
    dead: threading.Event = field(default_factory=threading.Event)


class SilentProxy:
    """Passes bytes on in both directions; `silence` makes the connections that are open go dead."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[_Pair] = []
        self._born_dead = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def silence(self, *, next_too: int = 0) -> int:
        """Returns the number of connections that went dead. So many new ones are dead from their start."""
        self._born_dead = next_too
        living = [pair for pair in self._pairs if not pair.dead.is_set()]
        for pair in living:
            pair.dead.set()
        return len(living)

    @contextmanager
    def running(self) -> Iterator[SilentProxy]:
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            self._listener.close()

    def _accept(self) -> None:
        threads: list[threading.Thread] = []
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                pair = _Pair(client, socket.create_connection(self._to))
                if self._born_dead > 0:
                    self._born_dead -= 1
                    pair.dead.set()
                self._pairs.append(pair)
                ways = (pair.client, pair.server), (pair.server, pair.client)
                pumps = [threading.Thread(target=_pass_on, args=(pair, *way)) for way in ways]
                threads += pumps
                for pump in pumps:
                    pump.start()
        for pair in self._pairs:
            for end in (pair.client, pair.server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for pair in self._pairs:
            pair.client.close()
            pair.server.close()


def _pass_on(pair: _Pair, source: socket.socket, target: socket.socket) -> None:
    """A dead pair is still read from, so that the kernel goes on acknowledging what the client writes."""
    with suppress(OSError):
        while chunk := source.recv(CHUNK):
            if not pair.dead.is_set():
                target.sendall(chunk)
    if not pair.dead.is_set():
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

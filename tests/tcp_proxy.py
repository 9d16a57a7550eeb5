"""TCP proxies in front of a server that fail as networks do: connections are reset, go dead, or freeze at a command."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

CHUNK = 64 * 1024

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing drops what is in flight and sends RST, as a crash or a firewall does."""


@dataclass(eq=False)
class Pair:
    """A client's connection and the one that was opened to the server for it.

    A `silent` pair passes nothing on, a close neither, and is still read from, so that the kernel goes on
    acknowledging what is sent. `allowance`: the bytes of the server that still pass, None for all of them.
    """

    client: socket.socket
    server: socket.socket
    allowance: int | None = None
    silent: threading.Event = field(default_factory=threading.Event)

    @property
    def ends(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.server


class TcpProxy:
    """Forwards bytes in both directions, until a subclass or a test interferes with the open connections."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[Pair] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    @contextmanager
    def running(self) -> Iterator[Self]:
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            self._listener.close()
            for pair in self._open():
                self._reset(pair)
            for thread in self._threads:
                thread.join()

    def connected(self, pair: Pair) -> None:
        """Called with each new pair before anything passes."""

    def passing(self, pair: Pair, chunk: bytes, *, source: socket.socket) -> None:
        """Called before a chunk passes."""

    def _open(self) -> list[Pair]:
        with self._lock:
            return list(self._pairs)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    pair = Pair(client, socket.create_connection(self._to))
                except OSError:  # the server is down
                    client.close()
                    continue
                self.connected(pair)
                with self._lock:
                    self._pairs.add(pair)
                for source, target in (pair.ends, reversed(pair.ends)):
                    thread = threading.Thread(target=self._pump, args=(pair, source, target))
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, pair: Pair, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                self.passing(pair, chunk, source=source)
                if pair.silent.is_set():
                    continue
                if source is pair.server and pair.allowance is not None:
                    if len(chunk) > pair.allowance:
                        target.sendall(chunk[: pair.allowance])
                        break
                    pair.allowance -= len(chunk)
                target.sendall(chunk)
        if not pair.silent.is_set():
            self._reset(pair)

    def _reset(self, pair: Pair) -> bool:
        """Reset both ends. Returns whether they were open."""
        with self._lock:
            if pair not in self._pairs:
                return False
            self._pairs.remove(pair)
        for end in pair.ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return True


class CuttingProxy(TcpProxy):
    """Resets connections: all that are open when a test wants it, and each after `allowance()` bytes of the server."""

    def __init__(self, port: int, *, allowance: Callable[[], int | None] = lambda: None) -> None:
        super().__init__(port)
        self._allowance = allowance
        self.cuts = 0

    def connected(self, pair: Pair) -> None:
        pair.allowance = self._allowance()

    def cut(self) -> None:
        for pair in self._open():
            self._reset(pair)

    def _reset(self, pair: Pair) -> bool:
        was_open = super()._reset(pair)
        self.cuts += was_open
        return was_open


class HoldingProxy(TcpProxy):
    """Freezes every connection at the first chunk of a client that holds `until`, before it passes. Sets `held`."""

    def __init__(self, port: int, *, until: bytes) -> None:
        super().__init__(port)
        self._until = until
        self.held = threading.Event()

    def connected(self, pair: Pair) -> None:
        pair.silent = self.held

    def passing(self, pair: Pair, chunk: bytes, *, source: socket.socket) -> None:
        if source is pair.client and self._until in chunk:
            self.held.set()


class SilentProxy(TcpProxy):
    """Lets connections go dead, as when a NAT entry expires or an address moves: no end sees the connection close."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._born_dead = 0

    def connected(self, pair: Pair) -> None:
        if self._born_dead > 0:
            self._born_dead -= 1
            pair.silent.set()

    def silence(self, *, next_too: int = 0) -> int:
        """Returns the number of connections that went dead. So many new ones are dead from their start."""
        self._born_dead = next_too
        living = [pair for pair in self._open() if not pair.silent.is_set()]
        for pair in living:
            pair.silent.set()
        return len(living)

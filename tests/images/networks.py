"""A container's network, reached from outside: what a kubelet asks it, and what it finds where its addresses lead.

Containers have a network of their own with nothing but a loopback, so that the ports of the manifests are free in it;
with an address beside 127.0.0.1, as a pod has one: else glibc finds no names (AI_ADDRCONFIG). A socket belongs to the
network in which it was made, and a thread may change networks: that is all there is to it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

CLONE_NEWNET = 0x40000000
"""Of <sched.h>: the network is what is changed."""

SIOCSIFADDR = 0x8916
"""Of <linux/sockios.h>: gives an interface an address."""

POD_ADDRESS = "10.0.0.2"

CHUNK = 64 * 1024


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """Sockets that this thread makes meanwhile are in the network of the process `pid`. Needs root."""
    here = os.open(Path("/proc/thread-self/ns/net"), os.O_RDONLY)
    try:
        _enter(Path(f"/proc/{pid}/ns/net"))
        try:
            yield
        finally:
            _set(here)
    finally:
        os.close(here)


def give_address(pid: int) -> None:
    """An address that is not 127.0.0.1, on the loopback."""
    with inside(pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        address = struct.pack("16sHH4s8x", b"lo:0", socket.AF_INET, 0, socket.inet_aton(POD_ADDRESS))
        fcntl.ioctl(asking, SIOCSIFADDR, address)


class Bridge:
    """A port of a container's loopback that leads to a port of this machine's, until `close`."""

    def __init__(self, pid: int, *, port: int, to: int) -> None:
        with inside(pid):
            self._listener = socket.create_server(("127.0.0.1", port))
        self._to = to
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that are open end with the container."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for one
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(client)
            try:
                server = stack.enter_context(socket.create_connection(("127.0.0.1", self._to)))
            except OSError:
                return
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until either side ends, then end the other."""
    with suppress(OSError):
        while chunk := source.recv(CHUNK):
            sink.sendall(chunk)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _enter(network: Path) -> None:
    there = os.open(network, os.O_RDONLY)
    try:
        _set(there)
    finally:
        os.close(there)


def _set(network: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

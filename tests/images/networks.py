"""A container's network namespace, entered from outside: for probes, and for bridges to the servers of the test.

The network of a container has only a loopback, so that the ports of the manifests are free in it. It has an address
besides 127.0.0.1, like a pod, since glibc would resolve no names otherwise (AI_ADDRCONFIG). A socket belongs to the
network namespace in which it was created, and a thread can enter another one.
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
"""From <sched.h>: the namespace is that of the network."""

SIOCSIFADDR = 0x8916
"""From <linux/sockios.h>: set the address of an interface."""

POD_ADDRESS = "10.0.0.2"

CHUNK = 64 * 1024


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """Create the sockets of this thread in the network of the process `pid`. Needs root."""
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
    """Add an address other than 127.0.0.1 to the loopback."""
    with inside(pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        address = struct.pack("16sHH4s8x", b"lo:0", socket.AF_INET, 0, socket.inet_aton(POD_ADDRESS))
        fcntl.ioctl(asking, SIOCSIFADDR, address)


class Bridge:
    """Forwards a port of a container's loopback to a port of this machine, until `close`."""

    def __init__(self, pid: int, *, port: int, to: int) -> None:
        with inside(pid):
            self._listener = socket.create_server(("127.0.0.1", port))
        self._to = to
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections; open ones end with the container."""
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
    """Copy until one side closes, then close the other."""
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

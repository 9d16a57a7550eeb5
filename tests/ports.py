"""Ports for the servers that tests start."""

from __future__ import annotations

import os
import random
import socket

PORTS = range(10_000, 20_000)
"""Below the ephemeral ports of Linux and macOS, so that no connection occupies one before its server has started or
while it is stopped. The ports that `darkroom up` picks are above these."""

LANES = 4
"""Processes of one run of the tests that pick ports at once, each from its own lane (gw0, gw1, … of pytest-xdist)."""

_given: set[int] = set()


def free_port(*, beside: int = 0) -> int:
    """A free port that this process has not returned before.

    Where a server takes a second one, `beside` says how far above.
    """
    lane = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % LANES
    while True:
        port = random.choice(PORTS[lane::LANES])
        if port not in _given and _is_free(port) and _is_free(port + beside):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

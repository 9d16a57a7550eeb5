"""The server's address: where the commands look for darkroom, and whether that is this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"
"""The default of every client command. `darkroom up` serves there by default."""


def is_loopback(url: str) -> bool:
    """Whether the host is on this machine, so that no proxy of the environment may be used."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

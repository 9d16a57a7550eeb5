"""Addresses of an issuer: https, or http on this machine."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from darkroom.cloudevents.attributes import uri_reference_fault


def address_fault(url: str) -> str | None:
    """Why darkroom may not read from the address; None if it may."""
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0
    except ValueError:
        return "is not an address"
    if not parts.hostname or not has_port or uri_reference_fault(url) or parts.scheme not in {"http", "https"}:
        return "is not an address such as https://issuer.example.org/realms/studio"
    if parts.fragment or parts.username is not None or parts.password is not None:
        return "has a fragment or a user, which it must not"
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        return "is not https, which every address but those of loopback must be"
    return None


def issuer_fault(url: str) -> str | None:
    """Why the address is not that of an issuer (OpenID Connect Discovery 1.0, section 3); None if it is."""
    return address_fault(url) or ("has a query, which an issuer has not" if "?" in url else None)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

"""The tenant of a request, decided here alone. Every job carries its tenant, and every read is scoped by it."""

from __future__ import annotations

from starlette.requests import HTTPConnection

DEFAULT = "default"
"""The tenant of all callers, as long as requests carry no keys."""


def tenant_of(_connection: HTTPConnection) -> str:
    """The tenant that the caller belongs to."""
    return DEFAULT

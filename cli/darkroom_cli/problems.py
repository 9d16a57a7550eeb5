"""Errors of a request to the server: unreachable, refused (4xx), or unavailable (429, 5xx).

The server describes a refusal as problem details (RFC 9457); `main.py` prints them and chooses the exit status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from darkroom.errors import FieldError, PermanentError, TemporaryError

from darkroom_cli.credential import ClientCredential


class Unreachable(TemporaryError):
    slug, title = "unreachable", "The server cannot be reached"


class RequestRefused(PermanentError):
    """The server refused the request and gave a reason. `advice` is what to do where the credential is the reason."""

    def __init__(self, problem: Mapping[str, Any], *, advice: str = "") -> None:
        super().__init__(_detail(problem), fields=_fields(problem))
        self.advice = advice
        self._problem = dict(problem)

    def problem(self) -> dict[str, object]:
        """The problem details as the server sent them."""
        return self._problem


class ServerUnavailable(TemporaryError):
    """The server cannot process the request now, and gave a reason."""

    def __init__(self, problem: Mapping[str, Any], *, retry_after: int) -> None:
        super().__init__(_detail(problem), retry_after=retry_after, fields=_fields(problem))
        self._problem = dict(problem)

    def problem(self) -> dict[str, object]:
        """The problem details as the server sent them."""
        return self._problem


def error_of(response: httpx.Response, *, server: str, credential: ClientCredential) -> PermanentError | TemporaryError:
    """The error that a response without success means; Unreachable if another program than darkroom answered."""
    problem = _problem(response)
    if problem is None:
        return Unreachable(f"{server} answered {response.status_code}, but is not a darkroom server")
    if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return ServerUnavailable(problem, retry_after=_seconds(response.headers.get("retry-after")))
    if response.is_server_error:
        return ServerUnavailable(problem, retry_after=1)
    return RequestRefused(problem, advice=credential.advice(problem))


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    """The problem details in a response; None if it has none."""
    if response.headers.get("content-type", "").split(";")[0] != "application/problem+json":
        return None
    try:
        members = response.json()
    except ValueError:
        return None
    return members if isinstance(members, dict) else None


def _detail(problem: Mapping[str, Any]) -> str:
    return str(problem.get("detail") or problem.get("title") or "the server refused the request without a reason")


def _fields(problem: Mapping[str, Any]) -> list[FieldError]:
    return [FieldError(str(fault["field"]), str(fault["detail"])) for fault in problem.get("errors", [])]


def _seconds(header: str | None) -> int:
    return int(header) if header is not None and header.isdecimal() else 1

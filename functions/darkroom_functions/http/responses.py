"""Responses of the functions: JSON, and problem details (RFC 9457) for every refusal.

A handler returns `answer(…)` or raises an error, which `assembly.py` turns into `problem(…)`. An unexpected error
becomes `unexpected()`, without internal details.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from darkroom.access.credentials import TEXT_PATTERN
from darkroom.errors import (
    BodyTooLarge,
    CredentialRefused,
    DarkroomError,
    MethodNotAllowed,
    ModelNotPermitted,
    ProofRefused,
    RangeNotSatisfiable,
    ScopeMissing,
    TemporaryError,
)
from starlette.responses import Response

from darkroom_functions.http.rate_limits import rate_limit_fields

JSON_TYPE = "application/json"
CSV_TYPE = "text/csv; charset=utf-8"
PROBLEM_TYPE = "application/problem+json"

NOT_STORED = "no-store"
"""The `Cache-Control` of a response, unless `semantics.py` sets another."""

DEFAULT_HEADERS: Mapping[str, str] = {"Cache-Control": NOT_STORED, "X-Content-Type-Options": "nosniff"}
"""The default headers of every response."""

REALM = "darkroom"
"""The protection space of all credentials (RFC 9110, section 11.5)."""

EVENT_REFUSED = 422
"""The status of a permanent refusal of a CloudEvent: Knative delivers an event again after 404, 408, 409 and 429."""

OF_EVENT = BodyTooLarge | CredentialRefused | ScopeMissing | ProofRefused
"""Permanent refusals of a CloudEvent that keep their own status: Knative delivers none of them again."""


HIDDEN_KEY = b"(a key)"

_KEY = re.compile(TEXT_PATTERN.encode())


def answer(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with `content` as JSON."""
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type=JSON_TYPE)


def problem(error: DarkroomError, *, of_event: bool = False) -> Response:
    """The response for an error, with the fields of the caller's limits, `Retry-After` if it is temporary,
    `WWW-Authenticate` if the credential was refused, `Allow` if the method was wrong and `Content-Range` if the range
    was.

    `of_event` is for a route that takes CloudEvents: see `EVENT_REFUSED`.
    """
    members = problem_members(error, of_event=of_event)
    headers = rate_limit_fields(error.quotas)
    if isinstance(error, TemporaryError):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, CredentialRefused | ScopeMissing):
        headers["WWW-Authenticate"] = challenge(error)
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["Allow"] = ", ".join(error.allow)
    return problem_of(members, headers=headers)


def challenge(error: CredentialRefused | ScopeMissing) -> str:
    """The value of `WWW-Authenticate` (RFC 6750, section 3)."""
    parts = [f'realm="{REALM}"']
    if isinstance(error, ScopeMissing):
        parts += ['error="insufficient_scope"', f'scope="{error.scope}"']
    elif error.error is not None:
        parts += [f'error="{error.error}"']
    return f"Bearer {', '.join(parts)}"


def problem_members(error: DarkroomError, *, of_event: bool = False) -> dict[str, Any]:
    """The members of the problem document, with the status of the response."""
    members: dict[str, Any] = error.problem()
    if of_event and not isinstance(
        error, TemporaryError | BodyTooLarge | CredentialRefused | ScopeMissing | ModelNotPermitted | ProofRefused
    ):
        members["status"] = EVENT_REFUSED
    return members


def problem_of(members: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Response:
    """The response with a problem document of these members, without the text of a key that the request had in its path
    or in a field: clients log the problems that they receive.
    """
    headers = {**DEFAULT_HEADERS, **(headers or {})}
    content = _KEY.sub(HIDDEN_KEY, orjson.dumps(members))
    return Response(content, status_code=members["status"], headers=headers, media_type=PROBLEM_TYPE)


def unexpected() -> Response:
    """The response for an unexpected error; the log has the details."""
    return problem(DarkroomError("The request failed with an internal error. It has been logged."))

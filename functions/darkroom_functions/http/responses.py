"""Answers of the functions: JSON, and every refusal as problem details (RFC 9457).

A handler returns `answer(…)` or raises; what it raises becomes `problem(…)` here, also for what nobody expected
(`assembly.py` calls it). Nothing of a program's inside leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from darkroom.errors import BodyTooLarge, DarkroomError, MethodNotAllowed, RangeNotSatisfiable, TemporaryError
from starlette.responses import Response

JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"

NOT_STORED = "no-store"
"""The `Cache-Control` of an answer, unless `http_semantics.py` has another for its kind."""

DEFAULT_HEADERS: Mapping[str, str] = {"Cache-Control": NOT_STORED, "X-Content-Type-Options": "nosniff"}
"""Of every answer that has no others of these names."""

EVENT_REFUSED = 422
"""The status of a permanent refusal of a CloudEvent: Knative would deliver it again for 404, 408, 409 and 429."""


def answer(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as JSON."""
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type=JSON_TYPE)


def problem(error: DarkroomError, *, of_event: bool = False) -> Response:
    """The refusal that `error` is, with `Retry-After` where it may be cured, `Allow` where the method was wrong and
    `Content-Range` where the range was.

    `of_event` is for a door that CloudEvents come through: see `EVENT_REFUSED`.
    """
    members = problem_members(error, of_event=of_event)
    headers: dict[str, str] = {}
    if isinstance(error, TemporaryError):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["Allow"] = ", ".join(error.allow)
    return problem_of(members, headers=headers)


def problem_members(error: DarkroomError, *, of_event: bool = False) -> dict[str, Any]:
    """The members of the problem document, `status` as it is answered."""
    members: dict[str, Any] = error.problem()
    if of_event and not isinstance(error, TemporaryError | BodyTooLarge):
        members["status"] = EVENT_REFUSED
    return members


def problem_of(members: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Response:
    """A problem document of these members, `status` among them."""
    headers = {**DEFAULT_HEADERS, **(headers or {})}
    return Response(orjson.dumps(members), status_code=members["status"], headers=headers, media_type=PROBLEM_TYPE)


def unexpected() -> Response:
    """What a caller learns of an error that nobody foresaw; the log has the rest."""
    return problem(DarkroomError("The request met an error of ours. It has been logged."))

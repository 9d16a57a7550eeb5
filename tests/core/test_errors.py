"""Errors as problem details (RFC 9457): type, status, and the detail of the occurrence."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from darkroom import errors
from darkroom.errors import (
    PROBLEM_BASE,
    DarkroomError,
    FieldError,
    Gone,
    InvalidInput,
    MemoryHigh,
    MethodNotAllowed,
    PermanentError,
    TemporaryError,
)


def kinds(base: type[DarkroomError] = DarkroomError) -> Iterator[type[DarkroomError]]:
    """All subclasses of the class, direct and indirect."""
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from kinds(kind)


ALL = list(kinds())
NAMED = [kind for kind in ALL if kind not in {PermanentError, TemporaryError}]


def test_an_error_is_permanent_or_temporary() -> None:
    for kind in ALL:
        assert issubclass(kind, PermanentError) is not issubclass(kind, TemporaryError), kind


def test_every_kind_has_a_name_of_its_own() -> None:
    slugs = [kind.slug for kind in NAMED]
    assert len(set(slugs)) == len(slugs)
    assert DarkroomError.slug not in slugs
    assert all(kind.title != DarkroomError.title for kind in NAMED)


@pytest.mark.parametrize("kind", NAMED)
def test_temporary_errors_have_their_status(kind: type[DarkroomError]) -> None:
    """429 or 503, after which Knative and most clients retry; 500 for the settings of a part."""
    if issubclass(kind, TemporaryError):
        assert kind.status in {429, 503}
    else:
        assert 400 <= kind.status < 500 or kind is errors.SettingError
        assert kind.status != 429


def test_a_problem_has_the_detail_of_the_error() -> None:
    assert InvalidInput("width must be a multiple of 8").problem() == {
        "type": f"{PROBLEM_BASE}invalid-input",
        "title": "The request is not valid",
        "status": 422,
        "detail": "width must be a multiple of 8",
    }


def test_a_problem_names_the_invalid_fields() -> None:
    fields = [FieldError("input.width", "must be a multiple of 8"), FieldError("input.prompt", "is missing")]
    assert InvalidInput("2 faults", fields=fields).problem()["errors"] == [
        {"field": "input.width", "detail": "must be a multiple of 8"},
        {"field": "input.prompt", "detail": "is missing"},
    ]


def test_a_temporary_error_has_a_retry_after() -> None:
    assert MemoryHigh("full").retry_after == 1
    assert MemoryHigh("full", retry_after=10).retry_after == 10


def test_a_method_that_is_not_allowed_comes_with_those_that_are() -> None:
    assert MethodNotAllowed("no", allow=["GET", "HEAD"]).allow == ("GET", "HEAD")


def test_a_problem_of_a_deleted_job_has_the_members_of_its_tombstone() -> None:
    problem = Gone("deleted", state="completed", ended_at="2026-11-20T15:00:00.000Z").problem()
    assert (problem["status"], problem["state"]) == (410, "completed")
    assert (problem["ended_at"], problem["deleted_at"]) == ("2026-11-20T15:00:00.000Z", None)


@pytest.mark.parametrize("kind", NAMED)
def test_an_error_crosses_processes_with_its_detail(kind: type[DarkroomError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what happened")))  # noqa: S301 - our own
    assert (type(copy), copy.detail, str(copy)) == (kind, "what happened", "what happened")

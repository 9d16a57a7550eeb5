"""What can go wrong, in two kinds: what a repeat cannot cure, and what it may.

Everything that darkroom refuses or fails at is one of these. Each edge translates them in its own way: the functions to
problem details (RFC 9457) with a status and perhaps `Retry-After`, a worker to `failed` or a retry, the command line to
a sentence and an exit status. Nothing else of ours reaches a caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

PROBLEM_BASE = "https://darkroom.dev/problems/"
"""`type` of every problem detail begins so; the page of that name lists them (RFC 9457, section 3.1.1)."""


@dataclass(frozen=True)
class FieldError:
    """One field of a request that cannot be taken: its name as the caller wrote it (dotted), and why."""

    field: str
    detail: str


class DarkroomError(Exception):
    """Base of the two kinds.

    `slug` names the problem for programs, `title` for people (the same for every occurrence), `status` is the HTTP
    status of it, `detail` says what happened this time, `fields` which parts of the request were at fault.
    """

    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong"
    status: ClassVar[int] = 500

    def __init__(self, detail: str, *, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)

    def problem(self) -> dict[str, object]:
        """The members of an `application/problem+json` document (RFC 9457, section 3.1); `errors` is ours."""
        members: dict[str, object] = {
            "type": PROBLEM_BASE + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.fields:
            members["errors"] = [{"field": error.field, "detail": error.detail} for error in self.fields]
        return members


class PermanentError(DarkroomError):
    """The same request will fail again: 4xx, never retried."""

    status = 422


class TemporaryError(DarkroomError):
    """The same request may succeed later: 429 or 503 with `Retry-After`.

    `retry_after` is in whole seconds.
    """

    status = 503

    def __init__(self, detail: str, *, retry_after: int = 1, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(detail, fields=fields)
        self.retry_after = retry_after


class MalformedRequest(PermanentError):
    """The body cannot be read at all: not JSON, not UTF-8, not an object."""

    slug, title, status = "malformed-request", "The request could not be read", 400


class UnsupportedMediaType(PermanentError):
    slug, title, status = "unsupported-media-type", "The content type is not one that is read here", 415


class BodyTooLarge(PermanentError):
    slug, title, status = "body-too-large", "The body is larger than the limit", 413


class InvalidEvent(PermanentError):
    """A CloudEvent that breaks its specification; `fields` name the attributes."""

    slug, title = "invalid-event", "The CloudEvent is not valid"


class InvalidInput(PermanentError):
    """Well-formed, but not something that the model takes; `fields` name the parameters."""

    slug, title = "invalid-input", "The request cannot be taken as it is"


class UnknownModel(PermanentError):
    slug, title, status = "unknown-model", "No such model", 404


class NotFound(PermanentError):
    slug, title, status = "not-found", "There is nothing here under that name", 404


class Gone(PermanentError):
    """A job that was deleted, by its owner or when its time was over: `state` was its last one; times are text."""

    slug, title, status = "gone", "The job has been deleted", 410

    def __init__(
        self, detail: str, *, state: str | None = None, ended_at: str | None = None, deleted_at: str | None = None
    ) -> None:
        super().__init__(detail)
        self.tombstone = {"state": state, "ended_at": ended_at, "deleted_at": deleted_at}

    def problem(self) -> dict[str, object]:
        """As of every problem, and what the tombstone says."""
        return super().problem() | self.tombstone


class NotEnded(PermanentError):
    """A job that waits or runs cannot be deleted."""

    slug, title, status = "not-ended", "The job has not ended", 409


class MethodNotAllowed(PermanentError):
    """`allow` are the methods that the resource takes, for the header of that name (RFC 9110, section 15.5.6)."""

    slug, title, status = "method-not-allowed", "The resource does not take this method", 405

    def __init__(self, detail: str, *, allow: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.allow = tuple(allow)


class MisdirectedRequest(PermanentError):
    """A request for a host that this process does not serve (RFC 9110, section 15.5.20)."""

    slug, title, status = "misdirected-request", "No such host is served here", 421


class ForeignOrigin(PermanentError):
    """A request by a web page whose origin is not allowed."""

    slug, title, status = "foreign-origin", "Pages of this origin are not allowed", 403


class RequestTimeout(PermanentError):
    """A request whose bytes came too slowly."""

    slug, title, status = "request-timeout", "The request did not arrive in time", 408


class RequestLineTooLong(PermanentError):
    slug, title, status = "request-line-too-long", "The path and query are longer than the limit", 414


class HeadersTooLarge(PermanentError):
    slug, title, status = "headers-too-large", "The headers are larger than the limit", 431


class PreconditionFailed(PermanentError):
    """`If-Match` or `If-Unmodified-Since` does not hold (RFC 9110, section 15.5.13)."""

    slug, title, status = "precondition-failed", "A condition of the request does not hold", 412


class RangeNotSatisfiable(PermanentError):
    """The range begins behind the end; `size` is how many bytes there are (RFC 9110, section 15.5.17)."""

    slug, title, status = "range-not-satisfiable", "The range begins behind the end", 416

    def __init__(self, detail: str, *, size: int = 0) -> None:
        super().__init__(detail)
        self.size = size


class LinkRefused(PermanentError):
    """A signed link whose signature is wrong or whose time is over."""

    slug, title, status = "link-refused", "The link is not valid, or no longer", 403


class KeyReused(PermanentError):
    """An idempotency key that came before with another body."""

    slug, title = "idempotency-key-reused", "The idempotency key was used with another request"


class EventReused(PermanentError):
    """A CloudEvent whose `source` and `id` came before with other data."""

    slug, title = "event-id-reused", "The source and id of the event were used with other data"


class IdConflict(PermanentError):
    """A job id, chosen by the caller's retry, that names a job of somebody else."""

    slug, title, status = "id-conflict", "The job id is taken", 409


class NotEnabled(PermanentError):
    """A subscription that was disabled, has ended or was deleted: nothing is delivered to it."""

    slug, title, status = "not-enabled", "The subscription is not enabled", 409


class TooManySubscriptions(PermanentError):
    """A tenant has as many subscriptions as there may be."""

    slug, title, status = "too-many-subscriptions", "There are as many subscriptions as there may be", 409


class SettingError(PermanentError):
    """A setting that cannot be used: the message names the variable and the value."""

    slug, title, status = "bad-setting", "A setting cannot be used", 500


class NoPool(TemporaryError):
    """The operator or `darkroom up` never announced the model's pool, or it was deleted: nobody would take the job."""

    slug, title = "no-pool", "No worker pool serves this model"


class BacklogFull(TemporaryError):
    slug, title, status = "backlog-full", "The pool's backlog is full", 429


class MemoryHigh(TemporaryError):
    slug, title = "memory-high", "The queue broker's memory is nearly used up"


class TooManyConnections(TemporaryError):
    """A process has as many connections as it may have, and all of them are in use."""

    slug, title = "too-many-connections", "Too many connections are open"


class TooManyReplays(TemporaryError):
    """As many clients of a tenant as may wait are waiting for pages of earlier events."""

    slug, title, status = "too-many-replays", "Too many replays of earlier events are running", 429


class LedgerUnavailable(TemporaryError):
    slug, title = "ledger-unavailable", "The queue broker does not answer"


class NewerRecord(TemporaryError):
    """A later version of darkroom wrote the job's record, as in an upgrade: a process of that version must answer."""

    slug, title = "newer-record", "The job is of a later version of darkroom"


class HistoryUnavailable(TemporaryError):
    """The database of ended jobs is away: whether there was such a job is not known."""

    slug, title = "history-unavailable", "The database of ended jobs does not answer"


class SinkUnavailable(TemporaryError):
    """An event could not be posted again: nobody answers at the sink, or none is set."""

    slug, title = "sink-unavailable", "The sink does not answer"

"""The errors of darkroom, in two kinds: permanent ones, and temporary ones that a retry may resolve.

Every refusal and failure is one of these. Each edge translates them: the functions to problem details (RFC 9457) with
a status and perhaps `Retry-After`, a worker to `failed` or a retry, the command line to a message and an exit status.
No other exception reaches a caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from darkroom.access.limits import Quota

PROBLEM_BASE = "https://darkroom.dev/problems/"
"""The prefix of the `type` of every problem detail; the page of that name lists them (RFC 9457, section 3.1.1)."""


@dataclass(frozen=True)
class FieldError:
    """An invalid field of a request: its name as the caller wrote it (dotted), and the reason."""

    field: str
    detail: str


class DarkroomError(Exception):
    """Base of the two kinds.

    `slug` identifies the problem for programs, `title` describes it (the same for every occurrence), `status` is its
    HTTP status, `detail` describes this occurrence, and `fields` are the invalid parts of the request.
    """

    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500

    quotas: Sequence[Quota] = ()
    """Of a submission that the ledger refused: what remains of the caller's limits."""

    def __init__(self, detail: str, *, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)

    def problem(self) -> dict[str, object]:
        """The members of an `application/problem+json` document (RFC 9457, section 3.1); `errors` is an extension."""
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
    slug, title, status = "unsupported-media-type", "The content type is not supported", 415


class BodyTooLarge(PermanentError):
    slug, title, status = "body-too-large", "The body is larger than the limit", 413


class InvalidEvent(PermanentError):
    """A CloudEvent that breaks its specification; `fields` name the attributes."""

    slug, title = "invalid-event", "The CloudEvent is not valid"


class InvalidInput(PermanentError):
    """A well-formed request that the model does not accept; `fields` name the parameters."""

    slug, title = "invalid-input", "The request is not valid"


class UnknownModel(PermanentError):
    slug, title, status = "unknown-model", "No such model", 404


class NotFound(PermanentError):
    slug, title, status = "not-found", "There is no such resource", 404


class Gone(PermanentError):
    """A job that was deleted, by its owner or by retention: `state` was its last one; times are text."""

    slug, title, status = "gone", "The job has been deleted", 410

    def __init__(
        self, detail: str, *, state: str | None = None, ended_at: str | None = None, deleted_at: str | None = None
    ) -> None:
        super().__init__(detail)
        self.tombstone = {"state": state, "ended_at": ended_at, "deleted_at": deleted_at}

    def problem(self) -> dict[str, object]:
        """The members of every problem, and those of the tombstone."""
        return super().problem() | self.tombstone


class NotEnded(PermanentError):
    """A pending or running job cannot be deleted."""

    slug, title, status = "not-ended", "The job has not finished", 409


class MethodNotAllowed(PermanentError):
    """`allow` are the methods of the resource, for the header of that name (RFC 9110, section 15.5.6)."""

    slug, title, status = "method-not-allowed", "The resource does not support this method", 405

    def __init__(self, detail: str, *, allow: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.allow = tuple(allow)


class MisdirectedRequest(PermanentError):
    """A request for a host that this process does not serve (RFC 9110, section 15.5.20)."""

    slug, title, status = "misdirected-request", "This host is not served here", 421


class ForeignOrigin(PermanentError):
    """A request of a web page whose origin is not allowed."""

    slug, title, status = "foreign-origin", "Pages of this origin are not allowed", 403


class RequestTimeout(PermanentError):
    """A request that arrived too slowly."""

    slug, title, status = "request-timeout", "The request did not arrive in time", 408


class RequestLineTooLong(PermanentError):
    slug, title, status = "request-line-too-long", "The path and query are longer than the limit", 414


class HeadersTooLarge(PermanentError):
    slug, title, status = "headers-too-large", "The headers are larger than the limit", 431


class PreconditionFailed(PermanentError):
    """`If-Match` or `If-Unmodified-Since` does not hold (RFC 9110, section 15.5.13)."""

    slug, title, status = "precondition-failed", "A condition of the request does not hold", 412


class RangeNotSatisfiable(PermanentError):
    """The range begins behind the end; `size` is the number of bytes of the resource (RFC 9110, section 15.5.17)."""

    slug, title, status = "range-not-satisfiable", "The range begins behind the end", 416

    def __init__(self, detail: str, *, size: int = 0) -> None:
        super().__init__(detail)
        self.size = size


class LinkRefused(PermanentError):
    """A signed link whose signature is wrong or that has expired."""

    slug, title, status = "link-refused", "The link is not valid or has expired", 403


class CredentialRefused(PermanentError):
    """A request without a credential, or with one that is not valid. `error` is that of RFC 6750, section 3.1."""

    slug, title, status = "credential-refused", "A valid credential is required", 401

    def __init__(self, detail: str, *, error: str | None = "invalid_token") -> None:
        super().__init__(detail)
        self.error = error


class ScopeMissing(PermanentError):
    """A credential that lacks the scope of the operation."""

    slug, title, status = "scope-missing", "The credential does not permit this", 403

    def __init__(self, detail: str, *, scope: str = "") -> None:
        super().__init__(detail)
        self.scope = scope


class ProofRefused(PermanentError):
    """An event that darkroom did not make, or that was changed: its proof is missing or does not match."""

    slug, title, status = "proof-refused", "The origin of the event is not proven", 403


class ModelNotPermitted(PermanentError):
    """A credential that is limited to other models."""

    slug, title, status = "model-not-permitted", "The credential does not permit this model", 403


class NameTaken(PermanentError):
    """A tenant or a key of that name exists."""

    slug, title, status = "name-taken", "The name is taken", 409


class TenantInUse(PermanentError):
    """A tenant that has keys or jobs cannot be deleted."""

    slug, title, status = "tenant-in-use", "The tenant is in use", 409


class ManagedByDeclaration(PermanentError):
    """A tenant or a key that a declaration defines, such as the file of tenants: it is changed there alone."""

    slug, title, status = "managed-by-declaration", "A declaration defines this", 409


class KeyReused(PermanentError):
    """An idempotency key that was used with another body."""

    slug, title = "idempotency-key-reused", "The idempotency key was used with another request"


class EventReused(PermanentError):
    """A CloudEvent whose `source` and `id` were used with other data."""

    slug, title = "event-id-reused", "The source and id of the event were used with other data"


class IdConflict(PermanentError):
    """A job id, chosen by the caller's retry, that belongs to a job of another tenant."""

    slug, title, status = "id-conflict", "The job id is taken", 409


class NotEnabled(PermanentError):
    """A subscription that was disabled, has ended or was deleted: nothing is delivered to it."""

    slug, title, status = "not-enabled", "The subscription is not enabled", 409


class TooManySubscriptions(PermanentError):
    """A tenant has reached the limit of its subscriptions."""

    slug, title, status = "too-many-subscriptions", "The limit of subscriptions is reached", 409


class SettingError(PermanentError):
    """An invalid setting: the message names the variable and the value."""

    slug, title, status = "bad-setting", "A setting is not valid", 500


class NoPool(TemporaryError):
    """The model's pool was not announced by the operator or `darkroom up`, or was deleted: no worker would run it."""

    slug, title = "no-pool", "No worker pool serves this model"


class BacklogFull(TemporaryError):
    slug, title, status = "backlog-full", "The pool's backlog is full", 429


class LimitExceeded(TemporaryError):
    """A limit of the tenant or of the key is reached. `policies` name all such limits, as `RateLimit-Policy` does."""

    slug, title, status = "limit-exceeded", "A limit is reached", 429

    def __init__(self, detail: str, *, retry_after: int = 1, policies: Sequence[str] = ()) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.policies = tuple(policies)

    def problem(self) -> dict[str, object]:
        """The members of every problem, and the extension member of the draft's own type `quota-exceeded`."""
        return super().problem() | {"violated-policies": list(self.policies)}


class SubmissionRateExceeded(LimitExceeded):
    slug, title = "submission-rate-exceeded", "Too many submissions in this time"


class WaitingJobsExceeded(LimitExceeded):
    slug, title = "waiting-jobs-exceeded", "Too many jobs wait"


class WaitingBytesExceeded(LimitExceeded):
    slug, title = "waiting-bytes-exceeded", "The unfinished jobs use too many bytes"


class ImageBudgetExceeded(LimitExceeded):
    slug, title = "image-budget-exceeded", "The budget of images is used up"


class GpuBudgetExceeded(LimitExceeded):
    slug, title = "gpu-budget-exceeded", "The budget of GPU seconds is used up"


class MemoryHigh(TemporaryError):
    slug, title = "memory-high", "The memory of Redis is nearly used up"


class AuditFull(TemporaryError):
    """Too many operations are recorded that the database does not have: it has been unavailable for long."""

    slug, title = "audit-full", "The audit trail is full"


class TooManyConnections(TemporaryError):
    """A process has reached its limit of connections, and all of them are in use."""

    slug, title = "too-many-connections", "Too many connections are open"


class TooManyTickets(TemporaryError):
    """A credential has reached the limit of its unused tickets."""

    slug, title, status = "too-many-tickets", "The limit of unused tickets is reached", 429


class TooManyReplays(TemporaryError):
    """The limit of a tenant's clients that wait for pages of earlier events is reached."""

    slug, title, status = "too-many-replays", "Too many replays of earlier events are running", 429


class LedgerUnavailable(TemporaryError):
    slug, title = "ledger-unavailable", "Redis is unavailable"


class AccessUnavailable(TemporaryError):
    """No keys have been published yet, as after Redis lost its data: it is unknown whether a credential is valid."""

    slug, title = "access-unavailable", "The keys are not available yet"


class NewerRecord(TemporaryError):
    """A later version of darkroom wrote the job's record, as in an upgrade: a process of that version must respond."""

    slug, title = "newer-record", "The job belongs to a later version of darkroom"


class HistoryUnavailable(TemporaryError):
    """The database of finished jobs is unavailable: it is unknown whether there was such a job."""

    slug, title = "history-unavailable", "The database of finished jobs is unavailable"


class SinkUnavailable(TemporaryError):
    """An event could not be posted again: the sink does not respond, or none is set."""

    slug, title = "sink-unavailable", "The sink is unavailable"

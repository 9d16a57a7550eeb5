"""Calls that submit, cancel, expire and delete jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from darkroom.access.limits import UNLIMITED, Limits, Owner, Quota, policy_name
from darkroom.errors import (
    AuditFull,
    BacklogFull,
    DarkroomError,
    EventReused,
    GpuBudgetExceeded,
    IdConflict,
    ImageBudgetExceeded,
    InvalidInput,
    KeyReused,
    LimitExceeded,
    MemoryHigh,
    NoPool,
    NotFound,
    SubmissionRateExceeded,
    TemporaryError,
    WaitingBytesExceeded,
    WaitingJobsExceeded,
)
from darkroom.jobs import RECORD_VERSION, State, UnknownValue, is_tenant, read_value
from darkroom.ledger import queues
from darkroom.ledger.calls.call import Call, compact_json, ids, make_call, word
from darkroom.webhooks.subscriptions import (
    Webhook,
    in_order,
    target_of,
)

BACKLOG_LIMIT = 10_000
"""Jobs that may wait in one pool; at 60 a minute, more than two hours of work."""

BACKLOG_BYTES = 256 * 1024 * 1024
"""Bytes of Redis that unfinished jobs of all pools may use: half of the shipped `maxmemory` (512 MB), so that finished
jobs, their logs and events fit below the 80 % at which every submission is refused.
"""

RECORD_TTL_MS = 24 * 3600 * 1000
"""How long Redis keeps a finished job, once the history has it and its event is applied."""

ENDED_BYTES = 128 * 1024 * 1024
"""Bytes of Redis that such jobs may use: with those of unfinished jobs three quarters of the shipped `maxmemory`."""

MAX_ATTEMPTS = 3
"""Counted attempts before a job fails."""

AGEING_MS = 15 * 60 * 1000
"""How long a job waits in one priority class before it moves up one."""

DEFAULT_PRIORITY = 5
"""The middle of 0 (first) to 9 (last)."""


class Receipt(StrEnum):
    """The receipt of a cancellation: its effect."""

    DEQUEUED = "dequeued"
    INTERRUPTING = "interrupting"
    TOO_LATE = "too_late"


class Purged(StrEnum):
    """The result of purging a dead letter. `REPEATED`: it had been purged or redriven before."""

    PURGED = "purged"
    REPEATED = "repeated"
    UNKNOWN = "unknown"


class Deleted(StrEnum):
    """The result of deleting a job from Redis; one that is not in a terminal state is `LIVING` and stays."""

    GONE = "gone"
    LIVING = "living"


@dataclass(frozen=True)
class Submission:
    """A job for the ledger to accept: validated, complete, with its seed.

    `input` are the model's parameters; `fields` values that no engine needs (user, webhook, the submitting event);
    `accepted` the data of the first log entry. `start_deadline` is in milliseconds since the epoch,
    `start_within` in milliseconds from the acceptance, by Redis' clock; the earlier one counts. `run_timeout` is in
    seconds. `idempotency_key` is a hash (no blanks), and `fingerprint` that of the request as it was sent. `redrive_of`
    is the dead letter that the job redrives. `webhook` becomes fields of the job too (`Webhook.encode`); `fields` do
    not need them. `is_event`: the caller sent a CloudEvent, whose `source` and `id` are the idempotency key.

    `key_id` is the credential that is charged for the job, `weight` the tenant's share. `images` is the number of
    images that the job requests.
    """

    job_id: str
    tenant: str
    model: str
    pool: str
    input: Mapping[str, Any]
    fields: Mapping[str, Any]
    run_timeout: float
    priority: int = DEFAULT_PRIORITY
    start_deadline: int | None = None
    start_within: int | None = None
    max_attempts: int = MAX_ATTEMPTS
    idempotency_key: str | None = None
    fingerprint: str | None = None
    traceparent: str | None = None
    accepted: Mapping[str, Any] = field(default_factory=dict)
    redrive_of: str | None = None
    webhook: Webhook | None = None
    is_event: bool = False
    images: int = 1
    key_id: str | None = None
    weight: float = 1.0
    tenant_limits: Limits = UNLIMITED
    key_limits: Limits = UNLIMITED

    def __post_init__(self) -> None:
        """Raises InvalidInput for a tenant's name that the object store would refuse, once the job has run."""
        if not is_tenant(self.tenant):
            raise InvalidInput(f"{self.tenant!r} cannot name a tenant")
        if self.idempotency_key is not None and self.fingerprint is None:
            raise ValueError("an idempotency key needs the fingerprint of its request")


@dataclass(frozen=True)
class Accepted:
    """An accepted job: its id and when it was accepted (ms). `repeated`: it had been accepted before.

    `state` is the job's state now; None for a repeat whose record Redis no longer has. `quotas` is what remains of each
    limit of the tenant and the key.
    """

    job_id: str
    created_ms: int
    repeated: bool
    state: State | UnknownValue | None = State.PENDING
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True)
class Cancelled:
    """The receipt of a cancellation and the job's state after it; both None for a job that the caller does not have."""

    receipt: Receipt | None
    state: State | UnknownValue | None


def accept(
    job: Submission,
    *,
    backlog_limit: int,
    backlog_bytes: int = BACKLOG_BYTES,
    memory_high: bool = False,
    audit: str | None = None,
    by_user: bool = False,
    now: int | None = None,
) -> Call[Accepted | DarkroomError]:
    """– → pending. Idempotent under the job id, under the idempotency key for a day, and under the dead letter that it
    redrives.

    A refusal is returned, not raised, so that many accepts can share a round trip: NoPool, BacklogFull, MemoryHigh,
    LimitExceeded, KeyReused, IdConflict, AuditFull, and NotFound where `redrive_of` is not a dead letter.
    `memory_high`: the caller has read that Redis' memory is nearly used up. `audit` is the entry of the audit trail,
    which is appended with the acceptance; a repeat appends none.
    `by_user`: the users of a tenant take turns; otherwise its jobs run in the order of their arrival.
    """
    message = queues.build_message(
        job_id=job.job_id, pool=job.pool, traceparent=job.traceparent, event=job.fields.get("event")
    )
    webhook = job.webhook

    def decode(reply: bytes) -> Accepted | DarkroomError:
        words, *lines = reply.decode().split("\n")
        answer, *about = words.split(" ")
        quotas = tuple(_quota(line, job) for line in lines)
        if answer == "accepted":
            return Accepted(about[0], int(about[1]), repeated=False, quotas=quotas)
        if answer == "repeated":
            state = read_value(State, about[2]) if about[2:] else None
            return Accepted(about[0], int(about[1]), repeated=True, state=state, quotas=quotas)
        refusal = _refusal(answer, about, job)
        refusal.quotas = quotas
        return refusal

    return make_call(
        "accept",
        decode,
        v=RECORD_VERSION,
        job=job.job_id,
        tenant=job.tenant,
        model=job.model,
        pool=job.pool,
        input=compact_json(job.input),
        fields=compact_json(job.fields if webhook is None else {**job.fields, **webhook.encode()}),
        accepted=compact_json(job.accepted),
        priority=job.priority,
        max_attempts=job.max_attempts,
        run_timeout=job.run_timeout,
        start_deadline=job.start_deadline,
        start_within=job.start_within,
        idempotency_key=job.idempotency_key,
        fingerprint=job.fingerprint,
        redrive_of=job.redrive_of,
        webhook=None if webhook is None else webhook.url,
        webhook_events=None if webhook is None else " ".join(in_order(webhook.events)),
        webhook_target=None if webhook is None else target_of(job.tenant, webhook.url),
        traceparent=job.traceparent,
        message_head=message.head,
        message_tail=message.tail,
        backlog_limit=backlog_limit,
        backlog_bytes=backlog_bytes,
        memory_high=1 if memory_high else None,
        images=job.images,
        key_id=job.key_id,
        weight=None if job.weight == 1 else job.weight,
        user=_user_of(job) if by_user else None,
        **_limits_of("tenant", job.tenant_limits),
        **_limits_of("key", job.key_limits),
        audit=audit,
        now=now,
    )


def _user_of(job: Submission) -> str:
    """The name of the job's user in keys: short, and without characters that separate words."""
    return hashlib.sha256(str(job.fields.get("user_id", "")).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _limits_of(owner: str, limits: Limits) -> Mapping[str, int]:
    """The arguments of the limits that are set, such as `tenant_waiting_jobs`; `tenant_limited` where any is."""
    found = {f"{owner}_{name}": value for name, value in limits.model_dump(exclude_none=True).items()}
    return {f"{owner}_limited": 1, **found} if found else {}


def _quota(line: str, job: Submission) -> Quota:
    """From a line of the reply: a limit, what remains of it, and when more remains (seconds, or `-`)."""
    name, remaining, reset = line.split(" ")
    owner, limit = _owner_and_limit(name)
    limits = job.tenant_limits if owner is Owner.TENANT else job.key_limits
    return Quota.of(owner, limit, limits, remaining=int(remaining), reset_s=None if reset == "-" else int(reset))


def _owner_and_limit(name: str) -> tuple[Owner, str]:
    owner, _, limit = name.partition("_")
    return Owner(owner), limit


_EXCEEDED: Mapping[str, type[LimitExceeded]] = {
    "submissions_per_minute": SubmissionRateExceeded,
    "waiting_jobs": WaitingJobsExceeded,
    "waiting_bytes": WaitingBytesExceeded,
    "images_per_day": ImageBudgetExceeded,
    "images_per_month": ImageBudgetExceeded,
    "gpu_seconds_per_day": GpuBudgetExceeded,
    "gpu_seconds_per_month": GpuBudgetExceeded,
}
"""The errors of the limits, by name."""


def _over_limit(wait_s: str, names: list[str], job: Submission) -> LimitExceeded:
    """The refusal for the first limit that is reached, which names all of them."""
    exceeded = [_owner_and_limit(name) for name in names]
    owner, limit = exceeded[0]
    most = getattr(job.tenant_limits if owner is Owner.TENANT else job.key_limits, limit)
    whose = f"tenant {job.tenant}" if owner is Owner.TENANT else f"key {job.key_id}"
    return _EXCEEDED[limit](
        f"the limit of {whose} is reached: {most:,} {limit.replace('_', ' ')}",
        retry_after=max(1, int(wait_s)),
        policies=[policy_name(*each) for each in exceeded],
    )


def _refusal(answer: str, about: list[str], job: Submission) -> DarkroomError:
    match answer:
        case "no_pool":
            return NoPool(f"there is no worker pool {job.pool!r}, which model {job.model!r} needs", retry_after=30)
        case "backlog_full":
            return BacklogFull(f"{about[0]} jobs wait in pool {job.pool!r}", retry_after=int(about[1]))
        case "bytes_full":
            mib = int(about[0]) / 2**20
            return BacklogFull(f"the unfinished jobs use {mib:.1f} MiB of Redis", retry_after=int(about[1]))
        case "over_limit":
            return _over_limit(about[0], about[1:], job)
        case "memory_high":
            return MemoryHigh("the memory of Redis is nearly used up; nothing was stored", retry_after=10)
        case "audit_full":
            return AuditFull("the audit trail is full; nothing was stored", retry_after=30)
        case "key_reused" if job.is_event:
            return EventReused(f"an event with this source and id, with other data, was accepted as job {about[0]}")
        case "key_reused":
            return KeyReused(f"this idempotency key was used before with another body, for job {about[0]}")
        case "no_dead_letter":
            return NotFound(f"job {job.redrive_of} is not a dead letter")
        case "conflict":
            return IdConflict(f"the id {job.job_id} belongs to a job of another tenant")
    return TemporaryError(f"the ledger returned {answer!r}")


def promote(pool: str, *, limit: int = 100, now: int | None = None) -> Call[list[str]]:
    """Add retries that are due to the backlog. Returns their ids."""
    return make_call("promote", ids, pool=pool, limit=limit, now=now)


def age(pool: str, *, bound_ms: int = AGEING_MS, limit: int = 100, now: int | None = None) -> Call[list[str]]:
    """Move jobs that have waited in their priority class for longer than `bound_ms` up one class. Returns their ids."""
    return make_call("age", ids, pool=pool, bound_ms=bound_ms, limit=limit, now=now)


def expire(*, limit: int = 100, now: int | None = None) -> Call[list[str]]:
    """Expire pending jobs whose start deadline passed. Returns their ids."""
    return make_call("expire", ids, limit=limit, now=now)


def cancel(job_id: str, *, tenant: str | None, now: int | None = None) -> Call[Cancelled]:
    """pending → cancelled; running: a mark. `tenant` None is for darkroom's own parts only."""

    def decode(reply: list[bytes]) -> Cancelled:
        if reply[0] == b"unknown":
            return Cancelled(None, None)
        return Cancelled(Receipt(reply[0].decode()), read_value(State, reply[1].decode()))

    return make_call("cancel", decode, job=job_id, tenant=tenant, now=now)


def purge_dead_letter(job_id: str, *, tenant: str, now: int | None = None) -> Call[Purged]:
    """Remove the job from the dead letters, so that it cannot be redriven."""
    return make_call("purge_dead_letter", word(Purged), job=job_id, tenant=tenant, now=now)


def set_retention(*, record_ttl_ms: int = RECORD_TTL_MS, ended_bytes: int = ENDED_BYTES) -> Call[str]:
    """Set how long Redis keeps jobs that finish from now on, and the bytes that finished jobs may use."""
    return make_call("set_retention", bytes.decode, record_ttl_ms=record_ttl_ms, ended_limit=ended_bytes)


def delete_job(job_id: str, *, tenant: str, now: int | None = None) -> Call[Deleted]:
    """Remove everything that Redis has of a job that was deleted, unless it is not in a terminal state."""
    return make_call("delete_job", word(Deleted), job=job_id, tenant=tenant, now=now)

"""The ledger's transitions as values: which script, with what, and how its answer reads.

Whoever changes a job builds one of these and hands it to a `Ledger` or an `AsyncLedger`, alone or several in one round
trip. The rules themselves are in `lua/`, one file per transition; nothing here touches Redis.

Every transition may be repeated with the same arguments, as a client does whose reply was lost: it changes nothing more
and answers alike. `now` (milliseconds since the epoch) is for tests; otherwise Redis' own clock counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from darkroom import queues
from darkroom.errors import (
    BacklogFull,
    DarkroomError,
    IdConflict,
    KeyReused,
    MemoryHigh,
    NoPool,
    NotFound,
    TemporaryError,
)
from darkroom.jobs import RECORD_VERSION, State

T = TypeVar("T")

LEASE_MS = 15_000
"""How long a running attempt is believed without a sign of life; renewed every third of it."""

REAP_GAP_MS = 5_000
"""A longer gap between two reaps means that nobody could have renewed: then nothing is reaped for one lease."""

SWEEP_AGE_MS = 5_000
"""A message that was pushed longer ago, and is not in the list, was taken and never claimed."""

RELAY_LEASE_MS = 30_000
"""An event that was posted and not applied after this is posted again, then after twice that, and so on."""

HISTORY_LEASE_MS = 30_000
"""An ended job taken for the history and not archived after this is taken again: far longer than a commit."""

WORKER_TTL_MS = 15_000
"""A worker that said nothing for this long is no slot of its pool."""

CANARY_TTL_MS = 60_000
"""A canary that its sender forgot is forgotten by the ledger too; a worker that takes it later drops it."""

BACKLOG_LIMIT = 10_000
"""Jobs that may wait in one pool; at 60 a minute, more than two hours of work: beyond it a refusal is kinder."""

MAX_ATTEMPTS = 3
"""Attempts that count, before a job fails."""

DEFAULT_PRIORITY = 5
"""The middle of 0 (first) to 9 (last)."""


class Receipt(StrEnum):
    """What a cancel did."""

    DEQUEUED = "dequeued"
    INTERRUPTING = "interrupting"
    TOO_LATE = "too_late"


class Standing(StrEnum):
    """How an attempt stands, as its worker is told when it renews or reports progress."""

    OK = "ok"
    CANCEL = "cancel"
    LOST = "lost"


class Ended(StrEnum):
    """What became of the job when its worker ended the attempt. `LOST`: the token was stale and nothing changed."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PENDING = "pending"
    LOST = "lost"


class Reason(StrEnum):
    """Why a running job was given back. Only `WORKER_LOST` counts as an attempt."""

    DRAIN = "drain"
    WORKER_FAULT = "worker_fault"
    WORKER_LOST = "worker_lost"


class Applied(StrEnum):
    """What the ledger says to a terminal event that was taken in."""

    APPLIED = "applied"
    REPEATED = "repeated"
    UNKNOWN = "unknown"


class Archived(StrEnum):
    """What the ledger says to an ended job that the history has."""

    ARCHIVED = "archived"
    REPEATED = "repeated"
    UNKNOWN = "unknown"


class Purged(StrEnum):
    """What the ledger says to the purge of a dead letter. `REPEATED`: it had been purged or redriven before."""

    PURGED = "purged"
    REPEATED = "repeated"
    UNKNOWN = "unknown"


class Forgotten(StrEnum):
    """Whether what Redis had of a deleted job is gone; a living one is not deleted."""

    GONE = "gone"
    LIVING = "living"


class WorkerState(StrEnum):
    """What a worker says of itself."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    FAULTY = "faulty"
    GONE = "gone"


@dataclass(frozen=True)
class Submission:
    """A job as it is handed to the ledger: validated, complete, its seed drawn.

    `input` are the model's parameters; `fields` what goes with the job and concerns no engine (user, webhook, the
    submitting event); `event` the structured CloudEvent that its message carries; `accepted` the data of the first log
    entry. `start_deadline` is in milliseconds since the epoch, `run_timeout` in seconds. `idempotency_key` is a hash
    (no blanks), and `fingerprint` that of the request as it was sent. `redrive_of` is the dead letter that the job is
    made of.
    """

    job_id: str
    tenant: str
    model: str
    pool: str
    input: Mapping[str, Any]
    fields: Mapping[str, Any]
    event: Mapping[str, Any]
    run_timeout: float
    priority: int = DEFAULT_PRIORITY
    start_deadline: int | None = None
    max_attempts: int = MAX_ATTEMPTS
    idempotency_key: str | None = None
    fingerprint: str | None = None
    traceparent: str | None = None
    accepted: Mapping[str, Any] = field(default_factory=dict)
    redrive_of: str | None = None

    def __post_init__(self) -> None:
        if self.idempotency_key is not None and self.fingerprint is None:
            raise ValueError("an idempotency key needs the fingerprint of its request")


@dataclass(frozen=True)
class Accepted:
    """The slip: the job's id and when it was accepted (ms). `repeated`: it had been accepted before."""

    job_id: str
    created_ms: int
    repeated: bool


@dataclass(frozen=True)
class Claim:
    """What a worker gets for a message: an attempt to run, or the reason why the message is dropped.

    `attempt` counts every start of the job, `counted` those that were charged to it; `run_timeout` is in seconds.
    """

    attempt: int | None
    dropped: str | None
    run_timeout: float
    counted: int
    tenant: str


@dataclass(frozen=True)
class Cancelled:
    """A cancel's receipt and the job's state after it; `receipt` is None for a job that the caller has not."""

    receipt: Receipt | None
    state: State | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of one script: `args` are names and values in turn; `decode` makes the answer of Redis' reply."""

    script: str
    args: tuple[str, ...]
    decode: Callable[[Any], T]


def accept(
    job: Submission, *, backlog_limit: int, memory_high: bool = False, now: int | None = None
) -> Call[Accepted | DarkroomError]:
    """– → pending. Idempotent under the job id, under the idempotency key for a day, and under the dead letter that it
    redrives.

    A refusal is answered, not raised, so that many accepts can share a round trip: NoPool, BacklogFull, MemoryHigh,
    KeyReused, IdConflict, and NotFound for a dead letter that is none. `memory_high` is the caller's reading that
    Redis' memory is nearly used up.
    """
    message = queues.build_message(job_id=job.job_id, pool=job.pool, event=dict(job.event), traceparent=job.traceparent)

    def decode(reply: bytes) -> Accepted | DarkroomError:
        answer, *about = reply.decode().split(" ")
        if answer in {"accepted", "repeated"}:
            return Accepted(about[0], int(about[1]), repeated=answer == "repeated")
        return _refusal(answer, about, job)

    return _call(
        "accept",
        decode,
        v=RECORD_VERSION,
        job=job.job_id,
        tenant=job.tenant,
        model=job.model,
        pool=job.pool,
        input=_json(job.input),
        fields=_json(job.fields),
        accepted=_json(job.accepted),
        priority=job.priority,
        max_attempts=job.max_attempts,
        run_timeout=job.run_timeout,
        start_deadline=job.start_deadline,
        idempotency_key=job.idempotency_key,
        fingerprint=job.fingerprint,
        redrive_of=job.redrive_of,
        traceparent=job.traceparent,
        message_head=message.head,
        message_tail=message.tail,
        backlog_limit=backlog_limit,
        memory_high=1 if memory_high else None,
        now=now,
    )


def _refusal(answer: str, about: list[str], job: Submission) -> DarkroomError:
    match answer:
        case "no_pool":
            return NoPool(f"no worker pool {job.pool!r} has been announced for model {job.model!r}", retry_after=30)
        case "backlog_full":
            wait = min(max(int(about[1]), 1), 600)
            return BacklogFull(f"{about[0]} jobs wait in pool {job.pool!r}", retry_after=wait)
        case "memory_high":
            return MemoryHigh("the queue broker's memory is nearly used up; nothing was stored", retry_after=10)
        case "key_reused":
            return KeyReused(f"this idempotency key came before, with another body, for job {about[0]}")
        case "no_dead_letter":
            return NotFound(f"job {job.redrive_of} is no dead letter")
        case "conflict":
            return IdConflict(f"the id {job.job_id} names a job of another tenant")
    return TemporaryError(f"the ledger answered {answer!r}")


def claim(job_id: str, *, token: str, worker: str, lease_ms: int = LEASE_MS, now: int | None = None) -> Call[Claim]:
    """pending → running, under the attempt's fresh token."""

    def decode(reply: list[bytes]) -> Claim:
        if reply[0] == b"drop":
            return Claim(None, reply[1].decode(), 0.0, 0, "")
        return Claim(int(reply[1]), None, float(reply[3]), int(reply[4]), reply[5].decode())

    return _call("claim", decode, job=job_id, token=token, worker=worker, lease_ms=lease_ms, now=now)


def renew(job_id: str, *, token: str, lease_ms: int = LEASE_MS, now: int | None = None) -> Call[Standing]:
    """The attempt lives: its lease is prolonged from now."""
    return _call("renew", _word(Standing), job=job_id, token=token, lease_ms=lease_ms, now=now)


def progress(
    job_id: str, *, token: str, op: int, step: int, steps: int, tell: bool, now: int | None = None
) -> Call[Standing]:
    """Step `step` of `steps` is done. `op` counts the calls of this attempt from 1; `tell` writes a log entry."""
    return _call(
        "progress", _word(Standing), job=job_id, token=token, op=op, step=step, steps=steps, tell=int(tell), now=now
    )


def finish(job_id: str, *, token: str, outcome: State, data: Mapping[str, Any], now: int | None = None) -> Call[Ended]:
    """running → completed, failed or cancelled. `data` goes into the terminal log entry: the result, or `error`."""
    return _call("finish", _word(Ended), job=job_id, token=token, outcome=outcome, data=_json(data), now=now)


def retry(job_id: str, *, token: str, error: Mapping[str, Any], delay_ms: int, now: int | None = None) -> Call[Ended]:
    """running → pending in `delay_ms`; the attempt counts. `error` is `{"kind", "message"}`."""
    return _call("retry", _word(Ended), job=job_id, token=token, error=_json(error), delay_ms=delay_ms, now=now)


def release(
    job_id: str,
    *,
    reason: Reason,
    detail: str,
    token: str | None = None,
    worker: str | None = None,
    now: int | None = None,
) -> Call[Ended]:
    """running → pending, at the head. Proven by the attempt's token or, for a worker that is gone, by its name."""
    return _call("release", _word(Ended), job=job_id, token=token, worker=worker, reason=reason, detail=detail, now=now)


def reap(
    pool: str, *, lease_ms: int = LEASE_MS, gap_ms: int = REAP_GAP_MS, limit: int = 100, now: int | None = None
) -> Call[list[str]]:
    """Running jobs whose lease lapsed are given back; answers their ids."""
    return _call("reap", _ids, pool=pool, lease_ms=lease_ms, gap_ms=gap_ms, limit=limit, now=now)


def sweep(pool: str, *, age_ms: int = SWEEP_AGE_MS, now: int | None = None) -> Call[list[str]]:
    """Messages that were taken and never claimed are pushed again; answers the ids of their jobs."""
    return _call("sweep", _ids, pool=pool, age_ms=age_ms, now=now)


def promote(pool: str, *, limit: int = 100, now: int | None = None) -> Call[list[str]]:
    """Retries whose time has come join the backlog; answers their ids."""
    return _call("promote", _ids, pool=pool, limit=limit, now=now)


def expire(*, limit: int = 100, now: int | None = None) -> Call[list[str]]:
    """Pending jobs past their start deadline end; answers their ids."""
    return _call("expire", _ids, limit=limit, now=now)


def cancel(job_id: str, *, tenant: str | None, now: int | None = None) -> Call[Cancelled]:
    """pending → cancelled; running: a mark. `tenant` None is for darkroom's own parts only."""

    def decode(reply: list[bytes]) -> Cancelled:
        if reply[0] == b"unknown":
            return Cancelled(None, None)
        return Cancelled(Receipt(reply[0].decode()), State(reply[1].decode()))

    return _call("cancel", decode, job=job_id, tenant=tenant, now=now)


def applied(job_id: str, *, seq: int, now: int | None = None) -> Call[Applied]:
    """The terminal event of the job, entry `seq` of its log, has been taken in."""
    return _call("applied", _word(Applied), job=job_id, seq=seq, now=now)


def archived(job_id: str, *, seq: int, now: int | None = None) -> Call[Archived]:
    """The ended job, whose terminal event is entry `seq` of its log, has been committed to the history."""
    return _call("archived", _word(Archived), job=job_id, seq=seq, now=now)


def purge(job_id: str, *, tenant: str, now: int | None = None) -> Call[Purged]:
    """The dead letter is one no more, and no job is made of it."""
    return _call("purge", _word(Purged), job=job_id, tenant=tenant, now=now)


def forget(job_id: str, *, tenant: str, now: int | None = None) -> Call[Forgotten]:
    """The job was deleted: everything that Redis has of it goes, unless it lives."""
    return _call("forget", _word(Forgotten), job=job_id, tenant=tenant, now=now)


def take_relays(
    *, taker: str, call: str, limit: int, lease_ms: int = RELAY_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Up to `limit` jobs whose terminal event is to be posted, leased to `taker`. `call` names this call."""
    return _call("take", _ids, kind="relay", taker=taker, call=call, limit=limit, lease_ms=lease_ms, now=now)


def defer_relay(job_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The sink did not take this job's event: it is due again in `delay_ms`."""
    return _call("defer", int, kind="relay", job=job_id, delay_ms=delay_ms, now=now)


def take_history(
    *, taker: str, call: str, limit: int, lease_ms: int = HISTORY_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Up to `limit` ended jobs that are to be written to the history, leased to `taker`. `call` names this call."""
    return _call("take", _ids, kind="history", taker=taker, call=call, limit=limit, lease_ms=lease_ms, now=now)


def defer_history(job_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The history did not take this job: it is due again in `delay_ms`."""
    return _call("defer", int, kind="history", job=job_id, delay_ms=delay_ms, now=now)


def announce(pool: str, *, models: Sequence[str], now: int | None = None) -> Call[str]:
    """The pool exists and serves `models`."""
    return _call("announce", bytes.decode, pool=pool, models=",".join(models), now=now)


def worker(
    name: str,
    *,
    pool: str,
    state: WorkerState,
    pod: str,
    models: Sequence[str],
    ttl_ms: int = WORKER_TTL_MS,
    now: int | None = None,
) -> Call[str]:
    """A worker's heartbeat: what it is now."""
    return _call(
        "worker",
        bytes.decode,
        worker=name,
        pool=pool,
        state=state,
        pod=pod,
        models=",".join(models),
        ttl_ms=ttl_ms,
        now=now,
    )


def repair(
    job_id: str, *, pool: str | None = None, worker: str | None = None, now: int | None = None
) -> Call[list[str]]:
    """Put the job where its record says that it belongs; answers what was done, nothing where all is right.

    `pool` names one whose sets, and `worker` one whose entry, name the job though its record does not say so.
    """
    return _call("repair", _ids, job=job_id, pool=pool, worker=worker, now=now)


def canary(canary_id: str, *, pool: str, withdraw: bool = False, now: int | None = None) -> Call[str | None]:
    """Send a canary through the pool's queue, once; answers the worker that has signed for it by now.

    `canary_id` begins with `queues.CANARY`, so that nobody takes it for a job's. `withdraw` takes it back.
    """
    message = queues.build_message(job_id=canary_id, pool=pool, event={"type": "dev.darkroom.canary"}, traceparent=None)
    return _call(
        "canary",
        lambda reply: reply.decode() or None,
        canary=canary_id,
        pool=pool,
        message_head=message.head,
        message_tail=message.tail,
        ttl_ms=CANARY_TTL_MS,
        withdraw=1 if withdraw else None,
        now=now,
    )


def _call(script: str, decode: Callable[[Any], T], **named: str | int | float | None) -> Call[T]:
    args: list[str] = []
    for name, value in named.items():
        if value is not None:
            args += (name, str(value))
    return Call(script, tuple(args), decode)


_json: Callable[[Mapping[str, Any]], str] = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _ids(reply: list[bytes]) -> list[str]:
    return [item.decode() for item in reply]


W = TypeVar("W", bound=StrEnum)


def _word(kind: type[W]) -> Callable[[bytes], W]:
    return lambda reply: kind(reply.decode())

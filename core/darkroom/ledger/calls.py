"""The ledger's transitions as values: which script, with what, and how its answer reads.

Whoever changes a job builds one of these and hands it to a `Ledger` or an `AsyncLedger`, alone or several in one round
trip. The rules themselves are in `lua/`, one file per transition; nothing here touches Redis.

Every transition may be repeated with the same arguments, as a client does whose reply was lost: it changes nothing more
and answers alike. `now` (milliseconds since the epoch) is for tests; otherwise Redis' own clock counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from darkroom.errors import (
    BacklogFull,
    DarkroomError,
    EventReused,
    IdConflict,
    InvalidInput,
    KeyReused,
    MemoryHigh,
    NoPool,
    NotFound,
    TemporaryError,
)
from darkroom.jobs import RECORD_VERSION, State, is_tenant
from darkroom.ledger import queues
from darkroom.ledger.epochs import Epoch, LedgerEpoch
from darkroom.webhooks.subscriptions import (
    FAILING_LIMIT_MS,
    MAX_PER_TARGET,
    MAX_SUBSCRIPTIONS,
    SubscriptionState,
    TakenDelivery,
    Webhook,
    WebhookEvent,
    in_order,
    target_of,
)

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

DELIVERY_LEASE_MS = 60_000
"""A delivery that a courier took, and said nothing of for so long, is tried again: longer than a try may take."""

NOTICE_LEASE_MS = 30_000
"""A notice that a courier took, and the sink did not, is posted again after this."""

DRAIN_TTL_MS = 30_000
"""How long a mark of `drain` lasts unless it is made again: an operator that died leaves no worker idle for longer."""

DUE_SOON_MS = 60_000
"""Retries that are due within this belong to the demand: a replica that is started for them is up by then."""

DECISIONS_KEPT = 1_000
"""Entries of a pool's decision log, of about 1 KB each: hours of a busy pool, weeks of a quiet one."""

DECISIONS_TTL_MS = 30 * 24 * 3600 * 1000
"""How long the decision log of a pool is kept that nobody decides on any more."""

CANARY_TTL_MS = 60_000
"""A canary that its sender forgot is forgotten by the ledger too; a worker that takes it later drops it."""

BACKLOG_LIMIT = 10_000
"""Jobs that may wait in one pool; at 60 a minute, more than two hours of work: beyond it a refusal is kinder."""

BACKLOG_BYTES = 256 * 1024 * 1024
"""Bytes of Redis that unfinished jobs of all pools may take: half of the `maxmemory` that is shipped (512 MB), so that
finished jobs, their logs and events find room below the 80 % at which every submission is refused.
"""

MAX_ATTEMPTS = 3
"""Attempts that count, before a job fails."""

MAX_UNDELIVERED = 10_000
"""CloudEvents that Knative gave up on, of all tenants; beyond it the largest group loses its oldest (`keep.lua`)."""

MAX_UNDELIVERED_BYTES = 64 * 1024 * 1024
"""And so many bytes of them: 6 KB each, where there are as many as there may be. Memory is for jobs."""

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
    """What the ledger says to an event that was taken in."""

    APPLIED = "applied"
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    NEWER = "newer"


class Archived(StrEnum):
    """What the ledger says to an ended job that the history has."""

    ARCHIVED = "archived"
    REPEATED = "repeated"
    UNKNOWN = "unknown"


class Subscribed(StrEnum):
    """What the ledger says to a subscription. `FULL`: the tenant has as many as there may be. `TARGET_FULL`: as many of
    them lead to this origin as may.
    """

    CREATED = "created"
    CHANGED = "changed"
    UNKNOWN = "unknown"
    FULL = "full"
    TARGET_FULL = "target_full"


class Outcome(StrEnum):
    """How a try to deliver ended. `GONE`: the receiver wants nothing more (410). `PUT_OFF`: there was no try."""

    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"
    PUT_OFF = "put_off"


class Settled(StrEnum):
    """What follows from a try. `DISABLED` and `ENDED` are said once, of the subscription. `LOST`: it was settled before
    or is somebody else's by now, and nothing changed.
    """

    DELIVERED = "delivered"
    AGAIN = "again"
    GIVEN_UP = "given_up"
    DISABLED = "disabled"
    ENDED = "ended"
    LOST = "lost"


class Redelivered(StrEnum):
    """What the ledger says to a delivery that is asked for anew. `OPEN`: it is being posted just now. `NOT_ENABLED`:
    its subscription is none that takes anything.
    """

    DUE = "due"
    OPEN = "open"
    NOT_ENABLED = "not_enabled"
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


class Replayed(StrEnum):
    """What the ledger says to an undelivered event that the sink took. `CHANGED`: it failed again, or is gone."""

    REPLAYED = "replayed"
    CHANGED = "changed"


class Recorded(StrEnum):
    """What the ledger says to an entry of a decision log. `REPEATED`: it has one of that time, or a later one."""

    RECORDED = "recorded"
    REPEATED = "repeated"


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
    submitting event); `accepted` the data of the first log entry. `start_deadline` is in milliseconds since the epoch,
    `start_within` in milliseconds from the acceptance, by Redis' clock; the earlier one counts. `run_timeout` is in
    seconds. `idempotency_key` is a hash (no blanks), and `fingerprint` that of the request as it was sent. `redrive_of`
    is the dead letter that the job is made of. `webhook` becomes fields of the job too (`Webhook.encode`); `fields` do
    not need them. `is_event`: the caller sent a CloudEvent, whose `source` and `id` are the idempotency key.
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

    def __post_init__(self) -> None:
        """Raises InvalidInput for a tenant's name that the object store would refuse, once the job has run."""
        if not is_tenant(self.tenant):
            raise InvalidInput(f"{self.tenant!r} cannot name a tenant")
        if self.idempotency_key is not None and self.fingerprint is None:
            raise ValueError("an idempotency key needs the fingerprint of its request")


@dataclass(frozen=True)
class Accepted:
    """The receipt: the job's id and when it was accepted (ms). `repeated`: it had been accepted before.

    `state` is the job's state now; None for a repeat whose record Redis no longer has.
    """

    job_id: str
    created_ms: int
    repeated: bool
    state: State | None = State.PENDING


@dataclass(frozen=True)
class Claim:
    """What a worker gets for a message: an attempt to run, or the reason why the message is dropped.

    `attempt` counts every start of the job, `counted` those that were charged to it; `run_timeout` is in seconds.
    `input` is the JSON text of the model's parameters, as the record has it.
    """

    attempt: int | None
    dropped: str | None
    run_timeout: float = 0.0
    counted: int = 0
    tenant: str = ""
    model: str = ""
    input: str = "{}"


@dataclass(frozen=True)
class Cancelled:
    """A cancel's receipt and the job's state after it; `receipt` is None for a job that the caller has not."""

    receipt: Receipt | None
    state: State | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What there is to do in a pool and who is there to do it, at one moment.

    Jobs: `waiting`, `dispatched` (their message is in the queue), `running`, and `due_soon`: retries whose time comes
    within what was asked for. `oldest_ms`: for how long the oldest job that waits has been with us; None when none
    does. `arrivals`: how many jobs the pool has ever been given.

    Workers that gave a sign of life lately: `starting`, `idle`, `busy` (with a job, by the ledger), `marked` (idle, and
    marked by `drain`: they take no job), `draining` (on their way out), `faulty`. `service_ms`: how long a job takes
    that is completed, smoothed; None until there was one.
    """

    waiting: int = 0
    dispatched: int = 0
    running: int = 0
    due_soon: int = 0
    oldest_ms: int | None = None
    arrivals: int = 0
    starting: int = 0
    idle: int = 0
    busy: int = 0
    marked: int = 0
    draining: int = 0
    faulty: int = 0
    service_ms: float | None = None

    @property
    def jobs(self) -> int:
        """All that is to be done now or soon."""
        return self.waiting + self.dispatched + self.running + self.due_soon

    @property
    def runs_nothing(self) -> int:
        """Workers that `drain` can mark, or has marked."""
        return self.starting + self.idle + self.marked + self.faulty


@dataclass(frozen=True)
class DroppedMessages:
    """Messages on a pool's list that are no job's (`queues.Foreign`) and that a worker dropped: how many since its last
    report, and why the last of them. `op` numbers the reports of one worker; a repeated one is counted once.
    """

    op: int
    count: int
    reason: str


@dataclass(frozen=True)
class Drained:
    """A worker that is marked to take no job, and its pod."""

    worker: str
    pod: str


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of one script: `args` are names and values in turn; `decode` makes the answer of Redis' reply."""

    script: str
    args: tuple[str, ...]
    decode: Callable[[Any], T]


def accept(
    job: Submission,
    *,
    backlog_limit: int,
    backlog_bytes: int = BACKLOG_BYTES,
    memory_high: bool = False,
    now: int | None = None,
) -> Call[Accepted | DarkroomError]:
    """– → pending. Idempotent under the job id, under the idempotency key for a day, and under the dead letter that it
    redrives.

    A refusal is answered, not raised, so that many accepts can share a round trip: NoPool, BacklogFull, MemoryHigh,
    KeyReused, IdConflict, and NotFound for a dead letter that is none. `memory_high` is the caller's reading that
    Redis' memory is nearly used up.
    """
    message = queues.build_message(
        job_id=job.job_id, pool=job.pool, traceparent=job.traceparent, event=job.fields.get("event")
    )
    webhook = job.webhook

    def decode(reply: bytes) -> Accepted | DarkroomError:
        answer, *about = reply.decode().split(" ")
        if answer == "accepted":
            return Accepted(about[0], int(about[1]), repeated=False)
        if answer == "repeated":
            state = State(about[2]) if about[2:] else None
            return Accepted(about[0], int(about[1]), repeated=True, state=state)
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
        fields=_json(job.fields if webhook is None else {**job.fields, **webhook.encode()}),
        accepted=_json(job.accepted),
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
        now=now,
    )


def _refusal(answer: str, about: list[str], job: Submission) -> DarkroomError:
    match answer:
        case "no_pool":
            return NoPool(f"there is no worker pool {job.pool!r}, which model {job.model!r} needs", retry_after=30)
        case "backlog_full":
            return BacklogFull(f"{about[0]} jobs wait in pool {job.pool!r}", retry_after=_wait_s(about[1]))
        case "bytes_full":
            mib = int(about[0]) / 2**20
            return BacklogFull(f"the unfinished jobs take {mib:.1f} MiB of Redis", retry_after=_wait_s(about[1]))
        case "memory_high":
            return MemoryHigh("the queue broker's memory is nearly used up; nothing was stored", retry_after=10)
        case "key_reused" if job.is_event:
            return EventReused(f"an event of this source and id came before, with other data, for job {about[0]}")
        case "key_reused":
            return KeyReused(f"this idempotency key came before, with another body, for job {about[0]}")
        case "no_dead_letter":
            return NotFound(f"job {job.redrive_of} is no dead letter")
        case "conflict":
            return IdConflict(f"the id {job.job_id} names a job of another tenant")
    return TemporaryError(f"the ledger answered {answer!r}")


def _wait_s(estimate: str) -> int:
    return min(max(int(estimate), 1), 600)


def claim(job_id: str, *, token: str, worker: str, lease_ms: int = LEASE_MS, now: int | None = None) -> Call[Claim]:
    """pending → running, under the attempt's fresh token."""

    def decode(reply: list[bytes]) -> Claim:
        if reply[0] == b"drop":
            return Claim(None, reply[1].decode())
        return Claim(
            attempt=int(reply[1]),
            dropped=None,
            run_timeout=float(reply[3]),
            counted=int(reply[4]),
            tenant=reply[5].decode(),
            model=reply[6].decode(),
            input=reply[7].decode(),
        )

    return _call("claim", decode, job=job_id, token=token, worker=worker, lease_ms=lease_ms, v=RECORD_VERSION, now=now)


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


def clock(*, clock_ms: int, now: int | None = None) -> Call[int]:
    """Once a tick: bring forward what waits for a time if Redis' clock was set back; answers by how much (ms).

    `clock_ms` is the time by the caller's own clock, for `darkroom doctor`.
    """
    return _call("clock", int, clock=clock_ms, now=now)


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
    """The event of the job that is entry `seq` of its log has been taken in: its end or, where somebody asked for that,
    its start.
    """
    return _call("applied", _word(Applied), job=job_id, seq=seq, v=RECORD_VERSION, now=now)


def archived(job_id: str, *, seq: int, now: int | None = None) -> Call[Archived]:
    """The ended job, whose terminal event is entry `seq` of its log, has been committed to the history."""
    return _call("archived", _word(Archived), job=job_id, seq=seq, now=now)


def purge(job_id: str, *, tenant: str, now: int | None = None) -> Call[Purged]:
    """The dead letter is one no more, and no job is made of it."""
    return _call("purge", _word(Purged), job=job_id, tenant=tenant, now=now)


def forget(job_id: str, *, tenant: str, now: int | None = None) -> Call[Forgotten]:
    """The job was deleted: everything that Redis has of it goes, unless it lives."""
    return _call("forget", _word(Forgotten), job=job_id, tenant=tenant, now=now)


def keep(
    event_id: str,
    *,
    tenant: str,
    attributes: str,
    data: str | None,
    failure: str,
    most: int = MAX_UNDELIVERED,
    most_bytes: int = MAX_UNDELIVERED_BYTES,
    now: int | None = None,
) -> Call[int]:
    """Keep a CloudEvent that Knative gave up on, which `undelivered.py` names and takes apart. Returns how many others
    had to go to make room.
    """
    size = sum(len(text.encode()) for text in (attributes, data or "", failure))
    return _call(
        "keep",
        int,
        event=event_id,
        tenant=tenant,
        attributes=attributes,
        data=data,
        failure=failure,
        bytes=size,
        most=most,
        most_bytes=most_bytes,
        now=now,
    )


def mark_replayed(event_id: str, *, last: int, now: int | None = None) -> Call[Replayed]:
    """The sink took the undelivered event, as it was kept at `last` (ms)."""
    return _call("mark_replayed", _word(Replayed), event=event_id, last=last, now=now)


def discard(event_id: str, *, tenant: str, now: int | None = None) -> Call[str]:
    """The undelivered event is kept no longer."""
    return _call("discard", bytes.decode, event=event_id, tenant=tenant, now=now)


def take_relays(
    *, taker: str, call: str, limit: int, lease_ms: int = RELAY_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Up to `limit` jobs that have events to be posted, leased to `taker`. `call` names this call."""
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


def subscribe(
    subscription_id: str,
    *,
    tenant: str,
    url: str | None = None,
    events: Collection[WebhookEvent] | None = None,
    models: Sequence[str] | None = None,
    enabled: bool | None = None,
    create: bool = False,
    now: int | None = None,
) -> Call[Subscribed]:
    """Register an address (`create`: its `url` and `events` are needed then), or change what is said here of the one
    that is registered under this id.

    To enable one that was disabled or has ended forgets why it was. Repeating a creation answers as the first did.
    """
    if create:
        models, enabled = models or (), enabled is not False
    state = None if enabled is None else SubscriptionState.ENABLED if enabled else SubscriptionState.DISABLED
    return _call(
        "subscribe",
        _word(Subscribed),
        subscription=subscription_id,
        tenant=tenant,
        url=url,
        target=None if url is None else target_of(tenant, url),
        events=None if events is None else " ".join(in_order(events)),
        models=None if models is None else " ".join(models),
        state=state,
        create=1 if create else None,
        most=MAX_SUBSCRIPTIONS,
        most_per_target=MAX_PER_TARGET,
        now=now,
    )


def rotate_secret(subscription_id: str, *, tenant: str, generation: int, now: int | None = None) -> Call[int | None]:
    """The subscription's secret `generation` is followed by the next. Answers the one that is valid then: `generation`
    + 1, or what it was already where another rotation came first; None for a subscription that the tenant has not.
    """
    return _call(
        "rotate",
        lambda reply: int(reply) or None,
        subscription=subscription_id,
        tenant=tenant,
        generation=generation,
        now=now,
    )


def unsubscribe(subscription_id: str, *, tenant: str, now: int | None = None) -> Call[bool]:
    """The subscription goes; what is still to be delivered to it is given up. False: there was none."""
    return _call("unsubscribe", bool, subscription=subscription_id, tenant=tenant, now=now)


def take_deliveries(
    *,
    taker: str,
    call: str,
    limit: int,
    per_target: int,
    rate: int | None = None,
    lease_ms: int = DELIVERY_LEASE_MS,
    now: int | None = None,
) -> Call[list[TakenDelivery]]:
    """Up to `limit` deliveries that are due, at most `per_target` at a time of one target, leased to `taker`. `call`
    names this call, and is the token of what it takes. `rate`: so many a minute to a target that granted no rate.
    """
    return _call(
        "deliver",
        lambda reply: [_taken(row, call) for row in reply],
        taker=taker,
        call=call,
        limit=limit,
        per_target=per_target,
        rate=rate,
        lease_ms=lease_ms,
        now=now,
    )


def _taken(row: list[bytes], token: str) -> TakenDelivery:
    delivery, job, seq, event, recipient, tenant, url, target, number, attempt, generation, rotated, permitted = (
        value.decode() for value in row
    )
    return TakenDelivery(
        id=delivery,
        job_id=job,
        seq=int(seq),
        event=WebhookEvent(event),
        recipient=recipient,
        tenant=tenant,
        url=url,
        target=target,
        number=int(number),
        attempt=int(attempt),
        generation=int(generation),
        rotated=int(rotated) or None,
        is_permitted=permitted == "1",
        token=token,
    )


def settle(
    delivery: TakenDelivery,
    *,
    outcome: Outcome,
    took_ms: int = 0,
    status: int | None = None,
    error: str | None = None,
    again_ms: int | None = None,
    pause_ms: int = 0,
    now: int | None = None,
) -> Call[Settled]:
    """A try ended. `again_ms`: after how long it is tried again, unless it was delivered; None: it is given up.
    `pause_ms`: for so long nothing is posted to its target.
    """
    return _call(
        "settle",
        _word(Settled),
        delivery=delivery.id,
        token=delivery.token,
        number=delivery.number,
        outcome=outcome,
        took_ms=took_ms,
        status=status,
        error=error,
        again_ms=again_ms,
        pause_ms=pause_ms,
        failing_limit_ms=FAILING_LIMIT_MS,
        now=now,
    )


def permit(target: str, *, rate: int | None, now: int | None = None) -> Call[str]:
    """The target's receiver was asked for its consent, and granted `rate` requests a minute; None: it named none."""
    return _call("permit", bytes.decode, target=target, rate=rate, now=now)


def redeliver(delivery_id: str, *, job_id: str, tenant: str, now: int | None = None) -> Call[Redelivered]:
    """The delivery is due at once, to the address that its subscription has now, and its schedule begins anew."""
    return _call("redeliver", _word(Redelivered), delivery=delivery_id, job=job_id, tenant=tenant, now=now)


def take_notices(
    *, taker: str, call: str, limit: int, lease_ms: int = NOTICE_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Up to `limit` subscriptions that were disabled or ended, which the sink is to be told of. As `take_relays`."""
    return _call("take", _ids, kind="notice", taker=taker, call=call, limit=limit, lease_ms=lease_ms, now=now)


def defer_notice(subscription_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The sink did not take the notice of this subscription: it is due again in `delay_ms`."""
    return _call("defer", int, kind="notice", job=subscription_id, delay_ms=delay_ms, now=now)


def noticed(subscription_id: str, *, changed: int, now: int | None = None) -> Call[bool]:
    """The sink has taken the notice of the subscription's state as it was since `changed`. False: it is another now."""
    return _call("noticed", bool, subscription=subscription_id, changed=changed, now=now)


def beat(outside: Epoch, *, acknowledge: bool = False, now: int | None = None) -> Call[LedgerEpoch]:
    """The ledger has one beat more than `outside`, the epoch in SQL, or as many as it has; with fewer it lost data, and
    a new epoch begins. `acknowledge`: a person has seen the loss.
    """
    known = {"epoch": outside.number, "beats": outside.beats, "at": outside.at}
    return _call("epoch", LedgerEpoch.decode, **known, acknowledge="1" if acknowledge else None, now=now)


def announce(pool: str, *, models: Sequence[str], owner: str | None = None, now: int | None = None) -> Call[str]:
    """The pool exists and serves `models`; none, where it is no more. `owner`: the operator that withdraws it again."""
    return _call("announce", bytes.decode, pool=pool, models=",".join(models), owner=owner, now=now)


def worker(
    name: str,
    *,
    pool: str,
    state: WorkerState,
    pod: str,
    models: Sequence[str],
    dropped: DroppedMessages | None = None,
    ttl_ms: int = WORKER_TTL_MS,
    now: int | None = None,
) -> Call[str]:
    """A worker's heartbeat: what it is now, and the foreign messages that it dropped since its last report of them."""
    return _call(
        "worker",
        bytes.decode,
        worker=name,
        pool=pool,
        state=state,
        pod=pod,
        models=",".join(models),
        foreign=None if dropped is None else dropped.count,
        foreign_op=None if dropped is None else dropped.op,
        foreign_reason=None if dropped is None else dropped.reason,
        ttl_ms=ttl_ms,
        now=now,
    )


def repair(
    job_id: str,
    *,
    pool: str | None = None,
    worker: str | None = None,
    letter_of: str | None = None,
    delivery: str | None = None,
    target: str | None = None,
    now: int | None = None,
) -> Call[list[str]]:
    """Put the job where its record says that it belongs; answers what was done, nothing where all is right.

    `pool` names one whose sets, `worker` one whose entry, and `letter_of` the tenant whose dead letters name the job
    though its record does not say so. `delivery`: one of its deliveries instead, perhaps in a `target` that is not its.
    """
    return _call(
        "repair",
        _ids,
        job=job_id,
        pool=pool,
        worker=worker,
        letter_of=letter_of,
        delivery=delivery,
        target=target,
        now=now,
    )


def canary(canary_id: str, *, pool: str, withdraw: bool = False, now: int | None = None) -> Call[str | None]:
    """Send a canary through the pool's queue, once; answers the worker that has signed for it by now.

    `canary_id` begins with `queues.CANARY`, so that nobody takes it for a job's. `withdraw` takes it back.
    """
    message = queues.build_message(job_id=canary_id, pool=pool, traceparent=None)
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


def observe(pool: str, *, soon_ms: int = DUE_SOON_MS, now: int | None = None) -> Call[Reading]:
    """What there is to do in the pool and who is there to do it; changes nothing. An unknown pool has nothing."""

    def decode(reply: list[Any]) -> Reading:
        return Reading(
            waiting=reply[0],
            dispatched=reply[1],
            running=reply[2],
            due_soon=reply[3],
            oldest_ms=reply[4],
            arrivals=reply[5],
            starting=reply[6],
            idle=reply[7],
            busy=reply[8],
            marked=reply[9],
            draining=reply[10],
            faulty=reply[11],
            service_ms=None if reply[12] is None else float(reply[12]),
        )

    return _call("observe", decode, pool=pool, soon_ms=soon_ms, now=now)


def drain(
    pool: str, *, count: int, pods: Sequence[str] | None = None, ttl_ms: int = DRAIN_TTL_MS, now: int | None = None
) -> Call[list[Drained]]:
    """Workers of the pool that run nothing are marked to take no job: `count` in all, or fewer where fewer are idle.

    Answers those that are marked now. Called again it renews their marks, with a smaller count it undoes the others,
    and with 0 all. `pods` are the pods that it is about: those that are there and are not being deleted, so that a
    worker that is on its way out already is not counted for one that is to go.
    """

    def decode(reply: list[list[bytes]]) -> list[Drained]:
        return [Drained(worker.decode(), pod.decode()) for worker, pod in reply]

    listed = None if pods is None else " ".join(pods)
    return _call("drain", decode, pool=pool, count=count, pods=listed, ttl_ms=ttl_ms, now=now)


def record_decision(pool: str, *, at: int, entry: str, keep: int = DECISIONS_KEPT) -> Call[Recorded]:
    """One more entry of the pool's decision log: `scaling.Entry.encode`, of the decision that was made at `at` (ms).

    Idempotent under pool and time.
    """
    return _call(
        "decided", _word(Recorded), pool=pool, at=at, entry=entry, keep=keep, ttl_ms=DECISIONS_TTL_MS, now=None
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

"""The rules of the audit: pure functions from a snapshot of a job, a set's member or a message to its faults.

Every accepted job is in exactly one set or state: waiting, dispatched, due, held, running under a valid lease, or
terminal. Its tenant's share and the running limits of its tenant and key list it as that requires. A
job with a pending event is in the outbox until the event is applied. An open delivery is due to its own target only.
`auditor.py` reads Redis and applies these rules.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from darkroom.checks.snapshots import POOL_SETS, DeliverySnapshot, JobSnapshot, QueuedMessage
from darkroom.jobs import State, UnknownValue
from darkroom.ledger import queues
from darkroom.ledger.calls import SWEEP_AGE_MS, CountDifference
from darkroom.ledger.records import FIELDS, JobRecord
from darkroom.webhooks.subscriptions import DeliveryState

LOST_AFTER_MS = 2 * SWEEP_AGE_MS
"""The courier's sweep pushes an unclaimed message again before this age."""


class FaultKind(StrEnum):
    """The kind of a fault of a job, of the limits of a tenant or key (`COUNTS_DIFFER`), of Redis as a whole
    (`WENT_BACK`), or of the audit trail.
    """

    NOWHERE = "nowhere"
    IN_TWO_PLACES = "in_two_places"
    LEASE_LAPSED = "lease_lapsed"
    LEASE_DIFFERS = "lease_differs"
    NOT_IN_OUTBOX = "not_in_outbox"
    IN_OUTBOX = "in_outbox"
    NOT_TO_BE_ARCHIVED = "not_to_be_archived"
    TO_BE_ARCHIVED = "to_be_archived"
    VANISHED = "vanished"
    NO_RECORD = "no_record"
    NOT_IN_INDEX = "not_in_index"
    OTHER_POOL = "other_pool"
    EXPIRES = "expires"
    LOG_GAP = "log_gap"
    BUSY_DIFFERS = "busy_differs"
    ORDER_DIFFERS = "order_differs"
    MESSAGE_LOST = "message_lost"
    ARTIFACT_MISSING = "artifact_missing"
    ARTIFACT_DIFFERS = "artifact_differs"
    HISTORY_MISSING = "history_missing"
    HISTORY_DIFFERS = "history_differs"
    NO_DEAD_LETTER = "no_dead_letter"
    DELIVERY_MISPLACED = "delivery_misplaced"
    DELIVERY_NO_RECORD = "delivery_no_record"
    COUNTS_DIFFER = "counts_differ"
    WENT_BACK = "went_back"
    TRAIL_BROKEN = "trail_broken"
    TRAIL_TRUNCATED = "trail_truncated"


REPAIRABLE = frozenset(
    {
        FaultKind.NOWHERE,
        FaultKind.IN_TWO_PLACES,
        FaultKind.NOT_IN_OUTBOX,
        FaultKind.IN_OUTBOX,
        FaultKind.NOT_TO_BE_ARCHIVED,
        FaultKind.TO_BE_ARCHIVED,
        FaultKind.NO_RECORD,
        FaultKind.NOT_IN_INDEX,
        FaultKind.OTHER_POOL,
        FaultKind.EXPIRES,
        FaultKind.BUSY_DIFFERS,
        FaultKind.ORDER_DIFFERS,
        FaultKind.NO_DEAD_LETTER,
        FaultKind.DELIVERY_MISPLACED,
        FaultKind.DELIVERY_NO_RECORD,
    }
)
"""The kinds that `repair.lua` repairs. The courier repairs lost messages and lapsed leases, an operator the rest."""


@dataclass(frozen=True)
class Fault:
    """A fault of a job (or, without one, of Redis or the audit trail), and the observation that shows it.

    `pool`, `worker`, `letter_of` (a tenant) and `target`: the owner of the set or entry that names the job or delivery
    wrongly. `artifact` is the key of the faulty artifact, `delivery` the id of the delivery. `repaired` describes the
    repair.
    """

    kind: FaultKind
    job: str
    seen: str
    pool: str | None = None
    worker: str | None = None
    artifact: str | None = None
    letter_of: str | None = None
    delivery: str | None = None
    target: str | None = None
    repaired: str | None = None

    @property
    def key(self) -> tuple[str | None, ...]:
        """Identifies the fault in both passes; numbers in `seen` may differ between them."""
        return (
            *(self.kind, self.job, self.pool, self.worker, self.artifact),
            *(self.letter_of, self.delivery, self.target),
        )

    def after(self, done: str) -> Fault:
        return replace(self, repaired=done)


@dataclass(frozen=True)
class StaleMessage:
    """A message that no job needs: it is harmless, because `claim` drops it."""

    message: QueuedMessage
    reason: str


def faults(job: JobSnapshot) -> Iterator[Fault]:
    """The faults of a job that has a record."""
    if job.state is None:
        return
    if isinstance(job.state, UnknownValue):
        pass  # which sets have it is defined by the version that wrote it
    elif job.state.is_terminal:
        yield from _terminal(job)
    else:
        yield from _unfinished(job, job.state)
    if not job.indexed:
        yield Fault(FaultKind.NOT_IN_INDEX, job.id, f"the index of tenant {job.tenant} lacks it")
    if job.expires is not None and not job.settled:
        before = "although it is a dead letter" if job.is_letter else "before its end is applied and archived"
        seen = f"its record expires in {job.expires / 1000:.0f} s, {before}"
        yield Fault(FaultKind.EXPIRES, job.id, seen)
    # The log expires before the record.
    if (job.log_length, job.log_last) != (job.seq, job.seq) and not (job.settled and job.log_length == 0):
        seen = f"the record counts {job.seq} entries, its log has {job.log_length} and ends with {job.log_last}"
        yield Fault(FaultKind.LOG_GAP, job.id, seen)


def _terminal(job: JobSnapshot) -> Iterator[Fault]:
    if also := [name for name in (*POOL_SETS, "deadlines") if name in job.scores]:
        yield Fault(FaultKind.IN_TWO_PLACES, job.id, f"its state is {job.state}, and it is also in {', '.join(also)}")
    if not job.is_published and "outbox" not in job.scores:
        what = "its start" if job.applied else "its end"
        yield Fault(
            FaultKind.NOT_IN_OUTBOX,
            job.id,
            f"its state is {job.state}, {what} is not applied, and it is not in the outbox",
        )
    if job.is_published and "outbox" in job.scores:
        yield Fault(FaultKind.IN_OUTBOX, job.id, "its end is applied, and it is still in the outbox")
    if not job.archived and "history" not in job.scores:
        seen = f"its state is {job.state}, and it is neither archived nor among the jobs to be archived"
        yield Fault(FaultKind.NOT_TO_BE_ARCHIVED, job.id, seen)
    if job.archived and "history" in job.scores:
        yield Fault(FaultKind.TO_BE_ARCHIVED, job.id, "it is archived, and still among the jobs to be archived")
    if not also:
        yield from _order(job)
    if job.end_seq != job.seq:
        yield Fault(FaultKind.LOG_GAP, job.id, f"its terminal entry is {job.end_seq}, and its last entry is {job.seq}")


def _unfinished(job: JobSnapshot, state: State) -> Iterator[Fault]:
    """The faults of a pending or running job, which is in exactly one set that its state allows."""
    allowed = {"running"} if state is State.RUNNING else {"waiting", "dispatched", "due", "held"}
    found = [name for name in POOL_SETS if name in job.scores]
    if not allowed & set(found):
        also = f", but in {', '.join(found)}" if found else ""
        yield Fault(
            FaultKind.NOWHERE,
            job.id,
            f"its state is {state}, and it is in no set of pool {job.pool} for that state{also}",
        )
    elif len(found) > 1:
        yield Fault(FaultKind.IN_TWO_PLACES, job.id, f"its state is {state}, and it is in {' and '.join(found)}")
    else:
        yield from _order(job)
    if "outbox" in job.scores and not job.has_pending_start:
        yield Fault(FaultKind.IN_OUTBOX, job.id, f"its state is {state}, and it is already in the outbox")
    if job.has_pending_start and "outbox" not in job.scores:
        yield Fault(
            FaultKind.NOT_IN_OUTBOX,
            job.id,
            f"its state is {state}, its start is not applied, and it is not in the outbox",
        )
    if "history" in job.scores:
        yield Fault(
            FaultKind.TO_BE_ARCHIVED, job.id, f"its state is {state}, and it is already among the jobs to be archived"
        )
    if state is State.RUNNING and "running" in found:
        yield from _running(job)


def _order(job: JobSnapshot) -> Iterator[Fault]:
    if not job.is_in_order:
        seen = f"it is {job.place}, and its tenant's share or a running limit does not list it so"
        yield Fault(FaultKind.ORDER_DIFFERS, job.id, seen)


def _running(job: JobSnapshot) -> Iterator[Fault]:
    until = job.scores["running"]
    if until < job.now and job.quiet_until <= job.now:
        age_s = (job.now - until) / 1000
        yield Fault(FaultKind.LEASE_LAPSED, job.id, f"its lease lapsed {age_s:.1f} s ago, and it was not reaped")
    if until != job.lease:
        yield Fault(
            FaultKind.LEASE_DIFFERS,
            job.id,
            f"it is leased until {job.lease} by its record, and until {until} by the set",
        )
    if job.busy != job.id:
        seen = f"it runs on worker {job.worker}, whose entry is {job.busy or 'empty'}"
        yield Fault(FaultKind.BUSY_DIFFERS, job.id, seen)


def member_fault(name: str, pool: str | None, job: JobSnapshot) -> Fault | None:
    """The fault of a set that names the job: it has no record, or its record names another pool."""
    if name not in job.scores:
        return None  # it was removed meanwhile
    if job.state is None:
        return Fault(FaultKind.NO_RECORD, job.id, f"{_set(name, pool)} names it, and it has no record", pool=pool)
    if pool is not None and job.pool != pool:
        return Fault(
            FaultKind.OTHER_POOL, job.id, f"{_set(name, pool)} names it, and its pool is {job.pool}", pool=pool
        )
    return None


def dead_letter_fault(tenant: str, job: JobSnapshot) -> Fault | None:
    """The fault of a tenant's dead letters that name the job."""
    if not job.is_letter or isinstance(job.state, UnknownValue):
        return None
    if job.state is State.FAILED and job.dead and job.tenant == tenant:
        return None
    actual = "has no record" if job.state is None else f"is {job.state}, of tenant {job.tenant}, and no dead letter"
    seen = f"the dead letters of tenant {tenant} name it, and it {actual}"
    return Fault(FaultKind.NO_DEAD_LETTER, job.id, seen, letter_of=tenant)


def delivery_fault(delivery: DeliverySnapshot) -> Fault | None:
    """The fault of a delivery that has a record."""
    if delivery.state is None or isinstance(delivery.state, UnknownValue):
        return None
    wrong = [
        words
        for is_wrong, words in (
            (not delivery.is_due, "is not among those that are due to its target"),
            (not delivery.is_known, "has a target that is not in the set of targets"),
            (not delivery.is_open_of_job, "is not among the open deliveries of its job"),
            (delivery.expires, "has a record that expires"),
        )
        if is_wrong
    ]
    if delivery.state is not DeliveryState.OPEN:
        wrong = ["is still due"] if delivery.is_due else []
    if not wrong:
        return None
    seen = f"delivery {delivery.id} is {delivery.state}, and {' and '.join(wrong)}"
    return Fault(FaultKind.DELIVERY_MISPLACED, delivery.job, seen, delivery=delivery.id)


def due_delivery_fault(target: str, delivery: DeliverySnapshot) -> Fault | None:
    """The fault of the deliveries that are due to a target, where they name the delivery."""
    if not delivery.is_due:
        return None  # it was removed meanwhile
    if delivery.state is None:
        seen = f"delivery {delivery.id} is due to {target}, and has no record"
        return Fault(FaultKind.DELIVERY_NO_RECORD, delivery.job, seen, delivery=delivery.id, target=target)
    if delivery.target != target:
        seen = f"delivery {delivery.id} is due to {target}, and its target is {delivery.target}"
        return Fault(FaultKind.DELIVERY_MISPLACED, delivery.job, seen, delivery=delivery.id, target=target)
    return None


def vanished(job_id: str, tenant: str) -> Fault:
    """The fault of an accepted job whose record is gone before its end was applied."""
    return Fault(FaultKind.VANISHED, job_id, f"the index of tenant {tenant} names it, and its record is gone")


def worker_entry_fault(worker: str, job: JobSnapshot) -> Fault | None:
    """The fault of a worker's entry that names the job."""
    if isinstance(job.state, UnknownValue) or (job.state is State.RUNNING and job.worker == worker):
        return None
    actual = "has no record" if job.state is None else f"is {job.state}, on worker {job.worker or 'none'}"
    return Fault(
        FaultKind.BUSY_DIFFERS, job.id, f"the entry of worker {worker} names it, and it {actual}", worker=worker
    )


def lost_message(job: JobSnapshot, listed: Iterable[str]) -> Fault | None:
    """The fault of a dispatched job: its message is not in the list, and was not pushed again."""
    age_ms = job.now - (job.pushed or 0)
    if job.place != "dispatched" or job.id in listed or age_ms < LOST_AFTER_MS:
        return None
    return Fault(
        FaultKind.MESSAGE_LOST, job.id, f"its message was pushed {age_ms / 1000:.0f} s ago and is not in the list"
    )


def stale_messages(messages: Iterable[QueuedMessage], jobs: Mapping[str, JobSnapshot]) -> list[StaleMessage]:
    """The messages of one pool that no job needs. Canaries belong to no job and are not among them."""
    found: list[StaleMessage] = []
    by_job: dict[str, list[QueuedMessage]] = defaultdict(list)
    for message in messages:
        by_job[message.job].append(message)
    for job_id, of_job in by_job.items():
        if job_id.startswith(queues.CANARY):
            continue
        job = jobs.get(job_id)
        needed = None if job is None else _needed(of_job, job)
        found += [StaleMessage(message, _reason(message, job)) for message in of_job if message is not needed]
    return found


def _needed(messages: Iterable[QueuedMessage], job: JobSnapshot) -> QueuedMessage | None:
    """The one message of a job that may be claimed: the last push, in the list or already received."""
    last_first = sorted(messages, key=lambda message: message.push, reverse=True)
    if job.state is State.RUNNING:
        return next((message for message in last_first if message.where == "unacked"), None)
    if job.place == "dispatched":
        return min(last_first, key=lambda message: message.where, default=None)  # the list before unacked
    return None


def _reason(message: QueuedMessage, job: JobSnapshot | None) -> str:
    if not message.job:
        return "it belongs to no job"
    if job is None or job.state is None:
        return "there is no such job"
    if job.state.is_terminal:
        return f"its job is {job.state}"
    if job.state is State.RUNNING:
        return f"its job runs on worker {job.worker} by another message"
    return "its job has another message" if job.place == "dispatched" else "its job is in no list"


def history_fault(record: JobRecord, past: JobRecord | None) -> Fault | None:
    """The fault of an archived job in the history, whose record is `past`."""
    if past is None:
        return Fault(FaultKind.HISTORY_MISSING, record.id, "it is archived, and the history lacks it")
    not_compared = {each.name for each in FIELDS if not each.in_history}
    if not record.is_whole:
        not_compared |= {"is_whole", "input"}
    compared = {each.name for each in fields(record)} - not_compared
    differ = sorted(name for name in compared if getattr(record, name) != getattr(past, name))
    if not differ:
        return None
    return Fault(FaultKind.HISTORY_DIFFERS, record.id, f"the history differs in {', '.join(differ)}")


def counts_fault(found: CountDifference) -> Fault:
    """The fault of counts that limits compare."""
    return Fault(
        FaultKind.COUNTS_DIFFER,
        "",
        f"the limits of {found.owner} count {found.jobs} pending jobs and {found.bytes} bytes of unfinished ones; "
        f"it has {found.jobs_found} and {found.bytes_found}",
    )


def published(job: JobSnapshot) -> list[Mapping[str, Any]]:
    """The artifacts in a completed job's terminal entry, as they were encoded."""
    if job.state is not State.COMPLETED or job.end_data is None:
        return []
    found: list[Mapping[str, Any]] = json.loads(job.end_data).get("artifacts", [])
    return found


def _set(name: str, pool: str | None) -> str:
    return f"{name} of pool {pool}" if pool else name

"""Snapshots: a job, a delivery or a message at one moment, as the audit reads them.

The scripts in `ledger/lua/checks/` read a snapshot at once; `audit.py` has the rules that it must satisfy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from darkroom.jobs import State, UnknownValue, read_value
from darkroom.ledger.calls import Call
from darkroom.webhooks.subscriptions import DeliveryState

POOL_SETS = ("waiting", "dispatched", "due", "held", "running")
"""The sets of each pool: an unfinished job is in one of them."""

OTHER_SETS = ("outbox", "history", "deadlines")
"""The sets of all pools: jobs with pending events, jobs to be archived, start deadlines."""

PLACES = (*POOL_SETS, *(state.value for state in State if state.is_terminal))
"""The locations of a job: a set of its pool, or its terminal state."""


_DELIVERY_TAG = re.compile(rb'"delivery_tag": ?"([\w-]+:\d+)"')


@dataclass(frozen=True)
class JobSnapshot:
    """One job at one moment, as `lua/checks/inspect_job.lua` reads it. Times are milliseconds since the epoch.

    `scores` has the sets that contain the job: of all pools (`OTHER_SETS`) and of the inspected pool (`POOL_SETS`).
    `indexed`: the tenant's index contains it. `has_pending_start`: an event of a start is not yet applied. `dead`: its
    attempts are used up; `is_letter`: it is among the dead letters of its tenant, or of the inspected tenant. `state`
    is None where there is no record. `expires` is the record's time to live. `is_in_order`: its tenant's flow and the
    running limits list it as its location requires.
    """

    id: str
    state: State | UnknownValue | None
    pool: str
    tenant: str
    seq: int
    end_seq: int | None
    applied: bool
    archived: bool
    worker: str | None
    lease: int | None
    pushed: int | None
    end_data: str | None
    scores: Mapping[str, int]
    indexed: bool
    has_pending_start: bool
    dead: bool
    is_letter: bool
    busy: str | None
    log_length: int
    log_last: int
    expires: int | None
    is_in_order: bool
    quiet_until: int
    now: int

    @property
    def settled(self) -> bool:
        """Whether Redis may expire it: all events are applied, the history has it, and it is no dead letter."""
        return self.is_published and self.archived and not self.is_letter

    @property
    def is_published(self) -> bool:
        """Whether all of its events are applied."""
        return self.applied and not self.has_pending_start

    @property
    def place(self) -> str | None:
        """Its location by its record and the sets; None for a job without a record, and for an orphaned one."""
        if self.state is None or self.state.is_terminal:
            return self.state
        found = next((name for name in POOL_SETS if name in self.scores), None)
        return self.state if found is None and isinstance(self.state, UnknownValue) else found


@dataclass(frozen=True)
class DeliverySnapshot:
    """One delivery at one moment, as `lua/checks/inspect_delivery.lua` reads it. `state` is None where there is no
    record.

    `is_due`: the deliveries that are due to the inspected target include it; `is_known`: that target is in the set of
    targets. `is_open_of_job`: its job counts it as open. `expires`: its record has a time to live.
    """

    id: str
    state: DeliveryState | UnknownValue | None
    target: str
    is_due: bool
    is_known: bool
    is_open_of_job: bool
    expires: bool

    @property
    def job(self) -> str:
        return self.id.partition(".")[0]


@dataclass(frozen=True)
class QueuedMessage:
    """A message in a pool's Celery list (`list`), or received and unacknowledged (`unacked`). `tag`: `<job>:<push>`."""

    pool: str
    where: str
    tag: str

    @property
    def job(self) -> str:
        return self.tag.rpartition(":")[0]

    @property
    def push(self) -> int:
        number = self.tag.rpartition(":")[2]
        return int(number) if number.isdecimal() else 0


def inspect(
    job_id: str, *, pool: str | None = None, letter_of: str | None = None, now: int | None = None
) -> Call[JobSnapshot]:
    """Inspect the job, the sets of `pool` and the dead letters of `letter_of` (None: of the pool and the tenant in its
    record).
    """
    named = {"job": job_id, "pool": pool, "letter_of": letter_of, "now": None if now is None else str(now)}
    args = [text for name, value in named.items() if value is not None for text in (name, value)]
    return Call("inspect_job", tuple(args), partial(_decode, job_id))


def inspect_delivery(delivery_id: str, *, target: str | None = None) -> Call[DeliverySnapshot]:
    """Inspect the delivery, and the deliveries that are due to `target` (None: to its own)."""
    of_target = () if target is None else ("target", target)
    return Call("inspect_delivery", ("delivery", delivery_id, *of_target), partial(_decode_delivery, delivery_id))


def _decode_delivery(delivery_id: str, reply: list[Any]) -> DeliverySnapshot:
    (state, _, target), due, known, open_of_job, ttl = reply
    return DeliverySnapshot(
        id=delivery_id,
        state=None if state is None else read_value(DeliveryState, state.decode()),
        target="" if target is None else target.decode(),
        is_due=due is not None,
        is_known=known is not None,
        is_open_of_job=open_of_job is not None and float(open_of_job) == 1,
        expires=ttl >= 0,
    )


def _decode(job_id: str, reply: list[Any]) -> JobSnapshot:
    """Decode the reply of `lua/checks/inspect_job.lua`, in its order."""
    record, *in_sets, indexed, letter, busy, length, last, ttl, in_order, quiet, now = reply
    state, pool, tenant, seq, end_seq, applied, archived, worker, lease, pushed, end_data, starts, dead = (
        None if value is None else value.decode() for value in record
    )
    scores = dict(zip((*POOL_SETS, *OTHER_SETS), in_sets, strict=True))
    return JobSnapshot(
        id=job_id,
        state=None if state is None else read_value(State, state),
        pool=pool or "",
        tenant=tenant or "",
        seq=int(seq or 0),
        end_seq=None if end_seq is None else int(end_seq),
        applied=applied is not None,
        archived=archived is not None,
        worker=worker,
        lease=None if lease is None else int(lease),
        pushed=None if pushed is None else int(pushed),
        end_data=end_data,
        scores={name: int(float(score)) for name, score in scores.items() if score is not None},
        indexed=indexed is not None,
        has_pending_start=starts is not None,
        dead=dead is not None,
        is_letter=letter is not None,
        busy=None if busy is None else busy.decode(),
        log_length=length,
        log_last=0 if last is None else int(last.split(b"-")[0]),
        expires=ttl if ttl >= 0 else None,
        is_in_order=bool(in_order),
        quiet_until=int(quiet or 0),
        now=now,
    )


def tag_of(message: bytes) -> str:
    """The delivery tag of a message in the list; empty for a foreign message."""
    found = _DELIVERY_TAG.search(message)
    return found[1].decode() if found else ""

"""What the audit holds to be right: pure functions from a look at a job, a set's member or a message to its faults.

Every accepted job is in exactly one place: waiting, dispatched, due, running under a live lease, or terminal. One of
which something is to be told is in the outbox until that is applied. An open delivery is due to its target, and no
other. `auditor.py` reads Redis and asks here what is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import partial
from typing import Any

from darkroom.jobs import State
from darkroom.ledger import queues
from darkroom.ledger.calls import SWEEP_AGE_MS, Call
from darkroom.ledger.records import JobRecord
from darkroom.webhooks.subscriptions import DeliveryState

POOL_SETS = ("waiting", "dispatched", "due", "running")
"""The sets of each pool, and the places of a job that has not ended."""

OTHER_SETS = ("outbox", "history", "deadlines")
"""The sets of all pools: ends that are to be told, ends that are to be archived, start deadlines."""

PLACES = (*POOL_SETS, *(state.value for state in State if state.is_terminal))
"""Where a job can be. A terminal job's place is its state."""

LOST_AFTER_MS = 2 * SWEEP_AGE_MS
"""A message that was taken and never claimed is pushed again before this, or nobody sweeps."""


_DELIVERY_TAG = re.compile(rb'"delivery_tag": ?"([\w-]+:\d+)"')


class Kind(StrEnum):
    """What can be wrong with a job, or (`WENT_BACK`) with Redis as a whole."""

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
    MESSAGE_LOST = "message_lost"
    ARTIFACT_MISSING = "artifact_missing"
    ARTIFACT_DIFFERS = "artifact_differs"
    HISTORY_MISSING = "history_missing"
    HISTORY_DIFFERS = "history_differs"
    NO_DEAD_LETTER = "no_dead_letter"
    DELIVERY_MISPLACED = "delivery_misplaced"
    DELIVERY_NO_RECORD = "delivery_no_record"
    WENT_BACK = "went_back"


REPAIRABLE = frozenset(
    {
        Kind.NOWHERE,
        Kind.IN_TWO_PLACES,
        Kind.NOT_IN_OUTBOX,
        Kind.IN_OUTBOX,
        Kind.NOT_TO_BE_ARCHIVED,
        Kind.TO_BE_ARCHIVED,
        Kind.NO_RECORD,
        Kind.NOT_IN_INDEX,
        Kind.OTHER_POOL,
        Kind.EXPIRES,
        Kind.BUSY_DIFFERS,
        Kind.NO_DEAD_LETTER,
        Kind.DELIVERY_MISPLACED,
        Kind.DELIVERY_NO_RECORD,
    }
)
"""What `repair.lua` repairs. A lost message and a lapsed lease are the courier's; the rest is for people."""


@dataclass(frozen=True)
class Look:
    """One job at one moment, as `lua/checks/inspect_job.lua` read it. Times are milliseconds since the epoch.

    `scores` are of the sets that it is in: of all pools (`OTHER_SETS`) and of the one that was looked in (`POOL_SETS`).
    `indexed`: its tenant's index has it. `untold`: starts of it are still to be told. `dead`: its attempts were used
    up; `is_letter`: it is among the dead letters of its tenant, or of the one that was looked at. `state` is None where
    there is no record. `expires` is the record's time to live.
    """

    id: str
    state: State | None
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
    untold: bool
    dead: bool
    is_letter: bool
    busy: str | None
    log_length: int
    log_last: int
    expires: int | None
    quiet_until: int
    now: int

    @property
    def settled(self) -> bool:
        """Everybody was told all, and the history has it: Redis may forget it, unless it is a dead letter."""
        return self.is_told and self.archived and not self.is_letter

    @property
    def is_told(self) -> bool:
        return self.applied and not self.untold

    @property
    def place(self) -> str | None:
        """Where it is, by its record and the sets; None for a job without a record or nowhere."""
        if self.state is None or self.state.is_terminal:
            return self.state
        return next((name for name in POOL_SETS if name in self.scores), None)


@dataclass(frozen=True)
class Fault:
    """What is wrong, with which job (or none, of Redis as a whole), and what was seen.

    `pool`, `worker`, `letter_of` (a tenant) and `target`: whose set or entry names the job or delivery wrongly.
    `artifact`: the key of the one at fault, `delivery`: its id. `repaired`: what was done about it.
    """

    kind: Kind
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
        """The same in both looks, where numbers in `seen` may have moved on."""
        return (
            *(self.kind, self.job, self.pool, self.worker, self.artifact),
            *(self.letter_of, self.delivery, self.target),
        )

    def after(self, done: str) -> Fault:
        return replace(self, repaired=done)


@dataclass(frozen=True)
class DeliveryLook:
    """One delivery at one moment, as `lua/checks/inspect_delivery.lua` read it. `state` is None where there is no
    record.

    `is_due`: the target that was looked in has it among what is due to it; `is_known`: that target is among those that
    are looked at. `is_open_of_job`: its job counts it as open. `expires`: its record has a time to live.
    """

    id: str
    state: str | None
    target: str
    is_due: bool
    is_known: bool
    is_open_of_job: bool
    expires: bool

    @property
    def job(self) -> str:
        return self.id.partition(".")[0]


@dataclass(frozen=True)
class Message:
    """A message in a pool's Celery list (`list`), or taken and not acknowledged (`unacked`). `tag`: `<job>:<push>`."""

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


@dataclass(frozen=True)
class Stale:
    """A message that nobody needs: `claim` drops it, so it harms nobody."""

    message: Message
    reason: str


def inspect(
    job_id: str, *, pool: str | None = None, letter_of: str | None = None, now: int | None = None
) -> Call[Look]:
    """A look at the job, at the sets of `pool` and the dead letters of `letter_of` (None: of the pool and the tenant
    that its record names).
    """
    named = {"job": job_id, "pool": pool, "letter_of": letter_of, "now": None if now is None else str(now)}
    args = [text for name, value in named.items() if value is not None for text in (name, value)]
    return Call("inspect_job", tuple(args), partial(_decode, job_id))


def inspect_delivery(delivery_id: str, *, target: str | None = None) -> Call[DeliveryLook]:
    """A look at the delivery, and at what is due to `target` (None: to its own)."""
    of_target = () if target is None else ("target", target)
    return Call("inspect_delivery", ("delivery", delivery_id, *of_target), partial(_decode_delivery, delivery_id))


def _decode_delivery(delivery_id: str, reply: list[Any]) -> DeliveryLook:
    (state, _, target), due, known, open_of_job, ttl = reply
    return DeliveryLook(
        id=delivery_id,
        state=None if state is None else state.decode(),
        target="" if target is None else target.decode(),
        is_due=due is not None,
        is_known=known is not None,
        is_open_of_job=open_of_job is not None and float(open_of_job) == 1,
        expires=ttl >= 0,
    )


def _decode(job_id: str, reply: list[Any]) -> Look:
    """The order of the reply is that of `lua/checks/inspect_job.lua`."""
    record, *in_sets, indexed, letter, busy, length, last, ttl, quiet, now = reply
    state, pool, tenant, seq, end_seq, applied, archived, worker, lease, pushed, end_data, untold, dead = (
        None if value is None else value.decode() for value in record
    )
    scores = dict(zip((*POOL_SETS, *OTHER_SETS), in_sets, strict=True))
    return Look(
        id=job_id,
        state=None if state is None else State(state),
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
        untold=untold is not None,
        dead=dead is not None,
        is_letter=letter is not None,
        busy=None if busy is None else busy.decode(),
        log_length=length,
        log_last=0 if last is None else int(last.split(b"-")[0]),
        expires=ttl if ttl >= 0 else None,
        quiet_until=int(quiet or 0),
        now=now,
    )


def faults(look: Look) -> Iterator[Fault]:
    """What is wrong with a job that has a record."""
    if look.state is None:
        return
    if look.state.is_terminal:
        yield from _terminal(look)
    else:
        yield from _living(look, look.state)
    if not look.indexed:
        yield Fault(Kind.NOT_IN_INDEX, look.id, f"the index of tenant {look.tenant} has it not")
    if look.expires is not None and not look.settled:
        before = "though it is a dead letter" if look.is_letter else "before its end is applied and archived"
        seen = f"its record goes in {look.expires / 1000:.0f} s, {before}"
        yield Fault(Kind.EXPIRES, look.id, seen)
    # The log goes before the record does.
    if (look.log_length, look.log_last) != (look.seq, look.seq) and not (look.settled and look.log_length == 0):
        seen = f"the record counts {look.seq} entries, its log has {look.log_length} and ends with {look.log_last}"
        yield Fault(Kind.LOG_GAP, look.id, seen)


def _terminal(look: Look) -> Iterator[Fault]:
    if also := [name for name in (*POOL_SETS, "deadlines") if name in look.scores]:
        yield Fault(Kind.IN_TWO_PLACES, look.id, f"it is {look.state}, and also in {', '.join(also)}")
    if not look.is_told and "outbox" not in look.scores:
        what = "its start" if look.applied else "its end"
        yield Fault(Kind.NOT_IN_OUTBOX, look.id, f"it is {look.state}, {what} not applied, and not in the outbox")
    if look.is_told and "outbox" in look.scores:
        yield Fault(Kind.IN_OUTBOX, look.id, "its end is applied, and still in the outbox")
    if not look.archived and "history" not in look.scores:
        seen = f"it is {look.state}, not archived, and not among those to be archived"
        yield Fault(Kind.NOT_TO_BE_ARCHIVED, look.id, seen)
    if look.archived and "history" in look.scores:
        yield Fault(Kind.TO_BE_ARCHIVED, look.id, "it is archived, and still among those to be archived")
    if look.end_seq != look.seq:
        yield Fault(Kind.LOG_GAP, look.id, f"its end is entry {look.end_seq}, and its last {look.seq}")


def _living(look: Look, state: State) -> Iterator[Fault]:
    """Pending or running: in the one set that its state allows."""
    allowed = {"running"} if state is State.RUNNING else {"waiting", "dispatched", "due"}
    found = [name for name in POOL_SETS if name in look.scores]
    if not allowed & set(found):
        also = f", but in {', '.join(found)}" if found else ""
        yield Fault(Kind.NOWHERE, look.id, f"it is {state}, and in no set of pool {look.pool} for that{also}")
    elif len(found) > 1:
        yield Fault(Kind.IN_TWO_PLACES, look.id, f"it is {state}, and in {' and '.join(found)}")
    if "outbox" in look.scores and not look.untold:
        yield Fault(Kind.IN_OUTBOX, look.id, f"it is {state}, and already in the outbox")
    if look.untold and "outbox" not in look.scores:
        yield Fault(Kind.NOT_IN_OUTBOX, look.id, f"it is {state}, its start not applied, and not in the outbox")
    if "history" in look.scores:
        yield Fault(Kind.TO_BE_ARCHIVED, look.id, f"it is {state}, and already among those to be archived")
    if state is State.RUNNING and "running" in found:
        yield from _running(look)


def _running(look: Look) -> Iterator[Fault]:
    until = look.scores["running"]
    if until < look.now and look.quiet_until <= look.now:
        age_s = (look.now - until) / 1000
        yield Fault(Kind.LEASE_LAPSED, look.id, f"its lease lapsed {age_s:.1f} s ago, and nobody has reaped it")
    if until != look.lease:
        yield Fault(Kind.LEASE_DIFFERS, look.id, f"leased until {look.lease} by its record, until {until} by the set")
    if look.busy != look.id:
        seen = f"it runs at worker {look.worker}, whose entry says {look.busy or 'nothing'}"
        yield Fault(Kind.BUSY_DIFFERS, look.id, seen)


def strange_member(name: str, pool: str | None, look: Look) -> Fault | None:
    """What is wrong with a set that names the job: it has no record, or its record names another pool."""
    if name not in look.scores:
        return None  # it has left since
    if look.state is None:
        return Fault(Kind.NO_RECORD, look.id, f"{_set(name, pool)} names it, and it has no record", pool=pool)
    if pool is not None and look.pool != pool:
        return Fault(Kind.OTHER_POOL, look.id, f"{_set(name, pool)} names it, and its pool is {look.pool}", pool=pool)
    return None


def strange_letter(tenant: str, look: Look) -> Fault | None:
    """What is wrong with a tenant's dead letters that name the job."""
    if not look.is_letter or (look.state is State.FAILED and look.dead and look.tenant == tenant):
        return None
    said = "has no record" if look.state is None else f"is {look.state}, of tenant {look.tenant}, and none of these"
    seen = f"the dead letters of tenant {tenant} name it, and it {said}"
    return Fault(Kind.NO_DEAD_LETTER, look.id, seen, letter_of=tenant)


def delivery_fault(look: DeliveryLook) -> Fault | None:
    """What is wrong with a delivery that has a record."""
    if look.state is None:
        return None
    wrong = [
        words
        for is_wrong, words in (
            (not look.is_due, "is not among what is due to its target"),
            (not look.is_known, "has a target that nobody looks at"),
            (not look.is_open_of_job, "is not among the open ones of its job"),
            (look.expires, "has a record that goes"),
        )
        if is_wrong
    ]
    if look.state != DeliveryState.OPEN:
        wrong = ["is still due"] if look.is_due else []
    if not wrong:
        return None
    seen = f"delivery {look.id} is {look.state}, and {' and '.join(wrong)}"
    return Fault(Kind.DELIVERY_MISPLACED, look.job, seen, delivery=look.id)


def strange_delivery(target: str, look: DeliveryLook) -> Fault | None:
    """What is wrong with what is due to a target, where that names the delivery."""
    if not look.is_due:
        return None  # it has left since
    if look.state is None:
        seen = f"delivery {look.id} is due to {target}, and has no record"
        return Fault(Kind.DELIVERY_NO_RECORD, look.job, seen, delivery=look.id, target=target)
    if look.target != target:
        seen = f"delivery {look.id} is due to {target}, and its target is {look.target}"
        return Fault(Kind.DELIVERY_MISPLACED, look.job, seen, delivery=look.id, target=target)
    return None


def vanished(job_id: str, tenant: str) -> Fault:
    """A job that was accepted, was never told its end, and whose record is gone."""
    return Fault(Kind.VANISHED, job_id, f"the index of tenant {tenant} names it, and its record is gone")


def strange_entry(worker: str, look: Look) -> Fault | None:
    """What is wrong with a worker's entry that names the job."""
    if look.state is State.RUNNING and look.worker == worker:
        return None
    said = "has no record" if look.state is None else f"is {look.state}, at worker {look.worker or 'none'}"
    return Fault(Kind.BUSY_DIFFERS, look.id, f"worker {worker} is said to run it, and it {said}", worker=worker)


def lost_message(look: Look, listed: Iterable[str]) -> Fault | None:
    """What is wrong with a dispatched job: its message is not in the list, and nobody pushes it again."""
    age_ms = look.now - (look.pushed or 0)
    if look.place != "dispatched" or look.id in listed or age_ms < LOST_AFTER_MS:
        return None
    return Fault(Kind.MESSAGE_LOST, look.id, f"its message was pushed {age_ms / 1000:.0f} s ago and is not in the list")


def stale(messages: Iterable[Message], looks: Mapping[str, Look]) -> list[Stale]:
    """Messages that agree with no job, of one pool. A canary stands for none, and is none of these."""
    found: list[Stale] = []
    by_job: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        by_job[message.job].append(message)
    for job_id, of_job in by_job.items():
        if job_id.startswith(queues.CANARY):
            continue
        look = looks.get(job_id)
        needed = None if look is None else _needed(of_job, look)
        found += [Stale(message, _reason(message, look)) for message in of_job if message is not needed]
    return found


def _needed(messages: Iterable[Message], look: Look) -> Message | None:
    """The one message of a job that may be of use: the last push, in the list or on its way to be claimed."""
    last_first = sorted(messages, key=lambda message: message.push, reverse=True)
    if look.state is State.RUNNING:
        return next((message for message in last_first if message.where == "unacked"), None)
    if look.place == "dispatched":
        return min(last_first, key=lambda message: message.where, default=None)  # the list before unacked
    return None


def _reason(message: Message, look: Look | None) -> str:
    if not message.job:
        return "it is no job's message"
    if look is None or look.state is None:
        return "there is no such job"
    if look.state.is_terminal:
        return f"its job is {look.state}"
    if look.state is State.RUNNING:
        return f"its job runs, at worker {look.worker}, by another message"
    return "its job has another message" if look.place == "dispatched" else "its job waits elsewhere"


def tag_of(message: bytes) -> str:
    """The delivery tag of a message as it stands in the list; nothing for one that is not ours."""
    found = _DELIVERY_TAG.search(message)
    return found[1].decode() if found else ""


def history_fault(record: JobRecord, past: JobRecord | None) -> Fault | None:
    """What is wrong with the history of an archived job: `past` is what it has."""
    if past is None:
        return Fault(Kind.HISTORY_MISSING, record.id, "it is archived, and the history has it not")
    only_past = set() if record.is_whole else {"is_whole", "input"}
    compared = {each.name for each in fields(record)} - only_past
    differ = sorted(name for name in compared if getattr(record, name) != getattr(past, name))
    if not differ:
        return None
    return Fault(Kind.HISTORY_DIFFERS, record.id, f"the history has it with another {', '.join(differ)}")


def published(look: Look) -> list[Mapping[str, Any]]:
    """The artifacts that a completed job's end names, as they were encoded."""
    if look.state is not State.COMPLETED or look.end_data is None:
        return []
    found: list[Mapping[str, Any]] = json.loads(look.end_data).get("artifacts", [])
    return found


def _set(name: str, pool: str | None) -> str:
    return f"{name} of pool {pool}" if pool else name

"""Calls of pools and their workers: what the operator observes and decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from darkroom.ledger.calls.call import Call, make_call, word

WORKER_TTL_MS = 15_000
"""A worker that said nothing for this long is no slot of its pool."""

DRAIN_TTL_MS = 30_000
"""How long a mark of `drain` lasts unless it is made again: an operator that died leaves no worker idle for longer."""

DUE_SOON_MS = 60_000
"""Retries that are due within this belong to the demand: a replica that is started for them is up by then."""

DECISIONS_KEPT = 1_000
"""Entries of a pool's decision log, of about 1 KB each: hours of a busy pool, weeks of a quiet one."""

DECISIONS_TTL_MS = 30 * 24 * 3600 * 1000
"""How long the decision log of a pool is kept that nobody decides on any more."""


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


def announce_pool(pool: str, *, models: Sequence[str], owner: str | None = None, now: int | None = None) -> Call[str]:
    """The pool exists and serves `models`; none, where it is no more. `owner`: the operator that withdraws it again."""
    return make_call("announce_pool", bytes.decode, pool=pool, models=",".join(models), owner=owner, now=now)


def register_worker(
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
    return make_call(
        "register_worker",
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

    return make_call("observe", decode, pool=pool, soon_ms=soon_ms, now=now)


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
    return make_call("drain", decode, pool=pool, count=count, pods=listed, ttl_ms=ttl_ms, now=now)


def append_decision(pool: str, *, at: int, entry: str, keep: int = DECISIONS_KEPT) -> Call[Recorded]:
    """One more entry of the pool's decision log: `scaling.Entry.encode`, of the decision that was made at `at` (ms).

    Idempotent under pool and time.
    """
    return make_call(
        "append_decision", word(Recorded), pool=pool, at=at, entry=entry, keep=keep, ttl_ms=DECISIONS_TTL_MS, now=None
    )

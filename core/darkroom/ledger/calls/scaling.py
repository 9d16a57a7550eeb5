"""Calls of pools and their workers: what the operator observes and decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from darkroom.ledger.calls.call import Call, make_call, word

WORKER_TTL_MS = 15_000
"""A worker without a heartbeat for this long is no slot of its pool."""

DRAIN_TTL_MS = 30_000
"""How long a mark of `drain` lasts unless it is renewed: no worker stays idle longer after its operator died."""

DUE_SOON_MS = 60_000
"""Retries that are due within this belong to the demand: a replica that is started for them is up by then."""

DECISIONS_KEPT = 1_000
"""Entries of a pool's decision log, of about 1 KB each: hours of a busy pool, weeks of a quiet one."""

DECISIONS_TTL_MS = 30 * 24 * 3600 * 1000
"""Time to live of a decision log after its last entry."""


class Recorded(StrEnum):
    """The result of appending a decision. `REPEATED`: the log has an entry of that time, or a later one."""

    RECORDED = "recorded"
    REPEATED = "repeated"


class WorkerState(StrEnum):
    """The state that a worker reports."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    FAULTY = "faulty"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The jobs and workers of a pool at one moment.

    Jobs: `waiting`, `dispatched` (their message is in the queue), `running`, and `due_soon`: retries that are due
    within the requested time. `oldest_ms`: the age of the oldest job that waits; None when none does. `arrivals`: how
    many jobs the pool has ever accepted.

    Workers with a recent heartbeat: `starting`, `idle`, `busy` (with a job, by the ledger), `marked` (idle, and marked
    by `drain`: they accept no job), `draining` (shutting down), `faulty`. `service_ms`: the duration of a completed
    job, smoothed; None before the first one.
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
        """Jobs to run now or soon."""
        return self.waiting + self.dispatched + self.running + self.due_soon

    @property
    def runs_nothing(self) -> int:
        """Workers without a job, which `drain` can mark or has marked."""
        return self.starting + self.idle + self.marked + self.faulty


@dataclass(frozen=True)
class DroppedMessages:
    """Foreign messages of a pool's queue (`queues.Foreign`) that a worker dropped: how many since its last report, and
    why the last of them. `op` numbers the reports of one worker; a repeated one counts once.
    """

    op: int
    count: int
    reason: str


@dataclass(frozen=True)
class Drained:
    """A worker that is marked to accept no job, and its pod."""

    worker: str
    pod: str


def announce_pool(pool: str, *, models: Sequence[str], owner: str | None = None, now: int | None = None) -> Call[str]:
    """Announce that the pool serves `models`; none: it is withdrawn. `owner`: the operator that manages it."""
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
    """A worker's heartbeat: its state, and the foreign messages that it dropped since its last report of them."""
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
    """Read the jobs and workers of the pool. An unknown pool has none."""

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
    """Mark workers of the pool that run nothing, so that they accept no job: `count` in all, or fewer if fewer are
    idle.

    Returns those that are marked now. A repeated call renews their marks, with a smaller count it removes the others,
    and with 0 all. `pods` limits it to these pods: those that exist and are not being deleted, so that a worker that is
    shutting down already is not counted as one to remove.
    """

    def decode(reply: list[list[bytes]]) -> list[Drained]:
        return [Drained(worker.decode(), pod.decode()) for worker, pod in reply]

    listed = None if pods is None else " ".join(pods)
    return make_call("drain", decode, pool=pool, count=count, pods=listed, ttl_ms=ttl_ms, now=now)


def append_decision(pool: str, *, at: int, entry: str, keep: int = DECISIONS_KEPT) -> Call[Recorded]:
    """Append an entry to the pool's decision log: `DecisionEntry.encode` of the decision made at `at` (ms).

    Idempotent by pool and time.
    """
    return make_call(
        "append_decision", word(Recorded), pool=pool, at=at, entry=entry, keep=keep, ttl_ms=DECISIONS_TTL_MS, now=None
    )

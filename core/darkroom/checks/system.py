"""The state of the system that the doctor examines: of Redis, and of the ledger's pools, workers and jobs.

`examination.py` reads it, and the checks are functions of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.ledger.epochs import DataLoss


@dataclass(frozen=True)
class ScriptCost:
    """The cost of a command that runs scripts, in milliseconds; `p99_ms` is None before Redis 7."""

    command: str
    calls: int
    mean_ms: float
    p99_ms: float | None


@dataclass(frozen=True)
class RedisInfo:
    """Redis' own report (INFO). Memory is in bytes; `memory_limit` is the machine's where Redis has none."""

    version: tuple[int, ...]
    clustered: bool
    append_only: bool
    append_error: str | None
    eviction: str
    default_user_is_limited: bool
    memory_used: int
    memory_limit: int
    memory_limited_by: str
    costs: Sequence[ScriptCost]


@dataclass(frozen=True)
class OldestJob:
    """The oldest job of one of a pool's sets, and how long it has waited there or is overdue, in seconds."""

    job: str
    seconds: float


@dataclass(frozen=True)
class PoolInfo:
    """A pool at one moment. `courier_seen_s`: seconds since a courier visited it, None if none ever did."""

    name: str
    announced_s: float
    courier_seen_s: float | None
    backlog: int
    pushed: OldestJob | None
    waiting: OldestJob | None
    overdue: OldestJob | None
    lapsed: OldestJob | None
    foreign: ForeignDrops
    foreign_listed: int


@dataclass(frozen=True)
class ForeignDrops:
    """Number of foreign messages that a pool's workers dropped; seconds since the last, and its reason."""

    count: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class WorkerInfo:
    """A registered worker. `silent`: it was idle all the time, and claimed none of `canaries` canaries."""

    name: str
    pool: str
    state: str
    seen_s: float
    idle: bool
    silent: bool
    canaries: int

    @property
    def at_work(self) -> bool:
        return self.state in {"ready", "busy"}


@dataclass(frozen=True)
class OverdueJob:
    """A terminal job whose event is not applied, or that is not archived: seconds since it finished, the number of its
    leases for that, and the number of the last one that the receiver refused (0: none).
    """

    job: str
    seconds: float
    leases: int
    refused: int


@dataclass(frozen=True)
class ClockOffset:
    """Seconds by which a part's clock was ahead of Redis' (negative: behind), `age_s` seconds ago."""

    part: str
    ahead_s: float
    age_s: float


@dataclass(frozen=True)
class LedgerInfo:
    """The part of the ledger that the checks need."""

    pools: Sequence[PoolInfo]
    workers: Sequence[WorkerInfo]
    unapplied: Sequence[OverdueJob]
    unarchived: Sequence[OverdueJob]
    loss: DataLoss | None
    unfinished_bytes: int = 0
    clocks: Sequence[ClockOffset] = ()
    set_back: ClockOffset | None = None
    """The last time that Redis' own clock was set back, and by how much."""


@dataclass(frozen=True)
class SystemInfo:
    """Everything that was read. `redis` or `ledger` is None where it could not be read; `error` has the reason."""

    redis: RedisInfo | None
    ledger: LedgerInfo | None
    error: str | None

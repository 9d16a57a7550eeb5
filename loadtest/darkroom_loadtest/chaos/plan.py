"""The plans of chaos runs: which faults happen, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, repeat

from darkroom.ledger import calls

from darkroom_loadtest.chaos.faults import FaultOrder, FaultPoint, FaultSignal, PoisonKind
from darkroom_loadtest.chaos.observer import SinkMode
from darkroom_loadtest.chaos.protections import Protection


class OutageKind(StrEnum):
    """What is unavailable in an outage: Redis, the folder of the object store, or disk space."""

    REDIS_KILLED = "Redis killed"
    REDIS_FROZEN = "Redis frozen"
    STORE_GONE = "object store gone"
    DISK_FULL = "disk full"

    @property
    def is_of_redis(self) -> bool:
        return self in {OutageKind.REDIS_KILLED, OutageKind.REDIS_FROZEN}


@dataclass(frozen=True)
class Outage:
    """An outage of `for_s` seconds, at `at_s` or as soon as it can start."""

    at_s: float
    for_s: float
    loss: OutageKind


@dataclass(frozen=True)
class PoisonJobs:
    """A number of jobs at `at_s` that fail every attempt."""

    at_s: float
    harm: PoisonKind
    jobs: int


@dataclass(frozen=True)
class SinkFailure:
    """A failure of the sink at `at_s`, for `for_s` seconds."""

    at_s: float
    for_s: float
    way: SinkMode


@dataclass(frozen=True, kw_only=True)
class ChaosPlan:
    """The plan of a chaos run. Times are in seconds from its start. A fault is ordered `every_s`, except in outages.
    Outages are sequential. `foreign`: times at which messages that are not jobs are pushed onto the pool's list.

    `jobs` is the minimum number of jobs, `per_s` their rate for the whole run. `limit_s`: the timeout of the run;
    `settle_s`: the timeout for the remaining jobs after it. `outlasts`: a stopped worker is not resumed before its job
    has finished elsewhere.
    """

    jobs: int
    per_s: float
    workers: int
    lease_s: float
    faults: Sequence[FaultOrder]
    every_s: float
    limit_s: float
    settle_s: float
    outages: Sequence[Outage] = ()
    foreign: Sequence[float] = ()
    harmful: Sequence[PoisonJobs] = ()
    sink_failures: Sequence[SinkFailure] = ()
    functions_killed: Sequence[float] = ()
    couriers_killed: Sequence[float] = ()
    courier: tuple[tuple[str, str], ...] = ()
    socket_jobs: int = 50
    outlasts: bool = False

    @property
    def stop_s(self) -> float:
        """A stopped worker resumes after two leases."""
        return 2 * self.lease_s


def orders(kills: int, stops: int) -> list[FaultOrder]:
    """That many kills at each point, with the stops spread among them, at the two points of a held job in turn."""
    points = [point for point in FaultPoint if point is not FaultPoint.DEVELOPED]
    killing = [FaultOrder(FaultSignal.KILL, point) for _ in range(kills) for point in points]
    stopping = [
        FaultOrder(FaultSignal.STOP, (FaultPoint.DEVELOPED, FaultPoint.STORED)[turn % 2]) for turn in range(stops)
    ]
    stride = max(1, len(killing) // max(1, stops))
    groups = [killing[start : start + stride] for start in range(0, len(killing), stride)]
    spread = [[*group, *stop] for group, stop in zip(groups, chain(([o] for o in stopping), repeat([])), strict=False)]
    return [order for group in spread for order in group] + stopping[len(groups) :]


SHORT_COURIER = (
    ("DARKROOM_ATTEMPT_LEASE_S", "4"),
    ("DARKROOM_REAP_GAP_S", "2"),
    ("DARKROOM_POLL_INTERVAL_S", "0.5"),
    ("DARKROOM_SWEEP_AGE_S", "2"),
    ("DARKROOM_RELAY_LEASE_S", "4"),
    ("DARKROOM_SINK_TIMEOUT_S", "2"),
)
"""Settings of the courier for a lease of four seconds."""

FULL = ChaosPlan(
    jobs=2_000,
    per_s=10,
    workers=5,
    lease_s=calls.LEASE_MS / 1000,
    faults=orders(kills=7, stops=6),
    every_s=3.5,
    limit_s=900,
    settle_s=150,
    outages=(
        Outage(70, 21, OutageKind.REDIS_KILLED),
        Outage(120, 20, OutageKind.DISK_FULL),
        Outage(150, 21, OutageKind.REDIS_KILLED),
        Outage(190, 60, OutageKind.STORE_GONE),
        Outage(255, 60, OutageKind.REDIS_FROZEN),
    ),
    foreign=(20, 110),
    harmful=(
        PoisonJobs(12, PoisonKind.RAISE, 10),
        PoisonJobs(40, PoisonKind.KILL_CHILD, 6),
        PoisonJobs(180, PoisonKind.RAISE, 10),
    ),
    sink_failures=(
        SinkFailure(15, 60, SinkMode.DROPS),
        SinkFailure(105, 30, SinkMode.CLOSED),
        SinkFailure(135, 30, SinkMode.REFUSES),
        SinkFailure(180, 60, SinkMode.HANGS),
    ),
    functions_killed=(10, 98, 176),
    couriers_killed=(30, 130, 190),
)
"""The plan of `make chaos`."""

SHORT = ChaosPlan(
    jobs=200,
    per_s=10,
    workers=4,
    lease_s=4,
    faults=orders(kills=2, stops=2),
    every_s=2.0,
    limit_s=150,
    settle_s=60,
    outages=(
        Outage(14, 6, OutageKind.REDIS_KILLED),
        Outage(21, 4, OutageKind.DISK_FULL),
        Outage(28, 5, OutageKind.STORE_GONE),
        Outage(34, 4, OutageKind.REDIS_FROZEN),
    ),
    foreign=(6,),
    harmful=(PoisonJobs(2, PoisonKind.RAISE, 4), PoisonJobs(9, PoisonKind.KILL_CHILD, 1)),
    sink_failures=(
        SinkFailure(3, 3, SinkMode.DROPS),
        SinkFailure(7, 2, SinkMode.CLOSED),
        SinkFailure(9, 3, SinkMode.REFUSES),
        SinkFailure(24, 3, SinkMode.HANGS),
    ),
    functions_killed=(8,),
    couriers_killed=(11, 28),
    courier=SHORT_COURIER,
    socket_jobs=20,
)
"""The short plan, for CI."""


def directed(protection: Protection) -> ChaosPlan:
    """The shortest plan for one protection: the fault that it protects from happens twice."""
    faults = {
        Protection.REAPER: [FaultOrder(FaultSignal.KILL, FaultPoint.STORED)] * 2,
        Protection.SWEEP: [FaultOrder(FaultSignal.KILL, FaultPoint.POPPED)] * 2,
        Protection.FENCING: [FaultOrder(FaultSignal.STOP, FaultPoint.STORED)] * 2,
        Protection.OUTBOX: [],
        Protection.ATTEMPT_KEYS: [FaultOrder(FaultSignal.STOP, FaultPoint.DEVELOPED)] * 2,
    }
    forgets = (SinkFailure(0.0, 2.0, SinkMode.DROPS),)
    return ChaosPlan(
        jobs=10,
        per_s=5,
        workers=3,
        lease_s=4,
        faults=faults[protection],
        every_s=0.5,
        limit_s=60,
        settle_s=12,
        sink_failures=forgets if protection is Protection.OUTBOX else (),
        courier=SHORT_COURIER,
        socket_jobs=10,
        outlasts=True,
    )

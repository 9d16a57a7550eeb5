"""A pool of workers in simulated time: the effect of a scaler on the jobs of a given day.

`darkroom replay --policy` simulates another policy with the jobs of a decision log, and `make bench-policy` compares
ours with other autoscalers. A `Scaler` returns the desired replicas; the simulation does the rest: replicas start
slowly, run the oldest waiting job, one at a time, and are removed when the scaler asks for fewer.

The scaler determines which ones are removed: ours marks workers that run nothing (`drain`), while a Deployment that is
scaled down by others deletes pods in the order of its ReplicaSet, busy or not. A busy pod has a grace period to finish
its job; otherwise the job is interrupted, returns to the front of the queue and runs again. Times are milliseconds.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from heapq import heappop, heappush
from typing import Protocol

from darkroom.ledger.calls import Reading
from darkroom.scaling.decision import Decision, PoolObservation, Reason, ScalingHistory, decide
from darkroom.scaling.policy import ScalingPolicy

TICK_MS = 1_000
"""The operator decides each second, and when a backlog turns non-empty: here within the second."""

GRACE_MS = 30_000
"""The grace period of a deleted pod: Kubernetes' default (`terminationGracePeriodSeconds`)."""

OVERTIME_MS = 3_600_000
"""How long after the day its jobs may still finish. Some scalers interrupt a long job repeatedly."""

SMOOTHING = 0.1
"""The weight of the newest service time, as in the ledger (`lua/attempts/finish.lua`)."""


@dataclass(frozen=True)
class SimulatedJob:
    """The time when a job arrives, and how long it runs."""

    arrival: int
    service: int


class RemovalOrder(Enum):
    """The order in which replicas are removed."""

    UNUSED = "starting replicas, then idle ones: as `drain` marks them"
    IDLE = "idle replicas, the longest idle first"
    ANY = "in the order of a ReplicaSet: replicas that are not ready, then those that became ready last; busy or not"


@dataclass
class Replica:
    """One replica. `job`: the index of its job; `since`: when it became idle; `leaving`: it is to be removed."""

    number: int
    created: int
    ready: int | None = None
    job: int | None = None
    since: int = 0
    leaving: bool = False


@dataclass
class SimulatedFleet:
    """The state that a scaler may read."""

    starting: dict[int, Replica] = field(default_factory=dict)
    idle: dict[int, Replica] = field(default_factory=dict)
    busy: dict[int, Replica] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    arrivals: int = 0
    service_ms: float | None = None

    @property
    def replicas(self) -> int:
        return len(self.starting) + len(self.idle) + len(self.busy)


class Scaler(Protocol):
    """A scaler. `listens`: it is called within a second of every change, not only at the times that it requests."""

    removal_order: RemovalOrder
    listens: bool

    def ask(self, fleet: SimulatedFleet, jobs: Sequence[SimulatedJob], now: int) -> tuple[int, int | None]:
        """The desired replicas, and the latest time of the next call (None: at the next change)."""
        ...


@dataclass(frozen=True)
class SimulationResult:
    """The result of a day. `waits`: how long each job waited for the start of its last attempt (s; for a job that was
    unfinished an hour after the day, until then). `replica_seconds`: the time of all replicas within the day, including
    cold starts. `kills`: number of interrupted jobs. `unfinished`: number of jobs that did not finish.
    """

    waits: Sequence[float]
    replica_seconds: float
    kills: int
    unfinished: int

    def wait(self, percent: float) -> float:
        """The percentile of the waits (nearest rank), 0 without jobs."""
        ordered = sorted(self.waits)
        return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)] if ordered else 0.0


class PolicyScaler:
    """The operator: `decide`, each second and at every change. `origin`: the start of the day (ms)."""

    removal_order = RemovalOrder.UNUSED
    listens = True

    def __init__(self, policy: ScalingPolicy, *, cold_start_ms: int, origin: int = 0) -> None:
        self._policy, self._origin = policy, origin
        self._cold_start_s = cold_start_ms / 1000
        self._history = ScalingHistory()
        self._unchanged: tuple[PoolObservation, int] | None = None

    def ask(self, fleet: SimulatedFleet, jobs: Sequence[SimulatedJob], now: int) -> tuple[int, int | None]:
        """The decision, and the first second at which it may change without an event."""
        reading = Reading(
            waiting=len(fleet.waiting),
            running=len(fleet.busy),
            oldest_ms=now - jobs[fleet.waiting[0]].arrival if fleet.waiting else None,
            arrivals=fleet.arrivals,
            starting=len(fleet.starting),
            idle=len(fleet.idle),
            busy=len(fleet.busy),
            service_ms=fleet.service_ms,
        )
        observation = PoolObservation(
            reading=reading,
            replicas=fleet.replicas,
            ready=len(fleet.idle) + len(fleet.busy),
            cold_start_seconds=self._cold_start_s,
        )
        self._catch_up(now)
        decision, self._history = decide(observation, self._policy, self._history, self._origin + now)
        self._unchanged = replace(observation, replicas=decision.replicas), now
        return decision.replicas, self._again(decision, now)

    def _catch_up(self, now: int) -> None:
        """Account for the seconds since the last call, in which nothing changed."""
        if self._unchanged is not None and self._unchanged[1] < now - TICK_MS:
            observed, at = self._unchanged[0], self._origin + now - TICK_MS
            _, self._history = decide(observed, self._policy, self._history, at)

    def _again(self, decision: Decision, now: int) -> int | None:
        if self._policy.schedule or self._policy.scale_up.max_step or self._policy.scale_down.max_step:
            return now + TICK_MS
        if decision.reason is Reason.WAITING:
            return now + TICK_MS
        # The wanted replicas change with events; the recent maximum changes when the oldest peak expires.
        over = self._history.peaks[0][0] - self._origin + int(self._policy.scale_down.idle_seconds * 1000)
        return max(over, now + TICK_MS) if decision.reason in {Reason.SETTLING, Reason.IDLE} else None


def simulate(
    jobs: Sequence[SimulatedJob], scaler: Scaler, *, cold_start_ms: int, until: int, seed: int = 0, replicas: int = 0
) -> SimulationResult:
    """Simulate a day from 0 to `until`, and until its last job has finished. `jobs` are in the order of arrival. `seed`
    is for the random choices of a ReplicaSet. `replicas` are ready at the start.
    """
    return _Simulation(jobs, scaler, cold_start_ms=cold_start_ms, until=until, seed=seed).run(replicas)


class _EventKind(Enum):
    ARRIVED = 0
    READY = 1
    FINISHED = 2
    KILLED = 3
    ASK = 4


class _Simulation:
    def __init__(
        self, jobs: Sequence[SimulatedJob], scaler: Scaler, *, cold_start_ms: int, until: int, seed: int
    ) -> None:
        self._jobs, self._scaler, self._cold_start_ms, self._until = jobs, scaler, cold_start_ms, until
        self._dice = random.Random(seed)  # noqa: S311 - a simulation
        self._fleet = SimulatedFleet()
        self._leaving: dict[int, Replica] = {}
        self._events: list[tuple[int, int, int, _EventKind, int]] = []
        self._numbers = self._order = 0
        self._waits = [0.0] * len(jobs)
        self._unfinished = set(range(len(jobs)))
        self._replica_ms = self._kills = self._now = 0
        self._ask_at: int | None = None

    def run(self, replicas: int) -> SimulationResult:
        for _ in range(replicas):
            self._create()
            self._on_ready(self._numbers)
        if self._jobs:
            self._at(self._jobs[0].arrival, _EventKind.ARRIVED, 0)
        self._ask_by(0)
        handlers = {
            _EventKind.ARRIVED: self._on_arrival,
            _EventKind.READY: self._on_ready,
            _EventKind.FINISHED: self._on_finish,
            _EventKind.KILLED: self._on_kill,
        }
        while self._events:
            now, _, _, kind, subject = self._events[0]
            if now >= self._until + OVERTIME_MS or (now >= self._until and not self._unfinished):
                break
            heappop(self._events)
            self._now = now
            if kind is _EventKind.ASK:
                self._ask(now)
                continue
            handlers[kind](subject)
            if self._scaler.listens:
                self._ask_by(-(-now // TICK_MS) * TICK_MS)
        self._now = max(self._until, self._now)
        alive = [*self._fleet.starting.values(), *self._fleet.idle.values(), *self._fleet.busy.values()]
        for replica in [*alive, *self._leaving.values()]:
            self._count(replica)
        for job in self._unfinished:
            self._waits[job] = (self._now - self._jobs[job].arrival) / 1000
        return SimulationResult(self._waits, self._replica_ms / 1000, self._kills, len(self._unfinished))

    def _count(self, replica: Replica) -> None:
        """Add the time of a removed replica."""
        self._replica_ms += max(min(self._now, self._until) - replica.created, 0)

    def _at(self, time: int, kind: _EventKind, subject: int) -> None:
        self._order += 1
        heappush(self._events, (time, kind.value, self._order, kind, subject))

    def _ask_by(self, time: int) -> None:
        if self._ask_at is None or time < self._ask_at:
            self._ask_at = time
            self._at(time, _EventKind.ASK, 0)

    def _ask(self, now: int) -> None:
        if now != self._ask_at:
            return  # replaced by an earlier call
        self._ask_at = None
        wanted, again = self._scaler.ask(self._fleet, self._jobs, now)
        while self._fleet.replicas < wanted:
            self._create()
        if self._fleet.replicas > wanted:
            self._remove(self._fleet.replicas - wanted)
        if again is not None:
            self._ask_by(again)

    def _create(self) -> None:
        self._numbers += 1
        self._fleet.starting[self._numbers] = Replica(self._numbers, self._now)
        self._at(self._now + self._cold_start_ms, _EventKind.READY, self._numbers)

    def _remove(self, count: int) -> None:
        fleet = self._fleet
        starting = sorted(fleet.starting.values(), key=lambda each: -each.number)
        idle = sorted(fleet.idle.values(), key=lambda each: each.since)
        match self._scaler.removal_order:
            case RemovalOrder.UNUSED:
                order = [*starting, *idle]
            case RemovalOrder.IDLE:
                order = idle
            case RemovalOrder.ANY:
                order = [*starting, *sorted([*idle, *fleet.busy.values()], key=self._by_age)]
        for replica in order[:count]:
            if replica.job is None:
                (fleet.starting if replica.ready is None else fleet.idle).pop(replica.number)
                self._count(replica)
            else:
                fleet.busy.pop(replica.number)
                replica.leaving = True
                self._leaving[replica.number] = replica
                self._at(self._now + GRACE_MS, _EventKind.KILLED, replica.number)

    def _by_age(self, replica: Replica) -> tuple[int, float]:
        """The key by which the ReplicaSet controller sorts ready pods: the magnitude of their age, then at random.

        https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#scaling-a-replicaset
        """
        age_s = (self._now - (replica.ready or 0)) // 1000
        return age_s.bit_length(), self._dice.random()

    def _on_arrival(self, job: int) -> None:
        self._fleet.arrivals += 1
        self._fleet.waiting.append(job)
        if job + 1 < len(self._jobs):
            self._at(self._jobs[job + 1].arrival, _EventKind.ARRIVED, job + 1)
        self._assign()

    def _on_ready(self, number: int) -> None:
        replica = self._fleet.starting.pop(number, None)
        if replica is not None:
            replica.ready = replica.since = self._now
            self._fleet.idle[number] = replica
            self._assign()

    def _on_finish(self, number: int) -> None:
        replica = self._fleet.busy.pop(number, None) or self._leaving.pop(number, None)
        if replica is None or replica.job is None:
            return  # it was killed before that
        service = self._jobs[replica.job].service
        smoothed = self._fleet.service_ms
        self._fleet.service_ms = service if smoothed is None else smoothed + SMOOTHING * (service - smoothed)
        self._unfinished.discard(replica.job)
        if replica.leaving:
            self._count(replica)
            return
        replica.job, replica.since = None, self._now
        self._fleet.idle[number] = replica
        self._assign()

    def _on_kill(self, number: int) -> None:
        replica = self._leaving.pop(number, None)
        if replica is None or replica.job is None:
            return  # it finished its job in time
        self._kills += 1
        self._count(replica)
        self._fleet.waiting.appendleft(replica.job)
        self._assign()

    def _assign(self) -> None:
        fleet = self._fleet
        while fleet.waiting and fleet.idle:
            # The replica that became idle last, so that the others' idle time expires (RemovalOrder.IDLE).
            _, replica = fleet.idle.popitem()
            replica.job = fleet.waiting.popleft()
            job = self._jobs[replica.job]
            self._waits[replica.job] = (self._now - job.arrival) / 1000
            fleet.busy[replica.number] = replica
            self._at(self._now + job.service, _EventKind.FINISHED, replica.number)

"""The verdict on a chaos run: figures from the observer's record, the injected faults, and the ledger.

Pure functions. The observer's list defines the jobs; the ledger only provides the number of attempts, the times of
starts, and the keys of artifacts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from darkroom.jobs import State

from darkroom_loadtest.chaos.faults import HELD, UNCLAIMED, FaultPoint, FaultSignal, InjectedFault
from darkroom_loadtest.measurement.figures import Figure, Goal, percentile

RECOVERY_ALLOWANCE_S = 2.0
"""Allowed time of a recovery beyond the lease."""


@dataclass(frozen=True)
class End:
    """The terminal message of a job. Messages that differ in any field are different ends."""

    event_id: str
    seq: int
    state: str
    content_id: str | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The recorded facts, by job id.

    `accepted`: jobs with a 202. `applied`: jobs whose end was applied; `received`: jobs whose end a socket received.
    `ends`: all ends that were ever sent. `counted`: the ledger's number of attempts, of all of its jobs; `moves_ms`:
    times of starts and ends; `changed`: jobs whose stored bytes differ from the published ones. `outages_ms`: starts of
    outages. `workers_out`: workers that accept no job at the end. `waiting`: unfinished jobs at the end; `disordered`:
    jobs whose events arrived out of order at the sink or on a socket; `harmful`: jobs that fail every attempt. Times
    are milliseconds since the epoch.
    """

    accepted: frozenset[str]
    applied: frozenset[str]
    received: frozenset[str]
    ends: Mapping[str, frozenset[End]]
    counted: Mapping[str, int]
    moves_ms: Mapping[str, Sequence[int]]
    changed: frozenset[str]
    faults: Sequence[InjectedFault]
    outages_ms: Sequence[int]
    audit_findings: Sequence[str] = field(default=())
    workers_out: int = 0
    waiting: frozenset[str] = frozenset()
    disordered: frozenset[str] = frozenset()
    harmful: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Recovery:
    """The seconds until a job was started again or finished after its worker was killed at `point`."""

    point: FaultPoint
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """The verdict. `excused` are kills that could not be recovered in time because of an outage.

    `wrong`: harmful jobs that did not fail, and other jobs that did not complete.
    """

    jobs: int
    lost: tuple[str, ...]
    twice: tuple[str, ...]
    false_attempts: int
    recoveries: tuple[Recovery, ...]
    excused: int
    audit_findings: int
    workers_out: int = 0
    waiting: tuple[str, ...] = ()
    disordered: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


def judge(evidence: Evidence, *, lease_s: float) -> Verdict:
    """The verdict. `lease_s` is the workers' lease."""
    recoveries, excused = _recoveries(evidence, lease_s)
    twice = {job for job, ends in evidence.ends.items() if len(ends) > 1} | evidence.changed
    return Verdict(
        jobs=len(evidence.accepted),
        lost=tuple(sorted(evidence.accepted - (evidence.applied & evidence.received & evidence.counted.keys()))),
        twice=tuple(sorted(twice)),
        false_attempts=_false_attempts(evidence),
        recoveries=tuple(recoveries),
        excused=excused,
        audit_findings=len(evidence.audit_findings),
        workers_out=evidence.workers_out,
        waiting=tuple(sorted(evidence.waiting)),
        disordered=tuple(sorted(evidence.disordered)),
        wrong=tuple(sorted(job for job, ends in evidence.ends.items() if _is_wrong(job, ends, evidence.harmful))),
    )


def _is_wrong(job: str, ends: frozenset[End], harmful: frozenset[str]) -> bool:
    expected = State.FAILED if job in harmful else State.COMPLETED
    return any(end.state != expected for end in ends)


def _false_attempts(evidence: Evidence) -> int:
    """Counted attempts beyond the faults of workers that held the job. All attempts of a harmful job count."""
    deserved = Counter(fault.job for fault in evidence.faults if fault.point in HELD)
    return sum(
        max(0, counted - deserved[job]) for job, counted in evidence.counted.items() if job not in evidence.harmful
    )


def _recoveries(evidence: Evidence, lease_s: float) -> tuple[list[Recovery], int]:
    """From each kill of a worker with an unfinished job to that job's next start or end.

    A kill shortly before an outage is excused: the expired lease could not be detected. A job without a later start or
    end is lost and has no recovery.
    """
    window_ms = 1000 * (lease_s + RECOVERY_ALLOWANCE_S)
    recoveries, excused = [], 0
    for fault in evidence.faults:
        if fault.kind is not FaultSignal.KILL or fault.point not in HELD | UNCLAIMED:
            continue
        if any(fault.at_ms <= outage <= fault.at_ms + window_ms for outage in evidence.outages_ms):
            excused += 1
            continue
        later = [at for at in evidence.moves_ms.get(fault.job, ()) if at >= fault.at_ms]
        if later:
            recoveries.append(Recovery(fault.point, (min(later) - fault.at_ms) / 1000))
    return recoveries, excused


def figures(verdict: Verdict, *, least_jobs: int, recovery_goal_s: float | None) -> list[Figure]:
    """The figures with their goals. `recovery_goal_s` is None for a short run."""
    none = Goal(most=0)
    found = [
        _figure("chaos_jobs", "jobs", verdict.jobs, Goal(least=least_jobs)),
        _figure("chaos_lost", "jobs", len(verdict.lost), none),
        _figure("chaos_twice", "jobs", len(verdict.twice), none),
        _figure("chaos_false_attempts", "attempts", verdict.false_attempts, none),
        _figure("chaos_audit_findings", "findings", verdict.audit_findings, none),
        _figure("chaos_workers_out", "workers", verdict.workers_out, none),
        _figure("chaos_waiting", "jobs", len(verdict.waiting), none),
        _figure("chaos_disordered", "jobs", len(verdict.disordered), none),
        _figure("chaos_wrong_ends", "jobs", len(verdict.wrong), none),
    ]
    if verdict.recoveries:
        seconds = [recovery.seconds for recovery in verdict.recoveries]
        goal = None if recovery_goal_s is None else Goal(most=recovery_goal_s)
        found.append(_figure("chaos_recovery_p50_s", "s", percentile(seconds, 50), None))
        found.append(_figure("chaos_recovery_p99_s", "s", percentile(seconds, 99), goal))
    return found


def missed(found: Sequence[Figure]) -> list[str]:
    """The names of figures that miss their goal."""
    return [figure.name for figure in found if figure.goal is not None and not figure.goal.is_met(figure.value)]


def faults_in_words(faults: Sequence[InjectedFault]) -> str:
    """The number of faults by kind and point, as text."""
    by_kind: dict[FaultSignal, Counter[str]] = defaultdict(Counter)
    for fault in faults:
        by_kind[fault.kind][fault.point.value] += 1
    each = [
        f"{counts.total()} × {kind} ({', '.join(f'{count} {point}' for point, count in counts.items())})"
        for kind, counts in by_kind.items()
    ]
    return "; ".join(each) or "none"


def recoveries_in_words(recoveries: Sequence[Recovery]) -> str:
    """The times by point, as text."""
    by_point: dict[str, list[float]] = defaultdict(list)
    for recovery in recoveries:
        by_point[recovery.point].append(recovery.seconds)
    each = [f"{point} {' '.join(f'{s:.1f}' for s in sorted(seconds))}" for point, seconds in sorted(by_point.items())]
    return "; ".join(each) or "none"


def _figure(name: str, unit: str, value: float, goal: Goal | None) -> Figure:
    return Figure(name=name, unit=unit, runs=[value], goal=goal)

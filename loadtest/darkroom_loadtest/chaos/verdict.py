"""The verdict on a storm: figures from what the witness saw, what was done to workers, and what the ledger has.

Pure functions. A job is judged by the witness' own list: the ledger is asked only how many attempts it counted, when
jobs ran again, and where their pictures are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from darkroom.jobs import State

from darkroom_loadtest.bench.figures import Figure, Goal, percentile
from darkroom_loadtest.chaos.wounds import HELD, UNCLAIMED, Blow, Point, Wound

RECOVERY_ALLOWANCE_S = 2.0
"""What recovery may take beyond the lease."""


@dataclass(frozen=True)
class End:
    """The end of a job as somebody was told of it. Two that differ in anything are two ends."""

    event_id: str
    seq: int
    state: str
    content_id: str | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What there is to judge by, each by the job's id.

    `accepted` were answered with a 202. `told`: their end reached the sink's far side; `shown`: an owner's socket told
    of it. `ends` are all the ends that anybody was ever told. `counted`: attempts by the ledger, of all jobs that it
    has; `moves_ms`: when the job started or ended; `changed`: jobs whose published bytes are not those that were told
    of. `outages_ms`: when Redis or the object store went away. `workers_out`: those that take no job at the end.
    `waiting`: jobs that are not terminal at the end; `disordered`: jobs whose events arrived out of order at the sink
    or on a socket; `harmful`: jobs that break their worker at every attempt. Times are milliseconds since the epoch.
    """

    accepted: frozenset[str]
    told: frozenset[str]
    shown: frozenset[str]
    ends: Mapping[str, frozenset[End]]
    counted: Mapping[str, int]
    moves_ms: Mapping[str, Sequence[int]]
    changed: frozenset[str]
    wounds: Sequence[Wound]
    outages_ms: Sequence[int]
    audit_findings: Sequence[str] = field(default=())
    workers_out: int = 0
    waiting: frozenset[str] = frozenset()
    disordered: frozenset[str] = frozenset()
    harmful: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Recovery:
    """How many seconds a job took to run again, or to end, after its worker was killed at `point`."""

    point: Point
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """`excused` are kills that an outage of Redis kept from being recovered in time.

    `wrong`: harmful jobs that did not fail, and other jobs that were not completed.
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
    """The figures. `lease_s` is the lease that the workers had."""
    recoveries, excused = _recoveries(evidence, lease_s)
    twice = {job for job, ends in evidence.ends.items() if len(ends) > 1} | evidence.changed
    return Verdict(
        jobs=len(evidence.accepted),
        lost=tuple(sorted(evidence.accepted - (evidence.told & evidence.shown & evidence.counted.keys()))),
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
    """Attempts that were counted beyond the wounds of workers that held the job. A harmful job is charged for each."""
    deserved = Counter(wound.job for wound in evidence.wounds if wound.point in HELD)
    return sum(
        max(0, counted - deserved[job]) for job, counted in evidence.counted.items() if job not in evidence.harmful
    )


def _recoveries(evidence: Evidence, lease_s: float) -> tuple[list[Recovery], int]:
    """From each kill of a worker whose job had not ended to that job's next start, or its end.

    A kill shortly before Redis went away is excused: nobody could see the job's lease lapse. A job that never moved
    again is lost, and has no recovery.
    """
    window_ms = 1000 * (lease_s + RECOVERY_ALLOWANCE_S)
    recoveries, excused = [], 0
    for wound in evidence.wounds:
        if wound.blow is not Blow.KILL or wound.point not in HELD | UNCLAIMED:
            continue
        if any(wound.at_ms <= outage <= wound.at_ms + window_ms for outage in evidence.outages_ms):
            excused += 1
            continue
        later = [at for at in evidence.moves_ms.get(wound.job, ()) if at >= wound.at_ms]
        if later:
            recoveries.append(Recovery(wound.point, (min(later) - wound.at_ms) / 1000))
    return recoveries, excused


def figures(verdict: Verdict, *, least_jobs: int, recovery_goal_s: float | None) -> list[Figure]:
    """The figures with their goals. `recovery_goal_s` is None where the storm is too short to say."""
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
    """The names of the figures that miss their goal."""
    return [figure.name for figure in found if figure.goal is not None and not figure.goal.is_met(figure.value)]


def wounds_in_words(wounds: Sequence[Wound]) -> str:
    """How many of each, for people."""
    by_blow: dict[Blow, Counter[str]] = defaultdict(Counter)
    for wound in wounds:
        by_blow[wound.blow][wound.point.value] += 1
    each = [
        f"{counts.total()} × {blow} ({', '.join(f'{count} {point}' for point, count in counts.items())})"
        for blow, counts in by_blow.items()
    ]
    return "; ".join(each) or "none"


def recoveries_in_words(recoveries: Sequence[Recovery]) -> str:
    """The times by point, for people."""
    by_point: dict[str, list[float]] = defaultdict(list)
    for recovery in recoveries:
        by_point[recovery.point].append(recovery.seconds)
    each = [f"{point} {' '.join(f'{s:.1f}' for s in sorted(seconds))}" for point, seconds in sorted(by_point.items())]
    return "; ".join(each) or "none"


def _figure(name: str, unit: str, value: float, goal: Goal | None) -> Figure:
    return Figure(name=name, unit=unit, runs=[value], goal=goal)

"""The verdict on a chaos run: lost and doubled jobs, false attempts, and recoveries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from darkroom_loadtest.chaos.faults import FaultOrder, FaultPoint, FaultSignal, InjectedFault
from darkroom_loadtest.chaos.plan import orders
from darkroom_loadtest.chaos.verdict import End, Evidence, Recovery, Verdict, figures, judge, missed

LEASE_S = 15.0
T = 1_700_000_000_000
"""A time in milliseconds."""

END = End("a:end", 5, "completed", "abc")


def evidence(**differs: object) -> Evidence:
    """A job that was accepted, applied and received, with the differences in `differs`."""
    calm = Evidence(
        accepted=frozenset({"a"}),
        applied=frozenset({"a"}),
        received=frozenset({"a"}),
        ends={"a": frozenset({END})},
        counted={"a": 0},
        moves_ms={},
        changed=frozenset(),
        faults=(),
        outages_ms=(),
    )
    return replace(calm, **differs)  # type: ignore[arg-type]


def judged(**differs: object) -> Verdict:
    return judge(evidence(**differs), lease_s=LEASE_S)


def kill(point: FaultPoint, at_s: float = 0) -> InjectedFault:
    return InjectedFault(FaultSignal.KILL, point, "a", 1, T + round(1000 * at_s))


def test_a_job_that_was_applied_and_received_is_neither_lost_nor_doubled() -> None:
    verdict = judged()
    assert (verdict.jobs, verdict.lost, verdict.twice, verdict.false_attempts) == (1, (), (), 0)


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param({"applied": frozenset()}, id="applied"),
        pytest.param({"received": frozenset()}, id="shown to its owner"),
        pytest.param({"counted": {}}, id="kept by the ledger"),
    ],
)
def test_a_job_is_lost_unless_it_was_applied_and_received_and_is_in_the_ledger(missing: dict[str, object]) -> None:
    assert judged(**missing).lost == ("a",)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(END, event_id="a:other"), id="another id"),
        pytest.param(replace(END, seq=6), id="another place in the log"),
        pytest.param(replace(END, state="failed"), id="another state"),
        pytest.param(replace(END, content_id="def"), id="other bytes"),
    ],
)
def test_two_different_ends_are_a_double(other: End) -> None:
    assert judged(ends={"a": frozenset({END, other})}).twice == ("a",)


def test_changed_artifacts_are_a_double() -> None:
    assert judged(changed=frozenset({"a"})).twice == ("a",)


@pytest.mark.parametrize(
    ("point", "false_attempts"),
    [
        (FaultPoint.POPPED, 1),
        (FaultPoint.DELIVERED, 1),
        (FaultPoint.DEVELOPED, 0),
        (FaultPoint.STORED, 0),
        (FaultPoint.FINISHED, 1),
        (FaultPoint.ACKNOWLEDGING, 1),
    ],
)
def test_an_attempt_is_false_without_a_fault_of_a_worker_that_held_the_job(
    point: FaultPoint, false_attempts: int
) -> None:
    assert judged(counted={"a": 1}, faults=[kill(point)]).false_attempts == false_attempts


def test_a_poison_job_is_charged_for_every_attempt_and_must_fail() -> None:
    failed = frozenset({replace(END, state="failed")})
    harmful = judged(counted={"a": 3}, harmful=frozenset({"a"}), ends={"a": failed})
    assert (harmful.false_attempts, harmful.wrong) == (0, ())
    assert judged(ends={"a": failed}).wrong == ("a",)
    assert judged(harmful=frozenset({"a"})).wrong == ("a",)


def test_each_fault_justifies_one_attempt() -> None:
    assert judged(counted={"a": 2}, faults=[kill(FaultPoint.STORED)]).false_attempts == 1


def test_recovery_is_from_the_kill_to_the_next_start_or_end() -> None:
    verdict = judged(faults=[kill(FaultPoint.STORED)], moves_ms={"a": [T - 10, T + 15_500, T + 15_600]})
    assert verdict.recoveries == (Recovery(FaultPoint.STORED, 15.5),)


@pytest.mark.parametrize("point", [FaultPoint.FINISHED, FaultPoint.ACKNOWLEDGING])
def test_a_kill_after_the_end_has_nothing_to_recover(point: FaultPoint) -> None:
    assert judged(faults=[kill(point)], moves_ms={"a": [T - 10]}).recoveries == ()


def test_a_stop_is_not_a_kill() -> None:
    stop = replace(kill(FaultPoint.STORED), kind=FaultSignal.STOP)
    assert judged(faults=[stop], moves_ms={"a": [T + 15_500]}).recoveries == ()


@pytest.mark.parametrize(
    ("outage_s", "excused"),
    [
        pytest.param(-1, 0, id="before the kill"),
        pytest.param(10, 1, id="before the lease lapsed"),
        pytest.param(18, 0, id="after it should have been recovered"),
    ],
)
def test_a_kill_before_an_outage_is_excused(outage_s: int, excused: int) -> None:
    verdict = judged(faults=[kill(FaultPoint.STORED)], moves_ms={"a": [T + 40_000]}, outages_ms=[T + 1000 * outage_s])
    assert (verdict.excused, len(verdict.recoveries)) == (excused, 1 - excused)


@pytest.mark.parametrize(
    ("verdict", "names"),
    [
        pytest.param(Verdict(10, (), (), 0, (Recovery(FaultPoint.STORED, 16.9),), 0, 0), [], id="all is well"),
        pytest.param(Verdict(9, (), (), 0, (), 0, 0), ["chaos_jobs"], id="too few jobs"),
        pytest.param(Verdict(10, ("a",), (), 0, (), 0, 0), ["chaos_lost"], id="lost"),
        pytest.param(Verdict(10, (), ("a",), 0, (), 0, 0), ["chaos_twice"], id="twice"),
        pytest.param(Verdict(10, (), (), 1, (), 0, 0), ["chaos_false_attempts"], id="false attempt"),
        pytest.param(
            Verdict(10, (), (), 0, (Recovery(FaultPoint.STORED, 17.1),), 0, 0), ["chaos_recovery_p99_s"], id="slow"
        ),
        pytest.param(Verdict(10, (), (), 0, (), 0, 1), ["chaos_audit_findings"], id="audit"),
        pytest.param(Verdict(10, (), (), 0, (), 0, 0, workers_out=1), ["chaos_workers_out"], id="worker out"),
        pytest.param(Verdict(10, (), (), 0, (), 0, 0, waiting=("a",)), ["chaos_waiting"], id="waiting"),
        pytest.param(Verdict(10, (), (), 0, (), 0, 0, disordered=("a",)), ["chaos_disordered"], id="disordered"),
        pytest.param(Verdict(10, (), (), 0, (), 0, 0, wrong=("a",)), ["chaos_wrong_ends"], id="wrong end"),
    ],
)
def test_every_figure_misses_its_own_goal(verdict: Verdict, names: list[str]) -> None:
    assert missed(figures(verdict, least_jobs=10, recovery_goal_s=17)) == names


@pytest.mark.parametrize(("kills", "stops"), [(7, 6), (2, 2), (1, 0), (0, 2)])
def test_a_plan_orders_kills_at_each_point_and_stops(kills: int, stops: int) -> None:
    ordered = orders(kills=kills, stops=stops)
    for point in set(FaultPoint) - {FaultPoint.DEVELOPED}:
        assert ordered.count(FaultOrder(FaultSignal.KILL, point)) == kills
    assert sum(order.kind is FaultSignal.STOP for order in ordered) == stops
    assert len(ordered) == 5 * kills + stops

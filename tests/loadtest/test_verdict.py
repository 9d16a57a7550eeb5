"""The verdict on a storm: what counts as lost, as double, as a false attempt, and as recovered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from darkroom_loadtest.chaos.storm import orders
from darkroom_loadtest.chaos.verdict import End, Evidence, Recovery, Verdict, figures, judge, missed
from darkroom_loadtest.chaos.wounds import Blow, Order, Point, Wound

LEASE_S = 15.0
T = 1_700_000_000_000
"""Some moment, in milliseconds."""

END = End("a:end", 5, "completed", "abc")


def evidence(**differs: object) -> Evidence:
    """A job that was accepted, told and shown, and whatever `differs` from that."""
    calm = Evidence(
        accepted=frozenset({"a"}),
        told=frozenset({"a"}),
        shown=frozenset({"a"}),
        ends={"a": frozenset({END})},
        counted={"a": 0},
        moves_ms={},
        changed=frozenset(),
        wounds=(),
        outages_ms=(),
    )
    return replace(calm, **differs)  # type: ignore[arg-type]


def judged(**differs: object) -> Verdict:
    return judge(evidence(**differs), lease_s=LEASE_S)


def kill(point: Point, at_s: float = 0) -> Wound:
    return Wound(Blow.KILL, point, "a", 1, T + round(1000 * at_s))


def test_a_job_whose_end_was_told_everywhere_is_neither_lost_nor_double() -> None:
    verdict = judged()
    assert (verdict.jobs, verdict.lost, verdict.twice, verdict.false_attempts) == (1, (), (), 0)


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param({"told": frozenset()}, id="told at the sink"),
        pytest.param({"shown": frozenset()}, id="shown to its owner"),
        pytest.param({"counted": {}}, id="kept by the ledger"),
    ],
)
def test_a_job_is_lost_unless_its_end_was_told_and_shown_and_the_ledger_has_it(missing: dict[str, object]) -> None:
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
def test_two_ends_that_differ_in_anything_are_one_too_many(other: End) -> None:
    assert judged(ends={"a": frozenset({END, other})}).twice == ("a",)


def test_published_bytes_that_changed_count_as_double() -> None:
    assert judged(changed=frozenset({"a"})).twice == ("a",)


@pytest.mark.parametrize(
    ("point", "false_attempts"),
    [
        (Point.POPPED, 1),
        (Point.DELIVERED, 1),
        (Point.DEVELOPED, 0),
        (Point.STORED, 0),
        (Point.FINISHED, 1),
        (Point.ACKNOWLEDGING, 1),
    ],
)
def test_an_attempt_is_false_unless_a_worker_was_struck_while_it_held_the_job(
    point: Point, false_attempts: int
) -> None:
    assert judged(counted={"a": 1}, wounds=[kill(point)]).false_attempts == false_attempts


def test_a_job_that_breaks_its_worker_is_charged_for_every_attempt_and_must_fail() -> None:
    failed = frozenset({replace(END, state="failed")})
    harmful = judged(counted={"a": 3}, harmful=frozenset({"a"}), ends={"a": failed})
    assert (harmful.false_attempts, harmful.wrong) == (0, ())
    assert judged(ends={"a": failed}).wrong == ("a",)
    assert judged(harmful=frozenset({"a"})).wrong == ("a",)


def test_each_wound_deserves_one_attempt() -> None:
    assert judged(counted={"a": 2}, wounds=[kill(Point.STORED)]).false_attempts == 1


def test_recovery_is_from_the_kill_to_the_next_start_or_end() -> None:
    verdict = judged(wounds=[kill(Point.STORED)], moves_ms={"a": [T - 10, T + 15_500, T + 15_600]})
    assert verdict.recoveries == (Recovery(Point.STORED, 15.5),)


@pytest.mark.parametrize("point", [Point.FINISHED, Point.ACKNOWLEDGING])
def test_a_kill_after_the_end_has_nothing_to_recover(point: Point) -> None:
    assert judged(wounds=[kill(point)], moves_ms={"a": [T - 10]}).recoveries == ()


def test_a_stop_is_no_kill() -> None:
    stop = replace(kill(Point.STORED), blow=Blow.STOP)
    assert judged(wounds=[stop], moves_ms={"a": [T + 15_500]}).recoveries == ()


@pytest.mark.parametrize(
    ("outage_s", "excused"),
    [
        pytest.param(-1, 0, id="before the kill"),
        pytest.param(10, 1, id="before the lease lapsed"),
        pytest.param(18, 0, id="after it should have been recovered"),
    ],
)
def test_a_kill_is_excused_when_redis_went_away_before_it_could_be_recovered(outage_s: int, excused: int) -> None:
    verdict = judged(wounds=[kill(Point.STORED)], moves_ms={"a": [T + 40_000]}, outages_ms=[T + 1000 * outage_s])
    assert (verdict.excused, len(verdict.recoveries)) == (excused, 1 - excused)


@pytest.mark.parametrize(
    ("verdict", "names"),
    [
        pytest.param(Verdict(10, (), (), 0, (Recovery(Point.STORED, 16.9),), 0, 0), [], id="all is well"),
        pytest.param(Verdict(9, (), (), 0, (), 0, 0), ["chaos_jobs"], id="too few jobs"),
        pytest.param(Verdict(10, ("a",), (), 0, (), 0, 0), ["chaos_lost"], id="lost"),
        pytest.param(Verdict(10, (), ("a",), 0, (), 0, 0), ["chaos_twice"], id="twice"),
        pytest.param(Verdict(10, (), (), 1, (), 0, 0), ["chaos_false_attempts"], id="false attempt"),
        pytest.param(
            Verdict(10, (), (), 0, (Recovery(Point.STORED, 17.1),), 0, 0), ["chaos_recovery_p99_s"], id="slow"
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
def test_a_storm_orders_so_many_kills_at_each_point_and_so_many_stops(kills: int, stops: int) -> None:
    ordered = orders(kills=kills, stops=stops)
    for point in set(Point) - {Point.DEVELOPED}:
        assert ordered.count(Order(Blow.KILL, point)) == kills
    assert sum(order.blow is Blow.STOP for order in ordered) == stops
    assert len(ordered) == 5 * kills + stops

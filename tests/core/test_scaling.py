"""The scaling decision: a table of situations, and invariants."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from darkroom.errors import InvalidInput
from darkroom.ledger.calls import Reading
from darkroom.scaling.decision import (
    IN_A_ROW_WITHIN_S,
    PEAKS,
    Decision,
    PoolObservation,
    Reason,
    ScalingHistory,
    decide,
)
from darkroom.scaling.decision_log import RESUMED_WITHIN_S, DecisionEntry, is_recorded, resume
from darkroom.scaling.policy import Paused, ScaleDown, ScaleUp, ScalingPolicy, ScheduleWindow
from darkroom.scaling.specification import read_policy
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = int(datetime(2026, 11, 20, 12, 0, tzinfo=UTC).timestamp() * 1000)  # a Friday
LONG_AGO = NOW - 3_600_000
CRASHES = {"CrashLoopBackOff": 2}


def policy(**more: Any) -> ScalingPolicy:
    """0 to 10 replicas, one for each job, with the given changes."""
    return ScalingPolicy(**{"max_replicas": 10, "jobs_per_replica": 1, **more})


def wait(seconds: float, **more: Any) -> ScalingPolicy:
    return policy(jobs_per_replica=None, wait_seconds=seconds, **more)


def seen(replicas: int, *, observed: dict[str, Any] | None = None, **reading: Any) -> PoolObservation:
    return PoolObservation(reading=Reading(**reading), replicas=replicas, **(observed or {}))


def measured(replicas: int, *, service_s: float, cold_s: float, **reading: Any) -> PoolObservation:
    """A pool with measured times."""
    observed = {"cold_start_seconds": cold_s}
    return seen(replicas, observed=observed, service_ms=service_s * 1000, **reading)


def wanted_until(ago_s: float, number: int) -> ScalingHistory:
    """A history in which `wanted` replicas were wanted last `ago_s` ago."""
    return ScalingHistory(peaks=((NOW - int(ago_s * 1000), number),))


UNKNOWN = PoolObservation(reading=None, replicas=3)

TABLE: dict[str, tuple[PoolObservation, ScalingPolicy, ScalingHistory, int, Reason]] = {
    # Nothing to do.
    "an empty pool without jobs stays empty": (seen(0), policy(), ScalingHistory(), 0, Reason.AT_TARGET),
    "jobs that each have a replica ask for no more": (
        seen(2, running=2, busy=2),
        policy(),
        ScalingHistory(),
        2,
        Reason.AT_TARGET,
    ),
    # Up.
    "one job on an empty pool starts one replica at once": (
        seen(0, waiting=1),
        policy(),
        ScalingHistory(),
        1,
        Reason.DEMAND,
    ),
    "what waits, is dispatched, runs and is due soon is all demand": (
        seen(1, waiting=1, dispatched=1, running=1, due_soon=1, busy=1),
        policy(),
        ScalingHistory(),
        4,
        Reason.DEMAND,
    ),
    "jobs per replica are rounded up": (
        seen(0, waiting=9),
        policy(jobs_per_replica=4),
        ScalingHistory(),
        3,
        Reason.DEMAND,
    ),
    "no target means a replica for each job": (
        seen(0, waiting=3),
        policy(jobs_per_replica=None),
        ScalingHistory(),
        3,
        Reason.DEMAND,
    ),
    "no more than the maximum": (seen(9, waiting=50, busy=9), policy(), ScalingHistory(), 10, Reason.DEMAND),
    "at the maximum it says that more is wanted": (
        seen(10, waiting=50),
        policy(),
        ScalingHistory(),
        10,
        Reason.AT_MAXIMUM,
    ),
    "no more than a step at once": (
        seen(1, waiting=9),
        policy(scale_up=ScaleUp(max_step=2)),
        ScalingHistory(),
        3,
        Reason.DEMAND,
    ),
    "it waits before it scales up, if configured": (
        seen(0, waiting=1),
        policy(scale_up=ScaleUp(wait_seconds=10)),
        ScalingHistory(short_since=NOW - 9_999),
        0,
        Reason.WAITING,
    ),
    "it grows once it has waited": (
        seen(0, waiting=1),
        policy(scale_up=ScaleUp(wait_seconds=10)),
        ScalingHistory(short_since=NOW - 10_000),
        1,
        Reason.DEMAND,
    ),
    "replicas that are starting are not started again": (
        seen(3, waiting=3, starting=3),
        policy(),
        ScalingHistory(),
        3,
        Reason.AT_TARGET,
    ),
    "the buffer is beyond the demand": (
        seen(2, running=2, busy=2),
        policy(buffer=1),
        ScalingHistory(),
        3,
        Reason.DEMAND,
    ),
    "the buffer stays without demand": (seen(0), policy(buffer=1), ScalingHistory(), 1, Reason.DEMAND),
    "a faulty worker is made up for": (
        seen(3, running=2, waiting=1, busy=2, faulty=1),
        policy(),
        ScalingHistory(),
        4,
        Reason.DEMAND,
    ),
    # The floor.
    "no fewer than the minimum": (seen(0), policy(min_replicas=2), ScalingHistory(), 2, Reason.FLOOR),
    "the minimum is no demand": (seen(2, idle=2), policy(min_replicas=2), ScalingHistory(), 2, Reason.AT_TARGET),
    "an open window raises the floor": (
        seen(0),
        policy(schedule=(ScheduleWindow(start="0 8 * * 1-5", end="0 18 * * 1-5", replicas=3),)),
        ScalingHistory(),
        3,
        Reason.FLOOR,
    ),
    "a closed window does not": (
        seen(0),
        policy(schedule=(ScheduleWindow(start="0 8 * * 6", end="0 18 * * 6", replicas=3),)),
        ScalingHistory(),
        0,
        Reason.AT_TARGET,
    ),
    "a window reads its own clock": (
        seen(0),
        policy(schedule=(ScheduleWindow(start="0 21 * * *", end="0 22 * * *", timezone="Asia/Tokyo", replicas=3),)),
        ScalingHistory(),
        3,
        Reason.FLOOR,
    ),
    "a window cannot exceed the maximum": (
        seen(0),
        policy(max_replicas=2, schedule=(ScheduleWindow(start="0 0 * * *", end="59 23 * * *", replicas=9),)),
        ScalingHistory(),
        2,
        Reason.FLOOR,
    ),
    # The wait goal.
    "without a measured time a wait goal falls back to depth": (
        seen(0, waiting=4),
        wait(300),
        ScalingHistory(),
        4,
        Reason.DEMAND,
    ),
    "without a measured cold start too": (
        seen(0, waiting=4, service_ms=1000.0),
        wait(300),
        ScalingHistory(),
        4,
        Reason.DEMAND,
    ),
    "within a long wait one replica takes many jobs": (
        measured(0, waiting=20, service_s=10, cold_s=60),
        wait(160),
        ScalingHistory(),
        2,  # after the cold start 100 s are left: the first job and ten more
        Reason.DEMAND,
    ),
    "a wait below the cold start asks for a replica for each job": (
        measured(0, waiting=5, service_s=10, cold_s=60),
        wait(5),
        ScalingHistory(),
        5,
        Reason.DEMAND,
    ),
    "what those that work can start before a new one is up needs no new one": (
        measured(2, waiting=12, running=2, busy=2, service_s=10, cold_s=60),
        wait(5),
        ScalingHistory(),
        2,
        Reason.AT_TARGET,
    ),
    "what they cannot does": (
        measured(2, waiting=14, running=2, busy=2, service_s=10, cold_s=60),
        wait(5),
        ScalingHistory(),
        4,
        Reason.DEMAND,
    ),
    "busy workers are wanted without waiting jobs": (
        measured(4, running=4, busy=4, service_s=10, cold_s=60),
        wait(5),
        wanted_until(3600, 9),
        4,
        Reason.AT_TARGET,
    ),
    # Down.
    "idle workers stay until they were idle for long enough": (
        seen(3, idle=3),
        policy(),
        wanted_until(59, 3),
        3,
        Reason.SETTLING,
    ),
    "and go then": (seen(3, idle=3), policy(), wanted_until(60, 3), 0, Reason.IDLE),
    "down to the highest number that was wanted meanwhile": (
        seen(5, idle=5),
        policy(),
        wanted_until(30, 2),
        2,
        Reason.IDLE,
    ),
    "a busy worker is never counted": (
        seen(5, running=1, busy=4, idle=1),
        policy(),
        wanted_until(600, 5),
        4,
        Reason.IDLE,
    ),
    "a pool of busy workers is left alone": (
        seen(4, running=1, busy=4),
        policy(),
        wanted_until(600, 4),
        4,
        Reason.BUSY,
    ),
    "workers that were marked before are still counted": (
        seen(3, idle=1, marked=2),
        policy(),
        wanted_until(600, 3),
        0,
        Reason.IDLE,
    ),
    "a worker that drains by itself is not": (seen(2, draining=2), policy(), wanted_until(600, 2), 2, Reason.BUSY),
    "pods that cannot start may go": (
        seen(2, observed={"broken": CRASHES}),
        policy(),
        wanted_until(600, 2),
        0,
        Reason.IDLE,
    ),
    "pods that no node takes may go": (
        seen(2, observed={"unplaced": 2}),
        policy(),
        wanted_until(600, 2),
        0,
        Reason.IDLE,
    ),
    "a pod that crashes and is known to the ledger is counted once": (
        seen(3, starting=2, busy=2, running=1, observed={"broken": CRASHES}),
        policy(),
        wanted_until(600, 3),
        2,
        Reason.IDLE,
    ),
    "no more than a step at once, down": (
        seen(9, idle=9),
        policy(scale_down=ScaleDown(max_step=2)),
        wanted_until(600, 9),
        7,
        Reason.IDLE,
    ),
    "and the next step when it was idle as long again": (
        seen(7, idle=7),
        policy(scale_down=ScaleDown(max_step=2)),
        ScalingHistory(shrunk_at=NOW - 59_000),
        7,
        Reason.SETTLING,
    ),
    "not below the minimum": (seen(5, idle=5), policy(min_replicas=2), wanted_until(600, 5), 2, Reason.IDLE),
    "a lower maximum takes idle workers away": (
        seen(10, running=10, busy=6, idle=4),
        policy(max_replicas=5),
        wanted_until(600, 10),
        6,
        Reason.ABOVE_MAXIMUM,
    ),
    "nothing goes during a rollout": (
        seen(3, idle=3, observed={"rolling": True}),
        policy(),
        wanted_until(600, 3),
        3,
        Reason.ROLLOUT,
    ),
    "but it grows": (seen(3, waiting=4, observed={"rolling": True}), policy(), ScalingHistory(), 4, Reason.DEMAND),
    # Paused.
    "paused, it neither grows": (seen(1, waiting=5), policy(paused=Paused.ALL), ScalingHistory(), 1, Reason.PAUSED),
    "nor shrinks": (seen(3, idle=3), policy(paused=Paused.ALL), wanted_until(600, 3), 3, Reason.PAUSED),
    "paused for scale-out it does not grow": (
        seen(1, waiting=5),
        policy(paused=Paused.SCALE_OUT),
        ScalingHistory(),
        1,
        Reason.PAUSED,
    ),
    "but shrinks": (seen(3, idle=3), policy(paused=Paused.SCALE_OUT), wanted_until(600, 3), 0, Reason.IDLE),
    "paused for scale-in it does not shrink": (
        seen(3, idle=3),
        policy(paused=Paused.SCALE_IN),
        wanted_until(600, 3),
        3,
        Reason.PAUSED,
    ),
    "but grows": (seen(1, waiting=5), policy(paused=Paused.SCALE_IN), ScalingHistory(), 5, Reason.DEMAND),
    # Unknown, broken, faulty.
    "without a reading the replicas stay": (UNKNOWN, policy(), wanted_until(600, 3), 3, Reason.UNKNOWN),
    "also those above the maximum": (UNKNOWN, policy(max_replicas=1), ScalingHistory(), 3, Reason.UNKNOWN),
    "also those below the minimum": (UNKNOWN, policy(min_replicas=5), ScalingHistory(), 3, Reason.UNKNOWN),
    "a crash-looping pool is not scaled further": (
        seen(2, waiting=9, observed={"broken": CRASHES}),
        policy(),
        ScalingHistory(),
        2,
        Reason.NOT_STARTING,
    ),
    "not when as many work as crash": (
        seen(4, waiting=9, busy=2, observed={"broken": CRASHES}),
        policy(),
        ScalingHistory(),
        4,
        Reason.NOT_STARTING,
    ),
    "but where most work, one bad node stops nothing": (
        seen(5, waiting=9, busy=3, observed={"broken": CRASHES}),
        policy(),
        ScalingHistory(),
        9,
        Reason.DEMAND,
    ),
    "an all-faulty pool is not scaled further": (
        seen(2, waiting=9, faulty=2),
        policy(),
        ScalingHistory(),
        2,
        Reason.FAULTY,
    ),
    "pods that wait for a node hold nothing up: a new node may come for them": (
        seen(2, waiting=9, observed={"unplaced": 2}),
        policy(),
        ScalingHistory(),
        9,
        Reason.DEMAND,
    ),
}


@pytest.mark.parametrize(("observation", "of", "history", "replicas", "reason"), TABLE.values(), ids=TABLE)
def test_the_table(
    observation: PoolObservation, of: ScalingPolicy, history: ScalingHistory, replicas: int, reason: Reason
) -> None:
    decision, _ = decide(observation, of, history, NOW)
    assert (decision.replicas, decision.reason) == (replicas, reason)


# -- one decision after the other --------------------------------------------------------------------------------------


def test_time_without_a_reading_is_no_idle_time() -> None:
    _, history = decide(UNKNOWN, policy(), wanted_until(600, 3), NOW)
    soon, _ = decide(seen(3, idle=3), policy(), history, NOW + 59_000)
    later, _ = decide(seen(3, idle=3), policy(), history, NOW + 60_000)
    assert (soon.reason, later.replicas) == (Reason.SETTLING, 0)


def test_a_short_gap_in_the_demand_removes_no_replica() -> None:
    history, replicas = ScalingHistory(), 4
    for second in range(0, 600, 10):
        busy = 4 if second % 50 == 0 else 0
        observation = seen(replicas, running=busy, busy=busy, idle=replicas - busy)
        decision, history = decide(observation, policy(), history, NOW + second * 1000)
        assert decision.replicas == 4


def test_each_step_up_waits_again() -> None:
    of = policy(scale_up=ScaleUp(max_step=2, wait_seconds=10))
    history, replicas, steps = ScalingHistory(), 0, []
    for second in range(60):
        decision, history = decide(seen(replicas, waiting=6), of, history, NOW + second * 1000)
        if decision.replicas != replicas:
            steps.append((second, decision.replicas))
        replicas = decision.replicas
    assert steps == [(10, 2), (20, 4), (30, 6)]


def test_the_wait_restarts_after_there_were_enough_replicas() -> None:
    of = policy(scale_up=ScaleUp(wait_seconds=10))
    _, history = decide(seen(0, waiting=1), of, ScalingHistory(), NOW)
    _, history = decide(seen(0), of, history, NOW + 5_000)
    decision, _ = decide(seen(0, waiting=1), of, history, NOW + 10_000)
    assert decision.reason is Reason.WAITING


def test_the_history_is_bounded_and_drops_no_peak_too_early() -> None:
    history = ScalingHistory()
    of = policy(max_replicas=1000)
    for step in range(500):  # each number is a peak of its own, since the demand falls all the time
        _, history = decide(seen(1000, waiting=500 - step), of, history, NOW + step * 10)
    assert len(history.peaks) <= PEAKS
    at, highest = history.peaks[0]
    assert (highest, at >= NOW) == (500, True)


def test_the_history_continues_from_the_log_after_a_restart() -> None:
    """Three were wanted until half a minute before the last entry, ten seconds before the restart."""
    of = policy()
    _, history = decide(seen(3, running=3, busy=3), of, ScalingHistory(), NOW - 40_000)
    decision, after = decide(seen(3, idle=3), of, history, NOW - 10_000)
    resumed = resume(replace(entry(-10), decision=decision, after=after), replicas=3, now=NOW)
    assert decide(seen(3, idle=3), of, resumed, NOW)[0].reason is Reason.SETTLING
    assert decide(seen(3, idle=3), of, resumed, NOW + 20_000)[0].replicas == 0  # the idle time did not begin anew


@pytest.mark.parametrize("age_s", [None, RESUMED_WITHIN_S + 1, -3600], ids=["no log", "an old log", "a log of later"])
def test_time_without_a_log_is_no_idle_time(age_s: int | None) -> None:
    last = None if age_s is None else entry(-age_s)
    resumed = resume(last, replicas=3, now=NOW)
    assert decide(seen(3, idle=3), policy(), resumed, NOW + 59_000)[0].reason is Reason.SETTLING
    assert decide(seen(3, idle=3), policy(), resumed, NOW + 60_000)[0].replicas == 0


def faulty(replicas: int, *, stays: int, **more: Any) -> PoolObservation:
    return seen(replicas, observed={"stays_faulty": stays}, faulty=stays, **more)


def test_workers_that_stay_faulty_are_replaced_after_growing_pauses() -> None:
    history, replaced = ScalingHistory(), []
    for second in range(3600):
        decision, history = decide(faulty(2, stays=2, waiting=5), policy(), history, NOW + second * 1000)
        assert (decision.replicas, decision.reason) == (2, Reason.FAULTY)
        if decision.replace:
            replaced.append((second, decision.replace))
    assert replaced == [(0, 2), (60, 2), (180, 2), (420, 2), (900, 2), (1800, 2), (2700, 2)]


def test_a_replacement_long_after_the_last_counts_as_the_first() -> None:
    before = ScalingHistory(replaced_at=NOW - (IN_A_ROW_WITHIN_S + 1) * 1000, replacements=5)
    decision, history = decide(faulty(1, stays=1, waiting=1), policy(), before, NOW)
    assert (decision.replace, history.replacements) == (1, 1)


@pytest.mark.parametrize(
    ("observation", "of"),
    [
        pytest.param(faulty(2, stays=2, waiting=2), policy(paused=Paused.ALL), id="paused"),
        pytest.param(faulty(3, stays=1, idle=2), policy(), id="replicas to spare"),
        pytest.param(replace(faulty(2, stays=2, waiting=2), rolling=True), policy(), id="a rollout"),
        pytest.param(replace(faulty(2, stays=2, waiting=2), reading=None), policy(), id="no reading"),
        pytest.param(seen(2, faulty=2, waiting=2), policy(), id="they may recover"),
    ],
)
def test_faulty_workers_are_not_replaced(observation: PoolObservation, of: ScalingPolicy) -> None:
    assert decide(observation, of, ScalingHistory(), NOW)[0].replace == 0


@pytest.mark.parametrize("now", [NOW, NOW + 86_400_000])
def test_faulty_workers_of_the_minimum_are_replaced_without_jobs_too(now: int) -> None:
    assert decide(faulty(2, stays=1, idle=1), policy(min_replicas=2), ScalingHistory(), now)[0].replace == 1


WEEK = {
    "office hours": (
        "30 6 * * 1-5",
        "10 22 * * *",
        {"mon 06:30", "fri 22:09"},
        {"mon 06:29", "fri 22:10", "sat 12:00", "sun 23:00"},
    ),
    "the end comes every day": (
        "0 8 * * 1",
        "0 18 * * *",
        {"mon 08:00", "mon 17:59"},
        {"mon 18:00", "tue 12:00", "sun 12:00"},
    ),
    "the start comes every day": (
        "0 8 * * *",
        "0 18 * * 5",
        {"mon 03:00", "fri 17:59", "sat 08:00"},
        {"fri 18:00", "sat 07:59"},
    ),
    "over midnight": ("0 22 * * *", "0 4 * * *", {"mon 23:00", "tue 03:59"}, {"mon 04:00", "mon 21:59"}),
    "over the weekend": (
        "0 18 * * 5",
        "0 6 * * 1",
        {"fri 18:00", "sat 12:00", "mon 05:59"},
        {"mon 06:00", "fri 17:59"},
    ),
    "both at once": ("0 8 * * *", "0 8,18 * * 6", {"fri 12:00", "sat 07:59", "sun 08:00"}, {"sat 08:00", "sun 07:59"}),
}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def of_week(text: str) -> int:
    """A time of the week from Monday, 23 November 2026, in Paris; ms."""
    day, clock = text.split()
    hour, minute = map(int, clock.split(":"))
    at = datetime(2026, 11, 23 + DAYS.index(day), hour, minute, tzinfo=ZoneInfo("Europe/Paris"))
    return round(at.timestamp() * 1000)


@pytest.mark.parametrize(("start", "end", "opened", "closed"), WEEK.values(), ids=WEEK)
def test_a_window_is_open_from_a_start_until_the_next_end(
    start: str, end: str, opened: set[str], closed: set[str]
) -> None:
    window = ScheduleWindow(start=start, end=end, replicas=1, timezone="Europe/Paris")
    assert {when for when in opened | closed if window.is_open(of_week(when))} == opened


# -- what always holds -------------------------------------------------------------------------------------------------

COUNT = st.integers(0, 30)
SPAN = st.floats(0, 600) | st.integers(0, 600)
READINGS = st.builds(
    Reading,
    waiting=COUNT,
    dispatched=COUNT,
    running=COUNT,
    due_soon=COUNT,
    oldest_ms=st.none() | st.integers(0, 10**9),
    arrivals=st.integers(0, 2**49),
    starting=COUNT,
    idle=COUNT,
    busy=COUNT,
    marked=COUNT,
    draining=COUNT,
    faulty=COUNT,
    service_ms=st.none() | st.floats(0, 1e7),
)
OBSERVATIONS = st.builds(
    PoolObservation,
    reading=st.none() | READINGS,
    replicas=COUNT,
    ready=COUNT,
    broken=st.dictionaries(st.sampled_from(["CrashLoopBackOff", "ImagePullBackOff"]), COUNT),
    unplaced=COUNT,
    rolling=st.booleans(),
    cold_start_seconds=st.none() | SPAN.map(float),
    stays_faulty=COUNT,
)
WINDOWS = st.builds(
    ScheduleWindow,
    start=st.sampled_from(["0 8 * * 1-5", "*/5 * * * *"]),
    end=st.sampled_from(["0 18 * * *", "3-59/5 * * * *"]),
    replicas=COUNT,
    timezone=st.sampled_from(["UTC", "Europe/Paris", "America/New_York"]),
)
GOALS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"jobs_per_replica": 3}, {"wait_seconds": 45.0}, {"wait_seconds": 90}]
)


@st.composite
def policies(draw: st.DrawFn) -> ScalingPolicy:
    lowest = draw(st.integers(0, 5))
    return ScalingPolicy(
        min_replicas=lowest,
        max_replicas=draw(st.integers(max(lowest, 1), 25)),
        scale_up=ScaleUp(max_step=draw(st.none() | st.integers(1, 5)), wait_seconds=draw(SPAN)),
        scale_down=ScaleDown(max_step=draw(st.none() | st.integers(1, 5)), idle_seconds=draw(SPAN)),
        buffer=draw(st.integers(0, 3)),
        schedule=tuple(draw(st.lists(WINDOWS, max_size=2))),
        paused=draw(st.sampled_from(Paused)),
        **draw(GOALS),
    )


STEPS = st.lists(st.tuples(OBSERVATIONS, st.integers(0, 10**6)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(of=policies(), steps=STEPS)
def test_a_recorded_decision_is_reproduced_bit_for_bit(
    of: ScalingPolicy, steps: list[tuple[PoolObservation, int]]
) -> None:
    now, history = NOW, ScalingHistory()
    for observation, pause in steps:
        now += pause
        decision, after = decide(observation, of, history, now)
        entry = DecisionEntry(
            at=now, policy=of, observation=observation, history=history, decision=decision, after=after
        )
        text = entry.encode()
        read = DecisionEntry.decode(text)
        again, after_again = decide(read.observation, read.policy, read.history, read.at)
        assert replace(read, decision=again, after=after_again).encode() == text
        history = after


@settings(max_examples=300, deadline=None)
@given(of=policies(), steps=STEPS)
def test_no_decision_breaks_a_bound(of: ScalingPolicy, steps: list[tuple[PoolObservation, int]]) -> None:
    now, history = NOW, ScalingHistory()
    for observation, pause in steps:
        now += pause
        decision, history = decide(observation, of, history, now)
        grown = decision.replicas - observation.replicas
        reading = observation.reading
        if reading is None:
            assert grown == 0
            continue
        if grown > 0:
            assert decision.replicas <= of.max_replicas
            assert of.paused in {Paused.NONE, Paused.SCALE_IN}
            assert of.scale_up.max_step is None or grown <= of.scale_up.max_step
        if grown < 0:
            assert -grown <= reading.runs_nothing + sum(observation.broken.values()) + observation.unplaced
            assert decision.replicas >= min(reading.busy, observation.replicas)
            assert decision.replicas >= of.floor(now)
            assert of.paused in {Paused.NONE, Paused.SCALE_OUT}
            assert not observation.rolling
            assert of.scale_down.max_step is None or -grown <= of.scale_down.max_step
        assert decision.replace <= observation.stays_faulty
        assert len(history.peaks) <= PEAKS


# -- the spec ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_read_from_the_spec() -> None:
    spec = {
        "models": ["sd"],
        "template": {"anything": True},
        "minReplicas": 1,
        "maxReplicas": 8,
        "target": {"waitSeconds": 30},
        "scaleUp": {"maxStep": 4, "waitSeconds": 1.5},
        "scaleDown": {"idleSeconds": 120, "maxStep": 2},
        "buffer": 1,
        "schedule": [{"start": "0 8 * * MON-FRI", "end": "0 18 * * 1-5", "timezone": "Europe/Paris", "replicas": 3}],
        "paused": "scaleIn",
    }
    assert read_policy(spec) == ScalingPolicy(
        min_replicas=1,
        max_replicas=8,
        wait_seconds=30,
        scale_up=ScaleUp(max_step=4, wait_seconds=1.5),
        scale_down=ScaleDown(idle_seconds=120, max_step=2),
        buffer=1,
        schedule=(ScheduleWindow(start="0 8 * * MON-FRI", end="0 18 * * 1-5", timezone="Europe/Paris", replicas=3),),
        paused=Paused.SCALE_IN,
    )


def test_omitted_fields_of_the_spec_have_defaults() -> None:
    assert read_policy({"target": None, "schedule": None}) == ScalingPolicy()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a minimum above the maximum": ({"minReplicas": 3, "maxReplicas": 2}, "minReplicas"),
    "a maximum of none": ({"maxReplicas": 0}, "maxReplicas"),
    "a minimum below none": ({"minReplicas": -1}, "minReplicas"),
    "a truth for a number": ({"buffer": True}, "buffer"),
    "two goals": ({"target": {"jobsPerReplica": 1, "waitSeconds": 1}}, "target"),
    "a target that is no object": ({"target": 5}, "target.jobsPerReplica"),
    "no jobs per replica": ({"target": {"jobsPerReplica": 0}}, "target.jobsPerReplica"),
    "a fraction of a job": ({"target": {"jobsPerReplica": 0.5}}, "target.jobsPerReplica"),
    "a wait below zero": ({"target": {"waitSeconds": -1}}, "target.waitSeconds"),
    "a wait that is no number": ({"target": {"waitSeconds": float("nan")}}, "target.waitSeconds"),
    "milliseconds for seconds": ({"scaleDown": {"idleSeconds": 3_600_000}}, "scaleDown.idleSeconds"),
    "a step of none": ({"scaleUp": {"maxStep": 0}}, "scaleUp.maxStep"),
    "a schedule that is no list": ({"schedule": {}}, "schedule"),
    "a window that is no object": ({"schedule": ["0 8 * * *"]}, "schedule[0]"),
    "a bad cron line": (
        {"schedule": [{"start": "0 25 * * *", "end": "0 8 * * *", "replicas": 1}]},
        "schedule[0].start",
    ),
    "a day that never comes": (
        {"schedule": [{"start": "0 8 30 2 *", "end": "0 9 * * *", "replicas": 1}]},
        "schedule[0].start",
    ),
    "a pause of another type": ({"paused": ["all"]}, "paused"),
    "a cron line with seconds": (
        {"schedule": [{"start": "0 0 8 * * *", "end": "0 9 * * *", "replicas": 1}]},
        "schedule[0].start",
    ),
    "a window without an end": ({"schedule": [{"start": "0 8 * * *", "replicas": 1}]}, "schedule[0].end"),
    "a zone that is none": (
        {"schedule": [{"start": "0 8 * * *", "end": "0 9 * * *", "timezone": "Mars/Base", "replicas": 1}]},
        "schedule[0].timezone",
    ),
    "a zone outside the database": (
        {"schedule": [{"start": "0 8 * * *", "end": "0 9 * * *", "timezone": "../etc", "replicas": 1}]},
        "schedule[0].timezone",
    ),
    "a window that is never open": (
        {"schedule": [{"start": "0 8 * * *", "end": "0 8 * * *", "replicas": 1}]},
        "schedule[0].end",
    ),
    "a window without replicas": ({"schedule": [{"start": "0 8 * * *", "end": "0 9 * * *"}]}, "schedule[0].replicas"),
    "a pause of no kind": ({"paused": "yes"}, "paused"),
}


@pytest.mark.parametrize(("spec", "name"), BAD.values(), ids=BAD)
def test_an_invalid_spec_is_rejected_by_field(spec: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_policy(spec)
    assert name in {fault.field for fault in refused.value.fields}


def test_all_faults_of_a_spec_are_reported_at_once() -> None:
    with pytest.raises(InvalidInput) as refused:
        read_policy({"buffer": -1, "paused": "yes", "schedule": [{"start": "x", "end": "y", "replicas": "z"}]})
    assert len(refused.value.fields) == 5


# -- the decision log --------------------------------------------------------------------------------------------------


def entry(at_s: float, *, observation: PoolObservation | None = None, **decided: Any) -> DecisionEntry:
    looked = observation or seen(1, idle=1)
    decision = Decision(**{"replicas": looked.replicas, "reason": Reason.AT_TARGET, **decided})
    at = NOW + int(at_s * 1000)
    return DecisionEntry(
        at=at, policy=policy(), observation=looked, history=ScalingHistory(), decision=decision, after=ScalingHistory()
    )


OTHER = seen(1, idle=1, arrivals=1)

KEPT: dict[str, tuple[DecisionEntry, bool]] = {
    "a change": (entry(1, replicas=2), True),
    "another reason": (entry(1, reason=Reason.SETTLING), True),
    "another policy": (replace(entry(1), policy=policy(buffer=1)), True),
    "the same again": (entry(60), False),
    "the same after a long time": (entry(300), True),
    "other jobs, soon": (entry(9, observation=OTHER), False),
    "other jobs, later": (entry(10, observation=OTHER), True),
}


@pytest.mark.parametrize(("this", "kept"), KEPT.values(), ids=KEPT)
def test_changes_and_periodic_entries_are_recorded(this: DecisionEntry, kept: bool) -> None:
    assert is_recorded(this, entry(0)) is kept
    assert is_recorded(this, None)


def test_an_entry_is_one_line_of_json() -> None:
    text = entry(0).encode()
    assert "\n" not in text
    assert json.loads(text)["policy"]["maxReplicas"] == 10

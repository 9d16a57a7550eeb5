"""A pool in simulated time: waits of jobs, replica-seconds, and the order of removal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from darkroom.scaling.policy import ScaleDown, ScaleUp, ScalingPolicy, ScheduleWindow
from darkroom.scaling.simulation import (
    PolicyScaler,
    RemovalOrder,
    SimulatedFleet,
    SimulatedJob,
    SimulationResult,
    simulate,
)

COLD_MS = 60_000
HOUR_MS = 3_600_000


class Scripted:
    """A fixed number of replicas from each time on."""

    listens = False

    def __init__(self, *steps: tuple[int, int], removal_order: RemovalOrder = RemovalOrder.UNUSED) -> None:
        self.removal_order = removal_order
        self._steps = steps

    def ask(self, fleet: SimulatedFleet, jobs: Sequence[SimulatedJob], now: int) -> tuple[int, int | None]:
        wanted = max(step for step in self._steps if step[0] <= now)[1]
        return wanted, min((at for at, _ in self._steps if at > now), default=None)


def run(
    jobs: Sequence[SimulatedJob], scaler: Scripted | PolicyScaler, *, replicas: int = 0, seed: int = 0
) -> SimulationResult:
    return simulate(jobs, scaler, cold_start_ms=COLD_MS, until=HOUR_MS, replicas=replicas, seed=seed)


def ours(**policy: object) -> PolicyScaler:
    return PolicyScaler(ScalingPolicy(**{"max_replicas": 10, **policy}), cold_start_ms=COLD_MS)  # type: ignore[arg-type]


def test_a_job_waits_for_the_cold_start() -> None:
    outcome = run([SimulatedJob(500, 10_000)], ours(scale_down=ScaleDown(idle_seconds=30)))
    assert list(outcome.waits) == pytest.approx([60.5])  # asked at the next full second
    assert outcome.replica_seconds == pytest.approx(60 + 10 + 30, abs=2)


def test_jobs_run_in_their_order_one_at_a_time() -> None:
    outcome = run(
        [SimulatedJob(0, 10_000), SimulatedJob(1_000, 5_000), SimulatedJob(2_000, 1_000)], Scripted((0, 1)), replicas=1
    )
    assert outcome.waits == [0, 9, 13]


def test_replicas_count_from_their_creation_to_the_end_of_the_day() -> None:
    assert run([], Scripted((0, 0), (600_000, 3))).replica_seconds == pytest.approx(3 * 3000)


def test_unused_replicas_are_removed_first_and_busy_ones_never() -> None:
    jobs = [SimulatedJob(0, 600_000)]
    outcome = run(jobs, Scripted((0, 3), (10_000, 0), removal_order=RemovalOrder.UNUSED), replicas=2)
    assert (outcome.kills, outcome.waits) == (0, [0])
    assert outcome.replica_seconds == pytest.approx(10 + 10 + 3600)  # a starting and an idle one went at 10 s


def test_a_replica_set_removes_busy_replicas_too_and_the_job_runs_again() -> None:
    jobs = [SimulatedJob(0, 600_000)]
    outcome = run(jobs, Scripted((0, 1), (100_000, 0), (200_000, 1), removal_order=RemovalOrder.ANY), replicas=1)
    assert outcome.kills == 1
    assert list(outcome.waits) == pytest.approx(
        [260]
    )  # killed at 130 s, after the grace; started again with a cold start
    assert outcome.replica_seconds == pytest.approx(130 + 3400)


def test_a_job_that_finishes_within_the_grace_is_not_interrupted() -> None:
    outcome = run(
        [SimulatedJob(0, 120_000)], Scripted((0, 1), (100_000, 0), removal_order=RemovalOrder.ANY), replicas=1
    )
    assert (outcome.kills, outcome.waits, outcome.unfinished) == (0, [0], 0)
    assert outcome.replica_seconds == pytest.approx(120)


def test_replicas_that_are_not_ready_are_removed_first() -> None:
    outcome = run([SimulatedJob(0, 600_000)], Scripted((0, 2), (10_000, 1), removal_order=RemovalOrder.ANY), replicas=1)
    assert outcome.kills == 0


def test_a_job_that_never_runs_is_unfinished_and_waits_until_the_end() -> None:
    outcome = run([SimulatedJob(0, 1_000)], Scripted((0, 0)))
    assert outcome.unfinished == 1
    assert outcome.waits == [3600]


def test_a_simulation_with_the_same_seed_is_reproducible() -> None:
    jobs = [SimulatedJob(at * 1_000, 200_000) for at in range(30)]
    steps = [(0, 10), (200_000, 4), (400_000, 10), (600_000, 2), (900_000, 8)]
    first, again, other = (run(jobs, Scripted(*steps, removal_order=RemovalOrder.ANY), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.kills > 0
    assert other.waits != first.waits


@pytest.mark.parametrize(
    "scaler",
    [
        pytest.param(lambda: ours(jobs_per_replica=1), id="depth"),
        pytest.param(lambda: ours(wait_seconds=90.0), id="wait"),
        pytest.param(
            lambda: ours(
                scale_up=ScaleUp(max_step=2, wait_seconds=5), scale_down=ScaleDown(max_step=1, idle_seconds=20)
            ),
            id="steps",
        ),
        pytest.param(
            lambda: ours(schedule=(ScheduleWindow(start="10 * * * *", end="20 * * * *", replicas=3),)), id="schedule"
        ),
    ],
)
def test_with_our_scaler_all_jobs_finish_without_interruption(scaler: Callable[[], PolicyScaler]) -> None:
    jobs = [SimulatedJob(at * 7_000, 1_000 + at * 4_001 % 40_000) for at in range(200)]
    outcome = run(jobs, scaler())
    assert (outcome.kills, outcome.unfinished, len(outcome.waits)) == (0, 0, 200)
    work = sum(job.service for job in jobs) / 1000
    assert work < outcome.replica_seconds < 10 * 3600


def test_our_scaler_scales_to_zero_at_the_end() -> None:
    short = run([SimulatedJob(0, 1_000)], ours(scale_down=ScaleDown(idle_seconds=60)))
    assert short.replica_seconds == pytest.approx(60 + 1 + 60, abs=2)


def test_a_window_is_open_by_the_time_of_the_simulated_day() -> None:
    policy = ScalingPolicy(max_replicas=5, schedule=(ScheduleWindow(start="0 9 * * *", end="30 9 * * *", replicas=2),))
    nine = 9 * HOUR_MS
    at_nine = run([], PolicyScaler(policy, cold_start_ms=COLD_MS, origin=nine))
    assert at_nine.replica_seconds == pytest.approx(2 * 30 * 60, abs=300)
    assert run([], PolicyScaler(policy, cold_start_ms=COLD_MS)).replica_seconds == 0


def test_percentiles_are_actual_waits() -> None:
    outcome = SimulationResult([3.0, 1.0, 2.0, 4.0], 0.0, 0, 0)
    assert (outcome.wait(50), outcome.wait(95), outcome.wait(0)) == (2.0, 4.0, 1.0)
    assert SimulationResult([], 0.0, 0, 0).wait(95) == 0.0

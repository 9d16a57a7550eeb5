"""The other autoscalers follow their documented rules, and the comparison is made at equal wait."""

from __future__ import annotations

import pytest
from darkroom.scaling.simulation import Replica, SimulatedFleet, SimulatedJob, simulate
from darkroom_loadtest.policy.bench import OURS, PolicyResult, frontier, ratios
from darkroom_loadtest.policy.days import KINDS, SEEDS, day
from darkroom_loadtest.policy.rivals import Fixed, Keda, KedaSettings, QueueDelay

SECOND = 1_000
COLD_MS = 60 * SECOND


def keda(**more: int | float | bool) -> Keda:
    """KEDA with its defaults."""
    defaults: dict[str, int | float | bool] = {
        "target": 1,
        "least": 0,
        "most": 40,
        "poll": 30 * SECOND,
        "stabilisation": 300 * SECOND,
        "cooldown": 300 * SECOND,
        "counts_unacked": False,
    }
    return Keda(KedaSettings(**{**defaults, **more}))  # type: ignore[arg-type]


def fleet(*, waiting: int = 0, busy: int = 0, idle: int = 0) -> SimulatedFleet:
    found = SimulatedFleet()
    found.waiting.extend(range(waiting))
    found.busy.update({number: Replica(number, 0, ready=0, job=number) for number in range(busy)})
    found.idle.update({100 + number: Replica(100 + number, 0, ready=0) for number in range(idle)})
    return found


def test_keda_scales_from_zero_to_one_at_its_poll_only() -> None:
    scaler = keda()
    assert scaler.ask(fleet(waiting=50), [], 15 * SECOND) == (0, 30 * SECOND)
    # At 30 s both run: KEDA starts one, the HPA as many as its policy allows.
    assert scaler.ask(fleet(waiting=50), [], 30 * SECOND) == (5, 45 * SECOND)


@pytest.mark.parametrize(("before", "after"), [(1, 5), (3, 7), (4, 8), (10, 20), (30, 40)])
def test_the_hpa_adds_four_or_doubles(before: int, after: int) -> None:
    assert keda().ask(fleet(waiting=100, busy=before), [], 15 * SECOND)[0] == after


def test_the_hpa_tolerates_a_tenth() -> None:
    assert keda(target=10).ask(fleet(waiting=109, busy=10), [], 15 * SECOND)[0] == 10
    assert keda(target=10).ask(fleet(waiting=111, busy=10), [], 15 * SECOND)[0] == 12


def test_the_hpa_scales_down_to_the_highest_of_its_window() -> None:
    scaler = keda(cooldown=10**9)
    assert scaler.ask(fleet(waiting=8, busy=8), [], 30 * SECOND)[0] == 8
    assert scaler.ask(fleet(busy=8), [], 300 * SECOND)[0] == 8
    assert scaler.ask(fleet(busy=8), [], 330 * SECOND)[0] == 1


def test_unacknowledged_messages_count_where_they_are_added() -> None:
    assert keda(counts_unacked=True).ask(fleet(waiting=4, busy=8), [], 15 * SECOND)[0] == 12
    assert keda(stabilisation=0).ask(fleet(waiting=4, busy=8), [], 15 * SECOND)[0] == 4


def test_keda_scales_to_zero_after_its_cooldown_even_if_workers_are_busy() -> None:
    jobs = [SimulatedJob(0, 1000 * SECOND)]
    outcome = simulate(jobs, keda(), cold_start_ms=COLD_MS, until=3600 * SECOND)
    assert outcome.kills > 0


def test_the_queue_delay_adds_a_worker_per_late_request_minus_starting_ones() -> None:
    scaler = QueueDelay(delay=4 * SECOND, idle=5 * SECOND, least=0, most=40)
    jobs = [SimulatedJob(0, SECOND), SimulatedJob(SECOND, SECOND), SimulatedJob(9 * SECOND, SECOND)]
    seen = fleet(waiting=3)
    assert scaler.ask(seen, jobs, 5 * SECOND)[0] == 2
    seen.starting[1] = Replica(1, 0)
    assert scaler.ask(seen, jobs, 5 * SECOND)[0] == 2


def test_the_queue_delay_removes_workers_after_their_idle_timeout() -> None:
    outcome = simulate(
        [SimulatedJob(0, 10 * SECOND)],
        QueueDelay(delay=4 * SECOND, idle=5 * SECOND, least=0, most=40),
        cold_start_ms=COLD_MS,
        until=3600 * SECOND,
    )
    assert outcome.waits == [64]
    assert outcome.replica_seconds == pytest.approx(60 + 10 + 5, abs=1)


def test_a_fixed_number_of_replicas_is_constant() -> None:
    outcome = simulate([], Fixed(3), cold_start_ms=COLD_MS, until=3600 * SECOND)
    assert outcome.replica_seconds == pytest.approx(3 * 3600)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_defines_one_day_with_jobs_in_order(kind: str) -> None:
    jobs = day(kind, SEEDS[0])
    assert jobs == day(kind, SEEDS[0])
    assert jobs != day(kind, SEEDS[1])
    assert jobs == sorted(jobs, key=lambda job: job.arrival)
    services = sorted(job.service for job in jobs)
    assert services[len(services) // 2] == pytest.approx(8 * SECOND, rel=0.15)
    assert services[-1] > 20 * services[len(services) // 2], "heavy-tailed"


def point(p95: float, hours: float) -> PolicyResult:
    return PolicyResult("bursty", 1, OURS, (), 0.0, p95, hours, 0, 0)


def test_the_frontier_has_the_results_that_no_other_beats_in_both() -> None:
    points = [point(10, 9), point(20, 5), point(15, 9), point(30, 6), point(40, 2), point(20, 7)]
    assert frontier(points) == [point(10, 9), point(20, 5), point(40, 2)]


def test_ratios_are_at_equal_wait_within_our_range() -> None:
    ours = [point(20, 4), point(50, 1)]
    other = [point(10, 20), point(20, 10), point(40, 8), point(60, 2)]
    found = ratios(ours, other)
    assert set(found) == {0.4, 0.5, 0.125}
    assert (found[0], found[-1]) == (0.4, 0.5)
    assert set(ratios(ours, [point(30, 8)])) == {0.5}
    assert ratios(ours, [point(10, 20)]) == []

"""The order of a pool's jobs: the next job, the bound of the Celery queue, and queue positions."""

from __future__ import annotations

import pytest
from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.calls import ReleaseReason, WorkerState

from tests.core.timed_jobs import POOL, START_MS, TimedJobs


def run_all(jobs: TimedJobs) -> list[str]:
    """One worker completes all jobs; returns them in the order in which they ran."""
    ran = []
    while (job_id := jobs.receive_message()) is not None:
        assert jobs.claim(job_id, token=f"of-{job_id}").attempt is not None
        jobs.finish(job_id, token=f"of-{job_id}")
        ran.append(job_id)
    return ran


def submit_many(jobs: TimedJobs, count: int, *, priority: int = calls.DEFAULT_PRIORITY) -> list[str]:
    return [jobs.submit(priority=priority) for _ in range(count)]


# -- who is next -------------------------------------------------------------------------------------------------------


def test_jobs_run_in_the_order_of_their_arrival(jobs: TimedJobs) -> None:
    submitted = submit_many(jobs, 12)
    assert run_all(jobs) == submitted


def test_more_urgent_jobs_run_first_and_those_alike_by_arrival(jobs: TimedJobs) -> None:
    submitted = [(priority, jobs.submit(priority=priority)) for priority in (9, 5, 9, 0, 5, 7, 0, 9, 1)]
    assert run_all(jobs) == [job_id for _, job_id in sorted(submitted, key=lambda pair: pair[0])]


def test_a_more_urgent_job_passes_those_whose_messages_were_sent(jobs: TimedJobs) -> None:
    jobs.worker()
    first, second, third = submit_many(jobs, 3)
    assert jobs.receive_message() == first, "which it does not recall"
    (fourth,) = submit_many(jobs, 1)
    (urgent,) = submit_many(jobs, 1, priority=0)
    assert jobs.listed() == [urgent, second, third]
    assert jobs.members("waiting") == {fourth}
    jobs.start(first)
    assert run_all(jobs) == [urgent, second, third, fourth]


def test_the_arrival_counts_and_not_the_id(jobs: TimedJobs) -> None:
    late, early = sorted((jobs.submission().job_id for _ in range(2)), reverse=True)
    blocker = jobs.submit()
    jobs.submit(job_id=late)
    jobs.submit(job_id=early)
    assert run_all(jobs) == [blocker, late, early]


@pytest.mark.parametrize("reason", ReleaseReason)
def test_a_released_job_is_the_next(jobs: TimedJobs, reason: ReleaseReason) -> None:
    released = jobs.running()
    waiting = submit_many(jobs, 4)
    jobs.release(released, reason)
    assert run_all(jobs) == [released, *waiting]


def test_a_released_job_is_the_next_where_the_list_was_full(jobs: TimedJobs) -> None:
    jobs.worker()
    released = jobs.running()
    waiting = submit_many(jobs, 8)
    assert len(jobs.listed()) == 3
    jobs.release(released, ReleaseReason.DRAIN)
    assert jobs.listed() == [released, *waiting[:2]], "the last message went back, so that the bound holds"
    assert jobs.members("waiting") == set(waiting[2:])
    assert run_all(jobs) == [released, *waiting]


def test_a_released_job_does_not_pass_a_more_urgent_one_that_waits(jobs: TimedJobs) -> None:
    released = jobs.running()
    listed = jobs.submit()
    urgent = jobs.submit(priority=0)
    jobs.release(released, ReleaseReason.DRAIN)
    assert run_all(jobs) == [urgent, released, listed]


def test_a_retried_job_has_its_old_position(jobs: TimedJobs) -> None:
    retried = jobs.running()
    first, *waiting = submit_many(jobs, 4)
    jobs.retry(retried, delay_ms=10_000)
    jobs.now += 10_000
    assert jobs.promote() == [retried]
    assert run_all(jobs) == [retried, first, *waiting]


def test_a_message_that_was_lost_is_the_next(jobs: TimedJobs) -> None:
    lost, *waiting = submit_many(jobs, 4)
    assert jobs.receive_message() == lost
    jobs.now += calls.SWEEP_AGE_MS
    jobs.sweep()
    assert run_all(jobs) == [lost, *waiting]


def test_messages_that_were_lost_together_come_back_in_their_order(jobs: TimedJobs) -> None:
    jobs.worker()
    submitted = submit_many(jobs, 6)
    lost = [jobs.receive_message() for _ in range(3)]
    assert lost == submitted[:3]
    jobs.now += calls.SWEEP_AGE_MS
    assert jobs.sweep() == lost
    assert run_all(jobs) == submitted


# -- the bound of the list ---------------------------------------------------------------------------------------------


def test_without_a_worker_one_message_waits_for_the_first(jobs: TimedJobs) -> None:
    first, *others = submit_many(jobs, 5)
    assert jobs.listed() == [first]
    assert (jobs.members("dispatched"), jobs.members("waiting")) == ({first}, set(others))


def test_each_ready_or_busy_worker_raises_the_bound_by_two(jobs: TimedJobs) -> None:
    submitted = submit_many(jobs, 9)
    jobs.worker("one", WorkerState.READY)
    assert jobs.listed() == submitted[:3]
    jobs.worker("two", WorkerState.BUSY)
    assert jobs.listed() == submitted[:5]
    jobs.worker("two", WorkerState.READY)
    assert jobs.listed() == submitted[:5], "a heartbeat of a worker that is known raises nothing"


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.DRAINING, WorkerState.FAULTY, WorkerState.GONE])
def test_a_worker_that_accepts_nothing_raises_no_bound(jobs: TimedJobs, state: WorkerState) -> None:
    submit_many(jobs, 5)
    jobs.worker("one", state)
    assert len(jobs.listed()) == 1


@pytest.mark.parametrize("state", [WorkerState.DRAINING, WorkerState.FAULTY, WorkerState.GONE])
def test_a_worker_that_leaves_lowers_the_bound_and_removes_no_message(jobs: TimedJobs, state: WorkerState) -> None:
    jobs.worker("one", WorkerState.READY)
    submitted = submit_many(jobs, 5)
    jobs.worker("one", state)
    assert jobs.listed() == submitted[:3]
    jobs.start(submitted[0])
    assert jobs.listed() == submitted[1:3]


def test_a_worker_that_was_silent_for_its_time_is_no_slot(jobs: TimedJobs) -> None:
    jobs.worker()
    submitted = submit_many(jobs, 9)
    jobs.now += calls.WORKER_TTL_MS
    jobs.start(submitted[0], token="one")
    assert len(jobs.listed()) == 3, "still a slot at the last moment"
    jobs.now += 1
    jobs.start(submitted[1], token="two")
    jobs.start(submitted[2], token="three")
    jobs.start(submitted[3], token="four")
    assert jobs.listed() == submitted[4:5]


def test_a_claim_brings_the_next_message(jobs: TimedJobs) -> None:
    first, second = submit_many(jobs, 2)
    assert jobs.receive_message() == first
    assert jobs.listed() == []
    jobs.claim(first)
    assert jobs.listed() == [second]


def test_a_cancelled_job_leaves_no_message(jobs: TimedJobs) -> None:
    first, second = submit_many(jobs, 2)
    jobs.cancel(first)
    assert jobs.listed() == [second]


def test_a_cancelled_job_in_mid_queue_leaves_the_others_as_they_are(jobs: TimedJobs) -> None:
    submitted = submit_many(jobs, 4)
    jobs.cancel(submitted[2])
    assert run_all(jobs) == [submitted[0], submitted[1], submitted[3]]


def test_the_bound_holds_however_jobs_come_back(jobs: TimedJobs) -> None:
    jobs.worker()
    submitted = submit_many(jobs, 12)
    for job_id in submitted[:4]:
        jobs.start(job_id, token=job_id)
    lost = jobs.receive_message()
    assert lost is not None
    for job_id in submitted[:3]:
        jobs.release(job_id, ReleaseReason.DRAIN, token=job_id)
    jobs.retry(submitted[3], token=submitted[3], delay_ms=0)
    jobs.promote()
    jobs.now += calls.SWEEP_AGE_MS
    jobs.sweep()
    assert len(jobs.listed()) == 3
    assert sorted(run_all(jobs)) == sorted(submitted)


def test_one_call_pushes_a_hundred_messages_at_most(jobs: TimedJobs) -> None:
    for number in range(60):
        jobs.worker(f"worker {number}")
    jobs.run(calls.announce_pool("other", models=["sd"], now=jobs.now))
    jobs.redis.zunionstore(jobs.key("slots", "other"), [jobs.key("slots", POOL)])
    for _ in range(130):
        jobs.redis.delete(jobs.key("slots", POOL))
        jobs.submit()
    jobs.redis.zunionstore(jobs.key("slots", POOL), [jobs.key("slots", "other")])
    jobs.sweep()
    assert len(jobs.listed()) == 101
    jobs.sweep()
    assert len(jobs.listed()) == 121


# -- a worker that drains ----------------------------------------------------------------------------------------------


def drain(jobs: TimedJobs, until: int, *, worker: str = "one") -> None:
    """The operator's mark."""
    jobs.redis.hset(jobs.key("worker", worker), "draining_until", until)


def test_what_a_draining_worker_received_is_requeued_as_the_next(jobs: TimedJobs) -> None:
    jobs.worker()
    submitted = submit_many(jobs, 6)
    drain(jobs, START_MS + 1)
    assert jobs.receive_message() == submitted[0]
    assert jobs.claim(submitted[0]).dropped == "draining"
    assert jobs.state(submitted[0]) is State.PENDING
    assert len(jobs.listed()) == 3
    assert jobs.listed() == submitted[:3]


def test_what_a_draining_worker_received_is_no_attempt(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    drain(jobs, START_MS + 1)
    jobs.claim(job_id)
    assert (jobs.record(job_id).attempt, len(jobs.log(job_id))) == (0, 1)
    assert jobs.claim(job_id, worker="two", token="two").attempt == 1


def test_a_job_that_a_draining_worker_requeued_has_its_start_deadline(jobs: TimedJobs) -> None:
    job_id = jobs.submit(start_deadline=START_MS + 5_000)
    drain(jobs, START_MS + 1)
    assert jobs.claim(job_id).dropped == "draining"
    jobs.now += 5_000
    assert jobs.expire() == [job_id]
    assert jobs.state(job_id) is State.EXPIRED


def test_a_mark_to_drain_ends_with_its_time(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    drain(jobs, START_MS)
    assert jobs.claim(job_id).attempt == 1


def test_a_mark_to_drain_outlives_heartbeats(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    drain(jobs, START_MS + 1)
    jobs.worker()
    assert jobs.claim(job_id).dropped == "draining"


# -- the queue position ------------------------------------------------------------------------------------------------


def places(jobs: TimedJobs, submitted: list[str]) -> list[int | None]:
    return [jobs.record(job_id).place for job_id in submitted]


def test_the_queue_position_is_one_more_than_the_jobs_before(jobs: TimedJobs) -> None:
    submitted = submit_many(jobs, 5)
    assert places(jobs, submitted) == [1, 2, 3, 4, 5]


def test_the_queue_position_of_jobs_dispatched_together_is_their_order(jobs: TimedJobs) -> None:
    submitted = submit_many(jobs, 9)
    for name in ("one", "two", "three"):
        jobs.worker(name)
    assert len(jobs.listed()) == 7
    assert places(jobs, submitted) == list(range(1, 10))


def test_the_queue_position_of_a_released_job_is_the_first(jobs: TimedJobs) -> None:
    jobs.worker()
    released, *waiting = submit_many(jobs, 6)
    jobs.start(released)
    jobs.now += 1_000
    jobs.release(released, ReleaseReason.DRAIN)
    assert places(jobs, [released, *waiting]) == [1, 2, 3, 4, 5, 6]


def test_the_queue_position_of_a_message_that_was_lost_is_the_first(jobs: TimedJobs) -> None:
    jobs.worker()
    lost, *waiting = submit_many(jobs, 6)
    jobs.receive_message()
    jobs.now += calls.SWEEP_AGE_MS
    jobs.sweep()
    assert places(jobs, [lost, *waiting]) == [1, 2, 3, 4, 5, 6]


def test_an_urgent_job_has_a_position_before_all_others(jobs: TimedJobs) -> None:
    others = submit_many(jobs, 4)
    urgent = jobs.submit(priority=0)
    assert places(jobs, [urgent, *others]) == [1, 2, 3, 4, 5]


def test_a_cancelled_job_moves_the_others_up(jobs: TimedJobs) -> None:
    submitted = submit_many(jobs, 4)
    jobs.cancel(submitted[1])
    assert places(jobs, submitted) == [1, None, 2, 3]


def test_a_job_that_does_not_wait_has_no_queue_position(jobs: TimedJobs) -> None:
    running = jobs.running()
    due = jobs.running()
    jobs.retry(due)
    done = jobs.running()
    jobs.finish(done)
    assert places(jobs, [running, due, done]) == [None, None, None]


# -- demand ------------------------------------------------------------------------------------------------------------


def test_demand_is_what_waits_runs_and_is_due(jobs: TimedJobs) -> None:
    jobs.finish(jobs.running())
    jobs.retry(jobs.running())
    jobs.running()
    submit_many(jobs, 4)
    found = jobs.run(calls.observe(POOL, now=jobs.now))
    assert (found.waiting, found.dispatched, found.running, found.due_soon, found.jobs) == (3, 1, 1, 1, 6)

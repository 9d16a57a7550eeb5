"""The running limits of tenants and keys: which jobs are held, and when they become eligible."""

from __future__ import annotations

from typing import Any

import pytest
from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, Claim, Reading, Receipt, ReleaseReason, WorkerState

from tests.core.timed_jobs import POOL, TENANT, TimedJobs

OTHER_POOL = "other"
KEY = "aaaaaaaaaaaa"
SECOND_KEY = "bbbbbbbbbbbb"


@pytest.fixture(autouse=True)
def worker(jobs: TimedJobs) -> None:
    """One worker: the list has room for three messages."""
    jobs.worker()


def submit(jobs: TimedJobs, count: int = 1, **more: Any) -> list[str]:
    found = []
    for _ in range(count):
        jobs.now += 1
        found.append(jobs.submit(**more))
    return found


def held(jobs: TimedJobs, pool: str = POOL) -> set[str]:
    return {member.decode() for member in jobs.redis.zrange(jobs.key("held", pool), 0, -1)}


def start_next(jobs: TimedJobs, **more: str) -> str:
    job_id = jobs.receive_message()
    assert job_id is not None
    return jobs.start(job_id, token=f"of-{job_id}", **more)


def finish(jobs: TimedJobs, job_id: str) -> None:
    jobs.finish(job_id, token=f"of-{job_id}")


def observe(jobs: TimedJobs, pool: str = POOL) -> Reading:
    return jobs.run(calls.observe(pool, now=jobs.now))


def is_running(jobs: TimedJobs) -> int:
    return len(jobs.members("running"))


# -- held jobs ---------------------------------------------------------------------------------------------------------


def test_a_job_above_the_limit_is_held_and_is_no_demand(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 2)
    first, second, *others = submit(jobs, 6)
    assert jobs.listed() == [first, second]
    assert held(jobs) == set(others)
    reading = observe(jobs)
    assert (reading.waiting + reading.dispatched, reading.jobs) == (2, 2)
    assert {jobs.record(job_id).held for job_id in others} == {"tenant"}
    assert {jobs.record(job_id).held for job_id in (first, second)} == {None}
    assert {jobs.state(job_id) for job_id in others} == {State.PENDING}


def test_held_jobs_become_eligible_in_their_order_as_others_end(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 2)
    submitted = submit(jobs, 7)
    ran = []
    running = [start_next(jobs), start_next(jobs)]
    while running:
        assert is_running(jobs) == len(running) <= 2
        finish(jobs, running[0])
        ran.append(running.pop(0))
        if jobs.listed():
            running.append(start_next(jobs))
    assert ran == submitted
    assert held(jobs) == set()


@pytest.mark.parametrize("way", ["finish", "fail", "retry", "cancel", "lease"])
def test_each_way_in_which_a_job_leaves_admits_the_next(jobs: TimedJobs, way: str) -> None:
    jobs.limit(TENANT, 1)
    (running,) = submit(jobs, max_attempts=1 if way == "lease" else 3)
    jobs.start(jobs.receive_message() or "")
    next_one, *others = submit(jobs, 3)
    assert jobs.listed() == []
    match way:
        case "finish":
            jobs.finish(running)
        case "fail":
            jobs.finish(running, outcome=State.FAILED)
        case "retry":
            jobs.retry(running)
        case "cancel":
            assert jobs.cancel(running).receipt is Receipt.INTERRUPTING
            assert jobs.listed() == [], "it still runs"
            jobs.finish(running)
        case _:
            jobs.reap_until(jobs.now + 40_000)
            jobs.worker()
    assert jobs.listed() == [next_one]
    assert held(jobs) == set(others)


@pytest.mark.parametrize("reason", ReleaseReason)
def test_a_released_job_keeps_its_turn_under_the_limit(jobs: TimedJobs, reason: ReleaseReason) -> None:
    jobs.limit(TENANT, 1)
    (running,) = submit(jobs)
    jobs.start(jobs.receive_message() or "")
    others = submit(jobs, 3)
    jobs.release(running, reason)
    assert jobs.listed() == [running]
    assert held(jobs) == set(others)


def test_a_cancelled_or_expired_job_that_waits_admits_the_next(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    (first,) = submit(jobs, start_deadline=jobs.now + 5_000)
    second, third, fourth = submit(jobs, 3)
    jobs.now += 10_000
    jobs.expire()
    assert jobs.listed() == [second]
    jobs.cancel(second)
    assert jobs.listed() == [third]
    assert held(jobs) == {fourth}
    assert jobs.state(first) is State.EXPIRED


def test_a_held_job_can_be_cancelled_and_expires(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    (first,) = submit(jobs)
    cancelled, expired = submit(jobs, 2, start_deadline=jobs.now + 5_000)
    assert jobs.cancel(cancelled).receipt is Receipt.DEQUEUED
    jobs.now += 10_000
    assert jobs.expire() == [expired]
    assert held(jobs) == set()
    assert jobs.listed() == [first]
    assert jobs.record(cancelled).held is None


def test_a_held_job_has_a_position_behind_those_that_are_held_before_it(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    mine = submit(jobs, 4)
    theirs = submit(jobs, 2, tenant="other")
    assert [jobs.record(job_id).place for job_id in (mine[0], *theirs)] == [1, 2, 3]
    places = [jobs.record(job_id).place or 0 for job_id in mine[1:]]
    assert places == sorted(set(places))
    assert places[0] > 1


def test_a_message_of_a_job_that_is_held_is_dropped(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    _, second = submit(jobs, 2)
    assert jobs.claim(second) == Claim(None, "held")
    assert jobs.state(second) is State.PENDING


def test_a_retry_that_is_due_does_not_pass_the_limit(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    (retried,) = submit(jobs)
    jobs.start(jobs.receive_message() or "")
    (other,) = submit(jobs)
    jobs.retry(retried, delay_ms=1_000)
    start_next(jobs)
    jobs.now += 2_000
    assert jobs.claim(retried, token="again") == Claim(None, "held"), "by a message that was delivered again"
    assert held(jobs) == {retried}
    finish(jobs, other)
    assert jobs.listed() == [retried]


def test_a_promoted_retry_is_held_above_the_limit(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    (retried,) = submit(jobs)
    jobs.start(jobs.receive_message() or "")
    (other,) = submit(jobs)
    jobs.retry(retried, delay_ms=1_000)
    start_next(jobs)
    jobs.now += 2_000
    assert jobs.promote() == [retried]
    assert held(jobs) == {retried}
    finish(jobs, other)
    assert jobs.listed() == [retried]


def test_a_more_urgent_job_takes_the_turn_of_one_that_has_not_started(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    (usual,) = submit(jobs)
    (urgent,) = submit(jobs, priority=0)
    assert jobs.listed() == [urgent]
    assert held(jobs) == {usual}
    jobs.cancel(urgent)
    assert jobs.listed() == [usual]


def test_held_jobs_do_not_delay_other_tenants(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submit(jobs, 50)
    theirs = submit(jobs, 2, tenant="other")
    assert jobs.listed()[1:] == theirs


def test_a_job_that_was_held_for_long_has_no_claim_to_the_time_of_others(jobs: TimedJobs) -> None:
    """It has no order until it is eligible, so that a raised limit does not put a flood before all others."""
    jobs.limit(TENANT, 1)
    submit(jobs, 40)
    start_next(jobs)
    theirs = submit(jobs, 100, tenant="other")
    for _ in range(40):
        finish(jobs, start_next(jobs))
    jobs.limit(TENANT, None)
    ran = [start_next(jobs) for _ in range(20)]
    assert len(set(ran) & set(theirs)) in {10, 11, 12}, "the list has three messages"


# -- several pools -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_pools(jobs: TimedJobs) -> None:
    jobs.run(calls.announce_pool(OTHER_POOL, models=["sd"], now=jobs.now))
    jobs.run(
        calls.register_worker("two", pool=OTHER_POOL, state=WorkerState.READY, pod="", models=["sd"], now=jobs.now)
    )


@pytest.mark.usefixtures("two_pools")
def test_the_limit_counts_the_running_jobs_of_all_pools(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    here, here_too = submit(jobs, 2)
    (there,) = submit(jobs, pool=OTHER_POOL)
    assert held(jobs) == {here_too}
    assert held(jobs, OTHER_POOL) == set(), "nothing runs yet, so either pool may start one"
    jobs.start(there, worker="two")
    assert held(jobs) == {here, here_too}
    assert jobs.listed() == [], "the message of the other pool's job was withdrawn"
    assert jobs.claim(here, token="late") == Claim(None, "held")
    jobs.finish(there)
    assert jobs.listed() == [here]
    assert held(jobs) == {here_too}


@pytest.mark.usefixtures("two_pools")
def test_a_pool_without_workers_does_not_block_another(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submit(jobs, 3, pool=OTHER_POOL)
    (here,) = submit(jobs)
    assert jobs.listed() == [here]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_limit_of_a_key_holds_its_own_jobs_alone(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1, key_id=KEY)
    first, second = submit(jobs, 2, key_id=KEY)
    others = [*submit(jobs, 1, key_id=SECOND_KEY), *submit(jobs, 1)]
    assert held(jobs) == {second}
    assert jobs.record(second).held == "key"
    assert jobs.listed() == [first, *others]
    jobs.cancel(first)
    assert held(jobs) == set()


def test_the_limits_of_key_and_tenant_both_apply(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 3)
    jobs.limit(TENANT, 2, key_id=KEY)
    mine = submit(jobs, 4, key_id=KEY)
    others = submit(jobs, 3, key_id=SECOND_KEY)
    assert held(jobs) == {*mine[2:], *others[1:]}
    assert [jobs.record(job_id).held for job_id in (mine[2], others[1])] == ["key", "tenant"]
    start_next(jobs), start_next(jobs), start_next(jobs)
    finish(jobs, others[0])
    assert jobs.listed() == [others[1]], "the key has no room"
    finish(jobs, mine[0])
    assert jobs.listed() == [others[1], others[2]] or set(jobs.listed()) == {others[1], mine[2]}
    assert is_running(jobs) == 1


def test_a_job_of_a_key_that_its_tenant_holds_leaves_room_to_no_one(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    jobs.limit(TENANT, 1, key_id=KEY)
    (first,) = submit(jobs)
    second, third = submit(jobs, 2, key_id=KEY)
    assert [jobs.record(job_id).held for job_id in (first, second, third)] == [None, "tenant", "key"]
    jobs.cancel(second)
    assert [jobs.record(job_id).held for job_id in (first, third)] == [None, "tenant"]
    jobs.cancel(first)
    assert jobs.listed() == [third]


# -- changes of limits -------------------------------------------------------------------------------------------------


def test_a_limit_that_is_raised_admits_jobs_at_once(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submitted = submit(jobs, 5)
    jobs.limit(TENANT, 3)
    assert jobs.listed() == submitted[:3]
    assert held(jobs) == set(submitted[3:])
    jobs.limit(TENANT, None)
    assert held(jobs) == set()
    assert [jobs.record(job_id).place for job_id in submitted] == [1, 2, 3, 4, 5]


def test_a_limit_that_is_lowered_holds_what_has_not_started(jobs: TimedJobs) -> None:
    submitted = submit(jobs, 6)
    running = start_next(jobs)
    jobs.limit(TENANT, 2)
    assert held(jobs) == set(submitted[2:])
    assert jobs.listed() == [submitted[1]]
    jobs.limit(TENANT, 1)
    assert jobs.listed() == []
    assert held(jobs) == set(submitted[1:])
    finish(jobs, running)
    assert jobs.listed() == [submitted[1]]


def test_the_limit_of_a_key_applies_to_jobs_that_it_submitted_before(jobs: TimedJobs) -> None:
    first, second, third = submit(jobs, 3, key_id=KEY)
    (other,) = submit(jobs, key_id=SECOND_KEY)
    start_next(jobs)
    jobs.limit(TENANT, 1, key_id=KEY)
    assert held(jobs) == {second, third}
    assert jobs.listed() == [other]
    finish(jobs, first)
    assert jobs.listed() == [other, second]


def test_a_disabled_tenant_starts_nothing_and_its_running_jobs_end(jobs: TimedJobs) -> None:
    submitted = submit(jobs, 5)
    running = start_next(jobs)
    theirs = submit(jobs, 1, tenant="other", priority=9)
    in_transit = jobs.receive_message()
    assert in_transit == submitted[1]
    jobs.limit(TENANT, 0)
    assert held(jobs) == set(submitted[1:])
    assert jobs.listed() == theirs
    assert jobs.claim(in_transit) == Claim(None, "held")
    assert jobs.progress(running, op=1, step=1, steps=2).value == "lost", "of another token"
    finish(jobs, running)
    assert jobs.state(running) is State.COMPLETED
    assert jobs.listed() == theirs
    assert observe(jobs).jobs == 1
    jobs.limit(TENANT, None)
    assert held(jobs) == set()
    for expected in (*submitted[1:], *theirs):
        assert start_next(jobs) == expected
        finish(jobs, expected)


@pytest.mark.parametrize("way", ["retry", "release"])
def test_a_running_job_of_a_disabled_tenant_does_not_start_again(jobs: TimedJobs, way: str) -> None:
    running = jobs.running()
    jobs.limit(TENANT, 0)
    if way == "retry":
        jobs.retry(running, delay_ms=1_000)
        jobs.now += 1_000
        jobs.promote()
    else:
        jobs.release(running, ReleaseReason.DRAIN)
    assert held(jobs) == {running}
    assert jobs.listed() == []
    jobs.limit(TENANT, 4)
    assert jobs.listed() == [running]


def test_a_tenant_that_is_deleted_has_no_limit(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submit(jobs, 3)
    jobs.run(calls.publish_access({f"tenant:{TENANT}": "99 "}, now=jobs.now))
    assert held(jobs) == set()
    assert not jobs.redis.exists(jobs.key("running-limits", TENANT))


def test_a_complete_publication_removes_limits_that_are_gone(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submit(jobs, 3)
    jobs.run(calls.publish_access({}, revision=100, now=jobs.now))
    assert held(jobs) == set()


def test_limits_come_back_from_sql_after_redis_lost_its_data(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submit(jobs, 3)
    entry = jobs.redis.hget(jobs.key("access"), f"tenant:{TENANT}").decode()
    for name in ("access", f"running-limits:{TENANT}"):
        jobs.redis.delete(jobs.key(name))
    jobs.run(calls.publish_access({f"tenant:{TENANT}": entry}, revision=100, restored=True, now=jobs.now))
    assert len(held(jobs)) == 2


def test_a_publication_that_changes_no_limit_moves_nothing(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submit(jobs, 3)
    before = {name: value for name, value in jobs.everything().items() if ":access" not in name}
    jobs.limit(TENANT, 1)
    assert {name: value for name, value in jobs.everything().items() if ":access" not in name} == before


# -- with other rules --------------------------------------------------------------------------------------------------


def test_held_jobs_count_in_the_limit_of_the_backlog(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    submit(jobs, 4)
    answer = jobs.run(calls.accept(jobs.submission(), backlog_limit=4, now=jobs.now))
    assert not isinstance(answer, Accepted)


def test_held_jobs_age_and_keep_their_order(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    first, second, third = submit(jobs, 3)
    jobs.now += 60_000
    assert jobs.run(calls.age(POOL, bound_ms=50_000, now=jobs.now)) == [second, third]
    assert jobs.listed() == [second], "of a more urgent class now"
    assert held(jobs) == {first, third}
    jobs.cancel(second)
    assert jobs.listed() == [third]


def test_the_users_of_a_tenant_take_turns_under_its_limit(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)

    def of(user: str, count: int) -> list[str]:
        found = []
        for _ in range(count):
            jobs.now += 1
            submission = jobs.submission(fields={"user_id": user})
            answer = jobs.run(calls.accept(submission, backlog_limit=1_000, by_user=True, now=jobs.now))
            assert isinstance(answer, Accepted)
            found.append(answer.job_id)
        return found

    anna, bert = of("anna", 6), of("bert", 2)
    ran = []
    for _ in range(5):
        ran.append(start_next(jobs))
        finish(jobs, ran[-1])
    assert [job_id for job_id in ran if job_id in anna] == anna[:3]
    assert [job_id for job_id in ran if job_id in bert] == bert


def test_the_operator_is_woken_where_a_held_job_becomes_the_first_of_its_pool(jobs: TimedJobs) -> None:
    jobs.limit(TENANT, 1)
    running = jobs.running()
    submit(jobs, 1)
    pubsub = jobs.redis.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(jobs.key("wake"))
    pubsub.get_message(timeout=5)
    jobs.finish(running)
    heard = []
    while (message := pubsub.get_message(timeout=0.2)) is not None:
        heard.append(message["data"])
    pubsub.close()
    assert f"backlog {POOL}".encode() in heard

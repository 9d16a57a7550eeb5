"""The fair share: which tenant's job is next, and which of a tenant's users."""

from __future__ import annotations

import secrets
from collections import Counter
from itertools import cycle, islice
from typing import Any

import pytest
from darkroom.access.records import Tenant
from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, ReleaseReason
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.timed_jobs import POOL, TimedJobs

CLASS = 2**49
SHARE = 65_536


def submit(jobs: TimedJobs, tenant: str, count: int = 1, *, by_user: bool = False, **more: Any) -> list[str]:
    found = []
    for _ in range(count):
        jobs.now += 1  # jobs alike are ordered by their ids, and these by time
        submission = jobs.submission(tenant=tenant, **more)
        answer = jobs.run(calls.accept(submission, backlog_limit=20_000, by_user=by_user, now=jobs.now))
        assert isinstance(answer, Accepted), answer
        found.append(answer.job_id)
    return found


def run_next(jobs: TimedJobs, count: int = 1_000_000) -> list[str]:
    """One worker completes so many jobs, or all; returns them in the order in which they ran."""
    ran: list[str] = []
    while len(ran) < count and (job_id := jobs.receive_message()) is not None:
        jobs.start(job_id, token=f"of-{job_id}")
        jobs.finish(job_id, token=f"of-{job_id}")
        ran.append(job_id)
    return ran


def tenants_of(jobs: TimedJobs, ran: list[str]) -> list[str]:
    return [jobs.record(job_id).tenant for job_id in ran]


def order(jobs: TimedJobs, job_id: str) -> int:
    return int(jobs.redis.hget(jobs.key("job", job_id), "order"))


# -- tenants -----------------------------------------------------------------------------------------------------------


def test_a_tenant_that_floods_the_pool_delays_no_other_by_more_than_one_job_each(jobs: TimedJobs) -> None:
    flood = submit(jobs, "flood", 100)
    few = submit(jobs, "few", 5)
    ran = run_next(jobs, 12)
    assert set(few) < set(ran)
    assert [ran.index(job_id) for job_id in few] == [1, 3, 5, 7, 9]
    assert [job_id for job_id in ran if job_id in set(flood)] == flood[:7]


def test_the_first_job_of_a_tenant_that_comes_is_the_next(jobs: TimedJobs) -> None:
    jobs.worker()
    submit(jobs, "flood", 30)
    run_next(jobs, 5)
    few = submit(jobs, "few", 3)
    assert [run_next(jobs, 5).index(job_id) for job_id in few[:1]] == [0]


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (0.5, 0.25), (1000, 1)], ids=str)
def test_tenants_share_the_pool_by_their_weights(jobs: TimedJobs, weights: tuple[float, float]) -> None:
    submit(jobs, "heavy", 150, weight=weights[0])
    submit(jobs, "light", 150, weight=weights[1])
    ran = Counter(tenants_of(jobs, run_next(jobs, 121)[1:]))
    expected = 120 * weights[0] / sum(weights)
    assert abs(ran["heavy"] - expected) <= 2, ran


def test_a_tenant_that_was_idle_has_no_claim_to_what_it_did_not_use(jobs: TimedJobs) -> None:
    submit(jobs, "busy", 60)
    run_next(jobs, 40)

    submit(jobs, "late", 20)
    ran = tenants_of(jobs, run_next(jobs, 21)[1:])
    assert Counter(ran) == {"busy": 10, "late": 10}


def test_a_flood_that_was_cancelled_costs_its_tenant_nothing(jobs: TimedJobs) -> None:
    submit(jobs, "steady", 20)
    for job_id in submit(jobs, "flood", 50):
        jobs.cancel(job_id, tenant="flood")
    (after,) = submit(jobs, "flood")
    assert after in run_next(jobs, 3)


def test_a_cancelled_last_job_gives_its_cost_back_and_an_earlier_one_stays(jobs: TimedJobs) -> None:
    submit(jobs, "other", 2)
    first, second, third = submit(jobs, "one", 3)
    jobs.cancel(third, tenant="one")
    (fourth,) = submit(jobs, "one")
    assert order(jobs, fourth) == order(jobs, second) + SHARE
    assert order(jobs, second) == order(jobs, first) + SHARE


def test_an_expired_flood_costs_its_tenant_nothing(jobs: TimedJobs) -> None:
    submit(jobs, "steady", 20)
    submit(jobs, "flood", 50, start_deadline=jobs.now + 1_000)
    jobs.now += 1_000
    jobs.expire()
    (after,) = submit(jobs, "flood")
    assert after in run_next(jobs, 3)


def test_each_priority_class_is_shared_separately(jobs: TimedJobs) -> None:
    later = submit(jobs, "flood", 30, priority=5)
    urgent = submit(jobs, "urgent", 30, priority=0)
    assert run_next(jobs, 30) == urgent, "class 0 has advanced by 30 jobs"
    (few,) = submit(jobs, "few", priority=5)
    ran = run_next(jobs, 3)
    assert few in ran, "and class 5 has not: the tenant does not wait for the flood of another"
    assert set(ran) - {few} < set(later)


@pytest.mark.parametrize("reason", ReleaseReason)
def test_a_released_job_keeps_its_position_before_all_tenants(jobs: TimedJobs, reason: ReleaseReason) -> None:
    submit(jobs, "one", 5)
    released = jobs.start(jobs.receive_message() or "")
    submit(jobs, "two", 5)
    jobs.release(released, reason)
    assert run_next(jobs, 1) == [released]


def test_a_retried_job_does_not_give_its_tenant_an_earlier_turn(jobs: TimedJobs) -> None:
    """The order of a job that comes back is lower than the virtual time. A tenant that comes after it starts there."""
    submit(jobs, "one", 30)
    retried = jobs.start(jobs.receive_message() or "")
    jobs.retry(retried, delay_ms=10_000)
    run_next(jobs, 20)
    jobs.now += 10_000
    jobs.promote()
    late = submit(jobs, "late", 20)
    ran = run_next(jobs, 11)
    assert retried in ran
    assert len(set(ran) & set(late)) in {4, 5}


def test_the_cost_of_a_job_is_the_time_of_its_model_by_that_of_the_pool(jobs: TimedJobs) -> None:
    jobs.run(calls.announce_pool(POOL, models=["sd", "video"], now=jobs.now))
    submit(jobs, "other", 2)
    first, second = submit(jobs, "one", 2, model="video")
    assert order(jobs, second) - order(jobs, first) == SHARE, "before a measurement each job costs 1"
    jobs.redis.hset(jobs.key("pool", POOL), mapping={"service_ms": "1000.0", "service_ms video": "4000.0"})
    third, fourth = submit(jobs, "one", 2, model="video")
    assert order(jobs, fourth) - order(jobs, third) == 4 * SHARE
    jobs.redis.hset(jobs.key("pool", POOL), "service_ms video", "400000.0")
    fifth, sixth = submit(jobs, "one", 2, model="video")
    assert order(jobs, sixth) - order(jobs, fifth) == 16 * SHARE, "the bound of the cost"


def test_the_duration_of_each_model_is_measured(jobs: TimedJobs) -> None:
    for model, ms in (("sd", 1_000), ("video", 5_000)):
        job_id = jobs.submit(model=model)
        jobs.start(jobs.receive_message() or "", token=job_id)
        jobs.now += ms
        jobs.finish(job_id, token=job_id)
    found = jobs.redis.hmget(jobs.key("pool", POOL), "service_ms sd", "service_ms video", "service_ms")
    assert [float(each) for each in found] == [1_000, 5_000, 1_400]


def test_jobs_of_an_earlier_version_are_before_those_of_this_one(jobs: TimedJobs) -> None:
    """They have their arrival as their tag, and no flow."""
    jobs.redis.hset(jobs.key("pool", POOL), "arrivals", 500)
    older = []
    for arrival in (300, 301, 302):
        (job_id,) = submit(jobs, "old")
        older.append(job_id)
        tag = 5 * CLASS + arrival
        jobs.redis.hset(jobs.key("job", job_id), "order", tag)
        jobs.redis.hdel(jobs.key("job", job_id), "line", "share")
        for name in ("waiting", "dispatched"):
            if jobs.redis.zscore(jobs.key(name, POOL), job_id) is not None and name == "waiting":
                jobs.redis.zadd(jobs.key(name, POOL), {job_id: tag})
        jobs.redis.zrem(jobs.key("share", POOL, "old"), job_id)
    newer = [*submit(jobs, "new", 2), *submit(jobs, "old", 1)]
    ran = run_next(jobs)
    assert ran[:3] == older
    assert set(ran[3:]) == set(newer)


def test_at_the_end_of_a_band_jobs_run_by_arrival_and_no_class_is_left(jobs: TimedJobs) -> None:
    jobs.redis.hset(jobs.key("virtual", POOL), "5", CLASS - SHARE - 10)
    blocker = submit(jobs, "other", 1, priority=0)
    jobs.redis.hset(jobs.key("virtual", POOL), "5", CLASS - SHARE - 10)
    found = []
    for tenant in ("a", "b", "a", "b", "a"):
        jobs.now += 1
        found += submit(jobs, tenant)
    assert {order(jobs, job_id) for job_id in found[2:]} == {6 * CLASS - 1}
    (lower,) = submit(jobs, "c", priority=6)
    assert run_next(jobs) == [*blocker, *found, lower]


def test_virtual_time_begins_anew_once_a_pool_has_no_jobs(jobs: TimedJobs) -> None:
    submit(jobs, "one", 3)
    run_next(jobs)
    assert not jobs.redis.exists(jobs.key("virtual", POOL))
    for name in ("waiting", "ageing", "held"):
        assert not jobs.redis.exists(jobs.key(name, POOL))
    assert not jobs.redis.exists(jobs.key("share", POOL, "one"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    load=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), min_size=1, max_size=8),
    weights=st.tuples(*[st.sampled_from([0.5, 1, 2, 3])] * 3),
    workers=st.integers(1, 3),
)
def test_no_tenant_waits_for_more_than_its_share_and_one_job_per_worker(
    redis_url: str, load: list[tuple[str, int]], weights: tuple[float, float, float], workers: int
) -> None:
    """The bound of self-clocked fair queueing: while a tenant's n-th job waits, another tenant starts its share of so
    many jobs, one more, and one for each worker, which ran when the tenant came.
    """
    jobs = TimedJobs(redis_url, f"fair-{secrets.token_hex(6)}")
    try:
        weight_of = dict(zip("abc", weights, strict=True))
        for number in range(workers):
            jobs.worker(f"w{number}")
        running = [
            jobs.start(jobs.receive_message() or "", token=f"of-{job_id}") for job_id in submit(jobs, "c", workers)
        ]
        submitted: dict[str, list[str]] = {}
        for tenant, count in load:
            submitted.setdefault(tenant, []).extend(submit(jobs, tenant, count, weight=weight_of[tenant]))
        ran = run_next(jobs)
        assert not set(running) & set(ran)
        who = tenants_of(jobs, ran)
        assert len(ran) == sum(count for _, count in load)
        for tenant, own in submitted.items():
            assert [job_id for job_id in ran if job_id in set(own)] == own, "a tenant's jobs run as they arrived"
            for n, job_id in enumerate(own, 1):
                before = Counter(who[: ran.index(job_id)])
                for other in submitted.keys() - {tenant}:
                    share = n * weight_of[other] / weight_of[tenant]
                    assert before[other] <= share + 1, (tenant, n, other)
    finally:
        jobs.remove_all()
        jobs.close()


# -- users -------------------------------------------------------------------------------------------------------------


def of_user(name: str) -> dict[str, Any]:
    return {"fields": {"user_id": name}, "by_user": True}


def test_the_users_of_a_tenant_take_turns(jobs: TimedJobs) -> None:
    anna = submit(jobs, "acme", 20, **of_user("anna"))
    bert = submit(jobs, "acme", 3, **of_user("bert"))
    ran = run_next(jobs, 8)
    assert [ran.index(job_id) for job_id in bert] == [1, 3, 5]
    assert [job_id for job_id in ran if job_id in set(anna)] == anna[:5]


def test_without_the_setting_a_tenants_jobs_run_as_they_arrived(jobs: TimedJobs) -> None:
    anna = submit(jobs, "acme", 5, fields={"user_id": "anna"})
    bert = submit(jobs, "acme", 2, fields={"user_id": "bert"})
    assert run_next(jobs) == [*anna, *bert]


@pytest.mark.parametrize("users", [1, 2, 10])
def test_the_share_of_a_tenant_does_not_grow_with_its_users(jobs: TimedJobs, users: int) -> None:
    names = list(islice(cycle(f"user{n}" for n in range(users)), 60))
    for name in names:
        submit(jobs, "many", **of_user(name))
    submit(jobs, "one", 60, **of_user("single"))
    ran = Counter(tenants_of(jobs, run_next(jobs, 61)[1:]))
    assert ran == {"many": 30, "one": 30}


def test_users_share_the_turns_of_their_tenant_whatever_other_tenants_do(jobs: TimedJobs) -> None:
    submit(jobs, "other", 40, **of_user("x"))
    anna = submit(jobs, "acme", 20, **of_user("anna"))
    bert = submit(jobs, "acme", 20, **of_user("bert"))
    ran = run_next(jobs, 41)
    assert (len(set(ran) & set(anna)), len(set(ran) & set(bert))) == (10, 10)


def test_a_user_who_cancels_gets_the_cost_back(jobs: TimedJobs) -> None:
    submit(jobs, "acme", 20, **of_user("anna"))
    for job_id in submit(jobs, "acme", 20, **of_user("bert")):
        jobs.cancel(job_id, tenant="acme")
    (after,) = submit(jobs, "acme", **of_user("bert"))
    assert after in run_next(jobs, 3)


@pytest.mark.parametrize("by_user", [False, True])
def test_the_position_of_each_job_is_its_turn(jobs: TimedJobs, *, by_user: bool) -> None:
    found: list[str] = []
    for number in range(24):
        tenant = "ab"[number % 5 == 0]
        user: dict[str, Any] = {"fields": {"user_id": "xyz"[number % 3]}, "by_user": by_user}
        found += submit(jobs, tenant, priority=4 + number % 2, **user)
    for job_id in found[3::7]:
        jobs.cancel(job_id, tenant=None)
    places = {job_id: jobs.record(job_id).place for job_id in found if jobs.state(job_id) is State.PENDING}
    ran = run_next(jobs)
    assert [places[job_id] for job_id in ran] == list(range(1, len(ran) + 1))


# -- ageing ------------------------------------------------------------------------------------------------------------


def age(jobs: TimedJobs, bound_ms: int = 60_000) -> list[str]:
    aged = jobs.run(calls.age(POOL, bound_ms=bound_ms, now=jobs.now))
    before = jobs.everything()
    assert jobs.run(calls.age(POOL, bound_ms=bound_ms, now=jobs.now)) == []
    assert jobs.everything() == before
    return aged


def test_a_job_that_waits_long_moves_up_one_class_at_a_time(jobs: TimedJobs) -> None:
    submit(jobs, "other", priority=0)
    (low,) = submit(jobs, "one", priority=7)
    jobs.now += 59_999
    assert age(jobs) == []
    for expected in (6, 5, 4, 3, 2, 1, 0):
        jobs.now += 60_000
        assert age(jobs) == [low]
        assert order(jobs, low) // CLASS == expected
    jobs.now += 10**9
    assert age(jobs) == [], "class 0 is the last"
    assert jobs.record(low).priority == 7, "the priority that the client asked for stays"


def test_no_class_starves_under_a_steady_load_of_urgent_jobs(jobs: TimedJobs) -> None:
    (low,) = submit(jobs, "low", priority=9)
    submit(jobs, "urgent", 3, priority=0)
    jobs.redis.lpop(jobs.list_key)
    jobs.redis.zrem(jobs.key("dispatched", POOL), low)
    jobs.redis.zadd(jobs.key("waiting", POOL), {low: order(jobs, low)})
    for _ in range(60):
        submit(jobs, "urgent", 2, priority=0)
        jobs.now += 10_000
        jobs.run(calls.age(POOL, bound_ms=60_000, now=jobs.now))
        if low in run_next(jobs, 2):
            break
    assert jobs.state(low) is State.COMPLETED
    waited = jobs.now - jobs.record(low).created
    assert waited <= 9 * 60_000 + 20_000


def test_aged_jobs_keep_their_order_and_respect_the_shares_of_their_new_class(jobs: TimedJobs) -> None:
    submit(jobs, "other", priority=0)
    flood = submit(jobs, "flood", 80, priority=6)
    jobs.now += 60_000
    few = submit(jobs, "few", 5, priority=5)
    assert age(jobs) == flood
    ran = run_next(jobs, 12)[1:]
    assert [job_id for job_id in ran if job_id in set(few)] == few
    assert [job_id for job_id in ran if job_id in set(flood)] == flood[: 11 - len(few)]


def test_a_message_that_was_sent_does_not_age(jobs: TimedJobs) -> None:
    (job_id,) = submit(jobs, "one")
    jobs.now += 60_000
    assert age(jobs) == []
    assert jobs.members("dispatched") == {job_id}


def test_tenants_have_a_weight_of_one_by_default() -> None:
    assert Tenant(name="acme").weight == 1.0

"""Limits of a tenant and of its credentials, in `accept` itself: rates, waiting jobs and bytes, budgets."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable

import pytest
from darkroom.access.limits import Limits, Owner, Quota
from darkroom.errors import (
    DarkroomError,
    GpuBudgetExceeded,
    ImageBudgetExceeded,
    LimitExceeded,
    SubmissionRateExceeded,
    WaitingBytesExceeded,
    WaitingJobsExceeded,
)
from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, AttemptEnd, ReleaseReason
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.timed_jobs import HICCUP, TENANT, TOKEN, TimedJobs

KEY = "dkabcdef"
DAY_MS = 24 * 3600 * 1000
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MS = datetime.timedelta(milliseconds=1)


def offer(jobs: TimedJobs, **more: object) -> Accepted | DarkroomError:
    """Submit a job with the key; `more` are fields of the submission."""
    job = jobs.submission(**{"key_id": KEY, **more})
    return jobs.run(calls.accept(job, backlog_limit=10_000, now=jobs.now))


def accepted(answer: Accepted | DarkroomError) -> str:
    assert isinstance(answer, Accepted), answer
    return answer.job_id


def refused(answer: Accepted | DarkroomError, kind: type[LimitExceeded]) -> LimitExceeded:
    assert isinstance(answer, LimitExceeded), answer
    assert type(answer) is kind
    return answer


def counts(jobs: TimedJobs, key_id: str | None = KEY) -> dict[str, int]:
    """The counts of the tenant, or of a key."""
    raw = jobs.redis.hgetall(jobs.ledger.keys.limits(TENANT, key_id))
    return {name.decode(): int(float(value)) for name, value in raw.items()}


def used(jobs: TimedJobs, key_id: str | None = KEY) -> tuple[int, int]:
    """Images and GPU milliseconds of the day, which are also those of the month."""
    found = counts(jobs, key_id)
    assert (found["day_images"], found["day_gpu_ms"]) == (found["month_images"], found["month_gpu_ms"])
    return found["day_images"], found["day_gpu_ms"]


def both(limits: Limits) -> list[dict[str, Limits]]:
    return [{"tenant_limits": limits}, {"key_limits": limits}]


OWNERS = pytest.mark.parametrize("owner", list(Owner))


def limited(owner: Owner, **limits: int) -> dict[str, object]:
    return {f"{owner}_limits": Limits(**limits)}


# -- submissions per minute --------------------------------------------------------------------------------------------


@OWNERS
def test_a_burst_is_accepted_at_once_and_then_one_submission_per_interval(jobs: TimedJobs, owner: Owner) -> None:
    rate = limited(owner, submissions_per_minute=30, burst=3)
    for left in (2, 1, 0):
        answer = offer(jobs, **rate)
        assert isinstance(answer, Accepted)
        assert answer.quotas == (Quota(owner, "submissions_per_minute", 3, left, 2, 6),)
    before = jobs.everything()
    refusal = refused(offer(jobs, **rate), SubmissionRateExceeded)
    assert (refusal.retry_after, refusal.policies) == (2, (f"{owner}-submissions-per-minute",))
    assert refusal.quotas == (Quota(owner, "submissions_per_minute", 3, 0, 2, 6),)
    assert jobs.everything() == before, "a refusal stores nothing"
    jobs.now += 2_000
    accepted(offer(jobs, **rate))
    refused(offer(jobs, **rate), SubmissionRateExceeded)
    jobs.now += 6_000
    for _ in range(3):
        accepted(offer(jobs, **rate))
    refused(offer(jobs, **rate), SubmissionRateExceeded)


def test_without_a_burst_one_second_of_submissions_may_arrive_at_once(jobs: TimedJobs) -> None:
    rate = {"tenant_limits": Limits(submissions_per_minute=121)}
    assert [isinstance(offer(jobs, **rate), Accepted) for _ in range(4)] == [True, True, True, False]


def test_each_key_has_a_rate_of_its_own_and_all_share_the_tenants(jobs: TimedJobs) -> None:
    each, all_of_them = Limits(submissions_per_minute=1, burst=2), Limits(submissions_per_minute=1, burst=3)

    def submit(key: str) -> Accepted | DarkroomError:
        return offer(jobs, key_id=key, key_limits=each, tenant_limits=all_of_them)

    accepted(submit("one"))
    accepted(submit("one"))
    assert refused(submit("one"), SubmissionRateExceeded).policies == ("key-submissions-per-minute",)
    accepted(submit("two"))
    assert refused(submit("two"), SubmissionRateExceeded).policies == ("tenant-submissions-per-minute",)
    both_exceeded = refused(submit("one"), SubmissionRateExceeded)
    assert both_exceeded.policies == ("tenant-submissions-per-minute", "key-submissions-per-minute")
    accepted(offer(jobs, tenant="another", key_id="one", key_limits=each, tenant_limits=all_of_them))


def test_a_clock_that_was_set_back_delays_by_one_burst_at_most(jobs: TimedJobs) -> None:
    rate = {"tenant_limits": Limits(submissions_per_minute=60, burst=2)}
    accepted(offer(jobs, **rate))
    jobs.now -= DAY_MS
    refused(offer(jobs, **rate), SubmissionRateExceeded)
    jobs.now += 1_000
    refused(offer(jobs, **rate), SubmissionRateExceeded)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    per_minute=st.integers(1, 100_000),
    burst=st.none() | st.integers(1, 50),
    waits=st.lists(st.sampled_from([0, 0, 0, 1, 7, 59, 600, 2_000, 61_000]), min_size=1, max_size=60),
)
def test_no_more_than_the_burst_and_the_rate_are_accepted(
    jobs: TimedJobs, per_minute: int, burst: int | None, waits: list[int]
) -> None:
    """As a token bucket of exact fractions decides."""
    jobs.redis.delete(jobs.ledger.keys.limits(TENANT))
    limits = Limits(submissions_per_minute=per_minute, burst=burst)
    most = burst or -(-per_minute // 60)
    tokens_60k, capacity_60k = most * 60_000, most * 60_000  # tokens in units of 1/60,000
    for wait in waits:
        jobs.now += wait
        tokens_60k = min(capacity_60k, tokens_60k + wait * per_minute)
        expected = tokens_60k >= 60_000
        answer = offer(jobs, tenant_limits=limits)
        # Times are stored with three decimals of a millisecond: at the border either answer is right.
        if abs(tokens_60k - 60_000) > len(waits) * per_minute * 0.002:
            assert isinstance(answer, Accepted) == expected
        if isinstance(answer, Accepted):
            tokens_60k -= 60_000


# -- waiting jobs and bytes --------------------------------------------------------------------------------------------


@OWNERS
def test_jobs_that_wait_are_bounded(jobs: TimedJobs, owner: Owner) -> None:
    limit = limited(owner, waiting_jobs=2)
    first = offer(jobs, **limit)
    assert isinstance(first, Accepted)
    assert first.quotas == (Quota(owner, "waiting_jobs", 2, 1, None),)
    accepted(offer(jobs, **limit))
    before = jobs.everything()
    refusal = refused(offer(jobs, **limit), WaitingJobsExceeded)
    assert refusal.retry_after >= 1
    assert jobs.everything() == before
    jobs.start(first.job_id)
    accepted(offer(jobs, **limit))
    refused(offer(jobs, **limit), WaitingJobsExceeded)


@OWNERS
def test_bytes_of_unfinished_jobs_are_bounded(jobs: TimedJobs, owner: Owner) -> None:
    first = accepted(offer(jobs))
    each = counts(jobs)["bytes"]
    limit = limited(owner, waiting_bytes=2 * each)
    second = offer(jobs, **limit)
    assert isinstance(second, Accepted)
    assert second.quotas == (Quota(owner, "waiting_bytes", 2 * each, 0, None),)
    refused(offer(jobs, **limit), WaitingBytesExceeded)
    jobs.start(first)
    refused(offer(jobs, **limit), WaitingBytesExceeded)
    jobs.finish(first)
    accepted(offer(jobs, **limit))


def retried(jobs: TimedJobs, job_id: str) -> None:
    jobs.start(job_id)
    assert jobs.retry(job_id) is AttemptEnd.PENDING


def released(jobs: TimedJobs, job_id: str) -> None:
    jobs.start(job_id)
    assert jobs.release(job_id, ReleaseReason.WORKER_LOST) is AttemptEnd.PENDING


def put_back(jobs: TimedJobs, job_id: str) -> None:
    jobs.worker()
    jobs.run(calls.drain("local", count=1, now=jobs.now))
    assert jobs.claim(job_id).dropped == "draining"


@pytest.mark.parametrize("back", [retried, released, put_back])
def test_a_job_that_is_pending_again_waits_again(jobs: TimedJobs, back: Callable[[TimedJobs, str], None]) -> None:
    job_id = accepted(offer(jobs))
    before = counts(jobs)
    back(jobs, job_id)
    assert {name: counts(jobs)[name] for name in ("jobs", "bytes")} == {
        name: before[name] for name in ("jobs", "bytes")
    }


def completed(jobs: TimedJobs, job_id: str) -> None:
    jobs.start(job_id)
    jobs.finish(job_id)


def cancelled(jobs: TimedJobs, job_id: str) -> None:
    jobs.cancel(job_id)


def cancelled_while_running(jobs: TimedJobs, job_id: str) -> None:
    jobs.start(job_id)
    jobs.cancel(job_id)
    jobs.finish(job_id)


def failed(jobs: TimedJobs, job_id: str) -> None:
    jobs.start(job_id)
    jobs.finish(job_id, outcome=State.FAILED, data={"error": {"kind": "invalid_input", "message": "no"}})


def dead(jobs: TimedJobs, job_id: str) -> None:
    for number in range(calls.MAX_ATTEMPTS):
        attempt(jobs, job_id, f"{number}")
    assert jobs.state(job_id) is State.FAILED


def attempt(jobs: TimedJobs, job_id: str, token: str) -> None:
    """An attempt of one second that fails."""
    jobs.start(job_id, token=token)
    jobs.now += 1_000
    jobs.run(calls.retry(job_id, token=token, error=HICCUP, delay_ms=0, now=jobs.now))


def undeliverable(jobs: TimedJobs, job_id: str) -> None:
    for _ in range(6):
        jobs.receive_message()
        jobs.now += calls.SWEEP_AGE_MS
        jobs.sweep()
    assert jobs.state(job_id) is State.FAILED


ENDS = [completed, cancelled, cancelled_while_running, failed, dead, undeliverable]


@pytest.mark.parametrize("end", ENDS)
def test_a_finished_job_no_longer_waits(jobs: TimedJobs, end: Callable[[TimedJobs, str], None]) -> None:
    end(jobs, accepted(offer(jobs)))
    for key_id in (None, KEY):
        assert (counts(jobs, key_id)["jobs"], counts(jobs, key_id)["bytes"]) == (0, 0)


def test_an_expired_job_no_longer_waits(jobs: TimedJobs) -> None:
    accepted(offer(jobs, start_deadline=jobs.now))
    jobs.expire()
    assert (counts(jobs)["jobs"], counts(jobs)["bytes"], used(jobs)) == (0, 0, (0, 0))


def test_counts_without_unfinished_jobs_expire_after_every_month(jobs: TimedJobs) -> None:
    key = jobs.ledger.keys.limits(TENANT, KEY)
    first = accepted(offer(jobs))
    assert jobs.redis.pttl(key) == -1
    jobs.cancel(first)
    assert 31 * DAY_MS < jobs.redis.pttl(key) <= 32 * DAY_MS
    accepted(offer(jobs))
    assert jobs.redis.pttl(key) == -1


# -- budgets -----------------------------------------------------------------------------------------------------------


@OWNERS
@pytest.mark.parametrize("period", ["day", "month"])
def test_the_images_of_a_period_are_bounded(jobs: TimedJobs, owner: Owner, period: str) -> None:
    budget = limited(owner, **{f"images_per_{period}": 5})
    first = offer(jobs, images=4, **budget)
    assert isinstance(first, Accepted)
    (quota,) = first.quotas
    assert (quota.policy, quota.most, quota.remaining) == (f"{owner}-images-per-{period}", 5, 1)
    before = jobs.everything()
    refusal = refused(offer(jobs, images=2, **budget), ImageBudgetExceeded)
    assert refusal.retry_after == quota.reset_s == seconds_left(jobs.now, period)
    assert jobs.everything() == before
    accepted(offer(jobs, images=1, **budget))
    refused(offer(jobs, images=1, **budget), ImageBudgetExceeded)
    jobs.now += refusal.retry_after * 1000
    accepted(offer(jobs, images=5, **budget))


def seconds_left(now_ms: int, period: str) -> int:
    now = EPOCH + now_ms * MS
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    end = day + datetime.timedelta(days=1)
    if period == "month":
        end = (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    return -((now - end) // datetime.timedelta(seconds=1))


FIRST, LAST = (datetime.datetime.fromisoformat(text) for text in ("1971-01-01", "2400-01-01"))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.datetimes(FIRST, LAST))
def test_a_month_is_that_of_the_calendar(jobs: TimedJobs, at: datetime.datetime) -> None:
    jobs.redis.delete(jobs.ledger.keys.limits(TENANT))
    jobs.now = (at.replace(tzinfo=datetime.UTC) - EPOCH) // MS
    answer = offer(jobs, tenant_limits=Limits(images_per_day=9, images_per_month=9))
    assert isinstance(answer, Accepted)
    assert [quota.reset_s for quota in answer.quotas] == [seconds_left(jobs.now, each) for each in ("day", "month")]


def measured(jobs: TimedJobs, *, took_ms: int, images: int = 1) -> None:
    """Let a job of another tenant measure the model's duration per image."""
    job_id = jobs.submit(tenant="measuring", images=images)
    jobs.start(job_id)
    jobs.now += took_ms
    jobs.finish(job_id, data={"artifacts": [{}] * images})


@OWNERS
@pytest.mark.parametrize("period", ["day", "month"])
def test_gpu_seconds_of_a_period_stop_submissions(jobs: TimedJobs, owner: Owner, period: str) -> None:
    measured(jobs, took_ms=4_000, images=2)
    budget = limited(owner, **{f"gpu_seconds_per_{period}": 10})
    answers = [offer(jobs, images=2, **budget) for _ in range(4)]
    assert [isinstance(each, Accepted) for each in answers] == [True, True, True, False]
    assert [quota.remaining for each in answers for quota in each.quotas] == [6, 2, 0, 0]
    refusal = refused(answers[-1], GpuBudgetExceeded)
    assert refusal.retry_after == seconds_left(jobs.now, period)
    jobs.cancel(accepted(answers[0]))
    accepted(offer(jobs, images=2, **budget))


def test_an_unmeasured_model_reserves_the_longest_run(jobs: TimedJobs) -> None:
    budget = {"tenant_limits": Limits(gpu_seconds_per_day=10)}
    first = accepted(offer(jobs, run_timeout=60.0, **budget))
    assert used(jobs) == (1, 60_000)
    refused(offer(jobs, **budget), GpuBudgetExceeded)
    jobs.start(first)
    jobs.now += 1_500
    jobs.finish(first, data={"artifacts": [{}]})
    assert used(jobs) == (1, 1_500)
    accepted(offer(jobs, run_timeout=60.0, **budget))


def test_a_job_is_charged_for_what_it_used(jobs: TimedJobs) -> None:
    job_id = accepted(offer(jobs, images=4))
    for token in ("one", "two"):
        attempt(jobs, job_id, token)
    reserved = 600_000
    assert used(jobs) == (4, reserved + 2_000), "attempts count at once, and one more is reserved"
    jobs.start(job_id)
    jobs.now += 250
    jobs.finish(job_id, data={"artifacts": [{}, {}]})
    assert used(jobs) == used(jobs, None) == (2, 2_250)
    assert jobs.record(job_id).gpu_ms == 2_250


@pytest.mark.parametrize("end", ENDS[1:])
def test_a_job_without_a_result_is_charged_for_no_image(jobs: TimedJobs, end: Callable[[TimedJobs, str], None]) -> None:
    job_id = accepted(offer(jobs, images=4))
    end(jobs, job_id)
    assert used(jobs) == used(jobs, None) == (0, jobs.record(job_id).gpu_ms)


def test_a_job_counts_in_the_day_of_its_acceptance(jobs: TimedJobs) -> None:
    yesterday = accepted(offer(jobs, images=3))
    jobs.now += DAY_MS
    today = accepted(offer(jobs, images=2))
    jobs.start(yesterday)
    jobs.now += 500
    jobs.finish(yesterday, data={"artifacts": [{}]})
    assert counts(jobs)["day_images"] == 2
    jobs.start(today)
    jobs.now += 700
    jobs.finish(today, data={"artifacts": [{}, {}]})
    found = counts(jobs)
    assert (found["day_images"], found["day_gpu_ms"]) == (2, 700)
    assert (found["month_images"], found["month_gpu_ms"]) == (3, 1_200)


def test_a_limit_that_is_set_later_counts_what_was_used_before(jobs: TimedJobs) -> None:
    accepted(offer(jobs, images=3))
    refused(offer(jobs, tenant_limits=Limits(images_per_day=3)), ImageBudgetExceeded)
    refused(offer(jobs, key_limits=Limits(waiting_jobs=1)), WaitingJobsExceeded)


def test_a_limit_of_zero_refuses_every_job(jobs: TimedJobs) -> None:
    for limit in ("waiting_jobs", "waiting_bytes", "images_per_day", "gpu_seconds_per_month"):
        assert isinstance(offer(jobs, tenant_limits=Limits(**{limit: 0})), LimitExceeded), limit


def test_a_repeated_submission_is_charged_once(jobs: TimedJobs) -> None:
    job = jobs.submission(key_id=KEY, tenant_limits=Limits(submissions_per_minute=1, burst=1, waiting_jobs=1))
    call = calls.accept(job, backlog_limit=10, now=jobs.now)
    first = jobs.run(call)
    before = jobs.everything()
    again = jobs.run(call)
    assert isinstance(first, Accepted)
    assert isinstance(again, Accepted)
    assert again.repeated
    assert again.quotas == first.quotas
    assert jobs.everything() == before


@OWNERS
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(images_per_day=10), 10),
        (Limits(gpu_seconds_per_day=19), 10),
        (Limits(waiting_jobs=10), 10),
        (Limits(submissions_per_minute=1, burst=10), 10),
    ],
    ids=["images", "gpu seconds", "waiting jobs", "rate"],
)
def test_100_parallel_submissions_exceed_no_limit(
    jobs: TimedJobs, any_redis_url: str, owner: Owner, limits: Limits, expected: int
) -> None:
    """Ten of 2 s each are within 19 s and one job; each thread has a connection of its own."""
    measured(jobs, took_ms=2_000)
    answers: list[Accepted | DarkroomError] = []
    start = threading.Barrier(10)

    def submit() -> None:
        client = connect(any_redis_url)
        ledger = Ledger(client, jobs.namespace)
        start.wait()
        for _ in range(10):
            job = jobs.submission(key_id=KEY, **{f"{owner}_limits": limits})
            answers.append(ledger.run(calls.accept(job, backlog_limit=10_000, now=jobs.now)))
        client.close()

    threads = [threading.Thread(target=submit) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 100
    assert sum(isinstance(each, Accepted) for each in answers) == expected


def test_a_job_of_an_earlier_version_is_not_counted(jobs: TimedJobs) -> None:
    """Its record lacks what it reserved: it was accepted uncounted, and leaves uncounted."""
    job_id = accepted(offer(jobs))
    jobs.redis.hdel(jobs.key("job", job_id), "reserved")
    before = counts(jobs)
    jobs.start(job_id, token=TOKEN)
    jobs.finish(job_id)
    assert counts(jobs) == before

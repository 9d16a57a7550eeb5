"""Attempts to deliver and their outcomes, repeated deliveries, and the deliveries of a deleted job."""

from __future__ import annotations

import pytest
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import AttemptResult, Deleted, DeliveryOutcome, Redelivered
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.subscriptions import (
    FAILING_LIMIT_MS,
    DeliveryState,
    SubscriptionState,
    Webhook,
)

from tests.core.timed_jobs import TENANT, TimedJobs
from tests.core.timed_webhooks import (
    ALL,
    DAY_MS,
    LEASE_MS,
    URL,
    ended,
    lease,
    permit,
    record,
    seen,
    subscribe,
    subscription,
)


class TestAttempts:
    """What follows from a try."""

    async def test_a_successful_attempt_delivers(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.DELIVERED, status=202, took_ms=7) is AttemptResult.DELIVERED
        (found,) = await seen(ledger, job_id)
        assert (found.state, found.ended, found.due, found.tried) == (DeliveryState.DELIVERED, jobs.now, None, 1)
        ((number, status, took_ms, error),) = [(t.number, t.status, t.took_ms, t.error) for t in found.tries]
        assert (number, status, took_ms, error) == (1, 202, 7, None)
        assert 0 < jobs.redis.pttl(jobs.key("delivery", delivery.id)) <= DAY_MS
        assert 0 < jobs.redis.pttl(jobs.key("deliveries-of", job_id)) <= DAY_MS
        jobs.now += 100 * DAY_MS
        assert lease(jobs) == []

    async def test_a_failed_delivery_is_due_again_and_then_given_up(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        for number in (1, 2):
            (delivery,) = lease(jobs)
            assert (delivery.number, delivery.attempt) == (number, number)
            failed = record(jobs, delivery, DeliveryOutcome.FAILED, status=500, error="status 500", again_ms=5_000)
            assert failed is AttemptResult.AGAIN
            jobs.now += 4_999
            assert lease(jobs) == []
            jobs.now += 1
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.FAILED, error="no answer\nat all") is AttemptResult.GIVEN_UP
        (found,) = await seen(ledger, job_id)
        assert (found.state, found.reason, found.tried) == (DeliveryState.GIVEN_UP, "all attempts failed", 3)
        assert [(each.number, each.status, each.error) for each in found.tries] == [
            (1, 500, "status 500"),
            (2, 500, "status 500"),
            (3, None, "no answer\nat all"),
        ]

    def test_a_clock_that_is_set_back_delays_neither_retries_nor_expired_leases(self, jobs: TimedJobs) -> None:
        other = "https://other.test/"
        for url in (URL, other):
            permit(jobs, url)
            ended(jobs, webhook=Webhook(url))
        failed, held = sorted(lease(jobs), key=lambda each: each.url, reverse=True)
        record(jobs, failed, DeliveryOutcome.FAILED, status=429, again_ms=5_000, pause_ms=5_000)
        jobs.run(calls.adjust_clock(clock_ms=jobs.now, now=jobs.now))
        jobs.now -= 3_600_000
        jobs.run(calls.adjust_clock(clock_ms=jobs.now, now=jobs.now))
        assert lease(jobs) == []
        jobs.now += 5_000
        assert [each.id for each in lease(jobs, owner="two")] == [failed.id]
        jobs.now += LEASE_MS - 5_000
        assert held.id in [each.id for each in lease(jobs, owner="two", per_target=1)]

    async def test_a_delivery_that_was_put_off_has_no_attempt(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.PUT_OFF, again_ms=1_000) is AttemptResult.AGAIN
        (found,) = await seen(ledger, job_id)
        assert (found.tried, found.due) == (0, jobs.now + 1_000)

    async def test_the_last_attempts_are_stored(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        for _ in range(25):
            (delivery,) = lease(jobs)
            record(jobs, delivery, DeliveryOutcome.FAILED, again_ms=0)
        (found,) = await seen(ledger, job_id)
        assert found.tried == 25
        assert [each.number for each in found.tries] == list(range(6, 26))

    async def test_410_ends_a_subscription_and_creates_a_notice(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs, events=ALL)
        ended(jobs)
        ended(jobs)
        first, second = lease(jobs)
        assert record(jobs, first, DeliveryOutcome.GONE, status=410) is AttemptResult.ENDED
        assert record(jobs, second, DeliveryOutcome.GONE, status=410) is AttemptResult.GIVEN_UP, "it is said once"
        found = await subscription(ledger, subscription_id)
        assert (found.state, found.reason) == (SubscriptionState.ENDED, "its receiver answered 410")
        assert await seen(ledger, ended(jobs)) == []
        assert await reads.pending_starts(ledger, [jobs.running()]) == [[]], "nor does it ask for starts any more"
        notices = calls.lease_notices(owner="courier", call="1", limit=10, now=jobs.now)
        assert jobs.run(notices) == [subscription_id]
        assert jobs.run(calls.ack_notice(subscription_id, changed=found.changed, now=jobs.now))
        jobs.now += DAY_MS
        assert jobs.run(calls.lease_notices(owner="courier", call="2", limit=10, now=jobs.now)) == []

    async def test_410_to_a_jobs_own_webhook_ends_that_delivery(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.GONE, status=410) is AttemptResult.GIVEN_UP
        (found,) = await seen(ledger, job_id)
        assert found.reason == "the receiver answered 410"

    async def test_five_days_of_failures_disable_a_subscription(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs)
        ended(jobs)
        began = jobs.now
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.FAILED, again_ms=0) is AttemptResult.AGAIN
        jobs.now = began + FAILING_LIMIT_MS - 1
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.FAILED, again_ms=0) is AttemptResult.AGAIN
        assert (await subscription(ledger, subscription_id)).failing_since == began
        jobs.now += 1
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.FAILED, again_ms=0) is AttemptResult.DISABLED
        found = await subscription(ledger, subscription_id)
        assert (found.state, found.changed) == (SubscriptionState.DISABLED, jobs.now)
        assert jobs.run(calls.lease_notices(owner="c", call="1", limit=9, now=jobs.now)) == [subscription_id]

    async def test_one_success_ends_the_run_of_failures(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs)
        ended(jobs)
        (delivery,) = lease(jobs)
        record(jobs, delivery, DeliveryOutcome.FAILED, again_ms=DAY_MS)
        ended(jobs)
        (other,) = lease(jobs)
        record(jobs, other, DeliveryOutcome.DELIVERED, status=200)
        assert (await subscription(ledger, subscription_id)).failing_since is None
        jobs.now += FAILING_LIMIT_MS
        permit(jobs)
        (delivery,) = lease(jobs)
        assert record(jobs, delivery, DeliveryOutcome.FAILED, again_ms=0) is AttemptResult.AGAIN

    def test_a_stale_notice_stays_until_the_new_one_is_accepted(self, jobs: TimedJobs) -> None:
        subscription_id = subscribe(jobs)
        ended(jobs)
        (delivery,) = lease(jobs)
        record(jobs, delivery, DeliveryOutcome.GONE, status=410)
        assert not jobs.run(calls.ack_notice(subscription_id, changed=jobs.now - 1, now=jobs.now))
        assert jobs.redis.zcard(jobs.key("notices")) == 1
        jobs.run(calls.unsubscribe(subscription_id, tenant=TENANT, now=jobs.now))
        assert jobs.redis.zcard(jobs.key("notices")) == 0


class TestRedelivery:
    """A client requests a delivery again."""

    async def test_it_is_due_at_once_with_a_new_schedule(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        (delivery,) = lease(jobs)
        record(jobs, delivery, DeliveryOutcome.FAILED)
        call = calls.redeliver(delivery.id, job_id=job_id, tenant=TENANT, now=jobs.now)
        assert jobs.run(call) is Redelivered.DUE
        before = jobs.everything()
        assert jobs.run(call) is Redelivered.DUE
        assert jobs.everything() == before
        assert jobs.redis.pttl(jobs.key("delivery", delivery.id)) == -1
        assert jobs.redis.pttl(jobs.key("deliveries-of", job_id)) == -1
        (again,) = lease(jobs)
        assert (again.id, again.number, again.attempt) == (delivery.id, 2, 1)
        assert jobs.run(call) is Redelivered.OPEN, "it is being posted"
        record(jobs, again, DeliveryOutcome.DELIVERED, status=200)
        (found,) = await seen(ledger, job_id)
        assert (found.state, found.tried, found.reason) == (DeliveryState.DELIVERED, 2, None)

    def test_one_that_waits_for_its_next_try_is_due_at_once(self, jobs: TimedJobs) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        (delivery,) = lease(jobs)
        record(jobs, delivery, DeliveryOutcome.FAILED, again_ms=DAY_MS)
        call = calls.redeliver(delivery.id, job_id=job_id, tenant=TENANT, now=jobs.now)
        assert jobs.run(call) is Redelivered.DUE
        assert [each.attempt for each in lease(jobs)] == [1]

    def test_a_delivery_of_another_caller_is_unknown(self, jobs: TimedJobs) -> None:
        permit(jobs)
        job_id, other = ended(jobs, webhook=Webhook(URL)), ended(jobs)
        (delivery,) = lease(jobs)
        before = jobs.everything()
        for delivery_id, job, tenant in (
            (delivery.id, job_id, "stranger"),
            (delivery.id, other, TENANT),
            (f"{other}.1.job", other, TENANT),
        ):
            call = calls.redeliver(delivery_id, job_id=job, tenant=tenant, now=jobs.now)
            assert jobs.run(call) is Redelivered.UNKNOWN
        assert jobs.everything() == before

    def test_nothing_is_due_to_a_disabled_subscription(self, jobs: TimedJobs) -> None:
        subscribe(jobs)
        job_id = ended(jobs)
        (delivery,) = lease(jobs)
        record(jobs, delivery, DeliveryOutcome.GONE, status=410)
        call = calls.redeliver(delivery.id, job_id=job_id, tenant=TENANT, now=jobs.now)
        assert jobs.run(call) is Redelivered.NOT_ENABLED


class TestDeletion:
    """Deleting a job deletes its deliveries."""

    @pytest.mark.parametrize("has_record", [True, False], ids=["in Redis", "in the history only"])
    async def test_a_deleted_job_has_no_deliveries(
        self, jobs: TimedJobs, ledger: AsyncLedger, has_record: bool
    ) -> None:
        permit(jobs)
        job_id = ended(jobs, webhook=Webhook(URL))
        (delivery,) = lease(jobs)
        if not has_record:
            jobs.redis.delete(jobs.key("job", job_id), jobs.key("log", job_id))
        assert jobs.run(calls.delete_job(job_id, tenant="stranger")) is Deleted.GONE
        assert len(await seen(ledger, job_id)) == 1, "a stranger deletes nothing"
        for _ in range(2):
            assert jobs.run(calls.delete_job(job_id, tenant=TENANT)) is Deleted.GONE
        assert record(jobs, delivery, DeliveryOutcome.DELIVERED, status=200) is AttemptResult.LOST
        assert not [key for key in jobs.everything() if job_id in key]
        for kind in ("targets", f"deliveries:{delivery.target}", f"leased:{delivery.target}"):
            assert jobs.redis.zcard(jobs.key(kind)) == 0

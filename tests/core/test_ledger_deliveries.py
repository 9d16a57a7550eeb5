"""The order of deliveries, and their leases."""

from __future__ import annotations

from typing import Any

import pytest
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Applied, AttemptResult, DeliveryOutcome
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.subscriptions import (
    DeliveryState,
    Webhook,
    WebhookEvent,
    target_of,
)

from tests.core.timed_jobs import TENANT, TOKEN, TimedJobs
from tests.core.timed_webhooks import (
    ALL,
    DAY_MS,
    LEASE_MS,
    URL,
    apply,
    ended,
    lease,
    permit,
    record,
    seen,
    subscribe,
)


class TestStarts:
    """`started` is delivered to receivers that ask for it, before the terminal event."""

    def test_a_start_is_not_delivered_unless_asked_for(self, jobs: TimedJobs) -> None:
        subscribe(jobs)
        subscribe(jobs, events=ALL, enabled=False)
        subscribe(jobs, events=ALL, tenant="stranger")
        jobs.running(webhook=Webhook(URL))
        assert jobs.outbox() == set()

    async def test_a_start_that_was_asked_for_is_delivered_first(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        job_id = jobs.running(webhook=Webhook(URL, ALL))
        (start,) = (await reads.pending_starts(ledger, [job_id]))[0]
        assert (start.event.value, start.event_id) == ("started", f"{job_id}:{start.seq}")
        assert jobs.outbox() == {job_id}
        assert jobs.run(calls.mark_applied(job_id, seq=start.seq, now=jobs.now)) is Applied.APPLIED
        assert jobs.run(calls.mark_applied(job_id, seq=start.seq, now=jobs.now)) is Applied.REPEATED
        assert jobs.outbox() == set()
        jobs.finish(job_id)
        assert jobs.outbox() == {job_id}
        apply(jobs, job_id)
        assert jobs.outbox() == set()
        assert [each.event.value for each in await seen(ledger, job_id)] == ["started", "completed"]

    async def test_a_subscription_may_ask_for_starts_too(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs, events=[WebhookEvent.STARTED])
        job_id = jobs.running()
        (start,) = (await reads.pending_starts(ledger, [job_id]))[0]
        apply(jobs, job_id, seq=start.seq)
        assert [each.recipient for each in await seen(ledger, job_id)] == [subscription_id]
        jobs.run(calls.unsubscribe(subscription_id, tenant=TENANT, now=jobs.now))
        assert await reads.pending_starts(ledger, [jobs.running()]) == [[]]

    async def test_each_attempt_is_a_start(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        job_id = jobs.running(webhook=Webhook(URL, ALL))
        jobs.retry(job_id, delay_ms=0)
        jobs.promote()
        jobs.start(job_id, token="again")
        first, second = (await reads.pending_starts(ledger, [job_id]))[0]
        apply(jobs, job_id, seq=second.seq)
        assert (await reads.pending_starts(ledger, [job_id]))[0] == [first]
        assert jobs.outbox() == {job_id}

    async def test_an_end_applied_before_its_start_waits_for_it(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        """As from a Broker, which guarantees no order."""
        job_id = jobs.running(webhook=Webhook(URL, ALL))
        (start,) = (await reads.pending_starts(ledger, [job_id]))[0]
        jobs.finish(job_id)
        end = apply(jobs, job_id)
        jobs.run(calls.mark_archived(end, seq=jobs.record(end).end_seq or 0, now=jobs.now))
        assert jobs.outbox() == {job_id}
        assert jobs.redis.pttl(jobs.key("job", job_id)) == -1, "its log is still needed"
        apply(jobs, job_id, seq=start.seq)
        assert jobs.outbox() == set()
        assert jobs.redis.pttl(jobs.key("job", job_id)) > 0

    def test_the_leases_of_a_start_do_not_delay_the_terminal_event(self, jobs: TimedJobs) -> None:
        job_id = jobs.running(webhook=Webhook(URL, ALL))
        jobs.lease(call="1")
        jobs.finish(job_id)
        assert jobs.lease(call="2") == [job_id], "due at once"
        assert jobs.redis.zscore(jobs.key("outbox"), job_id) == jobs.now + calls.RELAY_LEASE_MS


class TestOrder:
    """A recipient gets the events of one job in order; an event that is overtaken is dropped."""

    def started_and_completed(self, jobs: TimedJobs, **more: Any) -> str:
        """A job both of whose events are applied and due."""
        job_id = jobs.running(**more)
        apply(jobs, job_id, seq=2)
        jobs.finish(job_id)
        return apply(jobs, job_id)

    @pytest.mark.parametrize("outcome", [DeliveryOutcome.DELIVERED, DeliveryOutcome.FAILED, DeliveryOutcome.GONE])
    async def test_the_terminal_event_waits_for_the_attempt_of_the_start(
        self, jobs: TimedJobs, ledger: AsyncLedger, outcome: DeliveryOutcome
    ) -> None:
        permit(jobs)
        job_id = self.started_and_completed(jobs, webhook=Webhook(URL, ALL))
        (start,) = lease(jobs)
        assert start.event is WebhookEvent.STARTED
        assert lease(jobs, owner="another") == []
        record(jobs, start, outcome, again_ms=1000 if outcome is DeliveryOutcome.FAILED else None)
        (end,) = lease(jobs)
        assert end.event is WebhookEvent.COMPLETED
        jobs.now += 1000
        assert lease(jobs) == [], "a start that failed is not posted after the end"
        if outcome is DeliveryOutcome.FAILED:
            first, _ = await seen(ledger, job_id)
            assert (first.state, first.reason) == (DeliveryState.GIVEN_UP, "overtaken by a later event of the job")

    def test_a_start_whose_courier_died_is_posted_again_first(self, jobs: TimedJobs) -> None:
        permit(jobs)
        self.started_and_completed(jobs, webhook=Webhook(URL, ALL))
        lease(jobs, owner="dies")
        assert lease(jobs) == []
        jobs.now += LEASE_MS + 1
        (start,) = lease(jobs)
        assert start.event is WebhookEvent.STARTED
        record(jobs, start, DeliveryOutcome.DELIVERED, status=204)
        assert [each.event for each in lease(jobs)] == [WebhookEvent.COMPLETED]

    def test_many_starts_keep_their_order(self, jobs: TimedJobs) -> None:
        """Their numbers have one and two digits, and all are due at the same moment."""
        permit(jobs)
        job_id = jobs.running(webhook=Webhook(URL, ALL), max_attempts=20)
        seqs, token = [2], TOKEN
        for attempt in range(6):
            jobs.retry(job_id, delay_ms=0, token=token)
            jobs.promote()
            token = f"again-{attempt}"
            jobs.start(job_id, token=token)
            seqs.append(int(jobs.redis.hget(jobs.key("job", job_id), "seq")))
        for seq in seqs:
            apply(jobs, job_id, seq=seq)
        posted = []
        while leased := lease(jobs):
            (delivery,) = leased
            posted.append(delivery.seq)
            record(jobs, delivery, DeliveryOutcome.DELIVERED, status=204)
        assert posted == seqs

    def test_recipients_do_not_wait_for_each_other(self, jobs: TimedJobs) -> None:
        permit(jobs)
        subscription_id = subscribe(jobs, events=ALL)
        self.started_and_completed(jobs, webhook=Webhook(URL, ALL))
        starts = lease(jobs)
        assert {each.recipient for each in starts} == {"job", subscription_id}
        assert {each.event for each in starts} == {WebhookEvent.STARTED}
        of_job = next(each for each in starts if each.recipient == "job")
        record(jobs, of_job, DeliveryOutcome.DELIVERED, status=204)
        assert [(each.recipient, each.event) for each in lease(jobs)] == [("job", WebhookEvent.COMPLETED)]

    async def test_a_start_that_is_applied_after_the_end_is_not_delivered(
        self, jobs: TimedJobs, ledger: AsyncLedger
    ) -> None:
        job_id = jobs.running(webhook=Webhook(URL, ALL))
        jobs.finish(job_id)
        apply(jobs, job_id)
        apply(jobs, job_id, seq=2)
        assert [each.event for each in await seen(ledger, job_id)] == [WebhookEvent.COMPLETED]

    async def test_a_start_that_is_applied_after_a_later_one_is_not_delivered(
        self, jobs: TimedJobs, ledger: AsyncLedger
    ) -> None:
        job_id = jobs.running(webhook=Webhook(URL, ALL))
        jobs.retry(job_id, delay_ms=0)
        jobs.promote()
        jobs.start(job_id, token="again")
        first, second = (await reads.pending_starts(ledger, [job_id]))[0]
        apply(jobs, job_id, seq=second.seq)
        apply(jobs, job_id, seq=first.seq)
        assert [each.seq for each in await seen(ledger, job_id)] == [second.seq]
        assert (await reads.pending_starts(ledger, [job_id]))[0] == []


class TestLeases:
    """Which courier leases which deliveries, and how many."""

    def test_what_is_leased_has_one_owner_while_the_lease_lasts(self, jobs: TimedJobs) -> None:
        permit(jobs)
        ended(jobs, webhook=Webhook(URL))
        (first,) = lease(jobs, owner="one")
        jobs.now += LEASE_MS - 1
        assert lease(jobs, owner="two") == []
        jobs.now += 1
        (second,) = lease(jobs, owner="two")
        assert (second.id, second.number) == (first.id, 1)
        assert second.token != first.token
        assert record(jobs, first, DeliveryOutcome.FAILED, again_ms=1) is AttemptResult.LOST, "it is another's by now"
        assert record(jobs, first, DeliveryOutcome.DELIVERED, status=204) is AttemptResult.DELIVERED, (
            "what was leased in was"
        )
        assert record(jobs, second, DeliveryOutcome.FAILED, again_ms=1) is AttemptResult.LOST

    def test_the_leases_of_a_target_are_limited(self, jobs: TimedJobs) -> None:
        slow, quick = "https://slow.test/", "https://quick.test/"
        for url in (slow, quick):
            permit(jobs, url)
        for _ in range(5):
            ended(jobs, webhook=Webhook(slow))
        for _ in range(3):
            ended(jobs, webhook=Webhook(quick))
        leased = lease(jobs, per_target=2)
        assert sorted(each.url for each in leased) == [quick, quick, slow, slow]
        assert lease(jobs, per_target=2) == []
        record(jobs, next(each for each in leased if each.url == quick), DeliveryOutcome.DELIVERED, status=200)
        assert [each.url for each in lease(jobs, per_target=2)] == [quick]

    def test_targets_take_turns(self, jobs: TimedJobs) -> None:
        """One with a long backlog from long ago does not come first each time."""
        urls = [f"https://receiver-{number}.test/" for number in range(3)]
        for url in urls:
            permit(jobs, url)
            for _ in range(4):
                ended(jobs, webhook=Webhook(url))
            jobs.now += 1
        order = []
        for _ in range(6):
            (each,) = lease(jobs, limit=1)
            order.append(each.url)
            jobs.now += 1
        assert order == urls * 2

    def test_one_origin_is_one_target_for_each_tenant(self, jobs: TimedJobs) -> None:
        assert (
            target_of("a", "https://Host.test/x?y")
            == target_of("a", "https://host.test:443/z")
            == ("a@https://host.test:443")
        )
        assert target_of("a", "http://[::1]:8080/") == "a@http://[::1]:8080"
        assert target_of("a", "http://[0::0:1]:8080/") == "a@http://[::1]:8080"
        assert target_of("a", URL) != target_of("b", URL)

    def test_a_receiver_without_consent_gets_one_at_a_time(self, jobs: TimedJobs) -> None:
        for _ in range(3):
            ended(jobs, webhook=Webhook(URL))
        (first,) = lease(jobs)
        assert not first.is_permitted
        assert lease(jobs) == []
        permit(jobs)
        others = lease(jobs)
        assert [each.is_permitted for each in others] == [True, True]
        jobs.now += DAY_MS
        assert not any(each.is_permitted for each in lease(jobs)), "a consent is not relied on for ever"

    def test_the_granted_rate_is_respected(self, jobs: TimedJobs) -> None:
        permit(jobs, rate=30)
        for _ in range(100):
            ended(jobs, webhook=Webhook(URL))
        posted: list[int] = []
        for number in range(180_000 // 500):
            call = calls.lease_deliveries(owner="courier", call=str(number), limit=100, per_target=100, now=jobs.now)
            for each in jobs.run(call):
                posted.append(jobs.now)
                jobs.run(calls.record_attempt(each, outcome=DeliveryOutcome.DELIVERED, now=jobs.now))
            jobs.now += 500
        busiest = max(sum(begin <= at < begin + 60_000 for at in posted) for begin in posted)
        assert busiest <= 30
        assert len(posted) >= 85, "and it is used"

    def test_a_target_that_granted_no_rate_gets_the_couriers_rate(self, jobs: TimedJobs) -> None:
        """A hundred events are due at one moment to ten addresses of one origin."""
        permit(jobs)
        for _ in range(100):
            ended(jobs, webhook=Webhook(URL))
        posted = []
        began = jobs.now
        while jobs.now < began + 3000:
            for each in lease(jobs, rate=600):
                record(jobs, each, DeliveryOutcome.DELIVERED, status=204)
                posted.append(jobs.now - began)
            jobs.now += 50
        assert len([at for at in posted if at < 1000]) <= 20, "ten a second, and a burst of a second"
        assert 25 <= len(posted) <= 40

    def test_a_target_that_fails_gets_one_at_a_time_until_it_accepts_one(self, jobs: TimedJobs) -> None:
        permit(jobs)
        for _ in range(8):
            ended(jobs, webhook=Webhook(URL))
        for each in lease(jobs, per_target=3):
            record(jobs, each, DeliveryOutcome.FAILED, again_ms=DAY_MS)
        (probe,) = lease(jobs, per_target=3)
        assert lease(jobs, per_target=3) == []
        record(jobs, probe, DeliveryOutcome.DELIVERED, status=200)
        assert len(lease(jobs, per_target=3)) == 3

    def test_a_target_that_asks_for_a_pause_gets_it(self, jobs: TimedJobs) -> None:
        permit(jobs)
        for _ in range(2):
            ended(jobs, webhook=Webhook(URL))
        (first,) = lease(jobs, limit=1)
        record(jobs, first, DeliveryOutcome.FAILED, status=429, again_ms=90_000, pause_ms=90_000)
        jobs.now += 89_999
        assert lease(jobs) == []
        jobs.now += 1
        assert len(lease(jobs)) == 2

    def test_a_new_address_gets_the_open_deliveries(self, jobs: TimedJobs) -> None:
        subscription_id = subscribe(jobs)
        ended(jobs)
        elsewhere = "https://elsewhere.test/hook"
        permit(jobs, elsewhere)
        change = calls.subscribe(subscription_id, tenant=TENANT, url=elsewhere, events=ALL, now=jobs.now)
        jobs.run(change)
        assert lease(jobs) == []
        assert [each.url for each in lease(jobs)] == [elsewhere]

    async def test_open_deliveries_to_a_deleted_subscription_are_given_up(
        self, jobs: TimedJobs, ledger: AsyncLedger
    ) -> None:
        deleted, disabled = subscribe(jobs), subscribe(jobs)
        job_id = ended(jobs)
        jobs.run(calls.unsubscribe(deleted, tenant=TENANT, now=jobs.now))
        jobs.run(calls.subscribe(disabled, tenant=TENANT, url=URL, events=ALL, enabled=False, now=jobs.now))
        assert lease(jobs) == []
        reasons = {each.recipient: (each.state, each.reason) for each in await seen(ledger, job_id)}
        assert reasons == {
            deleted: (DeliveryState.GIVEN_UP, "its subscription was deleted"),
            disabled: (DeliveryState.GIVEN_UP, "its subscription is disabled"),
        }
        assert jobs.redis.zcard(jobs.key("targets")) == 0

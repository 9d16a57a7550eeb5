"""Webhook subscriptions, and the deliveries that an applied event creates for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from darkroom.jobs import State, new_job_id
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Applied, DeliveryOutcome, Subscribed
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.subscriptions import (
    DEFAULT_EVENTS,
    MAX_PER_TARGET,
    MAX_SUBSCRIPTIONS,
    Delivery,
    DeliveryState,
    Subscription,
    SubscriptionState,
    Webhook,
    WebhookEvent,
    new_subscription_id,
)

from tests.core.timed_jobs import TENANT, TimedJobs
from tests.core.timed_webhooks import ALL, URL, apply, ended, lease, permit, record, seen, subscribe, subscription


class TestSubscriptions:
    """What a tenant registers."""

    async def test_a_subscription_is_stored_as_it_was_created(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs, models=["sd", "flux"], events=[WebhookEvent.FAILED, WebhookEvent.STARTED])
        permit(jobs, rate=30)
        assert await subscription(ledger, subscription_id) == Subscription(
            id=subscription_id,
            tenant=TENANT,
            url=URL,
            events=frozenset({WebhookEvent.STARTED, WebhookEvent.FAILED}),
            models=("sd", "flux"),
            state=SubscriptionState.ENABLED,
            reason=None,
            created=jobs.now,
            changed=jobs.now,
            generation=1,
            rotated=None,
            failing_since=None,
            validated=jobs.now,
            allowed_rate=30,
        )

    async def test_a_tenants_subscriptions_are_listed_the_oldest_first(
        self, jobs: TimedJobs, ledger: AsyncLedger
    ) -> None:
        mine = []
        for _ in range(3):
            mine.append(subscribe(jobs))
            jobs.now += 1
        theirs = subscribe(jobs, tenant="stranger of note")
        assert [each.id for each in await reads.subscriptions(ledger, TENANT)] == mine
        assert [each.id for each in await reads.subscriptions(ledger, "stranger of note")] == [theirs]
        assert await reads.subscription(ledger, theirs, tenant=TENANT) is None

    def test_a_repeated_creation_changes_nothing(self, jobs: TimedJobs) -> None:
        subscription_id = subscribe(jobs)
        before = jobs.everything()
        again = calls.subscribe(
            subscription_id, tenant=TENANT, url="https://elsewhere.test/", events=ALL, create=True, now=jobs.now + 1
        )
        assert jobs.run(again) is Subscribed.CREATED
        assert jobs.everything() == before

    def test_a_missing_one_or_another_tenants_is_unknown(self, jobs: TimedJobs) -> None:
        subscription_id = subscribe(jobs)
        before = jobs.everything()
        for name, tenant in ((new_subscription_id(jobs.now), TENANT), (subscription_id, "stranger")):
            change = calls.subscribe(name, tenant=tenant, url=URL, events=ALL, now=jobs.now)
            assert jobs.run(change) is Subscribed.UNKNOWN
            assert jobs.run(calls.rotate_secret(name, tenant=tenant, generation=1, now=jobs.now)) is None
            assert not jobs.run(calls.unsubscribe(name, tenant=tenant, now=jobs.now))
        assert jobs.everything() == before

    def test_subscriptions_of_a_tenant_are_limited(self, jobs: TimedJobs) -> None:
        ids = [subscribe(jobs, f"https://{number}.receiver.test/") for number in range(MAX_SUBSCRIPTIONS)]
        one_more = calls.subscribe(
            new_subscription_id(jobs.now), tenant=TENANT, url=URL, events=ALL, create=True, now=jobs.now
        )
        assert jobs.run(one_more) is Subscribed.FULL
        jobs.run(calls.unsubscribe(ids[0], tenant=TENANT, now=jobs.now))
        assert jobs.run(one_more) is Subscribed.CREATED

    def test_subscriptions_of_an_origin_are_limited(self, jobs: TimedJobs) -> None:
        one, *_ = [subscribe(jobs, f"{URL}/{number}") for number in range(MAX_PER_TARGET)]
        elsewhere = subscribe(jobs, "https://another.test/")

        def answer(subscription_id: str, **said: Any) -> Subscribed:
            return jobs.run(calls.subscribe(subscription_id, tenant=TENANT, **said, now=jobs.now))

        more = {"url": f"{URL}/more", "events": DEFAULT_EVENTS, "create": True}
        before = jobs.everything()
        assert answer(new_subscription_id(jobs.now), **more) is Subscribed.TARGET_FULL
        assert answer(elsewhere, url=f"{URL}/more") is Subscribed.TARGET_FULL
        assert jobs.everything() == before
        assert answer(one, url=f"{URL}/another") is Subscribed.CHANGED
        jobs.run(calls.unsubscribe(one, tenant=TENANT, now=jobs.now))
        assert answer(elsewhere, url=f"{URL}/more") is Subscribed.CHANGED

    async def test_enabling_removes_the_reason_and_the_failures(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs)
        ended(jobs)
        (delivery,) = lease(jobs)
        record(jobs, delivery, DeliveryOutcome.GONE, status=410)
        jobs.now += 1
        change = calls.subscribe(subscription_id, tenant=TENANT, enabled=True, now=jobs.now)
        assert jobs.run(change) is Subscribed.CHANGED
        found = await subscription(ledger, subscription_id)
        assert (found.state, found.reason, found.changed) == (SubscriptionState.ENABLED, None, jobs.now)
        assert jobs.run(calls.lease_notices(owner="c", call="1", limit=9, now=jobs.now)) == []

    async def test_a_change_keeps_the_reason_of_one_that_has_ended(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs)
        ended(jobs)
        (delivery,) = lease(jobs)
        record(jobs, delivery, DeliveryOutcome.GONE, status=410)
        change = calls.subscribe(subscription_id, tenant=TENANT, url=URL, events=ALL, enabled=False, now=jobs.now + 1)
        jobs.run(change)
        found = await subscription(ledger, subscription_id)
        assert (found.state, found.reason) == (SubscriptionState.ENDED, "its receiver answered 410")
        assert found.events == ALL

    async def test_fields_that_are_not_given_stay(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs, models=["sd"])
        before = await subscription(ledger, subscription_id)
        change = calls.subscribe(subscription_id, tenant=TENANT, events=ALL, now=jobs.now + 1)
        assert jobs.run(change) is Subscribed.CHANGED
        assert await subscription(ledger, subscription_id) == replace(before, events=ALL)

    async def test_a_secret_is_rotated_once_for_each_generation(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        subscription_id = subscribe(jobs)
        jobs.now += 5
        for _ in range(2):
            call = calls.rotate_secret(subscription_id, tenant=TENANT, generation=1, now=jobs.now)
            assert jobs.run(call) == 2
        found = await subscription(ledger, subscription_id)
        assert (found.generation, found.rotated) == (2, jobs.now)


class TestStored:
    """Which deliveries an applied event leaves."""

    async def test_a_jobs_own_webhook_gets_its_terminal_event(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        job_id = ended(jobs, webhook=Webhook(URL))
        end = jobs.record(job_id).end_seq
        (delivery,) = await seen(ledger, job_id)
        assert delivery == Delivery(
            id=f"{job_id}.{end}.job",
            job_id=job_id,
            seq=end or 0,
            event=WebhookEvent.COMPLETED,
            recipient="job",
            tenant=TENANT,
            url=URL,
            state=DeliveryState.OPEN,
            reason=None,
            created=jobs.now,
            ended=None,
            due=jobs.now,
            tried=0,
            tries=(),
        )
        assert await reads.delivery(ledger, delivery.id, job_id=job_id, tenant=TENANT) == delivery
        assert await reads.delivery(ledger, delivery.id, job_id=job_id, tenant="stranger") is None
        assert await reads.delivery(ledger, delivery.id, job_id=new_job_id(jobs.now), tenant=TENANT) is None
        assert await reads.deliveries(ledger, job_id, tenant="stranger") == []
        assert jobs.record(job_id).webhook == Webhook(URL)

    async def test_each_subscription_gets_the_events_it_asks_for(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        wanting = subscribe(jobs)
        of_this_model = subscribe(jobs, models=["flux", "sd"])
        subscribe(jobs, models=["flux"])
        subscribe(jobs, events=[WebhookEvent.FAILED])
        subscribe(jobs, tenant="stranger")
        subscribe(jobs, enabled=False)
        job_id = ended(jobs, webhook=Webhook(URL, frozenset({WebhookEvent.FAILED})))
        assert {each.recipient for each in await seen(ledger, job_id)} == {wanting, of_this_model}

    @pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED])
    async def test_every_terminal_event_can_be_subscribed_to(
        self, jobs: TimedJobs, ledger: AsyncLedger, state: State
    ) -> None:
        job_id = jobs.submit(start_deadline=jobs.now + 1, webhook=Webhook(URL, frozenset({WebhookEvent(state)})))
        if state is State.EXPIRED:
            jobs.now += 1
            jobs.expire()
        elif state is State.CANCELLED:
            jobs.cancel(job_id)
        else:
            jobs.start(job_id)
            jobs.finish(job_id, outcome=state)
        apply(jobs, job_id)
        assert [each.event.value for each in await seen(ledger, job_id)] == [state]

    async def test_a_repeated_event_creates_no_delivery(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        job_id = ended(jobs, webhook=Webhook(URL))
        before = jobs.everything()
        again = calls.mark_applied(job_id, seq=jobs.record(job_id).end_seq or 0, now=jobs.now + 1)
        assert jobs.run(again) is Applied.REPEATED
        assert jobs.everything() == before

    def test_the_courier_is_woken(self, jobs: TimedJobs) -> None:
        job_id = jobs.running(webhook=Webhook(URL))
        jobs.finish(job_id)
        with jobs.redis.pubsub() as heard:
            heard.subscribe(jobs.key("wake"))
            assert heard.get_message(timeout=60)["type"] == "subscribe"
            apply(jobs, job_id)
            assert heard.get_message(timeout=60)["data"] == b"deliveries"

"""Subscriptions, the deliveries that an applied event creates, their order, attempts and outcomes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from darkroom.jobs import State, new_job_id
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Applied, AttemptResult, Deleted, DeliveryOutcome, Redelivered, Subscribed
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.subscriptions import (
    DEFAULT_EVENTS,
    FAILING_LIMIT_MS,
    MAX_PER_TARGET,
    MAX_SUBSCRIPTIONS,
    Delivery,
    DeliveryState,
    LeasedDelivery,
    Subscription,
    SubscriptionState,
    Webhook,
    WebhookEvent,
    new_subscription_id,
    target_of,
)

from tests.core.timed_jobs import TENANT, TOKEN, TimedJobs

URL = "https://receiver.test/hook"
ALL = frozenset(WebhookEvent)
LEASE_MS = calls.DELIVERY_LEASE_MS
DAY_MS = 24 * 3600 * 1000
_calls = itertools.count()


def subscribe(jobs: TimedJobs, url: str = URL, **more: Any) -> str:
    """A subscription that has given its consent, so that nothing waits for that."""
    subscription_id = new_subscription_id(jobs.now)
    said: dict[str, Any] = {"tenant": TENANT, "url": url, "events": DEFAULT_EVENTS, "create": True, **more}
    assert jobs.run(calls.subscribe(subscription_id, **said, now=jobs.now)) is Subscribed.CREATED
    permit(jobs, url, tenant=said["tenant"])
    return subscription_id


def permit(jobs: TimedJobs, url: str = URL, *, rate: int | None = None, tenant: str = TENANT) -> None:
    jobs.run(calls.set_rate_limit(target_of(tenant, url), rate=rate, now=jobs.now))


def ended(jobs: TimedJobs, **more: Any) -> str:
    """A completed job whose terminal event is applied."""
    job_id = jobs.running(**more)
    jobs.finish(job_id)
    return apply(jobs, job_id)


def apply(jobs: TimedJobs, job_id: str, *, seq: int | None = None) -> str:
    seq = seq or jobs.record(job_id).end_seq or 0
    assert jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now)) is Applied.APPLIED
    return job_id


def lease(
    jobs: TimedJobs, *, limit: int = 100, per_target: int = 100, rate: int | None = None, owner: str = "courier"
) -> list[LeasedDelivery]:
    call = calls.lease_deliveries(
        owner=owner, call=f"call-{next(_calls)}", limit=limit, per_target=per_target, rate=rate, now=jobs.now
    )
    leased = jobs.run(call)
    before = jobs.everything()
    assert jobs.run(call) == leased, "a repeated call gets the same"
    assert jobs.everything() == before
    return leased


def record(jobs: TimedJobs, delivery: LeasedDelivery, outcome: DeliveryOutcome, **more: Any) -> AttemptResult:
    call = calls.record_attempt(delivery, outcome=outcome, now=jobs.now, **more)
    answer = jobs.run(call)
    before = jobs.everything()
    assert jobs.run(call) is answer
    assert jobs.everything() == before
    return answer


async def seen(ledger: AsyncLedger, job_id: str) -> list[Delivery]:
    return await reads.deliveries(ledger, job_id, tenant=TENANT)


async def subscription(ledger: AsyncLedger, subscription_id: str) -> Subscription:
    found = await reads.subscription(ledger, subscription_id, tenant=TENANT)
    assert found is not None
    return found


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


class TestTurns:
    """Who gets what to post, and how much of it."""

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


class TestTries:
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


class TestForgotten:
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

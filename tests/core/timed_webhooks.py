"""Subscriptions and deliveries that a test of the ledger drives by hand, beside `timed_jobs.py`."""

from __future__ import annotations

import itertools
from typing import Any

from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Applied, AttemptResult, DeliveryOutcome, Subscribed
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.subscriptions import (
    DEFAULT_EVENTS,
    Delivery,
    LeasedDelivery,
    Subscription,
    WebhookEvent,
    new_subscription_id,
    target_of,
)

from tests.core.timed_jobs import TENANT, TimedJobs

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

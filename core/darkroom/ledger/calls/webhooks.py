"""Calls of webhook subscriptions and deliveries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

from darkroom.jobs import read_value
from darkroom.ledger.calls.call import Call, ids, make_call, word
from darkroom.webhooks.subscriptions import (
    FAILING_LIMIT_MS,
    MAX_PER_TARGET,
    MAX_SUBSCRIPTIONS,
    LeasedDelivery,
    SubscriptionState,
    WebhookEvent,
    in_order,
    target_of,
)

DELIVERY_LEASE_MS = 60_000
"""Lease of a delivery, longer than an attempt may take: after it the delivery is leased again."""

NOTICE_LEASE_MS = 30_000
"""A notice that was leased and that the sink did not accept is posted again after this."""


class Subscribed(StrEnum):
    """The result of creating or changing a subscription. `FULL`: the tenant has the maximum number of them.
    `TARGET_FULL`: the maximum number of them lead to this origin.
    """

    CREATED = "created"
    CHANGED = "changed"
    UNKNOWN = "unknown"
    FULL = "full"
    TARGET_FULL = "target_full"


class DeliveryOutcome(StrEnum):
    """The outcome of an attempt to deliver. `GONE`: the receiver answered 410. `PUT_OFF`: there was no attempt."""

    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"
    PUT_OFF = "put_off"


class AttemptResult(StrEnum):
    """What follows from an attempt. `DISABLED` and `ENDED` are returned once, about the subscription. `LOST`: the
    attempt was recorded before or another courier has the lease; nothing changed.
    """

    DELIVERED = "delivered"
    AGAIN = "again"
    GIVEN_UP = "given_up"
    DISABLED = "disabled"
    ENDED = "ended"
    LOST = "lost"


class Redelivered(StrEnum):
    """The result of requesting a delivery again. `OPEN`: it is being posted. `NOT_ENABLED`: its subscription is not
    enabled.
    """

    DUE = "due"
    OPEN = "open"
    NOT_ENABLED = "not_enabled"
    UNKNOWN = "unknown"


def subscribe(
    subscription_id: str,
    *,
    tenant: str,
    url: str | None = None,
    events: Collection[WebhookEvent] | None = None,
    models: Sequence[str] | None = None,
    enabled: bool | None = None,
    create: bool = False,
    now: int | None = None,
) -> Call[Subscribed]:
    """Create a subscription (`create`, which needs `url` and `events`), or change the given fields of an existing one.

    Enabling a subscription deletes the reason why it was disabled or had ended. A repeated creation returns the same.
    """
    if create:
        models, enabled = models or (), enabled is not False
    state = None if enabled is None else SubscriptionState.ENABLED if enabled else SubscriptionState.DISABLED
    return make_call(
        "subscribe",
        word(Subscribed),
        subscription=subscription_id,
        tenant=tenant,
        url=url,
        target=None if url is None else target_of(tenant, url),
        events=None if events is None else " ".join(in_order(events)),
        models=None if models is None else " ".join(models),
        state=state,
        create=1 if create else None,
        most=MAX_SUBSCRIPTIONS,
        most_per_target=MAX_PER_TARGET,
        now=now,
    )


def rotate_secret(subscription_id: str, *, tenant: str, generation: int, now: int | None = None) -> Call[int | None]:
    """Replace the subscription's secret `generation` by the next one. Returns the generation that is valid then:
    `generation` + 1, or the current one where another rotation came first; None for a subscription that the tenant does
    not have.
    """
    return make_call(
        "rotate_secret",
        lambda reply: int(reply) or None,
        subscription=subscription_id,
        tenant=tenant,
        generation=generation,
        now=now,
    )


def unsubscribe(subscription_id: str, *, tenant: str, now: int | None = None) -> Call[bool]:
    """Delete the subscription; its open deliveries are given up. False: there was none."""
    return make_call("unsubscribe", bool, subscription=subscription_id, tenant=tenant, now=now)


def lease_deliveries(
    *,
    owner: str,
    call: str,
    limit: int,
    per_target: int,
    rate: int | None = None,
    lease_ms: int = DELIVERY_LEASE_MS,
    now: int | None = None,
) -> Call[list[LeasedDelivery]]:
    """Lease up to `limit` due deliveries to `owner`, at most `per_target` of one target at a time. `call` identifies
    this call, and is the token of its leases. `rate`: requests per minute to a target that granted no rate.
    """
    return make_call(
        "lease_deliveries",
        lambda reply: [_leased(row, call) for row in reply],
        owner=owner,
        call=call,
        limit=limit,
        per_target=per_target,
        rate=rate,
        lease_ms=lease_ms,
        now=now,
    )


def _leased(row: list[bytes], token: str) -> LeasedDelivery:
    delivery, job, seq, event, recipient, tenant, url, target, number, attempt, generation, rotated, permitted = (
        value.decode() for value in row
    )
    return LeasedDelivery(
        id=delivery,
        job_id=job,
        seq=int(seq),
        event=read_value(WebhookEvent, event),
        recipient=recipient,
        tenant=tenant,
        url=url,
        target=target,
        number=int(number),
        attempt=int(attempt),
        generation=int(generation),
        rotated=int(rotated) or None,
        is_permitted=permitted == "1",
        token=token,
    )


def record_attempt(
    delivery: LeasedDelivery,
    *,
    outcome: DeliveryOutcome,
    took_ms: int = 0,
    status: int | None = None,
    error: str | None = None,
    again_ms: int | None = None,
    pause_ms: int = 0,
    now: int | None = None,
) -> Call[AttemptResult]:
    """Record an attempt to deliver. `again_ms`: the delay of the next attempt, unless it was delivered; None: it is
    given up. `pause_ms`: how long nothing is posted to its target.
    """
    return make_call(
        "record_attempt",
        word(AttemptResult),
        delivery=delivery.id,
        token=delivery.token,
        number=delivery.number,
        outcome=outcome,
        took_ms=took_ms,
        status=status,
        error=error,
        again_ms=again_ms,
        pause_ms=pause_ms,
        failing_limit_ms=FAILING_LIMIT_MS,
        now=now,
    )


def set_rate_limit(target: str, *, rate: int | None, now: int | None = None) -> Call[str]:
    """Record that the target's receiver gave its consent and granted `rate` requests per minute (None: no limit)."""
    return make_call("set_rate_limit", bytes.decode, target=target, rate=rate, now=now)


def redeliver(delivery_id: str, *, job_id: str, tenant: str, now: int | None = None) -> Call[Redelivered]:
    """Make the delivery due at once, to the current address of its subscription, with a new schedule."""
    return make_call("redeliver", word(Redelivered), delivery=delivery_id, job=job_id, tenant=tenant, now=now)


def lease_notices(
    *, owner: str, call: str, limit: int, lease_ms: int = NOTICE_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Lease up to `limit` subscriptions that were disabled or ended, as `lease_relays` does. Returns their ids."""
    return make_call(
        "lease_outbox", ids, kind="notice", owner=owner, call=call, limit=limit, lease_ms=lease_ms, now=now
    )


def reschedule_notice(subscription_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The sink did not accept the notice of this subscription: it is due again in `delay_ms`."""
    return make_call("reschedule", int, kind="notice", job=subscription_id, delay_ms=delay_ms, now=now)


def ack_notice(subscription_id: str, *, changed: int, now: int | None = None) -> Call[bool]:
    """Record that the sink accepted the notice of the subscription's state since `changed`. False: it has changed
    since.
    """
    return make_call("ack_notice", bool, subscription=subscription_id, changed=changed, now=now)

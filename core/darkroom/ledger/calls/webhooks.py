"""Calls of webhook subscriptions and deliveries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

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
"""A delivery that a courier took, and said nothing of for so long, is tried again: longer than a try may take."""

NOTICE_LEASE_MS = 30_000
"""A notice that a courier took, and the sink did not, is posted again after this."""


class Subscribed(StrEnum):
    """What the ledger says to a subscription. `FULL`: the tenant has as many as there may be. `TARGET_FULL`: as many of
    them lead to this origin as may.
    """

    CREATED = "created"
    CHANGED = "changed"
    UNKNOWN = "unknown"
    FULL = "full"
    TARGET_FULL = "target_full"


class DeliveryOutcome(StrEnum):
    """How a try to deliver ended. `GONE`: the receiver wants nothing more (410). `PUT_OFF`: there was no try."""

    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"
    PUT_OFF = "put_off"


class AttemptResult(StrEnum):
    """What follows from a try. `DISABLED` and `ENDED` are said once, of the subscription. `LOST`: it was settled before
    or is somebody else's by now, and nothing changed.
    """

    DELIVERED = "delivered"
    AGAIN = "again"
    GIVEN_UP = "given_up"
    DISABLED = "disabled"
    ENDED = "ended"
    LOST = "lost"


class Redelivered(StrEnum):
    """What the ledger says to a delivery that is asked for anew. `OPEN`: it is being posted just now. `NOT_ENABLED`:
    its subscription is none that takes anything.
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
    """Register an address (`create`: its `url` and `events` are needed then), or change what is said here of the one
    that is registered under this id.

    To enable one that was disabled or has ended forgets why it was. Repeating a creation answers as the first did.
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
    """The subscription's secret `generation` is followed by the next. Answers the one that is valid then: `generation`
    + 1, or what it was already where another rotation came first; None for a subscription that the tenant has not.
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
    """The subscription goes; what is still to be delivered to it is given up. False: there was none."""
    return make_call("unsubscribe", bool, subscription=subscription_id, tenant=tenant, now=now)


def lease_deliveries(
    *,
    taker: str,
    call: str,
    limit: int,
    per_target: int,
    rate: int | None = None,
    lease_ms: int = DELIVERY_LEASE_MS,
    now: int | None = None,
) -> Call[list[LeasedDelivery]]:
    """Up to `limit` deliveries that are due, at most `per_target` at a time of one target, leased to `taker`. `call`
    names this call, and is the token of what it takes. `rate`: so many a minute to a target that granted no rate.
    """
    return make_call(
        "lease_deliveries",
        lambda reply: [_taken(row, call) for row in reply],
        taker=taker,
        call=call,
        limit=limit,
        per_target=per_target,
        rate=rate,
        lease_ms=lease_ms,
        now=now,
    )


def _taken(row: list[bytes], token: str) -> LeasedDelivery:
    delivery, job, seq, event, recipient, tenant, url, target, number, attempt, generation, rotated, permitted = (
        value.decode() for value in row
    )
    return LeasedDelivery(
        id=delivery,
        job_id=job,
        seq=int(seq),
        event=WebhookEvent(event),
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
    """A try ended. `again_ms`: after how long it is tried again, unless it was delivered; None: it is given up.
    `pause_ms`: for so long nothing is posted to its target.
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
    """The target's receiver was asked for its consent, and granted `rate` requests a minute; None: it named none."""
    return make_call("set_rate_limit", bytes.decode, target=target, rate=rate, now=now)


def redeliver(delivery_id: str, *, job_id: str, tenant: str, now: int | None = None) -> Call[Redelivered]:
    """The delivery is due at once, to the address that its subscription has now, and its schedule begins anew."""
    return make_call("redeliver", word(Redelivered), delivery=delivery_id, job=job_id, tenant=tenant, now=now)


def lease_notices(
    *, taker: str, call: str, limit: int, lease_ms: int = NOTICE_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Up to `limit` subscriptions that were disabled or ended, which the sink is to be told of. As `take_relays`."""
    return make_call(
        "lease_outbox", ids, kind="notice", taker=taker, call=call, limit=limit, lease_ms=lease_ms, now=now
    )


def reschedule_notice(subscription_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The sink did not take the notice of this subscription: it is due again in `delay_ms`."""
    return make_call("reschedule", int, kind="notice", job=subscription_id, delay_ms=delay_ms, now=now)


def ack_notice(subscription_id: str, *, changed: int, now: int | None = None) -> Call[bool]:
    """The sink has taken the notice of the subscription's state as it was since `changed`. False: it is another now."""
    return make_call("ack_notice", bool, subscription=subscription_id, changed=changed, now=now)

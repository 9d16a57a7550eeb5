"""Reads of webhook subscriptions and of deliveries."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import decode_delivery, decode_subscription, pairs
from darkroom.webhooks.subscriptions import Delivery, Subscription, is_delivery_id, target_of


async def subscription(ledger: AsyncLedger, subscription_id: str, *, tenant: str | None) -> Subscription | None:
    """The subscription, or None if there is none, or none of this tenant (None: of any, for darkroom's own parts)."""
    (found,) = await _subscriptions(ledger, [subscription_id])
    return found if found is not None and tenant in {None, found.tenant} else None


async def subscriptions(ledger: AsyncLedger, tenant: str) -> list[Subscription]:
    """All of the tenant's subscriptions, the oldest first: there are at most `MAX_SUBSCRIPTIONS`."""
    raw = await ledger.ask("ZRANGE", ledger.keys.subscriptions(tenant), 0, -1)
    return [found for found in await _subscriptions(ledger, [item.decode() for item in raw]) if found is not None]


async def deliveries(ledger: AsyncLedger, job_id: str, *, tenant: str) -> list[Delivery]:
    """The deliveries of the job, in the order of its events, as long as Redis stores them."""
    raw = await ledger.ask("ZRANGE", ledger.keys.deliveries_of(job_id), 0, -1)
    found = await _deliveries(ledger, [item.decode() for item in raw])
    return sorted((each for each in found if each.tenant == tenant), key=lambda each: (each.seq, each.recipient))


async def delivery(ledger: AsyncLedger, delivery_id: str, *, job_id: str, tenant: str) -> Delivery | None:
    """One delivery of the job, or None if there is none, or none of this tenant."""
    if not is_delivery_id(delivery_id, job_id=job_id):
        return None
    return next((each for each in await _deliveries(ledger, [delivery_id]) if each.tenant == tenant), None)


async def _subscriptions(ledger: AsyncLedger, ids: Sequence[str]) -> list[Subscription | None]:
    replies = await ledger.ask_each([("HGETALL", ledger.keys.subscription(each)) for each in ids])
    records = [pairs(reply) for reply in replies]
    targets = [target_of(raw["tenant"], raw["url"]) if raw else "" for raw in records]
    about = await ledger.ask_each([("HGETALL", ledger.keys.target(target)) for target in targets])
    return [
        decode_subscription(raw, pairs(target)) if raw else None for raw, target in zip(records, about, strict=True)
    ]


async def _deliveries(ledger: AsyncLedger, ids: Sequence[str]) -> list[Delivery]:
    replies = await ledger.ask_each([("HGETALL", ledger.keys.delivery(each)) for each in ids])
    records = [(each, pairs(reply)) for each, reply in zip(ids, replies, strict=True) if reply]
    dues = await ledger.ask_each([("ZSCORE", ledger.keys.deliveries(raw["target"]), each) for each, raw in records])
    return [
        decode_delivery(each, raw, None if due is None else int(float(due)))
        for (each, raw), due in zip(records, dues, strict=True)
    ]

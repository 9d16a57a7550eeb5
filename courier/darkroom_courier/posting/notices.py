"""Notices: an event to the sink for each subscription that was disabled, or has ended, without a request of its owner.

`record_attempt` adds such a subscription to the notices; `ack_notice` removes it when the sink has accepted the event.
The operator of the system routes these events from the Broker to where the owners read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.cloudevents.event import Event
from darkroom.ledger import calls, reads
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.times import iso
from darkroom.webhooks.subscriptions import Subscription, SubscriptionState

from darkroom_courier.posting.loop import Leased, PostingLoop
from darkroom_courier.posting.sink import Sink
from darkroom_courier.settings import CourierSettings

TYPE_PREFIX = "dev.darkroom.subscription."
"""After it stands the new state: `disabled` or `ended`."""

_log = logger(__name__)


class Notices(PostingLoop[Subscription]):
    """Posts one notice at a time: there are few."""

    failure_event = "notice_failed"

    def __init__(self, ledger: AsyncLedger, sink: Sink, settings: CourierSettings, *, owner: str) -> None:
        super().__init__(concurrency=1, idle_s=settings.poll_interval_s)
        self._ledger = ledger
        self._sink = sink
        self._source = settings.public_url
        self._owner = owner

    async def _lease(self, *, call: str, limit: int) -> Leased[Subscription]:
        leased = await self._ledger.run(calls.lease_notices(owner=self._owner, call=call, limit=limit))
        subscriptions = [await reads.subscription(self._ledger, each, tenant=None) for each in leased]
        changed = {
            subscription.id: subscription
            for subscription in subscriptions
            if subscription is not None and subscription.state is not SubscriptionState.ENABLED
        }
        return Leased(changed, may_be_more=bool(leased))

    async def _post(self, item: Subscription) -> None:
        refusal = await self._sink.post(notice_event(item, source=self._source, extensions=self._sink.extensions))
        if refusal is None:
            await self._ledger.run(calls.ack_notice(item.id, changed=item.changed))
            _log.info("noticed", subscription=item.id, state=item.state.value)
            return
        age_ms = await reads.now(self._ledger) - item.changed
        delay_s = self._sink.pause_after(refusal, age_s=age_ms / 1000, subscription=item.id)
        await self._ledger.run(calls.reschedule_notice(item.id, delay_ms=round(delay_s * 1000)))

    def _log_fields(self, item: Subscription) -> Mapping[str, Any]:
        return {"subscription": item.id}


def notice_event(subscription: Subscription, *, source: str, extensions: Mapping[str, str]) -> Event:
    """The CloudEvent of a subscription's new state. It leaves out the address, which may hold secrets of the owner."""
    return Event(
        id=f"{subscription.id}:{subscription.changed}",
        source=source,
        type=TYPE_PREFIX + subscription.state,
        subject=subscription.id,
        time=iso(subscription.changed),
        datacontenttype="application/json",
        extensions={"tenant": subscription.tenant, **extensions},
        data={
            "subscription_id": subscription.id,
            "state": subscription.state.value,
            "reason": subscription.reason,
            "failing_since": None if subscription.failing_since is None else iso(subscription.failing_since),
        },
    )

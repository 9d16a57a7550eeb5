"""Notices: the sink is told of subscriptions that were disabled, or have ended, without their owner's doing.

`settle` puts such a subscription among the notices; it leaves them when the sink has taken the event. Whoever runs the
system routes it from the Broker to where owners read.
"""

from __future__ import annotations

from uuid import uuid4

from darkroom.cloudevents.event import Event
from darkroom.ledger import calls
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.times import iso
from darkroom.webhooks.subscriptions import Subscription, SubscriptionState

from darkroom_courier.posting.relay import SINK, back_off
from darkroom_courier.posting.sink import Sink
from darkroom_courier.posting.streaks import Streaks
from darkroom_courier.settings import CourierSettings

TYPE_PREFIX = "dev.darkroom.subscription."
"""After it stands what became of it: `disabled` or `ended`."""


_log = logger(__name__)


class Notices:
    """`step` is called every tick."""

    def __init__(self, ledger: AsyncLedger, sink: Sink, settings: CourierSettings, *, taker: str) -> None:
        self._ledger = ledger
        self._sink = sink
        self._settings = settings
        self._taker = taker
        self._streaks = Streaks(failed="sink_refused", recovered="sink_recovered")

    async def step(self) -> bool:
        """Post one that is due. True: there may be more. Raises LedgerUnavailable."""
        taken = await self._ledger.run(calls.lease_notices(taker=self._taker, call=uuid4().hex, limit=1))
        for subscription_id in taken:
            subscription = await self._ledger.subscription(subscription_id, tenant=None)
            if subscription is not None and subscription.state is not SubscriptionState.ENABLED:
                await self._tell(subscription)
        return bool(taken)

    async def _tell(self, subscription: Subscription) -> None:
        refusal = await self._sink.offer(notice_event(subscription, source=self._settings.public_url))
        if refusal is None:
            await self._ledger.run(calls.ack_notice(subscription.id, changed=subscription.changed))
            _log.info("noticed", subscription=subscription.id, state=subscription.state.value)
            self._streaks.succeed(SINK)
            return
        age_ms = await self._ledger.now() - subscription.changed
        delay_s = back_off(age_ms / 1000, refusal.retry_after_s, dice=0)
        again_in_s = round(delay_s, 1)
        self._streaks.fail(SINK, subscription=subscription.id, reason=refusal.reason, again_in_s=again_in_s)
        await self._ledger.run(calls.reschedule_notice(subscription.id, delay_ms=round(delay_s * 1000)))


def notice_event(subscription: Subscription, *, source: str) -> Event:
    """The CloudEvent of what became of a subscription. Its address is not told: it may hold its owner's secrets."""
    return Event(
        id=f"{subscription.id}:{subscription.changed}",
        source=source,
        type=TYPE_PREFIX + subscription.state,
        subject=subscription.id,
        time=iso(subscription.changed),
        datacontenttype="application/json",
        extensions={"tenant": subscription.tenant},
        data={
            "subscription_id": subscription.id,
            "state": subscription.state.value,
            "reason": subscription.reason,
            "failing_since": None if subscription.failing_since is None else iso(subscription.failing_since),
        },
    )

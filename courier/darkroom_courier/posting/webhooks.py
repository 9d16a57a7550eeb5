"""Deliveries: from the ledger's due deliveries to the webhooks of callers.

It takes what is due, so many of one target at a time (`lua/webhooks/lease_deliveries.lua`), and posts each event in
structured mode, signed (`darkroom/signatures.py`), through the guard (`darkroom/guarded_client.py`). The event is made
at each try, of the job's record or, when Redis has it no more, of the history: nothing but its number is stored. What
came of the try goes to the ledger (`lua/webhooks/record_attempt.lua`), which decides what becomes of the delivery and
its subscription.

An event is delivered at least once, by any number of couriers: a courier that is killed between a post and its
settlement leaves a delivery that another one makes again, with the same `webhook-id`, by which receivers tell repeats.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from darkroom.cloudevents.http import encode_structured
from darkroom.errors import DarkroomError, Gone, HistoryUnavailable, InvalidInput, LedgerUnavailable, NotFound
from darkroom.history.lookup import Lookup
from darkroom.ledger import calls
from darkroom.ledger.batching import GroupCommit
from darkroom.ledger.calls import AttemptResult, DeliveryOutcome
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord, LogEntry
from darkroom.links import Links
from darkroom.logs import logger
from darkroom.webhooks.client import Answer, GuardedClient, Unanswered
from darkroom.webhooks.signatures import Signer, subscription_recipients, tenant_recipient
from darkroom.webhooks.subscriptions import PER_JOB, LeasedDelivery, WebhookEvent

from darkroom_courier.metrics import Metrics
from darkroom_courier.posting.events import job_event
from darkroom_courier.posting.in_flight import InFlight
from darkroom_courier.posting.permission import ORIGIN_HEADER, ask_permission
from darkroom_courier.posting.sink import retry_after
from darkroom_courier.posting.streaks import Streaks
from darkroom_courier.settings import CourierSettings

JITTER = 0.2
"""Up to so much is added to a wait, so that what failed together does not come back together."""

RETRY_AFTER_MAX_S = 24 * 3600.0
"""A receiver may ask for this much: as long as the longest pause of the schedule."""

PERMISSION_LIMIT_S = 5.0
"""How long the question for consent may take: who does not answer it gets the post all the same."""

RATE = 6_000
"""Posts a minute that we ask a receiver to consent to: a hundred a second, more than any tenant's jobs make today."""

PUT_OFF_S = 5.0
"""When a delivery is due again whose event could not be read, because the history is away."""

LEDGER_PATIENCE_S = 10.0
"""For a settlement: as long as a connection to Redis waits for an answer."""

ERROR_CHARS = 200
"""So much of an error is kept with a try."""

GONE = 410
BUSY = frozenset({429, 503})
"""Answers whose `Retry-After` is about the receiver and not about the one request (RFC 9110, section 10.2.3)."""

_log = logger(__name__)


@dataclass(frozen=True)
class Ending:
    """How a try ended, in the words of `transitions.settle`. Without `again_ms`, what failed is given up."""

    outcome: DeliveryOutcome
    status: int | None = None
    error: str | None = None
    again_ms: int | None = None
    pause_ms: int = 0


class Deliveries:
    """Delivers what is due. `step` is called over and over; `wake` makes the next step begin at once."""

    def __init__(
        self,
        ledger: AsyncLedger,
        lookup: Lookup,
        client: GuardedClient,
        metrics: Metrics,
        settings: CourierSettings,
        *,
        taker: str,
    ) -> None:
        self._ledger = ledger
        self._lookup = lookup
        self._client = client
        self._metrics = metrics
        self._settings = settings
        self._signer = Signer.of(settings)
        self._links = Links.of(settings)
        self._origin = urlsplit(settings.public_url).hostname or ""
        self._taker = taker
        self._call = uuid4().hex
        self._posts = InFlight(settings.deliveries)
        self._streaks = Streaks(failed="post_failed", recovered="receiver_recovered")
        self._settlements: GroupCommit[AttemptResult] = GroupCommit(ledger, patience_s=LEDGER_PATIENCE_S)

    def wake(self) -> None:
        """There is something to deliver."""
        self._posts.wake()

    async def step(self) -> bool:
        """Start posting what is due. Where nothing is left, or no free place, wait for a wake or a tick.

        Raises LedgerUnavailable. A step after that repeats the same call, so that nothing which was taken waits for its
        lease. True: there may be more to do at once.
        """
        self._posts.begin_round()
        free = self._posts.free
        taken = await self._take(free) if free else []
        if not taken:
            await self._posts.rest(self._settings.tick_s)
        return True

    async def finish(self, *, patience_s: float) -> None:
        """Let the posts in flight come to their end."""
        await self._posts.finish(patience_s=patience_s)

    async def _take(self, limit: int) -> Sequence[LeasedDelivery]:
        lapses = time.monotonic() + self._settings.delivery_lease_s
        taken = await self._ledger.run(
            calls.lease_deliveries(
                taker=self._taker,
                call=self._call,
                limit=limit,
                per_target=self._settings.deliveries_per_target,
                rate=self._settings.delivery_rate,
                lease_ms=round(self._settings.delivery_lease_s * 1000),
            )
        )
        records = await self._ledger.jobs([each.job_id for each in taken], tenant=None)
        self._call = uuid4().hex
        for each, record in zip(taken, records, strict=True):
            if each.id not in self._posts:
                self._posts.start(each.id, self._deliver(each, record, lapses=lapses))
        return taken

    async def _deliver(self, delivery: LeasedDelivery, record: JobRecord | None, *, lapses: float) -> None:
        """One try, and what follows from it. `lapses`: when the lease does, by the monotonic clock."""
        about: dict[str, Any] = {"job": delivery.job_id, "delivery": delivery.id, "try": delivery.number}
        about |= {} if record is None else record.about
        try:
            began = time.monotonic()
            ending = await self._try(delivery, record, lapses=lapses)
            if ending is None:
                _log.warning("lease_lapsed", **about)
                return
            took_s = time.monotonic() - began
            settled = await self._settlements.run(
                calls.record_attempt(
                    delivery,
                    outcome=ending.outcome,
                    took_ms=round(1000 * took_s),
                    status=ending.status,
                    error=ending.error,
                    again_ms=ending.again_ms,
                    pause_ms=ending.pause_ms,
                )
            )
            if ending.outcome is not DeliveryOutcome.PUT_OFF:
                self._metrics.tried(settled, seconds=took_s)
            self._note(settled, ending, about, target=delivery.target)
        except DarkroomError as error:
            _log.warning("delivery_failed", **about, error=error.detail)
        except Exception:  # one delivery's fault must not stop the others; the lease brings it back
            _log.exception("delivery_failed", **about)
        self._posts.wake()  # its target has a place again

    def _note(self, settled: AttemptResult, ending: Ending, about: Mapping[str, Any], *, target: str) -> None:
        """Log what came of the try. A receiver that fails again and again is named once, and counted."""
        fields = {**about, "status": ending.status, "error": ending.error}
        if settled is AttemptResult.AGAIN and ending.outcome is not DeliveryOutcome.PUT_OFF:
            self._streaks.fail(target, **fields)
        else:
            log = _log.info if settled in {AttemptResult.DELIVERED, AttemptResult.AGAIN} else _log.warning
            log(settled.value, **fields, target=target)
        if settled is AttemptResult.DELIVERED:
            self._streaks.succeed(target)

    async def _try(self, delivery: LeasedDelivery, record: JobRecord | None, *, lapses: float) -> Ending | None:
        """None: it took so long to come to the post that the delivery is another courier's by now."""
        try:
            record, entry = await self._told(delivery, record)
        except (NotFound, Gone) as error:
            return Ending(DeliveryOutcome.FAILED, error=error.detail)
        except (HistoryUnavailable, LedgerUnavailable) as error:
            _log.warning("event_unread", job=delivery.job_id, delivery=delivery.id, error=error.detail)
            return Ending(DeliveryOutcome.PUT_OFF, again_ms=round(PUT_OFF_S * 1000))
        try:
            if not delivery.is_permitted and not await self._ask(delivery):
                return self._failed(delivery, error="the receiver takes posts from others only")
            if time.monotonic() >= lapses:
                return None
            answer = await self._post(delivery, record, entry)
        except (Unanswered, InvalidInput) as error:
            return self._failed(delivery, error=error.detail)
        except LedgerUnavailable:
            raise
        except Exception:  # what nobody foresaw counts as a try too, or it would be made again and again for ever
            _log.exception("post_not_made", delivery=delivery.id, **record.about)
            return self._failed(delivery, error="darkroom could not make this post")
        if answer.is_success:
            return Ending(DeliveryOutcome.DELIVERED, status=answer.status)
        if answer.status == GONE:
            return Ending(DeliveryOutcome.GONE, status=answer.status, error=f"status {answer.status}")
        asked_s = retry_after(answer.headers, now=datetime.now(UTC))
        return self._failed(delivery, status=answer.status, error=f"status {answer.status}", asked_s=asked_s)

    def _failed(
        self, delivery: LeasedDelivery, *, error: str, status: int | None = None, asked_s: float | None = None
    ) -> Ending:
        delay_s = delay_after(
            delivery.attempt,
            self._settings.delivery_schedule_s,
            asked_s,
            dice=random.random(),  # noqa: S311 - no secret
        )
        pause_s = min(asked_s or 0, RETRY_AFTER_MAX_S) if status in BUSY else 0.0
        return Ending(
            DeliveryOutcome.FAILED,
            status=status,
            error=error[:ERROR_CHARS],
            again_ms=None if delay_s is None else round(delay_s * 1000),
            pause_ms=max(0, round(pause_s * 1000)),
        )

    async def _told(self, delivery: LeasedDelivery, record: JobRecord | None) -> tuple[JobRecord, LogEntry]:
        """The job, and the entry of its log that is to be told. Raises NotFound, Gone, and what is away."""
        if delivery.event is WebhookEvent.STARTED:
            record, log = await self._lookup.story(delivery.job_id, tenant=delivery.tenant)
            entry = next((each for each in log if each.seq == delivery.seq), None)
        else:
            record = record or await self._lookup.job(delivery.job_id, tenant=delivery.tenant)
            entry = record.end
        if entry is None:
            raise NotFound(f"entry {delivery.seq} of the job's log is kept no longer")
        return record, entry

    async def _ask(self, delivery: LeasedDelivery) -> bool:
        """Ask the receiver for its consent, as an address is first used, and then once a day."""
        try:
            async with asyncio.timeout(PERMISSION_LIMIT_S):
                permission = await ask_permission(self._client, delivery.url, origin=self._origin, per_minute=RATE)
        except (TimeoutError, Unanswered):
            return True  # it may not know what OPTIONS is; nothing is known of it, so it is asked again
        if permission.is_granted:
            await self._ledger.run(calls.set_rate_limit(delivery.target, rate=permission.per_minute))
        return permission.is_granted

    async def _post(self, delivery: LeasedDelivery, record: JobRecord, entry: LogEntry) -> Answer:
        now_s = time.time()
        event = job_event(record, entry, self._links, source=self._settings.public_url, now_s=now_s)
        headers, body = encode_structured(event)
        headers |= {"user-agent": "darkroom-courier", ORIGIN_HEADER: self._origin}
        if event.traceparent is not None:
            headers["traceparent"] = event.traceparent
        headers |= self._signer.headers(
            message_id=event.id, timestamp_s=int(now_s), body=body, recipients=recipients_of(delivery, now_s=now_s)
        )
        return await self._client.send("POST", delivery.url, headers=headers, body=body)


def recipients_of(delivery: LeasedDelivery, *, now_s: float) -> Sequence[str]:
    """Whose secrets sign."""
    if delivery.recipient == PER_JOB:
        return [tenant_recipient(delivery.tenant)]
    now = int(now_s * 1000)
    return subscription_recipients(delivery.recipient, delivery.generation, rotated=delivery.rotated, now=now)


def delay_after(attempt: int, schedule_s: Sequence[float], asked_s: float | None, *, dice: float) -> float | None:
    """Seconds until what failed at `attempt` (from 1) is tried again, None for never; `dice` is between 0 and 1.

    `schedule_s` are the pauses before each attempt. A receiver that asked for more (`asked_s`) gets it.
    """
    if attempt >= len(schedule_s):
        return None
    wait = max(schedule_s[attempt], min(asked_s or 0, RETRY_AFTER_MAX_S))
    return wait * (1 + JITTER * dice)

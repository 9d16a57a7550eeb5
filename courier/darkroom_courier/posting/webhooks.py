"""Webhooks: from the ledger's due deliveries to the receivers of callers.

The loop leases what is due, a limited number per target (`lua/webhooks/lease_deliveries.lua`), and posts each event in
structured mode, signed (`darkroom/webhooks/signatures.py`), through the guard (`darkroom/webhooks/client.py`). The
event is built at each attempt from the job's record or, once Redis has deleted it, from the history: only its number is
stored. The ledger records the attempt (`lua/webhooks/record_attempt.lua`), and decides whether the delivery is retried
and the subscription stays enabled.

An event is delivered at least once, by any number of couriers. A courier that is killed after a post and before its
record leaves a delivery that another one posts again, with the same `webhook-id`: receivers recognise a repeat by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from darkroom.backoff import jittered
from darkroom.cloudevents.http import encode_structured
from darkroom.errors import Gone, HistoryUnavailable, InvalidInput, LedgerUnavailable, NotFound
from darkroom.history.lookup import Lookup
from darkroom.ledger import calls
from darkroom.ledger.batching import GroupCommit
from darkroom.ledger.calls import AttemptResult, DeliveryOutcome
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord, LogEntry
from darkroom.links import Links
from darkroom.logs import logger
from darkroom.webhooks.client import GuardedClient, ReceiverResponse, Unanswered
from darkroom.webhooks.signatures import Signer, subscription_recipients, tenant_recipient
from darkroom.webhooks.subscriptions import PER_JOB, TERMINAL_EVENTS, LeasedDelivery

from darkroom_courier.metrics import CourierMetrics
from darkroom_courier.posting.events import job_event
from darkroom_courier.posting.loop import Leased, PostingLoop
from darkroom_courier.posting.permission import ORIGIN_HEADER, ask_permission
from darkroom_courier.posting.sink import retry_after
from darkroom_courier.posting.streaks import Streaks
from darkroom_courier.settings import CourierSettings

JITTER = 0.2
"""Up to this share is added to a pause, so that deliveries that failed together are not repeated together."""

RETRY_AFTER_MAX_S = 24 * 3600.0
"""The longest `Retry-After` that is honoured: as long as the longest pause of the schedule."""

PERMISSION_LIMIT_S = 5.0
"""How long the request for permission may take. A receiver that does not answer it gets the post all the same."""

RATE = 6_000
"""Posts a minute in the request for permission: a hundred a second, more than any tenant's jobs cause today."""

PUT_OFF_S = 5.0
"""After this a delivery is due again whose event could not be read, because the history is unavailable."""

LEDGER_TIMEOUT_S = 10.0
"""For the record of an attempt: as long as a connection to Redis waits for an answer."""

ERROR_CHARS = 200
"""So much of an error is stored with an attempt."""

GONE = 410
BUSY = frozenset({429, 503})
"""Answers whose `Retry-After` is about the receiver and not about the one request (RFC 9110, section 10.2.3)."""

_log = logger(__name__)


@dataclass(frozen=True)
class DueDelivery:
    """A leased delivery, the job's record if Redis has it, and the monotonic time at which the lease ends."""

    delivery: LeasedDelivery
    record: JobRecord | None
    lapses: float


@dataclass(frozen=True)
class DeliveryAttempt:
    """The result of one attempt, as `calls.record_attempt` takes it. Without `again_ms` a failure is final."""

    outcome: DeliveryOutcome
    status: int | None = None
    error: str | None = None
    again_ms: int | None = None
    pause_ms: int = 0


class WebhookPosts(PostingLoop[DueDelivery]):
    """Posts events to the receivers of callers."""

    failure_event = "delivery_failed"

    def __init__(
        self,
        ledger: AsyncLedger,
        lookup: Lookup,
        client: GuardedClient,
        metrics: CourierMetrics,
        settings: CourierSettings,
        *,
        owner: str,
    ) -> None:
        super().__init__(concurrency=settings.delivery_concurrency, idle_s=settings.poll_interval_s)
        self._ledger = ledger
        self._lookup = lookup
        self._client = client
        self._metrics = metrics
        self._settings = settings
        self._signer = Signer.of(settings)
        self._links = Links.of(settings)
        self._origin = urlsplit(settings.public_url).hostname or ""
        self._owner = owner
        self._streaks = Streaks(failed="post_failed", recovered="receiver_recovered")
        self._reports: GroupCommit[AttemptResult] = GroupCommit(ledger, timeout_s=LEDGER_TIMEOUT_S)

    async def _lease(self, *, call: str, limit: int) -> Leased[DueDelivery]:
        lapses = time.monotonic() + self._settings.delivery_lease_s
        leased = await self._ledger.run(
            calls.lease_deliveries(
                owner=self._owner,
                call=call,
                limit=limit,
                per_target=self._settings.delivery_concurrency_per_target,
                rate=self._settings.delivery_rate,
                lease_ms=round(self._settings.delivery_lease_s * 1000),
            )
        )
        records = await self._ledger.jobs([each.job_id for each in leased], tenant=None)
        due = {each.id: DueDelivery(each, record, lapses) for each, record in zip(leased, records, strict=True)}
        return Leased(due, may_be_more=bool(leased))  # a call leases few of each target

    async def _post(self, item: DueDelivery) -> None:
        delivery = item.delivery
        began = time.monotonic()
        attempt = await self._attempt(delivery, item.record, lapses=item.lapses)
        if attempt is None:
            _log.warning("lease_lapsed", **self._log_fields(item))
            return
        took_s = time.monotonic() - began
        result = await self._reports.run(
            calls.record_attempt(
                delivery,
                outcome=attempt.outcome,
                took_ms=round(1000 * took_s),
                status=attempt.status,
                error=attempt.error,
                again_ms=attempt.again_ms,
                pause_ms=attempt.pause_ms,
            )
        )
        if attempt.outcome is not DeliveryOutcome.PUT_OFF:
            self._metrics.delivery_attempted(result, seconds=took_s)
        self._log_result(result, attempt, self._log_fields(item), target=delivery.target)
        self.wake()  # its target may have another delivery that is due

    def _log_fields(self, item: DueDelivery) -> Mapping[str, Any]:
        fields = {"job": item.delivery.job_id, "delivery": item.delivery.id, "try": item.delivery.number}
        return fields if item.record is None else {**fields, **item.record.about}

    def _log_result(
        self, result: AttemptResult, attempt: DeliveryAttempt, about: Mapping[str, Any], *, target: str
    ) -> None:
        """A receiver that fails again and again is named once, and its failures are counted."""
        fields = {**about, "status": attempt.status, "error": attempt.error}
        if result is AttemptResult.AGAIN and attempt.outcome is not DeliveryOutcome.PUT_OFF:
            self._streaks.fail(target, **fields)
        else:
            log = _log.info if result in {AttemptResult.DELIVERED, AttemptResult.AGAIN} else _log.warning
            log(result.value, **fields, target=target)
        if result is AttemptResult.DELIVERED:
            self._streaks.succeed(target)

    async def _attempt(
        self, delivery: LeasedDelivery, record: JobRecord | None, *, lapses: float
    ) -> DeliveryAttempt | None:
        """None: the lease ended before the post, so that another courier may have the delivery by now."""
        try:
            record, entry = await self._entry_of(delivery, record)
        except (NotFound, Gone) as error:
            return DeliveryAttempt(DeliveryOutcome.FAILED, error=error.detail)
        except (HistoryUnavailable, LedgerUnavailable) as error:
            _log.warning("event_unread", job=delivery.job_id, delivery=delivery.id, error=error.detail)
            return DeliveryAttempt(DeliveryOutcome.PUT_OFF, again_ms=round(PUT_OFF_S * 1000))
        try:
            if not delivery.is_permitted and not await self._ask_permission(delivery):
                return self._failed(delivery, error="the receiver does not permit posts from this origin")
            if time.monotonic() >= lapses:
                return None
            response = await self._send(delivery, record, entry)
        except (Unanswered, InvalidInput) as error:
            return self._failed(delivery, error=error.detail)
        except LedgerUnavailable:
            raise
        except Exception:  # an unexpected failure counts as an attempt, or it would be repeated for ever
            _log.exception("post_not_made", delivery=delivery.id, **record.about)
            return self._failed(delivery, error="darkroom could not make this post")
        status = response.status
        if response.is_success:
            return DeliveryAttempt(DeliveryOutcome.DELIVERED, status=status)
        if status == GONE:
            return DeliveryAttempt(DeliveryOutcome.GONE, status=status, error=f"status {status}")
        asked_s = retry_after(response.headers, now=datetime.now(UTC))
        return self._failed(delivery, status=status, error=f"status {status}", asked_s=asked_s)

    def _failed(
        self, delivery: LeasedDelivery, *, error: str, status: int | None = None, asked_s: float | None = None
    ) -> DeliveryAttempt:
        delay_s = delay_after(delivery.attempt, self._settings.delivery_schedule_s, asked_s)
        pause_s = min(asked_s or 0, RETRY_AFTER_MAX_S) if status in BUSY else 0.0
        return DeliveryAttempt(
            DeliveryOutcome.FAILED,
            status=status,
            error=error[:ERROR_CHARS],
            again_ms=None if delay_s is None else round(delay_s * 1000),
            pause_ms=max(0, round(pause_s * 1000)),
        )

    async def _entry_of(self, delivery: LeasedDelivery, record: JobRecord | None) -> tuple[JobRecord, LogEntry]:
        """The job, and the entry of its log that the delivery is about.

        Raises NotFound, Gone, HistoryUnavailable and LedgerUnavailable.
        """
        if delivery.event in TERMINAL_EVENTS:
            record = record or await self._lookup.job(delivery.job_id, tenant=delivery.tenant)
            entry = record.end
        else:
            record, log = await self._lookup.job_with_log(delivery.job_id, tenant=delivery.tenant)
            entry = next((each for each in log if each.seq == delivery.seq), None)
        if entry is None:
            raise NotFound(f"entry {delivery.seq} of the job's log has been deleted")
        return record, entry

    async def _ask_permission(self, delivery: LeasedDelivery) -> bool:
        """Whether the receiver permits posts. It is asked when its address is first used, and then once a day."""
        try:
            async with asyncio.timeout(PERMISSION_LIMIT_S):
                permission = await ask_permission(self._client, delivery.url, origin=self._origin, per_minute=RATE)
        except (TimeoutError, Unanswered):
            return True  # it may not know OPTIONS; nothing is stored, so that it is asked again
        if permission.is_granted:
            await self._ledger.run(calls.set_rate_limit(delivery.target, rate=permission.per_minute))
        return permission.is_granted

    async def _send(self, delivery: LeasedDelivery, record: JobRecord, entry: LogEntry) -> ReceiverResponse:
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
    """The recipients whose secrets sign the post."""
    if delivery.recipient == PER_JOB:
        return [tenant_recipient(delivery.tenant)]
    now = int(now_s * 1000)
    return subscription_recipients(delivery.recipient, delivery.generation, rotated=delivery.rotated, now=now)


def delay_after(
    attempt: int, schedule_s: Sequence[float], asked_s: float | None, *, dice: float | None = None
) -> float | None:
    """Seconds between a failed `attempt` (from 1) and the next one; None after the last one.

    `schedule_s` has the pause before each attempt. A longer `Retry-After` of the receiver (`asked_s`) counts instead.
    """
    if attempt >= len(schedule_s):
        return None
    pause_s = max(schedule_s[attempt], min(asked_s or 0, RETRY_AFTER_MAX_S))
    return jittered(pause_s, share=JITTER, dice=dice)

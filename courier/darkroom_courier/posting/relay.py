"""The relay: from the ledger's outbox to the sink.

It leases the jobs that have pending events: the terminal one and, where a subscription asks for them, the starts. It
posts the events of a job in order, in binary mode, to `K_SINK`, and leaves the entry in the outbox: an entry is removed
when the function `result` has *applied* its events, because a Broker that answered 2xx may still lose one. A refused
event is rescheduled; an event that the sink accepted and that is not applied is due again when the lease is over.

So an event is posted at least once, by any number of couriers. Its id is the same each time: receivers recognise a
repeat by it. The events of one job are never posted concurrently, so their order is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from darkroom.ledger import calls, reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord, LogEntry
from darkroom.links import Links
from darkroom.logs import logger

from darkroom_courier.posting.events import job_event
from darkroom_courier.posting.loop import Leased, PostingLoop
from darkroom_courier.posting.sink import Sink
from darkroom_courier.settings import CourierSettings

_log = logger(__name__)

PendingEvents = tuple[JobRecord, list[LogEntry]]
"""A job and the entries of its log that are to be posted, in order."""


class Relay(PostingLoop[PendingEvents]):
    """Posts the events of jobs to the sink."""

    failure_event = "relay_failed"
    repeats_in_flight = True  # a job whose start is being posted may have finished

    def __init__(self, ledger: AsyncLedger, sink: Sink, settings: CourierSettings, *, owner: str) -> None:
        super().__init__(concurrency=settings.sink_concurrency, idle_s=settings.poll_interval_s)
        self._ledger = ledger
        self._sink = sink
        self._links = Links.of(settings)
        self._source = settings.public_url
        self._lease_ms = round(settings.relay_lease_s * 1000)
        self._owner = owner

    async def _lease(self, *, call: str, limit: int) -> Leased[PendingEvents]:
        leased = await self._ledger.run(
            calls.lease_relays(owner=self._owner, call=call, limit=limit, lease_ms=self._lease_ms)
        )
        starts = await reads.pending_starts(self._ledger, leased)
        records = await self._ledger.jobs(leased, tenant=None)  # read last, so that a job finished by now is posted
        pending = {
            record.id: (record, entries if record.end is None else [*entries, record.end])
            for record, entries in zip(records, starts, strict=True)
            if record is not None
        }
        return Leased(pending, may_be_more=len(leased) == limit)

    async def _post(self, item: PendingEvents) -> None:
        record, entries = item
        for entry in entries:
            event = job_event(
                record, entry, self._links, source=self._source, now_s=time.time(), extensions=self._sink.extensions
            )
            refusal = await self._sink.post(event)
            if refusal is not None:
                age_ms = await reads.now(self._ledger) - entry.at
                delay_s = self._sink.pause_after(refusal, age_s=age_ms / 1000, **record.about)
                await self._ledger.run(calls.reschedule_relay(record.id, delay_ms=round(delay_s * 1000)))
                return
            _log.info("relayed", state=entry.state.value, **record.about)

    def _log_fields(self, item: PendingEvents) -> Mapping[str, Any]:
        return item[0].about

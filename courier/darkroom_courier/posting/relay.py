"""The relay: from the ledger's outbox to the sink.

It takes the jobs that have something to be told: their end and, where somebody asked for that, their starts. It posts
the events of a job in order, in binary mode, to `K_SINK`, and leaves the entry where it is: an entry goes when the
result function has *applied* its events, because a Broker that answered 2xx may still lose one. What the sink does not
take is put off; what it took and nobody applied comes back by itself when the lease of `take` is over.

So an event is posted at least once, by any number of couriers, and its id is the same each time: it is what receivers
tell a repeat by. No courier posts the events of one job side by side, so their order is kept.
"""

from __future__ import annotations

import random
import time
from uuid import uuid4

from darkroom.cloudevents.event import Event
from darkroom.errors import DarkroomError
from darkroom.ledger import calls
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord, LogEntry
from darkroom.links import Links
from darkroom.logs import logger

from darkroom_courier.posting.events import job_event
from darkroom_courier.posting.in_flight import InFlight
from darkroom_courier.posting.sink import Refusal, Sink
from darkroom_courier.posting.streaks import Streaks
from darkroom_courier.settings import CourierSettings

BACK_OFF_MIN_S = 1.0
BACK_OFF_MAX_S = 60.0
"""A sink that is back is found within a minute, and one that is away gets few posts."""

RETRY_AFTER_MAX_S = 300.0
"""A sink may ask for this much; longer, and one wrong header would hold everybody's news."""

JITTER = 0.25
"""Up to so much is added to a wait, so that what failed together does not come back together."""

SINK = "sink"
"""The relay's one receiver, in the log."""

_log = logger(__name__)

Told = tuple[JobRecord, list[LogEntry]]
"""A job, and the entries of its log that are to be told, in order."""


class Relay:
    """Posts what is due. `step` is called over and over; `wake` makes the next step begin at once."""

    def __init__(self, ledger: AsyncLedger, sink: Sink, settings: CourierSettings, *, taker: str) -> None:
        self._ledger = ledger
        self._sink = sink
        self._settings = settings
        self._links = Links.of(settings)
        self._taker = taker
        self._call = _new_call()
        self._posts = InFlight(settings.posts)
        self._next: dict[str, Told] = {}
        self._streaks = Streaks(failed="sink_refused", recovered="sink_recovered")

    def wake(self) -> None:
        """There is work in the outbox."""
        self._posts.wake()

    async def step(self) -> bool:
        """Start posting what is due. Where nothing is left, or no free place, wait for a wake or a tick.

        Raises LedgerUnavailable. A step after that repeats the same call, so that nothing which was taken waits for its
        lease. True: there may be more to do at once.
        """
        self._posts.begin_round()
        free = self._posts.free
        taken = await self._take(free) if free else []
        if len(taken) < free or not self._posts.free:
            await self._posts.rest(self._settings.tick_s)
        return True

    async def finish(self, *, patience_s: float) -> None:
        """Let the posts in flight come to their end."""
        await self._posts.finish(patience_s=patience_s)

    async def _take(self, limit: int) -> list[str]:
        """Take jobs that have something to be told, and start posting."""
        lease_ms = round(self._settings.relay_lease_s * 1000)
        taken = await self._ledger.run(
            calls.lease_relays(taker=self._taker, call=self._call, limit=limit, lease_ms=lease_ms)
        )
        starts = await self._ledger.untold(taken)
        records = await self._ledger.jobs(taken, tenant=None)  # read last: what ended meanwhile is told now
        self._call = _new_call()
        for record, told in zip(records, starts, strict=True):
            if record is None:
                continue
            entries = told if record.end is None else [*told, record.end]
            if record.id in self._posts:  # its start is on its way, and it has ended
                self._next[record.id] = (record, entries)
            else:
                self._posts.start(record.id, self._post(record, entries))
        return taken

    async def _post(self, record: JobRecord, entries: list[LogEntry]) -> None:
        """Post the events of one job and, where it was taken again meanwhile, what is to be told then."""
        told: Told | None = (record, entries)
        while told is not None:
            try:
                await self._tell(*told)
            except DarkroomError as error:
                _log.warning("relay_failed", error=error.detail, **record.about)
            except Exception:  # one job's fault must not stop the others; the lease brings it back
                _log.exception("relay_failed", **record.about)
            told = self._next.pop(record.id, None)

    async def _tell(self, record: JobRecord, entries: list[LogEntry]) -> None:
        for entry in entries:
            event = job_event(record, entry, self._links, source=self._settings.public_url, now_s=time.time())
            refusal = await self._offer(event)
            if refusal is not None:
                age_ms = await self._ledger.now() - entry.at
                await self._put_off(record, refusal, age_s=age_ms / 1000)
                return
            self._streaks.succeed(SINK)
            _log.info("relayed", state=entry.state.value, **record.about)

    async def _offer(self, event: Event) -> Refusal | None:
        return await self._sink.offer(event)

    async def _put_off(self, record: JobRecord, refusal: Refusal, *, age_s: float) -> None:
        delay_s = back_off(age_s, refusal.retry_after_s, dice=random.random())  # noqa: S311 - no secret
        self._streaks.fail(SINK, reason=refusal.reason, again_in_s=round(delay_s, 1), **record.about)
        await self._ledger.run(calls.reschedule_relay(record.id, delay_ms=round(delay_s * 1000)))


def back_off(age_s: float, retry_after_s: float | None, *, dice: float) -> float:
    """Seconds until an event that the sink refused is posted again; `dice` is between 0 and 1.

    It waits as long again as it has waited since it happened, which doubles the wait each time and needs no memory:
    any courier goes on where another stopped. What the sink asks for counts instead.
    """
    if retry_after_s is None:
        wait = min(max(age_s, BACK_OFF_MIN_S), BACK_OFF_MAX_S)
    else:
        wait = min(max(retry_after_s, BACK_OFF_MIN_S), RETRY_AFTER_MAX_S)
    return wait * (1 + JITTER * dice)


def _new_call() -> str:
    return uuid4().hex

"""The relay: from the ledger's outbox to the sink.

It takes the jobs whose terminal event is due, posts each event in binary mode to `K_SINK`, and leaves the entry where
it is: an entry goes when the result function has *applied* the event, because a Broker that answered 2xx may still lose
it. What the sink does not take is put off; what it took and nobody applied comes back by itself when the lease of
`take` is over.

So an event is posted at least once, by any number of couriers, and its id is the same each time: it is what receivers
tell a repeat by. A job has one terminal event, and no courier posts it twice at a time, so the order per job is kept.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from uuid import uuid4

import httpx
from darkroom import events, transitions, updates
from darkroom.errors import DarkroomError
from darkroom.events import Event
from darkroom.ledger import AsyncLedger, JobRecord
from darkroom.links import Links
from darkroom.logs import logger

from darkroom_courier.settings import CourierSettings

BACK_OFF_MIN_S = 1.0
BACK_OFF_MAX_S = 60.0
"""A sink that is back is found within a minute, and one that is away gets few posts."""

RETRY_AFTER_MAX_S = 300.0
"""A sink may ask for this much; longer, and one wrong header would hold everybody's news."""

JITTER = 0.25
"""Up to so much is added to a wait, so that what failed together does not come back together."""

ANSWER_MAX_BYTES = 64 * 1024
"""So much of an answer is read, and thrown away, to use its connection again; a longer one is cut off."""

_log = logger(__name__)


@dataclass(frozen=True)
class Refusal:
    """The sink did not take an event: why, and after how many seconds it wants to be asked again, if it said so."""

    reason: str
    retry_after_s: float | None = None


class Relay:
    """Posts what is due. `step` is called over and over; `wake` makes the next step begin at once."""

    def __init__(
        self, ledger: AsyncLedger, client: httpx.AsyncClient, settings: CourierSettings, *, taker: str
    ) -> None:
        self._ledger = ledger
        self._client = client
        self._settings = settings
        self._links = Links.of(settings)
        self._taker = taker
        self._call = _new_call()
        self._posting: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is work in the outbox."""
        self._woken.set()

    async def step(self) -> bool:
        """Start posting what is due. Where nothing is left, or no free place, wait for a wake or a tick.

        Raises LedgerUnavailable. A step after that repeats the same call, so that nothing which was taken waits for its
        lease. True: there may be more to do at once.
        """
        self._woken.clear()
        free = self._settings.posts - len(self._posting)
        taken = await self._take(free) if free else []
        all_taken, all_busy = len(taken) < free, len(self._posting) >= self._settings.posts
        if all_taken or all_busy:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.tick_s):
                    await self._woken.wait()
        return True

    async def finish(self, *, patience_s: float) -> None:
        """Let the posts in flight come to their end. What takes longer is given up; another courier posts it again."""
        if not self._posting:
            return
        _, late = await asyncio.wait(self._posting.values(), timeout=patience_s)
        for post in late:
            post.cancel()
        if late:
            _log.warning("posts_given_up", posts=len(late))
            await asyncio.wait(late)

    async def _take(self, limit: int) -> list[str]:
        """Take jobs whose event is due, and start posting."""
        lease_ms = round(self._settings.relay_lease_s * 1000)
        taken = await self._ledger.run(
            transitions.take_relays(taker=self._taker, call=self._call, limit=limit, lease_ms=lease_ms)
        )
        records = await self._ledger.jobs(taken, tenant=None)
        self._call = _new_call()
        for record in records:
            if record is not None and record.id not in self._posting:
                self._posting[record.id] = asyncio.create_task(self._post(record), name=f"post {record.id}")
        return taken

    async def _post(self, record: JobRecord) -> None:
        try:
            now_s = time.time()
            refusal = await self._offer(terminal_event(record, self._links, self._settings, now_s=now_s))
            if refusal is None:
                _log.info("relayed", job=record.id, state=record.state.value)
                return
            age_s = now_s - (record.ended or 0) / 1000
            delay_s = back_off(age_s, refusal.retry_after_s, dice=random.random())  # noqa: S311 - no secret
            _log.warning("sink_refused", job=record.id, reason=refusal.reason, again_in_s=round(delay_s, 1))
            await self._ledger.run(transitions.defer_relay(record.id, delay_ms=round(delay_s * 1000)))
        except DarkroomError as error:
            _log.warning("relay_failed", job=record.id, error=error.detail)
        except Exception:  # one job's fault must not stop the others; the lease brings it back
            _log.exception("relay_failed", job=record.id)
        finally:
            if len(self._posting) >= self._settings.posts:
                self._woken.set()
            del self._posting[record.id]

    async def _offer(self, event: Event) -> Refusal | None:
        """Post the event; None when the sink took it (2xx)."""
        headers, body = event.encode_binary()
        try:
            async with (
                asyncio.timeout(self._settings.post_timeout_s),
                self._client.stream("POST", self._settings.sink, headers=headers, content=body) as answer,
            ):
                read = 0
                async for chunk in answer.aiter_raw():
                    read += len(chunk)
                    if read > ANSWER_MAX_BYTES:
                        break
        except TimeoutError:
            return Refusal(f"no answer within {self._settings.post_timeout_s} s")
        except httpx.HTTPError as error:
            return Refusal(f"{type(error).__name__}: {error}")
        if answer.is_success:
            return None
        return Refusal(f"status {answer.status_code}", retry_after(answer.headers, now=datetime.now(UTC)))


def terminal_event(record: JobRecord, links: Links, settings: CourierSettings, *, now_s: float) -> Event:
    """The CloudEvent that tells how the job ended. Its data is what a socket is told, and what receivers need
    beside.
    """
    entry = record.end
    if entry is None:
        raise ValueError(f"job {record.id} is in the outbox and has not ended")
    data = updates.message(entry, links, now_s=now_s) | {"model": record.model}
    if "model_served" in entry.data:
        data["model_served"] = entry.data["model_served"]
    if "user_id" in record.fields:
        data["user_id"] = record.fields["user_id"]
    if artifacts := updates.artifacts_of(entry.data):
        data["artifacts"] = [
            {"sha256": a.sha256, "width": a.width, "height": a.height, "media_type": a.media_type} for a in artifacts
        ]
    event = events.job_event(
        job_id=record.id,
        kind=entry.event,
        event_id=entry.event_id,
        seq=entry.seq,
        time_ms=entry.at,
        source=settings.public_url,
        data=data,
        traceparent=record.traceparent,
        tenant=record.tenant,
    )
    return replace(event, extensions={**event.extensions, **settings.overrides})


def back_off(age_s: float, retry_after_s: float | None, *, dice: float) -> float:
    """Seconds until an event that the sink refused is posted again; `dice` is between 0 and 1.

    It waits as long again as it has waited since the job ended, which doubles the wait each time and needs no memory:
    any courier goes on where another stopped. What the sink asks for counts instead.
    """
    if retry_after_s is None:
        wait = min(max(age_s, BACK_OFF_MIN_S), BACK_OFF_MAX_S)
    else:
        wait = min(max(retry_after_s, BACK_OFF_MIN_S), RETRY_AFTER_MAX_S)
    return wait * (1 + JITTER * dice)


def retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The seconds that `Retry-After` asks for, written as a number or as a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:  # a date whose zone is said to be unknown, `-0000`
        moment = moment.replace(tzinfo=UTC)
    return (moment - now).total_seconds()


def _new_call() -> str:
    return uuid4().hex

"""The sink: one post of one event to `K_SINK`, and the pause after a refusal.

The relay (`relay.py`) and the notices (`notices.py`) post through it, in binary mode. Every event carries a proof
(`darkroom.cloudevents.proofs`), which the functions check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from darkroom.backoff import Backoff, jittered
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.proofs import Proofs
from darkroom.sinks import authorization
from darkroom.webhooks.client import BODY_LIMIT_S

from darkroom_courier.posting.streaks import Streaks
from darkroom_courier.settings import CourierSettings

ANSWER_MAX_BYTES = 64 * 1024
"""So much of an answer is read, and dropped, to use its connection again; a longer one is cut off."""

BACKOFF = Backoff(first_s=1.0, longest_s=60.0, jitter=0.25)
"""A sink that is back gets its first event within a minute, and one that is unavailable gets few posts."""

RETRY_AFTER_MAX_S = 300.0
"""The longest `Retry-After` of a sink that is honoured: a longer one may be a mistake, and would delay all events."""

RECEIVER = "sink"
"""The name of the sink in the log."""


@dataclass(frozen=True)
class Refusal:
    """The sink did not accept an event: the reason, and the seconds of its `Retry-After`, if it sent one."""

    reason: str
    retry_after_s: float | None = None


class Sink:
    """The receiver of all events, whose address is `K_SINK`."""

    def __init__(self, client: httpx.AsyncClient, settings: CourierSettings) -> None:
        self._client = client
        self._settings = settings
        self._proofs = Proofs(settings.proof_keys)
        self._streaks = Streaks(failed="sink_refused", recovered="sink_recovered")

    @property
    def extensions(self) -> Mapping[str, str]:
        """The extensions that every event to the sink carries (`K_CE_OVERRIDES`)."""
        return self._settings.overrides

    async def post(self, event: Event) -> Refusal | None:
        """Post the event, which carries `extensions`; None when the sink accepted it (2xx)."""
        refusal = await self._attempt(event)
        if refusal is None:
            self._streaks.succeed(RECEIVER)
        return refusal

    def pause_after(self, refusal: Refusal, *, age_s: float, **fields: Any) -> float:
        """Log the refusal, and return the seconds until an event of this age is posted again."""
        pause_s = pause_after(refusal, age_s=age_s)
        self._streaks.fail(RECEIVER, reason=refusal.reason, again_in_s=round(pause_s, 1), **fields)
        return pause_s

    async def _attempt(self, event: Event) -> Refusal | None:
        headers, body = self._proofs.prove(event).encode_binary()
        try:
            headers |= authorization(self._settings.sink_token_file)
        except OSError as error:
            return Refusal(f"the token for the sink cannot be read: {error}")
        try:
            async with (
                asyncio.timeout(self._settings.sink_timeout_s) as limit,
                self._client.stream("POST", self._settings.sink, headers=headers, content=body) as answer,
            ):
                limit.reschedule(None)  # the status decides, whatever becomes of the body
                await _read(answer)
        except TimeoutError:
            return Refusal(f"no answer within {self._settings.sink_timeout_s} s")
        except httpx.HTTPError as error:
            return Refusal(f"{type(error).__name__}: {error}")
        if answer.is_success:
            return None
        return Refusal(f"status {answer.status_code}", retry_after(answer.headers, now=datetime.now(UTC)))


def pause_after(refusal: Refusal, *, age_s: float, dice: float | None = None) -> float:
    """Seconds until a refused event is posted again. `dice`, from 0 to 1, is drawn if not given.

    The event waits as long again as it has waited since it occurred. That doubles the pause each time without a stored
    count, so that any courier continues where another one stopped. A `Retry-After` of the sink counts instead.
    """
    if refusal.retry_after_s is None:
        return BACKOFF.within(age_s, dice=dice)
    pause_s = min(max(refusal.retry_after_s, BACKOFF.first_s), RETRY_AFTER_MAX_S)
    return jittered(pause_s, share=BACKOFF.jitter, dice=dice)


async def _read(answer: httpx.Response) -> None:
    """Read the body, so that its connection can be used again: a body that is long or slow is cut off."""
    read = 0
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(BODY_LIMIT_S):
            async for chunk in answer.aiter_raw():
                read += len(chunk)
                if read > ANSWER_MAX_BYTES:
                    break


def retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The seconds that `Retry-After` asks for, written as a number or as a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for numbers that no date has
        return None
    if moment.tzinfo is None:  # a date whose zone is said to be unknown, `-0000`
        moment = moment.replace(tzinfo=UTC)
    return (moment - now).total_seconds()

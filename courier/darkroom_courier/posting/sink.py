"""The sink: one post of one event to `K_SINK`, and what its refusal means.

The relay (`relay.py`) and the notices (`notices.py`) post through it, in binary mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from darkroom.cloudevents.event import Event
from darkroom.webhooks.client import BODY_LIMIT_S

from darkroom_courier.settings import CourierSettings

ANSWER_MAX_BYTES = 64 * 1024
"""So much of an answer is read, and dropped, to use its connection again; a longer one is cut off."""


@dataclass(frozen=True)
class Refusal:
    """The sink did not take an event: why, and after how many seconds it wants to be asked again, if it said so."""

    reason: str
    retry_after_s: float | None = None


class Sink:
    """Where the settings say that events go."""

    def __init__(self, client: httpx.AsyncClient, settings: CourierSettings) -> None:
        self._client = client
        self._settings = settings

    async def offer(self, event: Event) -> Refusal | None:
        """Post the event; None when the sink took it (2xx)."""
        event = replace(event, extensions={**event.extensions, **self._settings.overrides})
        headers, body = event.encode_binary()
        try:
            async with (
                asyncio.timeout(self._settings.post_timeout_s) as limit,
                self._client.stream("POST", self._settings.sink, headers=headers, content=body) as answer,
            ):
                limit.reschedule(None)  # the status decides, whatever becomes of the body
                await _read(answer)
        except TimeoutError:
            return Refusal(f"no answer within {self._settings.post_timeout_s} s")
        except httpx.HTTPError as error:
            return Refusal(f"{type(error).__name__}: {error}")
        if answer.is_success:
            return None
        return Refusal(f"status {answer.status_code}", retry_after(answer.headers, now=datetime.now(UTC)))


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

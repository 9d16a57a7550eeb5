"""Reads of dead letters and undelivered events: where each is in its tenant's list, and what is stored of it."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import LetterPlace


async def dead_letters(
    ledger: AsyncLedger, tenant: str, *, limit: int, after: LetterPlace | None = None
) -> list[LetterPlace]:
    """The tenant's dead letters, the last that failed first, behind `after` (keyset paging)."""
    return await _places(ledger, ledger.keys.dead_letters(tenant), limit=limit, after=after)


async def is_dead_letter(ledger: AsyncLedger, job_id: str, *, tenant: str) -> bool:
    """Whether the job is one of the tenant's dead letters."""
    return await ledger.ask("ZSCORE", ledger.keys.dead_letters(tenant), job_id) is not None


async def undelivered_places(
    ledger: AsyncLedger, tenant: str, *, limit: int, after: LetterPlace | None = None
) -> list[LetterPlace]:
    """The tenant's undelivered events, the last that failed first, behind `after` (keyset paging)."""
    return await _places(ledger, ledger.keys.undelivered_by_tenant(tenant), limit=limit, after=after)


async def undelivered(
    ledger: AsyncLedger, event_ids: Sequence[str], *, fields: Sequence[str]
) -> list[list[str | None]]:
    """These fields of each undelivered event, in one round trip; all None for one that does not exist."""
    replies = await ledger.ask_each([("HMGET", ledger.keys.undelivered(event_id), *fields) for event_id in event_ids])
    return [[None if value is None else value.decode() for value in reply] for reply in replies]


async def _places(ledger: AsyncLedger, key: str, *, limit: int, after: LetterPlace | None) -> list[LetterPlace]:
    """The members of the sorted set `key`, by time and then id, the newest first."""
    highest = f"{after.ended}" if after else "+inf"
    found: list[LetterPlace] = []
    start = 0
    while True:
        raw = await ledger.ask("ZREVRANGEBYSCORE", key, highest, "-inf", "WITHSCORES", "LIMIT", start, limit)
        places = [LetterPlace(int(score), member.decode()) for member, score in raw]
        # Only those of the same millisecond as `after` may be before it.
        found += [place for place in places if after is None or place < after]
        if len(found) >= limit or len(raw) < limit:
            return found[:limit]
        start += limit

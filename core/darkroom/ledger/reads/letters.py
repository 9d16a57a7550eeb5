"""Reads of dead letters and undelivered events: where each is in its tenant's list, and what is stored of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from darkroom.ledger.client import AsyncLedger

_CURSOR = re.compile(r"([0-9]{1,15})-(.+)")


@dataclass(frozen=True, order=True)
class ListPosition:
    """Where a dead letter or undelivered event is in its tenant's list: when it failed last (ms), then its id."""

    at: int
    id: str

    @classmethod
    def parse(cls, cursor: str, *, is_id: Callable[[str], bool]) -> ListPosition:
        """The position that a page's cursor encodes. Raises ValueError."""
        match = _CURSOR.fullmatch(cursor)
        if match is None or not is_id(match[2]):
            raise ValueError("must be the `next` of an earlier page")
        return cls(int(match[1]), match[2])

    @property
    def cursor(self) -> str:
        """The cursor of the page behind it, which `parse` decodes."""
        return f"{self.at}-{self.id}"


async def dead_letters(
    ledger: AsyncLedger, tenant: str, *, limit: int, after: ListPosition | None = None
) -> list[ListPosition]:
    """The tenant's dead letters, the last that failed first, behind `after` (keyset paging)."""
    return await _positions(ledger, ledger.keys.dead_letters(tenant), limit=limit, after=after)


async def is_dead_letter(ledger: AsyncLedger, job_id: str, *, tenant: str) -> bool:
    """Whether the job is one of the tenant's dead letters."""
    return await ledger.ask("ZSCORE", ledger.keys.dead_letters(tenant), job_id) is not None


async def undelivered_positions(
    ledger: AsyncLedger, tenant: str, *, limit: int, after: ListPosition | None = None
) -> list[ListPosition]:
    """The tenant's undelivered events, the last that failed first, behind `after` (keyset paging)."""
    return await _positions(ledger, ledger.keys.undelivered_by_tenant(tenant), limit=limit, after=after)


async def undelivered(
    ledger: AsyncLedger, event_ids: Sequence[str], *, fields: Sequence[str]
) -> list[list[str | None]]:
    """These fields of each undelivered event, in one round trip; all None for one that does not exist."""
    replies = await ledger.ask_each([("HMGET", ledger.keys.undelivered(event_id), *fields) for event_id in event_ids])
    return [[None if value is None else value.decode() for value in reply] for reply in replies]


async def _positions(ledger: AsyncLedger, key: str, *, limit: int, after: ListPosition | None) -> list[ListPosition]:
    """The members of the sorted set `key`, by time and then id, the newest first."""
    highest = f"{after.at}" if after else "+inf"
    found: list[ListPosition] = []
    start = 0
    while True:
        raw = await ledger.ask("ZREVRANGEBYSCORE", key, highest, "-inf", "WITHSCORES", "LIMIT", start, limit)
        positions = [ListPosition(int(score), member.decode()) for member, score in raw]
        # Only those of the same millisecond as `after` may be before it.
        found += [position for position in positions if after is None or position < after]
        if len(found) >= limit or len(raw) < limit:
            return found[:limit]
        start += limit

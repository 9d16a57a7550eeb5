"""Retention: deletes jobs after their retention time, completes interrupted deletions, and deletes orphaned artifacts.

Without `DARKROOM_RETENTION_DAYS` no job is deleted; the rest is done all the same. It works in slices, so that database
and store can serve others meanwhile. Any number of couriers may run it: a second deletion of a job finds nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from darkroom.artifacts import Stored
from darkroom.checks.orphans import orphans
from darkroom.history.deletion import Deletion
from darkroom.history.store import Tombstone
from darkroom.ledger import reads
from darkroom.logs import logger

from darkroom_courier.settings import CourierSettings

SLICE = 100
"""Jobs deleted in one round, whose limit is 20 s: with a slow store, 0.1 s for each of eight at a time."""

FIRST_SEARCH_S = 60.0
"""The first search after the courier's start: by then the database has its tables."""

ORPHANS_EVERY = 24
"""Intervals between two searches for orphans, which list the whole store. A day, with the default interval."""

DAY_MS = 24 * 3600 * 1000

_log = logger(__name__)


class Retention:
    """`step` is called in each round of the loop, and does nothing until the retention interval is over."""

    def __init__(self, deletion: Deletion, settings: CourierSettings) -> None:
        self._deletion = deletion
        self._days = settings.retention_days
        self._every_s = settings.retention_interval_s
        self._due = time.monotonic() + min(self._every_s, FIRST_SEARCH_S)
        self._orphan_age = timedelta(seconds=settings.orphan_age_s)
        self._searches = 0
        self._listing: AsyncIterator[list[Stored]] | None = None

    async def step(self) -> bool:
        """Delete one slice, or check one page of the store. True: there may be more.

        Raises LedgerUnavailable, HistoryUnavailable and StoreUnavailable; the next step begins again.
        """
        if time.monotonic() < self._due:
            return False
        now = await reads.now(self._deletion.ledger)
        left = await self._deletion.history.unfinished(limit=SLICE)
        over: list[Tombstone] = []
        if self._days is not None:
            over = await self._deletion.history.replace_older(now - self._days * DAY_MS, limit=SLICE, now=now)
        await self._deletion.finish([*left, *over], now=now)
        for event, tombstones in (("deletions_finished", left), ("retention_over", over)):
            if tombstones:
                _log.info(event, jobs=[tombstone.job_id for tombstone in tombstones])
        if SLICE in (len(left), len(over)):
            return True
        if self._searches % ORPHANS_EVERY == 0 and await self._remove_orphans():
            return True
        self._searches += 1
        self._due = time.monotonic() + self._every_s
        return False

    async def _remove_orphans(self) -> bool:
        """Delete the orphans on one page of the store. True: there are more pages."""
        listing = self._listing or self._deletion.store.pages()
        self._listing = None  # a listing that fails begins again
        page = await anext(listing, None)
        if page is None:
            return False
        before = datetime.now(UTC) - self._orphan_age
        found = await orphans(
            [stored.key for stored in page if stored.written < before],
            ledger=self._deletion.ledger,
            history=self._deletion.history,
        )
        if found:
            await self._deletion.store.discard([orphan.key for orphan in found])
            _log.info("orphans_removed", jobs=sorted({orphan.job for orphan in found}), artifacts=len(found))
        self._listing = listing
        return True

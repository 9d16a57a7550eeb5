"""Retention: jobs whose time is over are deleted, and deletions that stopped half-way are finished.

Without `DARKROOM_RETENTION_DAYS` jobs are kept for ever, and only the second is done. It goes in slices, so that the
database and the store have time for others, and any number of couriers may do it: who comes second finds nothing left.
"""

from __future__ import annotations

import time

from darkroom.deletion import Deletion
from darkroom.history import Tombstone
from darkroom.logs import logger

from darkroom_courier.settings import CourierSettings

SLICE = 100
"""Jobs deleted in one round, which may take 20 s: with a slow store, 0.1 s for each of eight at a time."""

FIRST_LOOK_S = 60.0
"""After the courier's start: by then the database has its table, if it is there at all."""

DAY_MS = 24 * 3600 * 1000

_log = logger(__name__)


class Retention:
    """`step` is called every tick, and looks into the database every so often only."""

    def __init__(self, deletion: Deletion, settings: CourierSettings) -> None:
        self._deletion = deletion
        self._days = settings.retention_days
        self._every_s = settings.retention_every_s
        self._due = time.monotonic() + min(self._every_s, FIRST_LOOK_S)

    async def step(self) -> bool:
        """Delete one slice. True: there may be more. Raises what is away; a step after that begins anew."""
        if time.monotonic() < self._due:
            return False
        now = time.time_ns() // 1_000_000
        left = await self._deletion.history.unfinished(limit=SLICE)
        over = [] if self._days is None else await self._bury(before=now - self._days * DAY_MS, now=now)
        await self._deletion.finish([*left, *over], now=now)
        for event, tombstones in (("deletions_finished", left), ("retention_over", over)):
            if tombstones:
                _log.info(event, jobs=[tombstone.job_id for tombstone in tombstones])
        if SLICE in (len(left), len(over)):
            return True
        self._due = time.monotonic() + self._every_s
        return False

    async def _bury(self, *, before: int, now: int) -> list[Tombstone]:
        return await self._deletion.history.bury_older(before, limit=SLICE, now=now)

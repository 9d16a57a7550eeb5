"""Deletion: an ended job goes, from everywhere, and leaves a tombstone.

The jobs function deletes for an owner, the courier when a job's time is over. First the tombstone takes the place of
the record in the history, then what Redis has of it goes, so that nobody is shown what is about to vanish, then its
artifacts. Every step may be repeated: a deletion that stopped half-way is finished by another, or by the courier, which
looks for tombstones whose job was not found to be gone everywhere (`History.unfinished`).

An end that nobody has been told of yet is told no more: there is nothing left to tell of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.artifacts import ArtifactStore, artifact_folder
from darkroom.errors import DarkroomError, NotEnded
from darkroom.history.store import History, Tombstone
from darkroom.ledger.calls import Deleted, delete_job
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord

AT_ONCE = 8
"""Jobs whose artifacts are removed at one time. Removing is a list and a request: the store's latency, not its load."""


@dataclass(frozen=True)
class Deletion:
    """Where a job can be."""

    ledger: AsyncLedger
    history: History
    store: ArtifactStore

    async def delete(self, record: JobRecord, *, now: int) -> None:
        """Delete an ended job. Raises NotEnded, and what is away: then it may be half done, and is to be repeated."""
        if not record.state.is_terminal:
            raise NotEnded(f"job {record.id} is {record.state}: cancel it first, and wait for its end")
        await self.finish([await self.history.bury(record, now=now)], now=now)

    async def finish(self, tombstones: Sequence[Tombstone], *, now: int) -> None:
        """Remove what is left of these jobs beside their tombstones. Raises as `delete` does."""
        answers = await self.ledger.run_each(
            [delete_job(tombstone.job_id, tenant=tombstone.tenant) for tombstone in tombstones]
        )
        gone: list[Tombstone] = []
        for tombstone, answer in zip(tombstones, answers, strict=True):
            if isinstance(answer, DarkroomError):
                raise answer
            # Alive again: Redis lost its last second, in which the job had ended. It is finished when it has once more.
            if answer is Deleted.GONE:
                gone.append(tombstone)
        places = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._remove_artifacts(tombstone, places) for tombstone in gone))
        await self.history.cleared([tombstone.job_id for tombstone in gone], now=now)

    async def _remove_artifacts(self, tombstone: Tombstone, places: asyncio.Semaphore) -> None:
        async with places:
            await self.store.remove(artifact_folder(tenant=tombstone.tenant, job_id=tombstone.job_id))

"""Deletion: removes a terminal job from Redis, the history and the object store, and leaves a tombstone.

The jobs function deletes on request, the courier after retention. First the tombstone replaces the record in the
history, then the job is deleted from Redis, so that no reader sees it while it vanishes, then its artifacts are
removed. Every step may be repeated: an interrupted deletion is completed by a repeat, or by the courier, which reads
the tombstones of incomplete deletions (`History.unfinished`).

A pending event of a deleted job is not published.
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
"""Jobs whose artifacts are removed concurrently. A removal is a list and a request, whose latency counts, not load."""


@dataclass(frozen=True)
class Deletion:
    """Deletes jobs from the ledger, the history and the object store."""

    ledger: AsyncLedger
    history: History
    store: ArtifactStore

    async def delete(self, record: JobRecord, *, now: int) -> None:
        """Delete a terminal job. Raises NotEnded.

        Raises LedgerUnavailable, HistoryUnavailable and StoreUnavailable; the deletion may be incomplete then, and has
        to be repeated.
        """
        if not record.state.is_terminal:
            raise NotEnded(f"job {record.id} is {record.state}: cancel it first, and wait until it is terminal")
        await self.finish([await self.history.write_tombstone(record, now=now)], now=now)

    async def finish(self, tombstones: Sequence[Tombstone], *, now: int) -> None:
        """Remove the remaining data of these jobs beside their tombstones. Raises as `delete`."""
        answers = await self.ledger.run_each(
            [delete_job(tombstone.job_id, tenant=tombstone.tenant) for tombstone in tombstones]
        )
        gone: list[Tombstone] = []
        for tombstone, answer in zip(tombstones, answers, strict=True):
            if isinstance(answer, DarkroomError):
                raise answer
            # Not terminal: Redis lost its last second, in which the job finished. It is removed when it finishes again.
            if answer is Deleted.GONE:
                gone.append(tombstone)
        limit = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._remove_artifacts(tombstone, limit) for tombstone in gone))
        await self.history.mark_cleared([tombstone.job_id for tombstone in gone], now=now)

    async def _remove_artifacts(self, tombstone: Tombstone, limit: asyncio.Semaphore) -> None:
        async with limit:
            await self.store.remove(artifact_folder(tenant=tombstone.tenant, job_id=tombstone.job_id))

"""Lookup: a tenant's jobs in the ledger or, later, in the history.

The functions read jobs through it. A job is always in one of the two: its time to live in Redis starts after the
history has it. The ledger is read first and takes precedence; the history is read for everything else, including large
inputs of finished jobs. While the history is unavailable, it is unknown whether it has a job: the error is
HistoryUnavailable, and never NotFound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from darkroom.errors import Gone, HistoryUnavailable, NotFound
from darkroom.history.store import History, PastJob, Tombstone
from darkroom.jobs import State
from darkroom.ledger import reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord, LogEntry, Page


@dataclass(frozen=True)
class Listed:
    """A page of jobs. Unless `is_complete`, the history was unavailable, and the page has jobs in Redis only."""

    page: Page
    is_complete: bool


class Lookup:
    """Reads jobs. Every method may raise LedgerUnavailable and HistoryUnavailable."""

    def __init__(self, ledger: AsyncLedger, history: History) -> None:
        self._ledger = ledger
        self._history = history

    async def find(self, job_id: str, *, tenant: str) -> JobRecord | Tombstone | None:
        """The job, or its tombstone."""
        record = await self._ledger.job(job_id, tenant=tenant)
        if record is not None and record.is_whole:
            return record
        past = await self._history.job(job_id, tenant=tenant)
        if isinstance(past, PastJob):
            return past.record if record is None else replace(record, input=past.record.input, is_whole=True)
        return past

    async def completed(self, records: Sequence[JobRecord]) -> list[JobRecord]:
        """The records with their inputs. Jobs that were deleted meanwhile are left out."""
        wanted = [record.id for record in records if not record.is_whole]
        if not wanted:
            return list(records)
        inputs = await self._history.inputs(wanted)
        return [
            record if record.is_whole else replace(record, input=inputs[record.id], is_whole=True)
            for record in records
            if record.is_whole or record.id in inputs
        ]

    async def job(self, job_id: str, *, tenant: str) -> JobRecord:
        """Raises NotFound, and Gone for a job that was deleted."""
        found = await self.find(job_id, tenant=tenant)
        if not isinstance(found, JobRecord):
            raise _absence(job_id, found)
        return found

    async def past(self, job_id: str, *, tenant: str) -> JobRecord | None:
        """A job that the ledger no longer has, from the history; None where there is none.

        Raises Gone for a job that was deleted.
        """
        found = await self._history.job(job_id, tenant=tenant)
        if isinstance(found, Tombstone):
            raise found.gone
        return None if found is None else found.record

    async def job_with_log(self, job_id: str, *, tenant: str) -> tuple[JobRecord, Sequence[LogEntry]]:
        """The job, and the stored part of its log: in the history, the entries of its attempts.

        Raises NotFound, and Gone for a job that was deleted.
        """
        record = await self._ledger.job(job_id, tenant=tenant)
        if record is None or not record.is_whole:
            past = await self._history.job(job_id, tenant=tenant)
            if not isinstance(past, PastJob):
                raise _absence(job_id, past)
            if record is None:
                return past.record, past.log
            whole = replace(record, input=past.record.input, is_whole=True)
            return whole, await reads.log(self._ledger, job_id) or past.log
        later = await reads.log(self._ledger, job_id)
        log = [entry for entry in later if entry.seq <= record.seq]  # as it was when the record was read
        return record, log or await self._kept_log(record)

    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        after: str | None = None,
        state: State | None = None,
        model: str | None = None,
        user_id: str | None = None,
    ) -> Listed:
        """A page of the tenant's jobs, newest first, below the job id `after` (keyset paging).

        While the history is unavailable, the page has the jobs in Redis; raises HistoryUnavailable if there are none.
        """
        recent = await reads.page(
            self._ledger, tenant, limit=limit, after=after, state=state, model=model, user_id=user_id
        )
        if state is not None and not state.is_terminal:
            return Listed(recent, is_complete=True)
        try:
            past = await self._history.page(tenant, limit=limit, after=after, state=state, model=model, user_id=user_id)
        except HistoryUnavailable:
            whole = tuple(record for record in recent.jobs if record.is_whole)
            if not whole:
                raise
            return Listed(Page(whole, recent.after or recent.jobs[-1].id), is_complete=False)
        return Listed(merged(recent, past, limit=limit), is_complete=True)

    async def _kept_log(self, record: JobRecord) -> Sequence[LogEntry]:
        """The log of a job whose record outlives its log in Redis."""
        if not record.state.is_terminal:
            return ()
        try:
            past = await self._history.job(record.id, tenant=record.tenant)
        except HistoryUnavailable:
            return ()  # the record is returned without its attempts
        return past.log if isinstance(past, PastJob) else ()


def merged(recent: Page, past: Page, *, limit: int) -> Page:
    """Merge two pages of the same query. A job in both is taken from `recent`, with its input from `past` where only
    the history has it. If `past` lacks such a job, it was deleted meanwhile.

    A page with a cursor (`after`) has no jobs below that id: the merged page ends at the higher of the two cursors.
    """
    floor = max((page.after for page in (recent, past) if page.after is not None), default=None)
    records = {record.id: record for record in past.jobs}
    for record in recent.jobs:
        if record.is_whole:
            records[record.id] = record
        elif record.id in records:
            records[record.id] = replace(record, input=records[record.id].input, is_whole=True)
    known = [records[job_id] for job_id in sorted(records, reverse=True) if floor is None or job_id >= floor]
    if len(known) > limit:
        return Page(tuple(known[:limit]), known[limit - 1].id)
    return Page(tuple(known), floor)


def _absence(job_id: str, found: Tombstone | None) -> Gone | NotFound:
    return NotFound(f"there is no job {job_id}") if found is None else found.gone

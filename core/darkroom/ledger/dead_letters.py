"""Dead letters: jobs whose attempts are used up, stored with their log until they are purged or redriven.

A job becomes one when its last attempt fails (`finish_as_dead_letter` in `lua/prelude.lua`), not when its input or its
deadline ended it. It leaves the list when it is purged (`lua/jobs/purge_dead_letter.lua`), redriven as a new job
(`lua/jobs/accept.lua`), or deleted. Until then its record and its log have no time to live. The jobs function reads
them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from darkroom.cloudevents.event import requested_event
from darkroom.history.lookup import Lookup
from darkroom.jobs import JOB_ID_PATTERN, is_job_id
from darkroom.ledger import reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.reads import ListPosition
from darkroom.ledger.records import JobRecord, LogEntry

REDRIVE_OF = "redrive_of"
"""The field of a job that redrives a dead letter; its value is the id of the dead letter."""

CURSOR_PATTERN = f"[0-9]{{1,15}}-{JOB_ID_PATTERN}"
"""The cursors that `parse_cursor` accepts, for the OpenAPI document."""


@dataclass(frozen=True)
class DeadLetter:
    """A job whose attempts are used up, and its log, which has those attempts."""

    record: JobRecord
    log: Sequence[LogEntry]

    @property
    def event(self) -> dict[str, Any]:
        """The structured CloudEvent that requested the job."""
        record = self.record
        return requested_event(
            job_id=record.id,
            tenant=record.tenant,
            model=record.model,
            job_input=record.input,
            run_timeout=record.run_timeout,
            fields=record.fields,
            time_ms=record.created,
            traceparent=record.traceparent,
        )


@dataclass(frozen=True)
class LetterPage:
    """One page of a tenant's dead letters, the newest first. `after` is the cursor of the next page, or None."""

    letters: tuple[DeadLetter, ...]
    after: str | None


class DeadLetters:
    """Reads of a tenant's dead letters. Each may raise LedgerUnavailable, and HistoryUnavailable where only the history
    has a dead letter's input.
    """

    def __init__(self, ledger: AsyncLedger, lookup: Lookup) -> None:
        self._ledger = ledger
        self._lookup = lookup

    async def find(self, job_id: str, *, tenant: str) -> DeadLetter | None:
        if not await reads.is_dead_letter(self._ledger, job_id, tenant=tenant):
            return None
        found = await self._read([job_id], tenant=tenant)
        return found[0] if found else None

    async def page(self, tenant: str, *, limit: int, after: str | None = None) -> LetterPage:
        """Up to `limit` of them, behind the cursor `after` of the page before. Raises ValueError for an
        invalid cursor.
        """
        behind = None if after is None else parse_cursor(after)
        positions = await reads.dead_letters(self._ledger, tenant, limit=limit + 1, after=behind)
        shown = positions[:limit]
        letters = await self._read([position.id for position in shown], tenant=tenant)
        return LetterPage(tuple(letters), shown[-1].cursor if len(positions) > limit else None)

    async def _read(self, job_ids: Sequence[str], *, tenant: str) -> list[DeadLetter]:
        """Those that exist: one that was deleted meanwhile has no record."""
        found = [record for record in await self._ledger.jobs(job_ids, tenant=tenant) if record is not None]
        records = await self._lookup.completed(found)
        logs = await reads.logs(self._ledger, [record.id for record in records])
        return [DeadLetter(record, log) for record, log in zip(records, logs, strict=True)]


def parse_cursor(cursor: str) -> ListPosition:
    """The position that a page's `after` encodes. Raises ValueError."""
    return ListPosition.parse(cursor, is_id=is_job_id)

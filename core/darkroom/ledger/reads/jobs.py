"""Reads of many jobs: pages of a tenant's jobs, and what is still to be published of finished ones."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom.jobs import State
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.keys import PENDING_STARTS
from darkroom.ledger.reads.job_logs import log
from darkroom.ledger.reads.server import now
from darkroom.ledger.records import JobRecord, LogEntry, Marks, Outbox, Page

OUTBOX_SAMPLE = 500
"""Entries at either end of a long outbox among which the oldest is searched: the last due were postponed most often."""

SCAN_SLICE = 200
"""Records that one round trip of a list reads at most."""

SCAN_LIMIT = 2_000
"""Records that one page examines before it returns what it has, with a cursor for the next page."""


async def page(
    ledger: AsyncLedger,
    tenant: str,
    *,
    limit: int,
    after: str | None = None,
    state: State | None = None,
    model: str | None = None,
    user_id: str | None = None,
) -> Page:
    """A page of the tenant's jobs, newest first, below the job id `after` (keyset paging).

    A page with few matches ends after SCAN_LIMIT records, with a cursor for the next one.
    """
    found: list[JobRecord] = []
    examined = 0
    cursor = after
    unfiltered = state is None and model is None and user_id is None
    while examined < SCAN_LIMIT:
        # One record more than the page needs shows whether there is a next page.
        wanted = min(limit - len(found) + 1, SCAN_SLICE) if unfiltered else SCAN_SLICE
        highest = f"({cursor}" if cursor else "+"
        raw = await ledger.ask("ZREVRANGEBYLEX", ledger.keys.tenant(tenant), highest, "-", "LIMIT", 0, wanted)
        ids = [item.decode() for item in raw]
        for job_id, record in zip(ids, await ledger.jobs(ids, tenant=None), strict=True):
            cursor = job_id
            examined += 1
            if (
                record is None
                or (state is not None and record.state is not state)
                or (model is not None and record.model != model)
                or (user_id is not None and record.fields.get("user_id") != user_id)
            ):
                continue
            found.append(record)
            if len(found) == limit:
                more = len(ids) == wanted or job_id != ids[-1]
                return Page(tuple(found), cursor if more else None)
        if len(ids) < wanted:
            return Page(tuple(found), None)
    return Page(tuple(found), cursor)


async def pending_starts(ledger: AsyncLedger, job_ids: Sequence[str]) -> list[list[LogEntry]]:
    """The `started` events of each job that are still to be published, in order; its terminal event is not included."""
    replies = await ledger.ask_each([("HGET", ledger.keys.job(job_id), PENDING_STARTS) for job_id in job_ids])
    starts: list[list[LogEntry]] = []
    for job_id, reply in zip(job_ids, replies, strict=True):
        wanted = {int(seq) for seq in reply.split()} if reply else set()
        starts.append([entry for entry in await log(ledger, job_id) if entry.seq in wanted] if wanted else [])
    return starts


async def marks(ledger: AsyncLedger, job_ids: Sequence[str]) -> list[Marks | None]:
    """Whether each finished job was applied and is a dead letter, in one round trip; None where the record is gone."""
    replies = await ledger.ask_each([("HMGET", ledger.keys.job(job_id), "id", "applied", "dead") for job_id in job_ids])
    return [
        Marks(None if applied is None else int(applied), is_dead=dead is not None) if found else None
        for found, applied, dead in replies
    ]


async def outbox(ledger: AsyncLedger) -> Outbox:
    """How many jobs have events to be published. They are ordered by when they are due, so both ends are searched for
    the oldest.
    """
    key = ledger.keys.outbox
    jobs, first, last = await ledger.ask_each(
        [("ZCARD", key), ("ZRANGE", key, 0, OUTBOX_SAMPLE - 1), ("ZREVRANGE", key, 0, OUTBOX_SAMPLE - 1)]
    )
    times = await ledger.ask_each(
        [("HMGET", ledger.keys.job(each.decode()), "ended", "attempt_started") for each in {*first, *last}]
    )
    at = await now(ledger)
    return Outbox(jobs, max((at - int(ended or started or at) for ended, started in times), default=0))

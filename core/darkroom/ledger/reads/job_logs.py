"""Reads of the logs of jobs, and of the streams that hold the events of all jobs of a tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import STREAM_START_ID, LogEntry, StreamEntry, decode_entry, decode_stream_entry


async def log(ledger: AsyncLedger, job_id: str, *, after: int = 0, limit: int | None = None) -> list[LogEntry]:
    """The job's log above the number `after`, in order; at most `limit` entries."""
    count = () if limit is None else ("COUNT", limit)
    entries = await ledger.ask("XRANGE", ledger.keys.log(job_id), f"{after + 1}-0", "+", *count)
    return [decode_entry(job_id, *entry) for entry in entries]


async def logs(ledger: AsyncLedger, job_ids: Sequence[str]) -> list[list[LogEntry]]:
    """The whole log of each job, in one round trip; empty where it is no longer stored."""
    replies = await ledger.ask_each([("XRANGE", ledger.keys.log(job_id), "-", "+") for job_id in job_ids])
    return [[decode_entry(job_id, *entry) for entry in reply] for job_id, reply in zip(job_ids, replies, strict=True)]


async def log_heads(ledger: AsyncLedger, job_ids: Sequence[str]) -> list[LogEntry | None]:
    """The newest entry of each job's log, in one round trip."""
    replies = await ledger.ask_each(
        [("XREVRANGE", ledger.keys.log(job_id), "+", "-", "COUNT", 1) for job_id in job_ids]
    )
    return [decode_entry(job_id, *reply[0]) if reply else None for job_id, reply in zip(job_ids, replies, strict=True)]


async def log_entries(ledger: AsyncLedger, numbers: Mapping[str, int]) -> dict[str, LogEntry | None]:
    """The entry with that number in each job's log, in one round trip; None where the log has none."""
    replies = await ledger.ask_each(
        [("XRANGE", ledger.keys.log(job_id), f"{seq}-0", f"{seq}-0") for job_id, seq in numbers.items()]
    )
    return {
        job_id: decode_entry(job_id, *reply[0]) if reply else None
        for job_id, reply in zip(numbers, replies, strict=True)
    }


async def tenant_stream(ledger: AsyncLedger, tenant: str, *, after: str, limit: int) -> list[StreamEntry]:
    """The events of the tenant's jobs after the position `after`, in order, without progress.

    The data of a terminal event comes from the job's record.
    """
    raw = await ledger.ask("XRANGE", ledger.keys.tenant_stream(tenant), f"({after}", "+", "COUNT", limit)
    found = [(position.decode(), decode_stream_entry(fields)) for position, fields in raw]
    finished = dict.fromkeys(entry.job_id for _, entry in found if entry.state.is_terminal)
    records = dict(zip(finished, await ledger.jobs(list(finished), tenant=tenant), strict=True))
    events: list[StreamEntry] = []
    for position, entry in found:
        if not entry.state.is_terminal:
            events.append(StreamEntry(position, entry, is_whole=True))
            continue
        record = records[entry.job_id]
        end = None if record is None else record.end
        whole = entry if end is None else replace(entry, data=end.data)
        events.append(StreamEntry(position, whole, is_whole=end is not None))
    return events


async def stream_head(ledger: AsyncLedger, tenant: str) -> str:
    """The position of the newest event in the tenant's stream; STREAM_START_ID where there is none."""
    newest = await ledger.ask("XREVRANGE", ledger.keys.tenant_stream(tenant), "+", "-", "COUNT", 1)
    return newest[0][0].decode() if newest else STREAM_START_ID


async def has_stream_entry(ledger: AsyncLedger, tenant: str, position: str) -> bool:
    """Whether the tenant's stream still has the event at that position."""
    return bool(await ledger.ask("XRANGE", ledger.keys.tenant_stream(tenant), position, position))

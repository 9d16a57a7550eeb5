"""Reads of pools and their workers."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom.errors import DarkroomError
from darkroom.ledger import calls
from darkroom.ledger.calls import DUE_SOON_MS, Reading
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import ForeignMessages, WorkerRecord, pairs


async def pools(ledger: AsyncLedger) -> list[str]:
    """The pools that were announced, in name order."""
    return sorted(name.decode() for name in await ledger.ask("SMEMBERS", ledger.keys.pools))


async def pools_of(ledger: AsyncLedger, owner: str) -> list[str]:
    """The pools that this owner announced and that accept jobs, in name order."""
    names = await pools(ledger)
    replies = await ledger.ask_each([("HMGET", ledger.keys.pool(name), "owner", "models") for name in names])
    return [
        name
        for name, (found, models) in zip(names, replies, strict=True)
        if found is not None and found.decode() == owner and models
    ]


async def observe(
    ledger: AsyncLedger, pools: Sequence[str], *, soon_ms: int = DUE_SOON_MS
) -> dict[str, Reading | DarkroomError]:
    """The jobs and the workers of each pool, in one round trip.

    Each reading is of one moment; in place of one that failed is its error.
    """
    readings = await ledger.run_each([calls.observe(pool, soon_ms=soon_ms) for pool in pools])
    return dict(zip(pools, readings, strict=True))


async def foreign_messages(ledger: AsyncLedger, pools: Sequence[str]) -> dict[str, ForeignMessages]:
    """The foreign messages that were dropped in each pool."""
    fields = ("foreign", "foreign_at", "foreign_reason")
    replies = await ledger.ask_each([("HMGET", ledger.keys.pool(pool), *fields) for pool in pools])
    return {
        pool: ForeignMessages(int(count or 0), int(last or 0), (reason or b"").decode())
        for pool, (count, last, reason) in zip(pools, replies, strict=True)
    }


async def decisions(ledger: AsyncLedger, pool: str, *, limit: int | None = None) -> list[str]:
    """The pool's decision log, oldest entry first, each as `DecisionEntry.decode` reads it; the last `limit`."""
    count = () if limit is None else ("COUNT", limit)
    entries = await ledger.ask("XREVRANGE", ledger.keys.decisions(pool), "+", "-", *count)
    return [pairs(fields)["entry"] for _, fields in reversed(entries)]


async def workers(ledger: AsyncLedger) -> list[WorkerRecord]:
    """The workers whose heartbeat is recent, in name order."""
    raw, busy = await ledger.ask_each([("ZRANGE", ledger.keys.workers, 0, -1), ("HGETALL", ledger.keys.busy)])
    names = sorted(name.decode() for name in raw)
    jobs = pairs(busy)
    records = await ledger.ask_each([("HGETALL", ledger.keys.worker(name)) for name in names])
    return [
        WorkerRecord(name, raw["pool"], raw["pod"], raw["state"], int(raw["seen"]), jobs.get(name))
        for name, raw in zip(names, map(pairs, records), strict=True)
        if raw
    ]

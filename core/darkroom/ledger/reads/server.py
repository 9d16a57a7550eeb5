"""Reads of Redis as a whole: its clock, its memory, and the epoch of the ledger."""

from __future__ import annotations

from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.epochs import LedgerEpoch
from darkroom.ledger.records import Memory


async def now(ledger: AsyncLedger) -> int:
    """The time by Redis' clock (ms). Ages of what the ledger dated are computed with it, on any machine."""
    seconds, micros = await ledger.ask("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def memory(ledger: AsyncLedger) -> Memory:
    """Redis' memory: used, and its limit."""
    info = (await ledger.ask("INFO", "memory")).decode()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return Memory(int(fields["used_memory"]), int(fields["maxmemory"]))


async def epoch(ledger: AsyncLedger) -> LedgerEpoch:
    """The epoch of the ledger, and whether it lost data (`epochs.py`)."""
    return LedgerEpoch.decode(
        await ledger.ask("HMGET", ledger.keys.epoch, "epoch", "beats", "at", "lost_from", "lost_to")
    )


async def unfinished_bytes(ledger: AsyncLedger) -> int:
    """The bytes that unfinished jobs of all pools count for in the limit of `accept`."""
    return int(await ledger.ask("HGET", ledger.keys.counters, "unfinished_bytes") or 0)

"""Reads of the copy of tenants and keys (`access/directory.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from darkroom.ledger.client import AsyncLedger


async def access_entries(ledger: AsyncLedger, names: Sequence[str]) -> list[bytes | None]:
    """Entries as they were published: the revision, a blank, the content. None where there is none."""
    found: list[bytes | None] = await ledger.ask("HMGET", ledger.keys.access, *names)
    return found


async def all_access_entries(ledger: AsyncLedger) -> Mapping[bytes, bytes]:
    """All entries by name."""
    found: Mapping[bytes, bytes] = await ledger.ask("HGETALL", ledger.keys.access)
    return found

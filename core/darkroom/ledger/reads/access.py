"""Reads of the copy of tenants and keys (`access/directory.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from darkroom.ledger.client import AsyncLedger


async def access_entries(ledger: AsyncLedger, names: Sequence[str]) -> list[bytes | None]:
    """Entries as they were published: the revision, a blank, the content. None where there is none."""
    found: list[bytes | None] = await ledger.ask("HMGET", ledger.keys.access, *names)
    return found


async def key_uses(ledger: AsyncLedger) -> Mapping[str, int]:
    """When keys were last used, in milliseconds since the epoch, as far as SQL does not have it."""
    found: Mapping[bytes, bytes] = await ledger.ask("HGETALL", ledger.keys.key_uses)
    return {key_id.decode(): int(at) for key_id, at in found.items()}

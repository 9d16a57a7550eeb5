"""Reads of the copy of tenants and keys (`access/directory.py`), and of the audit trail."""

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


async def audit_head(ledger: AsyncLedger) -> tuple[int, str] | None:
    """The end of the audit trail's chain as SQL had it last: number and hash; None where there is none."""
    seq, digest = await ledger.ask("HMGET", ledger.keys.audit_head, "seq", "digest")
    return None if seq is None or digest is None else (int(seq), digest.decode())

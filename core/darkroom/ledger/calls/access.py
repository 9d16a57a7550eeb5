"""Calls of tenants and keys."""

from __future__ import annotations

from collections.abc import Mapping

from darkroom.ledger.calls.call import Call


def publish_access(entries: Mapping[str, str], *, revision: int | None = None, restored: bool = False) -> Call[int]:
    """Store entries: the revision of the change, a blank and the content, which is empty where it was deleted.

    With `revision` they are all entries that there were then: others are removed, with `restored` later ones too.
    Returns how many changed.
    """
    args: list[str] = [part for name, entry in entries.items() for part in (f"={name}", entry)]
    if revision is not None:
        args += ("whole", "1", "revision", str(revision))
    if restored:
        args += ("restored", "1")
    return Call("publish_access", tuple(args), int)


def record_key_use(uses: Mapping[str, int], *, stored: bool = False) -> Call[str]:
    """Record when keys were used, in milliseconds since the epoch; `stored`: SQL has these times."""
    args = [part for key_id, at in uses.items() for part in (f"={key_id}", str(at))]
    if stored:
        args += ("stored", "1")
    return Call("record_key_use", tuple(args), bytes.decode)

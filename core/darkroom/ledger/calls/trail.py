"""Calls of the audit trail. Entries are texts (`darkroom.trail.entries`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darkroom.ledger.calls.call import Call, make_call

ABANDONED_MS = 10 * 60 * 1000
"""After this the outcome of an operation will not be recorded any more: no handler of an audited one runs as long."""


@dataclass(frozen=True)
class Collected:
    """The oldest entries, and the end of the chain that was published last, as number and hash."""

    entries: tuple[str, ...]
    head: tuple[int, str] | None


def append_audit(entries: Mapping[str, str], *, is_open: bool = False, now: int | None = None) -> Call[bool]:
    """Record entries by their uid; `is_open`: their outcome is recorded later. False: there is no room, and what they
    describe must not be done.
    """
    args = [part for uid, entry in entries.items() for part in (f"={uid}", entry)]
    if is_open:
        args += ("open", "1")
    if now is not None:
        args += ("now", str(now))
    return Call("append_audit", tuple(args), lambda reply: bool(reply == b"ok"))


def collect_audit(*, limit: int, abandoned_ms: int = ABANDONED_MS, now: int | None = None) -> Call[Collected]:
    """The oldest entries, those of abandoned operations included."""

    def decode(reply: list[bytes]) -> Collected:
        seq, digest, *entries = (each.decode() for each in reply)
        return Collected(tuple(entries), (int(seq), digest) if seq else None)

    return make_call("collect_audit", decode, limit=limit, abandoned_ms=abandoned_ms, now=now)


def drop_audit(entries: Sequence[str], *, seq: int, digest: str) -> Call[str]:
    """SQL has these entries, and the chain ends there. `entries` are as they were collected."""
    args = [part for number, entry in enumerate(entries) for part in (f"={number}", entry)]
    return Call("drop_audit", (*args, "seq", str(seq), "digest", digest), bytes.decode)

"""Calls of tenants, keys, tickets and sessions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from darkroom.ledger.calls.call import Call, make_call


class GrantKind(StrEnum):
    """What a credential is exchanged for: a single-use ticket, or a session."""

    TICKET = "ticket"
    SESSION = "session"


def publish_access(
    entries: Mapping[str, str], *, revision: int | None = None, restored: bool = False, now: int | None = None
) -> Call[int]:
    """Store entries: the revision of the change, a blank and the content, which is empty where it was deleted.

    With `revision` they are all entries that there were then: others are removed, with `restored` later ones too.
    Running limits in them apply to the jobs at once. Returns how many changed.
    """
    args: list[str] = [part for name, entry in entries.items() for part in (f"={name}", entry)]
    if revision is not None:
        args += ("whole", "1", "revision", str(revision))
    if restored:
        args += ("restored", "1")
    if now is not None:
        args += ("now", str(now))
    return Call("publish_access", tuple(args), int)


def record_key_use(uses: Mapping[str, int], *, stored: bool = False) -> Call[str]:
    """Record when keys were used, in milliseconds since the epoch; `stored`: SQL has these times."""
    args = [part for key_id, at in uses.items() for part in (f"={key_id}", str(at))]
    if stored:
        args += ("stored", "1")
    return Call("record_key_use", tuple(args), bytes.decode)


def issue_grant(
    kind: GrantKind,
    digest: str,
    *,
    owner: str,
    content: str,
    ttl_ms: int,
    life_ms: int,
    most: int,
    now: int | None = None,
) -> Call[int | None]:
    """Store a ticket or a session under the SHA-256 of its text, at most `most` of the kind for an owner.

    Returns None. Where the owner has as many tickets, nothing is stored, and the result is the time at which the next
    one expires, in milliseconds since the epoch; in place of a session that of the same owner that would expire first
    ends. A session that is used is extended until `life_ms` from now at the latest.
    """
    return make_call(
        "issue_grant",
        lambda reply: int(reply) or None,
        kind=kind.value,
        digest=digest,
        owner=owner,
        content=content,
        ttl=ttl_ms,
        life=life_ms,
        most=most,
        now=now,
    )


def redeem_ticket(digest: str, *, by: str, now: int | None = None) -> Call[bytes | None]:
    """Use up a ticket. Returns its content; None where it does not exist any more, or another redemption used it."""
    return make_call("redeem_ticket", lambda reply: reply, digest=digest, by=by, now=now)


def use_session(
    digest: str, *, idle_ms: int | None = None, step_ms: int = 1, now: int | None = None
) -> Call[tuple[bytes, int] | None]:
    """The content of a session, and when it ends at the latest, in milliseconds since the epoch; None if it has ended.

    With `idle_ms` it expires after that time without use, to `step_ms`.
    """

    def decode(reply: Any) -> tuple[bytes, int] | None:
        return None if reply is None else (reply[0], int(reply[1]))

    return make_call("use_session", decode, digest=digest, idle=idle_ms, step=step_ms, now=now)


def end_session(digest: str) -> Call[str]:
    """Delete a session."""
    return make_call("end_session", bytes.decode, digest=digest)

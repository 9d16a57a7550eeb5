"""Calls that lease what is to be published or archived, and that record that it was."""

from __future__ import annotations

from enum import StrEnum

from darkroom.jobs import RECORD_VERSION
from darkroom.ledger.calls.call import Call, ids, make_call, word

RELAY_LEASE_MS = 30_000
"""An event that was posted and not applied after this is posted again, then after twice that, and so on."""

HISTORY_LEASE_MS = 30_000
"""An ended job taken for the history and not archived after this is taken again: far longer than a commit."""


class Applied(StrEnum):
    """What the ledger says to an event that was taken in."""

    APPLIED = "applied"
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    NEWER = "newer"


class Archived(StrEnum):
    """What the ledger says to an ended job that the history has."""

    ARCHIVED = "archived"
    REPEATED = "repeated"
    UNKNOWN = "unknown"


def mark_applied(job_id: str, *, seq: int, now: int | None = None) -> Call[Applied]:
    """The event of the job that is entry `seq` of its log has been taken in: its end or, where somebody asked for that,
    its start.
    """
    return make_call("mark_applied", word(Applied), job=job_id, seq=seq, v=RECORD_VERSION, now=now)


def mark_archived(job_id: str, *, seq: int, now: int | None = None) -> Call[Archived]:
    """The ended job, whose terminal event is entry `seq` of its log, has been committed to the history."""
    return make_call("mark_archived", word(Archived), job=job_id, seq=seq, now=now)


def lease_relays(
    *, taker: str, call: str, limit: int, lease_ms: int = RELAY_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Up to `limit` jobs that have events to be posted, leased to `taker`. `call` names this call."""
    return make_call("lease_outbox", ids, kind="relay", taker=taker, call=call, limit=limit, lease_ms=lease_ms, now=now)


def reschedule_relay(job_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The sink did not take this job's event: it is due again in `delay_ms`."""
    return make_call("reschedule", int, kind="relay", job=job_id, delay_ms=delay_ms, now=now)


def lease_history(
    *, taker: str, call: str, limit: int, lease_ms: int = HISTORY_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Up to `limit` ended jobs that are to be written to the history, leased to `taker`. `call` names this call."""
    return make_call(
        "lease_outbox", ids, kind="history", taker=taker, call=call, limit=limit, lease_ms=lease_ms, now=now
    )


def reschedule_history(job_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The history did not take this job: it is due again in `delay_ms`."""
    return make_call("reschedule", int, kind="history", job=job_id, delay_ms=delay_ms, now=now)

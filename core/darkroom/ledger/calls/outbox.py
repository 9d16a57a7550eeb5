"""Calls that lease events to publish and jobs to archive, and record that it was done."""

from __future__ import annotations

from enum import StrEnum

from darkroom.jobs import RECORD_VERSION
from darkroom.ledger.calls.call import Call, ids, make_call, word

RELAY_LEASE_MS = 30_000
"""An event that was posted and not applied after this is posted again, then after twice that, and so on."""

HISTORY_LEASE_MS = 30_000
"""A finished job that was leased and not archived after this is leased again: far longer than a commit."""


class Applied(StrEnum):
    """The result of marking an event as applied."""

    APPLIED = "applied"
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    NEWER = "newer"


class Archived(StrEnum):
    """The result of marking a finished job as archived."""

    ARCHIVED = "archived"
    REPEATED = "repeated"
    UNKNOWN = "unknown"


def mark_applied(job_id: str, *, seq: int, now: int | None = None) -> Call[Applied]:
    """Record that entry `seq` of the job's log was applied as an event: its terminal event or, where a webhook asks for
    it, a start.
    """
    return make_call("mark_applied", word(Applied), job=job_id, seq=seq, v=RECORD_VERSION, now=now)


def mark_archived(job_id: str, *, seq: int, now: int | None = None) -> Call[Archived]:
    """Record that the finished job, whose terminal event is entry `seq` of its log, is committed to the history."""
    return make_call("mark_archived", word(Archived), job=job_id, seq=seq, now=now)


def lease_relays(
    *, owner: str, call: str, limit: int, lease_ms: int = RELAY_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Lease up to `limit` jobs with events to publish to `owner`. `call` identifies this call. Returns their ids."""
    return make_call("lease_outbox", ids, kind="relay", owner=owner, call=call, limit=limit, lease_ms=lease_ms, now=now)


def reschedule_relay(job_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The sink did not accept this job's event: it is due again in `delay_ms`."""
    return make_call("reschedule", int, kind="relay", job=job_id, delay_ms=delay_ms, now=now)


def lease_history(
    *, owner: str, call: str, limit: int, lease_ms: int = HISTORY_LEASE_MS, now: int | None = None
) -> Call[list[str]]:
    """Lease up to `limit` finished jobs to archive to `owner`. `call` identifies this call. Returns their ids."""
    return make_call(
        "lease_outbox", ids, kind="history", owner=owner, call=call, limit=limit, lease_ms=lease_ms, now=now
    )


def reschedule_history(job_id: str, *, delay_ms: int, now: int | None = None) -> Call[int]:
    """The history did not accept this job: it is due again in `delay_ms`."""
    return make_call("reschedule", int, kind="history", job=job_id, delay_ms=delay_ms, now=now)

"""Orphans: artifacts in the object store that no job publishes.

A worker stores its pictures before the ledger knows how the attempt ends, so those of an attempt that was cancelled,
lost or retried in that moment stay behind, and so do those that a lost worker writes after its job was deleted. They
are never shown. `darkroom audit` lists them, and the courier's retention removes them.

An artifact is an orphan only by what is known of its job: it ended and published others, or it was deleted. Of
a job that nothing is known about nothing is removed: the history may be the wrong database.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.history.store import History, PastJob, Tombstone
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord

ATTEMPT_KEY = re.compile(r"[^/]+/([0-9a-f-]{36})/([0-9]+)/[0-9]+-[0-9a-f]{64}\.[a-z0-9]+")
"""What `artifact_key` makes: the job and the attempt. What else is in the store is no attempt's."""


@dataclass(frozen=True)
class Orphan:
    """An artifact that no job publishes, and why."""

    key: str
    job: str
    reason: str


async def orphans(keys: Sequence[str], *, ledger: AsyncLedger, history: History | None) -> list[Orphan]:
    """Those of the keys that no job publishes. Raises LedgerUnavailable and HistoryUnavailable.

    The keys must have been listed before: what is published since is then seen. Without a history, the jobs of which
    Redis keeps a record are judged alone.
    """
    named = {key: found for key in keys if (found := ATTEMPT_KEY.fullmatch(key)) is not None}
    ids = sorted({found[1] for found in named.values()})
    records = {record.id: record for record in await ledger.jobs(ids, tenant=None) if record is not None}
    past = {} if history is None else await history.known(ids)
    judged = [
        (key, job_id, _reason(key, attempt, records.get(job_id), past.get(job_id)))
        for key, (job_id, attempt) in ((key, found.groups()) for key, found in named.items())
    ]
    return [Orphan(key, job_id, reason) for key, job_id, reason in judged if reason is not None]


def _reason(key: str, attempt: str, record: JobRecord | None, past: PastJob | Tombstone | None) -> str | None:
    """Why the artifact is an orphan, None for one that is not. A deletion that has begun is as good as done."""
    if isinstance(past, Tombstone):
        return "the job was deleted"
    known = [each for each in (record, None if past is None else past.record) if each is not None]
    if not known or not all(each.state.is_terminal for each in known):
        return None
    if any(key in _published(each) for each in known):
        return None
    return f"the job is {known[0].state}, and its attempt {attempt} did not publish this"


def _published(record: JobRecord) -> frozenset[str]:
    data = record.end_data or {}
    return frozenset(raw["key"] for raw in data.get("artifacts", ()))

"""Orphans: artifacts in the object store that no job publishes.

A worker stores its artifacts before the attempt finishes, so those of an attempt that is cancelled, lost or retried at
that moment remain, and so do those that a lost worker writes after its job was deleted. They are never shown.
`darkroom audit` lists them, and the courier's retention removes them.

An artifact is an orphan if its job is known to be terminal and publishes others, or was deleted. Artifacts of an
unknown job are not removed: the history may be the wrong database.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.history.store import History, PastJob, Tombstone
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord

ATTEMPT_KEY = re.compile(r"[^/]+/([0-9a-f-]{36})/([0-9]+)/[0-9]+-[0-9a-f]{64}\.[a-z0-9]+")
"""The keys that `artifact_key` makes, with job and attempt. Other keys in the store belong to no attempt."""


@dataclass(frozen=True)
class Orphan:
    """An artifact that no job publishes, and the reason."""

    key: str
    job: str
    reason: str


async def orphans(keys: Sequence[str], *, ledger: AsyncLedger, history: History | None) -> list[Orphan]:
    """The keys that no job publishes. Raises LedgerUnavailable and HistoryUnavailable.

    The keys have to be listed before the call, so that later publications are seen. Without a history only jobs whose
    record is in Redis are considered.
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
    """The reason why the artifact is an orphan, None for one that is not. A deletion that has begun counts as done."""
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

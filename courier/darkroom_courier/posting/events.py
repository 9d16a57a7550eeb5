"""Events: the CloudEvent for one entry of a job's log, the same for the sink and for webhooks.

Its data is the message that sockets receive (`darkroom/updates.py`), with further fields for receivers.
"""

from __future__ import annotations

from collections.abc import Mapping

from darkroom import updates
from darkroom.cloudevents import event
from darkroom.cloudevents.event import Event
from darkroom.ledger.records import JobRecord, LogEntry
from darkroom.links import Links


def job_event(
    record: JobRecord,
    entry: LogEntry,
    links: Links,
    *,
    source: str,
    now_s: float,
    extensions: Mapping[str, str] | None = None,
) -> Event:
    """The event for this entry, with these extensions added.

    The lifetime of its links to artifacts begins at `now_s` (seconds since the epoch).
    """
    data = updates.message(entry, links, now_s=now_s) | {"model": record.model}
    if "model_served" in entry.data:
        data["model_served"] = entry.data["model_served"]
    if "user_id" in record.fields:
        data["user_id"] = record.fields["user_id"]
    if artifacts := updates.artifacts_of(entry.data):
        data["artifacts"] = [
            {"sha256": a.sha256, "width": a.width, "height": a.height, "media_type": a.media_type} for a in artifacts
        ]
    return event.job_event(
        job_id=record.id,
        kind=entry.event,
        event_id=entry.event_id,
        seq=entry.seq,
        time_ms=entry.at,
        source=source,
        data=data,
        traceparent=record.traceparent,
        tenant=record.tenant,
        extensions=extensions,
    )

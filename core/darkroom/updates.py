"""What people are told: one entry of a job's log as a message on a socket, and as the data of a CloudEvent.

The result function sends these messages, the courier the CloudEvents, the command line shows them. The message keeps
the shape that clients of earlier systems know (`status` with its own words) and adds `seq`, `event_id` and `state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.jobs import Artifact, JobEvent, State
from darkroom.ledger.records import JobRecord, LogEntry
from darkroom.links import Links
from darkroom.times import iso

STATUS: Mapping[JobEvent, str] = {
    JobEvent.ACCEPTED: "pending",
    JobEvent.RELEASED: "pending",
    JobEvent.RETRIED: "pending",
    JobEvent.STARTED: "started",
    JobEvent.PROGRESSED: "processing",
    JobEvent.CANCELLING: "processing",
    JobEvent.COMPLETED: "completed",
    JobEvent.FAILED: "failed",
    JobEvent.CANCELLED: "cancelled",
    JobEvent.EXPIRED: "failed",
}
"""The word of a message for each entry of the log. Older clients know no `expired`: it is sent as `failed`."""

CELERY_STATUS: Mapping[State, str] = {
    State.PENDING: "PENDING",
    State.RUNNING: "STARTED",
    State.COMPLETED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.CANCELLED: "REVOKED",
    State.EXPIRED: "REVOKED",
}
"""Celery's words for `GET /tasks/{id}`; a job that waits for another attempt is RETRY (`celery_status`), whether or not
the one before counted: Celery's events, which Flower shows, know no way back to PENDING."""


def celery_status(record: JobRecord) -> str:
    """The job's state in Celery's words."""
    waits_again = record.state is State.PENDING and record.attempt > 0
    return "RETRY" if waits_again else CELERY_STATUS[record.state]


def message(entry: LogEntry, links: Links, *, now_s: float) -> dict[str, Any]:
    """A socket's message for one log entry: what `bare` has, and as fits `progress` (percent), `output_paths` (links),
    `content_id` (SHA-256 of the first picture), `error` (text).
    """
    update = bare(entry)
    if "progress" in entry.data:
        update["progress"] = entry.data["progress"]
    update |= outcome(entry.state, entry.data, links, now_s=now_s)
    return update


def bare(entry: LogEntry) -> dict[str, Any]:
    """What a message says without the entry's data: `job_id`, `status`, `timestamp`, `seq`, `event_id`, `state`."""
    return {
        "job_id": entry.job_id,
        "status": STATUS[entry.event],
        "timestamp": iso(entry.at),
        "seq": entry.seq,
        "event_id": entry.event_id,
        "state": entry.state.value,
    }


def outcome(state: State, data: Mapping[str, Any] | None, links: Links, *, now_s: float) -> dict[str, Any]:
    """What a terminal state adds for people: links and content id of a completed job, the error of another as text."""
    if data is None:
        return {}
    if state is State.COMPLETED:
        artifacts = artifacts_of(data)
        return {
            "progress": 100,
            "output_paths": [links.to(artifact.key, now_s=now_s) for artifact in artifacts],
            "content_id": artifacts[0].sha256 if artifacts else None,
        }
    if state.is_terminal and "error" in data:
        text = data["error"]["message"]
        return {"error": f"expired: {text}" if state is State.EXPIRED else text}
    return {}


def artifacts_of(data: Mapping[str, Any]) -> list[Artifact]:
    """The published pictures in the data of a `completed` entry."""
    return [Artifact.decode(raw) for raw in data.get("artifacts", [])]

"""Updates: one entry of a job's log as a message on a socket, and as the data of a CloudEvent.

The result function sends the messages, the courier the CloudEvents, and the command line shows them. The message has
the members that clients of earlier systems know (`status` with values of its own), and `seq`, `event_id` and `state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.jobs import Artifact, JobEvent, State, UnknownValue
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
"""The `status` of a message by event. Older clients do not know `expired`, which is sent as `failed`."""

CELERY_STATUS: Mapping[State, str] = {
    State.PENDING: "PENDING",
    State.RUNNING: "STARTED",
    State.COMPLETED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.CANCELLED: "REVOKED",
    State.EXPIRED: "REVOKED",
}
"""Celery's states for `GET /tasks/{id}`. A job that waits for another attempt is RETRY (`celery_status`), even if the
last attempt does not count: in Celery's events, which Flower shows, no task returns to PENDING."""


def celery_status(record: JobRecord) -> str:
    """The job's state in Celery's terms; an unknown state in capitals, as Celery's custom states are."""
    if isinstance(record.state, UnknownValue):
        return record.state.upper()
    waits_again = record.state is State.PENDING and record.attempt > 0
    return "RETRY" if waits_again else CELERY_STATUS[record.state]


def message(entry: LogEntry, links: Links, *, now_s: float) -> dict[str, Any]:
    """A socket's message for one log entry: the members of `bare`, and where they apply `progress` (percent),
    `output_paths` (links), `content_id` (SHA-256 of the first artifact) and `error` (text).
    """
    update = bare(entry)
    if "progress" in entry.data:
        update["progress"] = entry.data["progress"]
    update |= outcome(entry.state, entry.data, links, now_s=now_s)
    return update


def bare(entry: LogEntry) -> dict[str, Any]:
    """The members of every message: `job_id`, `status`, `timestamp`, `seq`, `event_id`, `state`."""
    return {
        "job_id": entry.job_id,
        "status": entry.event if isinstance(entry.event, UnknownValue) else STATUS[entry.event],
        "timestamp": iso(entry.at),
        "seq": entry.seq,
        "event_id": entry.event_id,
        "state": entry.state.value,
    }


def outcome(
    state: State | UnknownValue, data: Mapping[str, Any] | None, links: Links, *, now_s: float
) -> dict[str, Any]:
    """The members of a terminal state: links and content id of a completed job, the error of another one as text."""
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
    """The published artifacts in the data of a `completed` entry."""
    return [Artifact.decode(raw) for raw in data.get("artifacts", [])]

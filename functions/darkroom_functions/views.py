"""Views: a job or a dead letter as `jobs` shows it, made of its record, log and model. `openapi.py` describes them.

Older clients know a job's id as `job_id`, `task_id` or `celery_task_id`, its state as `status`, and its main
parameters at the top: all of them are here, beside the names that darkroom uses itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darkroom.dead_letters import REDRIVE_OF, DeadLetter
from darkroom.jobs import Artifact, JobEvent
from darkroom.ledger import JobRecord, LogEntry
from darkroom.links import Links
from darkroom.models import Catalogue
from darkroom.times import iso
from darkroom.updates import artifacts_of

TOP_PARAMETERS = ("prompt", "width", "height", "seed")
"""Parameters that also stand at the top of a view, null where the model has none of that name."""

ENDS_OF_ATTEMPT: Mapping[JobEvent, str] = {
    JobEvent.RELEASED: "released",
    JobEvent.RETRIED: "retried",
    JobEvent.COMPLETED: "completed",
    JobEvent.FAILED: "failed",
    JobEvent.CANCELLED: "cancelled",
}
"""The entries of a log that end the attempt before them, and its outcome in a view."""


def task(job_id: str, status: str) -> dict[str, Any]:
    """What `GET /tasks/{id}` says: the state in Celery's word, and never the result."""
    return {"task_id": job_id, "status": status}


def job(
    record: JobRecord, *, head: LogEntry | None, catalogue: Catalogue, links: Links, now_s: float
) -> dict[str, Any]:
    """All that the record says; `head` is the newest entry of the log, None where the log is no longer kept."""
    end = record.end_data or {}
    artifacts = artifacts_of(end)
    model = catalogue.models.get(record.model)
    served = model.served if model else record.model
    paths = [links.to(artifact.key, now_s=now_s) for artifact in artifacts]
    return {
        **dict.fromkeys(("id", "job_id", "task_id", "celery_task_id"), record.id),
        **dict.fromkeys(("state", "status"), record.state.value),
        "model": record.model,
        "model_served": end.get("model_served", served),
        "job_type": record.fields.get("job_type"),
        "user_id": record.fields.get("user_id"),
        **{name: record.input.get(name) for name in TOP_PARAMETERS},
        "input": record.input,
        "priority": record.priority,
        "run_timeout": record.run_timeout,
        "start_deadline": _time(record.start_deadline),
        "place": record.place,
        "progress": record.progress,
        "step": record.step,
        "steps": record.steps,
        "worker": record.worker,
        "attempt": record.attempt,
        "attempts_counted": record.counted,
        "max_attempts": record.max_attempts,
        "not_before": _time(record.not_before),
        "created_at": iso(record.created),
        "started_at": _time(record.started),
        "ended_at": _time(record.ended),
        "updated_at": _time(_updated(record, head)),
        "cancel_requested_at": _time(record.cancel_requested),
        "output_paths": paths,
        "artifacts": [_artifact(*pair) for pair in zip(artifacts, paths, strict=True)],
        "content_id": artifacts[0].sha256 if artifacts else None,
        "error": end.get("error"),
        "record": end.get("record"),
        "traceparent": record.traceparent,
        "redrive_of": record.fields.get(REDRIVE_OF),
    }


def dead_letter(letter: DeadLetter) -> dict[str, Any]:
    """A job whose attempts are used up: why it failed, each attempt, and the event that asked for it."""
    record = letter.record
    return {
        "id": record.id,
        "model": record.model,
        "user_id": record.fields.get("user_id"),
        "created_at": iso(record.created),
        "ended_at": _time(record.ended),
        "error": (record.end_data or {}).get("error"),
        "attempts": attempts(letter.log),
        "event": letter.event,
    }


def attempts(log: Sequence[LogEntry]) -> list[dict[str, Any]]:
    """Each execution of the job, in order, as the log tells it."""
    found: list[dict[str, Any]] = []
    for entry in log:
        if entry.event is JobEvent.STARTED:
            found.append(
                {
                    "number": entry.data["attempt"],
                    "worker": entry.data["worker"],
                    "started_at": iso(entry.at),
                    "ended_at": None,
                    "outcome": "running",
                    "reason": None,
                    "message": None,
                }
            )
        elif entry.event in ENDS_OF_ATTEMPT and found and found[-1]["ended_at"] is None:
            error = entry.data.get("error", {})
            found[-1] |= {
                "ended_at": iso(entry.at),
                "outcome": ENDS_OF_ATTEMPT[entry.event],
                "reason": error.get("kind", entry.data.get("reason")),
                "message": error.get("message"),
            }
    return found


def model_list(catalogue: Catalogue, schemas: Mapping[str, object]) -> dict[str, Any]:
    """What `GET /api/v1/models` says; `schemas` are those of the models' parameters, by model."""
    return {
        "models": [
            {
                "name": model.name,
                "title": model.title,
                "description": model.description,
                "served": model.served,
                "default": model.default,
                "run_timeout": model.run_timeout_s,
                "parameters": schemas[model.name],
            }
            for model in catalogue
        ]
    }


def _updated(record: JobRecord, head: LogEntry | None) -> int:
    """When the log was last written: without a log, when the job ended, for the log outlives everything else of it."""
    return head.at if head else record.ended or record.started or record.created


def _artifact(artifact: Artifact, url: str) -> dict[str, Any]:
    return {
        "url": url,
        "sha256": artifact.sha256,
        "media_type": artifact.media_type,
        "size": artifact.size,
        "width": artifact.width,
        "height": artifact.height,
    }


def _time(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)

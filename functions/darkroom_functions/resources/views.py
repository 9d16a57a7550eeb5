"""Views: the bodies of jobs, dead letters, undelivered events, subscriptions and deliveries (`schemas.py`).

Older clients read a job's id as `job_id`, `task_id` or `celery_task_id`, its state as `status`, and its main parameters
at the top level: a view has these members beside darkroom's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from darkroom.catalogue.models import Catalogue
from darkroom.jobs import JobEvent, UnknownValue
from darkroom.ledger.dead_letters import REDRIVE_OF, DeadLetter
from darkroom.ledger.records import FIELDS, FieldType, JobRecord, LogEntry
from darkroom.ledger.undelivered import Undelivered
from darkroom.links import Links
from darkroom.times import iso
from darkroom.updates import artifacts_of
from darkroom.webhooks.subscriptions import PER_JOB, TERMINAL_EVENTS, Delivery, Subscription, in_order

from darkroom_functions.resources.redaction import redacted
from darkroom_functions.resources.schemas import (
    AttemptBody,
    DeadLetterBody,
    DeliveryBody,
    ModelsBody,
    SecretBody,
    SubscriptionBody,
    TaskBody,
    UndeliveredEventBody,
)

TOP_PARAMETERS = ("prompt", "width", "height", "seed")
"""Parameters that are also members of a view, null where the model has no parameter of that name."""

NO_WEBHOOK: Mapping[str, None] = {"webhook": None, "webhook_events_filter": None}
"""The members of the view of a job without a webhook, in place of `Webhook.encode`."""

ENDS_OF_ATTEMPT: Mapping[JobEvent | UnknownValue, str] = {
    JobEvent.RELEASED: "released",
    JobEvent.RETRIED: "retried",
    JobEvent.COMPLETED: "completed",
    JobEvent.FAILED: "failed",
    JobEvent.CANCELLED: "cancelled",
}
"""The entries of a log that finish the attempt before them, and its outcome in a view."""


def task(job_id: str, status: str) -> TaskBody:
    """The body of `GET /tasks/{id}`: the state in Celery's terms, without the result."""
    return {"task_id": job_id, "status": status}


def job(
    record: JobRecord, *, head: LogEntry | None, catalogue: Catalogue, links: Links, now_s: float
) -> dict[str, Any]:
    """A job without its attempts; `head` is the newest entry of the log, None where the log is no longer stored."""
    end = record.end_data or {}
    artifacts = artifacts_of(end)
    model = catalogue.models.get(record.model)
    served = model.served if model else record.model
    paths = [links.to(artifact.key, now_s=now_s) for artifact in artifacts]
    return {
        **_recorded(record),
        "model_served": end.get("model_served", served),
        "job_type": record.fields.get("job_type"),
        "user_id": record.fields.get("user_id"),
        **{name: record.input.get(name) for name in TOP_PARAMETERS},
        "updated_at": _time(_updated(record, head)),
        "output_paths": paths,
        "artifacts": [_artifact(*pair) for pair in zip(end.get("artifacts", ()), paths, strict=True)],
        "content_id": artifacts[0].sha256 if artifacts else None,
        "error": end.get("error"),
        "record": end.get("record"),
        "redrive_of": record.fields.get(REDRIVE_OF),
        **(record.webhook.encode() if record.webhook else NO_WEBHOOK),
    }


def _recorded(record: JobRecord) -> dict[str, Any]:
    """The members that each show one field of the record (`RecordField.views`)."""
    members = dict(zip(_MEMBER_NAMES, _member_values(record), strict=True))
    for name in _TIMES:
        if members[name] is not None:
            members[name] = iso(members[name])
    return members


def job_with_attempts(
    record: JobRecord, log: Sequence[LogEntry], *, catalogue: Catalogue, links: Links, now_s: float
) -> dict[str, Any]:
    """A single job, with its attempts: `log` is the stored part of its log."""
    view = job(record, head=log[-1] if log else None, catalogue=catalogue, links=links, now_s=now_s)
    return {**view, "attempts": attempts(log) if log else None}


def dead_letter(letter: DeadLetter) -> DeadLetterBody:
    """A job whose attempts are used up: its error, each attempt, and the event that requested it."""
    record = letter.record
    error: Any = (record.end_data or {}).get("error")
    return {
        "id": record.id,
        "model": record.model,
        "user_id": record.fields.get("user_id"),
        "created_at": iso(record.created),
        "ended_at": _time(record.ended),
        "error": error,
        "attempts": attempts(letter.log),
        "event": letter.event,
    }


def undelivered(kept: Undelivered) -> UndeliveredEventBody:
    """An event that Knative gave up on, with its last failure. Its secrets are hidden; its data may be left out."""
    failure = kept.failure
    return {
        "id": kept.id,
        "state": "undelivered" if kept.replayed is None else "replayed",
        "event": redacted(kept.event.encode_structured()),
        "bytes": kept.size,
        "destination": redacted(failure.destination),
        "code": failure.code,
        "answer": redacted(failure.answer),
        "first_failed_at": iso(kept.first),
        "failed_at": iso(kept.last),
        "replayed_at": _time(kept.replayed),
    }


def subscription(subscription: Subscription) -> SubscriptionBody:
    """A subscription without its secret, which is a resource of its own."""
    return {
        "id": subscription.id,
        "url": subscription.url,
        "events": [event.value for event in in_order(subscription.events)],
        "models": list(subscription.models),
        "state": subscription.state.value,
        "reason": subscription.reason,
        "created_at": iso(subscription.created),
        "changed_at": iso(subscription.changed),
        "failing_since": _time(subscription.failing_since),
        "allowed_rate": subscription.allowed_rate,
    }


def delivery(delivery: Delivery) -> DeliveryBody:
    """The delivery of one event to one address, and its latest attempts."""
    return {
        "id": delivery.id,
        "job_id": delivery.job_id,
        "event": delivery.event.value,
        "event_id": _event_id(delivery),
        "sequence": delivery.seq,
        "subscription": None if delivery.recipient == PER_JOB else delivery.recipient,
        "url": delivery.url,
        "state": delivery.state.value,
        "reason": delivery.reason,
        "created_at": iso(delivery.created),
        "ended_at": _time(delivery.ended),
        "due_at": _time(delivery.due),
        "tried": delivery.tried,
        "tries": [
            {
                "number": each.number,
                "at": iso(each.at),
                "took_ms": each.took_ms,
                "status": each.status,
                "error": each.error,
            }
            for each in delivery.tries
        ],
    }


def secret(
    value: str, *, generation: int | None = None, previous: str | None = None, until: int | None = None
) -> SecretBody:
    """A secret. Of a subscription: its generation, and the previous one, which also signs until then (ms)."""
    return {"secret": value, "generation": generation, "previous": previous, "previous_until": _time(until)}


def attempts(log: Sequence[LogEntry]) -> list[AttemptBody]:
    """Each execution of the job, in order, by the log."""
    found: list[AttemptBody] = []
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
        elif (outcome := ENDS_OF_ATTEMPT.get(entry.event)) and found and found[-1]["ended_at"] is None:
            error = entry.data.get("error", {})
            found[-1] |= {
                "ended_at": iso(entry.at),
                "outcome": outcome,
                "reason": error.get("kind", entry.data.get("reason")),
                "message": error.get("message"),
            }
    return found


def model_list(catalogue: Catalogue, schemas: Mapping[str, dict[str, Any]]) -> ModelsBody:
    """The body of `GET /api/v1/models`; `schemas` are those of the models' parameters, by model."""
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


def _event_id(delivery: Delivery) -> str:
    """As `LogEntry.event_id`, and so the `webhook-id` of each post."""
    is_end = delivery.event in TERMINAL_EVENTS
    return f"{delivery.job_id}:{'end' if is_end else delivery.seq}"


def _updated(record: JobRecord, head: LogEntry | None) -> int:
    """The time of the newest entry of the log, or without a log the last time in the record."""
    return head.at if head else record.ended or record.started or record.created


def _artifact(stored: Mapping[str, Any], url: str) -> dict[str, Any]:
    """An artifact as the log has it, with its link in place of its key."""
    return {"url": url, **{name: value for name, value in stored.items() if name != "key"}}


def _time(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


_MEMBERS = [(field, member) for field in FIELDS for member in field.views]
_MEMBER_NAMES = tuple(member for _, member in _MEMBERS)
_member_values = attrgetter(*(field.name for field, _ in _MEMBERS))
_TIMES = tuple(member for field, member in _MEMBERS if field.type is FieldType.TIME)

"""The description of the HTTP API (OpenAPI 3.1), made of the tables that the functions themselves work by.

Operations come from `paths.py`, requests from the model files and `submission.py`, refusals from the classes in
`darkroom.errors`, queries from `listing.py`. `jobs` serves it at `/openapi.json`; the tests hold every answer against
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darkroom import errors
from darkroom.artifacts import StoreUnavailable
from darkroom.catalogue import models
from darkroom.catalogue.models import Catalogue, Model
from darkroom.cloudevents.event import REQUESTED, SPEC_VERSION, TYPE_PREFIX
from darkroom.cloudevents.http import BATCH_TYPE, MAX_BATCH_EVENTS, STRUCTURED_TYPE
from darkroom.errors import DarkroomError, TemporaryError
from darkroom.jobs import JOB_ID_PATTERN, State
from darkroom.ledger import dead_letters, undelivered
from darkroom.ledger.calls import Receipt
from darkroom.updates import CELERY_STATUS
from darkroom.webhooks import guard
from darkroom.webhooks.signatures import SECRET_PREFIX
from darkroom.webhooks.subscriptions import (
    DEFAULT_EVENTS,
    DELIVERY_ID_PATTERN,
    MAX_SUBSCRIPTIONS,
    SUBSCRIPTION_PREFIX,
    DeliveryState,
    SubscriptionState,
    WebhookEvent,
    in_order,
)

from darkroom_functions.http import routes
from darkroom_functions.http.bodies import MAX_BODY_BYTES
from darkroom_functions.http.responses import JSON_TYPE, NOT_STORED, PROBLEM_TYPE, problem_members
from darkroom_functions.http.routes import Operation
from darkroom_functions.http.semantics import REVALIDATED
from darkroom_functions.resources import listing, subscriptions, views
from darkroom_functions.streams import cursors, sse, wait
from darkroom_functions.submission import reading

Schema = dict[str, Any]

Errors = tuple[type[DarkroomError], ...]

VERSION = "1"
"""Of the interface, as in `/api/v1`; not of the software."""

_SHA256 = "^[0-9a-f]{64}$"
_INSTANT = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
_JOB_ID = f"^{JOB_ID_PATTERN}$"


@dataclass(frozen=True)
class _Described:
    """What is said of one operation, beside its path: `answers` by status, and the errors it may be refused with."""

    summary: str
    answers: Schema
    refusals: Errors = ()
    parameters: Sequence[Schema] = ()
    body: Schema | None = None


def document(catalogue: Catalogue, *, public_url: str, max_body_bytes: int = MAX_BODY_BYTES) -> Schema:
    """The whole description, for the models of `catalogue`."""
    described: dict[str, Schema] = {}
    for operation in routes.OPERATIONS:
        described.setdefault(operation.template, {})[operation.method.lower()] = _operation(operation, catalogue)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "darkroom",
            "version": VERSION,
            "description": (
                "Image generation jobs: submit, follow, cancel, fetch. Every GET may be a HEAD. "
                "A path may end in a slash or not. JSON is compressed for clients that accept gzip. "
                f"A body has at most {max_body_bytes} bytes. What happens to a job is told on the WebSockets "
                "`/ws/jobs/{job_id}`, `/ws/jobs?job_ids=a,b` and `/ws/events`, and as server-sent events. "
                "Webhooks are told of it too: see `webhooks` here."
            ),
        },
        "servers": [{"url": public_url}],
        "paths": described,
        "webhooks": {"jobEvent": {"post": _JOB_EVENT}},
        "components": {"schemas": _components(catalogue)},
    }


def _operation(operation: Operation, catalogue: Catalogue) -> Schema:
    told = _DESCRIBED[operation.name]
    described: Schema = {
        "operationId": operation.name,
        "summary": told.summary,
        "parameters": [_named(parameter, catalogue) for parameter in told.parameters],
        "responses": {
            **_validated(operation, told.answers),
            **_refusals(operation, told.refusals),
            "default": _ANY_PROBLEM,
        },
    }
    if told.body is not None:
        described["requestBody"] = told.body
    return described


def _validated(operation: Operation, answers: Schema) -> Schema:
    """The answers of an operation: a document that a GET reads has an `ETag`, and 304 is an answer too."""
    document = answers.get("200", {})
    is_kept = "Cache-Control" in document.get("headers", {})  # it says so itself: a picture or a secret
    if operation.method != "GET" or JSON_TYPE not in document.get("content", {}) or is_kept:
        return answers
    return {**answers, "200": {**document, "headers": {**document.get("headers", {}), **_VALIDATED}}, "304": _KNOWN}


def _refusals(operation: Operation, kinds: Errors) -> Schema:
    """The responses for these errors, by the status that they are answered with."""
    by_status: dict[str, list[type[DarkroomError]]] = {}
    for kind in kinds:
        status = problem_members(kind(""), of_event=operation.template == "/")["status"]
        by_status.setdefault(str(status), []).append(kind)
    return {status: _problem(by_status[status]) for status in sorted(by_status)}


def _problem(kinds: Sequence[type[DarkroomError]]) -> Schema:
    types = [errors.PROBLEM_BASE + kind.slug for kind in kinds]
    described: Schema = {
        "description": "; or ".join(kind.title for kind in kinds),
        "content": {
            PROBLEM_TYPE: {"schema": {"allOf": [_ref("Problem"), {"properties": {"type": {"enum": types}}}]}},
        },
    }
    if any(issubclass(kind, TemporaryError) for kind in kinds):
        described["headers"] = {"Retry-After": _header({"type": "integer", "minimum": 1}, "Seconds to wait.")}
    return described


def _components(catalogue: Catalogue) -> Schema:
    parameters = {f"Parameters-{model.name}": _parameters(model) for model in catalogue}
    return {**_ANSWERS, **parameters, "JobRequest": _any_model(catalogue), "ModelRequest": _one_model(catalogue)}


def _parameters(model: Model) -> Schema:
    return {name: value for name, value in models.schema(model).items() if name != "$schema"}


def _any_model(catalogue: Catalogue) -> Schema:
    """A request that names its model, or means the default one."""
    forms = []
    for model in catalogue:
        for form in _forms(model):
            named = {**form, "properties": {**form["properties"], "model": {"const": model.name}}}
            if model.default:
                named["properties"]["model"] = {"enum": [model.name, None]}
            else:
                named["required"] = [*form.get("required", []), "model"]
            forms.append(named)
    return {"anyOf": forms}


def _one_model(catalogue: Catalogue) -> Schema:
    """A request whose model the path names."""
    forms: list[Schema] = []
    for model in catalogue:
        named = {"model": {"enum": [model.name, None]}}
        forms += [{**form, "properties": {**form["properties"], **named}} for form in _forms(model)]
    return {"anyOf": forms}


def _forms(model: Model) -> list[Schema]:
    """The two forms of a request: the parameters beside the fields of the job, or under `input`."""
    parameters, fields = _parameters(model), _fields(model)
    flat = {**parameters, "properties": {**fields, "input": {"type": "null"}, **parameters["properties"]}}
    nested: Schema = {
        "title": f"{model.title}, under input",
        "type": "object",
        "properties": {**fields, "input": _ref(f"Parameters-{model.name}")},
        "required": ["input"],
        "additionalProperties": False,
    }
    return [flat, nested]


def _fields(model: Model) -> Schema:
    """The fields of `submission.FIELDS`."""
    return {
        "user_id": {
            "type": ["string", "null"],
            **_USER_ID,
            "description": "Kept with the job, and a filter of the list.",
        },
        "job_type": {"enum": [reading.JOB_TYPE, None]},
        "priority": {
            "type": ["integer", "null"],
            "minimum": reading.LEAST_PRIORITY,
            "maximum": reading.MOST_PRIORITY,
            "description": "The least is the most urgent; within one priority, jobs run as they came.",
        },
        "run_timeout": {
            "type": ["number", "null"],
            "minimum": reading.MIN_RUN_TIMEOUT_S,
            "maximum": model.run_timeout_s,
            "description": "Seconds that one attempt may run.",
        },
        "start_deadline": {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "exclusiveMinimum": 0, "maximum": reading.MAX_START_DELAY_S},
                {"type": "null"},
            ],
            "description": "An RFC 3339 time, or seconds from now. A job that has not started by then expires.",
        },
        reading.WEBHOOK: {"anyOf": [_RECEIVER, {"type": "null"}]},
        reading.WEBHOOK_EVENTS: {"anyOf": [_EVENT_NAMES, {"type": "null"}]},
    }


def _named(parameter: Schema, catalogue: Catalogue) -> Schema:
    """`parameter`, with the models' names where it is the one that takes them."""
    if parameter["name"] != "model" or parameter["in"] != "path":
        return parameter
    return {**parameter, "schema": {"enum": [model.name for model in catalogue]}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(schema: Schema, description: str) -> Schema:
    return {"schema": schema, "description": description}


def _answered(name: str, description: str) -> Schema:
    return {"description": description, "content": {JSON_TYPE: {"schema": _ref(name)}}}


def _record(properties: Schema, *, title: str, optional: Sequence[str] = ()) -> Schema:
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _or_null(kind: str, **more: object) -> Schema:
    return {"type": [kind, "null"], **more}


def _in_path(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def _in_header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _in_query(name: str, schema: Schema, *, required: bool = False, description: str = "") -> Schema:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def _cursors(pattern: str, description: str) -> list[Schema]:
    """The two ways in which a client states how far it has read. An empty header counts as none."""
    in_header: Schema = {"type": "string", "pattern": f"^({pattern})?$"}
    return [
        _in_query(cursors.SINCE, {"type": "string", "pattern": f"^{pattern}$"}, description=description),
        _in_header(
            "Last-Event-ID", in_header, "The same, as EventSource sends it; it takes precedence over the query."
        ),
    ]


_USER_ID: Schema = {"minLength": 1, "maxLength": reading.MAX_USER_ID, "pattern": reading.USER_ID_PATTERN}
_ANY_PROBLEM: Schema = {
    "description": "Any other refusal: a method that the path does not take (405) or an internal error (500), say.",
    "content": {PROBLEM_TYPE: {"schema": _ref("Problem")}},
}
_ID: Schema = {"type": "string", "pattern": _JOB_ID}
_TIME: Schema = {"type": "string", "format": "date-time", "pattern": _INSTANT}
_TIME_OR_NULL = _or_null("string", format="date-time", pattern=_INSTANT)
_STATE: Schema = {"enum": [state.value for state in State]}
_STATE_NOW: Schema = {"enum": [*(state.value for state in State), None]}
_STATE_NOW_MEANS = "The job's state. Null for a repeat whose job Redis no longer has: read the job."
_SLIP: Schema = {"id": _ID, "job_id": _ID, "task_id": _ID}

_SECRET = f"^{SECRET_PREFIX}[A-Za-z0-9+/]+=*$"
_SUBSCRIPTION_ID: Schema = {"type": "string", "pattern": _JOB_ID.replace("^", f"^{SUBSCRIPTION_PREFIX}")}
_RECEIVER: Schema = {
    "type": "string",
    "format": "uri",
    "minLength": 1,
    "maxLength": guard.URL_MAX,
    "description": "Where events are posted; it must be reachable from the public internet.",
}
_EVENT_NAMES: Schema = {
    "type": "array",
    "items": {"enum": [event.value for event in WebhookEvent]},
    "minItems": 1,
    "uniqueItems": True,
    "description": f"Of what is told. When not said: {', '.join(event.value for event in in_order(DEFAULT_EVENTS))}.",
}
_MODEL_NAMES: Schema = {
    "type": "array",
    "items": {"type": "string"},
    "uniqueItems": True,
    "description": "Of which models' jobs; when empty or not said, of all.",
}

_ANSWERS: Schema = {
    "Problem": _record(
        {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "errors": {
                "type": "array",
                "items": _record(
                    {"field": {"type": "string"}, "detail": {"type": "string"}},
                    title="A field, and why it is not taken",
                ),
            },
            "verdicts": {"type": "array", "items": _ref("Verdict")},
            "state": {**_STATE, "description": "Of a deleted job: its last one."},
            "ended_at": _TIME,
            "deleted_at": _TIME,
        },
        title="Why a request was refused (RFC 9457)",
        optional=("errors", "verdicts", "state", "ended_at", "deleted_at"),
    ),
    "Accepted": _record(
        {**_SLIP, "status": {**_STATE_NOW, "description": _STATE_NOW_MEANS}}, title="The receipt of an accepted job"
    ),
    "Verdict": {
        "title": "What became of one event of a batch",
        "oneOf": [
            _record(
                {
                    **_SLIP,
                    "status": {"enum": [200, 202]},
                    "state": {**_STATE_NOW, "description": _STATE_NOW_MEANS},
                    "location": {"type": "string"},
                },
                title="The event was accepted",
            ),
            _record({"status": {"type": "integer", "minimum": 400}, "problem": _ref("Problem")}, title="It was not"),
        ],
    },
    "Verdicts": _record(
        {"verdicts": {"type": "array", "items": _ref("Verdict")}}, title="A verdict for each event, in their order"
    ),
    "Task": _record(
        {"task_id": _ID, "status": {"enum": sorted({*CELERY_STATUS.values(), "RETRY"})}},
        title="A job in Celery's words",
    ),
    "Attempt": _record(
        {
            "number": {"type": "integer", "minimum": 1},
            "worker": {"type": "string"},
            "started_at": _TIME,
            "ended_at": _TIME_OR_NULL,
            "outcome": {"enum": ["running", *views.ENDS_OF_ATTEMPT.values()]},
            "reason": _or_null("string"),
            "message": _or_null("string"),
        },
        title="One execution of a job by one worker",
    ),
    "Artifact": _record(
        {
            "url": {"type": "string", "format": "uri"},
            "sha256": {"type": "string", "pattern": _SHA256},
            "media_type": {"type": "string"},
            "size": {"type": "integer", "minimum": 0},
            "width": {"type": "integer", "minimum": 1},
            "height": {"type": "integer", "minimum": 1},
        },
        title="A picture; its link is good for a while, and another reading of the job gives a new one",
    ),
    "Job": _record(
        {
            **dict.fromkeys(("id", "job_id", "task_id", "celery_task_id"), _ID),
            **dict.fromkeys(("state", "status"), _STATE),
            "model": {"type": "string"},
            "model_served": {"type": "string", "description": "What really answers, where that is another model."},
            "job_type": _or_null("string"),
            "user_id": _or_null("string"),
            "prompt": _or_null("string"),
            "width": _or_null("integer"),
            "height": _or_null("integer"),
            "seed": _or_null("integer"),
            "input": {"type": "object", "description": "The model's parameters, defaults and the drawn seed included."},
            "priority": {"type": "integer"},
            "run_timeout": {"type": "number"},
            "start_deadline": _TIME_OR_NULL,
            "place": _or_null("integer", minimum=1, description="In the queue, 1 being next."),
            "progress": {"type": "integer", "minimum": 0, "maximum": 100},
            "step": _or_null("integer"),
            "steps": _or_null("integer"),
            "worker": _or_null("string"),
            "attempt": {"type": "integer", "minimum": 0, "description": "How often it was started."},
            "attempts_counted": {"type": "integer", "minimum": 0, "description": "How many of these counted."},
            "max_attempts": {"type": "integer", "minimum": 1},
            "not_before": _TIME_OR_NULL,
            "created_at": _TIME,
            "started_at": _TIME_OR_NULL,
            "ended_at": _TIME_OR_NULL,
            "updated_at": _TIME,
            "cancel_requested_at": _TIME_OR_NULL,
            "output_paths": {"type": "array", "items": {"type": "string", "format": "uri"}},
            "artifacts": {"type": "array", "items": _ref("Artifact")},
            "content_id": _or_null("string", pattern=_SHA256, description="The hash of the first picture."),
            "error": {
                "anyOf": [
                    _record({"kind": {"type": "string"}, "message": {"type": "string"}}, title="Why there is none"),
                    {"type": "null"},
                ]
            },
            "record": _or_null("object", description="What it takes to make the same picture again."),
            "traceparent": _or_null("string"),
            "redrive_of": _or_null("string", pattern=_JOB_ID, description="The dead letter that it was made of."),
            reading.WEBHOOK: _or_null("string", format="uri", description="Who is told of it."),
            reading.WEBHOOK_EVENTS: {"anyOf": [_EVENT_NAMES, {"type": "null"}]},
            "attempts": {
                "anyOf": [{"type": "array", "items": _ref("Attempt")}, {"type": "null"}],
                "description": "Of a single job only. Null where its log is not kept any more, or not within reach.",
            },
        },
        title="A job",
        optional=("attempts",),
    ),
    "Jobs": _record(
        {
            "jobs": {"type": "array", "items": _ref("Job"), "maxItems": listing.MAX_PAGE},
            "next": _or_null("string", description="What `after` must say for the next page."),
            "complete": {
                "type": "boolean",
                "description": "False while the database of ended jobs is away: older ones may be missing here.",
            },
        },
        title="A page of jobs, newest first; with a filter it may hold fewer than asked for, and yet have a next",
    ),
    "DeadLetter": _record(
        {
            "id": _ID,
            "model": {"type": "string"},
            "user_id": _or_null("string"),
            "created_at": _TIME,
            "ended_at": _TIME,
            "error": _record({"kind": {"type": "string"}, "message": {"type": "string"}}, title="Why it failed"),
            "attempts": {"type": "array", "items": _ref("Attempt")},
            "event": {
                "type": "object",
                "properties": {
                    "specversion": {"const": SPEC_VERSION},
                    "type": {"const": REQUESTED},
                    "subject": _ID,
                    "data": {"type": "object"},
                },
                "required": ["specversion", "id", "source", "type", "subject", "time", "data"],
                "description": "The CloudEvent that asked for the job, as its worker had it.",
            },
        },
        title="A job whose attempts are used up; it is kept until it is purged, redriven or deleted",
    ),
    "DeadLetters": _record(
        {
            "dead_letters": {"type": "array", "items": _ref("DeadLetter"), "maxItems": listing.MAX_PAGE},
            "next": _or_null("string", description="What `after` must say for the next page."),
        },
        title="A page of dead letters, the last that ended first",
    ),
    "UndeliveredEvent": _record(
        {
            "id": {"type": "string"},
            "state": {"enum": ["undelivered", "replayed"]},
            "event": {
                "type": "object",
                "properties": {"specversion": {"const": SPEC_VERSION}},
                "required": ["specversion", "id", "source", "type"],
                "description": "The CloudEvent, secrets hidden; in a list without its data.",
            },
            "bytes": {"type": "integer", "minimum": 0},
            "destination": _or_null("string", description="Whom Knative tried last."),
            "code": _or_null("integer", description="The status of the last answer."),
            "answer": _or_null("string", description="The beginning of its text."),
            "first_failed_at": _TIME,
            "failed_at": _TIME,
            "replayed_at": _TIME_OR_NULL,
        },
        title="An event that Knative gave up on; the newest are kept until they are discarded",
    ),
    "UndeliveredEvents": _record(
        {
            "undelivered_events": {
                "type": "array",
                "items": _ref("UndeliveredEvent"),
                "maxItems": listing.MAX_PAGE,
            },
            "next": _or_null("string", description="What `after` must say for the next page."),
        },
        title="A page of undelivered events, the last that failed first",
    ),
    "Replayed": _record(
        {
            "id": {"type": "string"},
            "status": {"type": "integer", "description": "What the sink answered."},
            "delivered": {
                "type": "boolean",
                "description": "Whether it took the event, and Knative has not given up on it again since.",
            },
            "answer": {"type": "string", "description": "The beginning of its text."},
        },
        title="What came back when an undelivered event was posted again",
    ),
    "Redrive": {
        "title": "What the new job has otherwise than the dead letter",
        "type": "object",
        "properties": {"input": _or_null("object", description="Parameters, over those that the letter has.")},
        "additionalProperties": False,
    },
    "Purged": _record(
        {"purged": {"type": "integer", "minimum": 0}}, title="How many dead letters there were, and are no more"
    ),
    "SubscriptionRequest": {
        "title": "Whom to tell of a tenant's jobs, and of what",
        "type": "object",
        "properties": {
            "url": _RECEIVER,
            "events": {"anyOf": [_EVENT_NAMES, {"type": "null"}]},
            "models": {"anyOf": [_MODEL_NAMES, {"type": "null"}]},
        },
        "required": ["url"],
        "additionalProperties": False,
    },
    "SubscriptionChange": {
        "title": "What is to be otherwise; what is absent or null stays",
        "type": "object",
        "properties": {
            "url": {"anyOf": [_RECEIVER, {"type": "null"}]},
            "events": {"anyOf": [_EVENT_NAMES, {"type": "null"}]},
            "models": {"anyOf": [_MODEL_NAMES, {"type": "null"}]},
            "state": {"enum": [*(state.value for state in subscriptions.CHOSEN_STATES), None]},
        },
        "additionalProperties": False,
    },
    "Subscription": _record(
        {
            "id": _SUBSCRIPTION_ID,
            "url": {"type": "string", "format": "uri"},
            "events": _EVENT_NAMES,
            "models": _MODEL_NAMES,
            "state": {
                "enum": [state.value for state in SubscriptionState],
                "description": "Nothing is delivered unless it is enabled.",
            },
            "reason": _or_null("string", description="Why it is not enabled, where that was not asked for."),
            "created_at": _TIME,
            "changed_at": {**_TIME, "description": "When its state last did."},
            "failing_since": {**_TIME_OR_NULL, "description": "Since when no delivery came through."},
            "allowed_rate": _or_null("integer", description="Deliveries a minute, where the receiver set a limit."),
        },
        title="Who is told of a tenant's jobs",
    ),
    "Subscriptions": _record(
        {
            "subscriptions": {
                "type": "array",
                "items": _ref("Subscription"),
                "maxItems": MAX_SUBSCRIPTIONS,
            }
        },
        title="All subscriptions, in the order in which they were made",
    ),
    "Secret": _record(
        {
            "secret": {"type": "string", "pattern": _SECRET},
            "generation": _or_null("integer", minimum=1, description="Which one it is, of a subscription's."),
            "previous": _or_null("string", pattern=_SECRET, description="The one before it, while that signs as well."),
            "previous_until": _TIME_OR_NULL,
        },
        title="What deliveries are signed with (Standard Webhooks, `v1`)",
    ),
    "WebhookKeys": _record(
        {
            "keys": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "kty": {"const": "OKP"},
                        "crv": {"const": "Ed25519"},
                        "x": {"type": "string"},
                        "kid": {"type": "string"},
                        "use": {"const": "sig"},
                        "alg": {"const": "EdDSA"},
                        "whpk": {
                            "type": "string",
                            "pattern": "^whpk_",
                            "description": "The same, as libraries take it.",
                        },
                    },
                    "required": ["kty", "crv", "x", "kid", "use", "alg", "whpk"],
                    "additionalProperties": False,
                },
            }
        },
        title="The keys that verify `v1a` signatures (a JSON Web Key Set), the newest first",
    ),
    "Rotation": {
        "title": "Which secret is to be replaced",
        "type": "object",
        "properties": {
            "generation": _or_null(
                "integer",
                minimum=1,
                description="Of the secret that is to be replaced: a repeat then replaces no other.",
            )
        },
        "additionalProperties": False,
    },
    "Try": _record(
        {
            "number": {"type": "integer", "minimum": 1},
            "at": _TIME,
            "took_ms": {"type": "integer", "minimum": 0},
            "status": _or_null("integer", description="The receiver's; null where there was no answer."),
            "error": _or_null("string", description="Why it was not taken."),
        },
        title="One time that an event was posted",
    ),
    "Delivery": _record(
        {
            "id": {"type": "string"},
            "job_id": _ID,
            "event_id": {"type": "string", "description": "The event's, and the receiver's `webhook-id`."},
            "event": {"enum": [event.value for event in WebhookEvent]},
            "sequence": {"type": "integer", "minimum": 1},
            "subscription": {
                "anyOf": [_SUBSCRIPTION_ID, {"type": "null"}],
                "description": "Null: the job's own webhook.",
            },
            "url": {"type": "string", "format": "uri"},
            "state": {"enum": [state.value for state in DeliveryState]},
            "reason": _or_null("string", description="Why it was given up."),
            "created_at": _TIME,
            "ended_at": _TIME_OR_NULL,
            "due_at": {**_TIME_OR_NULL, "description": "When it is tried next, while it is open."},
            "tried": {"type": "integer", "minimum": 0, "description": "How often it was tried."},
            "tries": {"type": "array", "items": _ref("Try"), "description": "The last ones."},
        },
        title="One event on its way to one webhook",
    ),
    "Deliveries": _record(
        {
            "deliveries": {"type": "array", "items": _ref("Delivery"), "maxItems": listing.MAX_PAGE},
            "next": _or_null("string", description="What `after` must say for the next page."),
        },
        title="A page of a job's deliveries, as they were made; they are kept for a day after they ended",
    ),
    "Cancelled": _record(
        {"job_id": _ID, "receipt": {"enum": [receipt.value for receipt in Receipt]}, "status": _STATE},
        title="What the cancel did, and the job's state after it",
    ),
    "Models": _record(
        {
            "models": {
                "type": "array",
                "items": _record(
                    {
                        "name": {"type": "string"},
                        "title": {"type": "string"},
                        "description": {"type": "string"},
                        "served": {"type": "string", "description": "What really answers under that name."},
                        "default": {"type": "boolean"},
                        "run_timeout": {"type": "integer", "description": "Seconds that a job may run at most."},
                        "parameters": {"type": "object", "description": "A JSON Schema."},
                    },
                    title="A model",
                ),
            }
        },
        title="The models",
    ),
}

_SLIP_HEADERS: Schema = {
    "Location": _header({"type": "string"}, "The job. Not for a batch."),
    reading.REPEATED: _header({"const": "true"}, "With 200: the job had been accepted before, and nothing was done."),
}
_TAKEN: Schema = {
    "202": {**_answered("Accepted", "Recorded and queued."), "headers": _SLIP_HEADERS},
    "200": {**_answered("Accepted", "It had been accepted before."), "headers": _SLIP_HEADERS},
}
_SLIP_OR_VERDICTS: Schema = {JSON_TYPE: {"schema": {"oneOf": [_ref("Accepted"), _ref("Verdicts")]}}}
_PREFER = _in_header(
    "Prefer", {"type": "string"}, "`wait=30`: answer when the job has ended, or after so many seconds (RFC 7240)."
)
_GRANTED: Schema = {
    wait.APPLIED: _header(
        {"type": "string", "pattern": "^wait=[0-9]+$"},
        "To a request that preferred to wait: the seconds that it was granted, at most.",
    )
}
_TAKEN_OR_ENDED: Schema = {
    "202": {
        **_answered("Accepted", "Recorded and queued. To one that preferred to wait: it has not ended yet."),
        "headers": _SLIP_HEADERS | _GRANTED,
    },
    "200": {
        "description": "It had been accepted before. To one that preferred to wait: the job, which has ended.",
        "headers": _SLIP_HEADERS | _GRANTED,
        "content": {JSON_TYPE: {"schema": {"oneOf": [_ref("Accepted"), _ref("Job")]}}},
    },
}
_EVENTS_TAKEN: Schema = {
    "202": {
        "description": "The event was taken, and the answer is an event too; or at least one of a batch was.",
        "headers": _SLIP_HEADERS,
        "content": _SLIP_OR_VERDICTS,
    },
    "200": {
        "description": "It had been accepted before; or the batch is empty.",
        "headers": _SLIP_HEADERS,
        "content": _SLIP_OR_VERDICTS,
    },
}
_EVENT: Schema = {
    "type": "object",
    "properties": {
        "specversion": {"const": SPEC_VERSION},
        "id": {"type": "string", "minLength": 1, "maxLength": reading.MAX_EVENT_NAME},
        "source": {"type": "string", "format": "uri-reference", "minLength": 1, "maxLength": reading.MAX_EVENT_NAME},
        "type": {"const": REQUESTED},
        "time": _or_null("string", format="date-time"),
        reading.EXPIRY: _or_null("string", format="date-time"),
        "data": {"anyOf": [_ref("JobRequest"), {"type": "null"}]},
    },
    "required": ["specversion", "id", "source", "type"],
}
_EVENT_HEADERS = [
    _in_header(f"ce-{name}", {"type": "string"}, f"In binary mode. {why}")
    for name, why in (
        ("specversion", f"`{SPEC_VERSION}`"),
        ("id", "With the source it names the event: the same again is the same job."),
        ("source", "A URI-reference"),
        ("type", f"`{REQUESTED}`"),
        (reading.EXPIRY, "The job expires unless it has started by then."),
        ("traceparent", "W3C Trace Context"),
    )
]
_IDEMPOTENCY_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": reading.MAX_IDEMPOTENCY_KEY,
    "pattern": reading.IDEMPOTENCY_KEY_PATTERN,
}
_REST_HEADERS = [
    _in_header("Idempotency-Key", _IDEMPOTENCY_KEY, "For a day, the same key with the same body is the same job."),
    _in_header("traceparent", {"type": "string"}, "W3C Trace Context"),
]
_SIGNATURE: Schema = {"type": "string", "pattern": _SHA256}
_CACHED: Schema = {
    "ETag": _header({"type": "string"}, "Its SHA-256, in quotes."),
    "Last-Modified": _header({"type": "string"}, "When it was stored."),
    "Accept-Ranges": _header({"const": "bytes"}, "A GET may ask for one range of bytes."),
    "Cache-Control": _header({"const": REVALIDATED}, "It never changes, but it may be deleted."),
}
_VALIDATED: Schema = {
    "ETag": _header({"type": "string", "pattern": '^W/"[0-9a-f]+"$'}, "Changes with the document."),
    "Cache-Control": _header({"const": REVALIDATED}, "A cache of one user may keep it, and asks again each time."),
}
_KNOWN: Schema = {"description": "The caller has it, as `If-None-Match` says.", "headers": _VALIDATED}
_OF_JOB = _in_path("id", _ID, "The job's id.")
_STREAM: Schema = {"content": {sse.MEDIA_TYPE: {}}}
_OF_UNDELIVERED = _in_path(
    "id", {"type": "string", "pattern": f"^{undelivered.ID_PATTERN}$"}, "The undelivered event's id."
)
_AWAY: Errors = (errors.LedgerUnavailable, errors.HistoryUnavailable)
_NO_JOB: Errors = (errors.NotFound, errors.Gone)
_REFUSED_JOB: Errors = (
    errors.MalformedRequest,
    errors.UnknownModel,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidInput,
    errors.KeyReused,
    errors.BacklogFull,
    errors.NoPool,
    errors.MemoryHigh,
    errors.LedgerUnavailable,
)
_REFUSED_BODY: Errors = (
    errors.MalformedRequest,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidInput,
)
_DELIVERY_ID: Schema = {"type": "string", "pattern": f"^{DELIVERY_ID_PATTERN}$"}
_OF_SUBSCRIPTION = _in_path("id", _SUBSCRIPTION_ID, "The subscription's id.")
_OF_DELIVERY = _in_path("delivery", _DELIVERY_ID, "The delivery's id.")
_NOT_CACHED: Schema = {"Cache-Control": _header({"const": NOT_STORED}, "It is a secret.")}
_LIMIT: Schema = {
    "type": "integer",
    "minimum": 1,
    "maximum": listing.MAX_PAGE,
    "default": listing.DEFAULT_PAGE,
}
_DELIVERY_LIST_SCHEMAS: Mapping[str, Schema] = {"limit": _LIMIT, "after": _DELIVERY_ID}
_JOB_EVENT: Schema = {
    "operationId": "jobEvent",
    "summary": "What happened to a job, as a CloudEvent, signed as Standard Webhooks says",
    "parameters": [
        _in_header("webhook-id", {"type": "string"}, "The event's id: the same in every try, and on every transport."),
        _in_header("webhook-timestamp", {"type": "string"}, "When this try was made, in seconds since 1970."),
        _in_header("webhook-signature", {"type": "string"}, "Signatures `v1` and `v1a`, blanks between them."),
    ],
    "requestBody": {
        "content": {
            STRUCTURED_TYPE: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "specversion": {"const": SPEC_VERSION},
                        "id": {"type": "string"},
                        "source": {"type": "string"},
                        "type": {"enum": [TYPE_PREFIX + event.value for event in WebhookEvent]},
                        "subject": _ID,
                        "time": _TIME,
                        "sequence": {"type": "string"},
                        "tenant": {"type": "string"},
                        "data": {"type": "object"},
                    },
                    "required": ["specversion", "id", "source", "type", "subject", "time", "sequence", "data"],
                }
            }
        }
    },
    "responses": {
        "2XX": {"description": "It was taken."},
        "410": {"description": "Nothing more is to come: a subscription ends."},
        "default": {"description": "It is posted again later, for about three days; `Retry-After` is obeyed."},
    },
}
_NO_LETTER: Errors = (errors.NotFound,)
_LETTER_LIST_SCHEMAS: Mapping[str, Schema] = {
    "limit": _LIMIT,
    "after": {"type": "string", "pattern": f"^{dead_letters.CURSOR_PATTERN}$"},
}
_UNDELIVERED_LIST_SCHEMAS: Mapping[str, Schema] = {
    "limit": _LIMIT,
    "after": {"type": "string", "pattern": f"^{undelivered.CURSOR_PATTERN}$"},
}
_LIST_SCHEMAS: Mapping[str, Schema] = {
    "state": _STATE,
    "status": _STATE,
    "model": {"type": "string", "pattern": f"^{models.NAME.pattern}$"},
    "user_id": {"type": "string", **_USER_ID},
    "limit": _LIMIT,
    "after": _ID,
}

_DESCRIBED: Mapping[str, _Described] = {
    "submitEvents": _Described(
        "Submit a job as a CloudEvent, or several as a batch (for REST clients: no Trigger sends one)",
        parameters=_EVENT_HEADERS,
        body={
            "description": "Anything but the two types of CloudEvents is the data of an event in binary mode.",
            "content": {
                STRUCTURED_TYPE: {"schema": _EVENT},
                BATCH_TYPE: {"schema": {"type": "array", "items": {}, "maxItems": MAX_BATCH_EVENTS}},
                JSON_TYPE: {"schema": _ref("JobRequest")},
            },
        },
        answers=_EVENTS_TAKEN,
        refusals=(
            errors.InvalidEvent,
            errors.EventReused,
            *(kind for kind in _REFUSED_JOB if kind is not errors.KeyReused),
        ),
    ),
    "submitJob": _Described(
        "Submit a job",
        parameters=[*_REST_HEADERS, _PREFER],
        body={"required": True, "content": {JSON_TYPE: {"schema": _ref("JobRequest")}}},
        answers=_TAKEN_OR_ENDED,
        refusals=_REFUSED_JOB,
    ),
    "submitToModel": _Described(
        "Submit a job to a model; without a body, with all its defaults",
        parameters=[_in_path("model", {}, "The model."), *_REST_HEADERS, _PREFER],
        body={"content": {JSON_TYPE: {"schema": _ref("ModelRequest")}}},
        answers=_TAKEN_OR_ENDED,
        refusals=_REFUSED_JOB,
    ),
    "readTask": _Described(
        "The state of a job in Celery's words, without its result",
        parameters=[_OF_JOB],
        answers={"200": _answered("Task", "The state.")},
        refusals=(*_NO_JOB, *_AWAY),
    ),
    "readJob": _Described(
        "Everything about a job, at once or when it has ended",
        parameters=[
            _OF_JOB,
            _in_query(
                wait.PARAMETER,
                {"type": "integer", "minimum": 0},
                description="As `Prefer: wait` does, and before that.",
            ),
            _PREFER,
        ],
        answers={"200": {**_answered("Job", "The job as it is then."), "headers": _GRANTED}},
        refusals=(*_NO_JOB, errors.InvalidInput, *_AWAY),
    ),
    "listJobs": _Described(
        "The jobs, newest first",
        parameters=[_in_query(name, schema) for name, schema in _LIST_SCHEMAS.items()],
        answers={"200": _answered("Jobs", "A page of them.")},
        refusals=(errors.InvalidInput, *_AWAY),
    ),
    "deleteJob": _Described(
        "Delete a job that has ended, with its pictures; may be repeated, and finishes then what was left undone",
        parameters=[_OF_JOB],
        answers={"204": {"description": "Nothing is left of it but when it ended, and how (410)."}},
        refusals=(errors.NotFound, errors.NotEnded, *_AWAY, StoreUnavailable),
    ),
    "cancelJob": _Described(
        "Cancel a job; may be repeated",
        parameters=[_OF_JOB],
        answers={"200": _answered("Cancelled", "Done, or too late.")},
        refusals=(*_NO_JOB, *_AWAY),
    ),
    "followJob": _Described(
        "What happens to a job, until it has ended, as server-sent events: a socket's messages",
        parameters=[_OF_JOB, *_cursors(cursors.OF_JOB_PATTERN, "A message's `id`: the number of an entry, or `end`.")],
        answers={
            "200": {"description": "Its newest entry, or those behind the cursor, and what comes.", **_STREAM},
            "204": {"description": "The cursor is its end: nothing comes."},
        },
        refusals=(*_NO_JOB, errors.InvalidInput, *_AWAY),
    ),
    "followTenant": _Described(
        "What happens to all jobs, but for their progress, as server-sent events",
        parameters=_cursors(cursors.OF_TENANT_PATTERN, "A message's `id`; `0`: all that is kept."),
        answers={"200": {"description": "What comes, from now on or behind the cursor.", **_STREAM}},
        refusals=(errors.InvalidInput, errors.TooManyReplays, errors.LedgerUnavailable),
    ),
    "listDeadLetters": _Described(
        "The dead letters, the last that ended first",
        parameters=[_in_query(name, schema) for name, schema in _LETTER_LIST_SCHEMAS.items()],
        answers={"200": _answered("DeadLetters", "A page of them.")},
        refusals=(errors.InvalidInput, errors.LedgerUnavailable),
    ),
    "purgeDeadLetters": _Described(
        "Purge all dead letters: their jobs stay failed, and are forgotten in their time",
        answers={"200": _answered("Purged", "How many.")},
        refusals=(errors.LedgerUnavailable,),
    ),
    "readDeadLetter": _Described(
        "A dead letter",
        parameters=[_OF_JOB],
        answers={"200": _answered("DeadLetter", "It.")},
        refusals=(*_NO_LETTER, errors.LedgerUnavailable),
    ),
    "purgeDeadLetter": _Described(
        "Purge a dead letter; may be repeated",
        parameters=[_OF_JOB],
        answers={"204": {"description": "It is a dead letter no more."}},
        refusals=(*_NO_LETTER, errors.LedgerUnavailable),
    ),
    "redriveDeadLetter": _Described(
        "Make a new job of a dead letter; may be repeated, and is done once",
        parameters=[_OF_JOB, _REST_HEADERS[1]],
        body={"content": {JSON_TYPE: {"schema": _ref("Redrive")}}},
        answers=_TAKEN,
        refusals=(*_NO_LETTER, *(kind for kind in _REFUSED_JOB if kind is not errors.KeyReused)),
    ),
    "listUndelivered": _Described(
        "The events that Knative gave up on, the last that failed first",
        parameters=[_in_query(name, schema) for name, schema in _UNDELIVERED_LIST_SCHEMAS.items()],
        answers={"200": _answered("UndeliveredEvents", "A page of them.")},
        refusals=(errors.InvalidInput, errors.LedgerUnavailable),
    ),
    "readUndelivered": _Described(
        "An event that Knative gave up on",
        parameters=[_OF_UNDELIVERED],
        answers={"200": _answered("UndeliveredEvent", "It.")},
        refusals=(errors.NotFound, errors.LedgerUnavailable),
    ),
    "discardUndelivered": _Described(
        "Keep an undelivered event no longer; may be repeated",
        parameters=[_OF_UNDELIVERED],
        answers={"204": {"description": "It is kept no longer."}},
        refusals=(errors.NotFound, errors.LedgerUnavailable),
    ),
    "replayUndelivered": _Described(
        "Post an undelivered event to the sink again; it stays kept",
        parameters=[_OF_UNDELIVERED],
        answers={"200": _answered("Replayed", "What came back.")},
        refusals=(errors.NotFound, errors.LedgerUnavailable, errors.SinkUnavailable),
    ),
    "listSubscriptions": _Described(
        "The subscriptions",
        answers={"200": _answered("Subscriptions", "All of them.")},
        refusals=(errors.LedgerUnavailable,),
    ),
    "createSubscription": _Described(
        "Have all jobs' events posted to a webhook",
        body={"required": True, "content": {JSON_TYPE: {"schema": _ref("SubscriptionRequest")}}},
        answers={
            "201": {
                **_answered("Subscription", "It is made."),
                "headers": {"Location": _header({"type": "string"}, "The subscription.")},
            }
        },
        refusals=(*_REFUSED_BODY, errors.TooManySubscriptions, errors.LedgerUnavailable),
    ),
    "readSubscription": _Described(
        "A subscription",
        parameters=[_OF_SUBSCRIPTION],
        answers={"200": _answered("Subscription", "It.")},
        refusals=(errors.NotFound, errors.LedgerUnavailable),
    ),
    "changeSubscription": _Described(
        "Change a subscription; `enabled` also begins one again that was disabled or has ended",
        parameters=[_OF_SUBSCRIPTION],
        body={"required": True, "content": {JSON_TYPE: {"schema": _ref("SubscriptionChange")}}},
        answers={"200": _answered("Subscription", "As it is now.")},
        refusals=(*_REFUSED_BODY, errors.NotFound, errors.TooManySubscriptions, errors.LedgerUnavailable),
    ),
    "deleteSubscription": _Described(
        "Delete a subscription",
        parameters=[_OF_SUBSCRIPTION],
        answers={"204": {"description": "It is gone, and what was still to be delivered to it."}},
        refusals=(errors.NotFound, errors.LedgerUnavailable),
    ),
    "readSubscriptionSecret": _Described(
        "The secret that verifies the deliveries of a subscription",
        parameters=[_OF_SUBSCRIPTION],
        answers={"200": {**_answered("Secret", "It."), "headers": _NOT_CACHED}},
        refusals=(errors.NotFound, errors.LedgerUnavailable),
    ),
    "rotateSubscriptionSecret": _Described(
        "Replace the secret of a subscription; the one before it signs too for a day",
        parameters=[_OF_SUBSCRIPTION],
        body={"content": {JSON_TYPE: {"schema": _ref("Rotation")}}},
        answers={"200": {**_answered("Secret", "The new one."), "headers": _NOT_CACHED}},
        refusals=(*_REFUSED_BODY, errors.NotFound, errors.LedgerUnavailable),
    ),
    "readWebhookSecret": _Described(
        "The secret that verifies the deliveries to the webhooks of single jobs",
        answers={"200": {**_answered("Secret", "It."), "headers": _NOT_CACHED}},
    ),
    "readWebhookKeys": _Described(
        "The keys that verify deliveries without a secret; they are the same for everybody",
        answers={"200": _answered("WebhookKeys", "They.")},
    ),
    "listDeliveries": _Described(
        "What became of a job's webhooks",
        parameters=[_OF_JOB, *(_in_query(name, schema) for name, schema in _DELIVERY_LIST_SCHEMAS.items())],
        answers={"200": _answered("Deliveries", "A page of them.")},
        refusals=(*_NO_JOB, errors.InvalidInput, *_AWAY),
    ),
    "readDelivery": _Described(
        "A delivery, and each try of it",
        parameters=[_OF_JOB, _OF_DELIVERY],
        answers={"200": _answered("Delivery", "It.")},
        refusals=(*_NO_JOB, *_AWAY),
    ),
    "redeliver": _Described(
        "Post the event again, now, and by the whole schedule",
        parameters=[_OF_JOB, _OF_DELIVERY],
        answers={"202": _answered("Delivery", "It is due, or being posted just now.")},
        refusals=(*_NO_JOB, errors.NotEnabled, *_AWAY),
    ),
    "readArtifact": _Described(
        "A picture, by the link that its job shows",
        parameters=[
            _in_path(routes.KEY, {"type": "string"}, "Its key, slashes included."),
            _in_query("expires", {"type": "integer", "minimum": 0}, required=True, description="Seconds since 1970."),
            _in_query("signature", _SIGNATURE, required=True, description="The link's, for this key and time."),
        ],
        answers={
            "200": {"description": "The picture.", "headers": _CACHED, "content": {"image/png": {}}},
            "206": {
                "description": "The part of the picture that `Range` names.",
                "headers": {
                    **_CACHED,
                    "Content-Range": _header({"type": "string"}, "Which part, and of how many bytes."),
                },
                "content": {"image/png": {}},
            },
            "304": {
                "description": "The caller has it, as `If-None-Match` or `If-Modified-Since` says.",
                "headers": _CACHED,
            },
        },
        refusals=(
            errors.LinkRefused,
            *_NO_JOB,
            errors.PreconditionFailed,
            errors.RangeNotSatisfiable,
            StoreUnavailable,
            *_AWAY,
        ),
    ),
    "listModels": _Described("The models and their parameters", answers={"200": _answered("Models", "The models.")}),
    "describe": _Described(
        "This description",
        answers={"200": {"description": "It.", "content": {JSON_TYPE: {"schema": {"type": "object"}}}}},
    ),
}

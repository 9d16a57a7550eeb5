"""JSON schemas of job requests. The models' files and the readers of `reading.py` define what they allow."""

from __future__ import annotations

from darkroom.catalogue import models
from darkroom.catalogue.models import Catalogue, Model
from darkroom.cloudevents.event import REQUESTED, SPEC_VERSION
from darkroom.webhooks import guard
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS, WebhookEvent, in_order

from darkroom_functions.http.openapi import ref
from darkroom_functions.http.routes import Schema
from darkroom_functions.submission import reading

USER_ID: Schema = {"minLength": 1, "maxLength": reading.MAX_USER_ID, "pattern": reading.USER_ID_PATTERN}

RECEIVER: Schema = {
    "type": "string",
    "format": "uri",
    "minLength": 1,
    "maxLength": guard.URL_MAX,
    "description": "Where events are posted; it must be reachable from the public internet.",
}

EVENT_NAMES: Schema = {
    "type": "array",
    "items": {"enum": [event.value for event in WebhookEvent]},
    "minItems": 1,
    "uniqueItems": True,
    "description": f"Events to deliver. Default: {', '.join(event.value for event in in_order(DEFAULT_EVENTS))}.",
}

IDEMPOTENCY_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": reading.MAX_IDEMPOTENCY_KEY,
    "pattern": reading.IDEMPOTENCY_KEY_PATTERN,
}

EVENT: Schema = {
    "type": "object",
    "properties": {
        "specversion": {"const": SPEC_VERSION},
        "id": {"type": "string", "minLength": 1, "maxLength": reading.MAX_EVENT_NAME},
        "source": {"type": "string", "format": "uri-reference", "minLength": 1, "maxLength": reading.MAX_EVENT_NAME},
        "type": {"const": REQUESTED},
        "time": {"type": ["string", "null"], "format": "date-time"},
        reading.EXPIRY: {"type": ["string", "null"], "format": "date-time"},
        "data": {"anyOf": [ref("JobRequest"), {"type": "null"}]},
    },
    "required": ["specversion", "id", "source", "type"],
}
"""The CloudEvent that requests a job."""


def components(catalogue: Catalogue) -> dict[str, Schema]:
    """The schemas of requests, for the models of `catalogue`."""
    return {
        **{f"Parameters-{model.name}": _parameters(model) for model in catalogue},
        "ModelName": {"enum": [model.name for model in catalogue]},
        "JobRequest": _any_model(catalogue),
        "ModelRequest": _one_model(catalogue),
    }


def _parameters(model: Model) -> Schema:
    return {name: value for name, value in models.schema(model).items() if name != "$schema"}


def _any_model(catalogue: Catalogue) -> Schema:
    """A request that names its model, or uses the default one."""
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
    """A request whose path names the model."""
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
        "properties": {**fields, "input": ref(f"Parameters-{model.name}")},
        "required": ["input"],
        "additionalProperties": False,
    }
    return [flat, nested]


def _fields(model: Model) -> Schema:
    """The fields of `reading.FIELDS`."""
    return {
        "user_id": {
            "type": ["string", "null"],
            **USER_ID,
            "description": "Stored with the job. The list of jobs filters by it.",
        },
        "job_type": {"enum": [reading.JOB_TYPE, None]},
        "priority": {
            "type": ["integer", "null"],
            "minimum": reading.LEAST_PRIORITY,
            "maximum": reading.MOST_PRIORITY,
            "description": "The lowest number is the most urgent. Jobs of one priority run in the order of arrival.",
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
        reading.WEBHOOK: {"anyOf": [RECEIVER, {"type": "null"}]},
        reading.WEBHOOK_EVENTS: {"anyOf": [EVENT_NAMES, {"type": "null"}]},
    }

"""Paths: which operation a method and a path are, and which function carries it out.

One table for all functions: each function finds its operation here, `assembly.together` the function, `openapi.py`
what to describe. The doors of `result` (sockets, and the courier's sink) and of `undelivered` (the Broker's) are their
own: `function_of` only knows where they begin.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from darkroom import links
from darkroom.catalogue.parameters import shown
from darkroom.errors import MethodNotAllowed, NotFound
from darkroom.jobs import is_job_id

JOBS = "/api/v1/generation-jobs/"
DEAD_LETTERS = "/api/v1/dead-letters"
SUBSCRIPTIONS = "/api/v1/subscriptions"
WEBHOOK_KEYS = "/.well-known/webhook-keys"
"""The public keys of our signatures, for receivers: they belong to no tenant."""
UNDELIVERED = "/api/v1/undelivered-events"
KEY = "key"
"""An artifact's key: the one part of a path that holds slashes."""
NEWS = "/api/v1/events"
SINK = "/events"
"""Where the courier posts on one machine; in a cluster a Trigger posts to the service `result` itself."""
UNDELIVERED_SINK = "/events/undelivered"
"""Where events that could not be delivered come; in a cluster a Broker posts to the service itself."""


@dataclass(frozen=True)
class Operation:
    """`name` is the OpenAPI operation id, `function` carries it out. A GET stands for HEAD as well."""

    name: str
    function: str
    method: str
    template: str


TO_MODEL = Operation("submitToModel", "submit", "POST", "/{model}")

OPERATIONS = (
    Operation("submitEvents", "submit", "POST", "/"),
    Operation("submitJob", "submit", "POST", JOBS),
    TO_MODEL,
    Operation("readTask", "jobs", "GET", "/tasks/{id}"),
    Operation("listJobs", "jobs", "GET", JOBS),
    Operation("readJob", "jobs", "GET", JOBS + "{id}"),
    Operation("deleteJob", "jobs", "DELETE", JOBS + "{id}"),
    Operation("cancelJob", "jobs", "POST", JOBS + "{id}/cancel"),
    Operation("followJob", "result", "GET", JOBS + "{id}/events"),
    Operation("followTenant", "result", "GET", NEWS),
    Operation("listDeadLetters", "jobs", "GET", DEAD_LETTERS),
    Operation("purgeDeadLetters", "jobs", "DELETE", DEAD_LETTERS),
    Operation("readDeadLetter", "jobs", "GET", DEAD_LETTERS + "/{id}"),
    Operation("purgeDeadLetter", "jobs", "DELETE", DEAD_LETTERS + "/{id}"),
    Operation("redriveDeadLetter", "jobs", "POST", DEAD_LETTERS + "/{id}/redrive"),
    Operation("listUndelivered", "undelivered", "GET", UNDELIVERED),
    Operation("readUndelivered", "undelivered", "GET", UNDELIVERED + "/{id}"),
    Operation("discardUndelivered", "undelivered", "DELETE", UNDELIVERED + "/{id}"),
    Operation("replayUndelivered", "undelivered", "POST", UNDELIVERED + "/{id}/replay"),
    Operation("listSubscriptions", "jobs", "GET", SUBSCRIPTIONS),
    Operation("createSubscription", "jobs", "POST", SUBSCRIPTIONS),
    Operation("readSubscription", "jobs", "GET", SUBSCRIPTIONS + "/{id}"),
    Operation("changeSubscription", "jobs", "PATCH", SUBSCRIPTIONS + "/{id}"),
    Operation("deleteSubscription", "jobs", "DELETE", SUBSCRIPTIONS + "/{id}"),
    Operation("readSubscriptionSecret", "jobs", "GET", SUBSCRIPTIONS + "/{id}/secret"),
    Operation("rotateSubscriptionSecret", "jobs", "POST", SUBSCRIPTIONS + "/{id}/rotate-secret"),
    Operation("readWebhookSecret", "jobs", "GET", "/api/v1/webhook-secret"),
    Operation("readWebhookKeys", "jobs", "GET", WEBHOOK_KEYS),
    Operation("listDeliveries", "jobs", "GET", JOBS + "{id}/deliveries"),
    Operation("readDelivery", "jobs", "GET", JOBS + "{id}/deliveries/{delivery}"),
    Operation("redeliver", "jobs", "POST", JOBS + "{id}/deliveries/{delivery}/redeliver"),
    Operation("readArtifact", "jobs", "GET", links.PATH + "{" + KEY + "}"),
    Operation("listModels", "jobs", "GET", "/api/v1/models"),
    Operation("describe", "jobs", "GET", "/openapi.json"),
)


@dataclass(frozen=True)
class Found:
    """An operation and the parts of the path that its template names."""

    operation: Operation
    parts: Mapping[str, str]


def find(method: str, path: str, *, models: Container[str]) -> Found:
    """The operation of a request. Raises NotFound, or MethodNotAllowed with the methods that there are.

    `models` are the names that `/{model}` stands for. A POST to any other name is submit's too, which lists them.
    """
    method = "GET" if method == "HEAD" else method
    path = canonical(path)
    for pattern, by_method in _TEMPLATES:
        match = pattern.fullmatch(path)
        if match is None:
            continue
        parts = match.groupdict()
        if method in by_method:
            return Found(by_method[method], parts)
        if "model" in parts and parts["model"] not in models:
            break
        raise MethodNotAllowed(f"{path} does not take {method}", allow=_allowed(by_method))
    raise NotFound(f"there is nothing at {path}")


def canonical(path: str) -> str:
    """The form of a path without a slash at its end: both forms are one path."""
    return path[:-1] if path.endswith("/") and path != "/" and not path.endswith("//") else path


def function_of(kind: str, method: str, path: str) -> str:
    """The name of the function that a connection of this kind (`http` or `websocket`) is for."""
    path = canonical(path)
    if kind == "websocket" or path == SINK or path.startswith("/ws/"):
        return "result"
    if path == UNDELIVERED_SINK:
        return "undelivered"
    try:
        return find(method, path, models=()).operation.function
    except (NotFound, MethodNotAllowed):
        return "jobs"


def checked_id(job_id: str) -> str:
    """The part of a path that is to be a job's id. Raises NotFound for what cannot be one."""
    if not is_job_id(job_id):
        raise NotFound(f'"{shown(job_id)}" is not the id of a job: these are UUIDs as a submission answers them')
    return job_id


def _allowed(by_method: Mapping[str, Operation]) -> list[str]:
    return [name for method in by_method for name in (("GET", "HEAD") if method == "GET" else (method,))]


def _by_template() -> list[tuple[re.Pattern[str], dict[str, Operation]]]:
    """Templates as patterns, those without names in them first, since `/{model}` is also the form of others."""
    methods: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        methods.setdefault(operation.template, {})[operation.method] = operation
    return [(_pattern(template), methods[template]) for template in sorted(methods, key=lambda text: "{" in text)]


def _pattern(template: str) -> re.Pattern[str]:
    if template == JOBS:
        return re.compile(re.escape(JOBS.rstrip("/")) + "/?")
    parts = re.split(r"\{(\w+)\}", template)
    literal, names = parts[::2], parts[1::2]
    groups = [f"(?P<{name}>{'.+' if name == KEY else '[^/]+'})" for name in names]
    return re.compile("".join(re.escape(text) + group for text, group in zip(literal, [*groups, ""], strict=True)))


_TEMPLATES = _by_template()

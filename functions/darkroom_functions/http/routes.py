"""Routes: each operation of the API in one entry, with its path, its handler, its scope and its description.

The modules of `resources/` and `streams/` declare their routes beside the handlers, and `darkroom_functions.api` lists
them by function. Starlette matches requests against them, and `openapi.py` describes them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from darkroom.access import principals
from darkroom.catalogue.parameters import shown
from darkroom.errors import (
    AccessUnavailable,
    AuditFull,
    CredentialRefused,
    DarkroomError,
    LedgerUnavailable,
    MethodNotAllowed,
    NotFound,
    ScopeMissing,
)
from darkroom.jobs import is_job_id
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.routing import Match, Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket

from darkroom_functions.http.access import Needed, Open
from darkroom_functions.http.semantics import Validators, canonical
from darkroom_functions.http.trail import Audit, Handler, audited, default_of

JOBS = "/api/v1/generation-jobs/"
DEAD_LETTERS = "/api/v1/dead-letters"
SUBSCRIPTIONS = "/api/v1/subscriptions"
WEBHOOK_KEYS = "/.well-known/webhook-keys"
"""The public keys of webhook signatures, for receivers. They belong to no tenant."""
UNDELIVERED = "/api/v1/undelivered-events"
TENANT_EVENTS = "/api/v1/events"
JOB_REQUESTS = "/api/v1/job-requests"
DESCRIPTION = "/openapi.json"
TO_MODEL = "/{model:model}"
SINK = "/events"
"""Receives events from the courier on one machine. In a cluster a Trigger posts to `/` of the service `result`."""
UNDELIVERED_SINK = "/events/undelivered"
"""Receives undeliverable events on one machine. In a cluster a Broker posts to `/` of the service `undelivered`."""

Schema = dict[str, Any]

Errors = tuple[type[DarkroomError], ...]

REFUSED_CALLERS: Errors = (CredentialRefused, ScopeMissing, AccessUnavailable, LedgerUnavailable)
"""The errors of every route that needs a scope."""

SocketHandler = Callable[[WebSocket], Awaitable[None]]


class ModelName(StringConvertor):
    """The name of a model in a path, known or not. The description's path is the one path of its form."""

    regex = rf"(?!{re.escape(DESCRIPTION[1:])}\Z)[^/]+"


register_url_convertor("model", ModelName())


@dataclass(frozen=True)
class ApiResponse:
    """A response of a route. `content` has the body by its media type: a type that `openapi.py` makes the schema of, or
    a schema.
    """

    description: str
    content: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)


class ApiRoute(Route):
    """A route of one method.

    `path` is the documented one, and may have a slash at its end. `operation` is the OpenAPI operation id; without one
    the route is internal and not described. `scope` is the permission that a caller needs: it is checked before the
    handler runs. `audit` is how it is recorded in the audit trail; by default, every method that may change something
    is. `refusals` are the errors that the handler raises. `label` is the same for every request to the route.
    `takes_events` marks a route for CloudEvents, whose senders retry some permanent refusals
    (`responses.EVENT_REFUSED`); `takes_ticket` one whose URL may have a ticket, since browsers request it without
    headers; `takes_stamps` which requests reach the handler without a credential, since they may have a stamped event
    (`submission/stamps.py`).
    """

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        scope: Needed,
        audit: Audit | None = None,
        operation: str | None = None,
        summary: str = "",
        parameters: Sequence[Schema] = (),
        request: Schema | None = None,
        responses: Mapping[str, ApiResponse] | None = None,
        refusals: Errors = (),
        takes_events: bool = False,
        takes_ticket: bool = False,
        takes_stamps: Callable[[Headers], bool] | None = None,
    ) -> None:
        middleware = [Middleware(Validators)] if method == "GET" else []
        self.audit = default_of(method, scope) if audit is None else audit
        checked = audited(handler, scope, self.audit, takes_ticket=takes_ticket, takes_stamps=takes_stamps)
        super().__init__(canonical(path), checked, methods=[method], middleware=middleware)
        # Starlette's `$` also matches before a line feed at the end.
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")
        self.template = re.sub(r":\w+}", "}", path)
        self.label = f"{method} {self.template}"
        self.method = method
        self.operation = operation
        self.summary = summary
        self.parameters = tuple(parameters)
        self.request = request
        self.responses = dict(responses or {})
        unrecorded: Errors = () if self.audit is Audit.NOTHING else (AuditFull, LedgerUnavailable)
        self.refusals = tuple(dict.fromkeys((*refusals, *_refused_callers(scope), *unrecorded)))
        self.scope = scope
        self.takes_events = takes_events
        self.takes_ticket = takes_ticket

    @property
    def allowed(self) -> tuple[str, ...]:
        """The methods that reach the handler: Starlette answers HEAD where there is GET."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


class SocketRoute(WebSocketRoute):
    """A route of a WebSocket. `scope` is the permission that a caller needs; the handler checks it (`sockets.py`)."""

    def __init__(self, path: str, handler: SocketHandler, *, scope: Needed) -> None:
        super().__init__(path, handler)
        self.scope = scope


def _refused_callers(scope: Needed) -> Errors:
    """The errors of a route for callers who may not call it."""
    if isinstance(scope, principals.Scope):
        return REFUSED_CALLERS
    return tuple(each for each in REFUSED_CALLERS if each is not ScopeMissing) if scope is Open.CALLER else ()


def by_precedence(routes: Iterable[ApiRoute]) -> list[ApiRoute]:
    """Routes in the order in which they are matched: `/{model}` also has the form of fixed paths, which come first."""
    return sorted(routes, key=lambda route: "{" in route.template)


def refusal(scope: Scope, routes: Sequence[ApiRoute], *, models: Container[str]) -> DarkroomError:
    """The error for a request that no route of a function takes: MethodNotAllowed where a route has its path, else
    NotFound.

    `routes` are those of all functions, by precedence. `models` are the names that `/{model}` stands for.
    """
    path = scope["path"]
    matches = [(route.matches(scope)[0], route) for route in routes]
    partial = next((route for match, route in matches if match is Match.PARTIAL), None)
    if any(match is Match.FULL for match, _ in matches):
        return NotFound(f"another function serves {scope['method']} {path}")
    if partial is None or (partial.path == TO_MODEL and path[1:] not in models):
        return NotFound(f"there is nothing at {path}")
    allow = [method for route in routes if route.path == partial.path for method in route.allowed]
    return MethodNotAllowed(f"{path} does not take {scope['method']}", allow=list(dict.fromkeys(allow)))


def checked_id(job_id: str) -> str:
    """The part of a path that must be a job's id. Raises NotFound for what cannot be one."""
    if not is_job_id(job_id):
        raise NotFound(f'"{shown(job_id)}" is not the id of a job: these are UUIDs as a submission answers them')
    return job_id

"""The HTTP API: the routes of each function, and their OpenAPI document.

functions-framework loads a function's file and nothing can import it, so routes and handlers are in modules of their
own. `assembly.py` serves them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from darkroom.catalogue.models import Catalogue
from darkroom.errors import DarkroomError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from darkroom_functions.administration import audit, keys, sessions, tenants, usage
from darkroom_functions.http import openapi, routes
from darkroom_functions.http.access import Open
from darkroom_functions.http.bodies import MAX_BODY_BYTES
from darkroom_functions.http.openapi import json_response
from darkroom_functions.http.responses import JSON_TYPE
from darkroom_functions.http.routes import ApiRoute, Schema, by_precedence
from darkroom_functions.resources import (
    artifacts,
    dead_letters,
    deliveries,
    events,
    jobs,
    submissions,
    subscriptions,
    undelivered,
)
from darkroom_functions.resources.schemas import ProblemBody
from darkroom_functions.streams import sockets, sse
from darkroom_functions.submission import schemas


async def describe(request: Request) -> Response:
    """`GET /openapi.json`."""
    return Response(request.app.state.services.description, media_type=JSON_TYPE)


ROUTES: Mapping[str, Sequence[BaseRoute]] = {
    "submit": submissions.ROUTES,
    "jobs": [
        *jobs.ROUTES,
        *dead_letters.ROUTES,
        *subscriptions.ROUTES,
        *deliveries.ROUTES,
        *artifacts.ROUTES,
        *tenants.ROUTES,
        *keys.ROUTES,
        *audit.ROUTES,
        *usage.ROUTES,
        *sessions.ROUTES,
        ApiRoute(
            "GET",
            routes.DESCRIPTION,
            describe,
            scope=Open.PUBLIC,
            operation="describe",
            summary="Read this description of the API",
            responses={"200": json_response({"type": "object"}, "The OpenAPI document.")},
        ),
    ],
    "result": [*events.ROUTES, *sse.ROUTES, *sockets.ROUTES],
    "undelivered": undelivered.ROUTES,
}
"""The routes of each function."""

ALL = by_precedence(route for each in ROUTES.values() for route in each if isinstance(route, ApiRoute))
"""The routes of all functions, WebSockets aside."""

_FUNCTIONS = {id(route): function for function, each in ROUTES.items() for route in each}


def function_of(scope: Scope) -> str:
    """The function that serves a request or a WebSocket. `jobs` refuses those that match no route."""
    if scope["type"] == "websocket":
        return "result"
    taken = next((route for route in ALL if route.matches(scope)[0] is Match.FULL), None)
    return "jobs" if taken is None else _FUNCTIONS[id(taken)]


def refusal(request: Request, *, models: Container[str] = ()) -> DarkroomError:
    """The error for a request that matches no route of a function (`routes.refusal`)."""
    return routes.refusal(request.scope, ALL, models=models)


def document(catalogue: Catalogue, *, public_url: str, max_body_bytes: int = MAX_BODY_BYTES) -> Schema:
    """The OpenAPI document of all functions, for the models of `catalogue`."""
    return openapi.document(
        [route for each in ROUTES.values() for route in each if isinstance(route, ApiRoute)],
        description=(
            "Image generation jobs: submit, follow, cancel, fetch. Every GET may be a HEAD. "
            "A path may end in a slash or not. JSON is compressed for clients that accept gzip. "
            f"A body has at most {max_body_bytes} bytes. The events of jobs are published on the WebSockets "
            "`/ws/jobs/{job_id}`, `/ws/jobs?job_ids=a,b` and `/ws/events`, as server-sent events, and to webhooks: "
            "see `webhooks` here."
        ),
        public_url=public_url,
        webhooks={"jobEvent": {"post": subscriptions.JOB_EVENT}},
        components=schemas.components(catalogue),
        problem=ProblemBody,
    )

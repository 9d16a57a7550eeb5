"""Assembly of a function's file into an ASGI application, alone or with the others behind one port.

functions-framework loads the file and makes a Starlette application whose last route hands every path and method to the
function. `api.ROUTES` come before it, so the function only refuses requests that match none of them.

A function's file also has `lifespan(app)`, an async context manager: it reads the settings (SettingError ends the
process) and sets what the handlers need on `app.state`, among it `ledger`, an AsyncLedger. `request.app.state` is that
of the function, also behind one port. `app.state.access` verifies credentials, `app.state.trail` records operations;
the functions of a process share both.

`app.state.closing` is an asyncio.Event that is set when the process is about to end: a handler that holds its request
open responds then.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import functions_framework.aio
from darkroom import logs
from darkroom.errors import DarkroomError, MethodNotAllowed, NotFound, SettingError
from darkroom.settings import PREFIX, load
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from darkroom_functions import api
from darkroom_functions.http import access, probes, responses, trail
from darkroom_functions.http.access import Access
from darkroom_functions.http.metrics import CLIENT_CLOSED, FunctionMetrics, Metrics, MetricsMiddleware
from darkroom_functions.http.routes import ApiRoute
from darkroom_functions.settings import AccessSettings, AuthMode

FUNCTIONS = ("submit", "jobs", "result", "undelivered")
"""The functions there are; each is the file of its name in this folder."""

_log = logs.logger(__name__)


def alone(name: str, *, is_guarded: bool = False) -> Starlette:
    """The application of one function, in a process of its own. `is_guarded`: as for `together`."""
    app = build(name, Metrics())
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with (
            own(app),
            _verification(is_guarded=is_guarded) as app.state.access,
            trail.running(load(AccessSettings)) as app.state.trail,
        ):
            yield

    app.router.lifespan_context = lifespan
    return app


def build(name: str, metrics: Metrics) -> Starlette:
    """The application of one function, without `app.state.access` and `app.state.trail`. `metrics` are the process'."""
    source = Path(__file__).with_name(f"{name}.py")
    app: Starlette = functions_framework.aio.create_asgi_app(target=name, source=str(source))
    module = sys.modules[name]
    for route in app.router.routes:
        if isinstance(route, Route):
            route.methods = None  # the framework's list lacks TRACE and unknown methods
    catch_all = app.router.routes[-1]  # the framework's routes before it hand some paths to the same function
    app.router.routes[:] = [*probes.routes_for(app, metrics=metrics), *api.ROUTES[name], catch_all]
    app.router.redirect_slashes = False  # the catch-all takes all paths but those with a line feed
    app.router.default = _not_found
    app.router.lifespan_context = module.lifespan
    app.state.closing = asyncio.Event()
    app.exception_handlers.update(_translations())
    # In place of the framework's own: a catch-all that answers plain text, and ids for the logs of Google's cloud.
    app.user_middleware = [Middleware(MetricsMiddleware, metrics.of(name))]
    return app


def together(*, is_guarded: bool = False) -> Together:
    """All functions behind one port, as on one machine.

    `is_guarded`: the server listens where it may, and checks hosts and origins (`serve.py`). Another server, such as
    uvicorn or gunicorn with this application, does neither.
    """
    metrics = Metrics()
    functions = {name: build(name, metrics) for name in FUNCTIONS}
    return Together(functions, metrics, is_guarded=is_guarded)


def begin_to_close(app: Together | Starlette) -> None:
    """Notify handlers that hold their requests open that the process is about to end."""
    for function in app.functions.values() if isinstance(app, Together) else (app,):
        function.state.closing.set()


class Together:
    """Hands each request to the function that serves it (`api.function_of`)."""

    def __init__(self, functions: Mapping[str, Starlette], metrics: Metrics, *, is_guarded: bool) -> None:
        self.functions = functions
        self._is_guarded = is_guarded
        self._health = Starlette(
            routes=probes.routes_for(*functions.values(), metrics=metrics),
            middleware=[Middleware(MetricsMiddleware, FunctionMetrics("health", metrics))],
            exception_handlers=_translations(),
            lifespan=self.lifespan,
        )
        self.router = self._health.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in probes.PATHS:
            await self._health(scope, receive, send)
            return
        await self.functions[api.function_of(scope)](scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """The lifespans of all functions, closed in reverse order."""
        async with AsyncExitStack() as stack:
            for app in self.functions.values():
                await stack.enter_async_context(app.router.lifespan_context(app))
            shared = await stack.enter_async_context(_verification(is_guarded=self._is_guarded))
            recording = await stack.enter_async_context(trail.running(load(AccessSettings)))
            for app in self.functions.values():
                app.state.access, app.state.trail = shared, recording
            yield


def _verification(*, is_guarded: bool) -> AbstractAsyncContextManager[Access]:
    """The verification of a process. Raises SettingError where anyone could do everything from anywhere."""
    settings = load(AccessSettings)
    if settings.auth is AuthMode.NONE and not is_guarded:
        raise SettingError(
            f"{PREFIX}AUTH='none': only `python -m darkroom_functions.serve` may run without keys, on loopback"
        )
    return access.running(settings)


def _translations() -> dict[Any, Any]:
    return {DarkroomError: _darkroom_error, HTTPException: _http_exception, ClientDisconnect: _client_disconnect}


async def _darkroom_error(request: Request, error: DarkroomError) -> Response:
    route = request.scope.get("route")
    return responses.problem(error, of_event=isinstance(route, ApiRoute) and route.takes_events)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """Starlette's own refusals: of the probes' routes, and of paths that the catch-all does not take."""
    path = request.url.path
    if error.status_code == MethodNotAllowed.status:
        allow = (error.headers or {}).get("Allow", "").split(", ")
        return responses.problem(MethodNotAllowed(f"{path} does not take {request.method}", allow=allow))
    if error.status_code == NotFound.status:
        return responses.problem(NotFound(f"there is nothing at {path}"))
    _log.error("unexpected", method=request.method, path=path, status=error.status_code, detail=error.detail)
    return responses.unexpected()


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Denies a WebSocket whose path has no route with a problem, as a request is refused."""
    await responses.problem(NotFound(f"there is nothing at {scope['path']}"))(scope, receive, send)


async def _client_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED)

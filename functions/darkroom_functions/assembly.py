"""Assembly: a function's file becomes an ASGI application, alone or with the others behind one port.

functions-framework loads the file, routes every path and method to the function of its name and hands over a Starlette
application; what it has no hook for is added here. A function's file may hold, beside the function:

- `lifespan(app)`, an async context manager: it reads the settings (SettingError ends the process) and puts what the
  function needs on `app.state`, among it `ledger`, an AsyncLedger. `request.app.state` is that of the function, also
  behind one port;
- `ROUTES`, a list of Starlette routes that come before the function, WebSockets mostly.

`app.state.closing` is an asyncio.Event that is set when the process is about to end: a handler that holds its request
open for long answers then.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import functions_framework.aio
from darkroom import logs
from darkroom.errors import DarkroomError, MethodNotAllowed, NotFound
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom_functions.http import probes, responses, routes
from darkroom_functions.http.metrics import FunctionMetrics, Metrics
from darkroom_functions.http.semantics import Validators

FUNCTIONS = ("submit", "jobs", "result", "undelivered")
"""The functions there are; each is the file of its name in this folder."""

CLIENT_CLOSED = 499
"""nginx' status for a caller who hung up: nobody reads it but a log."""

_log = logs.logger(__name__)


def build(name: str, figures: Metrics | None = None) -> Starlette:
    """The application of one function; `figures` are the process' own, where it has others too."""
    figures = figures or Metrics()
    source = Path(__file__).with_name(f"{name}.py")
    app: Starlette = functions_framework.aio.create_asgi_app(target=name, source=str(source))
    module = sys.modules[name]
    for route in app.router.routes:
        if isinstance(route, Route):
            route.methods = None  # the framework's list names all that it knows, and not what the function takes
    # The framework's last route takes every path; those before it take some of them, to no other end.
    everything = app.router.routes[-1]
    app.router.routes[:] = [*probes.routes_for(app, figures=figures), *getattr(module, "ROUTES", []), everything]
    app.router.redirect_slashes = False  # the last route takes all but a few odd paths, and those are nowhere
    app.router.default = _nowhere
    app.router.lifespan_context = module.lifespan
    app.state.closing = asyncio.Event()
    app.exception_handlers.update(_translations())
    # In place of the framework's own: a catch-all that answers plain text, and ids for the logs of Google's cloud.
    app.user_middleware = [Middleware(MetricsMiddleware, figures.of(name)), Middleware(Validators)]
    return app


def together() -> Together:
    """All functions behind one port, as on one machine."""
    figures = Metrics()
    return Together({name: build(name, figures) for name in FUNCTIONS}, figures)


def begin_to_close(app: Together | Starlette) -> None:
    """Let whoever holds a request open know that the process is about to end."""
    for function in app.functions.values() if isinstance(app, Together) else (app,):
        function.state.closing.set()


class Together:
    """Hands each connection to the function that it is for (`paths.function_of`)."""

    def __init__(self, functions: Mapping[str, Starlette], figures: Metrics) -> None:
        self.functions = functions
        self._health = Starlette(
            routes=probes.routes_for(*functions.values(), figures=figures),
            middleware=[Middleware(MetricsMiddleware, FunctionMetrics("health", figures))],
            exception_handlers=_translations(),
            lifespan=self.lifespan,
        )
        self.router = self._health.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in probes.PATHS:
            await self._health(scope, receive, send)
            return
        name = routes.function_of(scope["type"], scope.get("method", ""), scope["path"])
        await self.functions[name](scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Those of all functions, ended in reverse."""
        async with AsyncExitStack() as stack:
            for app in self.functions.values():
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield


class MetricsMiddleware:
    """Counts and times what a function answers, but for its health. What nobody foresaw is answered with a problem that
    tells nothing, and all of it is logged.
    """

    def __init__(self, app: ASGIApp, figures: FunctionMetrics) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self._figures.sockets += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._figures.sockets -= 1
            return
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        self._figures.requests += 1
        try:
            await self._app(scope, receive, noting)
        except Exception:
            _log.exception("unexpected", method=scope["method"], path=scope["path"])
            if status:
                raise  # the server closes the connection: the caller must not take a part for the whole
            await responses.unexpected()(scope, receive, noting)
        finally:
            self._figures.requests -= 1
            if scope["path"] not in probes.PATHS:
                seconds = time.perf_counter() - began
                self._figures.answered(scope["method"], scope["path"], status or CLIENT_CLOSED, seconds=seconds)


def _translations() -> dict[Any, Any]:
    return {DarkroomError: _of_ours, HTTPException: _of_starlette, ClientDisconnect: _of_nobody}


async def _of_ours(_request: Request, error: DarkroomError) -> Response:
    return responses.problem(error)


async def _of_starlette(request: Request, error: HTTPException) -> Response:
    """The routes' own refusals: a path or a method that functions-framework does not hand on."""
    path = request.url.path
    if error.status_code == MethodNotAllowed.status:
        allow = (error.headers or {}).get("Allow", "").split(", ")
        return responses.problem(MethodNotAllowed(f"{path} does not take {request.method}", allow=allow))
    if error.status_code == NotFound.status:
        return responses.problem(NotFound(f"there is nothing at {path}"))
    _log.error("unexpected", method=request.method, path=path, status=error.status_code, detail=error.detail)
    return responses.unexpected()


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """A path of no route: the opening of a WebSocket is denied with a problem, as a request is refused."""
    await responses.problem(NotFound(f"there is nothing at {scope['path']}"))(scope, receive, send)


async def _of_nobody(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED)

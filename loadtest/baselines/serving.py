"""Serving of the HTTP baselines: the same as of darkroom's functions, from their configuration."""

from __future__ import annotations

import uvicorn
import uvloop
from darkroom.settings import load
from darkroom_functions import serve
from darkroom_functions.http import connections
from darkroom_functions.settings import ServeSettings
from starlette.applications import Starlette


def run(app: Starlette) -> None:
    """Serve on $PORT until a signal arrives."""
    serve.settle()
    settings = load(ServeSettings)
    server = uvicorn.Server(serve.config(app, settings))
    server.server_state = connections.ConnectionLimits(most=settings.max_connections)
    uvloop.run(server.serve())

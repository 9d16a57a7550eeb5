"""The process of a function: `python -m darkroom_functions.serve submit|jobs|result|undelivered|all`.

In a cluster each function is a Knative Service of its own; on one machine `darkroom up` starts `all`, behind one port.
SIGTERM and SIGINT stop it after the requests in progress, with status 0; an invalid setting stops it with one line and
status 2.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
import uvloop
from darkroom import collector, logs, supervision
from darkroom.errors import SettingError
from darkroom.settings import PREFIX, load
from starlette.applications import Starlette

from darkroom_functions import assembly
from darkroom_functions.http import connections, origins, semantics
from darkroom_functions.settings import AuthMode, ServeSettings, is_loopback

ALL = "all"

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than nginx' 60 s for its upstreams, so that the proxy closes first and
never sends into a connection that is being closed."""

GRACE_S = 20
"""How long requests in progress may take after SIGTERM; Kubernetes kills after 30 s."""

COLLECT_EVERY = 10_000
"""Allocations between two garbage collections: a few megabytes at most."""

REFUSED_EVERY_S = 10
"""How often refused connections are logged, if there are any: in one line, counted by the reason."""

SOCKET_MESSAGE_BYTES = 16 * 1024
"""The longest WebSocket message that is read. Clients send pings of a few bytes."""

_log = logs.logger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal arrives. Returns the exit status."""
    names = (*assembly.FUNCTIONS, ALL)
    if len(arguments) != 1 or arguments[0] not in names:
        sys.stderr.write(f"usage: python -m darkroom_functions.serve {'|'.join(names)}\n")
        return 2
    name = arguments[0]
    logs.configure("functions" if name == ALL else name)
    try:
        settings = load(ServeSettings)
        check_address(settings)
        app = assembly.together(is_guarded=True) if name == ALL else assembly.alone(name, is_guarded=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(app, settings))
    except SettingError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 2
    return supervision.exit_status()


def config(app: assembly.Together | Starlette, settings: ServeSettings) -> uvicorn.Config:
    """The configuration of uvicorn, in production and in the tests."""
    connections.take_long_requests()
    logging.getLogger("uvicorn.error").addFilter(connections.without_query)
    return uvicorn.Config(
        semantics.Edge(origins.Front(app, origins.Policy.of(settings))),
        host=settings.host,
        port=settings.port,
        lifespan="off",  # `_serve` runs it: an invalid setting is one line there, and a stack trace here
        http=connections.Http,
        ws=connections.Socket,
        ws_max_size=SOCKET_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # messages are short, and a compressor for each socket takes memory
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def check_address(settings: ServeSettings) -> None:
    """Raises SettingError where no request needs a key, and the host to listen on has another address than loopback."""
    if settings.auth is not AuthMode.NONE:
        return
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SettingError(f"{PREFIX}HOST={settings.host!r}: it is no address of this machine: {error}") from None
    others = [str(address[0]) for *_, address in found if not is_loopback(str(address[0]))]
    if others:
        raise SettingError(
            f"{PREFIX}HOST={settings.host!r}: without keys ({PREFIX}AUTH=none) it must be loopback, and is {others[0]}"
        )


def settle() -> None:
    """Everything is loaded, and requests may arrive."""
    collector.freeze_loaded_objects(collect_every=COLLECT_EVERY)


async def _serve(app: assembly.Together | Starlette, settings: ServeSettings) -> None:
    # uvicorn raises the signal that stopped it again, for the handler before its own: there is nothing left to do then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    async with app.router.lifespan_context(app):
        settle()
        await Server(app, settings).serve()


class Server(uvicorn.Server):
    """uvicorn's server, which notifies handlers that hold their requests open of the shutdown: they would delay it.

    It cuts off clients that do not read the rest of a response.
    """

    def __init__(self, app: assembly.Together | Starlette, settings: ServeSettings) -> None:
        super().__init__(config(app, settings))
        most = connections.most_connections(settings.max_connections)
        self.server_state: connections.ConnectionLimits = connections.ConnectionLimits(most=most)
        self._app = app
        self._waiting: dict[Any, int] = {}

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % (10 * REFUSED_EVERY_S) == 0 and self.server_state.refused:
            _log.warning("connections_refused", **self.server_state.refused)
            self.server_state.refused.clear()
        if counter % (10 * connections.LOOK_EVERY_S) == 0:
            self._waiting = connections.cut_off(self.server_state.connections, self._waiting)
        # A task may fail before uvicorn handles signals.
        return await super().on_tick(counter) or supervision.exit_status() != 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assembly.begin_to_close(self._app)
        await super().shutdown(sockets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

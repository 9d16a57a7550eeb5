"""Watchers: sockets that tell callers of their jobs, under gevent; only locust's processes import this.

Two ways, as clients have them: a socket for each job, and sockets that follow many and subscribe as jobs come. A socket
that closes too early is opened again for the jobs that have not ended; whoever comes late is told the newest state.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import gevent
import websocket

from darkroom_loadtest.chaos.journal import Journal

TERMINAL = frozenset({"completed", "failed", "cancelled"})

COME_AGAIN = frozenset({"time-is-up", "idle"})
"""Codes with which a server closes a socket that did nothing wrong."""

JOBS_OF_A_SOCKET = 100
"""The server's limit, of those that have not ended."""

CONNECT_LIMIT_S = 30.0
LINGER_S = 20.0
"""How long a socket stays that has nothing to tell; the server closes it after a minute."""

AGAIN_AFTER_S = 1.0
"""Between two tries to open a socket."""


@dataclass
class Watched:
    """A job that a caller waits for; `asked` is just before its request, on the clock of `time.perf_counter`."""

    job: str
    way: str
    asked: float
    is_started: bool = False


Told = Callable[[Watched, str, float], None]
"""Is called once for the end of each job: with its state, and the milliseconds since the request."""


class Watchers:
    """All sockets of one process."""

    def __init__(self, host: str, journal: Journal, told: Told) -> None:
        address = urlsplit(host)
        scheme = "wss" if address.scheme == "https" else "ws"
        self._url = f"{scheme}://{address.netloc}{address.path.rstrip('/')}"
        self._host = address.hostname or ""
        self._journal = journal
        self._told = told
        self._shared: list[_Shared] = []
        self.outstanding: dict[str, Watched] = {}

    def follow(self, watched: Watched, *, own_socket: bool) -> None:
        """Answers at once; the watching goes on until the job's end."""
        self.outstanding[watched.job] = watched
        if own_socket:
            gevent.spawn(self._follow_alone, watched.job)
            return
        shared = next((each for each in self._shared if each.has_room), None)
        if shared is None:
            shared = _Shared(self)
            self._shared.append(shared)
        shared.subscribe(watched.job)

    def open(self, path: str) -> Any:
        """A socket, or None where it could not be opened; that is an error."""
        try:
            return websocket.create_connection(
                self._url + path, timeout=CONNECT_LIMIT_S, http_no_proxy=[self._host], enable_multithread=True
            )
        except (OSError, websocket.WebSocketException) as error:
            self._journal.note("error", what=f"a socket could not be opened: {error}"[:300])
            return None

    def read(self, connection: Any, *, jobs: Collection[str]) -> None:
        """Read until the socket closes or fails, or there was nothing to wait for for a while. `jobs` may change."""
        connection.settimeout(LINGER_S)
        try:
            while True:
                try:
                    text = connection.recv()
                except websocket.WebSocketTimeoutException:
                    if any(job in self.outstanding for job in jobs):
                        continue
                    return
                if not text:
                    return
                self._take(json.loads(text))
        except (OSError, websocket.WebSocketException, ValueError) as error:
            self._journal.note("error", what=f"a socket failed: {type(error).__name__} {error}"[:300])

    def _follow_alone(self, job: str) -> None:
        while job in self.outstanding:
            connection = self.open(f"/ws/jobs/{job}")
            if connection is not None:
                self.read(connection, jobs=[job])
                connection.close()
            if job in self.outstanding:
                gevent.sleep(AGAIN_AFTER_S)

    def _take(self, message: dict[str, Any]) -> None:
        """Ends are noted as often as they are told: a second, different one must show."""
        job, status = message.get("job_id"), message.get("status")
        if message.get("type") == "error" and message.get("code") not in COME_AGAIN:
            self._journal.note("error", what=f"a socket was told: {message.get('code')} {message.get('detail')}"[:300])
        if job is None:
            return
        watched = self.outstanding.get(job)
        elapsed_ms = (time.perf_counter() - watched.asked) * 1000 if watched else None
        if status in TERMINAL:
            self._journal.note(
                "ended", job=job, state=message["state"], event=message["event_id"], ms=elapsed_ms, way="socket"
            )
            if watched is not None and elapsed_ms is not None:
                del self.outstanding[job]
                self._told(watched, message["state"], elapsed_ms)
        elif status == "started" and watched is not None and not watched.is_started:
            watched.is_started = True
            self._journal.note("started", job=job, ms=elapsed_ms)


class _Shared:
    """A socket for up to JOBS_OF_A_SOCKET jobs at a time. It closes itself when it has had none for a while."""

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers
        self._jobs: set[str] = set()
        self._connection: Any = None
        self._is_read = False

    @property
    def has_room(self) -> bool:
        self._forget_ended()
        return len(self._jobs) < JOBS_OF_A_SOCKET

    def subscribe(self, job: str) -> None:
        self._jobs.add(job)
        if self._connection is not None:
            try:
                self._connection.send(json.dumps({"type": "subscribe", "job_ids": [job]}))
            except (OSError, websocket.WebSocketException):
                self._connection = None  # whoever reads it opens another, for this job too
        if not self._is_read:
            self._is_read = True
            gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            self._forget_ended()
            if not self._jobs:
                break
            connection = self._watchers.open(f"/ws/jobs?job_ids={','.join(sorted(self._jobs))}")
            if connection is None:
                gevent.sleep(AGAIN_AFTER_S)
                continue
            self._catch_up(connection)
            self._watchers.read(connection, jobs=self._jobs)
            self._connection = None
            connection.close()
            self._forget_ended()
            if self._jobs:
                gevent.sleep(AGAIN_AFTER_S)
        self._is_read = False

    def _catch_up(self, connection: Any) -> None:
        """Jobs that came while the socket was being opened."""
        self._connection = connection
        connection.send(json.dumps({"type": "subscribe", "job_ids": sorted(self._jobs)}))

    def _forget_ended(self) -> None:
        self._jobs.intersection_update(self._watchers.outstanding)  # in place: a reader has it

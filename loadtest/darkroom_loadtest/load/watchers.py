"""WebSockets that follow jobs, under gevent; only locust's processes import this.

Two kinds, as clients use them: a socket for each job, and sockets that follow many jobs and subscribe to new ones. A
socket that closes early is reopened for the unfinished jobs, and starts with their current state.
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

from darkroom_loadtest.load import keys
from darkroom_loadtest.load.journal import Journal

TERMINAL = frozenset({"completed", "failed", "cancelled"})

RECONNECT_CODES = frozenset({"time-is-up", "idle"})
"""Codes of a normal close, after which a client reconnects."""

JOBS_OF_A_SOCKET = 100
"""The server's limit of unfinished jobs per socket."""

CONNECT_TIMEOUT_S = 30.0
LINGER_S = 20.0
"""How long an idle socket stays open; the server closes it after a minute."""

RETRY_AFTER_S = 1.0
"""Between two attempts to open a socket."""


@dataclass
class WatchedJob:
    """A job that a user waits for; `asked` is just before its request (`time.perf_counter`), `key` the user's."""

    job: str
    way: str
    asked: float
    key: str | None = None
    is_started: bool = False


OnEnd = Callable[[WatchedJob, str, float], None]
"""Called once when a job finishes, with its state and the milliseconds since the request."""


class Watchers:
    """All sockets of one process."""

    def __init__(self, host: str, journal: Journal, on_end: OnEnd) -> None:
        address = urlsplit(host)
        scheme = "wss" if address.scheme == "https" else "ws"
        self._url = f"{scheme}://{address.netloc}{address.path.rstrip('/')}"
        self._host = address.hostname or ""
        self._journal = journal
        self._on_end = on_end
        self._shared: list[_Shared] = []
        self.outstanding: dict[str, WatchedJob] = {}

    def follow(self, watched: WatchedJob, *, own_socket: bool) -> None:
        """Follow a job in the background until it finishes."""
        self.outstanding[watched.job] = watched
        if own_socket:
            gevent.spawn(self._follow_alone, watched.job, watched.key)
            return
        shared = next((each for each in self._shared if each.key == watched.key and each.has_room), None)
        if shared is None:
            shared = _Shared(self, watched.key)
            self._shared.append(shared)
        shared.subscribe(watched.job)

    def open(self, path: str, *, key: str | None) -> Any:
        """A socket; None if it could not be opened, which is recorded as an error."""
        try:
            return websocket.create_connection(
                self._url + path,
                timeout=CONNECT_TIMEOUT_S,
                header=keys.headers(key),
                http_no_proxy=[self._host],
                enable_multithread=True,
            )
        except (OSError, websocket.WebSocketException) as error:
            self._journal.note("error", what=f"a socket could not be opened: {error}"[:300])
            return None

    def read(self, connection: Any, *, jobs: Collection[str]) -> None:
        """Read until the socket closes, fails, or is idle without outstanding jobs. `jobs` may change."""
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
                self._handle(json.loads(text))
        except (OSError, websocket.WebSocketException, ValueError) as error:
            self._journal.note("error", what=f"a socket failed: {type(error).__name__} {error}"[:300])

    def _follow_alone(self, job: str, key: str | None) -> None:
        while job in self.outstanding:
            connection = self.open(f"/ws/jobs/{job}", key=key)
            if connection is not None:
                self.read(connection, jobs=[job])
                connection.close()
            if job in self.outstanding:
                gevent.sleep(RETRY_AFTER_S)

    def _handle(self, message: dict[str, Any]) -> None:
        """Record every terminal message, so that a second, different one is detected."""
        job, status = message.get("job_id"), message.get("status")
        if message.get("type") == "error" and message.get("code") not in RECONNECT_CODES:
            self._journal.note(
                "error", what=f"a socket received an error: {message.get('code')} {message.get('detail')}"[:300]
            )
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
                self._on_end(watched, message["state"], elapsed_ms)
        elif status == "started" and watched is not None and not watched.is_started:
            watched.is_started = True
            self._journal.note("started", job=job, ms=elapsed_ms)


class _Shared:
    """A socket for up to JOBS_OF_A_SOCKET jobs of one key at a time. It closes when it has been idle for a while."""

    def __init__(self, watchers: Watchers, key: str | None) -> None:
        self._watchers = watchers
        self.key = key
        self._jobs: set[str] = set()
        self._connection: Any = None
        self._is_read = False

    @property
    def has_room(self) -> bool:
        self._drop_finished()
        return len(self._jobs) < JOBS_OF_A_SOCKET

    def subscribe(self, job: str) -> None:
        self._jobs.add(job)
        if self._connection is not None:
            try:
                self._connection.send(json.dumps({"type": "subscribe", "job_ids": [job]}))
            except (OSError, websocket.WebSocketException):
                self._connection = None  # the reader opens a new one, for this job too
        if not self._is_read:
            self._is_read = True
            gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            self._drop_finished()
            if not self._jobs:
                break
            connection = self._watchers.open(f"/ws/jobs?job_ids={','.join(sorted(self._jobs))}", key=self.key)
            if connection is None:
                gevent.sleep(RETRY_AFTER_S)
                continue
            self._catch_up(connection)
            self._watchers.read(connection, jobs=self._jobs)
            self._connection = None
            connection.close()
            self._drop_finished()
            if self._jobs:
                gevent.sleep(RETRY_AFTER_S)
        self._is_read = False

    def _catch_up(self, connection: Any) -> None:
        """Subscribe to the jobs that were added while the socket was being opened."""
        self._connection = connection
        connection.send(json.dumps({"type": "subscribe", "job_ids": sorted(self._jobs)}))

    def _drop_finished(self) -> None:
        self._jobs.intersection_update(self._watchers.outstanding)  # in place: the reader holds a reference

"""A job's messages until it finishes, over a WebSocket, however often the connection breaks.

Messages are numbered (`seq`). Each new connection resumes after the last number (`since`). While no socket can be
opened, the job is read over HTTP instead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import quote

from darkroom.backoff import Backoff
from darkroom.errors import TemporaryError
from darkroom.jobs import State, read_value
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from darkroom_cli.address import is_loopback
from darkroom_cli.client import CONNECT_TIMEOUT_S, Client

CLOSE_TIMEOUT_S = 1.0

IDLE_S = 1.0
"""After this long without a message the caller gets None, and can read the job's queue position."""

SILENCE_S = 15.0
"""After this long without a message the job is read over HTTP: an open socket may be dead."""

BACKOFF = Backoff(first_s=0.25, longest_s=5.0)
"""Between attempts to reconnect."""

OUTAGE_LIMIT_S = 60.0
"""How long the server may be unreachable while a job is followed. A restart is shorter."""

GAP = "gap"
"""The `type` of the message that reports that earlier messages are no longer available."""

OLDER_STATUS = {State.RUNNING: "processing", State.EXPIRED: "failed"}
"""The `status` of a message where it differs from the state (`darkroom.updates`)."""

Message = Mapping[str, Any]
"""A WebSocket message, as `darkroom.updates.message` makes it."""


def follow(client: Client, job_id: str) -> Iterator[Message | None]:
    """The job's messages, each once and in order, the terminal one last; None after each idle second.

    A job that had to be read over HTTP is a message without a number, and is returned only if it is a change.
    Raises Unreachable or ServerUnavailable when the outage exceeds OUTAGE_LIMIT_S.
    """
    seq, last, reached, pauses = 0, None, time.monotonic(), BACKOFF.pauses()
    while True:
        has_progressed = False
        with suppress(OSError, WebSocketException):
            for message in _socket(client, job_id, since=seq):
                reached, pauses = time.monotonic(), BACKOFF.pauses()
                if message is None:
                    yield None
                elif message.get("type") == GAP:
                    seq = 0  # the log is a different one: the next message is the job's current state
                elif message["seq"] > seq:
                    seq, last, has_progressed = message["seq"], _progress(message), True
                    yield message
                    if is_last(message):
                        return
        if not has_progressed:
            message = _read(client, job_id, reached=reached)
            if message is None or _progress(message) != last:
                yield message
            if message is not None:
                reached, last = time.monotonic(), _progress(message)
                if is_last(message):
                    return
        time.sleep(next(pauses))


def is_last(message: Message) -> bool:
    """Whether the job finished with this message."""
    return read_value(State, message["state"]).is_terminal


def as_message(job: Mapping[str, Any]) -> Message:
    """A job view in the form of a message, without the number that only the log has."""
    state = job["state"]
    message = {"job_id": job["id"], "status": OLDER_STATUS.get(state, state), "state": state}
    message["progress"] = job["progress"]
    if state == State.COMPLETED:
        message |= {"output_paths": job["output_paths"], "content_id": job["content_id"]}
    if job["error"] is not None:
        message["error"] = job["error"]["message"]
    return message


def _progress(message: Message) -> tuple[str, int]:
    return message["state"], message.get("progress") or 0


def _read(client: Client, job_id: str, *, reached: float) -> Message | None:
    """The job's current state; None if the server, last reached at `reached`, may still return."""
    try:
        return as_message(client.job(job_id))
    except TemporaryError:
        if time.monotonic() - reached > OUTAGE_LIMIT_S:
            raise
        return None


def _socket(client: Client, job_id: str, *, since: int) -> Iterator[Message | None]:
    """The messages of one connection, None after each idle second; ends, or raises, with the connection.

    It starts after number `since`, with the messages that were missed; with 0, and after a gap, with the job's
    current state.
    """
    cursor = f"?since={since}" if since else ""
    server = client.url
    url = f"ws{server.removeprefix('http')}/ws/jobs/{quote(job_id, safe='')}{cursor}"
    timeouts: dict[str, Any] = {"open_timeout": CONNECT_TIMEOUT_S, "close_timeout": CLOSE_TIMEOUT_S}
    proxy: Literal[True] | None = None if is_loopback(server) else True
    with connect(url, proxy=proxy, additional_headers=client.credential.headers, **timeouts) as socket:
        received = time.monotonic()
        while time.monotonic() - received < SILENCE_S:
            try:
                text = socket.recv(timeout=IDLE_S)
            except TimeoutError:
                yield None
                continue
            message = json.loads(text)
            if "seq" in message or message.get("type") == GAP:  # other messages are about the connection
                received = time.monotonic()
                yield message

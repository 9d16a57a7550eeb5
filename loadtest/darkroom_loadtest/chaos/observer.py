"""The observer of a chaos run: accepted jobs and their terminal messages, recorded outside Redis.

It submits each job until it is accepted, and records every 202. It is the sink between the courier and the result
function, and fails there as the plan demands. It follows every job on a socket, as a client does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any
from uuid import uuid4

import httpx
from darkroom.access.credentials import Credential
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from darkroom_loadtest.chaos.verdict import End

TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})

LIST = "/api/v1/generation-jobs/?limit=1"

RETRY_S = 0.25
"""Pause before a submission, a delivery or a socket is retried."""

POLL_S = 0.02

TIMEOUT_S = 5.0
"""Timeout of a response, after which the request is retried."""

HANG_S = 60.0
"""A hanging sink hangs for longer than the courier's timeout."""


class SinkMode(StrEnum):
    """How the sink fails: it refuses connections, answers 503, hangs, or answers 202 and drops the event."""

    CLOSED = "closed"
    REFUSES = "refuses"
    HANGS = "hangs"
    DROPS = "drops"


class Observer:
    """The recorded messages, and the tasks that record them. `url` is the functions' address, `path` the model's; `key`
    is the key of all requests.
    """

    def __init__(self, url: str, *, path: str, socket_jobs: int, key: Credential | None = None) -> None:
        self._url, self._path, self._socket_jobs = url, path, socket_jobs
        self._credential = {} if key is None else {"authorization": f"Bearer {key.text}"}
        self.accepted: dict[str, int] = {}
        self.applied: set[str] = set()
        self.received: set[str] = set()
        self.ends: defaultdict[str, set[End]] = defaultdict(set)
        self.disordered: set[str] = set()
        self._posted: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._failing: SinkMode | None = None
        self.refused_submissions = 0
        self.failed_posts = 0
        self._unfollowed: list[str] = []
        # Unlimited: with a limit hundreds of requests wait during an outage, and httpx scans them for each request.
        unlimited = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S, limits=unlimited)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._closing = asyncio.Event()

    @property
    def has_seen_all(self) -> bool:
        """Whether the terminal event of every accepted job was applied, and received on a socket."""
        return self.accepted.keys() <= self.applied and self.accepted.keys() <= self.received

    async def aclose(self) -> None:
        """Close all connections."""
        self._closing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stop_listening()
        await self._client.aclose()

    # -- submitting ----------------------------------------------------------------------------------------------------

    async def await_key(self) -> None:
        """Wait until the key is published. Until then it is unknown, and a submission would fail for good."""
        while True:
            with suppress(httpx.TransportError):
                answer = await self._client.get(self._url + LIST, headers=self._credential)
                if answer.is_success:
                    return
            await asyncio.sleep(RETRY_S)

    async def submit(self, body: Mapping[str, Any]) -> str:
        """Submit one job under one idempotency key until it is accepted; returns its id."""
        headers = {**self._credential, "idempotency-key": uuid4().hex}
        while True:
            answer = None
            with suppress(httpx.TransportError):
                answer = await self._client.post(self._url + self._path, json=body, headers=headers)
            if answer is not None and answer.status_code in {200, 202}:
                job_id: str = answer.json()["job_id"]
                self._accept(job_id)
                return job_id
            if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                raise AssertionError(f"a submission's response was {answer.status_code}: {answer.text}")
            self.refused_submissions += 1
            await asyncio.sleep(RETRY_S)

    def _accept(self, job_id: str) -> None:
        self.accepted[job_id] = time.time_ns() // 1_000_000
        self._unfollowed.append(job_id)
        if len(self._unfollowed) >= self._socket_jobs:
            self.follow_rest()

    # -- the sockets ---------------------------------------------------------------------------------------------------

    def follow_rest(self) -> None:
        """Open a socket for the jobs that have none yet."""
        if self._unfollowed:
            self._spawn(self._follow(frozenset(self._unfollowed)))
            self._unfollowed = []

    async def _follow(self, jobs: frozenset[str]) -> None:
        while not jobs <= self.received:
            with suppress(OSError, TimeoutError, WebSocketException):
                await self._watch(jobs)
            await asyncio.sleep(RETRY_S)

    async def _watch(self, jobs: frozenset[str]) -> None:
        """Read until the socket is closed: it stays open after the last end, and may send another message."""
        address = f"ws{self._url.removeprefix('http')}/ws/jobs?job_ids={','.join(sorted(jobs))}"
        own: dict[str, Any] = {"proxy": None, "open_timeout": TIMEOUT_S, "additional_headers": self._credential}
        async with connect(address, **own) as socket:
            async for text in socket:
                message = json.loads(text)
                self._check_order(message, self._sent)
                if message.get("state") in TERMINAL:
                    self._note(message)
                    self.received.add(message["job_id"])

    # -- the sink ------------------------------------------------------------------------------------------------------

    async def serve_sink(self, port: int) -> None:
        """Serve the sink's port."""
        self._port = port
        self._server = await asyncio.start_server(self._serve_connection, "127.0.0.1", port)

    async def fail(self, way: SinkMode | None) -> None:
        """Set how the sink fails from now on; None: it does not."""
        was, self._failing = self._failing, way
        if way is SinkMode.CLOSED:
            await self._stop_listening()
        elif was is SinkMode.CLOSED:
            await self.serve_sink(self._port)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        while self._writers:
            for writer in self._writers:
                writer.close()
            await asyncio.sleep(POLL_S)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        # A cancelled task of a stream, for example by Ctrl-C, would be reported as an error.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not self._closing.is_set():
                _, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status = await self._handle(headers, body)
                writer.write(f"HTTP/1.1 {status} -\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()
        self._writers.discard(writer)

    async def _handle(self, headers: Mapping[str, str], body: bytes) -> int:
        """Handle one post of an event; returns the status."""
        message = json.loads(body)
        self._check_order(message, self._posted)
        self._note(message)
        if self._failing is not None:
            self.failed_posts += 1
        if self._failing is SinkMode.REFUSES:
            return 503
        if self._failing is SinkMode.HANGS:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), HANG_S)
            return 503
        if self._failing is SinkMode.DROPS:
            return 202
        return await self._deliver(headers, body, job_id=message["job_id"])

    async def _deliver(self, headers: Mapping[str, str], body: bytes, *, job_id: str) -> int:
        """Forward an event to the result function; retried until there is a response, since it may have arrived."""
        kept = {name: value for name, value in headers.items() if name.startswith("ce-") or name == "content-type"}
        while not self._closing.is_set():
            try:
                answer = await self._client.post(f"{self._url}/events", content=body, headers=kept)
            except httpx.ConnectError:
                return 502
            except httpx.TransportError:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.status_code >= 500:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.is_success:
                self.applied.add(job_id)
            return answer.status_code
        return 503

    def _check_order(self, message: Mapping[str, Any], last: dict[str, int]) -> None:
        """Record the job if its `seq` decreases on one path of delivery; `last` has the highest by job."""
        if "seq" not in message:
            return
        job_id, seq = message["job_id"], message["seq"]
        if seq < last.get(job_id, 0):
            self.disordered.add(job_id)
        last[job_id] = max(seq, last.get(job_id, 0))

    def _note(self, message: Mapping[str, Any]) -> None:
        end = End(message["event_id"], message["seq"], message["state"], message.get("content_id"))
        self.ends[message["job_id"]].add(end)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

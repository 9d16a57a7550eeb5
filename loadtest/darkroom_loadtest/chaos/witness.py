"""The witness of a storm: what people were promised and what they were told, kept outside Redis.

It submits jobs, over and over until each is taken, and keeps every 202. It stands between the courier and the result
function as the sink, and misbehaves there when the storm says so. It follows every job on a socket, as its owner would.
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
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from darkroom_loadtest.chaos.verdict import End

TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})

AGAIN_S = 0.25
"""Before a submission, a delivery or a socket is tried again."""

POLL_S = 0.02

PATIENCE_S = 5.0
"""For an answer; whoever waits longer asks again."""

HANG_S = 60.0
"""A sink that hangs does so for longer than any courier waits."""


class Way(StrEnum):
    """How the sink fails: nobody listens, it answers 503, it does not answer, or it answers 202 and forgets."""

    CLOSED = "closed"
    REFUSES = "refuses"
    HANGS = "hangs"
    FORGETS = "forgets"


class Witness:
    """What was seen, and who sees. `url` is where the functions are; jobs are submitted at `path` of it."""

    def __init__(self, url: str, *, path: str, socket_jobs: int) -> None:
        self._url, self._path, self._socket_jobs = url, path, socket_jobs
        self.accepted: dict[str, int] = {}
        self.told: set[str] = set()
        self.shown: set[str] = set()
        self.ends: defaultdict[str, set[End]] = defaultdict(set)
        self.disordered: set[str] = set()
        self._posted: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._failing: Way | None = None
        self.refused_submissions = 0
        self.untold_posts = 0
        self._unfollowed: list[str] = []
        # Each caller has its own connection: in a pool with a limit hundreds wait during an outage, and httpx looks
        # through all of them for each request.
        unlimited = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S, limits=unlimited)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._callers: set[asyncio.StreamWriter] = set()
        self._closing = asyncio.Event()

    @property
    def has_seen_all(self) -> bool:
        """Whether the end of every accepted job was told at the sink and on a socket."""
        return self.accepted.keys() <= self.told and self.accepted.keys() <= self.shown

    async def aclose(self) -> None:
        """Hang up on everybody."""
        self._closing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stop_listening()
        await self._client.aclose()

    # -- submitting ----------------------------------------------------------------------------------------------------

    async def submit(self, body: Mapping[str, Any]) -> str:
        """Submit one job, under one key, until it is accepted; return its id."""
        key = uuid4().hex
        while True:
            answer = None
            with suppress(httpx.TransportError):
                answer = await self._client.post(self._url + self._path, json=body, headers={"idempotency-key": key})
            if answer is not None and answer.status_code in {200, 202}:
                job_id: str = answer.json()["job_id"]
                self._accept(job_id)
                return job_id
            if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                raise AssertionError(f"a submission was answered with {answer.status_code}: {answer.text}")
            self.refused_submissions += 1
            await asyncio.sleep(AGAIN_S)

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
        while not jobs <= self.shown:
            with suppress(OSError, TimeoutError, WebSocketException):
                await self._watch(jobs)
            await asyncio.sleep(AGAIN_S)

    async def _watch(self, jobs: frozenset[str]) -> None:
        """Listen until the socket is closed: it stays for a while after the last end, and may yet tell of another."""
        address = f"ws{self._url.removeprefix('http')}/ws/jobs?job_ids={','.join(sorted(jobs))}"
        async with connect(address, proxy=None, open_timeout=PATIENCE_S) as socket:
            async for text in socket:
                message = json.loads(text)
                self._check_order(message, self._sent)
                if message.get("state") in TERMINAL:
                    self._note(message)
                    self.shown.add(message["job_id"])

    # -- the sink ------------------------------------------------------------------------------------------------------

    async def serve_sink(self, port: int) -> None:
        """Listen where the courier posts."""
        self._port = port
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", port)

    async def fail(self, way: Way | None) -> None:
        """From now on the sink fails in this way, or in none."""
        was, self._failing = self._failing, way
        if way is Way.CLOSED:
            await self._stop_listening()
        elif was is Way.CLOSED:
            await self.serve_sink(self._port)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        while self._callers:
            for writer in self._callers:
                writer.close()
            await asyncio.sleep(POLL_S)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._callers.add(writer)
        # A task of a stream that was cancelled, by a Ctrl-C say, would be reported as a fault.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not self._closing.is_set():
                _, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status = await self._take(headers, body)
                writer.write(f"HTTP/1.1 {status} -\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()
        self._callers.discard(writer)

    async def _take(self, headers: Mapping[str, str], body: bytes) -> int:
        """The status for one post of an event."""
        message = json.loads(body)
        self._check_order(message, self._posted)
        self._note(message)
        if self._failing is not None:
            self.untold_posts += 1
        if self._failing is Way.REFUSES:
            return 503
        if self._failing is Way.HANGS:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), HANG_S)
            return 503
        if self._failing is Way.FORGETS:
            return 202
        return await self._deliver(headers, body, job_id=message["job_id"])

    async def _deliver(self, headers: Mapping[str, str], body: bytes, *, job_id: str) -> int:
        """Hand an event to the result function. Once it may have arrived, ask until there is an answer."""
        kept = {name: value for name, value in headers.items() if name.startswith("ce-") or name == "content-type"}
        while not self._closing.is_set():
            try:
                answer = await self._client.post(f"{self._url}/events", content=body, headers=kept)
            except httpx.ConnectError:
                return 502
            except httpx.TransportError:
                await asyncio.sleep(AGAIN_S)
                continue
            if answer.status_code >= 500:
                await asyncio.sleep(AGAIN_S)
                continue
            if answer.is_success:
                self.told.add(job_id)
            return answer.status_code
        return 503

    def _check_order(self, message: Mapping[str, Any], last: dict[str, int]) -> None:
        """Note the job whose `seq` falls on one way of delivery; `last` has the highest of each job there."""
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

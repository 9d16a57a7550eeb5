"""Clients resume at their cursor after a lost connection: on sockets and event streams, on one replica or another.

Two processes of result, a real Redis, and between them a proxy that drops a third of all published messages.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from darkroom.jobs import JobEvent
from darkroom.ledger import calls, reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.driven_jobs import DrivenJobs
from tests.functions.stream_clients import DEADLINE_S, Message, all_messages, events, following, stream
from tests.lossy_redis import LossyRedis
from tests.parts import Functions, environment
from tests.redis_server import RedisServer

NAMESPACE = "own"

CUTS = 200
LONGEST = 12
"""The most messages of a connection before it is cut, while there are cuts left."""

LOST = 1 / 3
LOOK_EVERY_S = 0.2
"""Ten seconds in production: lost messages would be found as surely, but much later."""

STEP_S = 0.01
"""The interval of steps: the jobs run while all connections are cut, and their logs stay readable."""

Event = tuple[str, int, str]
"""What identifies an entry to a client: job, seq, event_id."""

Cut = tuple[list[Functions], DrivenJobs, LossyRedis]


@dataclass
class Cutter:
    """Cuts connections at random, CUTS of them in all."""

    chance: random.Random
    left: int = CUTS

    def next_cut(self) -> int | None:
        """After how many messages the next connection is cut; None: never."""
        if self.left == 0:
            return None
        self.left -= 1
        return self.chance.randrange(LONGEST)


@dataclass
class Client:
    """A client that follows jobs to their end, over any transport, with a cursor for each job."""

    replicas: Sequence[Functions]
    cutter: Cutter
    job_ids: list[str]
    received: list[Event] = field(default_factory=list)
    others: list[Message] = field(default_factory=list)
    transports: set[str] = field(default_factory=set)
    cursors: dict[str, str] = field(default_factory=dict)

    @property
    def living(self) -> list[str]:
        return [job_id for job_id in self.job_ids if self.cursors.get(job_id) != "end"]

    async def follow(self) -> None:
        """Follow every job to its end. On a busy machine a server may answer that Redis is unavailable."""
        while self.living:
            transport = self.cutter.chance.choice(self.choices)
            self.transports.add(transport.__name__)
            with suppress(ConnectionClosed):
                async for message in until(transport(self.cutter.chance.choice(self.replicas)), self.cutter.next_cut()):
                    if "type" not in message:
                        self.record(message)
                    elif message.get("code") != "ledger-unavailable":
                        self.others.append(message)
                    if not self.living:
                        return

    @property
    def choices(self) -> list[Callable[[Functions], AsyncGenerator[Message]]]:
        return [self.socket, self.subscribing_socket, self.event_stream]

    def record(self, message: Message) -> None:
        self.received.append((message["job_id"], message["seq"], message["event_id"]))
        self.cursors[message["job_id"]] = message["event_id"].rpartition(":")[2]

    def since(self, job_ids: Sequence[str]) -> dict[str, str]:
        return {job_id: self.cursors.get(job_id, "0") for job_id in job_ids}

    async def socket(self, replica: Functions) -> AsyncGenerator[Message]:
        """A socket for one job, or for several."""
        jobs = self.living
        if len(jobs) == 1:
            path = f"/ws/jobs/{jobs[0]}?since={self.since(jobs)[jobs[0]]}"
        else:
            cursors = ",".join(f"{job_id}:{cursor}" for job_id, cursor in self.since(jobs).items())
            path = f"/ws/jobs?job_ids={','.join(jobs)}&since={cursors}"
        async with aborted(replica, path) as ws:
            async for text in ws:
                yield json.loads(text)

    async def subscribing_socket(self, replica: Functions) -> AsyncGenerator[Message]:
        """A socket that begins with one job and subscribes to the others."""
        first, *others = self.living
        async with aborted(replica, f"/ws/jobs/{first}?since={self.since([first])[first]}") as ws:
            if others:
                await ws.send(json.dumps({"type": "subscribe", "job_ids": others, "since": self.since(others)}))
            async for text in ws:
                message = json.loads(text)
                if message.get("type") != "subscribed":
                    yield message

    async def event_stream(self, replica: Functions) -> AsyncGenerator[Message]:
        """An event stream of one of the jobs, with the cursor in its header or its query."""
        job_id = self.cutter.chance.choice(self.living)
        async for message in self.stream_of(replica, f"/api/v1/generation-jobs/{job_id}/events", job_id):
            yield message

    async def stream_of(self, replica: Functions, path: str, cursor_of: str) -> AsyncGenerator[Message]:
        cursor = self.cursors.get(cursor_of, "0")
        where = self.cutter.chance.choice([{"headers": {"last-event-id": cursor}}, {"params": {"since": cursor}}])
        async with stream(replica, path, **where) as response:
            if response.status_code == 503:
                return
            assert response.status_code == 200
            async for event in events(response):
                message = event.message
                if event.kind == "message":
                    assert event.id == message.get("cursor", message["event_id"].rpartition(":")[2])
                yield message


class TenantsClient(Client):
    """A client of the stream of a tenant, whose cursor is under `""`."""

    @property
    def choices(self) -> list[Callable[[Functions], AsyncGenerator[Message]]]:
        return [self.tenant_socket, self.tenant_stream]

    def record(self, message: Message) -> None:
        super().record(message)
        self.cursors[""] = message["cursor"]

    async def tenant_socket(self, replica: Functions) -> AsyncGenerator[Message]:
        async with aborted(replica, f"/ws/events?since={self.cursors.get('', '0')}") as ws:
            async for text in ws:
                yield json.loads(text)

    async def tenant_stream(self, replica: Functions) -> AsyncGenerator[Message]:
        async for message in self.stream_of(replica, "/api/v1/events", ""):
            yield message


async def until(messages: AsyncGenerator[Message], cut: int | None) -> AsyncIterator[Message]:
    """The first `cut` messages, after which the connection is cut."""
    async with aclosing(messages):
        count = 0
        while count != cut:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    message = await anext(messages)
            except StopAsyncIteration:
                return
            yield message
            count += 1


@asynccontextmanager
async def aborted(replica: Functions, path: str) -> AsyncIterator[ClientConnection]:
    """A socket that is aborted without a close frame."""
    ws = await connect(replica.ws_url + path, proxy=None)
    try:
        yield ws
    finally:
        ws.transport.abort()
        await ws.wait_closed()


@pytest.fixture
async def replicas(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Cut]]]:
    """Starts two processes of result that receive two thirds of what is published."""
    started: list[Functions] = []
    jobs = DrivenJobs(own_redis.url, NAMESPACE)
    async with LossyRedis(own_redis.port, lost=LOST, seed=4).running() as lossy:

        async def start(**settings: str) -> Cut:
            variables = environment(
                lossy.url,
                NAMESPACE,
                DARKROOM_STREAM_CHECK_INTERVAL_S=str(LOOK_EVERY_S),
                DARKROOM_SOCKET_GRACE_S="0.1",
                **settings,
            )
            for number in range(2):
                started.append(Functions("result", environment=variables, log=tmp_path / f"result-{number}.log"))
                await asyncio.to_thread(started[-1].start)
            return started, jobs, lossy

        yield start
        for function in started:
            assert await asyncio.to_thread(function.stop) == 0
    jobs.close()


async def logs_of(redis: RedisServer, job_ids: Sequence[str]) -> dict[str, list[LogEntry]]:
    client = connect_async(redis.url)
    logs = await reads.logs(AsyncLedger(client, NAMESPACE), job_ids)
    await client.aclose()
    return dict(zip(job_ids, logs, strict=True))


def drive(jobs: DrivenJobs, job_ids: Sequence[str], chance: random.Random, *, running: Callable[[], bool]) -> None:
    """Run the jobs concurrently, a step of one of them at a time; they complete once `running` returns False."""
    steps = dict.fromkeys(job_ids, 0)
    while steps:
        job_id = chance.choice(list(steps))
        if steps[job_id] == 0:
            jobs.start(job_id)
        elif steps[job_id] < LONGEST or running():
            jobs.progress(job_id, step=steps[job_id], steps=1_000_000)
        else:
            jobs.complete(job_id)
            del steps[job_id]
            continue
        steps[job_id] += 1
        time.sleep(STEP_S)


async def test_a_client_that_is_cut_at_random_receives_exactly_the_log(
    replicas: Callable[..., Awaitable[Cut]], own_redis: RedisServer
) -> None:
    """Sockets and event streams of a running set of jobs are cut 200 times, and published messages get lost."""
    functions, jobs, lossy = await replicas()
    cutter = Cutter(random.Random(secrets.randbits(32)))
    job_ids = [jobs.submit() for _ in range(6)]
    groups = [*([job_id] for job_id in job_ids), job_ids[:2], job_ids[2:], job_ids]
    clients = [Client(functions, cutter, list(group)) for group in groups]
    async with asyncio.timeout(4 * DEADLINE_S), asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.follow())
        group.create_task(asyncio.to_thread(drive, jobs, job_ids, random.Random(1), running=lambda: cutter.left > 0))
    logs = await logs_of(own_redis, job_ids)
    for client in clients:
        received: dict[str, list[Event]] = defaultdict(list)
        for event in client.received:
            received[event[0]].append(event)
        assert received == {
            job_id: [(job_id, entry.seq, entry.event_id) for entry in logs[job_id]] for job_id in client.job_ids
        }
        assert client.others == []
    assert cutter.left == 0
    assert set().union(*(client.transports for client in clients)) == {"socket", "subscribing_socket", "event_stream"}
    assert lossy.dropped > 0
    assert lossy.passed > 0


async def test_a_client_of_a_tenant_that_is_cut_receives_exactly_its_stream(
    replicas: Callable[..., Awaitable[Cut]], own_redis: RedisServer
) -> None:
    functions, jobs, lossy = await replicas()
    cutter = Cutter(random.Random(secrets.randbits(32)), left=60)
    job_ids = [jobs.submit() for _ in range(30)]
    clients = [TenantsClient(functions, cutter, job_ids) for _ in range(3)]

    def work() -> None:
        chance = random.Random(1)
        for job_id in job_ids:
            for number in range(1, chance.randrange(1, 3)):
                jobs.start(job_id, token=f"{number}")
                error = {"kind": "transient", "message": "hiccup"}
                jobs.run(calls.retry(job_id, token=f"{number}", error=error, delay_ms=0))
            jobs.start(job_id)
            jobs.progress(job_id, step=1, steps=2)
            time.sleep(5 * STEP_S)
            jobs.complete(job_id)

    async with asyncio.timeout(4 * DEADLINE_S), asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.follow())
        group.create_task(asyncio.to_thread(work))
    logs = await logs_of(own_redis, job_ids)
    for client in clients:
        received: dict[str, list[Event]] = defaultdict(list)
        for event in client.received:
            received[event[0]].append(event)
        assert received == {
            job_id: [
                (job_id, entry.seq, entry.event_id) for entry in logs[job_id] if entry.event is not JobEvent.PROGRESSED
            ]
            for job_id in job_ids
        }
        assert client.received == clients[0].received, "all clients receive the same order"
        assert client.others == []
    assert set().union(*(client.transports for client in clients)) == {"tenant_socket", "tenant_stream"}
    assert lossy.dropped > 0


async def test_one_replica_resumes_where_another_closed_the_connection(
    replicas: Callable[..., Awaitable[Cut]],
) -> None:
    functions, jobs, _ = await replicas(DARKROOM_SOCKET_LIFE_S="1")
    job_id = jobs.submit()
    cursor = "0"
    numbers: list[int] = []
    codes: list[int] = []
    working = asyncio.create_task(asyncio.to_thread(_run_for, jobs, job_id, seconds=3.5))
    async with asyncio.timeout(2 * DEADLINE_S):
        while cursor != "end":
            async with following(functions[len(codes) % 2], job_id, since=cursor) as ws:
                messages, code = await all_messages(ws)
            codes.append(code)
            numbers += [message["seq"] for message in messages]
            cursor = messages[-1]["event_id"].rpartition(":")[2] if messages else cursor
        await working
    assert numbers == list(range(1, jobs.end_seq(job_id) + 1))
    assert set(codes[:-1]) == {1012}


def _run_for(jobs: DrivenJobs, job_id: str, *, seconds: float) -> None:
    jobs.start(job_id)
    end, step = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        step += 1
        jobs.progress(job_id, step=step, steps=1_000_000)
        time.sleep(5 * STEP_S)
    jobs.complete(job_id)

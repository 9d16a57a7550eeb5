"""Whoever comes again goes on where he was: over sockets and event streams, on one replica or another.

Two processes of result, a real Redis, and between them a way on which a third of all published messages get lost.
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
from darkroom.ledger import calls
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.driven_jobs import DrivenJobs
from tests.functions.listeners import DEADLINE_S, Message, events, stream, told_to_the_end, watching
from tests.lossy_redis import LossyRedis
from tests.parts import Functions, environment
from tests.redis_server import RedisServer

NAMESPACE = "own"

CUTS = 200
LONGEST = 12
"""Messages that a connection lives to see at most, while there are cuts left."""

LOST = 1 / 3
LOOK_EVERY_S = 0.2
"""Ten seconds in production: what is lost would be found as surely, and much later."""

STEP_S = 0.01
"""So often a step of one of the jobs: they run while all connections are cut, and their logs are of human size."""

Event = tuple[str, int, str]
"""What identifies an entry to a client: job, seq, event_id."""

Cut = tuple[list[Functions], DrivenJobs, LossyRedis]


@dataclass
class Cutter:
    """Cuts connections at random, CUTS of them in all; then it lets them be."""

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
    """One who follows something to its end, over whatever transport, with a cursor for each job or for all news."""

    replicas: Sequence[Functions]
    cutter: Cutter
    job_ids: list[str]
    told: list[Event] = field(default_factory=list)
    others: list[Message] = field(default_factory=list)
    transports: set[str] = field(default_factory=set)
    cursors: dict[str, str] = field(default_factory=dict)

    @property
    def living(self) -> list[str]:
        return [job_id for job_id in self.job_ids if self.cursors.get(job_id) != "end"]

    async def follow(self) -> None:
        """Every job to its end. A busy machine may make a server say that it waited too long for Redis."""
        while self.living:
            transport = self.cutter.chance.choice(self.choices)
            self.transports.add(transport.__name__)
            with suppress(ConnectionClosed):
                async for message in until(transport(self.cutter.chance.choice(self.replicas)), self.cutter.next_cut()):
                    if "type" not in message:
                        self.take(message)
                    elif message.get("code") != "ledger-unavailable":
                        self.others.append(message)
                    if not self.living:
                        return

    @property
    def choices(self) -> list[Callable[[Functions], AsyncGenerator[Message]]]:
        return [self.socket, self.steered_socket, self.event_stream]

    def take(self, message: Message) -> None:
        self.told.append((message["job_id"], message["seq"], message["event_id"]))
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

    async def steered_socket(self, replica: Functions) -> AsyncGenerator[Message]:
        """A socket that begins with one job; the others are subscribed to as it goes."""
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
    """One who follows all jobs at once; `cursors` has the one of the news under `""`."""

    @property
    def choices(self) -> list[Callable[[Functions], AsyncGenerator[Message]]]:
        return [self.news_socket, self.news_stream]

    def take(self, message: Message) -> None:
        super().take(message)
        self.cursors[""] = message["cursor"]

    async def news_socket(self, replica: Functions) -> AsyncGenerator[Message]:
        async with aborted(replica, f"/ws/events?since={self.cursors.get('', '0')}") as ws:
            async for text in ws:
                yield json.loads(text)

    async def news_stream(self, replica: Functions) -> AsyncGenerator[Message]:
        async for message in self.stream_of(replica, "/api/v1/events", ""):
            yield message


async def until(messages: AsyncGenerator[Message], cut: int | None) -> AsyncIterator[Message]:
    """As many of the messages as `cut` says, and then the connection goes."""
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
    """A socket that ends without a farewell."""
    ws = await connect(replica.ws_url + path, proxy=None)
    try:
        yield ws
    finally:
        ws.transport.abort()
        await ws.wait_closed()


@pytest.fixture
async def replicas(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Cut]]]:
    """Starts two processes of result that hear two thirds of what is published."""
    started: list[Functions] = []
    jobs = DrivenJobs(own_redis.url, NAMESPACE)
    async with LossyRedis(own_redis.port, lost=LOST, seed=4).running() as lossy:

        async def start(**settings: str) -> Cut:
            told = environment(
                lossy.url,
                NAMESPACE,
                DARKROOM_LOOK_EVERY_S=str(LOOK_EVERY_S),
                DARKROOM_SOCKET_GRACE_S="0.1",
                **settings,
            )
            for number in range(2):
                started.append(Functions("result", environment=told, log=tmp_path / f"result-{number}.log"))
                await asyncio.to_thread(started[-1].start)
            return started, jobs, lossy

        yield start
        for function in started:
            assert await asyncio.to_thread(function.stop) == 0
    jobs.close()


async def logs_of(redis: RedisServer, job_ids: Sequence[str]) -> dict[str, list[LogEntry]]:
    client = connect_async(redis.url)
    logs = await AsyncLedger(client, NAMESPACE).logs(job_ids)
    await client.aclose()
    return dict(zip(job_ids, logs, strict=True))


def drive(jobs: DrivenJobs, job_ids: Sequence[str], chance: random.Random, *, running: Callable[[], bool]) -> None:
    """Runs the jobs beside one another, a step of one of them at a time; they end once `running` says no."""
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


async def test_whoever_is_cut_at_random_is_told_the_log_exactly(
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
        told: dict[str, list[Event]] = defaultdict(list)
        for event in client.told:
            told[event[0]].append(event)
        assert told == {
            job_id: [(job_id, entry.seq, entry.event_id) for entry in logs[job_id]] for job_id in client.job_ids
        }
        assert client.others == []
    assert cutter.left == 0
    assert set().union(*(client.transports for client in clients)) == {"socket", "steered_socket", "event_stream"}
    assert lossy.dropped > 0
    assert lossy.passed > 0


async def test_whoever_follows_a_tenant_and_is_cut_is_told_its_news_exactly(
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
        told: dict[str, list[Event]] = defaultdict(list)
        for event in client.told:
            told[event[0]].append(event)
        assert told == {
            job_id: [
                (job_id, entry.seq, entry.event_id) for entry in logs[job_id] if entry.event is not JobEvent.PROGRESSED
            ]
            for job_id in job_ids
        }
        assert client.told == clients[0].told, "all are told in the same order"
        assert client.others == []
    assert set().union(*(client.transports for client in clients)) == {"news_socket", "news_stream"}
    assert lossy.dropped > 0


async def test_one_replica_goes_on_where_another_has_said_connect_again(
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
            async with watching(functions[len(codes) % 2], job_id, since=cursor) as ws:
                messages, code = await told_to_the_end(ws)
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

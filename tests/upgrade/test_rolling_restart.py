"""A rolling restart of every part under load, by the signals that Kubernetes sends: no job and no event is lost.

Jobs are submitted all the time, through the gateway. A client follows all of them on a socket and reconnects with its
cursor, and a receiver of webhooks receives each. The operator does not run here: tests/operator replaces it under
bursts of jobs.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.jobs import JobEvent, State
from darkroom.ledger import calls, reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.darkroom_command import darkroom
from tests.gateway.running import Gateway, start_program
from tests.parts import Functions
from tests.receivers import Receiver, receiving
from tests.upgrade.stage import Courier, Replaceable, Service
from tests.worker.running_worker import MODEL, POOL, Testbed, WorkerProcess

FUNCTIONS = ("submit", "jobs", "result")
WORKERS = 2

FEWEST_JOBS = 150
RUN_S = 0.03
PAUSE_S = 0.1
"""The pause between two submissions; two workers could run several times as many jobs."""

AGAIN_S = 0.05
ACCEPTED, AWAY = {202, 200}, {502, 503, 504}
"""The statuses of a new job or of one that a request without a response made; and those of an unavailable function."""

SOON = {
    "DARKROOM_DELIVERY_TIMEOUT_S": "10",
    "DARKROOM_DELIVERY_LEASE_S": "20",
    "DARKROOM_DELIVERY_SCHEDULE_S": ",".join(["0", *["1"] * 20]),
}
"""Settings with which posts that a courier did not complete are repeated within the test's deadline."""

SERVICE_RESTART = 1012


@dataclass
class Load:
    """A client that submits jobs one after another and reads each. It repeats requests without a response."""

    url: str
    ids: list[str] = field(default_factory=list)
    repeats: int = 0

    async def run(self, is_over: Callable[[], bool]) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            while len(self.ids) < FEWEST_JOBS or not is_over():
                event = {
                    "specversion": "1.0",
                    "id": f"job {len(self.ids)}",
                    "source": "/tests/upgrade",
                    "type": "dev.darkroom.job.requested",
                    "data": {"model": MODEL, "input": {"seconds": RUN_S}},
                }
                headers = {"Content-Type": "application/cloudevents+json"}
                answer = await self._ask(client, "POST", f"{self.url}/", json=event, headers=headers)
                assert answer.status_code in ACCEPTED, answer.text
                self.ids.append(answer.json()["id"])
                url = f"{self.url}/api/v1/generation-jobs/{self.ids[-1]}"
                answer = await self._ask(client, "GET", url)
                assert answer.status_code == 200, answer.text
                await asyncio.sleep(PAUSE_S)

    async def _ask(self, client: httpx.AsyncClient, method: str, url: str, **more: Any) -> httpx.Response:
        while True:
            try:
                answer = await client.request(method, url, **more)
                if answer.status_code not in AWAY:
                    return answer
            except httpx.TransportError:
                pass
            self.repeats += 1
            await asyncio.sleep(AGAIN_S)


@dataclass
class Follower:
    """A client that follows all jobs on a socket, and reconnects with its cursor."""

    url: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    codes: Counter[int | None] = field(default_factory=Counter)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        cursor = None
        while True:
            try:
                async with connect(self.url + ("" if cursor is None else f"?since={cursor}")) as socket:
                    async for text in socket:
                        message = json.loads(text)
                        cursor = message["cursor"]
                        self.begun.set()
                        if "event_id" in message:
                            self.messages.append(message)
                        else:
                            assert message["type"] == "begin", message
            except ConnectionClosed as closed:
                self.codes[closed.rcvd.code if closed.rcvd else None] += 1
            except (OSError, InvalidHandshake):
                pass
            else:
                self.codes[socket.close_code] += 1
            await asyncio.sleep(AGAIN_S)

    def events_of(self, job_id: str) -> list[str]:
        """The ids of the job's events that it received, in that order."""
        return [message["event_id"] for message in self.messages if message["job_id"] == job_id]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@asynccontextmanager
async def background(work: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    """Run it in the background; its failure fails the test."""
    task = asyncio.ensure_future(work)
    try:
        yield task
        if task.done():
            await task
    finally:
        task.cancel()
        await asyncio.wait([task])


class Deployment:
    """Everything that runs. A part is replaced by one that is ready before the old one gets its SIGTERM."""

    def __init__(self, house: Testbed, services: dict[str, Service], settings: dict[str, str], folder: Path) -> None:
        self._house, self._services, self._settings, self._folder = house, services, settings, folder
        self._running: dict[str, Replaceable] = {}
        self._workers: list[WorkerProcess] = []
        self._started = 0

    async def replace(self, name: str) -> None:
        self._started += 1
        folder = self._folder / f"{name}-{self._started}"
        folder.mkdir()
        log = folder / "log"
        if name == "gateway":
            new: Replaceable = Gateway(folder, self._places())
        elif name == "courier":
            sink = f"http://{self._services['result'].address}/"
            new = Courier(environment={**self._settings, "K_SINK": sink}, log=log)
        else:
            new = Functions(name, environment=self._settings, log=log)
        await asyncio.to_thread(new.start)
        old, self._running[name] = self._running.get(name), new
        if name in self._services:
            self._services[name].port = new.port
        if old is not None:
            assert await asyncio.to_thread(old.stop) == 0, old.log.read_text()

    def _places(self) -> dict[str, str]:
        """The gateway's settings. Its longest wait bounds for how long it keeps a socket during shutdown."""
        places = {f"DARKROOM_GATEWAY_{name.upper()}": self._services[name].address for name in FUNCTIONS}
        return {**places, "DARKROOM_MAX_WAIT_S": "2"}

    async def add_worker(self) -> None:
        self._workers.append(await self._house.ready_worker())

    async def replace_workers(self) -> None:
        for old in tuple(self._workers):
            await self.add_worker()
            old.signal(signal.SIGTERM)
            assert await asyncio.to_thread(old.wait) == 0, old.log.read_text()

    async def stop(self) -> None:
        for part in self._running.values():
            await asyncio.to_thread(part.stop)
        self._house.stop()


async def test_a_rolling_restart_of_every_part_under_load_loses_no_job_and_no_event(
    redis_url: str, namespace: str, tmp_path: Path, receiver: Receiver
) -> None:
    start_program()  # without nginx there is no gateway, and no such test
    async with AsyncExitStack() as stack:
        client = connect_async(redis_url)
        stack.push_async_callback(client.aclose)
        house = Testbed(AsyncLedger(client, namespace), redis_url=redis_url, namespace=namespace, folder=tmp_path)
        services = {name: await stack.enter_async_context(Service()) for name in (*FUNCTIONS, "gateway")}
        settings = house.environment() | SOON | {"DARKROOM_WEBHOOK_ALLOW": receiver.address}
        running = Deployment(house, services, settings, tmp_path)
        stack.push_async_callback(running.stop)
        await house.ledger.run(calls.announce_pool(POOL, models=[MODEL]))
        parts = (*FUNCTIONS, "undelivered", "courier", "gateway")
        await asyncio.gather(*map(running.replace, parts), *(running.add_worker() for _ in range(WORKERS)))

        url = f"http://{services['gateway'].address}"
        async with httpx.AsyncClient(trust_env=False) as caller:
            wish = {"url": f"http://{receiver.address}:{receiver.port}/", "events": ["started", "completed"]}
            answer = await caller.post(f"{url}/api/v1/subscriptions", json=wish)
            assert answer.status_code == 201, answer.text

        is_replaced = False
        load, follower = Load(url), Follower(f"ws://{services['gateway'].address}/ws/events")
        async with background(follower.run()) as following:
            await asyncio.wait_for(follower.begun.wait(), 60)
            async with background(load.run(lambda: is_replaced)) as loading:
                # All at once, as after `kubectl apply`; of the workers one after another.
                await asyncio.gather(*map(running.replace, parts), running.replace_workers())
                is_replaced = True
                await loading

            for job_id in load.ids:
                assert (await house.ended(job_id)).state is State.COMPLETED
            logs = {job_id: await reads.log(house.ledger, job_id) for job_id in load.ids}
            news = {job_id: ids_of(log, without={JobEvent.PROGRESSED}) for job_id, log in logs.items()}
            asked_for = [ids_of(log, of={JobEvent.STARTED, JobEvent.COMPLETED}) for log in logs.values()]

            async def everything_is_received() -> bool | None:
                if following.done():
                    await following
                followed = sum(len(follower.events_of(job_id)) for job_id in load.ids)
                is_received = followed >= sum(map(len, news.values())) and len(delivered(receiver)) >= sum(
                    map(len, asked_for)
                )
                return is_received or None

            await house.until(everything_is_received, "the follower and the receiver have received every event")

        assert len(set(load.ids)) == len(load.ids)
        assert {job_id: follower.events_of(job_id) for job_id in load.ids} == news
        assert delivered(receiver) == {event_id for ids in asked_for for event_id in ids}
        assert follower.codes[SERVICE_RESTART] >= 1, follower.codes

        async def nothing_is_left() -> bool | None:
            done = await asyncio.to_thread(darkroom, ["audit", "--json"], folder=tmp_path, **settings)
            counts = json.loads(done.stdout.splitlines()[-1])
            return (counts["findings"], counts["unapplied"]) == ({}, 0) or None

        await house.until(nothing_is_left, "no event is pending, and the audit finds nothing")


def ids_of(
    log: Sequence[LogEntry], *, of: Collection[JobEvent] = frozenset(JobEvent), without: Collection[JobEvent] = ()
) -> list[str]:
    """The ids of the log's events of these kinds, in order."""
    return [entry.event_id for entry in log if entry.event in of and entry.event not in without]


def delivered(receiver: Receiver) -> set[str]:
    """The ids of the events that the receiver was sent."""
    heads = [request.partition(b"\r\n\r\n")[0].decode().splitlines() for request in receiver.requests]
    lines = [line.partition(":") for head in heads for line in head]
    return {value.strip() for name, _, value in lines if name.lower() == "webhook-id"}

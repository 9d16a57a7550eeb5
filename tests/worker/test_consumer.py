"""How the worker's parent speaks with the queue broker: what it leaves there, and what it tells those who ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from darkroom import queues
from darkroom.jobs import State
from darkroom.ledger import AsyncLedger, connect, connect_async

from tests.waiting import DEADLINE_S
from tests.worker.running_worker import POOL, House


@pytest.fixture
async def house(redis_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[House]:
    client = connect_async(redis_url)
    house = House(AsyncLedger(client, namespace), redis_url=redis_url, namespace=namespace, folder=tmp_path)
    yield house
    house.stop()
    await client.aclose()


async def test_the_queue_broker_remembers_nothing_of_a_job_that_runs_but_in_the_ledger(house: House) -> None:
    """A message that was taken is of no use to anybody: the lease says that the job runs."""
    await house.ready_worker()
    job_id = await house.submit(steps=100, seconds=1)
    await house.running(job_id)

    with connect(house.redis_url) as client:
        kept = [name.decode() for name in client.scan_iter(f"{house.namespace}:celery:*")]
    record = await house.ended(job_id)

    assert [name for name in kept if "unacked" in name or name.endswith(queues.queue_name(POOL))] == []
    assert (record.state, record.attempt) == (State.COMPLETED, 1)


async def test_a_worker_whose_connections_were_cut_takes_the_next_job(house: House) -> None:
    """The client that it kept for the queue broker is of no use then; it makes itself another."""
    await house.ready_worker()
    before = await house.ended(await house.submit())

    with connect(house.redis_url) as client:
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
    record = await house.ended(await house.submit())

    assert (record.state, record.attempt, record.worker) == (State.COMPLETED, 1, before.worker)


async def test_who_asks_for_the_events_of_tasks_is_told_all_of_them_though_the_worker_ends(house: House) -> None:
    """As Flower asks. They are told in batches; the last batch goes out before the worker has gone."""
    worker = await house.ready_worker()
    told: list[tuple[str, str | None]] = []
    with Celery("tests", broker=house.redis_url, set_as_current=False) as app:
        app.conf.broker_transport_options = queues.transport_options(house.namespace, POOL)
        hearing = asyncio.create_task(asyncio.to_thread(_hear, app, told))
        await house.until(lambda: _any(told), "an event of the worker's own is heard")
        await asyncio.to_thread(app.control.enable_events, reply=True, limit=1)
        job_id = await house.submit()
        await house.ended(job_id)
        worker.stop()
        await hearing

    assert [kind for kind, about in told if about == job_id] == ["task-received", "task-started", "task-succeeded"]


async def _any(told: list[tuple[str, str | None]]) -> bool | None:
    return bool(told) or None


def _hear(app: Celery, told: list[tuple[str, str | None]]) -> None:
    """The kind of each event and the task that it is about, until the worker says that it goes."""

    def note(event: dict[str, Any]) -> None:
        told.append((event["type"], event.get("uuid")))
        receiver.should_stop = event["type"] == "worker-offline"

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        receiver.capture(limit=None, timeout=DEADLINE_S, wakeup=True)

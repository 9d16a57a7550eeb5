"""The worker, as processes: real Celery, a real Redis, an engine that does what it is told.

No courier runs here: what the ledger's sweeps would bring back is brought back by the worker itself, or the test says so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import redis
from celery import Celery
from darkroom import queues, transitions
from darkroom.artifacts import ArtifactStore
from darkroom.jobs import Artifact, ErrorKind, JobEvent, State
from darkroom.ledger import AsyncLedger, connect, connect_async
from darkroom.transitions import Receipt, WorkerState

from tests.redis_server import RedisKind, RedisServer, binary_of
from tests.worker.running_worker import DEADLINE_S, MODEL, MODEL_FILE, POOL, TENANT, House, WorkerProcess


@asynccontextmanager
async def opened_house(redis_url: str, namespace: str, folder: Path) -> AsyncIterator[House]:
    client = connect_async(redis_url)
    house = House(redis_url=redis_url, namespace=namespace, folder=folder, ledger=AsyncLedger(client, namespace))
    try:
        yield house
    finally:
        house.stop()
        await client.aclose()


@pytest.fixture
async def house(redis_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[House]:
    """A place of the test's own, whose workers are ended after it."""
    async with opened_house(redis_url, namespace, tmp_path) as house:
        yield house


@pytest.fixture
def broker(house: House) -> Iterator[Celery]:
    """A Celery app that only talks to the workers, as Flower's does."""
    app = Celery("tests", broker=house.redis_url, set_as_current=False)
    app.conf.broker_transport_options = queues.transport_options(house.namespace, POOL)
    yield app
    app.close()


async def test_a_job_runs_and_its_pictures_are_what_the_end_says(house: House) -> None:
    await house.ready_worker()

    job_id = await house.submit(images=2, seed=41)
    record = await house.ended(job_id)

    assert record.state is State.COMPLETED
    assert record.end_data is not None
    artifacts = [Artifact.decode(raw) for raw in record.end_data["artifacts"]]
    assert await house.store.keys(f"{TENANT}/{job_id}") == [artifact.key for artifact in artifacts]
    for artifact in artifacts:
        content = (house.store_folder / artifact.key).read_bytes()
        assert (sha256(content).hexdigest(), len(content)) == (artifact.sha256, artifact.size)
        assert artifact.media_type == "image/png"
    assert record.end_data["model_served"] == MODEL
    assert record.end_data["attempt"] == 1
    assert record.end_data["record"]["parameters"]["seed"] == 41
    assert record.end_data["run_ms"] >= 0
    entries = await house.ledger.log(job_id)
    assert entries[0].event is JobEvent.ACCEPTED
    assert entries[1].event is JobEvent.STARTED
    assert entries[-2].data == {"progress": 100, "step": 2, "steps": 2}
    assert entries[-1].event is JobEvent.COMPLETED


async def test_progress_is_told_at_most_four_times_a_second_and_always_at_the_end(house: House) -> None:
    await house.ready_worker()

    job_id = await house.submit(steps=200, seconds=1)
    record = await house.ended(job_id)

    told = await house.entries(job_id, JobEvent.PROGRESSED)
    assert record.started is not None
    assert record.ended is not None
    assert 1 < len(told) <= 4 * (record.ended - record.started) / 1000 + 2
    assert told[-1].data == {"progress": 100, "step": 200, "steps": 200}
    assert record.step == 200


async def test_a_cancelled_job_stops_within_a_step(house: House) -> None:
    worker = await house.ready_worker()
    child = worker.children()
    job_id = await house.submit(steps=600, seconds=60)
    await house.running(job_id)

    answer = await house.ledger.run(transitions.cancel(job_id, tenant=TENANT))
    at_cancel = (await house.job(job_id)).step or 0
    record = await house.ended(job_id)

    assert answer.receipt is Receipt.INTERRUPTING
    assert record.state is State.CANCELLED
    assert (record.step or 0) <= at_cancel + 1
    assert await house.store.keys(TENANT) == []
    assert (await house.ended(await house.submit())).state is State.COMPLETED
    assert worker.children() == child


async def test_an_engine_that_does_not_hear_a_cancel_is_ended(house: House) -> None:
    worker = await house.ready_worker(interrupt_grace_s="0.5")
    child = worker.children()
    job_id = await house.submit(steps=1, seconds=600)
    await house.in_state(job_id, lambda record: record.state is State.RUNNING, "the job runs")

    await house.ledger.run(transitions.cancel(job_id, tenant=TENANT))

    assert (await house.ended(job_id)).state is State.CANCELLED
    assert (await house.ended(await house.submit())).state is State.COMPLETED
    assert worker.children() != child


async def test_a_job_whose_process_dies_is_released_at_once_and_tried_again(house: House) -> None:
    worker = await house.ready_worker()
    job_id = await house.submit(steps=20, seconds=1)
    await house.running(job_id)

    os.kill(worker.children()[0], signal.SIGKILL)
    record = await house.ended(job_id)

    released = await house.entries(job_id, JobEvent.RELEASED)
    assert [(entry.data["reason"], entry.data["counted"]) for entry in released] == [("worker_lost", True)]
    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 2, 1)


async def test_a_job_that_kills_every_process_fails_after_its_attempts(house: House) -> None:
    worker = await house.ready_worker()
    job_id = await house.submit(steps=600, seconds=60, max_attempts=2)

    for attempt in (1, 2):
        await house.running(job_id, attempt=attempt)
        os.kill(worker.children()[0], signal.SIGKILL)
    record = await house.ended(job_id)

    assert record.state is State.FAILED
    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.WORKER_LOST
    assert len([entry for entry in await house.ledger.log(job_id) if entry.state.is_terminal]) == 1


async def test_a_drained_worker_ends_its_job_takes_no_other_and_leaves_nothing(house: House) -> None:
    worker = await house.ready_worker()
    running = await house.submit(steps=20, seconds=2)
    await house.running(running)
    waiting = await house.submit()

    worker.signal(signal.SIGTERM)

    assert worker.exit_status() == 0
    assert (await house.job(running)).state is State.COMPLETED
    assert (await house.job(waiting)).attempt == 0
    assert await house.ledger.workers() == []
    with connect(house.redis_url) as client:
        assert client.exists(f"{house.namespace}:celery:unacked.{POOL}") == 0


async def test_a_job_that_outlasts_a_drain_is_given_back_uncounted_and_runs_elsewhere(house: House) -> None:
    worker = await house.ready_worker(drain_grace_s="0.2")
    job_id = await house.submit(steps=40, seconds=4)
    await house.running(job_id)

    worker.signal(signal.SIGTERM)
    assert worker.exit_status() == 0
    given_back = await house.job(job_id)
    await house.ready_worker()
    record = await house.ended(job_id)

    assert (given_back.state, given_back.attempt, given_back.counted) == (State.PENDING, 1, 0)
    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 2, 0)
    assert len(await house.entries(job_id, JobEvent.STARTED)) == 2


async def test_a_second_signal_ends_the_grace(house: House) -> None:
    worker = await house.ready_worker(drain_grace_s="600")
    job_id = await house.submit(steps=600, seconds=60)
    await house.running(job_id)

    worker.signal(signal.SIGTERM)
    await house.logged(worker, "draining")
    worker.signal(signal.SIGTERM)

    assert worker.exit_status() == 0
    assert (await house.job(job_id)).state is State.PENDING


async def test_nothing_is_taken_before_the_engine_is_loaded(house: House, broker: Celery, tmp_path: Path) -> None:
    slow = house.worker(hold_load=tmp_path / "held")
    await house.registered(slow, WorkerState.STARTING)
    job_id = await house.submit()

    # Its event loop runs, and would take the message if the queue were consumed.
    assert await asyncio.to_thread(_answers_ping, broker)
    with connect(house.redis_url) as client:
        assert client.llen(f"{house.namespace}:celery:{queues.queue_name(POOL)}") == 1
    slow.kill()
    await house.ready_worker()

    assert (await house.ended(job_id)).attempt == 1


async def test_nothing_is_taken_while_a_dead_process_is_replaced(house: House, broker: Celery, tmp_path: Path) -> None:
    held = tmp_path / "held"
    worker = house.worker(hold_load=held)
    (held / "go").touch()
    await house.registered(worker, WorkerState.READY)
    (held / "go").unlink()

    os.kill(worker.children()[0], signal.SIGKILL)
    await house.registered(worker, WorkerState.STARTING)
    job_id = await house.submit()
    assert await asyncio.to_thread(_answers_ping, broker)
    with connect(house.redis_url) as client:
        assert client.llen(f"{house.namespace}:celery:{queues.queue_name(POOL)}") == 1
    (held / "go").touch()

    assert (await house.ended(job_id)).state is State.COMPLETED


async def test_a_worker_that_still_loads_ends_at_once(house: House, tmp_path: Path) -> None:
    worker = house.worker(hold_load=tmp_path / "held", drain_grace_s="600")
    await house.logged(worker, "loading")

    worker.signal(signal.SIGTERM)

    assert worker.exit_status() == 0


async def test_two_faults_in_a_row_take_a_worker_out_and_keep_the_job(house: House) -> None:
    worker = await house.ready_worker()
    job_id = await house.submit(failure=ErrorKind.WORKER_FAULT)

    await house.registered(worker, WorkerState.FAULTY)
    record = await house.job(job_id)

    assert worker.is_alive
    assert worker.children() == []
    assert (record.state, record.attempt, record.counted) == (State.PENDING, 2, 0)
    reasons = [entry.data["reason"] for entry in await house.entries(job_id, JobEvent.RELEASED)]
    assert reasons == ["worker_fault", "worker_fault"]
    worker.signal(signal.SIGTERM)
    assert worker.exit_status() == 0


async def test_one_fault_is_forgotten_after_a_good_run(house: House) -> None:
    worker = await house.ready_worker()
    for _ in range(3):
        bad = await house.submit(failure=ErrorKind.WORKER_FAULT)
        await house.in_state(bad, lambda record: record.attempt == 1 and record.state is State.PENDING, "a fault")
        await house.ledger.run(transitions.cancel(bad, tenant=TENANT))
        assert (await house.ended(await house.submit())).state is State.COMPLETED

    assert worker.is_alive


async def test_a_model_that_does_not_load_takes_the_worker_out(house: House) -> None:
    (house.models / "quick.toml").write_text(MODEL_FILE.replace('engine = "instant"', 'engine = "no-such"'))
    worker = house.worker()

    await house.registered(worker, WorkerState.FAULTY)

    assert len(worker.logged("not_loaded")) == 2


async def test_a_store_that_takes_nothing_is_a_fault_of_the_worker(house: House) -> None:
    house.store_folder.mkdir(exist_ok=True)
    (house.store_folder / TENANT).touch()  # a file where a folder should be
    worker = await house.ready_worker()
    job_id = await house.submit()

    await house.registered(worker, WorkerState.FAULTY)
    (house.store_folder / TENANT).unlink()
    await house.ready_worker()

    record = await house.ended(job_id)
    assert (record.state, record.counted) == (State.COMPLETED, 0)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"steps": 0}, id="a value beyond the limits of the model's file"),
        pytest.param({"nonsense": 1}, id="a parameter that the model has not"),
        pytest.param({"failure": ErrorKind.INVALID_INPUT}, id="what only the engine refuses"),
    ],
)
async def test_input_that_is_refused_ends_in_one_failed_event(house: House, given: dict[str, object]) -> None:
    await house.ready_worker()

    job_id = await house.submit(**given)
    record = await house.ended(job_id)

    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.INVALID_INPUT
    assert [entry.state for entry in await house.ledger.log(job_id) if entry.state.is_terminal] == [State.FAILED]
    assert record.attempt == 1


async def test_a_passing_failure_is_tried_again_later_and_told_once_at_the_end(house: House) -> None:
    await house.ready_worker()
    job_id = await house.submit(failure=ErrorKind.TRANSIENT, max_attempts=2)

    first = await house.in_state(job_id, lambda record: record.counted == 1, "the first attempt failed")
    assert first.not_before is not None
    await house.ledger.run(transitions.promote(POOL, now=first.not_before))
    record = await house.ended(job_id)

    retried = await house.entries(job_id, JobEvent.RETRIED)
    assert 1500 <= first.not_before - retried[0].at <= 2500
    assert (record.state, record.counted) == (State.FAILED, 2)
    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.TRANSIENT


async def test_a_job_whose_time_is_up_fails_at_a_step(house: House) -> None:
    worker = await house.ready_worker()
    child = worker.children()

    record = await house.ended(await house.submit(steps=600, seconds=60, run_timeout=0.3))

    assert record.end_data is not None
    assert record.end_data["error"] == {"kind": ErrorKind.DEADLINE, "message": "it ran longer than 0.3 s"}
    assert worker.children() == child


async def test_a_job_whose_time_is_up_fails_though_its_engine_hangs(house: House) -> None:
    await house.ready_worker(interrupt_grace_s="0.5")

    record = await house.ended(await house.submit(steps=1, seconds=600, run_timeout=0.3))

    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.DEADLINE
    assert record.attempt == 1


async def test_a_model_that_is_not_served_here_is_given_back_uncounted(house: House) -> None:
    worker = await house.ready_worker()

    job_id = await house.submit(model="another")
    await house.in_state(job_id, lambda record: record.attempt == 2, "the job was given back")

    assert (await house.job(job_id)).counted == 0
    assert (await house.registered(worker, WorkerState.BUSY)).job == job_id


async def test_a_revoke_cancels_a_waiting_job_at_once_and_a_running_one_at_its_next_step(
    house: House, broker: Celery
) -> None:
    worker = await house.ready_worker()
    child = worker.children()
    running = await house.submit(steps=600, seconds=60)
    await house.running(running)
    waiting = await house.submit()

    await asyncio.to_thread(broker.control.revoke, waiting)
    assert (await house.ended(waiting)).attempt == 0
    assert (await house.job(running)).state is State.RUNNING
    await asyncio.to_thread(broker.control.revoke, running, terminate=True)

    assert (await house.ended(running)).state is State.CANCELLED
    assert (await house.ended(await house.submit())).state is State.COMPLETED
    assert worker.children() == child


async def test_a_running_job_outlives_an_outage_of_redis(namespace: str, tmp_path: Path) -> None:
    binary = binary_of(RedisKind.EMBEDDED)
    assert binary is not None
    (tmp_path / "redis").mkdir()
    server = RedisServer(binary, tmp_path / "redis")
    server.start()
    try:
        async with opened_house(server.url, namespace, tmp_path) as house:
            worker = await house.ready_worker()
            child = worker.children()
            job_id = await house.submit(steps=40, seconds=4)
            await house.running(job_id)

            server.stop(signal.SIGKILL)
            await house.logged(worker, "ledger_away")
            server.start()
            record = await house.ended(job_id)

            assert (record.state, record.attempt) == (State.COMPLETED, 1)
            assert worker.children() == child
            assert (await house.ended(await house.submit())).state is State.COMPLETED
    finally:
        server.stop()


async def test_a_job_that_ends_while_redis_is_away_is_told_when_it_is_back(namespace: str, tmp_path: Path) -> None:
    binary = binary_of(RedisKind.EMBEDDED)
    assert binary is not None
    (tmp_path / "redis").mkdir()
    server = RedisServer(binary, tmp_path / "redis")
    server.start()
    try:
        async with opened_house(server.url, namespace, tmp_path) as house:
            worker = await house.ready_worker()
            job_id = await house.submit(steps=10, seconds=1)
            await house.running(job_id)

            server.stop(signal.SIGKILL)
            await house.until(lambda: _insists(worker), "the end of the job waits")
            server.start()

            assert (await house.ended(job_id)).state is State.COMPLETED
    finally:
        server.stop()


def _answers_ping(broker: Celery) -> bool:
    return bool(broker.control.ping(timeout=DEADLINE_S, limit=1))


async def _insists(worker: WorkerProcess) -> bool | None:
    return any(line.get("script") == "finish" for line in worker.logged("ledger_away")) or None

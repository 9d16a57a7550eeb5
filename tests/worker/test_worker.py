"""The worker, as processes: real Celery, a real Redis, an engine that does what it is told.

No courier runs here: where something comes back, it is the worker that gave it back, or the test says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from celery import Celery
from darkroom import queues, transitions
from darkroom.jobs import Artifact, ErrorKind, JobEvent, State
from darkroom.ledger import AsyncLedger, JobRecord, connect, connect_async
from darkroom.supervision import FAILED
from darkroom.transitions import Reason, Receipt, WorkerState

from tests.conftest import RedisServers
from tests.parts import Part, environment
from tests.ports import free_port
from tests.redis_server import RedisKind, RedisServer, needed_binary
from tests.tcp_proxy import SilentProxy
from tests.worker.running_worker import MODEL, MODEL_FILE, POOL, TENANT, House, Place, WorkerProcess


@asynccontextmanager
async def opened_house(redis_url: str, namespace: str, folder: Path) -> AsyncIterator[House]:
    client = connect_async(redis_url)
    house = House(AsyncLedger(client, namespace), redis_url=redis_url, namespace=namespace, folder=folder)
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


@pytest.fixture(scope="module")
def place(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where `worker` is."""
    url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    place = Place(redis_url=url, namespace=namespace, folder=tmp_path_factory.mktemp("shared"))
    yield place
    place.stop()


@pytest.fixture(scope="module")
def worker(place: Place) -> WorkerProcess:
    """A worker that tests use one after another, and leave as it is."""
    return place.worker()


@pytest.fixture
async def staffed(place: Place, worker: WorkerProcess) -> AsyncIterator[House]:
    """The place of `worker`, which takes jobs."""
    async with opened_house(place.redis_url, place.namespace, place.folder) as house:
        await house.registered(worker, WorkerState.READY)
        yield house


async def test_a_job_runs_and_its_pictures_are_what_the_end_says(staffed: House) -> None:
    job_id = await staffed.submit(images=2, seed=41)
    record = await staffed.ended(job_id)

    assert record.state is State.COMPLETED
    assert record.end_data is not None
    artifacts = [Artifact.decode(raw) for raw in record.end_data["artifacts"]]
    assert await staffed.store.keys(f"{TENANT}/{job_id}") == [artifact.key for artifact in artifacts]
    for artifact in artifacts:
        content = (staffed.store_folder / artifact.key).read_bytes()
        assert (sha256(content).hexdigest(), len(content)) == (artifact.sha256, artifact.size)
        assert artifact.media_type == "image/png"
    assert record.end_data["model_served"] == MODEL
    assert record.end_data["attempt"] == 1
    assert record.end_data["record"]["parameters"]["seed"] == 41
    assert record.end_data["run_ms"] >= 0
    entries = await staffed.ledger.log(job_id)
    assert entries[0].event is JobEvent.ACCEPTED
    assert entries[1].event is JobEvent.STARTED
    assert entries[-2].data == {"progress": 100, "step": 2, "steps": 2}
    assert entries[-1].event is JobEvent.COMPLETED


async def test_without_metadata_a_picture_names_no_prompt(house: House) -> None:
    await house.ready_worker(picture_metadata="none")
    record = await house.ended(await house.submit(prompt="a secret"))
    assert record.end_data is not None
    content = (house.store_folder / record.end_data["artifacts"][0]["key"]).read_bytes()
    assert b"secret" not in content
    assert b"tEXtmodel_served" in content


async def test_progress_is_told_at_most_four_times_a_second_and_always_at_the_end(staffed: House) -> None:
    job_id = await staffed.submit(steps=200, seconds=1)
    record = await staffed.ended(job_id)

    told = await staffed.entries(job_id, JobEvent.PROGRESSED)
    assert record.started is not None
    assert record.ended is not None
    assert 1 < len(told) <= 4 * (record.ended - record.started) / 1000 + 2
    assert told[-1].data == {"progress": 100, "step": 200, "steps": 200}
    assert record.step == 200


async def test_a_cancelled_job_stops_within_a_step(staffed: House, worker: WorkerProcess) -> None:
    child = worker.children()
    job_id = await staffed.submit(steps=600, seconds=60)
    await staffed.running(job_id)

    answer = await staffed.ledger.run(transitions.cancel(job_id, tenant=TENANT))
    at_cancel = (await staffed.job(job_id)).step or 0
    record = await staffed.ended(job_id)

    assert answer.receipt is Receipt.INTERRUPTING
    assert record.state is State.CANCELLED
    assert (record.step or 0) <= at_cancel + 1
    assert await staffed.store.keys(f"{TENANT}/{job_id}") == []
    assert (await staffed.ended(await staffed.submit())).state is State.COMPLETED
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
    await house.said(worker, "attempt_ended_for_child")
    text, _, _ = worker.log.read_text().rpartition("\n")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] in {"error", "critical"} or "exception" in line] == []
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

    assert worker.wait() == 0
    assert (await house.job(running)).state is State.COMPLETED
    assert (await house.job(waiting)).attempt == 0
    assert await house.ledger.workers() == []
    with connect(house.redis_url) as client:
        assert client.exists(f"{house.namespace}:celery:unacked.{POOL}") == 0


async def test_a_job_that_outlasts_a_drain_is_given_back_uncounted_and_runs_elsewhere(house: House) -> None:
    worker = await house.ready_worker(drain_grace_s="0.2")
    job_id = await house.submit(steps=40, seconds=2)
    await house.running(job_id)

    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
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
    await house.said(worker, "draining")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert (await house.job(job_id)).state is State.PENDING


async def test_a_shutdown_by_remote_control_is_a_drain(house: House) -> None:
    worker = await house.ready_worker()
    job_id = await house.submit(steps=20, seconds=2)
    await house.running(job_id)

    await asyncio.to_thread(_shut_down, house)

    assert worker.wait() == 0
    assert (await house.job(job_id)).state is State.COMPLETED


async def test_nothing_is_taken_before_the_engine_is_loaded(house: House, tmp_path: Path) -> None:
    slow = house.worker(tmp_path / "held")
    await house.registered(slow, WorkerState.STARTING)
    job_id = await house.submit()

    # Its event loop runs, and would take the message if the queue were consumed.
    await house.until(lambda: asyncio.to_thread(_answers_ping, house), "the worker answers a ping")
    with connect(house.redis_url) as client:
        assert client.llen(f"{house.namespace}:celery:{queues.queue_name(POOL)}") == 1
    slow.kill()
    await house.ready_worker()

    assert (await house.ended(job_id)).attempt == 1


async def test_nothing_is_taken_while_a_dead_process_is_replaced(house: House, tmp_path: Path) -> None:
    held = tmp_path / "held"
    worker = house.worker(held)
    (held / "go").touch()
    await house.registered(worker, WorkerState.READY)
    (held / "go").unlink()

    os.kill(worker.children()[0], signal.SIGKILL)
    await house.registered(worker, WorkerState.STARTING)
    job_id = await house.submit()
    await house.until(lambda: asyncio.to_thread(_answers_ping, house), "the worker answers a ping")
    with connect(house.redis_url) as client:
        assert client.llen(f"{house.namespace}:celery:{queues.queue_name(POOL)}") == 1
    (held / "go").touch()

    assert (await house.ended(job_id)).state is State.COMPLETED


async def test_a_worker_that_still_loads_ends_at_once(house: House, tmp_path: Path) -> None:
    worker = house.worker(tmp_path / "held", drain_grace_s="600")
    await house.said(worker, "loading")

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0


async def test_two_faults_in_a_row_take_a_worker_out_and_keep_the_job(house: House) -> None:
    worker = await house.ready_worker()
    job_id = await house.submit(failure=ErrorKind.WORKER_FAULT)

    await house.registered(worker, WorkerState.FAULTY)
    record = await house.job(job_id)

    assert worker.is_running
    assert worker.children() == []
    assert (record.state, record.attempt, record.counted) == (State.PENDING, 2, 0)
    reasons = [entry.data["reason"] for entry in await house.entries(job_id, JobEvent.RELEASED)]
    assert reasons == ["worker_fault", "worker_fault"]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


async def test_one_fault_is_forgotten_after_a_good_run(house: House) -> None:
    worker = await house.ready_worker()
    for _ in range(3):
        bad = await house.submit(failure=ErrorKind.WORKER_FAULT)
        await house.in_state(bad, lambda record: record.attempt == 1 and record.state is State.PENDING, "a fault")
        await house.ledger.run(transitions.cancel(bad, tenant=TENANT))
        assert (await house.ended(await house.submit())).state is State.COMPLETED

    assert worker.is_running


async def test_jobs_that_fail_or_kill_their_process_take_no_worker_out(house: House) -> None:
    worker = await house.ready_worker(breakable=True)
    bad = [await house.submit(prompt=prompt, max_attempts=1) for prompt in ("fail", "fail", "fail", "kill", "kill")]
    innocent = await house.submit()

    ended = [await house.ended(job_id) for job_id in bad]
    assert (await house.ended(innocent)).state is State.COMPLETED
    assert [record.end_data["error"]["kind"] for record in ended if record.end_data] == [
        *[ErrorKind.TRANSIENT] * 3,
        *[ErrorKind.WORKER_LOST] * 2,
    ]
    # After three failures the process at work proves itself, and each of the two that replace a killed one.
    assert len(worker.said("proof_succeeded")) == 3
    assert worker.said("fault") == worker.said("faulty") == []


async def test_a_device_that_fails_its_proof_runs_takes_the_worker_out_until_it_works_again(house: House) -> None:
    worker = await house.ready_worker(breakable=True)
    house.broken.touch()
    jobs = [await house.submit() for _ in range(3)]
    await house.registered(worker, WorkerState.FAULTY)

    # Two were charged for a failure before there was evidence about the device; the third was not.
    counted = [(await house.job(job_id)).counted for job_id in jobs]
    assert counted == [1, 1, 0]

    house.broken.unlink()
    assert (await house.ended(jobs[2])).state is State.COMPLETED
    assert worker.said("recovered")


def _has_failed(attempt: int, record: JobRecord) -> bool:
    return record.counted == attempt and record.not_before is not None


async def test_a_job_that_fails_at_every_attempt_takes_no_worker_out(house: House) -> None:
    worker = await house.ready_worker()
    job_id = await house.submit(failure=ErrorKind.OUT_OF_MEMORY)
    for attempt in (1, 2):
        record = await house.in_state(job_id, partial(_has_failed, attempt), f"attempt {attempt} failed")
        assert record.not_before is not None
        await house.ledger.run(transitions.promote(POOL, now=record.not_before))

    assert (await house.ended(job_id)).state is State.FAILED
    assert (await house.ended(await house.submit())).state is State.COMPLETED
    assert worker.is_running


async def test_a_model_that_does_not_load_takes_the_worker_out(house: House) -> None:
    (house.models / "quick.toml").write_text(MODEL_FILE.replace('engine = "instant"', 'engine = "no-such"'))
    worker = house.worker()

    await house.registered(worker, WorkerState.FAULTY)

    assert len(worker.said("not_loaded")) == 2


async def test_a_process_that_dies_while_it_loads_takes_the_worker_out(house: House, tmp_path: Path) -> None:
    held = tmp_path / "held"
    worker = house.worker(held)
    (held / "die").touch()

    await house.registered(worker, WorkerState.FAULTY)

    assert worker.children() == []


async def test_a_worker_that_cannot_replace_its_process_tries_again(house: House) -> None:
    worker = await house.ready_worker()
    [child] = worker.children()

    _, most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, most))  # to the worker, a full disk
    os.kill(child, signal.SIGKILL)
    await house.registered(worker, WorkerState.FAULTY)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (most, most))

    await house.registered(worker, WorkerState.READY)
    assert (await house.ended(await house.submit())).state is State.COMPLETED
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


async def test_a_process_that_the_system_does_not_start_leaves_nothing_behind(house: House) -> None:
    worker = await house.ready_worker(breakable=True)
    house.refused.touch()
    [child] = worker.children()
    os.kill(child, signal.SIGKILL)
    await house.registered(worker, WorkerState.FAULTY)
    house.refused.unlink()

    await house.registered(worker, WorkerState.READY)
    assert (await house.ended(await house.submit())).state is State.COMPLETED
    assert len(worker.said("child_not_started")) == 2
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


async def test_pictures_are_held_while_the_store_is_away_however_short_the_run_timeout(house: House) -> None:
    house.store_folder.rmdir()
    house.store_folder.touch()  # a file where a folder should be, from the worker's start on
    worker = await house.ready_worker(interrupt_grace_s="0.5")
    child = worker.children()
    job_id = await house.submit(run_timeout=0.5)

    # The parent knows the run timeout after five seconds, when it first renews the lease.
    await house.said(worker, "store_failed", times=7)
    record = await house.job(job_id)
    assert (record.state, record.attempt) == (State.RUNNING, 1)
    house.store_folder.unlink()

    record = await house.ended(job_id)
    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 1, 0)
    assert worker.children() == child


async def test_a_job_whose_pictures_are_held_can_be_cancelled_and_is_given_back_by_a_drain(house: House) -> None:
    house.store_folder.mkdir(exist_ok=True)
    (house.store_folder / TENANT).touch()  # a file where a folder should be
    worker = await house.ready_worker(drain_grace_s="0.2")
    child = worker.children()
    cancelled = await house.submit()
    await house.said(worker, "store_away")
    await house.ledger.run(transitions.cancel(cancelled, tenant=TENANT))
    assert (await house.ended(cancelled)).state is State.CANCELLED
    assert worker.children() == child

    drained = await house.submit()
    await house.said(worker, "store_away", times=2)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    record = await house.job(drained)
    assert (record.state, record.counted) == (State.PENDING, 0)

    (house.store_folder / TENANT).unlink()
    await house.ready_worker()
    assert (await house.ended(drained)).state is State.COMPLETED


@pytest.mark.parametrize("tenant", ["../x", "a/b", ".", "x" * 300, ""], ids=["above", "below", "dot", "long", "empty"])
async def test_a_job_of_a_tenant_that_the_store_cannot_name_fails(
    staffed: House, worker: WorkerProcess, tenant: str
) -> None:
    job_id = await staffed.submit(steps=600, seconds=60)
    await staffed.running(job_id)
    foreign = await staffed.submit()  # behind the other, so that it can be changed before it is claimed
    with connect(staffed.redis_url) as client:
        client.hset(f"{staffed.namespace}:job:{foreign}", "tenant", tenant)
    await staffed.ledger.run(transitions.cancel(job_id, tenant=TENANT))

    record = await staffed.ended(foreign)
    assert record.state is State.FAILED
    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.INVALID_INPUT
    assert (await staffed.registered(worker, WorkerState.READY)).job is None


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"steps": 0}, id="a value beyond the limits of the model's file"),
        pytest.param({"nonsense": 1}, id="a parameter that the model has not"),
        pytest.param({"failure": ErrorKind.INVALID_INPUT}, id="what only the engine refuses"),
    ],
)
async def test_input_that_is_refused_ends_in_one_failed_event(staffed: House, given: dict[str, Any]) -> None:
    job_id = await staffed.submit(**given)
    record = await staffed.ended(job_id)

    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.INVALID_INPUT
    assert [entry.state for entry in await staffed.ledger.log(job_id) if entry.state.is_terminal] == [State.FAILED]
    assert record.attempt == 1


async def test_a_passing_failure_is_tried_again_later_and_told_once_at_the_end(staffed: House) -> None:
    job_id = await staffed.submit(failure=ErrorKind.TRANSIENT, max_attempts=2)

    first = await staffed.in_state(job_id, lambda record: record.counted == 1, "the first attempt failed")
    assert first.not_before is not None
    await staffed.ledger.run(transitions.promote(POOL, now=first.not_before))
    record = await staffed.ended(job_id)

    retried = await staffed.entries(job_id, JobEvent.RETRIED)
    assert 1500 <= first.not_before - retried[0].at <= 2500
    assert (record.state, record.counted) == (State.FAILED, 2)
    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.TRANSIENT


async def test_a_job_whose_time_is_up_fails_at_a_step(staffed: House, worker: WorkerProcess) -> None:
    child = worker.children()

    record = await staffed.ended(await staffed.submit(steps=600, seconds=60, run_timeout=0.3))

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
    staffed: House, worker: WorkerProcess
) -> None:
    child = worker.children()
    running = await staffed.submit(steps=600, seconds=60)
    await staffed.running(running)
    waiting = await staffed.submit()

    await asyncio.to_thread(_revoke, staffed, waiting)
    assert (await staffed.ended(waiting)).attempt == 0
    assert (await staffed.job(running)).state is State.RUNNING
    await asyncio.to_thread(_revoke, staffed, running, terminate=True)

    assert (await staffed.ended(running)).state is State.CANCELLED
    assert (await staffed.ended(await staffed.submit())).state is State.COMPLETED
    assert worker.children() == child


async def test_a_running_job_outlives_an_outage_of_redis(namespace: str, tmp_path: Path) -> None:
    binary = needed_binary(RedisKind.EMBEDDED)
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
            await house.said(worker, "ledger_away")
            server.start()
            record = await house.ended(job_id)

            assert (record.state, record.attempt) == (State.COMPLETED, 1)
            assert worker.children() == child
            assert (await house.ended(await house.submit())).state is State.COMPLETED
            left = [path for path in house.temporary.rglob("*") if path.is_file()]
            assert left == [], "no message is left in a file"
    finally:
        server.stop()


async def test_a_worker_that_takes_no_more_messages_ends_and_names_what_it_holds(house: House) -> None:
    worker = await house.ready_worker(loses=True)
    assert (await house.ended(await house.submit())).state is State.COMPLETED
    house.losing.touch()
    job_id = await house.submit()

    said = (await house.said(worker, "consumer_stalled"))[0]

    assert said["reserved"] == [job_id]
    assert len(said["handed_over"]) == 1
    assert worker.wait() == FAILED


async def test_a_worker_that_waits_for_jobs_or_stands_still_is_not_taken_for_stalled(house: House) -> None:
    worker = await house.ready_worker(loses=True)

    async def heard_for(seconds: float) -> bool | None:
        record = await house.registration(worker)
        return True if record is not None and record.seen > began.seen + 1000 * seconds else None

    began = await house.registered(worker, WorkerState.READY)
    await house.until(partial(heard_for, 4), "it has waited for longer than a stalled one may")
    os.kill(worker.pid, signal.SIGSTOP)
    await asyncio.sleep(4)  # as long
    os.kill(worker.pid, signal.SIGCONT)

    assert (await house.ended(await house.submit())).state is State.COMPLETED
    assert worker.said("consumer_stalled") == []


async def test_a_job_that_ends_while_redis_is_away_is_told_when_it_is_back(namespace: str, tmp_path: Path) -> None:
    binary = needed_binary(RedisKind.EMBEDDED)
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


async def test_a_run_does_not_wait_for_a_frozen_redis_and_its_time_limit_does_not_count_the_wait(
    namespace: str, tmp_path: Path
) -> None:
    """The engine finishes while Redis is frozen, though it needs longer than `run_timeout` with the waits."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(needed_binary(RedisKind.EMBEDDED), tmp_path / "redis")
    server.start()
    try:
        async with opened_house(server.url, namespace, tmp_path) as house:
            await house.ready_worker()
            job_id = await house.submit(steps=30, seconds=3, run_timeout=3.8)
            await house.running(job_id)

            os.kill(server.pid, signal.SIGSTOP)
            try:
                await house.until(lambda: _has_pictures(house, job_id), "the engine finishes while Redis is frozen")
            finally:
                os.kill(server.pid, signal.SIGCONT)
            record = await house.ended(job_id)

            assert (record.state, record.attempt) == (State.COMPLETED, 1)
            assert record.end_data is not None
            assert record.end_data["run_ms"] < 3800
    finally:
        server.stop()


async def test_a_worker_whose_connections_went_dead_keeps_the_lease_of_its_job(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """No FIN arrives: only a time-out shows that a connection is dead, and the lease must outlast it."""
    proxy = SilentProxy(urlsplit(redis_url).port or 6379)
    with proxy.running():
        async with opened_house(redis_url, namespace, tmp_path) as house:
            worker = house.worker(None, redis_url=proxy.url)
            await house.registered(worker, WorkerState.READY)
            job_id = await house.submit(steps=1, seconds=600)
            await house.in_state(job_id, lambda record: record.state is State.RUNNING, "the job runs")
            first = await _lease(house, job_id)

            assert proxy.silence(next_too=1) > 0

            async def renewed() -> bool | None:
                assert await house.ledger.run(transitions.reap(POOL)) == []
                return await _lease(house, job_id) > first or None

            await house.until(renewed, "the lease is renewed over another connection")
            record = await house.job(job_id)
            assert (record.state, record.attempt) == (State.RUNNING, 1)


async def test_an_attempt_that_cannot_be_ended_stops_no_other_job(house: House) -> None:
    worker = await house.ready_worker()
    damaged = await house.submit(steps=20, seconds=600)
    await house.running(damaged)
    with connect(house.redis_url) as client:
        client.hset(f"{house.namespace}:job:{damaged}", "counted", "many")

    os.kill(worker.children()[0], signal.SIGKILL)

    await house.said(worker, "booking_failed", job=damaged)
    record = await house.ended(await house.submit())
    assert record.state is State.COMPLETED
    await house.registered(worker, WorkerState.READY)


async def test_draining_one_of_two_workers_loses_no_job_and_runs_none_twice(house: House) -> None:
    first, second = await house.ready_worker(), await house.ready_worker()
    jobs = [await house.submit(steps=2, seconds=0.1) for _ in range(40)]
    await house.in_state(jobs[5], lambda record: record.state.is_terminal, "a few jobs are done")

    first.signal(signal.SIGTERM)

    for job_id in jobs:
        record = await house.ended(job_id)
        assert (record.state, record.attempt) == (State.COMPLETED, 1)
    assert first.wait() == 0
    assert second.is_running


async def test_a_worker_that_lost_its_job_stops_and_publishes_nothing(staffed: House, worker: WorkerProcess) -> None:
    job_id = await staffed.submit(steps=40, seconds=2)
    running = await staffed.running(job_id)

    # As the courier does for a worker that it takes for dead.
    reason, name = Reason.WORKER_LOST, running.worker
    await staffed.ledger.run(transitions.release(job_id, reason=reason, detail="no sign of life", worker=name))
    record = await staffed.ended(job_id)

    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 2, 1)
    assert all(key.startswith(f"{TENANT}/{job_id}/2/") for key in await staffed.store.keys(f"{TENANT}/{job_id}"))
    lines = await staffed.said(worker, "attempt_ended", times=2, job=job_id)
    assert [line["ended"] for line in lines] == ["lost", "completed"]


async def test_a_time_limit_of_celerys_fails_the_job_once(house: House) -> None:
    job_id = await house.submit(steps=1, seconds=600)
    key = f"{house.namespace}:celery:{queues.queue_name(POOL)}"
    with connect(house.redis_url) as client:
        raw: Any = client.lindex(key, 0)
        message = json.loads(raw)
        message["headers"]["timelimit"] = [1, None]
        client.lset(key, 0, json.dumps(message))
    await house.ready_worker()

    record = await house.ended(job_id)

    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.DEADLINE
    assert record.attempt == 1
    assert (await house.ended(await house.submit())).state is State.COMPLETED


async def test_a_process_does_not_outlive_its_worker(house: House) -> None:
    worker = await house.ready_worker()
    child = worker.children()[0]
    await house.running(await house.submit(steps=600, seconds=60))

    worker.kill()

    async def is_gone() -> bool | None:
        return not Path(f"/proc/{child}").exists() or None

    await house.until(is_gone, "the child is gone")


async def test_what_a_worker_logs_of_a_job_names_the_job_and_its_trace(staffed: House, worker: WorkerProcess) -> None:
    job_id = await staffed.submit(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    await staffed.ended(job_id)

    (line,) = await staffed.said(worker, "attempt_ended", job=job_id)
    assert (line["trace_id"], line["pool"]) == ("0af7651916cd43dd8448eb211c80319c", POOL)


async def test_a_worker_without_redis_waits_for_it_and_can_be_ended(tmp_path: Path) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    async with opened_house(nobody, "t-nobody", tmp_path) as house:
        worker = house.worker()
        await house.said(worker, "ledger_away")

        worker.signal(signal.SIGTERM)

        assert worker.wait() == 0


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        pytest.param("redis_url", "http://there", "DARKROOM_REDIS_URL=(hidden)", id="no Redis address"),
        pytest.param("pool", "nobodys", "DARKROOM_POOL='nobodys'", id="a pool without a model"),
        pytest.param("pool", "Not A Name", "DARKROOM_POOL='Not A Name'", id="a pool that is no name"),
        pytest.param("drain_grace_s", "-1", "DARKROOM_DRAIN_GRACE_S='-1'", id="a negative grace"),
        pytest.param("probe_port", "70000", "DARKROOM_PROBE_PORT='70000'", id="no port"),
        pytest.param("store", "ftp://there", "DARKROOM_STORE='ftp://there'", id="no store address"),
        pytest.param("models", "/no/such/folder", "/no/such/folder", id="a folder that is not there"),
    ],
)
async def test_a_setting_of_no_use_is_named_in_one_line(house: House, variable: str, value: str, said: str) -> None:
    settings = {"redis_url": house.redis_url, variable: value}
    worker = house.worker(None, breakable=False, loses=False, **settings)

    assert worker.wait() == 2
    (line,) = worker.log.read_text().splitlines()
    assert said in line


async def test_the_probe_tells_a_live_worker_from_a_dead_one_and_a_ready_one_from_a_faulty(house: House) -> None:
    assert _probes(house) == (1, 1)
    worker = await house.ready_worker()
    assert _probes(house) == (0, 0)

    await house.submit(failure=ErrorKind.WORKER_FAULT)
    await house.registered(worker, WorkerState.FAULTY)
    assert _probes(house) == (0, 1)

    worker.signal(signal.SIGTERM)
    worker.wait()
    assert _probes(house) == (1, 1)


async def test_the_worker_answers_probes_itself_from_its_start_on(house: House, tmp_path: Path) -> None:
    port, held = free_port(), tmp_path / "held"
    worker = house.worker(held, probe_port=str(port))
    await house.registered(worker, WorkerState.STARTING)
    assert _probed(port) == (200, 503)
    second = house.worker(None, probe_port=str(port))
    (held / "go").touch()
    await house.registered(worker, WorkerState.READY)
    await house.until(lambda: _is_probed(port, (200, 200)), "the worker is ready")
    running = await house.submit(steps=600, seconds=60)
    await house.running(running)

    worker.signal(signal.SIGTERM)
    await house.until(lambda: _is_probed(port, (200, 503)), "the worker drains")

    assert second.wait() == 2
    assert f"DARKROOM_PROBE_PORT='{port}'" in second.log.read_text()


async def test_a_stock_celery_worker_takes_the_message_of_a_job(house: House, tmp_path: Path) -> None:
    (tmp_path / "stock.py").write_text(STOCK_APP)
    job_id = await house.submit(seed=12)
    variables = environment(house.redis_url, house.namespace, SEEN=str(tmp_path / "seen"))
    variables["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    arguments = ["-A", "stock", "worker", "-P", "solo", "-Q", queues.queue_name(POOL), "-l", "WARNING"]
    stock = Part("celery", *arguments, environment=variables, log=tmp_path / "stock.log")
    stock.start()
    try:

        async def seen() -> Any:
            return json.loads(text) if (text := _text(tmp_path / "seen")) else None

        task_id = await house.until(seen, "the stock worker ran the task")
    finally:
        stock.stop()
    assert task_id == job_id


async def test_the_parent_imports_no_model_library() -> None:
    heavy = "torch", "diffusers", "transformers", "PIL"
    code = f"import sys, darkroom_worker.program; print(*[name for name in {heavy!r} if name in sys.modules])"
    variables = environment("redis://nobody", "t-nobody")

    answer = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)

    assert answer.stdout.split() == []


STOCK_APP = f"""
import json, os
from pathlib import Path
from celery import Celery
from darkroom.queues import TASK_NAME, transport_options

app = Celery("stock", broker=os.environ["DARKROOM_REDIS_URL"])
app.conf.broker_transport_options = transport_options(os.environ["DARKROOM_NAMESPACE"], "{POOL}")

@app.task(name=TASK_NAME, bind=True)
def run(self):
    seen = Path(os.environ["SEEN"])
    seen.with_suffix(".part").write_text(json.dumps(self.request.id))
    seen.with_suffix(".part").rename(seen)
"""


@contextmanager
def _celery(house: House) -> Iterator[Celery]:
    """A Celery app that only talks to the workers, as Flower's does."""
    app = Celery("tests", broker=house.redis_url, set_as_current=False)
    app.conf.broker_transport_options = queues.transport_options(house.namespace, POOL)
    with app:
        yield app


def _answers_ping(house: House) -> list[object] | None:
    with _celery(house) as app:
        return app.control.ping(timeout=1, limit=1) or None


def _shut_down(house: House) -> None:
    with _celery(house) as app:
        app.control.shutdown()


def _revoke(house: House, job_id: str, **options: bool) -> None:
    with _celery(house) as app:
        app.control.revoke(job_id, **options)


async def _has_pictures(house: House, job_id: str) -> bool | None:
    return bool(await house.store.keys(f"{TENANT}/{job_id}")) or None


async def _lease(house: House, job_id: str) -> float:
    """Until when the ledger believes the attempt: milliseconds since the epoch."""
    with connect(house.redis_url) as client:
        score: Any = client.zscore(f"{house.namespace}:running:{POOL}", job_id)
    return float(score or 0)


async def _insists(worker: WorkerProcess) -> bool | None:
    return any(line.get("script") == "finish" for line in worker.said("ledger_away")) or None


def _probed(port: int) -> tuple[int, ...]:
    """Statuses of `/healthz` and `/readyz`."""
    paths = "/healthz", "/readyz"
    return tuple(httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code for path in paths)


async def _is_probed(port: int, statuses: tuple[int, int]) -> bool | None:
    return await asyncio.to_thread(_probed, port) == statuses or None


def _probes(house: House) -> tuple[int, int]:
    """Exit statuses of the probe: alive, ready."""
    variables = house.environment()
    probe = [sys.executable, "-m", "darkroom_worker.health"]
    return tuple(  # type: ignore[return-value]  # two of them
        subprocess.run([*probe, *more], env=variables, check=False).returncode for more in ([], ["--ready"])
    )


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None

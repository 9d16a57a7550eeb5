"""The worker as real processes: Celery, Redis, and an engine whose behaviour is a parameter.

No courier runs here: a job that is requeued was released by the worker, or by the test itself.
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
from darkroom.jobs import Artifact, ErrorKind, JobEvent, State
from darkroom.ledger import calls, queues, reads
from darkroom.ledger.calls import Receipt, ReleaseReason, WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect, connect_async
from darkroom.ledger.records import JobRecord
from darkroom.supervision import FAILED

from tests.conftest import RedisServers
from tests.parts import Part, environment
from tests.ports import free_port
from tests.redis_server import RedisKind, RedisServer, needed_binary
from tests.tcp_proxy import SilentProxy
from tests.worker.running_worker import MODEL, MODEL_FILE, POOL, TENANT, Testbed, WorkerHost, WorkerProcess


@asynccontextmanager
async def opened_testbed(redis_url: str, namespace: str, folder: Path) -> AsyncIterator[Testbed]:
    client = connect_async(redis_url)
    testbed = Testbed(AsyncLedger(client, namespace), redis_url=redis_url, namespace=namespace, folder=folder)
    try:
        yield testbed
    finally:
        testbed.stop()
        await client.aclose()


@pytest.fixture
async def testbed(redis_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Testbed]:
    """A testbed of the test's own, whose workers are killed after it."""
    async with opened_testbed(redis_url, namespace, tmp_path) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def host(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerHost]:
    """The host of `worker`."""
    url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    host = WorkerHost(redis_url=url, namespace=namespace, folder=tmp_path_factory.mktemp("shared"))
    yield host
    host.stop()


@pytest.fixture(scope="module")
def worker(host: WorkerHost) -> WorkerProcess:
    """A worker that several tests share."""
    return host.worker()


@pytest.fixture
async def shared_testbed(host: WorkerHost, worker: WorkerProcess) -> AsyncIterator[Testbed]:
    """A testbed with the shared `worker`, which is ready."""
    async with opened_testbed(host.redis_url, host.namespace, host.folder) as testbed:
        await testbed.registered(worker, WorkerState.READY)
        yield testbed


async def test_a_job_runs_and_its_terminal_event_names_its_artifacts(shared_testbed: Testbed) -> None:
    job_id = await shared_testbed.submit(images=2, seed=41)
    record = await shared_testbed.ended(job_id)

    assert record.state is State.COMPLETED
    assert record.end_data is not None
    artifacts = [Artifact.decode(raw) for raw in record.end_data["artifacts"]]
    assert await shared_testbed.store.keys(f"{TENANT}/{job_id}") == [artifact.key for artifact in artifacts]
    for artifact in artifacts:
        content = (shared_testbed.store_folder / artifact.key).read_bytes()
        assert (sha256(content).hexdigest(), len(content)) == (artifact.sha256, artifact.size)
        assert artifact.media_type == "image/png"
    assert record.end_data["model_served"] == MODEL
    assert record.end_data["attempt"] == 1
    assert record.end_data["record"]["parameters"]["seed"] == 41
    assert record.end_data["run_ms"] >= 0
    entries = await reads.log(shared_testbed.ledger, job_id)
    assert entries[0].event is JobEvent.ACCEPTED
    assert entries[1].event is JobEvent.STARTED
    assert entries[-2].data == {"progress": 100, "step": 2, "steps": 2}
    assert entries[-1].event is JobEvent.COMPLETED


async def test_without_metadata_a_picture_contains_no_prompt(testbed: Testbed) -> None:
    await testbed.ready_worker(picture_metadata="none")
    record = await testbed.ended(await testbed.submit(prompt="a secret"))
    assert record.end_data is not None
    content = (testbed.store_folder / record.end_data["artifacts"][0]["key"]).read_bytes()
    assert b"secret" not in content
    assert b"tEXtmodel_served" in content


async def test_progress_is_logged_four_times_a_second_and_at_the_last_step(
    shared_testbed: Testbed,
) -> None:
    job_id = await shared_testbed.submit(steps=200, seconds=1)
    record = await shared_testbed.ended(job_id)

    logged = await shared_testbed.entries(job_id, JobEvent.PROGRESSED)
    assert record.started is not None
    assert record.ended is not None
    assert 1 < len(logged) <= 4 * (record.ended - record.started) / 1000 + 2
    assert logged[-1].data == {"progress": 100, "step": 200, "steps": 200}
    assert record.step == 200


async def test_a_cancelled_job_stops_within_a_step(shared_testbed: Testbed, worker: WorkerProcess) -> None:
    child = worker.children()
    job_id = await shared_testbed.submit(steps=600, seconds=60)
    await shared_testbed.running(job_id)

    answer = await shared_testbed.ledger.run(calls.cancel(job_id, tenant=TENANT))
    at_cancel = (await shared_testbed.job(job_id)).step or 0
    record = await shared_testbed.ended(job_id)

    assert answer.receipt is Receipt.INTERRUPTING
    assert record.state is State.CANCELLED
    assert (record.step or 0) <= at_cancel + 1
    assert await shared_testbed.store.keys(f"{TENANT}/{job_id}") == []
    assert (await shared_testbed.ended(await shared_testbed.submit())).state is State.COMPLETED
    assert worker.children() == child


async def test_an_engine_that_ignores_a_cancel_is_killed(testbed: Testbed) -> None:
    worker = await testbed.ready_worker(interrupt_grace_s="0.5")
    child = worker.children()
    job_id = await testbed.submit(steps=1, seconds=600)
    await testbed.in_state(job_id, lambda record: record.state is State.RUNNING, "the job runs")

    await testbed.ledger.run(calls.cancel(job_id, tenant=TENANT))

    assert (await testbed.ended(job_id)).state is State.CANCELLED
    assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
    assert worker.children() != child


async def test_a_job_whose_process_dies_is_released_at_once_and_retried(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    job_id = await testbed.submit(steps=20, seconds=1)
    await testbed.running(job_id)

    os.kill(worker.children()[0], signal.SIGKILL)
    record = await testbed.ended(job_id)

    released = await testbed.entries(job_id, JobEvent.RELEASED)
    assert [(entry.data["reason"], entry.data["counted"]) for entry in released] == [("worker_lost", True)]
    await testbed.said(worker, "attempt_ended_for_child")
    text, _, _ = worker.log.read_text().rpartition("\n")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] in {"error", "critical"} or "exception" in line] == []
    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 2, 1)


async def test_a_job_that_kills_every_process_fails_after_its_attempts(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    job_id = await testbed.submit(steps=600, seconds=60, max_attempts=2)

    for attempt in (1, 2):
        await testbed.running(job_id, attempt=attempt)
        os.kill(worker.children()[0], signal.SIGKILL)
    record = await testbed.ended(job_id)

    assert record.state is State.FAILED
    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.WORKER_LOST
    assert len([entry for entry in await reads.log(testbed.ledger, job_id) if entry.state.is_terminal]) == 1


async def test_a_draining_worker_finishes_its_job_and_claims_no_other(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    running = await testbed.submit(steps=20, seconds=2)
    await testbed.running(running)
    waiting = await testbed.submit()

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert (await testbed.job(running)).state is State.COMPLETED
    assert (await testbed.job(waiting)).attempt == 0
    assert await reads.workers(testbed.ledger) == []
    with connect(testbed.redis_url) as client:
        assert client.exists(f"{testbed.namespace}:celery:unacked.{POOL}") == 0


async def test_a_job_that_outlasts_a_drain_is_released_and_runs_on_another_worker(
    testbed: Testbed,
) -> None:
    worker = await testbed.ready_worker(drain_grace_s="0.2")
    job_id = await testbed.submit(steps=40, seconds=2)
    await testbed.running(job_id)

    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    given_back = await testbed.job(job_id)
    await testbed.ready_worker()
    record = await testbed.ended(job_id)

    assert (given_back.state, given_back.attempt, given_back.counted) == (State.PENDING, 1, 0)
    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 2, 0)
    assert len(await testbed.entries(job_id, JobEvent.STARTED)) == 2


async def test_a_second_signal_ends_the_grace(testbed: Testbed) -> None:
    worker = await testbed.ready_worker(drain_grace_s="600")
    job_id = await testbed.submit(steps=600, seconds=60)
    await testbed.running(job_id)

    worker.signal(signal.SIGTERM)
    await testbed.said(worker, "draining")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert (await testbed.job(job_id)).state is State.PENDING


async def test_a_shutdown_by_remote_control_is_a_drain(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    job_id = await testbed.submit(steps=20, seconds=2)
    await testbed.running(job_id)

    await asyncio.to_thread(_shut_down, testbed)

    assert worker.wait() == 0
    assert (await testbed.job(job_id)).state is State.COMPLETED


async def test_no_message_is_consumed_before_the_engine_is_loaded(testbed: Testbed, tmp_path: Path) -> None:
    slow = testbed.worker(tmp_path / "held")
    await testbed.registered(slow, WorkerState.STARTING)
    job_id = await testbed.submit()

    # Its event loop runs, and would take the message if the queue were consumed.
    await testbed.until(lambda: asyncio.to_thread(_answers_ping, testbed), "the worker answers a ping")
    with connect(testbed.redis_url) as client:
        assert client.llen(f"{testbed.namespace}:celery:{queues.queue_name(POOL)}") == 1
    slow.kill()
    await testbed.ready_worker()

    assert (await testbed.ended(job_id)).attempt == 1


async def test_no_message_is_consumed_while_a_dead_process_is_replaced(testbed: Testbed, tmp_path: Path) -> None:
    held = tmp_path / "held"
    worker = testbed.worker(held)
    (held / "go").touch()
    await testbed.registered(worker, WorkerState.READY)
    (held / "go").unlink()

    os.kill(worker.children()[0], signal.SIGKILL)
    await testbed.registered(worker, WorkerState.STARTING)
    job_id = await testbed.submit()
    await testbed.until(lambda: asyncio.to_thread(_answers_ping, testbed), "the worker answers a ping")
    with connect(testbed.redis_url) as client:
        assert client.llen(f"{testbed.namespace}:celery:{queues.queue_name(POOL)}") == 1
    (held / "go").touch()

    assert (await testbed.ended(job_id)).state is State.COMPLETED


async def test_a_worker_that_still_loads_exits_at_once(testbed: Testbed, tmp_path: Path) -> None:
    worker = testbed.worker(tmp_path / "held", drain_grace_s="600")
    await testbed.said(worker, "loading")

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0


async def test_two_consecutive_faults_make_a_worker_faulty_and_keep_the_job(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    job_id = await testbed.submit(failure=ErrorKind.WORKER_FAULT)

    await testbed.registered(worker, WorkerState.FAULTY)
    record = await testbed.job(job_id)

    assert worker.is_running
    assert worker.children() == []
    assert (record.state, record.attempt, record.counted) == (State.PENDING, 2, 0)
    reasons = [entry.data["reason"] for entry in await testbed.entries(job_id, JobEvent.RELEASED)]
    assert reasons == ["worker_fault", "worker_fault"]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


async def test_a_completed_job_clears_a_fault(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    for _ in range(3):
        bad = await testbed.submit(failure=ErrorKind.WORKER_FAULT)
        await testbed.in_state(bad, lambda record: record.attempt == 1 and record.state is State.PENDING, "a fault")
        await testbed.ledger.run(calls.cancel(bad, tenant=TENANT))
        assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED

    assert worker.is_running


async def test_jobs_that_fail_or_kill_their_process_do_not_make_a_worker_faulty(testbed: Testbed) -> None:
    worker = await testbed.ready_worker(breakable=True)
    bad = [await testbed.submit(prompt=prompt, max_attempts=1) for prompt in ("fail", "fail", "fail", "kill", "kill")]
    innocent = await testbed.submit()

    ended = [await testbed.ended(job_id) for job_id in bad]
    assert (await testbed.ended(innocent)).state is State.COMPLETED
    assert [record.end_data["error"]["kind"] for record in ended if record.end_data] == [
        *[ErrorKind.TRANSIENT] * 3,
        *[ErrorKind.WORKER_LOST] * 2,
    ]
    # After three failures the process at work proves itself, and each of the two that replace a killed one.
    assert len(worker.said("self_test_passed")) == 3
    assert worker.said("fault") == worker.said("faulty") == []


async def test_failed_self_tests_make_the_worker_faulty_until_one_passes(
    testbed: Testbed,
) -> None:
    worker = await testbed.ready_worker(breakable=True)
    testbed.broken.touch()
    jobs = [await testbed.submit() for _ in range(3)]
    await testbed.registered(worker, WorkerState.FAULTY)

    # Two were charged for a failure before there was evidence about the device; the third was not.
    counted = [(await testbed.job(job_id)).counted for job_id in jobs]
    assert counted == [1, 1, 0]

    testbed.broken.unlink()
    assert (await testbed.ended(jobs[2])).state is State.COMPLETED
    assert worker.said("recovered")


def _has_failed(attempt: int, record: JobRecord) -> bool:
    return record.counted == attempt and record.not_before is not None


async def test_a_job_that_fails_at_every_attempt_does_not_make_a_worker_faulty(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    job_id = await testbed.submit(failure=ErrorKind.OUT_OF_MEMORY)
    for attempt in (1, 2):
        record = await testbed.in_state(job_id, partial(_has_failed, attempt), f"attempt {attempt} failed")
        assert record.not_before is not None
        await testbed.ledger.run(calls.promote(POOL, now=record.not_before))

    assert (await testbed.ended(job_id)).state is State.FAILED
    assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
    assert worker.is_running


async def test_a_model_that_does_not_load_makes_the_worker_faulty(testbed: Testbed) -> None:
    (testbed.models / "quick.toml").write_text(MODEL_FILE.replace('engine = "instant"', 'engine = "no-such"'))
    worker = testbed.worker()

    await testbed.registered(worker, WorkerState.FAULTY)

    assert len(worker.said("not_loaded")) == 2


async def test_a_process_that_dies_while_it_loads_makes_the_worker_faulty(testbed: Testbed, tmp_path: Path) -> None:
    held = tmp_path / "held"
    worker = testbed.worker(held)
    (held / "die").touch()

    await testbed.registered(worker, WorkerState.FAULTY)

    assert worker.children() == []


async def test_a_worker_that_cannot_replace_its_process_retries(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    [child] = worker.children()

    _, most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, most))  # to the worker, a full disk
    os.kill(child, signal.SIGKILL)
    await testbed.registered(worker, WorkerState.FAULTY)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (most, most))

    await testbed.registered(worker, WorkerState.READY)
    assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


async def test_a_process_that_the_system_does_not_start_leaks_nothing(testbed: Testbed) -> None:
    worker = await testbed.ready_worker(breakable=True)
    testbed.refused.touch()
    [child] = worker.children()
    os.kill(child, signal.SIGKILL)
    await testbed.registered(worker, WorkerState.FAULTY)
    testbed.refused.unlink()

    await testbed.registered(worker, WorkerState.READY)
    assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
    assert len(worker.said("child_not_started")) == 2
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


async def test_pictures_are_held_while_the_store_is_unavailable_despite_the_run_timeout(testbed: Testbed) -> None:
    testbed.store_folder.rmdir()
    testbed.store_folder.touch()  # a file where a folder should be, from the worker's start on
    worker = await testbed.ready_worker(interrupt_grace_s="0.5")
    child = worker.children()
    job_id = await testbed.submit(run_timeout=0.5)

    # The parent knows the run timeout after five seconds, when it first renews the lease.
    await testbed.said(worker, "store_failed", times=7)
    record = await testbed.job(job_id)
    assert (record.state, record.attempt) == (State.RUNNING, 1)
    testbed.store_folder.unlink()

    record = await testbed.ended(job_id)
    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 1, 0)
    assert worker.children() == child


async def test_a_job_whose_pictures_are_held_can_be_cancelled_and_is_released_by_a_drain(
    testbed: Testbed,
) -> None:
    testbed.store_folder.mkdir(exist_ok=True)
    (testbed.store_folder / TENANT).touch()  # a file where a folder should be
    worker = await testbed.ready_worker(drain_grace_s="0.2")
    child = worker.children()
    cancelled = await testbed.submit()
    await testbed.said(worker, "store_away")
    await testbed.ledger.run(calls.cancel(cancelled, tenant=TENANT))
    assert (await testbed.ended(cancelled)).state is State.CANCELLED
    assert worker.children() == child

    drained = await testbed.submit()
    await testbed.said(worker, "store_away", times=2)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    record = await testbed.job(drained)
    assert (record.state, record.counted) == (State.PENDING, 0)

    (testbed.store_folder / TENANT).unlink()
    await testbed.ready_worker()
    assert (await testbed.ended(drained)).state is State.COMPLETED


@pytest.mark.parametrize("tenant", ["../x", "a/b", ".", "x" * 300, ""], ids=["above", "below", "dot", "long", "empty"])
async def test_a_job_of_an_invalid_tenant_fails(shared_testbed: Testbed, worker: WorkerProcess, tenant: str) -> None:
    job_id = await shared_testbed.submit(steps=600, seconds=60)
    await shared_testbed.running(job_id)
    foreign = await shared_testbed.submit()  # behind the other, so that it can be changed before it is claimed
    with connect(shared_testbed.redis_url) as client:
        client.hset(f"{shared_testbed.namespace}:job:{foreign}", "tenant", tenant)
    await shared_testbed.ledger.run(calls.cancel(job_id, tenant=TENANT))

    record = await shared_testbed.ended(foreign)
    assert record.state is State.FAILED
    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.INVALID_INPUT
    assert (await shared_testbed.registered(worker, WorkerState.READY)).job is None


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"steps": 0}, id="a value beyond the limits of the model's file"),
        pytest.param({"nonsense": 1}, id="an unknown parameter"),
        pytest.param({"failure": ErrorKind.INVALID_INPUT}, id="a value that only the engine rejects"),
    ],
)
async def test_invalid_input_fails_the_job_with_one_event(shared_testbed: Testbed, given: dict[str, Any]) -> None:
    job_id = await shared_testbed.submit(**given)
    record = await shared_testbed.ended(job_id)

    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.INVALID_INPUT
    log = await reads.log(shared_testbed.ledger, job_id)
    assert [entry.state for entry in log if entry.state.is_terminal] == [State.FAILED]
    assert record.attempt == 1


async def test_a_transient_failure_is_retried_and_published_once(
    shared_testbed: Testbed,
) -> None:
    job_id = await shared_testbed.submit(failure=ErrorKind.TRANSIENT, max_attempts=2)

    first = await shared_testbed.in_state(job_id, lambda record: record.counted == 1, "the first attempt failed")
    assert first.not_before is not None
    await shared_testbed.ledger.run(calls.promote(POOL, now=first.not_before))
    record = await shared_testbed.ended(job_id)

    retried = await shared_testbed.entries(job_id, JobEvent.RETRIED)
    assert 1500 <= first.not_before - retried[0].at <= 2500
    assert (record.state, record.counted) == (State.FAILED, 2)
    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.TRANSIENT


async def test_a_job_beyond_its_run_timeout_fails_at_a_step(shared_testbed: Testbed, worker: WorkerProcess) -> None:
    child = worker.children()

    record = await shared_testbed.ended(await shared_testbed.submit(steps=600, seconds=60, run_timeout=0.3))

    assert record.end_data is not None
    assert record.end_data["error"] == {"kind": ErrorKind.DEADLINE, "message": "the job ran longer than 0.3 s"}
    assert worker.children() == child


async def test_a_job_beyond_its_run_timeout_fails_if_its_engine_hangs(testbed: Testbed) -> None:
    await testbed.ready_worker(interrupt_grace_s="0.5")

    record = await testbed.ended(await testbed.submit(steps=1, seconds=600, run_timeout=0.3))

    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.DEADLINE
    assert record.attempt == 1


async def test_a_job_of_an_unknown_model_is_released_uncounted(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()

    job_id = await testbed.submit(model="another")
    await testbed.in_state(job_id, lambda record: record.attempt == 2, "the job was given back")

    assert (await testbed.job(job_id)).counted == 0
    assert (await testbed.registered(worker, WorkerState.BUSY)).job == job_id


async def test_a_revoke_cancels_a_waiting_job_at_once_and_a_running_one_at_its_next_step(
    shared_testbed: Testbed, worker: WorkerProcess
) -> None:
    child = worker.children()
    running = await shared_testbed.submit(steps=600, seconds=60)
    await shared_testbed.running(running)
    waiting = await shared_testbed.submit()

    await asyncio.to_thread(_revoke, shared_testbed, waiting)
    assert (await shared_testbed.ended(waiting)).attempt == 0
    assert (await shared_testbed.job(running)).state is State.RUNNING
    await asyncio.to_thread(_revoke, shared_testbed, running, terminate=True)

    assert (await shared_testbed.ended(running)).state is State.CANCELLED
    assert (await shared_testbed.ended(await shared_testbed.submit())).state is State.COMPLETED
    assert worker.children() == child


async def test_a_running_job_outlives_an_outage_of_redis(namespace: str, tmp_path: Path) -> None:
    binary = needed_binary(RedisKind.EMBEDDED)
    (tmp_path / "redis").mkdir()
    server = RedisServer(binary, tmp_path / "redis")
    server.start()
    try:
        async with opened_testbed(server.url, namespace, tmp_path) as testbed:
            worker = await testbed.ready_worker()
            child = worker.children()
            job_id = await testbed.submit(steps=40, seconds=4)
            await testbed.running(job_id)

            server.stop(signal.SIGKILL)
            await testbed.said(worker, "ledger_away")
            server.start()
            record = await testbed.ended(job_id)

            assert (record.state, record.attempt) == (State.COMPLETED, 1)
            assert worker.children() == child
            assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
            left = [path for path in testbed.temporary.rglob("*") if path.is_file()]
            assert left == [], "no message is left in a file"
    finally:
        server.stop()


async def test_a_job_that_finishes_during_an_outage_is_recorded_afterwards(namespace: str, tmp_path: Path) -> None:
    binary = needed_binary(RedisKind.EMBEDDED)
    (tmp_path / "redis").mkdir()
    server = RedisServer(binary, tmp_path / "redis")
    server.start()
    try:
        async with opened_testbed(server.url, namespace, tmp_path) as testbed:
            worker = await testbed.ready_worker()
            job_id = await testbed.submit(steps=10, seconds=1)
            await testbed.running(job_id)

            server.stop(signal.SIGKILL)
            await testbed.until(lambda: _retries_finish(worker), "the end of the job waits")
            server.start()

            assert (await testbed.ended(job_id)).state is State.COMPLETED
    finally:
        server.stop()


async def test_a_worker_that_requests_no_more_messages_exits_and_logs_what_it_holds(testbed: Testbed) -> None:
    worker = await testbed.ready_worker(loses=True)
    assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
    testbed.losing.touch()
    job_id = await testbed.submit()

    line = (await testbed.said(worker, "consumer_stalled"))[0]

    assert line["reserved"] == [job_id]
    assert len(line["handed_over"]) == 1
    assert worker.wait() == FAILED


async def test_a_worker_that_is_idle_or_stopped_is_not_taken_for_stalled(testbed: Testbed) -> None:
    worker = await testbed.ready_worker(loses=True)

    async def registered_for(seconds: float) -> bool | None:
        record = await testbed.registration(worker)
        return True if record is not None and record.seen > began.seen + 1000 * seconds else None

    began = await testbed.registered(worker, WorkerState.READY)
    await testbed.until(partial(registered_for, 4), "it has been idle for longer than a stalled worker may be")
    os.kill(worker.pid, signal.SIGSTOP)
    await asyncio.sleep(4)  # as long
    os.kill(worker.pid, signal.SIGCONT)

    assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
    assert worker.said("consumer_stalled") == []


async def test_a_run_continues_while_redis_is_frozen_and_its_timeout_excludes_the_wait(
    namespace: str, tmp_path: Path
) -> None:
    """The engine finishes while Redis is frozen, although it takes longer than `run_timeout` including the waits."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(needed_binary(RedisKind.EMBEDDED), tmp_path / "redis")
    server.start()
    try:
        async with opened_testbed(server.url, namespace, tmp_path) as testbed:
            await testbed.ready_worker()
            job_id = await testbed.submit(steps=30, seconds=3, run_timeout=3.8)
            await testbed.running(job_id)

            os.kill(server.pid, signal.SIGSTOP)
            try:
                await testbed.until(lambda: _has_pictures(testbed, job_id), "the engine finishes while Redis is frozen")
            finally:
                os.kill(server.pid, signal.SIGCONT)
            record = await testbed.ended(job_id)

            assert (record.state, record.attempt) == (State.COMPLETED, 1)
            assert record.end_data is not None
            assert record.end_data["run_ms"] < 3800
    finally:
        server.stop()


async def test_a_worker_with_dead_connections_keeps_the_lease_of_its_job(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """No FIN arrives: only a timeout shows that a connection is dead, and the lease must outlast it."""
    proxy = SilentProxy(urlsplit(redis_url).port or 6379)
    with proxy.running():
        async with opened_testbed(redis_url, namespace, tmp_path) as testbed:
            worker = testbed.worker(None, redis_url=proxy.url)
            await testbed.registered(worker, WorkerState.READY)
            job_id = await testbed.submit(steps=1, seconds=600)
            await testbed.in_state(job_id, lambda record: record.state is State.RUNNING, "the job runs")
            first = await _lease(testbed, job_id)

            assert proxy.silence(next_too=1) > 0

            async def renewed() -> bool | None:
                assert await testbed.ledger.run(calls.reap(POOL)) == []
                return await _lease(testbed, job_id) > first or None

            await testbed.until(renewed, "the lease is renewed over another connection")
            record = await testbed.job(job_id)
            assert (record.state, record.attempt) == (State.RUNNING, 1)


async def test_an_attempt_that_cannot_be_finished_affects_no_other_job(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    damaged = await testbed.submit(steps=20, seconds=600)
    await testbed.running(damaged)
    with connect(testbed.redis_url) as client:
        client.hset(f"{testbed.namespace}:job:{damaged}", "counted", "many")

    os.kill(worker.children()[0], signal.SIGKILL)

    await testbed.said(worker, "report_failed", job=damaged)
    record = await testbed.ended(await testbed.submit())
    assert record.state is State.COMPLETED
    await testbed.registered(worker, WorkerState.READY)


async def test_draining_one_of_two_workers_loses_no_job_and_runs_none_twice(testbed: Testbed) -> None:
    first, second = await testbed.ready_worker(), await testbed.ready_worker()
    jobs = [await testbed.submit(steps=2, seconds=0.1) for _ in range(40)]
    await testbed.in_state(jobs[5], lambda record: record.state.is_terminal, "a few jobs are done")

    first.signal(signal.SIGTERM)

    for job_id in jobs:
        record = await testbed.ended(job_id)
        assert (record.state, record.attempt) == (State.COMPLETED, 1)
    assert first.wait() == 0
    assert second.is_running


async def test_a_worker_that_lost_its_job_stops_and_publishes_nothing(
    shared_testbed: Testbed, worker: WorkerProcess
) -> None:
    job_id = await shared_testbed.submit(steps=40, seconds=2)
    running = await shared_testbed.running(job_id)

    # As the courier does for a worker that it takes for dead.
    reason, name = ReleaseReason.WORKER_LOST, running.worker
    await shared_testbed.ledger.run(calls.release(job_id, reason=reason, detail="no sign of life", worker=name))
    record = await shared_testbed.ended(job_id)

    assert (record.state, record.attempt, record.counted) == (State.COMPLETED, 2, 1)
    assert all(key.startswith(f"{TENANT}/{job_id}/2/") for key in await shared_testbed.store.keys(f"{TENANT}/{job_id}"))
    lines = await shared_testbed.said(worker, "attempt_ended", times=2, job=job_id)
    assert [line["ended"] for line in lines] == ["lost", "completed"]


async def test_a_time_limit_of_celery_fails_the_job_once(testbed: Testbed) -> None:
    job_id = await testbed.submit(steps=1, seconds=600)
    key = f"{testbed.namespace}:celery:{queues.queue_name(POOL)}"
    with connect(testbed.redis_url) as client:
        raw: Any = client.lindex(key, 0)
        message = json.loads(raw)
        message["headers"]["timelimit"] = [1, None]
        client.lset(key, 0, json.dumps(message))
    await testbed.ready_worker()

    record = await testbed.ended(job_id)

    assert record.end_data is not None
    assert record.end_data["error"]["kind"] == ErrorKind.DEADLINE
    assert record.attempt == 1
    assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED


async def test_a_process_does_not_outlive_its_worker(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    child = worker.children()[0]
    await testbed.running(await testbed.submit(steps=600, seconds=60))

    worker.kill()

    async def is_gone() -> bool | None:
        return not Path(f"/proc/{child}").exists() or None

    await testbed.until(is_gone, "the child is gone")


async def test_log_entries_about_a_job_name_the_job_and_its_trace(
    shared_testbed: Testbed, worker: WorkerProcess
) -> None:
    job_id = await shared_testbed.submit(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    await shared_testbed.ended(job_id)

    (line,) = await shared_testbed.said(worker, "attempt_ended", job=job_id)
    assert (line["trace_id"], line["pool"]) == ("0af7651916cd43dd8448eb211c80319c", POOL)


async def test_a_worker_waits_for_redis_and_can_be_stopped_meanwhile(tmp_path: Path) -> None:
    unused = f"redis://127.0.0.1:{free_port()}/0"
    async with opened_testbed(unused, "t-unused", tmp_path) as testbed:
        worker = testbed.worker()
        await testbed.said(worker, "ledger_away")

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
async def test_an_invalid_setting_is_reported_in_one_line(
    testbed: Testbed, variable: str, value: str, said: str
) -> None:
    settings = {"redis_url": testbed.redis_url, variable: value}
    worker = testbed.worker(None, breakable=False, loses=False, **settings)

    assert worker.wait() == 2
    (line,) = worker.log.read_text().splitlines()
    assert said in line


async def test_the_exec_probe_reports_whether_a_worker_is_alive_and_ready(testbed: Testbed) -> None:
    assert _probes(testbed) == (1, 1)
    worker = await testbed.ready_worker()
    assert _probes(testbed) == (0, 0)

    await testbed.submit(failure=ErrorKind.WORKER_FAULT)
    await testbed.registered(worker, WorkerState.FAULTY)
    assert _probes(testbed) == (0, 1)

    worker.signal(signal.SIGTERM)
    worker.wait()
    assert _probes(testbed) == (1, 1)


async def test_the_worker_answers_http_probes_from_its_start(testbed: Testbed, tmp_path: Path) -> None:
    port, held = free_port(), tmp_path / "held"
    worker = testbed.worker(held, probe_port=str(port))
    await testbed.registered(worker, WorkerState.STARTING)
    assert _probed(port) == (200, 503)
    second = testbed.worker(None, probe_port=str(port))
    (held / "go").touch()
    await testbed.registered(worker, WorkerState.READY)
    await testbed.until(lambda: _is_probed(port, (200, 200)), "the worker is ready")
    running = await testbed.submit(steps=600, seconds=60)
    await testbed.running(running)

    worker.signal(signal.SIGTERM)
    await testbed.until(lambda: _is_probed(port, (200, 503)), "the worker drains")

    assert second.wait() == 2
    assert f"DARKROOM_PROBE_PORT='{port}'" in second.log.read_text()


async def test_a_stock_celery_worker_runs_the_message_of_a_job(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "stock.py").write_text(STOCK_APP)
    job_id = await testbed.submit(seed=12)
    variables = environment(testbed.redis_url, testbed.namespace, SEEN=str(tmp_path / "seen"))
    variables["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    arguments = ["-A", "stock", "worker", "-P", "solo", "-Q", queues.queue_name(POOL), "-l", "WARNING"]
    stock = Part("celery", *arguments, environment=variables, log=tmp_path / "stock.log")
    stock.start()
    try:

        async def seen() -> Any:
            return json.loads(text) if (text := _text(tmp_path / "seen")) else None

        task_id = await testbed.until(seen, "the stock worker ran the task")
    finally:
        stock.stop()
    assert task_id == job_id


async def test_the_parent_imports_no_model_library() -> None:
    heavy = "torch", "diffusers", "transformers", "PIL"
    code = f"import sys, darkroom_worker.parent.process; print(*[name for name in {heavy!r} if name in sys.modules])"
    variables = environment("redis://unused", "t-unused")

    answer = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)

    assert answer.stdout.split() == []


STOCK_APP = f"""
import json, os
from pathlib import Path
from celery import Celery
from darkroom.ledger.queues import TASK_NAME, transport_options

app = Celery("stock", broker=os.environ["DARKROOM_REDIS_URL"])
app.conf.broker_transport_options = transport_options(os.environ["DARKROOM_NAMESPACE"], "{POOL}")

@app.task(name=TASK_NAME, bind=True)
def run(self):
    seen = Path(os.environ["SEEN"])
    seen.with_suffix(".part").write_text(json.dumps(self.request.id))
    seen.with_suffix(".part").rename(seen)
"""


@contextmanager
def _celery(testbed: Testbed) -> Iterator[Celery]:
    """A Celery app that only sends remote control commands, like Flower's."""
    app = Celery("tests", broker=testbed.redis_url, set_as_current=False)
    app.conf.broker_transport_options = queues.transport_options(testbed.namespace, POOL)
    with app:
        yield app


def _answers_ping(testbed: Testbed) -> list[object] | None:
    with _celery(testbed) as app:
        return app.control.ping(timeout=1, limit=1) or None


def _shut_down(testbed: Testbed) -> None:
    with _celery(testbed) as app:
        app.control.shutdown()


def _revoke(testbed: Testbed, job_id: str, **options: bool) -> None:
    with _celery(testbed) as app:
        app.control.revoke(job_id, **options)


async def _has_pictures(testbed: Testbed, job_id: str) -> bool | None:
    return bool(await testbed.store.keys(f"{TENANT}/{job_id}")) or None


async def _lease(testbed: Testbed, job_id: str) -> float:
    """The expiry of the attempt's lease, in milliseconds since the epoch."""
    with connect(testbed.redis_url) as client:
        score: Any = client.zscore(f"{testbed.namespace}:running:{POOL}", job_id)
    return float(score or 0)


async def _retries_finish(worker: WorkerProcess) -> bool | None:
    return any(line.get("script") == "finish" for line in worker.said("ledger_away")) or None


def _probed(port: int) -> tuple[int, ...]:
    """Statuses of `/healthz` and `/readyz`."""
    paths = "/healthz", "/readyz"
    return tuple(httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code for path in paths)


async def _is_probed(port: int, statuses: tuple[int, int]) -> bool | None:
    return await asyncio.to_thread(_probed, port) == statuses or None


def _probes(testbed: Testbed) -> tuple[int, int]:
    """Exit statuses of the exec probe: alive, ready."""
    variables = testbed.environment()
    probe = [sys.executable, "-m", "darkroom_worker.health"]
    return tuple(  # type: ignore[return-value]  # two of them
        subprocess.run([*probe, *more], env=variables, check=False).returncode for more in ([], ["--ready"])
    )


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None

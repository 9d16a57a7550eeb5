"""Jobs of the previous version finish under this one, and jobs of a later version are left to it.

The fixture has the contents of Redis after the previous version had accepted these jobs, as commands that write them
again, without keys that had a time to live. Times are moved into the past.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import encode_structured
from darkroom.jobs import RECORD_VERSION, JobEvent, State
from darkroom.ledger.calls import WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect, connect_async

from tests.darkroom_command import darkroom
from tests.parts import PROOFS, Functions, Part
from tests.worker.running_worker import MODEL_FILE, Testbed

FIXTURE = Path(__file__).parent / "fixtures" / f"version-{RECORD_VERSION - 1}.json"

ENDS = {
    "completed and not published": State.COMPLETED,
    "dead letter": State.FAILED,
    "cancelled and not published": State.CANCELLED,
    "failed once, due again": State.COMPLETED,
    "running, and its worker is gone": State.COMPLETED,
    "running, and to be cancelled": State.CANCELLED,
    "popped and never claimed": State.COMPLETED,
    "in the queue": State.COMPLETED,
    "waiting": State.COMPLETED,
    "too late": State.EXPIRED,
    "waiting, the last": State.COMPLETED,
}


@pytest.fixture
async def testbed(redis_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Testbed]:
    client = connect_async(redis_url)
    testbed = Testbed(AsyncLedger(client, namespace), redis_url=redis_url, namespace=namespace, folder=tmp_path)
    yield testbed
    testbed.stop()
    await client.aclose()


def write_again(redis_url: str, namespace: str, commands: list[list[str]]) -> None:
    with connect(redis_url) as client:
        for command, key, *rest in commands:
            client.execute_command(command, f"{namespace}:{key}", *rest)


async def test_jobs_of_the_previous_version_finish_and_are_published(
    testbed: Testbed, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    fixture = json.loads(FIXTURE.read_text())
    ids: dict[str, str] = fixture["jobs"]
    assert ids.keys() == ENDS.keys()
    write_again(redis_url, namespace, fixture["commands"])

    settings = testbed.environment()
    functions = Functions("all", environment=settings, log=tmp_path / "functions.log")
    soon = {"DARKROOM_ATTEMPT_LEASE_S": "1", "DARKROOM_SWEEP_AGE_S": "3", "K_SINK": f"{functions.url}/events"}
    courier = Part("darkroom_courier", environment=settings | soon, log=tmp_path / "courier.log")
    try:
        await asyncio.to_thread(functions.start)
        courier.start()
        await testbed.ready_worker()
        records = {what: await testbed.ended(job_id) for what, job_id in ids.items()}
        assert {what: record.state for what, record in records.items()} == ENDS
        lost = records["running, and its worker is gone"]
        assert (lost.attempt, lost.counted) == (2, 1)
        assert records["failed once, due again"].counted == 1

        async def nothing_is_left() -> bool | None:
            done = await asyncio.to_thread(darkroom, ["audit", "--json"], folder=tmp_path, **settings)
            counts = json.loads(done.stdout.splitlines()[-1])
            return (counts["findings"], counts["unapplied"], counts["history"]) == ({}, 0, len(ids)) or None

        await testbed.until(nothing_is_left, "all ends are applied and archived, and the audit finds nothing")
        async with httpx.AsyncClient(base_url=functions.url, trust_env=False, timeout=60) as client:
            for what, job_id in ids.items():
                answer = await client.get(f"/api/v1/generation-jobs/{job_id}")
                assert answer.json()["state"] == ENDS[what]
            letters = (await client.get("/api/v1/dead-letters")).json()["dead_letters"]
        assert [letter["id"] for letter in letters] == [ids["dead letter"]]
    finally:
        courier.stop()
        functions.stop()


async def test_a_job_of_a_later_version_is_left_to_newer_parts(
    testbed: Testbed, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """A worker requeues it without counting an attempt, and its terminal event is not applied."""
    job_id = await testbed.submit()
    result = Functions("result", environment=testbed.environment(), log=tmp_path / "result.log")
    try:
        with connect(redis_url) as client:
            client.hset(f"{namespace}:job:{job_id}", "v", RECORD_VERSION + 1)
            worker = testbed.worker()
            await asyncio.to_thread(result.start)
            await testbed.said(worker, "dropped", reason="newer", job=job_id, times=2)
            record = await testbed.job(job_id)
            assert (record.state, record.attempt, record.counted) == (State.PENDING, 0, 0)
            client.hset(f"{namespace}:job:{job_id}", "v", RECORD_VERSION)
            assert (await testbed.ended(job_id)).state is State.COMPLETED

            (end,) = await testbed.entries(job_id, JobEvent.COMPLETED)
            event: dict[str, Any] = {
                "specversion": "1.0",
                "id": end.event_id,
                "source": "/tests",
                "type": "dev.darkroom.job.completed",
                "subject": job_id,
                "sequence": f"{end.seq:020}",
                "data": {},
            }
            headers, body = encode_structured(PROOFS.prove(Event.decode_structured(event)))
            async with httpx.AsyncClient(trust_env=False, timeout=60) as sink:
                for version, status in ((RECORD_VERSION + 1, 503), (RECORD_VERSION, 204)):
                    client.hset(f"{namespace}:job:{job_id}", "v", version)
                    answer = await sink.post(result.url, headers=headers, content=body)
                    assert answer.status_code == status, answer.text
    finally:
        result.stop()


async def test_a_job_whose_model_a_worker_does_not_know_is_run_by_one_that_does(
    testbed: Testbed, tmp_path: Path
) -> None:
    """The model is new, and the first worker has not been replaced yet."""
    newer, held = tmp_path / "newer", tmp_path / "held"
    newer.mkdir()
    (newer / "another.toml").write_text(MODEL_FILE.replace('name = "quick"', 'name = "another"'))
    old = await testbed.ready_worker()
    new = testbed.worker(held, models=str(newer))
    await testbed.registered(new, WorkerState.STARTING)
    job_id = await testbed.submit(model="another")
    await testbed.said(old, "unknown_model", job=job_id)
    (held / "go").touch()
    record = await testbed.ended(job_id)
    assert (record.state, record.counted) == (State.COMPLETED, 0)
    assert f"-{new.pid}-" in (record.worker or "")

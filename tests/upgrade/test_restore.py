"""Redis restored from a backup, as in docs/operations.md: each job accepted before it finishes."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Collection
from functools import partial
from pathlib import Path

import httpx
from darkroom.checks.audit import FaultKind
from darkroom.jobs import State
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.darkroom_command import darkroom
from tests.parts import Functions, Part
from tests.redis_server import RedisKind, RedisServer, binary_of
from tests.worker.running_worker import Testbed

BEFORE, AFTER = 20, 3
SLOW = 10
"""Steps of the job that runs during the backup, while the others wait."""


def typed(repository: Path, start: str, server: RedisServer) -> str:
    """The command of docs/operations.md that begins with `start`, with the data folder of this Redis."""
    text = (repository / "docs" / "operations.md").read_text()
    (line,) = re.findall(rf"exec (?:-i )?[a-z0-9-]+ -- sh -c '({start}.*)'", text)
    return str(line).replace("/data", str(server.folder))


async def shell(line: str, *, given: bytes = b"") -> bytes:
    done = await asyncio.to_thread(
        subprocess.run, ["/bin/sh", "-c", line], input=given, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_after_a_restore_and_a_repair_all_jobs_of_the_backup_finish(
    repository: Path, namespace: str, tmp_path: Path
) -> None:
    """The backup is made while jobs run. Later jobs finish before the restore, and are in the history."""
    binary = binary_of(RedisKind.CURRENT) or binary_of(RedisKind.EMBEDDED)
    assert binary is not None
    (tmp_path / "redis").mkdir()  # its path has no spaces, or the commands would need quotes
    server = RedisServer(binary, tmp_path / "redis")
    server.start()
    client = connect_async(server.url)
    house = Testbed(AsyncLedger(client, namespace), redis_url=server.url, namespace=namespace, folder=tmp_path)
    settings = house.environment()
    functions = Functions("all", environment=settings, log=tmp_path / "functions.log")
    soon = {"DARKROOM_ATTEMPT_LEASE_S": "1", "K_SINK": f"{functions.url}/events"}
    courier = Part("darkroom_courier", environment=settings | soon, log=tmp_path / "courier.log")

    async def is_settled(but: Collection[FaultKind] = ()) -> bool | None:
        """Whether all terminal events are applied and archived, and the audit finds nothing except `but`."""
        done = await asyncio.to_thread(darkroom, ["audit", "--json"], folder=tmp_path, **settings)
        counts = json.loads(done.stdout.splitlines()[-1])
        is_published = (counts["unapplied"], counts["history"]) == (0, counts["jobs"])
        return (is_published and counts["findings"].keys() <= {*but}) or None

    try:
        await asyncio.to_thread(functions.start)
        courier.start()
        await house.ready_worker()
        jobs = [await house.submit(seconds=5 if number == SLOW else 0) for number in range(BEFORE)]
        await house.in_state(jobs[SLOW], lambda record: record.state is not State.PENDING, "the slow job runs")
        backup = await shell(typed(repository, "mkdir", server))
        later = [await house.submit() for _ in range(AFTER)]
        for job_id in (*jobs, *later):
            await house.ended(job_id)
        await house.until(is_settled, "all are archived")

        server.stop()
        await shell(typed(repository, "rm", server), given=backup)
        server.start()
        records = await house.ledger.jobs([*jobs, *later], tenant=None)
        assert [record is not None for record in records] == [True] * BEFORE + [False] * AFTER

        repaired = await asyncio.to_thread(darkroom, ["audit", "--repair", "--json"], folder=tmp_path, **settings)
        counts = json.loads(repaired.stdout.splitlines()[-1])
        # A job may have run again before the audit looks: then it differs from the history, as below.
        assert counts["findings"].keys() <= {FaultKind.WENT_BACK, FaultKind.HISTORY_DIFFERS}, repaired.stdout
        for job_id in jobs:
            assert (await house.ended(job_id)).state is State.COMPLETED
        # The history keeps the first result: a job that ran again finished at another time.
        await house.until(partial(is_settled, {FaultKind.HISTORY_DIFFERS}), "all are archived again")
        async with httpx.AsyncClient(base_url=functions.url, trust_env=False, timeout=60) as caller:
            for job_id in (*jobs, *later):
                view = (await caller.get(f"/api/v1/generation-jobs/{job_id}")).json()
                assert view["state"] == State.COMPLETED
    finally:
        courier.stop()
        functions.stop()
        house.stop()
        await client.aclose()
        server.stop()

"""Every available build of Redis, configured by the manifests, is killed and restarted without loss."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from darkroom.checks.audit import FaultKind
from darkroom.checks.auditor import Auditor
from darkroom.checks.doctor import diagnose
from darkroom.checks.examination import examine
from darkroom.checks.ledger_checks import Limits
from darkroom.checks.symptoms import Severity
from darkroom.errors import LedgerUnavailable
from darkroom.jobs import State
from darkroom.ledger import calls, reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect, connect_async
from darkroom.ledger.epochs import NEVER

from tests.core.timed_jobs import READERS
from tests.databases import SqliteDatabase, opened
from tests.driven_jobs import DrivenJobs
from tests.knative.manifest_redis import ShippedRedis
from tests.knative.rendering import Object
from tests.redis_server import Build, RedisKind, binary_of_build, needed_binary
from tests.waiting import eventually

PREFIX = "darkroom"

EVERY_RIGHT = "user tests on nopass ~* &* +@all"
"""A user of the test, which compares all keys and rewrites the file."""

LIMITED = "user default on nopass resetkeys resetchannels -@all +ping"
"""The user `default` of older installations, and of common advice."""

JOBS = 30


class Load:
    """Submits and finishes jobs until Redis is killed. `accepted` and `completed` are those that it acknowledged."""

    def __init__(self, url: str) -> None:
        self._jobs = DrivenJobs(url, PREFIX)
        self._jobs.announce_worker()
        self.accepted: list[str] = []
        self.completed: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for_more(self) -> None:
        so_far = len(self.completed)
        eventually(lambda: len(self.completed) >= so_far + JOBS, what=f"{JOBS} more jobs are completed")

    def join(self) -> None:
        self._thread.join()
        self._jobs.close()

    def _run(self) -> None:
        try:
            while True:
                for ends in (True, True, False):
                    job_id = self._jobs.submit()
                    self.accepted.append(job_id)
                    if ends:
                        self._jobs.start(job_id)
                        self._jobs.progress(job_id, step=1, steps=2)
                        self._jobs.complete(job_id)
                        self.completed.append(job_id)
        except LedgerUnavailable:
            return


@contextmanager
def shipped(binary: Path, rendered: dict[str, list[Object]], secret: dict[str, str], folder: Path) -> Iterator[Any]:
    server = ShippedRedis(binary, rendered["k3d"], secret, folder, more_users=[EVERY_RIGHT])
    server.start()
    try:
        yield server
    finally:
        server.stop()


def server_url(server: ShippedRedis) -> str:
    return f"redis://tests:any@127.0.0.1:{server.port}/0"


def everything(server: ShippedRedis) -> dict[bytes, Any]:
    with connect(server_url(server)) as client:
        keys = list(client.scan_iter())
        return {key: client.execute_command(*READERS[client.type(key).decode()](key)) for key in keys}


def rewritten(server: ShippedRedis) -> None:
    """Rewrite the append-only file, and wait for the end."""
    with connect(server_url(server)) as client:
        client.bgrewriteaof()

        def is_done() -> bool:
            info = client.info("persistence")
            return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]

        eventually(is_done, what="the append-only file is rewritten")
        assert client.info("persistence")["aof_last_bgrewrite_status"] == "ok"


def written(server: ShippedRedis) -> None:
    """Wait until acknowledged writes are in the file: during an fsync Redis delays writes by 2 s at most."""
    with connect(server_url(server)) as client:
        eventually(lambda: client.info("persistence")["aof_buffer_length"] == 0, what="the file has every write")


def killed(server: ShippedRedis) -> None:
    written(server)
    server.stop(signal.SIGKILL)
    server.start()


@pytest.mark.parametrize("build", Build)
def test_a_killed_redis_recovers_all_data(
    build: Build, rendered: dict[str, list[Object]], bootstrap: ModuleType, tmp_path: Path
) -> None:
    secret = bootstrap.redis_secret({"DARKROOM_NAMESPACE": PREFIX, "REDIS_DATABASE": "0"})
    with shipped(binary_of_build(build), rendered, secret, tmp_path) as server:
        load = Load(server_url(server))
        load.wait_for_more()
        rewritten(server)
        load.wait_for_more()
        accepted, completed = list(load.accepted), list(load.completed)
        written(server)
        server.stop(signal.SIGKILL)  # in the midst of it
        load.join()
        server.start()
        jobs = DrivenJobs(server_url(server), PREFIX)
        assert {jobs.state(job_id) for job_id in completed} == {State.COMPLETED}
        assert all(jobs.redis.exists(f"{PREFIX}:job:{job_id}") for job_id in accepted)

        jobs.run(calls.advance_epoch(NEVER))
        before = everything(server)
        killed(server)
        assert everything(server) == before
        rewritten(server)
        killed(server)
        assert everything(server) == before
        jobs.close()
        assert "CRITICAL" not in server.log.read_text()


async def test_doctor_and_audit_report_a_loss_of_redis_until_it_is_acknowledged(
    rendered: dict[str, list[Object]], bootstrap: ModuleType, tmp_path: Path
) -> None:
    """With the users of an older installation Redis 7.0 loses each transaction; the epoch in SQL reveals it."""
    secret = bootstrap.redis_secret({"DARKROOM_NAMESPACE": PREFIX, "REDIS_DATABASE": "0"})
    (default, *_) = bootstrap.REDIS_OWN_USERS
    secret["users.acl"] = secret["users.acl"].replace(default, LIMITED)
    binary = needed_binary(RedisKind.CURRENT)
    with shipped(binary, rendered, secret, tmp_path) as server:
        async with (
            connect_async(server_url(server)) as client,
            opened(SqliteDatabase(tmp_path / "history").url) as history,
        ):
            ledger = AsyncLedger(client, PREFIX)

            async def beat() -> None:
                """Count a beat as the courier does."""
                noted = await ledger.run(calls.advance_epoch(await history.epoch(PREFIX) or NEVER))
                await history.note_epoch(PREFIX, noted.epoch)

            async def problems() -> set[str]:
                found = diagnose(await examine(client, PREFIX, Limits(canary_s=0), history=history), Limits()).findings
                return {each.check for each in found if each.symptom.severity is Severity.PROBLEM}

            async def findings(*, repair: bool = False) -> list[FaultKind]:
                auditor = Auditor(client, PREFIX, store=None, history=history, second_pass_s=0)
                return [fault.kind for fault in (await auditor.audit(repair=repair)).unrepaired]

            await ledger.run(calls.announce_pool("local", models=["sd"]))
            for _ in range(3):
                await beat()
            assert await problems() == {"redis-users"}
            assert await findings() == []

            await asyncio.to_thread(killed, server)
            assert "lost-data" in await problems()
            assert await findings() == [FaultKind.WENT_BACK]
            await beat()  # now the ledger notes it, and a reader without a database sees it too
            assert (await reads.epoch(ledger)).epoch.number > 1
            found = diagnose(await examine(client, PREFIX, Limits(canary_s=0)), Limits()).findings
            assert "lost-data" in {each.check for each in found}
            assert await findings(repair=True) == []
            assert await findings() == []
            await beat()
            assert "lost-data" not in await problems()

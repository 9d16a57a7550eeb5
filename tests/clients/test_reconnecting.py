"""The clients of docs/clients, as processes, against the function `result`: they resume where a connection was cut.

What a client prints is compared with the job's log: every entry from its first message on, once and in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from darkroom.access.credentials import Credential
from darkroom.access.directory import Directory
from darkroom.access.principals import DEFAULT_TENANT, Scope
from darkroom.access.records import ApiKey, KeySecret, Tenant
from darkroom.access.store import Revised, Snapshot
from darkroom.jobs import State
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.databases import migrated
from tests.driven_jobs import DrivenJobs
from tests.parts import Functions, environment
from tests.tcp_proxy import CuttingProxy
from tests.waiting import DEADLINE_S, eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "clients"

CLIENTS = ["follow_socket.py", "follow_socket.mjs", "follow_events.py", "follow_events.mjs"]

CONNECTION_LIFE_S = 2
"""The server closes each connection after so long; by default after minutes."""

UNKNOWN_ID = "01980000-0000-7000-8000-000000000000"

WITH_WEBSOCKET = 22
"""The first version of Node that has a WebSocket by default."""


class Client:
    """One of the examples, following a job at an address; what it prints is in a file."""

    def __init__(self, name: str, address: str, job_id: str, folder: Path, *, key: str | None = None) -> None:
        scheme = "ws" if "socket" in name else "http"
        self._output, self._errors = folder / "output", folder / "errors"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*_runner(name), str(EXAMPLES / name), f"{scheme}://{address}", job_id],
                env={"PATH": os.environ["PATH"], **({} if key is None else {"DARKROOM_KEY": key})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    def messages(self) -> list[dict[str, Any]]:
        """The messages that it has printed so far."""
        whole, _, _ = self._output.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def has_printed(self, count: int) -> None:
        """Return once it has printed so many messages."""
        eventually(lambda: len(self.messages()) >= count or self._has_exited(), what=f"{count} messages of the client")

    def wait(self) -> tuple[int, str]:
        """Its exit status, once it has exited, and its standard error."""
        status = self._process.wait(DEADLINE_S)
        return status, self._errors.read_text()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _has_exited(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"the client has exited: {self._errors.read_text()}")
        return False


@cache
def _node() -> list[str]:
    node = shutil.which("node")
    if node is None:
        raise LookupError("the JavaScript clients need node on the PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    has_websocket = int(version.removeprefix("v").partition(".")[0]) >= WITH_WEBSOCKET
    return [node] if has_websocket else [node, "--experimental-websocket"]


def _runner(name: str) -> list[str]:
    return [sys.executable, "-u"] if name.endswith(".py") else _node()


@pytest.fixture
def result(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[Functions]:
    settings = environment(
        redis_url, namespace, DARKROOM_SOCKET_GRACE_S="0.5", DARKROOM_SOCKET_LIFE_S=str(CONNECTION_LIFE_S)
    )
    migrated(settings["DARKROOM_DATABASE_URL"])
    result = Functions("result", environment=settings, log=tmp_path / "result.log")
    result.start()
    yield result
    result.stop()


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(redis_url, namespace)
    yield driven
    driven.close()


@pytest.fixture(params=CLIENTS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def test_over_many_cuts_each_entry_is_received_once(
    name: str, result: Functions, jobs: DrivenJobs, tmp_path: Path
) -> None:
    """Each connection passes a few hundred bytes: mostly some messages and a part of one."""
    dice, steps = random.Random(name), 60
    job_id = jobs.submit()
    jobs.start(job_id)
    with CuttingProxy(result.port, allowance=lambda: dice.randint(200, 2_000)).running() as proxy:
        client = Client(name, proxy.address, job_id, tmp_path)
        try:
            client.has_printed(1)
            for step in range(1, steps + 1):
                jobs.progress(job_id, step=step, steps=steps)
                if dice.random() < 0.3:  # it is sometimes connected when an entry is written, and sometimes not
                    client.has_printed(step)
            jobs.complete(job_id)
            assert client.wait()[0] == 0
        finally:
            client.stop()
        assert proxy.cuts > 5
    received_the_whole_log(client, jobs, job_id)


def test_clients_reconnect_to_a_server_that_was_killed(
    name: str, result: Functions, jobs: DrivenJobs, tmp_path: Path
) -> None:
    job_id = jobs.submit()
    client = Client(name, f"127.0.0.1:{result.port}", job_id, tmp_path)
    try:
        client.has_printed(1)
        for number in (signal.SIGKILL, signal.SIGTERM):
            result.signal(number)
            result.wait()
            jobs.start(job_id) if number is signal.SIGKILL else jobs.complete(job_id)
            result.start()
        assert client.wait()[0] == 0
    finally:
        client.stop()
    received_the_whole_log(client, jobs, job_id)


def test_a_snapshot_replaces_entries_that_the_log_no_longer_has(
    name: str, result: Functions, jobs: DrivenJobs, tmp_path: Path
) -> None:
    job_id = jobs.submit()
    client = Client(name, f"127.0.0.1:{result.port}", job_id, tmp_path)
    try:
        client.has_printed(1)
        result.stop()
        jobs.start(job_id)
        jobs.complete(job_id)
        jobs.redis.delete(f"{jobs.namespace}:log:{job_id}")
        result.start()
        assert client.wait()[0] == 0
    finally:
        client.stop()
    assert [message["state"] for message in client.messages()] == [State.PENDING, State.COMPLETED]


def test_an_unknown_job_is_not_retried(name: str, result: Functions, tmp_path: Path) -> None:
    client = Client(name, f"127.0.0.1:{result.port}", UNKNOWN_ID, tmp_path)
    try:
        status, errors = client.wait()
    finally:
        client.stop()
    assert status != 0
    assert "404" in errors
    assert client.messages() == []


@pytest.fixture
def keyed(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[Functions]:
    """All functions, with keys and short connections."""
    settings = environment(
        redis_url,
        namespace,
        DARKROOM_AUTH="keys",
        DARKROOM_SOCKET_GRACE_S="0.5",
        DARKROOM_SOCKET_LIFE_S=str(CONNECTION_LIFE_S),
    )
    migrated(settings["DARKROOM_DATABASE_URL"])
    functions = Functions("all", environment=settings, log=tmp_path / "functions.log")
    functions.start()
    yield functions
    functions.stop()


def published_key(redis_url: str, namespace: str, *scopes: Scope) -> str:
    """A new key of the default tenant, published as the courier does."""
    credential = Credential.generate()
    key = ApiKey(
        id=credential.key_id,
        tenant=DEFAULT_TENANT,
        name="client",
        scopes=frozenset(scopes),
        secrets=(KeySecret(digest=credential.digest, created=0),),
    )

    async def publish() -> None:
        async with connect_async(redis_url) as client:
            snapshot = Snapshot(1, (Revised(Tenant(name=DEFAULT_TENANT), 1),), (Revised(key, 1),))
            await Directory(AsyncLedger(client, namespace)).publish_all(snapshot)

    asyncio.run(publish())
    return credential.text


def test_clients_send_their_key_with_each_connection(
    name: str, keyed: Functions, jobs: DrivenJobs, tmp_path: Path, redis_url: str, namespace: str
) -> None:
    key = published_key(redis_url, namespace, Scope.READ)
    dice, steps = random.Random(name), 20
    job_id = jobs.submit()
    jobs.start(job_id)
    with CuttingProxy(keyed.port, allowance=lambda: dice.randint(1_000, 4_000)).running() as proxy:
        client = Client(name, proxy.address, job_id, tmp_path, key=key)
        try:
            for step in range(1, steps + 1):
                jobs.progress(job_id, step=step, steps=steps)
                client.has_printed(step)
            jobs.complete(job_id)
            assert client.wait()[0] == 0
        finally:
            client.stop()
        assert proxy.cuts > 1
    received_the_whole_log(client, jobs, job_id)


@pytest.mark.parametrize("scopes", [None, [Scope.SUBMIT]], ids=["no key", "wrong scope"])
def test_a_refused_key_is_not_retried(
    name: str,
    keyed: Functions,
    jobs: DrivenJobs,
    tmp_path: Path,
    redis_url: str,
    namespace: str,
    scopes: list[Scope] | None,
) -> None:
    key = published_key(redis_url, namespace, *(scopes or [Scope.READ]))
    client = Client(name, f"127.0.0.1:{keyed.port}", jobs.submit(), tmp_path, key=None if scopes is None else key)
    try:
        status, errors = client.wait()
    finally:
        client.stop()
    assert status != 0
    assert ("401" if scopes is None else "403") in errors
    assert key not in errors
    assert client.messages() == []


def received_the_whole_log(client: Client, jobs: DrivenJobs, job_id: str) -> None:
    """Fail unless the client received every entry from its first message on, once and in order."""
    messages = client.messages()
    first, last = messages[0]["seq"], jobs.end_seq(job_id)
    assert [message["seq"] for message in messages] == list(range(first, last + 1))
    ids = [f"{job_id}:{number}" for number in range(first, last)]
    assert [message["event_id"] for message in messages] == [*ids, f"{job_id}:end"]

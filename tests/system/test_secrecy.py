"""The secret of a key is in the response that creates it, and nowhere else. The same holds for tickets and sessions.

Keys are created, used in every form of a credential, exchanged, rotated and deleted, while all processes log at DEBUG
and Redis reports each command. Then the secrets are searched in logs and all other files of the data folder, Redis
(commands, values, slow log, files), SQL, the arguments and the environment of processes, responses and metrics.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from darkroom.access.credentials import CHECKSUM_LENGTH, Credential
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.conftest import Databases
from tests.databases import DatabaseKind
from tests.parts import hooked
from tests.ports import free_port
from tests.system.running import System
from tests.system.test_history import redis_of
from tests.waiting import eventually

AT_DEBUG = """
import darkroom.logs
configure = darkroom.logs.configure
def at_debug(part, *, level=10, pool=None):
    configure(part, level=10, pool=pool)
darkroom.logs.configure = at_debug
"""
"""Runs first in every process of darkroom; there is no setting of the level."""

SMALL = {"prompt": "a lighthouse", "width": 64, "height": 64, "steps": 1}
PATIENCE_S = 60
REQUEST_S = 15


@dataclass
class Searched:
    """Where secrets are searched: texts by their place."""

    secrets: Mapping[str, bytes]
    found: list[str] = field(default_factory=list)

    def look(self, place: str, content: bytes) -> None:
        """Search one content for every secret."""
        self.found += [f"{name} in {place}" for name, secret in self.secrets.items() if secret in content]


def parts_of(name: str, key: str) -> dict[str, bytes]:
    """What must not be found of a key: its random part, alone and as `Basic` encodes it."""
    secret = key.rpartition("_")[2][:-CHECKSUM_LENGTH]
    basic = base64.b64encode(f"x:{key}".encode())
    return {name: secret.encode(), f"{name}, in base64": basic[-40:-8]}


class Monitor:
    """The commands that Redis receives, from its MONITOR."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._thread = threading.Thread(target=self._read)
        self.commands: list[bytes] = []
        self._lines = client.monitor()
        self._lines.__enter__()
        self._thread.start()

    def _read(self) -> None:
        with suppress(redis.RedisError, OSError, ValueError, AttributeError):
            for command in self._lines.listen():
                self.commands.append(repr(command).encode())

    def stop(self) -> None:
        self._lines.connection.disconnect()
        self._thread.join()


@dataclass(frozen=True)
class Stage:
    """A system with keys whose processes log at DEBUG; `root` is the first key."""

    system: System
    database_url: str
    probe_port: int
    root: str

    def client(self, key: str | None, **options: Any) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.system.url, headers=headers, trust_env=False, timeout=REQUEST_S, **options)


@pytest.fixture(params=list(DatabaseKind))
def stage(request: pytest.FixtureRequest, databases: Databases, system: System, tmp_path: Path) -> Iterator[Stage]:
    url = databases(request.param).url
    shutil.copytree(system.folder / ".darkroom" / "stand-ins", tmp_path / ".darkroom" / "stand-ins")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    variables = hooked({"PYTHONPATH": os.environ.get("PYTHONPATH", "")}, hooks, AT_DEBUG)
    probe_port = free_port()
    own = System(
        tmp_path,
        DARKROOM_DATABASE_URL=url,
        DARKROOM_PROBE_PORT=str(probe_port),
        PYTHONPATH=os.pathsep.join((variables["PYTHONPATH"], *_roots())),
    )
    try:
        own.start("--host", "0.0.0.0")
        yield Stage(own, url, probe_port, str(own.ready["key"]))
    finally:
        own.end()


def _roots() -> list[str]:
    from tests.darkroom_command import environment

    return environment()["PYTHONPATH"].split(os.pathsep)


def test_the_secret_of_a_key_is_found_nowhere(stage: Stage) -> None:
    responses: list[bytes] = []

    def noted(response: httpx.Response) -> None:
        response.read()
        responses.append(repr(response.headers).encode() + response.content)

    with redis_of(stage.system) as client:
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("loglevel", "debug")
    monitor = Monitor(redis_of(stage.system))
    secrets: dict[str, bytes] = {}
    processes: list[tuple[str, bytes]] = []
    try:
        with stage.client(stage.root) as admin:
            assert admin.post("/api/v1/tenants", json={"name": "studio"}).status_code == 201
            body = {"tenant": "studio", "name": "website", "scopes": ["submit", "read", "cancel", "manage"]}
            made = admin.post("/api/v1/keys", json=body).json()
            rotated = admin.post(f"/api/v1/keys/{made['id']}/rotate", json={"overlap_s": 3600}).json()
            keys = {
                "the root key": stage.root,
                "the first secret": made["key"],
                "the second secret": rotated["key"],
                "an unknown key": Credential.generate().text,
                "an unknown secret of a known key": Credential.generate(made["id"]).text,
                "a key with a wrong checksum": f"{made['key'][:-1]}{'a' if made['key'][-1] != 'a' else 'b'}",
            }
            for name, key in keys.items():
                secrets |= parts_of(name, key)
                _use(stage, key, noted)
            secrets |= _exchange(stage, rotated["key"])
            job = _submit(stage, rotated["key"])
            with stage.client(rotated["key"], event_hooks={"response": [noted]}) as reader:
                eventually(
                    lambda: reader.get(f"/api/v1/generation-jobs/{job}").json()["state"] == "completed",
                    what="a job with the key to be completed",
                    deadline_s=PATIENCE_S,
                )
            admin.event_hooks = {"response": [noted]}
            for path in ("/api/v1/keys", f"/api/v1/keys/{made['id']}", "/api/v1/tenants", "/metrics", "/openapi.json"):
                admin.get(path)
            processes += _processes(stage)
            eventually(
                lambda: admin.get(f"/api/v1/keys/{made['id']}").json()["last_used_at"] is not None,
                what="the use of the key to be recorded",
                deadline_s=PATIENCE_S,
            )
            assert admin.delete(f"/api/v1/keys/{made['id']}").status_code == 204
        eventually(
            lambda: _status(stage, rotated["key"]) == 401, what="the deleted key to be refused", deadline_s=PATIENCE_S
        )
        probes = httpx.get(f"http://127.0.0.1:{stage.probe_port}/metrics", trust_env=False)
        responses.append(probes.content)
    finally:
        monitor.stop()

    searched = Searched(secrets)
    search(stage, searched, monitor, processes)
    for response in responses:
        searched.look("a response", response)
    assert sorted(set(searched.found)) == []
    assert len(responses) > 100
    assert len(monitor.commands) > 50

    plant(stage, rotated["key"])
    planted = Searched({"planted": secrets["the second secret"]})
    search(stage, planted, monitor, processes)
    places = {place.rpartition(" in ")[2].split()[0] for place in planted.found}
    assert places == {"SQL", "Redis", "file"}, planted.found


def _use(stage: Stage, key: str, noted: Any) -> None:
    """Send the key in every form, with the right scheme and others, and in every wrong place."""
    basic = base64.b64encode(f"x:{key}".encode()).decode()
    swapped = base64.b64encode(f"{key}:x".encode()).decode()
    forms: list[list[tuple[str, str]]] = [
        [("authorization", f"Bearer {key}")],
        [("authorization", f"token {key}")],
        [("authorization", f"KEY {key}")],
        [("authorization", f"Basic {basic}")],
        [("authorization", f"Basic {swapped}")],
        [("authorization", f"Basic {key}")],
        [("authorization", f"Digest {key}")],
        [("authorization", key)],
        [("authorization", f"Bearer {key} {key}")],
        [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")],
        [("x-api-key", key)],
        [("cookie", f"darkroom_session={key}")],
    ]
    hooks = {"response": [noted]}
    with stage.client(None, event_hooks=hooks) as client:
        for headers in forms:
            client.get("/api/v1/generation-jobs/", headers=headers)
            client.post("/no-such-model", headers=headers, json={})
            client.get("/api/v1/tenants", headers=headers)
        for path in (f"/api/v1/generation-jobs/?key={key}", f"/{key}", f"/api/v1/keys/{key}", f"/tasks/{key}"):
            client.get(path)
            client.post(path, headers={"authorization": f"Bearer {key}"}, json=SMALL)
        bearer = {"authorization": f"Bearer {key}"}
        client.post("/sd", headers=bearer, json={"no_such_parameter": 1})
        client.post("/api/v1/tickets", headers=bearer)
        client.post("/api/v1/session", headers=bearer)
        client.post("/api/v1/session", json={"key": key})
    for path, own in (("/ws/events", f"Bearer {key}"), (f"/ws/events?key={key}", ""), (f"/ws/events?ticket={key}", "")):
        sent = {"authorization": own} if own else {}
        with suppress(WebSocketException, OSError, TimeoutError):
            url = stage.system.url.replace("http", "ws") + path
            with connect(url, proxy=None, additional_headers=sent, open_timeout=REQUEST_S) as socket:
                socket.send(f'{{"type": "subscribe", "key": "{key}"}}')
                noted_frame = socket.recv(timeout=0.5)
                noted(httpx.Response(200, content=str(noted_frame).encode()))


def _exchange(stage: Stage, key: str) -> dict[str, bytes]:
    """Exchange the key for a ticket and a session, use both, and return what must not be found of them."""
    with stage.client(key) as client:
        ticket = client.post("/api/v1/tickets").raise_for_status().json()["ticket"]
        session = client.post("/api/v1/session").raise_for_status()
    ((_, cookie),) = session.cookies.items()
    url = f"{stage.system.url.replace('http', 'ws')}/ws/events?ticket={ticket}"
    for _ in range(2):  # the second time it is used up
        with suppress(WebSocketException), connect(url, proxy=None, open_timeout=REQUEST_S):
            pass
    name = next(iter(session.cookies))
    with stage.client(None, cookies={name: cookie}) as browser:
        assert browser.get("/api/v1/generation-jobs/").status_code == 200
        browser.delete("/api/v1/session", headers={"origin": stage.system.url})
    return {"a ticket": ticket.encode(), "a session": cookie.encode()}


def _submit(stage: Stage, key: str) -> str:
    with stage.client(key) as client:
        response = client.post("/sd", json=SMALL)
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


def _status(stage: Stage, key: str) -> int:
    with stage.client(key) as client:
        return client.get("/api/v1/generation-jobs/").status_code


def _processes(stage: Stage) -> list[tuple[str, bytes]]:
    """The arguments and the environment of all processes of `up`. The courier receives the root key in a variable."""
    found = []
    sessions = {recorded.pid: name for name, recorded in stage.system.processes.items()}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name = sessions.get(os.getsid(int(folder.name)))
            if name is None:
                continue
            found.append((f"arguments of {name}", (folder / "cmdline").read_bytes()))
            variables = (folder / "environ").read_bytes().split(b"\0")
            own = [each for each in variables if not each.startswith(b"DARKROOM_ROOT_KEY=")]
            found.append((f"environment of {name}", b"\0".join(own)))
    assert {name for name in sessions.values() if f"arguments of {name}" in dict(found)} == set(sessions.values())
    return found


def search(stage: Stage, searched: Searched, monitor: Monitor, processes: list[tuple[str, bytes]]) -> None:
    """Search every place but the responses."""
    for command in monitor.commands:
        searched.look("Redis command", command)
    with redis_of(stage.system) as client:
        client.save()
        for name in client.scan_iter(count=1000):
            searched.look(f"Redis key {name!r}", name + (client.dump(name) or b"") + _plain(client, name))
        searched.look("Redis slow log", repr(client.slowlog_get(1000)).encode())
    for path in stage.system.folder.rglob("*"):
        if path.is_file() and path.name != "root-key":
            content = path.read_bytes()
            if path.name == "up.out":
                content = content.partition(b"\n")[2]  # the first start prints the first key
            searched.look(f"file {path.relative_to(stage.system.folder)}", content)
    for row in asyncio.run(_rows(stage.database_url)):
        searched.look("SQL row", row)
    if stage.database_url.startswith("sqlite"):
        for path in Path(stage.database_url.partition(":///")[2]).parent.iterdir():
            searched.look(f"SQL file {path.name}", path.read_bytes())
    for place, content in processes:
        searched.look(place, content)


def _plain(client: redis.Redis, name: bytes) -> bytes:
    """The value without the compression of DUMP."""
    kind = client.type(name)
    reads: dict[bytes, Any] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
    }
    return repr(reads[kind](name)).encode() if kind in reads else b""


async def _rows(url: str) -> list[bytes]:
    """Every row of every table, as text."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            tables = await connection.run_sync(lambda sync: sync.dialect.get_table_names(sync))
            return [
                repr(tuple(row)).encode()
                for table in tables
                for row in (await connection.execute(text(f'SELECT * FROM "{table}"'))).all()  # noqa: S608
            ]
    finally:
        await engine.dispose()


def plant(stage: Stage, key: str) -> None:
    """Leave the secret in one place of each kind."""
    with (stage.system.folder / ".darkroom" / "logs" / "functions.log").open("a") as log:
        log.write(f'{{"event": "request", "authorization": "Bearer {key}"}}\n')
    with redis_of(stage.system) as client:
        client.hset("darkroom:leak", "key", key)
    asyncio.run(_plant_in_sql(stage.database_url, key))


async def _plant_in_sql(url: str, key: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE leak (value TEXT)"))
            await connection.execute(text("INSERT INTO leak VALUES (:value)"), {"value": key})
    finally:
        await engine.dispose()

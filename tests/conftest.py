"""What every test may ask for: a real Redis of either kind, and a key prefix of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.databases import Database, DatabaseKind, PostgresDatabase, SqliteDatabase
from tests.postgres_server import PostgresServer, programs
from tests.redis_server import RedisKind, RedisServer, binary_of

RedisServers = Callable[[RedisKind], RedisServer]
"""Gives the session's server of a kind, started at the first call."""


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServers]:
    """The session's servers. A test that stops or fills a server starts one of its own (`RedisServer`)."""
    running: dict[RedisKind, RedisServer] = {}

    def server_of(kind: RedisKind) -> RedisServer:
        if kind not in running:
            binary = binary_of(kind)
            if binary is None:
                raise LookupError(f"no {kind} redis-server on this machine")
            server = RedisServer(binary, tmp_path_factory.mktemp(f"redis-{kind}"))
            server.start()
            running[kind] = server
        return running[kind]

    yield server_of
    for server in running.values():
        server.stop()


@pytest.fixture
def redis_url(redis_servers: RedisServers) -> str:
    """Address of the embedded server, which is what most tests need."""
    return redis_servers(RedisKind.EMBEDDED).url


@pytest.fixture(params=list(RedisKind))
def any_redis_url(request: pytest.FixtureRequest, redis_servers: RedisServers) -> str:
    """Address of each kind in turn. A machine may lack a current server, but the gate (`.ci/run`) may not."""
    kind: RedisKind = request.param
    if kind is RedisKind.CURRENT and binary_of(kind) is None and "CI" not in os.environ:
        pytest.skip("no redis-server on the PATH, to run beside the embedded one")
    return redis_servers(kind).url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL; a test that stops it starts it again."""
    found = programs()
    if found is None:
        raise LookupError("no PostgreSQL on this machine")
    server = PostgresServer(found)
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=list(DatabaseKind))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database of each kind in turn. A machine may lack PostgreSQL, but the gate (`.ci/run`) may not."""
    kind: DatabaseKind = request.param
    if kind is DatabaseKind.SQLITE:
        return SqliteDatabase(tmp_path / "history")
    if programs() is None and "CI" not in os.environ:
        pytest.skip("no PostgreSQL on this machine, to run beside SQLite")
    return PostgresDatabase(request.getfixturevalue("postgres_server"))


@pytest.fixture
def namespace() -> str:
    """A key prefix that no other test has, so that tests share a server without seeing each other."""
    return f"t-{secrets.token_hex(8)}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent

"""Fixtures for all tests: real Redis servers, a key prefix for each test, real databases."""

from __future__ import annotations

import gc
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.databases import Database, DatabaseKind, PostgresDatabase, SqliteDatabase
from tests.postgres_server import PostgresServer, programs
from tests.redis_server import RedisKind, RedisServer, needed_binary


def pytest_configure() -> None:
    """Restore signals that a background run ignores (a shell's `&`, nohup): child processes would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


RedisServers = Callable[[RedisKind], RedisServer]
"""Returns the session's server of a kind, started at the first call."""

Databases = Callable[[DatabaseKind], Database]
"""Returns an empty database of a kind."""


@pytest.fixture(scope="module", autouse=True)
def leaks_fail_their_own_module() -> Iterator[None]:
    """Collect garbage after each module: an unclosed socket is then reported in the module that opened it."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServers]:
    """The session's servers. A test that stops or fills a server starts its own (`RedisServer`)."""
    running: dict[RedisKind, RedisServer] = {}

    def server_of(kind: RedisKind) -> RedisServer:
        if kind not in running:
            server = RedisServer(needed_binary(kind), tmp_path_factory.mktemp(f"redis-{kind}"))
            server.start()
            running[kind] = server
        return running[kind]

    yield server_of
    for server in running.values():
        server.stop()


@pytest.fixture
def redis_url(redis_servers: RedisServers) -> str:
    """URL of the embedded server, for most tests."""
    return redis_servers(RedisKind.EMBEDDED).url


@pytest.fixture(params=list(RedisKind))
def any_redis_url(request: pytest.FixtureRequest, redis_servers: RedisServers) -> str:
    """URL of each kind of server. Without a current server the test is skipped, but fails in the gate (`.ci/run`)."""
    return redis_servers(request.param).url


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Empty databases. One PostgreSQL server serves the session; a test that stops it starts it again.

    Without PostgreSQL the test is skipped, but fails in the gate (`.ci/run`).
    """
    servers: list[PostgresServer] = []

    def empty(kind: DatabaseKind) -> Database:
        if kind is DatabaseKind.SQLITE:
            return SqliteDatabase(tmp_path_factory.mktemp("sqlite") / "history")
        if not servers:
            found = programs()
            if found is None and "CI" not in os.environ:
                pytest.skip("no PostgreSQL on this machine, to run beside SQLite")
            servers.append(PostgresServer(found))
            servers[0].start()
        return PostgresDatabase(servers[0])

    yield empty
    for server in servers:
        server.remove()


@pytest.fixture(params=list(DatabaseKind))
def database(request: pytest.FixtureRequest, databases: Databases) -> Database:
    """An empty database of each kind."""
    return databases(request.param)


@pytest.fixture
def namespace() -> str:
    """A unique key prefix, so that tests can share a server."""
    return f"t-{secrets.token_hex(8)}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent

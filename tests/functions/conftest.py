"""Fixtures of the HTTP API's tests: all functions in one process for each file of tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RedisServers
from tests.functions.api import Api, serving
from tests.redis_server import RedisKind, RedisServer, needed_binary


@pytest.fixture(scope="module")
def api(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """All functions behind one port, under a key prefix of this file's tests."""
    redis_url = redis_servers(RedisKind.EMBEDDED).url
    with serving(redis_url, f"t-{secrets.token_hex(8)}", tmp_path_factory.mktemp("functions")) as api:
        yield api


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may stop or fill."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(needed_binary(RedisKind.EMBEDDED), folder)
    server.start()
    yield server
    server.stop()

"""Fixtures of the core's tests: jobs whose time the test sets, and the ledger as an asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.core.timed_jobs import TimedJobs
from tests.redis_server import RedisKind, RedisServer, needed_binary


@pytest.fixture(params=list(RedisKind), scope="module")
def redis_binary(request: pytest.FixtureRequest) -> Path:
    """The server of each kind in turn, for tests that start their own. Without a current one they are skipped."""
    return needed_binary(request.param)


@pytest.fixture
def own_redis(redis_binary: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A separate server, of each kind in turn."""
    server = RedisServer(redis_binary, tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def jobs(any_redis_url: str, namespace: str) -> Iterator[TimedJobs]:
    """A pool without a worker, on each kind of Redis."""
    jobs = TimedJobs(any_redis_url, namespace)
    yield jobs
    jobs.remove_all()
    jobs.close()


@pytest.fixture
async def ledger(jobs: TimedJobs, any_redis_url: str) -> AsyncIterator[AsyncLedger]:
    """The same jobs through an asyncio client."""
    client = connect_async(any_redis_url)
    yield AsyncLedger(client, jobs.namespace)
    await client.aclose()

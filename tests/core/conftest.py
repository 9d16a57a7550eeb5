"""What the tests of the core ask for: jobs at a time of the test's own, and the ledger as the functions have it."""

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
    """The server of each kind in turn, for tests that start one of their own. As for `any_redis_url`, one may lack."""
    return needed_binary(request.param)


@pytest.fixture
def own_redis(redis_binary: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, of each kind in turn."""
    server = RedisServer(redis_binary, tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def jobs(any_redis_url: str, namespace: str) -> Iterator[TimedJobs]:
    """A pool without a worker, on either kind of Redis."""
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

"""A tenant's stream as one client receives it, where that cannot be provoked from outside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import StreamEntry
from darkroom_functions.streams.cursors import STREAM_START, Cursor
from darkroom_functions.streams.feed import PAGE, Feed
from darkroom_functions.streams.follower import Follower
from darkroom_functions.streams.messages import StreamMessage
from darkroom_functions.streams.tenant_streams import TenantStreams

from tests.core.timed_jobs import TENANT, TimedJobs

KEPT = 20


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[TimedJobs]:
    jobs = TimedJobs(redis_url, namespace)
    yield jobs
    jobs.close()


@pytest.fixture
async def tenants(redis_url: str, namespace: str) -> AsyncIterator[Follower]:
    client = connect_async(redis_url)

    def encode(item: StreamEntry) -> str:
        return json.dumps({"job_id": item.entry.job_id})

    follower = Follower(TenantStreams(AsyncLedger(client, namespace), encode=encode), client, buffer=10)
    running = asyncio.create_task(follower.run())
    yield follower
    running.cancel()
    await asyncio.wait([running])
    await client.aclose()


async def received(feed: Feed, count: int) -> list[StreamMessage]:
    return [await feed.take() for _ in range(count)]


async def test_a_client_that_reads_so_slowly_that_entries_are_dropped_receives_a_gap(
    jobs: TimedJobs, tenants: Follower
) -> None:
    accepted = [jobs.submit() for _ in range(2 * PAGE)]
    async with tenants.follow([TENANT], tenant=TENANT, since={TENANT: Cursor(STREAM_START)}) as feed:
        first = await received(feed, PAGE)
        jobs.redis.xtrim(f"{jobs.namespace}:news:{TENANT}", maxlen=KEPT, approximate=False)
        gap, *rest = await received(feed, 1 + KEPT)
    assert gap.kind == "gap"
    assert json.loads(gap.text) == {"type": "gap", "reason": "log-gone"}
    assert [json.loads(each.text)["job_id"] for each in (*first, *rest)] == accepted[:PAGE] + accepted[-KEPT:]

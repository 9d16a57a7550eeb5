"""A tenant's news as one follower is told them, where that is not to be seen from outside at will."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import NEWS_START, NewsEntry
from darkroom_functions.streams.inbox import PAGE, Told
from darkroom_functions.streams.news import News, NewsFollowing

from tests.core.timed_jobs import TENANT, TimedJobs

KEPT = 20


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[TimedJobs]:
    jobs = TimedJobs(redis_url, namespace)
    yield jobs
    jobs.close()


@pytest.fixture
async def news(redis_url: str, namespace: str) -> AsyncIterator[News]:
    client = connect_async(redis_url)

    def encode(item: NewsEntry) -> str:
        return json.dumps({"job_id": item.entry.job_id})

    news = News(AsyncLedger(client, namespace), client, encode=encode, buffer=10)
    listening = asyncio.create_task(news.run())
    yield news
    listening.cancel()
    await asyncio.wait([listening])
    await client.aclose()


async def told(following: NewsFollowing, count: int) -> list[Told]:
    return [await following.take() for _ in range(count)]


async def test_who_reads_so_slowly_that_news_are_thrown_away_before_is_told_of_the_gap(
    jobs: TimedJobs, news: News
) -> None:
    accepted = [jobs.submit() for _ in range(2 * PAGE)]
    async with news.follow(tenant=TENANT, since=NEWS_START) as following:
        first = await told(following, PAGE)
        jobs.redis.xtrim(f"{jobs.namespace}:news:{TENANT}", maxlen=KEPT, approximate=False)
        gap, *rest = await told(following, 1 + KEPT)
    assert gap.kind == "gap"
    assert json.loads(gap.text) == {"type": "gap", "reason": "log-gone"}
    assert [json.loads(each.text)["job_id"] for each in (*first, *rest)] == accepted[:PAGE] + accepted[-KEPT:]

"""Concurrent submissions: one round trip, in which each has its own response or failure."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from darkroom.errors import DarkroomError, KeyReused, LedgerUnavailable, NoPool
from darkroom.ledger import calls
from darkroom.ledger.batching import MOST_TOGETHER, GroupCommit
from darkroom.ledger.calls import Accepted, Call, Submission
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.core.timed_jobs import START_MS, TimedJobs
from tests.redis_server import RedisServer

PATIENCE_S = 60.0


class ListeningLedger(AsyncLedger):
    """Records the number of calls in each round trip, and delays one on request."""

    def __init__(self, client: Any, namespace: str) -> None:
        super().__init__(client, namespace)
        self.groups: list[int] = []
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def run_each(self, calls: Sequence[Call[Any]]) -> list[Any]:
        self.groups.append(len(calls))
        await self.may_go.wait()
        return await super().run_each(calls)


@asynccontextmanager
async def listening(url: str, namespace: str) -> AsyncIterator[ListeningLedger]:
    client = connect_async(url)
    yield ListeningLedger(client, namespace)
    await client.aclose()


@pytest.fixture
async def ledger(jobs: TimedJobs, any_redis_url: str) -> AsyncIterator[ListeningLedger]:
    async with listening(any_redis_url, jobs.namespace) as ledger:
        yield ledger


Commits = GroupCommit[Accepted | DarkroomError]


@pytest.fixture
def commits(ledger: ListeningLedger) -> Commits:
    return GroupCommit(ledger, timeout_s=PATIENCE_S)


def accepting(job: Submission) -> Call[Accepted | DarkroomError]:
    return calls.accept(job, backlog_limit=10_000, now=START_MS)


async def test_a_single_caller_does_not_wait(jobs: TimedJobs, ledger: ListeningLedger, commits: Commits) -> None:
    for _ in range(3):
        job = jobs.submission()
        assert await commits.run(accepting(job)) == Accepted(job.job_id, START_MS, repeated=False)
    assert ledger.groups == [1, 1, 1]


async def test_concurrent_callers_share_a_round_trip(
    jobs: TimedJobs, ledger: ListeningLedger, commits: Commits
) -> None:
    submissions = [jobs.submission() for _ in range(MOST_TOGETHER)]
    answers = await asyncio.gather(*(commits.run(accepting(job)) for job in submissions))
    assert answers == [Accepted(job.job_id, START_MS, repeated=False) for job in submissions]
    assert ledger.groups == [MOST_TOGETHER]


async def test_callers_during_a_round_trip_share_the_next(
    jobs: TimedJobs, ledger: ListeningLedger, commits: Commits
) -> None:
    ledger.may_go.clear()
    first = asyncio.create_task(commits.run(accepting(jobs.submission())))
    await until_asked(ledger, 1)
    others = [asyncio.create_task(commits.run(accepting(jobs.submission()))) for _ in range(5)]
    await asyncio.sleep(0)
    ledger.may_go.set()
    await asyncio.gather(first, *others)
    assert ledger.groups == [1, 5]


async def test_a_caller_at_the_end_of_the_last_round_trip_is_served(
    jobs: TimedJobs, ledger: ListeningLedger, commits: Commits
) -> None:
    async def two_in_turn() -> None:
        for _ in range(2):
            assert isinstance(await commits.run(accepting(jobs.submission())), Accepted)

    async with asyncio.timeout(PATIENCE_S):
        for _ in range(20):
            await asyncio.gather(*(two_in_turn() for _ in range(MOST_TOGETHER)))


async def test_no_round_trip_is_longer_than_the_most(
    jobs: TimedJobs, ledger: ListeningLedger, commits: Commits
) -> None:
    count = 2 * MOST_TOGETHER + 10
    answers = await asyncio.gather(*(commits.run(accepting(jobs.submission())) for _ in range(count)))
    assert ledger.groups == [MOST_TOGETHER, MOST_TOGETHER, 10]
    assert len({answer.job_id for answer in answers if isinstance(answer, Accepted)}) == count


async def test_jobs_are_queued_in_the_order_of_their_callers(jobs: TimedJobs, commits: Commits) -> None:
    submissions = [jobs.submission() for _ in range(2 * MOST_TOGETHER + 10)]
    await asyncio.gather(*(commits.run(accepting(job)) for job in submissions))
    places = [jobs.record(job.job_id).place for job in submissions]
    assert places == list(range(1, len(submissions) + 1))


async def test_each_caller_gets_its_own_answer_or_failure(jobs: TimedJobs, commits: Commits) -> None:
    jobs.submit(idempotency_key="key", fingerprint="f")
    good = jobs.submission()
    answers = await asyncio.gather(
        commits.run(accepting(jobs.submission(idempotency_key="key", fingerprint="g"))),
        commits.run(accepting(good)),
        commits.run(accepting(jobs.submission(pool="nowhere"))),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [KeyReused, Accepted, NoPool]
    assert answers[1] == Accepted(good.job_id, START_MS, repeated=False)


async def test_a_cancelled_caller_does_not_cancel_others(
    jobs: TimedJobs, ledger: ListeningLedger, commits: Commits
) -> None:
    ledger.may_go.clear()
    callers = [asyncio.create_task(commits.run(accepting(jobs.submission()))) for _ in range(3)]
    await until_asked(ledger, 1)
    callers[1].cancel()
    await asyncio.sleep(0)
    ledger.may_go.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Accepted, asyncio.CancelledError, Accepted]
    assert isinstance(await commits.run(accepting(jobs.submission())), Accepted)


async def test_a_cancelled_round_trip_is_a_failure_for_its_callers(
    jobs: TimedJobs, ledger: ListeningLedger, commits: Commits
) -> None:
    ledger.may_go.clear()
    callers = [asyncio.create_task(commits.run(accepting(jobs.submission()))) for _ in range(MOST_TOGETHER + 1)]
    await until_asked(ledger, 1)
    (trip,) = (task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "_flush")
    trip.cancel()
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(answer) for answer in answers} == {LedgerUnavailable}
    ledger.may_go.set()
    assert isinstance(await commits.run(accepting(jobs.submission())), Accepted)


async def test_without_redis_all_callers_fail_and_later_ones_are_served(own_redis: RedisServer, namespace: str) -> None:
    jobs = TimedJobs(own_redis.url, namespace)
    async with listening(own_redis.url, namespace) as ledger:
        commits: Commits = GroupCommit(ledger, timeout_s=PATIENCE_S)
        own_redis.stop()
        answers = await asyncio.gather(
            *(commits.run(accepting(jobs.submission())) for _ in range(MOST_TOGETHER + 5)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {LedgerUnavailable}
        own_redis.start()
        job = jobs.submission()
        assert await commits.run(accepting(job)) == Accepted(job.job_id, START_MS, repeated=False)
    jobs.close()


async def test_a_redis_that_hangs_is_unavailable_after_the_timeout(own_redis: RedisServer, namespace: str) -> None:
    jobs = TimedJobs(own_redis.url, namespace)
    async with listening(own_redis.url, namespace) as ledger:
        hasty: Commits = GroupCommit(ledger, timeout_s=0.1)
        patient: Commits = GroupCommit(ledger, timeout_s=PATIENCE_S)
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LedgerUnavailable):
                await hasty.run(accepting(jobs.submission()))
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        job = jobs.submission()
        assert await patient.run(accepting(job)) == Accepted(job.job_id, START_MS, repeated=False)
    jobs.close()


async def until_asked(ledger: ListeningLedger, groups: int) -> None:
    """Return once the ledger has begun so many round trips."""
    async with asyncio.timeout(PATIENCE_S):
        while len(ledger.groups) < groups:
            await asyncio.sleep(0.001)

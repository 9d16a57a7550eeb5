"""Redis at the limit of its memory: nothing more is accepted, and what was accepted runs, ends and makes room.

Each server here is a test's own, of either kind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest
from darkroom import transitions
from darkroom.errors import MemoryHigh
from darkroom.jobs import State
from darkroom.ledger import AsyncLedger, Memory, connect_async, scripts
from darkroom.transitions import Accepted, Applied, Ended, Reason, Receipt, Standing, Submission

from tests.core.timed_jobs import TimedJobs
from tests.redis_server import RedisServer

LONG_PROMPT = "a lighthouse at dusk " * 5_000
"""100 KB: what the record, the message and the list hold of it is far above the measure's noise."""


@pytest.fixture(scope="module")
def server(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(redis_binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def jobs(server: RedisServer, namespace: str) -> Iterator[TimedJobs]:
    jobs = TimedJobs(server.url, namespace)
    yield jobs
    jobs.redis.config_set("maxmemory", 0)
    jobs.redis.flushall()
    jobs.close()


@pytest.fixture
async def ledger(jobs: TimedJobs, server: RedisServer) -> AsyncIterator[AsyncLedger]:
    client = connect_async(server.url)
    yield AsyncLedger(client, jobs.namespace)
    await client.aclose()


def used(jobs: TimedJobs) -> int:
    memory: int = jobs.redis.info("memory")["used_memory"]
    return memory


def fill(jobs: TimedJobs) -> None:
    """From now on Redis is above its limit."""
    jobs.redis.config_set("maxmemory", used(jobs) // 2)


def offer(jobs: TimedJobs, job: Submission) -> Accepted:
    answer = jobs.run(transitions.accept(job, backlog_limit=10_000, now=jobs.now))
    assert isinstance(answer, Accepted), answer
    return answer


def test_a_full_redis_refuses_a_job_whole(jobs: TimedJobs) -> None:
    jobs.submit()
    fill(jobs)
    before = jobs.everything()
    with pytest.raises(MemoryHigh) as refusal:
        offer(jobs, jobs.submission(idempotency_key="key", fingerprint="f", start_deadline=jobs.now + 1))
    assert refusal.value.retry_after > 0
    assert jobs.everything() == before


async def test_a_full_redis_refuses_each_job_of_a_round_trip(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    accepted = jobs.submission()
    offer(jobs, accepted)
    fill(jobs)
    answers = await ledger.run_each(
        [transitions.accept(job, backlog_limit=10, now=jobs.now) for job in (jobs.submission(), accepted)]
    )
    assert isinstance(answers[0], MemoryHigh)
    assert isinstance(answers[1], Accepted), "what was accepted before is still answered"


def test_with_a_full_redis_a_job_runs_to_its_end(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    fill(jobs)
    jobs.worker()
    assert jobs.take_message() == job_id
    assert jobs.claim(job_id).attempt == 1
    assert jobs.renew(job_id) is Standing.OK
    assert jobs.progress(job_id, op=1, step=1, steps=2) is Standing.OK
    assert jobs.finish(job_id, data={"artifacts": [], "record": {"prompt": LONG_PROMPT}}) is Ended.COMPLETED
    assert jobs.take(call="1") == [job_id]
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    assert jobs.run(transitions.applied(job_id, seq=seq, now=jobs.now)) is Applied.APPLIED
    assert jobs.state(job_id) is State.COMPLETED


def reap(jobs: TimedJobs) -> None:
    lapsed = jobs.running()
    jobs.reap_until(jobs.now + transitions.LEASE_MS)
    fill(jobs)
    jobs.now += 1
    assert jobs.reap() == [lapsed]


def sweep(jobs: TimedJobs) -> None:
    lost = jobs.submit()
    jobs.take_message()
    fill(jobs)
    jobs.now += transitions.SWEEP_AGE_MS
    assert jobs.sweep() == [lost]


def expire(jobs: TimedJobs) -> None:
    late = jobs.submit(start_deadline=jobs.now)
    fill(jobs)
    assert jobs.expire() == [late]


def promote(jobs: TimedJobs) -> None:
    due = jobs.running()
    fill(jobs)
    assert jobs.retry(due, delay_ms=0) is Ended.PENDING
    assert jobs.promote() == [due]


def release(jobs: TimedJobs) -> None:
    running = jobs.running()
    fill(jobs)
    assert jobs.release(running, Reason.DRAIN) is Ended.PENDING


def cancel(jobs: TimedJobs) -> None:
    waiting, running = jobs.submit(), jobs.running()
    fill(jobs)
    assert jobs.cancel(waiting).receipt is Receipt.DEQUEUED
    assert jobs.cancel(running).receipt is Receipt.INTERRUPTING


def announce(jobs: TimedJobs) -> None:
    fill(jobs)
    assert jobs.run(transitions.announce("another", models=["sd"], now=jobs.now)) == "ok"


def load_scripts(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    fill(jobs)
    jobs.redis.script_flush()
    assert jobs.claim(job_id).attempt == 1


@pytest.mark.parametrize("name", sorted(set(scripts()) - {"accept", "view", "inspect", "inspect_delivery", "observe"}))
def test_every_script_that_writes_begins_with_what_is_never_refused(name: str) -> None:
    folder = resources.files("darkroom") / "lua"
    lines = (folder / f"{name}.lua").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("--")) == "may_always_run()"


@pytest.mark.parametrize("work", [reap, sweep, expire, promote, release, cancel, announce, load_scripts])
def test_with_a_full_redis_all_but_accepting_goes_on(jobs: TimedJobs, work: Callable[[TimedJobs], None]) -> None:
    jobs.reap_until(jobs.now + transitions.LEASE_MS)
    work(jobs)


def test_jobs_that_end_make_room_for_others(jobs: TimedJobs) -> None:
    event = {"type": "dev.darkroom.job.requested", "data": {"prompt": LONG_PROMPT}}
    submitted = [jobs.submit(event=event) for _ in range(20)]
    jobs.redis.config_set("maxmemory", used(jobs) - 500_000)
    with pytest.raises(MemoryHigh):
        offer(jobs, jobs.submission())
    for job_id in submitted:
        jobs.start(job_id, token=job_id)
        jobs.finish(job_id, token=job_id)
    assert not offer(jobs, jobs.submission()).repeated


async def test_memory_is_high_above_four_fifths_of_its_limit(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    jobs.submit()
    unlimited = await ledger.memory()
    assert (unlimited.limit, unlimited.high) == (0, False)
    jobs.redis.config_set("maxmemory", used(jobs) * 10)
    assert not (await ledger.memory()).high
    jobs.redis.config_set("maxmemory", used(jobs) * 10 // 9)
    assert (await ledger.memory()).high


@pytest.mark.parametrize(
    ("used_bytes", "limit", "high"), [(80, 100, False), (81, 100, True), (200, 100, True), (81, 0, False)]
)
def test_the_line_is_at_eighty_of_a_hundred(used_bytes: int, limit: int, high: bool) -> None:
    assert Memory(used_bytes, limit).high is high


def test_the_list_of_the_pool_is_filled_with_a_full_redis(jobs: TimedJobs) -> None:
    submitted = [jobs.submit() for _ in range(3)]
    fill(jobs)
    jobs.start(submitted[0])
    assert jobs.listed() == submitted[1:2]
    assert jobs.members("waiting") == set(submitted[2:])

"""A tenant's stream: the entries of all job logs except progress, in one order, as long as it is stored."""

from __future__ import annotations

from darkroom.jobs import JobEvent, State
from darkroom.ledger import calls, reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import STREAM_START_ID

from tests.core.timed_jobs import TENANT, TimedJobs


async def test_the_tenant_stream_has_the_logs_without_progress(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    one = jobs.running()
    other = jobs.submit()
    jobs.progress(one, op=1, step=1, steps=4)
    jobs.retry(one, delay_ms=0)
    jobs.cancel(other)
    jobs.claim(one, token="second")
    jobs.finish(one, token="second")
    events = await reads.tenant_stream(ledger, TENANT, after=STREAM_START_ID, limit=100)
    assert [(item.entry.job_id, item.entry.event) for item in events] == [
        (one, JobEvent.ACCEPTED),
        (one, JobEvent.STARTED),
        (other, JobEvent.ACCEPTED),
        (one, JobEvent.RETRIED),
        (other, JobEvent.CANCELLED),
        (one, JobEvent.STARTED),
        (one, JobEvent.COMPLETED),
    ]
    logs = {job_id: await reads.log(ledger, job_id) for job_id in (one, other)}
    for item in events:
        (logged,) = [entry for entry in logs[item.entry.job_id] if entry.seq == item.entry.seq]
        assert (item.entry.event_id, item.entry.state, item.entry.at) == (logged.event_id, logged.state, logged.at)
        assert item.is_whole
        if logged.state.is_terminal:
            assert item.entry == logged


async def test_the_tenant_stream_is_read_on_from_a_position(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    assert await reads.stream_head(ledger, TENANT) == STREAM_START_ID
    job_ids = [jobs.submit() for _ in range(5)]
    first = await reads.tenant_stream(ledger, TENANT, after=STREAM_START_ID, limit=2)
    rest = await reads.tenant_stream(ledger, TENANT, after=first[-1].position, limit=10)
    assert [item.entry.job_id for item in [*first, *rest]] == job_ids
    assert await reads.stream_head(ledger, TENANT) == rest[-1].position
    assert await reads.has_stream_entry(ledger, TENANT, first[0].position)
    assert not await reads.has_stream_entry(ledger, TENANT, "1-0")
    assert await reads.tenant_stream(ledger, TENANT, after=rest[-1].position, limit=10) == []


async def test_words_of_a_later_version_are_ignored(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job_id = jobs.submit()
    jobs.redis.xadd(jobs.key("news", TENANT), {"entry": f"{job_id} 2 paused resting {jobs.now} gpu-1", "node": "gpu-1"})
    *_, last = await reads.tenant_stream(ledger, TENANT, after=STREAM_START_ID, limit=10)
    assert (last.entry.job_id, last.entry.seq, last.entry.event, last.entry.at) == (job_id, 2, "paused", jobs.now)


async def test_each_tenant_has_a_stream_of_its_own(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    own, anothers = jobs.submit(), jobs.submit(tenant="stranger")
    for tenant, job_id in ((TENANT, own), ("stranger", anothers)):
        events = await reads.tenant_stream(ledger, tenant, after=STREAM_START_ID, limit=10)
        assert [item.entry.job_id for item in events] == [job_id]


async def test_a_refusal_and_a_repeat_are_not_in_the_stream(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    head = await reads.stream_head(ledger, TENANT)
    jobs.finish(job_id)
    jobs.cancel(job_id)
    assert await reads.stream_head(ledger, TENANT) == head


async def test_the_stream_has_no_data_of_a_deleted_job(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    jobs.run(calls.delete_job(job_id, tenant=TENANT))
    *_, end = await reads.tenant_stream(ledger, TENANT, after=STREAM_START_ID, limit=10)
    assert (end.entry.job_id, end.entry.state, end.entry.data, end.is_whole) == (job_id, State.COMPLETED, {}, False)


async def test_the_stream_is_bounded(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    """Redis removes whole nodes of a hundred entries, so a few more are there at times."""
    key = f"{jobs.namespace}:news:{TENANT}"
    pipeline = jobs.redis.pipeline(transaction=False)
    for number in range(12_000):
        pipeline.xadd(key, {"entry": f"x {number} accepted pending 0"})
    pipeline.execute()
    job_id = jobs.submit()
    assert 10_000 <= jobs.redis.xlen(key) <= 10_200
    head = await reads.stream_head(ledger, TENANT)
    assert await reads.has_stream_entry(ledger, TENANT, head)
    (newest,) = jobs.redis.xrevrange(key, count=1)
    assert newest[1][b"entry"].decode().startswith(f"{job_id} 1 ")

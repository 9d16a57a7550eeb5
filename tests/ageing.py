"""What happens to a finished job over time, done at once: it is archived, and later expires in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from darkroom.history.store import PastJob
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Archived
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.databases import opened
from tests.driven_jobs import DrivenJobs


def archive(jobs: DrivenJobs, redis_url: str, database_url: str, job_ids: Sequence[str]) -> None:
    """Write the jobs to the history and mark them as archived."""

    async def write() -> None:
        client = connect_async(redis_url)
        ledger = AsyncLedger(client, jobs.namespace)
        records = [record for record in await ledger.jobs(job_ids, tenant=None) if record is not None]
        logs = await reads.logs(ledger, job_ids)
        async with opened(database_url) as history:
            await history.write([PastJob.of(record, log) for record, log in zip(records, logs, strict=True)])
        await client.aclose()

    asyncio.run(write())
    for job_id in job_ids:
        assert jobs.run(calls.mark_archived(job_id, seq=jobs.end_seq(job_id))) is Archived.ARCHIVED


def forget(jobs: DrivenJobs, job_ids: Sequence[str]) -> None:
    """Delete the records and logs, as their time to live does. The tenant's index still names the jobs for a while."""
    for job_id in job_ids:
        jobs.redis.delete(f"{jobs.namespace}:job:{job_id}", f"{jobs.namespace}:log:{job_id}")
        jobs.redis.zrem(f"{jobs.namespace}:outbox", job_id)

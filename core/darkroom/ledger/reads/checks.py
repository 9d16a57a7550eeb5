"""Reads of the audit and the doctor: whole key spaces a slice at a time, and fields of records that nothing else needs.

SCAN may return a name twice, and may miss one that is added meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from darkroom.ledger.client import AsyncLedger

SLICE = 100
"""Names, members or fields of one slice: reading the jobs of one takes Redis 5 ms at most, while others wait."""


@dataclass(frozen=True)
class OutboxLeases:
    """The leases of a finished job in a queue of the outbox: when it finished (ms), how often it was leased, and the
    number of the last lease that the other side refused (0: none).
    """

    finished: int | None
    leases: int
    refused: int


def job_ids(ledger: AsyncLedger) -> AsyncIterator[list[str]]:
    """The ids of all jobs that have a record."""
    return names(ledger, ledger.keys.job(""), kind="hash")


def names(ledger: AsyncLedger, prefix: str, *, kind: str) -> AsyncIterator[list[str]]:
    """What follows `prefix` in the names of keys of this Redis type."""
    return _slices(ledger, ("SCAN",), ("MATCH", f"{prefix}*", "TYPE", kind), prefix=prefix)


def members(ledger: AsyncLedger, key: str) -> AsyncIterator[list[str]]:
    """The members of a sorted set."""
    return _slices(ledger, ("ZSCAN", key), width=2)


def fields(ledger: AsyncLedger, key: str) -> AsyncIterator[list[str]]:
    """The names of a hash's fields."""
    return _slices(ledger, ("HSCAN", key), width=2)


async def _slices(
    ledger: AsyncLedger, scan: tuple[str, ...], options: tuple[str, ...] = (), *, width: int = 1, prefix: str = ""
) -> AsyncIterator[list[str]]:
    cursor = 0
    while True:
        reply = await ledger.ask(*scan, cursor, *options, "COUNT", SLICE)
        cursor, found = int(reply[0]), [name.decode().removeprefix(prefix) for name in reply[1][::width]]
        for start in range(0, len(found), SLICE):  # a small collection comes whole, whatever COUNT is
            yield found[start : start + SLICE]
        if cursor == 0:
            return


async def vanished_jobs(ledger: AsyncLedger, job_ids: Sequence[str], *, tenant: str) -> list[str]:
    """Those of the tenant's jobs that are in its index and have neither a record nor a time to live that has ended."""
    keys = ledger.keys
    replies = await ledger.ask_each(
        [
            ("MULTI",),
            *(("EXISTS", keys.job(job_id)) for job_id in job_ids),
            *(("ZSCORE", keys.retired, f"{job_id} {tenant}") for job_id in job_ids),
            *(("ZSCORE", keys.tenant(tenant), job_id) for job_id in job_ids),
            ("EXEC",),
        ]
    )
    at_once, count = replies[-1], len(job_ids)
    return [
        job_id
        for job_id, exists, retired, indexed in zip(
            job_ids, at_once[:count], at_once[count : 2 * count], at_once[2 * count :], strict=True
        )
        if not exists and retired is None and indexed is not None
    ]


async def busy_jobs(ledger: AsyncLedger, workers: Sequence[str]) -> list[tuple[str, str]]:
    """The workers that run a job, each with the job."""
    jobs = await ledger.ask("HMGET", ledger.keys.busy, *workers)
    return [(worker, job.decode()) for worker, job in zip(workers, jobs, strict=True) if job is not None]


async def queued_messages(ledger: AsyncLedger, pool: str) -> list[bytes]:
    """The messages in the pool's Celery queue, which is short."""
    messages: list[bytes] = await ledger.ask("LRANGE", ledger.keys.queue(pool), 0, -1)
    return messages


async def job_time(ledger: AsyncLedger, job_id: str, field: str) -> int | None:
    """The time (ms) that is `field` of a job's record; None where it has none."""
    at = await ledger.ask("HGET", ledger.keys.job(job_id), field)
    return int(at) if at else None


async def outbox_leases(ledger: AsyncLedger, job_ids: Sequence[str], *, kind: str) -> list[OutboxLeases]:
    """The leases of these jobs in the queue `kind`, `relay` or `history`, in one round trip."""
    names = ("ended", f"{kind}_takes", f"{kind}_refused")
    replies = await ledger.ask_each([("HMGET", ledger.keys.job(job_id), *names) for job_id in job_ids])
    return [
        OutboxLeases(int(finished) if finished else None, int(leases or 0), int(refused or 0))
        for finished, leases, refused in replies
    ]

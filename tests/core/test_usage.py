"""Usage, on SQLite and on a real PostgreSQL: its sums are those of the history, however they are grouped."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from darkroom.access.principals import CredentialKind
from darkroom.database import migrations
from darkroom.database.migrations import migrate
from darkroom.errors import InvalidInput
from darkroom.history.store import History, PastJob
from darkroom.history.usage import DAY_MS, MAX_DAYS, Dimension, UsageQuery, UsageReports, UsageRow
from darkroom.jobs import State
from darkroom.ledger.calls import ReleaseReason
from darkroom.ledger.records import JobRecord
from darkroom.trail.entries import Entry
from darkroom.trail.store import TrailStore
from pydantic import SecretStr
from sqlalchemy import Connection, text

from tests.core.test_history import past, record
from tests.core.timed_jobs import TimedJobs
from tests.databases import Database, opened

FIRST = date(2026, 11, 28)
START_MS = (FIRST - date(1970, 1, 1)).days * DAY_MS
DAYS = 4

TENANTS, KEYS, MODELS = ("studio", "agency"), ("key-1", "key-2", None), ("sd", "flux")
SLUGS = ("backlog-full", "invalid-input", "model-not-permitted")


@pytest.fixture
async def history(database: Database) -> AsyncIterator[History]:
    async with opened(database.url) as history:
        yield history


def jobs_of(seed: int, number: int) -> list[PastJob]:
    draw = random.Random(seed)
    made = []
    for _ in range(number):
        state = draw.choice([State.COMPLETED, State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED])
        # Also at the first and the last millisecond of a day.
        day, moment = draw.randrange(DAYS), draw.choice([0, DAY_MS - 1, draw.randrange(DAY_MS)])
        artifacts = [{"key": str(number)} for number in range(draw.randrange(4))]
        made.append(
            past(
                tenant=draw.choice(TENANTS),
                key_id=draw.choice(KEYS),
                model=draw.choice(MODELS),
                state=state,
                ended=START_MS + day * DAY_MS + moment,
                gpu_ms=draw.choice([0, draw.randrange(10**9)]),
                end_data={"artifacts": artifacts} if state is State.COMPLETED else {"error": {}},
            )
        )
    return made


def refusals_of(seed: int, number: int) -> list[Entry]:
    draw = random.Random(seed)
    made = []
    for index in range(number):
        key = draw.choice(KEYS)
        made.append(
            Entry(
                uid=f"uid-{seed}-{index}",
                at=START_MS + draw.randrange(DAYS * DAY_MS),
                tenant=draw.choice(TENANTS),
                actor=key or "anonymous",
                kind=(CredentialKind.KEY if key else CredentialKind.NONE).value,
                operation=draw.choice(["submitJob", "submitEvents", "submitToModel"]),
                object=draw.choice((*MODELS, "")),
                outcome=draw.choice(SLUGS),
                status=draw.choice([403, 422, 429]),
                count=draw.randrange(1, 50),
            )
        )
    return made


def day_of(at: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=at // DAY_MS)).isoformat()


def expected(
    jobs: Sequence[JobRecord], refused: Sequence[Entry], query: UsageQuery
) -> dict[tuple[str, ...], tuple[int, int, int, Counter[str]]]:
    """The report, computed from the records themselves."""
    found: dict[tuple[str, ...], tuple[int, int, int, Counter[str]]] = {}

    def add(values: dict[Dimension, str], jobs: int, images: int, gpu_ms: int, refusals: Counter[str]) -> None:
        if not query.first.isoformat() <= values[Dimension.DAY] <= query.last.isoformat():
            return
        wanted = {Dimension.TENANT: query.tenant, Dimension.KEY: query.key, Dimension.MODEL: query.model}
        if any(value is not None and values[each] != value for each, value in wanted.items()):
            return
        group = tuple(values[each] for each in query.group_by)
        before = found.get(group, (0, 0, 0, Counter()))
        found[group] = (before[0] + jobs, before[1] + images, before[2] + gpu_ms, before[3] + refusals)

    for job in jobs:
        assert job.ended is not None
        values = (job.tenant, job.key_id or "", job.model, day_of(job.ended))
        images = len((job.end_data or {}).get("artifacts", ())) if job.state is State.COMPLETED else 0
        add(dict(zip(Dimension, values, strict=True)), 1, images, job.gpu_ms, Counter())
    for entry in refused:
        key = "" if entry.kind == CredentialKind.NONE else entry.actor
        values = (entry.tenant, key, entry.object, day_of(entry.at))
        add(dict(zip(Dimension, values, strict=True)), 0, 0, 0, Counter({entry.outcome: entry.count}))
    return found


def by_group(rows: Sequence[UsageRow], query: UsageQuery) -> dict[tuple[str, ...], tuple[int, int, int, Counter[str]]]:
    return {
        tuple(row.group[each] for each in query.group_by): (row.jobs, row.images, row.gpu_ms, row.refusals)
        for row in rows
    }


PARTITIONS = [group for size in range(5) for group in itertools.combinations(Dimension, size)]


@pytest.mark.parametrize("seed", range(3))
async def test_the_sums_of_every_partition_are_those_of_the_history(seed: int, history: History) -> None:
    """Of every subset of the dimensions, under every filter: 16 partitions, 24 filters."""
    jobs, refused = jobs_of(seed, 120), refusals_of(seed, 60)
    await history.write(jobs)
    accepted = replace(refused[0], uid="accepted", outcome="ok", status=202)
    read = replace(refused[0], uid="other", operation="cancelJob", status=404)
    await TrailStore(history, "one").append([*refused[:30], accepted, read], now=START_MS)
    await TrailStore(history, "two").append(refused[30:], now=START_MS)
    for job in jobs[:20]:
        await history.write_tombstone(job.record, now=START_MS)
    unwritten = jobs_of(seed + 100, 5)
    for job in unwritten:  # deleted before the courier archived them
        await history.write_tombstone(job.record, now=START_MS)
        await history.write([job])
    records = [job.record for job in (*jobs, *unwritten)]
    reports = UsageReports(history)

    last = FIRST + timedelta(days=DAYS - 1)
    for group_by in PARTITIONS:
        query = UsageQuery(FIRST, last, group_by=group_by)
        rows = await reports.report(query)
        assert by_group(rows, query) == expected(records, refused, query)
        assert sum(row.jobs for row in rows) == len(records)
        assert sum(row.gpu_ms for row in rows) == sum(each.gpu_ms for each in records)
        assert sum(row.refusals.total() for row in rows) == sum(entry.count for entry in refused)
    days = [(FIRST, FIRST), (FIRST + timedelta(days=1), last)]
    for tenant, key, model, (first, to) in itertools.product((None, "studio"), (None, "key-1", ""), (None, "sd"), days):
        query = UsageQuery(first, to, tenant=tenant, key=key, model=model)
        assert by_group(await reports.report(query), query) == expected(records, refused, query)


async def test_no_usage_is_no_rows(history: History) -> None:
    reports = UsageReports(history)
    assert await reports.report(UsageQuery(FIRST, FIRST)) == []
    (total,) = await reports.report(UsageQuery(FIRST, FIRST, group_by=()))
    assert (total.jobs, total.images, total.gpu_ms) == (0, 0, 0)
    assert await reports.report(UsageQuery(FIRST, FIRST, key="\0")) == []


def test_days_must_be_in_order_and_not_too_many() -> None:
    UsageQuery(FIRST, FIRST + timedelta(days=MAX_DAYS - 1))
    for last in (FIRST - timedelta(days=1), FIRST + timedelta(days=MAX_DAYS)):
        with pytest.raises(InvalidInput):
            UsageQuery(FIRST, last)


def test_the_gpu_time_of_a_job_is_that_of_all_its_attempts(timed_jobs: TimedJobs) -> None:
    """To the millisecond that of its log."""
    jobs = timed_jobs
    job_id = jobs.running()
    jobs.now += 1_234
    jobs.retry(job_id, delay_ms=10)
    jobs.now += 5_000
    jobs.promote()
    jobs.start(job_id, token="second")
    jobs.now += 77
    jobs.release(job_id, ReleaseReason.DRAIN, token="second")
    jobs.now += 9_999
    jobs.start(job_id, token="third")
    jobs.now += 1
    jobs.cancel(job_id)
    jobs.now += 10_000
    jobs.finish(job_id, token="third")

    record = jobs.record(job_id)
    assert record is not None
    assert record.gpu_ms == 1_234 + 77 + 10_001


@pytest.fixture
def timed_jobs(redis_url: str, namespace: str) -> Any:
    jobs = TimedJobs(redis_url, namespace)
    yield jobs
    jobs.close()


async def test_jobs_that_an_earlier_version_archived_are_counted(database: Database) -> None:
    """The migration computes their sums from the log entries of their attempts."""
    history = History(SecretStr(database.url))

    def to_0003(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", migrations.FOLDER)
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")

    attempts = [
        {"seq": 2, "event": "started", "state": "running", "at": START_MS, "data": {}},
        {"seq": 3, "event": "retried", "state": "pending", "at": START_MS + 1_500, "data": {}},
        {"seq": 4, "event": "started", "state": "running", "at": START_MS + 4_000, "data": {}},
        {"seq": 5, "event": "cancelling", "state": "running", "at": START_MS + 5_000, "data": {}},
    ]
    async with history.alone() as connection:
        await connection.run_sync(to_0003)
        for number in range(3):
            job = record(state=State.COMPLETED, ended=START_MS + 6_000)
            await connection.execute(
                text(
                    "INSERT INTO jobs (id, tenant, state, ended, model, input, end_data, attempts)"
                    " VALUES (:id, :tenant, 'completed', :ended, 'sd', '{}', :end_data, :attempts)"
                ),
                {
                    "id": job.id if database.url.startswith("postgresql") else job.id.replace("-", ""),
                    "tenant": f"tenant-{number}",
                    "ended": job.ended,
                    "end_data": json.dumps({"artifacts": [{}] * number}),
                    "attempts": json.dumps(attempts if number else []),
                },
            )
    await migrate(history)

    query = UsageQuery(FIRST, FIRST, group_by=(Dimension.TENANT,))
    rows = by_group(await UsageReports(history).report(query), query)
    await history.aclose()
    assert rows == {
        ("tenant-0",): (1, 0, 0, Counter()),
        ("tenant-1",): (1, 1, 3_500, Counter()),
        ("tenant-2",): (1, 2, 3_500, Counter()),
    }

"""The history of finished jobs, on SQLite and on a real PostgreSQL: writes, reads, deletion and migrations."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from darkroom.access import schema as access_schema
from darkroom.database.client import metadata
from darkroom.database.migrations import migrate
from darkroom.errors import HistoryUnavailable, SettingError
from darkroom.history.store import History, PastJob, Tombstone
from darkroom.jobs import JobEvent, State, new_job_id
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Archived, Call, Deleted, ReleaseReason
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import FIELDS, JobRecord, LogEntry
from darkroom.settings import HistorySettings, load
from darkroom.trail import schema as trail_schema
from pydantic import SecretStr
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from tests.core.timed_jobs import TENANT, TimedJobs
from tests.databases import Database, opened

ENDED = 1_800_000_000_000
DAY_MS = 24 * 3600 * 1000

ENDS = [state for state in State if state.is_terminal]


@pytest.fixture
async def history(database: Database) -> AsyncIterator[History]:
    """An empty history with its table."""
    async with opened(database.url) as history:
        yield history


@pytest.fixture
def timed_jobs(redis_url: str, namespace: str) -> Any:
    jobs = TimedJobs(redis_url, namespace)
    yield jobs
    jobs.close()


def record(**more: Any) -> JobRecord:
    """A finished job; `more` are fields of its record."""
    job_id = more.pop("id", None) or new_job_id(ENDED + random.randrange(DAY_MS))
    fields: dict[str, Any] = {field.name: field.absent for field in FIELDS}
    fields |= {
        "id": job_id,
        "tenant": TENANT,
        "model": "sd",
        "pool": "local",
        "state": State.COMPLETED,
        "input": {"prompt": "a lighthouse at dusk", "seed": 7},
        "fields": {"user_id": "anna"},
        "created": ENDED - 2_000,
        "started": ENDED - 1_000,
        "ended": ENDED,
        "attempt": 1,
        "counted": 0,
        "max_attempts": 3,
        "priority": 5,
        "run_timeout": 600.0,
        "worker": "one",
        "progress": 100,
        "step": 4,
        "steps": 4,
        "seq": 3,
        "end_seq": 3,
        "end_data": {"artifacts": []},
    }
    return JobRecord(**{**fields, **more})


def past(**more: Any) -> PastJob:
    of = record(**more)
    return PastJob.of(of, [LogEntry(of.id, 2, JobEvent.STARTED, State.RUNNING, ENDED - 1_000, {"attempt": 1})])


# What is kept


async def ended_jobs(jobs: TimedJobs) -> list[str]:
    """A job for each way to finish."""
    completed = jobs.running(start_deadline=jobs.now + 60_000, priority=9, traceparent="00-trace")
    for step in range(1, 5):
        jobs.progress(completed, op=step, step=step, steps=4)
    jobs.finish(completed, data={"artifacts": [], "record": {"torch": "2.13.0", "large": 2**60}, "list": []})
    failed = jobs.running(input={"prompt": "U+0000 \0, é, 画"}, fields={})
    jobs.retry(failed, delay_ms=0)
    jobs.promote()
    jobs.start(failed, token="second")
    jobs.release(failed, ReleaseReason.DRAIN, token="second")
    jobs.start(failed)
    jobs.finish(failed, outcome=State.FAILED)
    dequeued, interrupted = jobs.submit(), jobs.running()
    jobs.cancel(dequeued)
    jobs.cancel(interrupted)
    jobs.finish(interrupted)
    expired = jobs.submit(start_deadline=jobs.now + 1)
    jobs.now += 2
    assert jobs.expire() == [expired]
    return [completed, failed, dequeued, interrupted, expired]


async def test_a_job_is_read_back_as_the_ledger_had_it(history: History, timed_jobs: TimedJobs, redis_url: str) -> None:
    client = connect_async(redis_url)
    ledger = AsyncLedger(client, timed_jobs.namespace)
    job_ids = await ended_jobs(timed_jobs)
    found = [of for of in await ledger.jobs(job_ids, tenant=TENANT) if of is not None]
    logs = await reads.logs(ledger, job_ids)
    await client.aclose()
    assert {of.state for of in found} == set(ENDS)
    await history.write([PastJob.of(of, log) for of, log in zip(found, logs, strict=True)])
    for of, log in zip(found, logs, strict=True):
        job = await history.job(of.id, tenant=TENANT)
        assert isinstance(job, PastJob)
        absent: dict[str, Any] = {each.name: each.absent for each in FIELDS if not each.in_history}
        assert job.record == replace(of, **absent)
        assert job.record.end == log[-1]
        dropped = {JobEvent.ACCEPTED, JobEvent.PROGRESSED}
        assert list(job.log) == [entry for entry in log if entry.event not in dropped]


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING])
def test_an_unfinished_job_cannot_be_archived(state: State) -> None:
    living = record(state=state, ended=None, end_seq=None, end_data=None)
    with pytest.raises(ValueError, match="is not terminal"):
        PastJob.of(living, [])


async def test_a_second_write_has_no_effect(history: History) -> None:
    first, other = past(), past()
    await history.write([first])
    late = replace(first.record, state=State.FAILED, end_data={"error": {"kind": "transient", "message": "no"}})
    await history.write([other, PastJob.of(late, [])])
    assert await history.job(first.record.id, tenant=TENANT) == first
    assert await history.job(other.record.id, tenant=TENANT) == other


async def test_concurrent_writers_write_each_job_once(history: History, database: Database) -> None:
    jobs = [past() for _ in range(200)]
    async with opened(database.url) as another:
        backwards = jobs[::-1]
        await asyncio.gather(*(to.write(some) for to in (history, another) for some in (jobs, backwards)))
    page = await history.page(TENANT, limit=1_000)
    assert [of.id for of in page.jobs] == sorted((job.record.id for job in jobs), reverse=True)


async def test_a_batch_with_a_refused_job_is_rolled_back(history: History) -> None:
    """The refusal is no outage, after which a repetition would succeed."""
    good, bad = past(), past(fields={"user_id": ["no", "text"]})
    with pytest.raises(SQLAlchemyError):
        await history.write([good, bad])
    assert await history.job(good.record.id, tenant=TENANT) is None
    await history.write([good])


async def test_an_empty_batch_is_no_statement(history: History) -> None:
    await history.write([])
    await history.mark_cleared([], now=ENDED)


async def test_a_job_is_of_its_tenant_only(history: History) -> None:
    job = past(tenant="another")
    await history.write([job])
    assert await history.job(job.record.id, tenant=TENANT) is None
    assert (await history.page(TENANT, limit=10)).jobs == ()
    assert await history.job(job.record.id, tenant="another") == job


# Pages


async def test_pages_have_every_job_once_newest_first_with_every_filter(history: History) -> None:
    dice = random.Random(3)
    users = [{"user_id": "anna"}, {"user_id": "ben"}, {}]
    jobs = [
        past(state=dice.choice(ENDS), model=dice.choice(["sd", "flux"]), fields=dice.choice(users)) for _ in range(120)
    ]
    await history.write(jobs)
    newest_first = sorted((job.record for job in jobs), key=lambda of: of.id, reverse=True)
    for state in (None, State.FAILED, State.EXPIRED):
        for model in (None, "flux"):
            for user_id in (None, "anna", "unknown", "\0"):
                found: list[JobRecord] = []
                after: str | None = None
                while True:
                    page = await history.page(TENANT, limit=7, after=after, state=state, model=model, user_id=user_id)
                    found += page.jobs
                    after = page.after
                    if after is None:
                        break
                    assert len(page.jobs) == 7
                    assert after == page.jobs[-1].id
                assert found == [
                    of
                    for of in newest_first
                    if state in {None, of.state}
                    and model in {None, of.model}
                    and user_id in {None, of.fields.get("user_id")}
                ]


async def test_the_last_page_has_no_cursor(history: History) -> None:
    await history.write([past() for _ in range(3)])
    assert (await history.page(TENANT, limit=3)).after is None
    assert (await history.page(TENANT, limit=2)).after is not None


# Deletion


async def test_a_tombstone_replaces_a_job_without_its_content(history: History) -> None:
    job = past(state=State.FAILED, key_id="0123456789ab")
    await history.write([job])
    tombstone = await history.write_tombstone(job.record, now=ENDED + 5)
    assert tombstone == Tombstone(job.record.id, TENANT, State.FAILED, ENDED, ENDED + 5)
    assert await history.job(job.record.id, tenant=TENANT) == tombstone
    assert await history.job(job.record.id, tenant="another") is None
    assert (await history.page(TENANT, limit=10)).jobs == ()
    async with history.engine.connect() as connection:
        (row,) = (await connection.execute(text("SELECT * FROM jobs"))).mappings()
    kept = {name for name, value in row.items() if value is not None}
    assert kept == {"id", "tenant", "state", "ended", "deleted", "model", "key_id", "gpu_ms", "artifacts"}


async def test_the_first_tombstone_stays(history: History) -> None:
    of = record()
    first = await history.write_tombstone(of, now=ENDED + 5)
    assert await history.write_tombstone(replace(of, state=State.FAILED), now=ENDED + 9) == first


async def test_a_late_courier_does_not_restore_a_deleted_job(history: History) -> None:
    job = past()
    tombstone = await history.write_tombstone(job.record, now=ENDED)
    await history.write([job])
    assert await history.job(job.record.id, tenant=TENANT) == tombstone


async def test_concurrent_deletion_and_archiving_leave_a_tombstone(history: History) -> None:
    jobs = [past() for _ in range(40)]
    moves = [history.write([job]) for job in jobs] + [history.write_tombstone(job.record, now=ENDED) for job in jobs]
    random.Random(5).shuffle(moves)
    await asyncio.gather(*moves)
    for job in jobs:
        assert isinstance(await history.job(job.record.id, tenant=TENANT), Tombstone)


async def test_old_jobs_are_replaced_in_slices_the_oldest_first(history: History) -> None:
    jobs = [past(ended=ENDED + hour, tenant=random.choice(["a", "b"])) for hour in range(10)]
    await history.write(jobs)
    replaced = [await history.replace_older(ENDED + 7, limit=3, now=ENDED + 50) for _ in range(4)]
    assert [sorted(tombstone.ended - ENDED for tombstone in some) for some in replaced] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
        [],
    ]
    left = [of for tenant in "ab" for of in (await history.page(tenant, limit=10)).jobs]
    assert {of.ended for of in left} == {ENDED + 7, ENDED + 8, ENDED + 9}


async def test_a_deletion_is_unfinished_until_it_is_marked_as_cleared(history: History) -> None:
    first, second = record(), record()
    tombstones = [await history.write_tombstone(first, now=ENDED), await history.write_tombstone(second, now=ENDED + 1)]
    assert await history.unfinished(limit=10) == tombstones
    assert await history.unfinished(limit=1) == tombstones[:1]
    await history.mark_cleared([first.id], now=ENDED + 2)
    assert await history.unfinished(limit=10) == tombstones[1:]
    assert await history.job(first.id, tenant=TENANT) == tombstones[0]


# The database


async def test_the_migrations_make_the_table_that_the_code_has(history: History) -> None:
    tables = {access_schema.tenants.name, trail_schema.audit_trail.name}
    assert tables < metadata.tables.keys()

    def differences(connection: Connection) -> Any:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    async with history.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        # autogenerate compares neither partial indexes nor checks
        if connection.dialect.name == "sqlite":
            made = {row.name: row.sql for row in await connection.execute(text("SELECT name, sql FROM sqlite_master"))}
            assert made["jobs_by_tenant"].endswith("WHERE deleted IS NULL")
            assert made["jobs_unfinished"].endswith("WHERE deleted IS NOT NULL AND cleared IS NULL")
            assert "CHECK ((deleted IS NULL) = (input IS NOT NULL))" in made["jobs"]


async def test_migrations_may_run_concurrently_and_repeatedly(database: Database) -> None:
    histories = [History(SecretStr(database.url)) for _ in range(6)]
    assert set(await asyncio.gather(*(migrate(history) for history in histories))) == {"0004"}
    assert await migrate(histories[0]) == "0004"
    await histories[0].write([past()])
    for history in histories:
        await history.aclose()


async def test_a_database_that_a_newer_version_has_changed_is_left_as_it_is(history: History) -> None:
    async with history.engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert await migrate(history) == "9999"
    await history.write([past()])


async def test_without_its_table_the_history_is_unavailable(database: Database) -> None:
    history = History(SecretStr(database.url))
    with pytest.raises(HistoryUnavailable):
        await history.job(record().id, tenant=TENANT)
    await history.aclose()


async def test_an_unavailable_database_is_reported_until_it_is_back(history: History, database: Database) -> None:
    job = past()
    with database.away():
        with pytest.raises(HistoryUnavailable) as caught:
            await history.write([job])
        assert caught.value.detail == "the database of finished jobs is unavailable"
    await history.ping()
    await history.write([job])
    assert await history.job(job.record.id, tenant=TENANT) == job


async def test_an_absent_database_is_unavailable(database: Database) -> None:
    history = History(SecretStr(database.url))
    with database.absent(), pytest.raises(HistoryUnavailable):
        await history.ping()
    await history.ping()
    await history.aclose()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite+aiosqlite:////data/jobs.sqlite", "sqlite+aiosqlite:////data/jobs.sqlite"),
        ("sqlite:///jobs.sqlite", "sqlite+aiosqlite:///jobs.sqlite"),
        ("postgresql+asyncpg://u:p@h:5432/d?ssl=require", "postgresql+asyncpg://u:p@h:5432/d?ssl=require"),
        ("postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql:///d?host=/run/postgresql", "postgresql+asyncpg:///d?host=/run/postgresql"),
    ],
)
def test_an_address_may_leave_the_driver_out(monkeypatch: pytest.MonkeyPatch, given: str, used: str) -> None:
    monkeypatch.setenv("DARKROOM_DATABASE_URL", given)
    assert load(HistorySettings).database_url.get_secret_value() == used


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jobs.sqlite",
        "sqlite+aiosqlite://host/jobs.sqlite",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite://",
        "postgresql://user:secret@host",
        "postgresql+psycopg://user:secret@host/name",
        "mysql://user:secret@host/name",
    ],
)
def test_another_address_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DARKROOM_DATABASE_URL", url)
    with pytest.raises(SettingError, match=r"DARKROOM_DATABASE_URL=\(hidden\): is not a database such as") as caught:
        load(HistorySettings)
    assert "secret" not in caught.value.detail


def test_an_invalid_port_is_refused_when_the_part_starts() -> None:
    with pytest.raises(SettingError, match="DARKROOM_DATABASE_URL"):
        History(SecretStr("postgresql+asyncpg://user:secret@host:port/name"))


# What the ledger keeps until then


def lives_on(jobs: TimedJobs, job_id: str) -> tuple[bool, bool]:
    """Whether the record, and the log, have no time to live."""
    record_ttl, log_ttl = (jobs.redis.pttl(jobs.key(kind, job_id)) for kind in ("job", "log"))
    return record_ttl == -1, log_ttl == -1


@pytest.mark.parametrize("order", [("applied", "archived"), ("archived", "applied")], ids=" then ".join)
def test_a_time_to_live_starts_when_a_job_is_applied_and_archived(jobs: TimedJobs, order: tuple[str, str]) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    seq = jobs.record(job_id).seq
    marks: dict[str, Call[Any]] = {
        "applied": calls.mark_applied(job_id, seq=seq, now=jobs.now),
        "archived": calls.mark_archived(job_id, seq=seq, now=jobs.now),
    }
    for done in order:
        assert lives_on(jobs, job_id) == (True, True)
        assert [jobs.run(marks[done]) for _ in range(2)] == [done, "repeated"]
    assert 0 < jobs.redis.pttl(jobs.key("log", job_id)) <= 3600 * 1000
    assert 23 * 3600 * 1000 < jobs.redis.pttl(jobs.key("job", job_id)) <= 24 * 3600 * 1000


def test_only_the_written_terminal_entry_is_archived(jobs: TimedJobs) -> None:
    """After Redis lost data a job may finish again: the written terminal entry was another one."""
    living, ended = jobs.submit(), jobs.running()
    jobs.finish(ended)
    before = jobs.everything()
    for job_id, seq in ((living, 1), (ended, 2), ("unknown", 1)):
        assert jobs.run(calls.mark_archived(job_id, seq=seq, now=jobs.now)) is Archived.UNKNOWN
    assert jobs.everything() == before


def test_the_index_loses_a_job_with_its_record(jobs: TimedJobs) -> None:
    def retire() -> str:
        job_id = jobs.running()
        jobs.finish(job_id)
        jobs.run(calls.mark_applied(job_id, seq=3, now=jobs.now))
        jobs.run(calls.mark_archived(job_id, seq=3, now=jobs.now))
        return job_id

    old = retire()
    jobs.now += DAY_MS
    young = retire()
    assert jobs.redis.zrange(jobs.key("tenant", TENANT), 0, -1) == [young.encode()]
    assert old != young


def test_a_lease_of_the_history_is_exclusive_and_independent_of_the_relay(jobs: TimedJobs) -> None:
    ended = {jobs.finish(job_id) and job_id for job_id in [jobs.running(), jobs.running(), jobs.running()]}

    def lease(owner: str, call: str) -> list[str]:
        return jobs.run(calls.lease_history(owner=owner, call=call, limit=2, now=jobs.now))

    first, second = lease("one", "a"), lease("two", "b")
    assert (len(first), len(second)) == (2, 1)
    assert {*first, *second} == ended
    assert set(jobs.lease(owner="one", call="a")) == ended, "a relay of the same courier is another matter"
    assert lease("one", "a") == first, "the same call gets the same"
    assert lease("one", "c") == []
    jobs.now += calls.HISTORY_LEASE_MS
    jobs.run(calls.mark_archived(second[0], seq=3, now=jobs.now))
    assert set(lease("three", "d")) == set(first)
    jobs.run(calls.reschedule_history(first[0], delay_ms=500, now=jobs.now))
    assert lease("three", "e") == []
    jobs.now += 500
    assert lease("three", "f") == [first[0]]


@pytest.mark.parametrize("state", State)
def test_delete_job_deletes_all_keys_of_a_terminal_job_and_none_of_another(jobs: TimedJobs, state: State) -> None:
    empty = jobs.everything()
    job_id = jobs.submit(start_deadline=jobs.now + 1 if state is State.EXPIRED else None)
    match state:
        case State.EXPIRED:
            jobs.now += 2
            jobs.expire()
        case State.CANCELLED:
            jobs.cancel(job_id)
        case State.RUNNING:
            jobs.start(job_id)
        case State.COMPLETED | State.FAILED:
            jobs.start(job_id)
            jobs.finish(job_id, outcome=state)
    before = jobs.everything()
    assert jobs.run(calls.delete_job(job_id, tenant="another", now=jobs.now)) is Deleted.GONE
    assert jobs.everything() == before
    for _ in range(2):
        answer = jobs.run(calls.delete_job(job_id, tenant=TENANT, now=jobs.now))
        assert answer is (Deleted.GONE if state.is_terminal else Deleted.LIVING)
    if state.is_terminal:
        # The pool and the tenant count what was given; that there was a job, and no more of it, stays in the news.
        aside = {jobs.key("pool", "local"), jobs.key("news", TENANT), jobs.ledger.keys.limits(TENANT)}
        left = {key: value for key, value in jobs.everything().items() if key not in aside}
        assert left == {key: value for key, value in empty.items() if key not in aside}
    else:
        assert jobs.everything() == before

"""The audit trail: its chain in SQL, on SQLite and on a real PostgreSQL, and its entries in the ledger."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from darkroom.errors import AuditFull
from darkroom.history.store import History
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted
from darkroom.trail.entries import EMPTY, GENESIS, TRUNCATED, UNKNOWN, Entry, Head, stored_text
from darkroom.trail.store import Break, TrailFilter, TrailStore
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.core.timed_jobs import TimedJobs
from tests.databases import Database, opened

AT = 1_800_000_000_000


@pytest.fixture
async def history(database: Database) -> AsyncIterator[History]:
    async with opened(database.url) as history:
        yield history


@pytest.fixture
def trail(history: History) -> TrailStore:
    return TrailStore(history, "darkroom")


@pytest.fixture
def timed_jobs(redis_url: str, namespace: str) -> Any:
    jobs = TimedJobs(redis_url, namespace)
    yield jobs
    jobs.close()


def entry(number: int, **more: Any) -> Entry:
    fields: dict[str, Any] = {
        "uid": f"uid-{number}",
        "at": AT + number,
        "tenant": "studio" if number % 2 else "agency",
        "actor": f"key-{number % 3}",
        "kind": "key",
        "operation": "cancelJob" if number % 4 else "createKey",
        "object": f"job-{number}",
        "outcome": "ok",
        "status": 200,
        "trace": "a" * 32,
    }
    return Entry(**{**fields, **more})


async def append(trail: TrailStore, entries: Sequence[Entry], published: Head | None = None) -> Head:
    return await trail.append(entries, published=published, now=AT)


async def tamper(history: History, *statements: str) -> None:
    """Change the tables as the owner of the database can: without the triggers."""
    async with history.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            for change in ("update", "delete"):
                await connection.execute(text(f"DROP TRIGGER IF EXISTS audit_trail_no_{change}"))
        else:
            await connection.execute(text("ALTER TABLE audit_trail DISABLE TRIGGER ALL"))
        for statement in statements:
            await connection.execute(text(statement))


async def cut(history: History, end: Head) -> None:
    """Remove what is behind this end, from both tables."""
    await tamper(
        history,
        f"DELETE FROM audit_trail WHERE seq > {end.seq}",  # noqa: S608 - a number
        f"UPDATE audit_heads SET seq = {end.seq}, digest = '{end.digest}'",  # noqa: S608 - hexadecimal digits
    )


# The chain


async def test_an_intact_chain_verifies(trail: TrailStore) -> None:
    first = await append(trail, [entry(number) for number in range(3)])
    last = await append(trail, [entry(3)], published=first)

    assert (first.seq, last.seq) == (3, 4)
    for published in (None, EMPTY, first, last):
        found = await trail.verify(published=published)
        assert found.is_intact
        assert (found.head, found.entries) == (last, 4)
    assert [chained.entry async for chained in trail.read()] == [entry(number) for number in range(4)]


async def test_the_hash_of_an_entry_is_that_of_its_canonical_form(trail: TrailStore) -> None:
    """As an auditor computes it from the exported entries, without this code."""
    await append(trail, [entry(0, object="é\u2028"), entry(1)])
    previous = GENESIS
    async for chained in trail.read():
        form = {**vars(chained.entry), "seq": chained.seq, "previous": previous}
        text = json.dumps(form, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(text.encode("ascii")).hexdigest()
        assert chained.digest == previous


async def test_an_entry_is_stored_once(trail: TrailStore) -> None:
    """As after a courier that was killed between its commit and Redis."""
    first = await append(trail, [entry(0), entry(1), entry(0)])
    again = await append(trail, [entry(0), entry(1), entry(2), entry(2)])

    assert (first.seq, again.seq) == (2, 3)
    assert (await trail.verify()).is_intact


async def test_concurrent_couriers_write_one_chain(trail: TrailStore) -> None:
    groups = [[entry(number) for number in range(start, start + 7)] for start in range(0, 42, 5)]
    await asyncio.gather(*(append(trail, group) for group in groups))

    found = await trail.verify()
    assert found.is_intact
    assert found.entries == 47


async def test_ledgers_that_share_a_database_have_a_chain_each(history: History) -> None:
    one, other = TrailStore(history, "one"), TrailStore(history, "other")
    await append(one, [entry(0), entry(1)])
    await append(other, [entry(0)])

    assert ((await one.verify()).entries, (await other.verify()).entries) == (2, 1)


CHANGES = {
    "a changed field": ("UPDATE audit_trail SET actor = 'stranger' WHERE seq = 4", 4),
    "a changed time": ("UPDATE audit_trail SET at = at + 1 WHERE seq = 4", 4),
    "a changed hash": ("UPDATE audit_trail SET digest = 'f' WHERE seq = 4", 4),
    "a removed row": ("DELETE FROM audit_trail WHERE seq = 4", 4),
    "removed rows": ("DELETE FROM audit_trail WHERE seq IN (2, 3, 6)", 2),
    "a removed first row": ("DELETE FROM audit_trail WHERE seq = 1", 1),
    "removed rows at the end": ("DELETE FROM audit_trail WHERE seq > 6", 7),
    "everything removed": ("DELETE FROM audit_trail", 1),
    "a row at the end": (
        "INSERT INTO audit_trail SELECT namespace, 9, 'forged', at, tenant, actor, kind, operation, object, outcome,"
        " status, trace, count, digest FROM audit_trail WHERE seq = 8",
        9,
    ),
    "a moved row": ("UPDATE audit_trail SET seq = 99 WHERE seq = 4", 4),
    "no end": ("DELETE FROM audit_heads", 8),
    "another end": ("UPDATE audit_heads SET digest = 'f'", 8),
}


@pytest.mark.parametrize(("statement", "seq"), CHANGES.values(), ids=CHANGES)
async def test_verification_names_the_first_broken_row(
    statement: str, seq: int, trail: TrailStore, history: History
) -> None:
    await append(trail, [entry(number) for number in range(8)])
    await tamper(history, statement)

    found = await trail.verify()

    assert not found.is_intact
    assert found.broken is not None
    assert found.broken.seq == seq


async def test_an_end_that_was_removed_in_both_tables_is_found_by_the_one_that_redis_has(
    trail: TrailStore, history: History
) -> None:
    before = await append(trail, [entry(number) for number in range(6)])
    published = await append(trail, [entry(6), entry(7)])
    await cut(history, before)

    assert (await trail.verify()).is_intact  # nothing else knows
    found = await trail.verify(published=published)
    assert found.broken == Break(7, "entries to 8 are missing at the end: Redis counts them")


async def test_the_courier_records_an_end_that_is_missing_before_it_goes_on(
    trail: TrailStore, history: History
) -> None:
    before = await append(trail, [entry(number) for number in range(6)])
    published = await append(trail, [entry(6), entry(7)])
    await cut(history, before)

    head = await append(trail, [entry(8)], published=published)
    again = await append(trail, [entry(9)], published=published)

    assert (head.seq, again.seq) == (8, 9)
    found = await trail.verify(published=again)
    assert found.broken is None
    assert not found.is_intact
    (truncation,) = found.truncations
    assert (truncation.seq, truncation.entry.operation) == (7, TRUNCATED)
    assert truncation.entry.object == f"8 {published.digest}"


async def test_a_chain_that_was_computed_anew_differs_from_the_end_that_redis_has(
    trail: TrailStore, history: History
) -> None:
    published = await append(trail, [entry(number) for number in range(4)])
    await tamper(history, "DELETE FROM audit_trail", "DELETE FROM audit_heads")
    await append(trail, [entry(number, actor="stranger") for number in range(4)])

    assert (await trail.verify()).is_intact
    found = await trail.verify(published=published)
    assert found.broken == Break(4, "its hash is not the one that Redis has")


async def test_the_database_refuses_changes(trail: TrailStore, history: History) -> None:
    await append(trail, [entry(0)])
    statements = ["UPDATE audit_trail SET actor = 'x'", "DELETE FROM audit_trail"]
    if history.engine.dialect.name == "postgresql":  # SQLite has no TRUNCATE
        statements.append("TRUNCATE audit_trail")
    for statement in statements:
        with pytest.raises(DBAPIError, match="append-only"):
            async with history.engine.begin() as connection:
                await connection.execute(text(statement))

    assert (await trail.verify()).is_intact


@given(st.text(max_size=300))
def test_every_text_can_be_stored_and_shown(given_text: str) -> None:
    stored = stored_text(given_text)
    assert stored.isprintable()
    assert len(stored) <= 200
    assert Entry.decode(entry(0, object=stored).encode()) == entry(0, object=stored)


# Lists


async def test_pages_are_newest_first_and_filtered(trail: TrailStore) -> None:
    await append(trail, [entry(number) for number in range(12)])

    first = await trail.page(TrailFilter(), limit=5)
    second = await trail.page(TrailFilter(), limit=5, after=first.after)
    third = await trail.page(TrailFilter(), limit=5, after=second.after)
    assert [chained.seq for page in (first, second, third) for chained in page.entries] == list(range(12, 0, -1))
    assert (first.after, second.after, third.after) == (8, 3, None)

    for wanted in (
        TrailFilter(tenant="studio"),
        TrailFilter(actor="key-1", operation="cancelJob"),
        TrailFilter(object="job-7"),
        TrailFilter(tenant="stranger"),
        TrailFilter(tenant="\0"),
    ):
        found = await trail.page(wanted, limit=100)
        assert [chained.entry for chained in reversed(found.entries)] == [
            each
            for each in map(entry, range(12))
            if all(value is None or getattr(each, name) == value for name, value in vars(wanted).items())
        ]


# The entries in the ledger


def collected(jobs: TimedJobs, **more: Any) -> list[Entry]:
    found = jobs.run(calls.collect_audit(limit=100, now=jobs.now, **more))
    return [Entry.decode(each) for each in found.entries]


def test_entries_are_collected_in_their_order_until_they_are_dropped(timed_jobs: TimedJobs) -> None:
    for number in range(5):
        assert timed_jobs.run(calls.append_audit({f"uid-{number}": entry(number).encode()}, now=timed_jobs.now))
    assert collected(timed_jobs) == [entry(number) for number in range(5)]
    assert len(timed_jobs.run(calls.collect_audit(limit=2)).entries) == 2

    timed_jobs.run(calls.drop_audit([entry(number).encode() for number in range(3)], seq=3, digest="abc"))

    assert collected(timed_jobs) == [entry(3), entry(4)]
    assert timed_jobs.run(calls.collect_audit(limit=1)).head == (3, "abc")


def test_an_operation_whose_process_ended_is_recorded_with_an_unknown_outcome(timed_jobs: TimedJobs) -> None:
    started = entry(0, outcome=UNKNOWN, status=0)
    timed_jobs.run(calls.append_audit({"uid-0": started.encode()}, is_open=True, now=timed_jobs.now))
    timed_jobs.run(calls.append_audit({"uid-1": started.encode()}, is_open=True, now=timed_jobs.now))
    timed_jobs.run(calls.append_audit({"uid-1": entry(1).encode()}, now=timed_jobs.now))

    assert collected(timed_jobs) == [entry(1)]
    timed_jobs.now += calls.ABANDONED_MS
    assert collected(timed_jobs) == [entry(1), started]


def test_an_accepted_job_is_recorded_with_it_and_a_repeat_is_not(timed_jobs: TimedJobs) -> None:
    job = timed_jobs.submission()
    for _ in range(2):
        call = calls.accept(job, backlog_limit=100, audit=entry(0).encode(), now=timed_jobs.now)
        assert isinstance(timed_jobs.run(call), Accepted)
    refused = calls.accept(timed_jobs.submission(pool="none"), backlog_limit=100, audit=entry(1).encode())
    assert not isinstance(timed_jobs.run(refused), Accepted)

    assert collected(timed_jobs) == [entry(0)]


def test_nothing_is_accepted_without_room_for_its_entry(timed_jobs: TimedJobs) -> None:
    timed_jobs.run(calls.append_audit({"open": entry(0).encode()}, is_open=True, now=timed_jobs.now))
    members = {replace(entry(number), object="x").encode(): number for number in range(100_000 - 1)}
    timed_jobs.redis.zadd(timed_jobs.ledger.keys.audit, members)

    job = timed_jobs.submission()
    refused = timed_jobs.run(calls.accept(job, backlog_limit=100, audit=entry(-1).encode(), now=timed_jobs.now))
    assert isinstance(refused, AuditFull)
    assert timed_jobs.ledger.job(job.job_id) is None
    for is_open in (True, False):
        assert not timed_jobs.run(calls.append_audit({"new": entry(-2).encode()}, is_open=is_open))
    # What was begun may end.
    assert timed_jobs.run(calls.append_audit({"open": entry(0).encode()}))

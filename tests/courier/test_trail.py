"""The courier and the audit trail: couriers as processes, on a real Redis, with SQLite and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from darkroom.access.credentials import Credential
from darkroom.ledger import calls
from darkroom.ledger.keys import Keys
from darkroom.trail.entries import INTERNAL, Entry, Head
from darkroom.trail.store import TrailStore, Verification

from tests.courier.conftest import Start
from tests.databases import Database, opened
from tests.driven_jobs import DrivenJobs
from tests.waiting import eventually

T = TypeVar("T")


class Trail:
    """The entries that wait in Redis, and those in SQL."""

    def __init__(self, jobs: DrivenJobs, database: Database) -> None:
        self.jobs = jobs
        self.keys = Keys(jobs.namespace)
        self._database = database
        self.settings = {"DARKROOM_DATABASE_URL": database.url, "DARKROOM_POLL_INTERVAL_S": "0.05"}

    def append(self, number: int) -> None:
        entry = Entry(f"uid-{number}", number, "studio", "key", "key", "cancelJob", f"job-{number}", "ok", 200)
        assert self.jobs.run(calls.append_audit({entry.uid: entry.encode()}))

    def waiting(self) -> int:
        return int(self.jobs.redis.zcard(self.keys.audit))

    def published(self) -> Head:
        seq, digest = self.jobs.redis.hmget(self.keys.audit_head, "seq", "digest")
        return Head(int(seq), digest.decode())

    def in_store(self, ask: Callable[[TrailStore], Awaitable[T]]) -> T:
        async def asked() -> T:
            async with opened(self._database.url) as database:
                return await ask(TrailStore(database, self.jobs.namespace))

        return asyncio.run(asked())

    def objects(self) -> list[str]:
        async def read(store: TrailStore) -> list[str]:
            return [chained.entry.object async for chained in store.read()]

        return self.in_store(read)

    def verification(self) -> Verification:
        published = self.published()
        return self.in_store(lambda store: store.verify(published=published))


@pytest.fixture
def trail(jobs: DrivenJobs, database: Database) -> Trail:
    return Trail(jobs, database)


def test_entries_are_stored_in_their_order_and_leave_redis(start: Start, trail: Trail) -> None:
    for number in range(1200):
        trail.append(number)
    courier = start(**trail.settings)
    eventually(lambda: trail.waiting() == 0, what="all to be stored")

    assert trail.objects() == [f"job-{number}" for number in range(1200)]
    found = trail.verification()
    assert found.is_intact
    assert found.head == trail.published()
    last = courier.said("audit_stored")[-1]
    assert (last["seq"], last["digest"]) == (found.head.seq, found.head.digest)


def test_two_couriers_store_every_entry_once(start: Start, trail: Trail) -> None:
    for _ in range(2):
        start(**trail.settings)
    for number in range(300):
        trail.append(number)
    eventually(lambda: trail.waiting() == 0, what="all to be stored")

    assert sorted(trail.objects()) == sorted(f"job-{number}" for number in range(300))
    assert trail.verification().is_intact


def test_a_killed_courier_loses_and_repeats_nothing(start: Start, trail: Trail) -> None:
    for number in range(3000):
        trail.append(number)
    courier = start(**trail.settings)
    eventually(lambda: trail.waiting() < 3000, what="a first batch")
    courier.signal(signal.SIGKILL)
    start(**trail.settings)
    eventually(lambda: trail.waiting() == 0, what="all to be stored")

    assert trail.objects() == [f"job-{number}" for number in range(3000)]
    assert trail.verification().is_intact


def test_entries_wait_while_the_database_is_unavailable(start: Start, trail: Trail, database: Database) -> None:
    trail.append(0)
    courier = start(**trail.settings)
    eventually(lambda: trail.waiting() == 0, what="the first one to be stored")
    with database.away():
        trail.append(1)
        eventually(
            lambda: any(line["loop"] == "trail" for line in courier.said("round_failed")), what="a round that fails"
        )
        assert trail.waiting() == 1
    eventually(lambda: trail.waiting() == 0, what="the second one to be stored")
    assert trail.objects() == ["job-0", "job-1"]


def test_what_was_written_by_hand_is_stored_as_it_is(start: Start, trail: Trail) -> None:
    trail.jobs.redis.zadd(trail.keys.audit, {"by hand": 0, '{"uid": "x"}': 1})
    trail.append(7)
    start(**trail.settings)
    eventually(lambda: trail.waiting() == 0, what="all to be stored")
    assert trail.objects() == ["by hand", '{"uid": "x"}', "job-7"]


def test_the_couriers_own_changes_of_keys_are_recorded(start: Start, trail: Trail) -> None:
    root = Credential.generate()
    start(**trail.settings, DARKROOM_ROOT_KEY=root.text)

    def recorded() -> list[Entry]:
        async def read(store: TrailStore) -> list[Entry]:
            return [chained.entry async for chained in store.read()]

        return self_made if len(self_made := trail.in_store(read)) >= 2 else []

    found = eventually(recorded, what="the entries of the root key and its tenant")
    assert {(entry.operation, entry.object, entry.actor, entry.kind) for entry in found} == {
        ("createTenant", "default", "root-key", INTERNAL),
        ("putKey", root.key_id, "root-key", INTERNAL),
    }

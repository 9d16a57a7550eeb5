"""The courier and the history: couriers as processes, on a real Redis, with SQLite and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
from darkroom.artifacts import ArtifactStore, artifact_key
from darkroom.cloudevents.event import Event
from darkroom.history.store import History, PastJob, Tombstone
from darkroom.jobs import Artifact, State, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import Applied
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.epochs import NEVER, Epoch, LedgerEpoch
from darkroom.ledger.records import JobRecord
from darkroom.ledger.scripts import texts

from tests.courier.conftest import Start
from tests.courier.sink import Answer, Sink
from tests.databases import Database, opened
from tests.driven_jobs import TENANT, DrivenJobs
from tests.parts import Part, ahead, environment
from tests.tcp_proxy import HoldingProxy
from tests.waiting import eventually

T = TypeVar("T")

QUICK = {"DARKROOM_POLL_INTERVAL_S": "0.05", "DARKROOM_HISTORY_LEASE_S": "0.5", "DARKROOM_RETENTION_INTERVAL_S": "0.2"}
"""Shorter times than the defaults."""

DAY_MS = 24 * 3600 * 1000


class Watched:
    """The jobs and their history."""

    def __init__(self, jobs: DrivenJobs, redis_url: str, database: Database, store: Path) -> None:
        self.jobs = jobs
        self.database = database
        self.store = ArtifactStore(store.as_uri())
        self._redis_url = redis_url
        self.settings = {"DARKROOM_DATABASE_URL": database.url, "DARKROOM_STORE": store.as_uri(), **QUICK}

    def in_history(self, ask: Callable[[History], Awaitable[T]]) -> T:
        """The result of a query, once the history has its tables."""

        async def asked() -> T:
            async with opened(self.database.url) as history:
                return await ask(history)

        return asyncio.run(asked())

    def find(self, job_id: str) -> PastJob | Tombstone | None:
        return self.in_history(lambda history: history.job(job_id, tenant=TENANT))

    def all(self) -> list[str]:
        page = self.in_history(lambda history: history.page(TENANT, limit=10_000))
        return [record.id for record in page.jobs]

    def record(self, job_id: str) -> JobRecord:
        """The job's record in Redis."""

        async def read() -> JobRecord | None:
            client = connect_async(self._redis_url)
            try:
                return await AsyncLedger(client, self.jobs.namespace).job(job_id, tenant=TENANT)
            finally:
                await client.aclose()

        found = asyncio.run(read())
        assert found is not None
        return found

    def apply(self, job_id: str) -> None:
        """Apply the job's terminal event, as the function `result` does."""
        assert self.jobs.run(calls.mark_applied(job_id, seq=self.jobs.end_seq(job_id))) is Applied.APPLIED

    def is_archived(self, job_id: str) -> bool:
        return bool(self.jobs.redis.hexists(f"{self.jobs.namespace}:job:{job_id}", "archived"))

    def lives_on(self, job_id: str) -> bool:
        """Whether its record has no time to live."""
        return bool(self.jobs.redis.ttl(f"{self.jobs.namespace}:job:{job_id}") == -1)

    def left_to_write(self) -> int:
        return int(self.jobs.redis.zcard(f"{self.jobs.namespace}:history"))


@pytest.fixture
def watched(jobs: DrivenJobs, redis_url: str, database: Database, tmp_path: Path) -> Watched:
    return Watched(jobs, redis_url, database, tmp_path / "store")


# What is written


def test_a_finished_job_is_written_with_its_attempts(start: Start, watched: Watched) -> None:
    jobs = watched.jobs
    job_id = jobs.submit()
    jobs.start(job_id, token="one")
    error = {"kind": "transient", "message": "again"}
    jobs.run(calls.retry(job_id, token="one", error=error, delay_ms=0))
    start(**watched.settings)
    eventually(lambda: jobs.redis.zcard(f"{jobs.namespace}:due:local") == 0, what="the retry to be due")
    jobs.start(job_id)
    jobs.progress(job_id, step=1, steps=2)
    jobs.complete(job_id)
    eventually(lambda: watched.is_archived(job_id), what="the archive")
    past = watched.find(job_id)
    assert isinstance(past, PastJob)
    assert past.record == replace(watched.record(job_id), images=None)  # the history counts those it published
    assert [entry.event for entry in past.log] == ["started", "retried", "started", "completed"]
    assert past.log[1].data["error"] == error
    assert watched.left_to_write() == 0


def test_many_jobs_are_written_in_few_transactions(start: Start, watched: Watched) -> None:
    ended = [watched.jobs.completed() for _ in range(450)]
    courier = start(**watched.settings)
    eventually(lambda: watched.left_to_write() == 0, what="all to be written")
    assert watched.all() == sorted(ended, reverse=True)
    eventually(lambda: len(courier.said("archived")) == 3, what="three batches")
    assert sorted(len(line["jobs"]) for line in courier.said("archived")) == [50, 200, 200]


def test_two_couriers_write_every_job_once(start: Start, watched: Watched) -> None:
    couriers = [start(**watched.settings) for _ in range(2)]
    ended = [watched.jobs.completed() for _ in range(300)]
    eventually(lambda: watched.left_to_write() == 0, what="all to be written")
    assert watched.all() == sorted(ended, reverse=True)
    assert all(watched.is_archived(job_id) for job_id in ended)
    failed = [line["loop"] for courier in couriers for line in courier.said("round_failed")]
    assert "archive" not in failed


@pytest.mark.parametrize("damage", ["fields", "end_data"])
def test_a_job_that_cannot_be_written_does_not_delay_others(start: Start, watched: Watched, damage: str) -> None:
    """The database rejects it, or its record cannot be read. It stays in Redis."""
    jobs = watched.jobs
    before, damaged, after = jobs.completed(), jobs.completed(), jobs.completed()
    broken = {"fields": '{"user_id": ["no", "text"]}', "end_data": "{"}[damage]
    jobs.redis.hset(f"{jobs.namespace}:job:{damaged}", damage, broken)
    courier = start(**watched.settings)
    eventually(lambda: watched.is_archived(before) and watched.is_archived(after), what="the others")
    eventually(lambda: courier.said("not_archived"), what="the failure to be logged")
    assert [line["job"] for line in courier.said("not_archived")] == [damaged]
    assert watched.find(damaged) is None
    assert watched.lives_on(damaged)
    assert watched.left_to_write() == 1


# The time to live of what Redis has


def test_no_time_to_live_starts_before_the_commit(start: Start, watched: Watched) -> None:
    applied, pending = watched.jobs.completed(), watched.jobs.completed()
    watched.apply(applied)
    assert watched.lives_on(applied)
    start(**watched.settings)
    eventually(lambda: not watched.lives_on(applied), what="the time to live")
    assert isinstance(watched.find(applied), PastJob)
    eventually(lambda: watched.is_archived(pending), what="the other")
    assert watched.lives_on(pending), "its event is still to be applied"
    watched.apply(pending)
    assert not watched.lives_on(pending)


# What breaks


def test_while_the_database_is_unavailable_the_rest_goes_on_and_nothing_is_lost(
    start: Start, sink: Sink, watched: Watched
) -> None:
    courier = start(**watched.settings)
    first = watched.jobs.completed()
    eventually(lambda: watched.is_archived(first), what="the first")

    def take_in(event: Event) -> Answer:
        watched.apply(event.subject or "")
        return Answer(204)

    sink.behave = take_in
    with watched.database.away():
        ended = [watched.jobs.completed() for _ in range(5)]
        eventually(lambda: courier.said("history_unavailable"), what="the outage to be seen")
        ended += [watched.jobs.completed() for _ in range(5)]
        expired = watched.jobs.submit(start_deadline=1)
        eventually(lambda: watched.jobs.state(expired) is State.EXPIRED, what="the upkeep")
        eventually(lambda: all(watched.jobs.is_applied(job_id) for job_id in ended), what="the relay")
        assert all(watched.lives_on(job_id) for job_id in ended)
        assert not any(watched.is_archived(job_id) for job_id in ended)
    eventually(lambda: watched.left_to_write() == 0, what="all to be written after the outage")
    assert watched.all() == sorted([first, *ended, expired], reverse=True)
    assert not any(watched.lives_on(job_id) for job_id in ended)
    of_the_database = {"access", "archive", "retention", "trail"}
    assert {line["loop"] for line in courier.said("round_failed")} <= of_the_database


def test_a_courier_starts_without_its_database_and_uses_it_once_it_is_available(
    start: Start, sink: Sink, watched: Watched
) -> None:
    with watched.database.absent():
        courier = start(**watched.settings)
        job_id = watched.jobs.completed()
        sink.await_post(job_id)
        eventually(lambda: courier.said("history_unavailable"), what="the absence to be seen")
    eventually(lambda: watched.is_archived(job_id), what="the archive")
    assert courier.stop() == 0


def test_a_job_whose_courier_was_killed_after_the_commit_is_stored_once_and_completed_by_the_next(
    start: Start, watched: Watched, redis_url: str
) -> None:
    """Killed exactly then: Redis never receives that the jobs are archived."""
    archived_sha = hashlib.sha1(texts()["mark_archived"], usedforsecurity=False).hexdigest()
    proxy = HoldingProxy(urlsplit(redis_url).port or 0, until=archived_sha.encode())
    ended = [watched.jobs.completed() for _ in range(20)]
    with proxy.running():
        killed = start(proxy.url, **watched.settings)
        eventually(proxy.held.is_set, what="the courier to report the jobs as archived")
        killed.signal(signal.SIGKILL)
        killed.wait()
    assert watched.all() == sorted(ended, reverse=True), "committed"
    before = {job_id: watched.find(job_id) for job_id in ended}
    assert watched.left_to_write() == len(ended)
    assert all(watched.lives_on(job_id) for job_id in ended)
    start(**watched.settings)
    eventually(lambda: watched.left_to_write() == 0, what="the next courier")
    assert watched.all() == sorted(ended, reverse=True)
    assert {job_id: watched.find(job_id) for job_id in ended} == before
    assert all(watched.is_archived(job_id) for job_id in ended)


# Retention


def put_picture(watched: Watched, job_id: str) -> None:
    sha256 = hashlib.sha256(job_id.encode()).hexdigest()
    key = artifact_key(tenant=TENANT, job_id=job_id, attempt=1, index=0, sha256=sha256, extension="png")
    watched.store.put(key, b"a picture")


def pictures(watched: Watched) -> set[str]:
    """The jobs that have any."""
    return {key.split("/")[1] for key in asyncio.run(watched.store.keys(f"{TENANT}/"))}


def old_jobs(watched: Watched, count: int, *, days: float) -> list[str]:
    """Jobs that ended so long ago, in the history and no longer in Redis; each has a picture."""
    template = watched.record(watched.jobs.completed())
    ended = time.time_ns() // 1_000_000 - round(days * DAY_MS)
    past = []
    for _ in range(count):
        job_id = new_job_id(ended)
        past.append(PastJob.of(replace(template, id=job_id, ended=ended), []))
        put_picture(watched, job_id)
    watched.in_history(lambda history: history.write(past))
    return [job.record.id for job in past]


def test_a_job_is_deleted_with_its_pictures_after_its_retention_and_leaves_a_tombstone(
    start: Start, watched: Watched
) -> None:
    over, young = old_jobs(watched, 3, days=30.1), old_jobs(watched, 3, days=29.9)
    courier = start(DARKROOM_RETENTION_DAYS="30", **watched.settings)
    eventually(lambda: courier.said("retention_over"), what="the search for old jobs")
    for job_id in over:
        tombstone = watched.find(job_id)
        assert isinstance(tombstone, Tombstone)
        assert tombstone.state is State.COMPLETED
    assert all(isinstance(watched.find(job_id), PastJob) for job_id in young)
    assert pictures(watched) == set(young)
    assert watched.in_history(lambda history: history.unfinished(limit=10)) == []


def test_retention_is_counted_by_redis_clock(start: Start, watched: Watched, tmp_path: Path) -> None:
    """A courier whose clock is two days ahead deletes no job early."""
    over, young = old_jobs(watched, 1, days=30.1), old_jobs(watched, 1, days=29)
    path = ahead(tmp_path, seconds=2 * 24 * 3600)
    courier = start(DARKROOM_RETENTION_DAYS="30", PYTHONPATH=path, **watched.settings)
    eventually(lambda: courier.said("retention_over"), what="the search for old jobs")
    assert isinstance(watched.find(over[0]), Tombstone)
    assert isinstance(watched.find(young[0]), PastJob)


def test_without_a_retention_no_job_is_deleted(start: Start, watched: Watched) -> None:
    kept = old_jobs(watched, 1, days=10_000)
    start(**watched.settings)
    marker = unfinished_deletion(watched)
    eventually(lambda: marker not in pictures(watched), what="a search for deletions")
    assert all(isinstance(watched.find(job_id), PastJob) for job_id in kept)
    assert pictures(watched) == set(kept)


def test_many_jobs_are_deleted_in_slices_without_pauses(start: Start, watched: Watched) -> None:
    old_jobs(watched, 250, days=2)
    courier = start(**watched.settings | {"DARKROOM_RETENTION_DAYS": "1", "DARKROOM_RETENTION_INTERVAL_S": "1"})
    eventually(lambda: len(courier.said("retention_over")) == 3, what="all slices")
    assert [len(line["jobs"]) for line in courier.said("retention_over")] == [100, 100, 50]
    assert pictures(watched) == set()


def unfinished_deletion(watched: Watched) -> str:
    """A job whose tombstone is there, and all else too, as after a deletion that was killed."""
    job_id = watched.jobs.completed()
    put_picture(watched, job_id)
    record = watched.record(job_id)
    watched.in_history(lambda history: history.write_tombstone(record, now=time.time_ns() // 1_000_000))
    return job_id


def test_an_interrupted_deletion_is_completed(start: Start, watched: Watched) -> None:
    job_id = unfinished_deletion(watched)
    courier = start(**watched.settings)
    eventually(lambda: courier.said("deletions_finished"), what="the search for unfinished deletions")
    assert pictures(watched) == set()
    assert watched.jobs.redis.exists(f"{watched.jobs.namespace}:job:{job_id}") == 0
    assert isinstance(watched.find(job_id), Tombstone)
    assert job_id not in watched.all()


def test_artifacts_that_no_job_publishes_are_deleted_and_those_of_unknown_jobs_are_not(
    start: Start, watched: Watched
) -> None:
    completed, cancelled, living = watched.jobs.completed(), watched.jobs.submit(), watched.jobs.submit()
    for job_id in (cancelled, living):
        watched.jobs.start(job_id)
    watched.jobs.run(calls.cancel(cancelled, tenant=TENANT))
    watched.jobs.run(calls.finish(cancelled, token="token", outcome=State.CANCELLED, data={}))
    deleted = watched.record(watched.jobs.completed())
    now = time.time_ns() // 1_000_000
    watched.in_history(lambda history: history.write_tombstone(deleted, now=now))
    watched.in_history(lambda history: history.mark_cleared([deleted.id], now=now))
    unknown = new_job_id(now)
    for job_id in (completed, cancelled, living, deleted.id, unknown):
        put_picture(watched, job_id)
    published = Artifact.decode((watched.record(completed).end_data or {})["artifacts"][0]).key
    watched.store.put(published, b"a picture")

    courier = start(DARKROOM_ORPHAN_AGE_S="0", **watched.settings)
    eventually(lambda: pictures(watched) == {completed, living, unknown}, what="the search for orphans")
    keys = asyncio.run(watched.store.keys(f"{TENANT}/{completed}/"))
    assert keys == [published]
    (line,) = eventually(lambda: courier.said("orphans_removed"), what="the line of the log")
    assert line["artifacts"] == 3


def test_new_artifacts_that_no_job_publishes_are_not_deleted(start: Start, watched: Watched) -> None:
    completed = watched.jobs.completed()
    put_picture(watched, completed)
    courier = start(**watched.settings)
    for _ in range(2):  # the second one is deleted after the search that follows the first
        unfinished_deletion(watched)
        eventually(lambda: pictures(watched) == {completed}, what="a search for deletions")
    assert courier.said("orphans_removed") == []


# Epochs


def test_a_redis_that_lost_its_data_begins_a_new_epoch(start: Start, watched: Watched, tmp_path: Path) -> None:
    jobs = watched.jobs
    key = f"{jobs.namespace}:epoch"

    def noted() -> Epoch:
        return watched.in_history(lambda history: history.epoch(jobs.namespace)) or NEVER

    def ledger() -> LedgerEpoch:
        fields = ("epoch", "beats", "at", "lost_from", "lost_to")
        return LedgerEpoch.decode(jobs.redis.hmget(key, *fields))

    courier = start(**watched.settings)
    eventually(lambda: noted().beats >= 1, what="the first beat, in a new Redis and an empty database")
    assert ledger().loss is None
    before = noted()
    jobs.redis.delete(key)
    eventually(lambda: noted().number == before.number + 1, what="a new epoch")
    loss = ledger().loss
    assert loss is not None
    assert loss.since == 0
    assert loss.until >= before.at
    eventually(lambda: courier.said("redis_lost_data"), what="the courier's log")

    courier.stop()
    jobs.run(calls.advance_epoch(NEVER, acknowledge=True))
    start(**{**watched.settings, "DARKROOM_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/empty.sqlite"})
    beats = ledger().epoch.at
    eventually(lambda: ledger().epoch.at > beats, what="the beat of a courier with an empty database")
    assert ledger().loss is None


# Migration by hand


def migrate(url: str, folder: Path) -> tuple[int, str]:
    """The exit status and the output."""
    settings = environment("redis://127.0.0.1:1/0", "any", DARKROOM_DATABASE_URL=url)
    part = Part("darkroom_courier.migrate", environment=settings, log=folder / f"migrate-{time.time_ns()}.log")
    part.start()
    return part.wait(), part.log.read_text()


def test_the_database_can_be_migrated_manually_any_number_of_times(database: Database, tmp_path: Path) -> None:
    for _ in range(2):
        status, said = migrate(database.url, tmp_path)
        assert (status, said.splitlines()[-1]) == (0, "the history database is at revision 0004")


def test_an_unavailable_database_is_not_migrated(database: Database, tmp_path: Path) -> None:
    with database.absent():
        status, said = migrate(database.url, tmp_path)
    assert (status, said.splitlines()[-1]) == (1, "the database of finished jobs is unavailable")


@contextmanager
def refused(settings: dict[str, str], module: str, folder: Path) -> Iterator[str]:
    """The one line that a process writes before it ends with status 2."""
    part = Part(module, environment=settings, log=folder / "log")
    part.start()
    assert part.wait() == 2
    (line,) = part.log.read_text().splitlines()
    yield line


@pytest.mark.parametrize("module", ["darkroom_courier", "darkroom_courier.migrate"])
@pytest.mark.parametrize("url", ["mysql://user:secret@host/name", "postgresql://user:secret@host:port/name"])
def test_an_invalid_database_ends_the_process_with_one_line(tmp_path: Path, module: str, url: str) -> None:
    settings = environment("redis://127.0.0.1:1/0", "any", K_SINK="http://127.0.0.1:1/", DARKROOM_DATABASE_URL=url)
    with refused(settings, module, tmp_path) as line:
        assert line.startswith("DARKROOM_DATABASE_URL=(hidden): ")
        assert "secret" not in line


@pytest.mark.parametrize("value", ["0", "1.5", "for ever", "-1"])
def test_an_invalid_retention_is_rejected(tmp_path: Path, value: str) -> None:
    settings = environment("redis://127.0.0.1:1/0", "any", K_SINK="http://127.0.0.1:1/", DARKROOM_RETENTION_DAYS=value)
    with refused(settings, "darkroom_courier", tmp_path) as line:
        assert line.startswith(f"DARKROOM_RETENTION_DAYS='{value}': ")

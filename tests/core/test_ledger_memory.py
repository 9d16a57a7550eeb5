"""Redis at the limit of its memory: no job is accepted, and accepted jobs run, finish and free memory.

Each server here is a test's own, of either kind.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest
from darkroom.errors import BacklogFull, MemoryHigh
from darkroom.jobs import State, new_job_id
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Accepted, Applied, AttemptEnd, LeaseStatus, Receipt, ReleaseReason, Submission
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect, connect_async
from darkroom.ledger.records import Memory
from darkroom.ledger.scripts import texts
from darkroom.times import iso

from tests.core.timed_jobs import TimedJobs
from tests.redis_server import RedisServer

LONG_PROMPT = "a lighthouse at dusk " * 5_000
"""100 KB: what the record, the message and the list hold of it is far above the measure's noise."""


@pytest.fixture(scope="module")
def server(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(redis_binary, tmp_path_factory.mktemp("redis"))
    server.start()
    client = connect(server.url)
    client.config_set("slowlog-log-slower-than", -1)  # on a busy machine its entries take memory
    client.close()
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
    """The memory of Redis without the buffers of its clients, which depend on when it last shrank them."""
    memory = jobs.redis.info("memory")
    return int(memory["used_memory"]) - int(memory["mem_clients_normal"])


def fill(jobs: TimedJobs) -> None:
    """Fill Redis to above its limit."""
    jobs.redis.config_set("maxmemory", used(jobs) // 2)


def offer(jobs: TimedJobs, job: Submission) -> Accepted:
    answer = jobs.run(calls.accept(job, backlog_limit=10_000, now=jobs.now))
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
        [calls.accept(job, backlog_limit=10, now=jobs.now) for job in (jobs.submission(), accepted)]
    )
    assert isinstance(answers[0], MemoryHigh)
    assert isinstance(answers[1], Accepted), "what was accepted before is still answered"


def test_with_a_full_redis_a_job_runs_and_finishes(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    fill(jobs)
    jobs.worker()
    assert jobs.receive_message() == job_id
    assert jobs.claim(job_id).attempt == 1
    assert jobs.renew(job_id) is LeaseStatus.OK
    assert jobs.progress(job_id, op=1, step=1, steps=2) is LeaseStatus.OK
    assert jobs.finish(job_id, data={"artifacts": [], "record": {"prompt": LONG_PROMPT}}) is AttemptEnd.COMPLETED
    assert jobs.lease(call="1") == [job_id]
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    assert jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now)) is Applied.APPLIED
    assert jobs.state(job_id) is State.COMPLETED


def reap(jobs: TimedJobs) -> None:
    lapsed = jobs.running()
    jobs.reap_until(jobs.now + calls.LEASE_MS)
    fill(jobs)
    jobs.now += 1
    assert jobs.reap() == [lapsed]


def sweep(jobs: TimedJobs) -> None:
    lost = jobs.submit()
    jobs.receive_message()
    fill(jobs)
    jobs.now += calls.SWEEP_AGE_MS
    assert jobs.sweep() == [lost]


def expire(jobs: TimedJobs) -> None:
    late = jobs.submit(start_deadline=jobs.now)
    fill(jobs)
    assert jobs.expire() == [late]


def promote(jobs: TimedJobs) -> None:
    due = jobs.running()
    fill(jobs)
    assert jobs.retry(due, delay_ms=0) is AttemptEnd.PENDING
    assert jobs.promote() == [due]


def release(jobs: TimedJobs) -> None:
    running = jobs.running()
    fill(jobs)
    assert jobs.release(running, ReleaseReason.DRAIN) is AttemptEnd.PENDING


def cancel(jobs: TimedJobs) -> None:
    waiting, running = jobs.submit(), jobs.running()
    fill(jobs)
    assert jobs.cancel(waiting).receipt is Receipt.DEQUEUED
    assert jobs.cancel(running).receipt is Receipt.INTERRUPTING


def announce(jobs: TimedJobs) -> None:
    fill(jobs)
    assert jobs.run(calls.announce_pool("another", models=["sd"], now=jobs.now)) == "ok"


def load_scripts(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    fill(jobs)
    jobs.redis.script_flush()
    assert jobs.claim(job_id).attempt == 1


READ_ONLY = {"read_job", "inspect_job", "inspect_delivery", "observe"}


@pytest.mark.parametrize("name", sorted(set(texts()) - READ_ONLY - {"accept"}))
def test_every_script_that_writes_begins_with_what_is_never_refused(name: str) -> None:
    (script,) = Path(str(resources.files("darkroom.ledger") / "lua")).glob(f"*/{name}.lua")
    lines = script.read_text().splitlines()
    assert next(line for line in lines if not line.startswith("--")) == "allow_at_maxmemory()"


@pytest.mark.parametrize("work", [reap, sweep, expire, promote, release, cancel, announce, load_scripts])
def test_with_a_full_redis_all_but_accept_works(jobs: TimedJobs, work: Callable[[TimedJobs], None]) -> None:
    jobs.reap_until(jobs.now + calls.LEASE_MS)
    work(jobs)


def test_finished_jobs_make_room_for_others(jobs: TimedJobs) -> None:
    submitted = [jobs.submit(input={"prompt": LONG_PROMPT}) for _ in range(20)]
    jobs.redis.config_set("maxmemory", used(jobs) - 500_000)
    with pytest.raises(MemoryHigh):
        offer(jobs, jobs.submission())
    for job_id in submitted:
        jobs.start(job_id, token=job_id)
        jobs.finish(job_id, token=job_id)
        archive(jobs, job_id)
    assert not offer(jobs, jobs.submission()).repeated


async def test_memory_is_high_above_four_fifths_of_its_limit(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    jobs.submit()
    unlimited = await reads.memory(ledger)
    assert (unlimited.limit, unlimited.high) == (0, False)
    jobs.redis.config_set("maxmemory", used(jobs) * 10)
    assert not (await reads.memory(ledger)).high
    jobs.redis.config_set("maxmemory", used(jobs) * 10 // 9)
    assert (await reads.memory(ledger)).high


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


# -- the memory of a job -----------------------------------------------------------------------------------------------

EMOJI = "".join(chr(0x1F600 + number % 80) for number in range(4_000))
"""16,000 bytes of UTF-8; 48,000 as JSON's escapes would have it."""

MANY = 300


def submit_emoji(jobs: TimedJobs) -> str:
    """A job with the longest prompt that a model accepts, as submit creates it."""
    job_id = new_job_id(jobs.now)
    event = {"id": job_id, "source": "http://localhost:8000", "time": iso(jobs.now)}
    return jobs.submit(
        job_id=job_id,
        input={"prompt": EMOJI, "size": "832x1216", "steps": 28, "guidance": 3.5, "images": 1, "seed": 2**32 - 1},
        fields={"job_type": "image", "event": event},
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def archive(jobs: TimedJobs, job_id: str) -> None:
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    jobs.run(calls.mark_archived(job_id, seq=seq, now=jobs.now))


def test_a_waiting_job_with_four_thousand_emoji_takes_20_kib(jobs: TimedJobs) -> None:
    jobs.worker()
    submit_emoji(jobs)  # with which Redis loads the scripts
    base = used(jobs)
    for _ in range(MANY):
        submit_emoji(jobs)
    assert (used(jobs) - base) / MANY <= 20 * 1024


def test_an_ended_job_that_the_history_has_takes_a_quarter_of_that(jobs: TimedJobs) -> None:
    """A cancel is enough: its input leaves Redis at once and not with the record, a day later."""
    archive_of_first = submit_emoji(jobs)
    jobs.cancel(archive_of_first)
    archive(jobs, archive_of_first)
    base = used(jobs)
    for _ in range(MANY):
        job_id = submit_emoji(jobs)
        jobs.cancel(job_id)
        assert jobs.record(job_id).input["prompt"] == EMOJI, "the history needs it"
        archive(jobs, job_id)
        record = jobs.record(job_id)
        assert (record.is_whole, record.input) == (False, {})
    assert (used(jobs) - base) / MANY <= 5_000


def test_a_small_input_stays_with_its_record(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    jobs.cancel(job_id)
    before = jobs.record(job_id)
    archive(jobs, job_id)
    assert jobs.record(job_id) == before


def test_a_claim_has_the_records_input_and_no_message_a_copy_of_it(jobs: TimedJobs) -> None:
    jobs.worker()
    job_id = submit_emoji(jobs)
    (message,) = jobs.redis.lrange(jobs.list_key, 0, -1)
    assert len(message) < 1_000
    claim = jobs.claim(job_id)
    assert json.loads(claim.input) == jobs.record(job_id).input
    assert claim.model == "sd"


# -- the limit of bytes ------------------------------------------------------------------------------------------------

EMOJI_BYTES = 21_000
"""The bytes that such a job counts for at most: its input, its fields, and the rest."""


def offer_within(jobs: TimedJobs, backlog_bytes: int, **more: object) -> object:
    job = jobs.submission(**more)
    return jobs.run(calls.accept(job, backlog_limit=10_000, backlog_bytes=backlog_bytes, now=jobs.now))


def test_the_bytes_of_unfinished_jobs_of_all_pools_are_bounded(jobs: TimedJobs) -> None:
    jobs.run(calls.announce_pool("another", models=["sd"], now=jobs.now))
    emoji = {"input": {"prompt": EMOJI}}
    accepted = 0
    while isinstance(offer_within(jobs, 10 * EMOJI_BYTES, **emoji, pool=("local", "another")[accepted % 2]), Accepted):
        accepted += 1
    assert 10 <= accepted <= 11
    before = jobs.everything()
    refusal = offer_within(jobs, 10 * EMOJI_BYTES, **emoji)
    assert isinstance(refusal, BacklogFull)
    assert refusal.detail.startswith("the unfinished jobs use 0.2 MiB")
    assert refusal.retry_after >= 1
    assert jobs.everything() == before


def test_a_finished_job_releases_its_bytes(jobs: TimedJobs) -> None:
    kept = submit_emoji(jobs)
    held = jobs.counter("unfinished_bytes")
    jobs.finish(jobs.running())
    jobs.cancel(submit_emoji(jobs))
    jobs.submit(start_deadline=jobs.now)
    jobs.expire()
    dead = jobs.running(max_attempts=1)
    jobs.retry(dead)
    assert jobs.state(dead) is State.FAILED
    assert jobs.counter("unfinished_bytes") == held
    jobs.cancel(kept)
    assert jobs.counter("unfinished_bytes") == 0


def test_bytes_of_a_record_that_was_deleted_by_hand_are_released(jobs: TimedJobs) -> None:
    submit_emoji(jobs)
    jobs.redis.delete(jobs.key("job", submit_emoji(jobs)))
    jobs.worker()  # which finds that the record is missing
    for job_id in jobs.listed():
        jobs.cancel(job_id)
    assert jobs.counter("unfinished_bytes") == 0


# -- finished jobs -----------------------------------------------------------------------------------------------------


def settled(jobs: TimedJobs, **more: object) -> str:
    """A finished job whose end is applied and archived."""
    job_id = jobs.submit(**more)
    jobs.cancel(job_id)
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now))
    archive(jobs, job_id)
    return job_id


def is_stored(jobs: TimedJobs, job_id: str) -> bool:
    return bool(jobs.redis.exists(jobs.key("job", job_id)))


def test_a_finished_job_stays_for_the_retention_of_the_setting(jobs: TimedJobs) -> None:
    before = settled(jobs)
    jobs.run(calls.set_retention(record_ttl_ms=60_000))
    after = settled(jobs)
    assert jobs.redis.pttl(jobs.key("job", before)) > 23 * 3600 * 1000
    assert 0 < jobs.redis.pttl(jobs.key("job", after)) <= 60_000
    assert 0 < jobs.redis.pttl(jobs.key("log", after)) <= 60_000


def test_the_bytes_of_finished_jobs_are_bounded(jobs: TimedJobs) -> None:
    """The first that finished leave first, with their logs and their entries in the index of the tenant."""
    first = settled(jobs)
    each = jobs.counter("ended_bytes")
    jobs.run(calls.set_retention(ended_bytes=5 * each))
    ended = [first]
    for _ in range(20):
        jobs.now += 1
        ended.append(settled(jobs))
        assert jobs.counter("ended_bytes") <= 5 * each
    assert [is_stored(jobs, job_id) for job_id in ended] == [False] * 16 + [True] * 5
    assert jobs.redis.zrange(jobs.ledger.keys.tenant("default"), 0, -1) == [each.encode() for each in ended[-5:]]
    assert jobs.redis.hlen(jobs.ledger.keys.ended) == 5
    assert not jobs.redis.exists(jobs.key("log", first))


def test_a_large_number_of_finished_jobs_shrinks_a_few_at_a_time(jobs: TimedJobs) -> None:
    ended = [settled(jobs) for _ in range(30)]
    jobs.run(calls.set_retention(ended_bytes=1))
    jobs.now += 1
    last = settled(jobs)
    assert sum(is_stored(jobs, job_id) for job_id in ended) == 20
    for _ in range(3):
        jobs.now += 1
        last = settled(jobs)
    assert [job_id for job_id in [*ended, last] if is_stored(jobs, job_id)] == [last]


def test_jobs_that_expired_or_were_deleted_no_longer_count(jobs: TimedJobs) -> None:
    settled(jobs)
    each = jobs.counter("ended_bytes")
    deleted = settled(jobs)
    assert jobs.run(calls.delete_job(deleted, tenant="default", now=jobs.now)) is calls.Deleted.GONE
    assert jobs.counter("ended_bytes") == each
    jobs.now += calls.RECORD_TTL_MS
    settled(jobs)
    assert jobs.counter("ended_bytes") == each


def test_an_unfinished_job_and_a_dead_letter_are_no_finished_jobs(jobs: TimedJobs) -> None:
    jobs.run(calls.set_retention(ended_bytes=1))
    waiting = jobs.submit()
    dead = jobs.running(max_attempts=1)
    jobs.retry(dead)
    archive(jobs, dead)
    for _ in range(3):
        jobs.now += 1
        settled(jobs)
    assert is_stored(jobs, waiting)
    assert is_stored(jobs, dead)


def test_memory_of_a_job_that_waits_and_of_one_that_was_cancelled(jobs: TimedJobs) -> None:
    """By `MEMORY USAGE` of its keys: what a waiting job stores is bounded, and most of it leaves with its end."""
    job_id = submit_emoji(jobs)
    waiting = keys_memory(jobs, job_id)
    jobs.cancel(job_id)
    archive(jobs, job_id)
    ended = keys_memory(jobs, job_id)
    assert waiting <= 16_000 + 8 * 1024
    assert ended <= 5 * 1024


def test_the_largest_job_counts_for_what_it_stores(jobs: TimedJobs) -> None:
    """Its message has the attributes of its event, in which JSON needs 12 bytes for a character."""
    name = chr(0x1F600) * 2048
    fields = {"user_id": chr(0x1F600) * 200, "event": {"id": name, "source": name, "time": iso(jobs.now)}}
    job_id = jobs.submit(input={"prompt": EMOJI, "negative_prompt": EMOJI}, fields=fields)
    counted = jobs.counter("unfinished_bytes")
    assert counted == pytest.approx(keys_memory(jobs, job_id), rel=0.15)
    assert counted <= 108 * 1024
    jobs.cancel(job_id)
    assert jobs.counter("unfinished_bytes") == 0
    archive(jobs, job_id)
    assert keys_memory(jobs, job_id) <= 24 * 1024


def keys_memory(jobs: TimedJobs, job_id: str) -> int:
    return sum(int(jobs.redis.memory_usage(jobs.key(kind, job_id), samples=0)) for kind in ("job", "log"))

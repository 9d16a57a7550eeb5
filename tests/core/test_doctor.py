"""The doctor, on real servers: each finding is provoked, and a healthy system has none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from darkroom.checks import redis_checks
from darkroom.checks.doctor import Diagnosis, diagnose
from darkroom.checks.examination import examine
from darkroom.checks.ledger_checks import LEDGER_CHECKS, Limits
from darkroom.checks.symptoms import Severity
from darkroom.checks.system import RedisInfo
from darkroom.jobs import State
from darkroom.ledger import calls, queues
from darkroom.ledger.calls import AttemptEnd, DroppedMessages, WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.core.timed_jobs import POOL, WORKER, TimedJobs
from tests.courier.sink import Answer, Sink
from tests.parts import Part, environment
from tests.ports import free_port
from tests.redis_server import RedisKind, RedisServer, needed_binary
from tests.waiting import eventually
from tests.worker.running_worker import POOL as WORKER_POOL
from tests.worker.running_worker import Testbed

QUICK = Limits(canary_s=0.2)
"""The doctor's wait for workers that do not exist, so that no canary is ever claimed."""

LONG_AGO_MS = 600_000


async def diagnosed(redis_url: str, namespace: str, limits: Limits = QUICK) -> Diagnosis:
    async with connect_async(redis_url) as client:
        return diagnose(await examine(client, namespace, limits), limits)


def found(diagnosis: Diagnosis) -> dict[str, str]:
    """The symptoms by check."""
    assert all(finding.symptom.remedy for finding in diagnosis.findings)
    return {finding.check: finding.symptom.seen for finding in diagnosis.findings}


# -- Redis -------------------------------------------------------------------------------------------------------------


CLUSTER_PORT = 10_000
"""Distance to the second port that Redis opens in cluster mode."""


@contextmanager
def own_server(kind: RedisKind, folder: Path, **options: str) -> Iterator[tuple[RedisServer, Any]]:
    """A separate server, with a client; `options` are of its configuration, with _ for -."""
    server = RedisServer(
        needed_binary(kind), folder, {name.replace("_", "-"): value for name, value in options.items()}
    )
    server.port = free_port(beside=CLUSTER_PORT)
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            yield server, client
    finally:
        server.stop()


def no_append_only_file(client: Any) -> None:
    client.config_set("appendonly", "no")


def evicting(client: Any) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")


def nearly_full(client: Any) -> None:
    client.config_set("maxmemory", client.info("memory")["used_memory"] * 10 // 9)


def slow(client: Any) -> None:
    """Scripts that take more than the limit by Redis' own clock, which is the one that the doctor reads.

    The client's clock also counts the time that either process waits for a core.
    """
    sha = client.script_load("local n = 0 for i = 1, tonumber(ARGV[1]) do n = n + i end return n")
    turns, mean_ms = 100_000, 0.0
    while mean_ms < 2 * redis_checks.SLOW_SCRIPT_MS:
        client.config_resetstat()
        for _ in range(redis_checks.SLOW_MIN_CALLS):
            client.evalsha(sha, 0, turns)
        mean_ms = client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"] / 1000
        turns *= 2


@pytest.mark.parametrize("kind", RedisKind)
@pytest.mark.parametrize(
    ("harm", "check", "words"),
    [
        pytest.param(no_append_only_file, "append-only-file", "append-only file is off", id="no append-only file"),
        pytest.param(evicting, "eviction", "allkeys-lru", id="an evicting policy"),
        pytest.param(nearly_full, "memory", "of its maxmemory", id="memory nearly used up"),
        pytest.param(slow, "slow-scripts", "more than 5 ms", id="slow scripts"),
    ],
)
async def test_what_is_wrong_with_redis_is_found(
    kind: RedisKind, harm: Callable[[Any], None], check: str, words: str, namespace: str, tmp_path: Path
) -> None:
    with own_server(kind, tmp_path) as (server, client):
        before = found(await diagnosed(server.url, namespace))
        assert set(before) == {"pools"}
        harm(client)
        after = found(await diagnosed(server.url, namespace))
    assert set(after) == {"pools", check}
    assert words in after[check]


@pytest.mark.parametrize("kind", RedisKind)
async def test_cluster_mode_is_found_and_skipped_checks_are_listed(
    kind: RedisKind, namespace: str, tmp_path: Path
) -> None:
    with own_server(kind, tmp_path, cluster_enabled="yes") as (server, _):
        diagnosis = await diagnosed(server.url, namespace)
    assert set(found(diagnosis)) == {"cluster-mode"}
    assert set(diagnosis.not_made) == set(LEDGER_CHECKS)


@pytest.mark.parametrize("kind", RedisKind)
async def test_a_server_without_config_is_examined(kind: RedisKind, namespace: str, tmp_path: Path) -> None:
    with own_server(kind, tmp_path, rename_command="CONFIG unlikely", appendonly="no") as (server, client):
        with pytest.raises(redis.ResponseError):
            client.config_get("appendonly")
        diagnosis = await diagnosed(server.url, namespace)
    assert set(found(diagnosis)) == {"append-only-file", "pools"}
    assert diagnosis.not_made == []


async def test_an_unavailable_redis_is_the_only_finding(namespace: str, tmp_path: Path) -> None:
    with own_server(RedisKind.EMBEDDED, tmp_path) as (server, _):
        server.stop()
        diagnosis = await diagnosed(server.url, namespace)
    assert set(found(diagnosis)) == {"redis-reachable"}
    assert list(diagnosis.made) == ["redis-reachable"]


async def test_a_wrong_password_is_reported_and_not_shown(namespace: str, tmp_path: Path) -> None:
    with own_server(RedisKind.EMBEDDED, tmp_path) as (server, client):
        client.config_set("requirepass", "the-right-word")
        diagnosis = await diagnosed(server.url.replace("redis://", "redis://:the-wrong-word@"), namespace)
        client.config_set("requirepass", "")
    assert "WRONGPASS" in found(diagnosis)["redis-reachable"] or "password" in found(diagnosis)["redis-reachable"]
    assert "wrong-word" not in str(diagnosis)


async def test_a_user_who_may_not_run_info_is_reported(namespace: str, tmp_path: Path) -> None:
    with own_server(RedisKind.EMBEDDED, tmp_path) as (server, client):
        client.acl_setuser(
            "part", enabled=True, passwords=["+word"], keys=["*"], categories=["+@all"], commands=["-info"]
        )
        diagnosis = await diagnosed(server.url.replace("redis://", "redis://part:word@"), namespace)
    assert set(found(diagnosis)) == {"redis-reachable", "pools"}
    assert "info" in found(diagnosis)["redis-reachable"]
    assert set(diagnosis.not_made) == set(redis_checks.REDIS_CHECKS)


def test_an_older_redis_is_found() -> None:
    server = RedisInfo((6, 0, 16), False, True, None, "noeviction", False, 1, 100, "its maxmemory", ())
    assert [symptom.severity for symptom in redis_checks.redis_version(server)] == [Severity.PROBLEM]


def test_an_append_only_file_that_cannot_be_written_is_found() -> None:
    server = RedisInfo((7, 2, 0), False, True, "err", "noeviction", False, 1, 100, "its maxmemory", ())
    assert [symptom.severity for symptom in redis_checks.append_only_file(server)] == [Severity.PROBLEM]


# -- the ledger --------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(any_redis_url: str, namespace: str) -> Iterator[TimedJobs]:
    """A pool at the present time, which a courier has just visited."""
    jobs = TimedJobs(any_redis_url, namespace)
    jobs.now = time.time_ns() // 1_000_000
    jobs.run(calls.announce_pool(POOL, models=["sd"], now=jobs.now))
    jobs.reap()
    yield jobs
    jobs.close()


@pytest.fixture
def ask(jobs: TimedJobs, any_redis_url: str) -> Callable[..., Any]:
    """Examine this Redis; the coroutine returns the symptoms by check."""

    async def asked(limits: Limits = QUICK) -> dict[str, str]:
        return found(await diagnosed(any_redis_url, jobs.namespace, limits))

    return asked


Ask = Callable[..., Any]


def long_ago(jobs: TimedJobs, act: Callable[[], Any]) -> Any:
    """A time long ago."""
    jobs.now -= LONG_AGO_MS
    try:
        return act()
    finally:
        jobs.now += LONG_AGO_MS


async def test_a_healthy_system_has_no_findings(jobs: TimedJobs, ask: Ask) -> None:
    jobs.worker(WORKER, WorkerState.BUSY)
    jobs.running()
    jobs.submit()
    assert await ask() == {}


async def test_a_pool_without_workers_and_jobs_is_no_finding(ask: Ask) -> None:
    assert await ask() == {}


async def test_jobs_that_wait_for_a_first_worker_are_found_after_its_time_to_start(jobs: TimedJobs, ask: Ask) -> None:
    jobs.submit()
    assert await ask() == {}
    long_ago(jobs, jobs.submit)
    assert "no ready worker (none registered)" in (await ask(Limits(scaling_s=0)))["workers"]


async def test_a_faulty_worker_is_found(jobs: TimedJobs, ask: Ask) -> None:
    jobs.worker(WORKER, WorkerState.FAULTY)
    assert WORKER in (await ask())["faulty-workers"]


async def test_a_worker_without_heartbeats_is_found(jobs: TimedJobs, ask: Ask) -> None:
    jobs.now -= 20_000
    jobs.worker(WORKER, WorkerState.BUSY)
    jobs.now += 20_000
    assert "20 s" in (await ask())["silent-workers"]


async def test_a_ready_worker_that_consumes_nothing_is_found(jobs: TimedJobs, ask: Ask) -> None:
    jobs.worker(WORKER, WorkerState.READY)
    assert WORKER in (await ask())["deaf-workers"]
    assert jobs.redis.llen(jobs.list_key) == 0
    assert not list(jobs.redis.scan_iter(jobs.key("canary", "*")))


@pytest.mark.parametrize("state", [WorkerState.BUSY, WorkerState.STARTING, WorkerState.DRAINING])
async def test_a_worker_that_is_not_ready_is_not_examined(jobs: TimedJobs, ask: Ask, state: WorkerState) -> None:
    jobs.worker(WORKER, state)
    assert await ask() == {}


async def test_a_worker_that_runs_a_job_is_not_examined(jobs: TimedJobs, ask: Ask) -> None:
    jobs.worker(WORKER, WorkerState.READY)  # it says so once a second
    jobs.running()
    assert await ask() == {}


async def test_a_job_that_waits_beside_an_idle_worker_is_stuck(jobs: TimedJobs, ask: Ask) -> None:
    job_id = long_ago(jobs, jobs.submit)
    jobs.worker(WORKER, WorkerState.READY)
    seen = await ask()
    assert set(seen) == {"deaf-workers", "stuck-jobs"}
    assert job_id in seen["stuck-jobs"]
    jobs.worker(WORKER, WorkerState.BUSY)
    assert await ask() == {}


async def test_a_running_job_whose_lapsed_lease_is_not_reaped_is_stuck(jobs: TimedJobs, ask: Ask) -> None:
    job_id = long_ago(jobs, jobs.running)
    assert await ask() == {}, "after an outage no job is reaped for one lease"
    jobs.redis.hdel(jobs.key("pool", POOL), "quiet_until")
    assert job_id in (await ask())["stuck-jobs"]


async def test_a_retry_that_is_overdue_is_stuck(jobs: TimedJobs, ask: Ask) -> None:
    job_id = jobs.running()
    long_ago(jobs, lambda: jobs.retry(job_id, delay_ms=0))
    assert job_id in (await ask())["stuck-jobs"]


async def test_foreign_messages_in_a_list_are_found(jobs: TimedJobs, ask: Ask) -> None:
    jobs.worker(WORKER, WorkerState.BUSY)
    jobs.submit()
    jobs.redis.lpush(jobs.list_key, b"\xff", b'"x"')
    assert (await ask())["foreign-messages"].startswith(f"2 messages in the list of pool {POOL} belong to no job")


async def test_dropped_messages_are_found_for_a_day_and_a_repeated_report_of_them_counts_once(
    jobs: TimedJobs, ask: Ask
) -> None:
    def report(op: int, count: int) -> None:
        dropped = DroppedMessages(op, count, queues.Foreign.NOT_JSON)
        beat = calls.register_worker(
            WORKER, pool=POOL, state=WorkerState.BUSY, pod="", models=["sd"], dropped=dropped, now=jobs.now
        )
        jobs.run(beat)

    for op, count in ((1, 2), (1, 2), (2, 1)):
        report(op, count)
    seen = (await ask())["foreign-messages"]
    assert seen.startswith(f"workers of pool {POOL} dropped 3 messages that belong to no job")
    jobs.now -= 25 * 3_600_000
    report(3, 1)
    jobs.now += 25 * 3_600_000
    jobs.worker(WORKER, WorkerState.BUSY)
    assert await ask() == {}


async def test_clocks_that_differ_from_redis_are_found(jobs: TimedJobs, ask: Ask) -> None:
    now_ms = time.time_ns() // 1_000_000
    jobs.run(calls.adjust_clock(clock_ms=now_ms))
    assert await ask() == {}
    jobs.run(calls.adjust_clock(clock_ms=now_ms - 3_600_000))
    assert (await ask())["clocks"].startswith("the clock of a courier was 60 min behind Redis'")


async def test_redis_clock_that_was_set_back_is_found(jobs: TimedJobs, ask: Ask) -> None:
    now_ms = time.time_ns() // 1_000_000
    jobs.run(calls.adjust_clock(clock_ms=now_ms, now=now_ms + 3_600_000))
    assert jobs.run(calls.adjust_clock(clock_ms=now_ms)) > 3_500_000
    assert (await ask())["clocks"].startswith("the clock of Redis was set back by 60 min")


async def test_a_backlog_is_found_when_it_takes_many_bytes(jobs: TimedJobs, ask: Ask) -> None:
    jobs.submit(input={"prompt": "x" * 100_000})
    assert "429" in (await ask(Limits(backlog_bytes=120_000)))["backlog"]
    assert await ask(Limits(backlog_bytes=200_000)) == {}


@pytest.mark.parametrize(
    ("limit", "words"), [(10, "submissions are refused"), (12, "soon"), (13, None)], ids=["full", "nearly full", "room"]
)
async def test_a_backlog_is_found_when_it_is_full_or_nearly(
    jobs: TimedJobs, ask: Ask, limit: int, words: str | None
) -> None:
    for _ in range(10):
        jobs.submit()
    assert words is None or words in (await ask(Limits(backlog=limit)))["backlog"]
    assert words is not None or await ask(Limits(backlog=limit)) == {}


async def test_a_courier_that_stopped_is_found(jobs: TimedJobs, ask: Ask) -> None:
    jobs.redis.hset(jobs.key("pool", POOL), "reaped", jobs.now - LONG_AGO_MS)
    assert "10 min" in (await ask())["courier"]


async def test_a_courier_that_was_never_started_is_found(jobs: TimedJobs, ask: Ask) -> None:
    jobs.redis.hdel(jobs.key("pool", POOL), "reaped")
    assert await ask() == {}, "a pool that was just announced"
    jobs.redis.hset(jobs.key("pool", POOL), "announced", jobs.now - LONG_AGO_MS)
    assert "since it was announced" in (await ask())["courier"]


def ended_long_ago(jobs: TimedJobs) -> str:
    job_id: str = long_ago(jobs, jobs.running)
    assert long_ago(jobs, lambda: jobs.finish(job_id)) is AttemptEnd.COMPLETED
    assert jobs.state(job_id) is State.COMPLETED
    return job_id


async def test_a_terminal_event_that_no_courier_posts_is_found(jobs: TimedJobs, ask: Ask) -> None:
    job_id = ended_long_ago(jobs)
    assert f"no courier posts: the end of one job is not applied, that of {job_id}" in (await ask())["sink"]


async def test_a_sink_that_drops_events_is_distinguished_from_one_that_refuses(jobs: TimedJobs, ask: Ask) -> None:
    job_id = ended_long_ago(jobs)
    assert long_ago(jobs, lambda: jobs.lease(call="1")) == [job_id]
    assert "accepts events and drops them" in (await ask())["sink"]
    jobs.run(calls.reschedule_relay(job_id, delay_ms=1))
    assert "refuses" in (await ask())["sink"]
    for call in ("2", "3"):
        jobs.now += LONG_AGO_MS
        assert jobs.lease(call=call) == [job_id]
    assert "accepts events and drops them" in (await ask())["sink"]


async def test_jobs_that_are_not_archived_are_found(jobs: TimedJobs, ask: Ask) -> None:
    job_id = ended_long_ago(jobs)
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now))
    assert set(seen := await ask()) == {"history"}
    assert job_id in seen["history"]
    jobs.run(calls.mark_archived(job_id, seq=seq, now=jobs.now))
    assert await ask() == {}


async def test_recent_jobs_are_no_finding(jobs: TimedJobs, ask: Ask) -> None:
    jobs.finish(jobs.running())
    assert await ask() == {}


# -- real parts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink().running() as running:
        yield running


@pytest.fixture
def courier(redis_url: str, namespace: str, sink: Sink, tmp_path: Path) -> Iterator[Part]:
    settings = environment(
        redis_url, namespace, K_SINK=sink.url, DARKROOM_RELAY_LEASE_S="0.5", DARKROOM_POLL_INTERVAL_S="0.1"
    )
    part = Part("darkroom_courier", environment=settings, log=tmp_path / "courier.log")
    yield part
    part.stop()


@pytest.mark.parametrize(
    ("status", "words"), [(202, "accepts events and drops them"), (503, "refuses")], ids=["forgets", "refuses"]
)
async def test_refusals_of_the_sink_are_found_with_a_real_courier(
    redis_url: str, namespace: str, sink: Sink, courier: Part, status: int, words: str
) -> None:
    sink.behave = lambda _event: Answer(status)
    jobs = TimedJobs(redis_url, namespace)
    jobs.now = time.time_ns() // 1_000_000
    jobs.finish(job_id := jobs.running())
    courier.start()
    await asyncio.to_thread(eventually, lambda: len(sink.of(job_id)) >= 2, what="two posts")
    seen = found(await diagnosed(redis_url, namespace, Limits(unapplied_s=0.5)))
    jobs.close()
    assert words in seen["sink"]
    assert "courier" not in seen


@pytest.fixture
async def house(redis_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Testbed]:
    async with connect_async(redis_url) as client:
        ledger = AsyncLedger(client, namespace)
        house = Testbed(ledger, redis_url=redis_url, namespace=namespace, folder=tmp_path)
        await ledger.run(calls.announce_pool(WORKER_POOL, models=["quick"]))
        yield house
        house.stop()


@pytest.fixture
def broker(house: Testbed) -> Iterator[Celery]:
    """A Celery app that only talks to the workers, as Flower's does."""
    app = Celery("tests", broker=house.redis_url, set_as_current=False)
    app.conf.broker_transport_options = queues.transport_options(house.namespace, WORKER_POOL)
    yield app
    app.close()


async def test_of_two_workers_the_one_that_is_alive_but_deaf_is_found(house: Testbed, broker: Celery) -> None:
    hearing, deaf = house.worker(), house.worker()
    names = [(await house.registered(worker, WorkerState.READY)).name for worker in (hearing, deaf)]
    limits = Limits(canary_s=5, courier_silent_s=3600)  # no courier runs here
    assert found(await diagnosed(house.redis_url, house.namespace, limits)) == {}

    said = await asyncio.to_thread(
        broker.control.cancel_consumer,
        queues.queue_name(WORKER_POOL),
        destination=[f"{WORKER_POOL}@{names[1]}"],
        reply=True,
        timeout=30,
        limit=1,
    )
    assert said
    seen = found(await diagnosed(house.redis_url, house.namespace, limits))

    assert set(seen) == {"deaf-workers"}
    assert names[1] in seen["deaf-workers"]
    assert (await house.ended(await house.submit())).state is State.COMPLETED, "the other one works on"

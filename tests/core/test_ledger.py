"""The ledger's client: reads, paging, and a Redis that loses replies or scripts or is unavailable."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from darkroom.errors import LedgerUnavailable
from darkroom.jobs import JobEvent, State, new_job_id
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Accepted, AttemptEnd, Receipt, WorkerState
from darkroom.ledger.client import AsyncLedger, Ledger
from darkroom.ledger.connection import connect, connect_async
from darkroom.ledger.records import LogEntry, WorkerRecord, decode_live
from darkroom.ledger.scripts import texts
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.core.timed_jobs import POOL, START_MS, TENANT, TimedJobs
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.waiting import eventually

LOADED_COMMANDS, LOAD_DELAY_US = 1_000_000, -2
"""What a server has to load, with a pause after every second command: it is busy for far longer than the test, and yet
answers every 1,000 commands, as it does while it loads.
"""


# -- one job -----------------------------------------------------------------------------------------------------------


async def test_a_job_is_read_by_its_tenant_and_by_no_other(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job_id = jobs.submit()
    record = await ledger.job(job_id, tenant=TENANT)
    assert record is not None
    assert record == jobs.record(job_id)
    assert await ledger.job(job_id, tenant="stranger") is None
    assert await ledger.job(job_id, tenant=None) == record


async def test_an_unknown_job_is_none(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    assert await ledger.job("unknown-job", tenant=TENANT) is None
    assert jobs.ledger.job("unknown-job") is None


async def test_many_jobs_are_read_in_the_order_asked(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    first, second, strange = jobs.submit(), jobs.submit(), jobs.submit(tenant="stranger")
    records = await ledger.jobs([second, "unknown-job", strange, first], tenant=TENANT)
    assert [None if record is None else record.id for record in records] == [second, None, None, first]


async def test_reading_no_jobs_returns_nothing(ledger: AsyncLedger) -> None:
    assert await ledger.jobs([], tenant=TENANT) == []
    assert await reads.log_heads(ledger, []) == []
    assert await ledger.run_each([]) == []


# -- the log -----------------------------------------------------------------------------------------------------------


async def test_the_log_has_every_event_in_order(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job_id = jobs.running()
    jobs.progress(job_id, op=1, step=1, steps=4)
    jobs.retry(job_id, delay_ms=0)
    jobs.claim(job_id, token="second")
    jobs.cancel(job_id)
    jobs.finish(job_id, token="second")
    log = await reads.log(ledger, job_id)
    assert [entry.event for entry in log] == [
        JobEvent.ACCEPTED,
        JobEvent.STARTED,
        JobEvent.PROGRESSED,
        JobEvent.RETRIED,
        JobEvent.STARTED,
        JobEvent.CANCELLING,
        JobEvent.CANCELLED,
    ]
    assert [entry.seq for entry in log] == list(range(1, 8))
    assert [entry.event_id for entry in log[-2:]] == [f"{job_id}:6", f"{job_id}:end"]


async def test_the_log_is_read_from_where_a_reader_stopped(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    whole = await reads.log(ledger, job_id)
    assert [await reads.log(ledger, job_id, after=seq) for seq in range(4)] == [whole, whole[1:], whole[2:], []]


async def test_the_head_of_a_log_is_its_newest_entry(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    waiting, done = jobs.submit(), jobs.running()
    jobs.finish(done)
    heads = await reads.log_heads(ledger, [done, "unknown-job", waiting])
    assert heads == [(await reads.log(ledger, done))[-1], None, (await reads.log(ledger, waiting))[-1]]


async def test_the_published_message_is_the_entry_of_the_log(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job = jobs.submission(accepted={"model": "sd", "line": "one\ntwo", "none": []})
    heard: list[LogEntry] = []
    with jobs.redis.pubsub() as channel:
        channel.subscribe(ledger.keys.live_channel(job.job_id))
        assert channel.get_message(timeout=60)["type"] == "subscribe"
        jobs.run(calls.accept(job, backlog_limit=10, now=jobs.now))
        jobs.claim(job.job_id)
        jobs.progress(job.job_id, op=1, step=1, steps=3)
        jobs.retry(job.job_id, delay_ms=0)
        jobs.cancel(job.job_id)
        while not heard or not heard[-1].state.is_terminal:
            message = channel.get_message(timeout=60)
            assert message is not None
            heard.append(decode_live(job.job_id, message["data"]))
    assert heard == await reads.log(ledger, job.job_id)
    assert len(heard) == 5


# -- JSON --------------------------------------------------------------------------------------------------------------

AWKWARD: dict[str, Any] = {
    "prompt": 'ein Leuchtturm "bei Nacht" \\ \u2028 \U0001f5fc \x7f / </script>',
    "none": [],
    "nothing": {},
    "deep": {"list": [[], {}, [[]]], "null": None, "false": False},
    "large": 2**60,
    "larger": -(2**63) - 1,
    "small": 1e-7,
    "ratio": 0.1,
}
AWKWARD_JSON = json.dumps(AWKWARD, separators=(",", ":"), ensure_ascii=False).encode()


def test_json_is_stored_byte_for_byte(jobs: TimedJobs) -> None:
    job_id = jobs.running(input=AWKWARD, fields=AWKWARD, accepted=AWKWARD)
    jobs.finish(job_id, data=AWKWARD)
    key, log = jobs.key("job", job_id), jobs.key("log", job_id)
    assert jobs.redis.hmget(key, "input", "fields", "end_data") == [AWKWARD_JSON] * 3
    entries = [fields[b"data"] for _, fields in jobs.redis.xrange(log)]
    assert (entries[0], entries[-1]) == (AWKWARD_JSON, AWKWARD_JSON)


def test_json_is_read_as_it_was_written(jobs: TimedJobs) -> None:
    job_id = jobs.running(input=AWKWARD, fields=AWKWARD)
    jobs.finish(job_id, data=AWKWARD)
    record = jobs.record(job_id)
    assert (record.input, record.fields, record.end_data) == (AWKWARD, AWKWARD, AWKWARD)


def test_the_error_of_a_retry_is_stored_byte_for_byte(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.run(calls.retry(job_id, token="token", error=AWKWARD, delay_ms=0, now=jobs.now))
    assert b'{"error":' + AWKWARD_JSON + b"," in jobs.redis.xrevrange(jobs.key("log", job_id), count=1)[0][1][b"data"]
    assert jobs.log(job_id)[-1].data["error"] == AWKWARD


# -- pages -------------------------------------------------------------------------------------------------------------


async def submit_many(jobs: TimedJobs, ledger: AsyncLedger, count: int, **more: Any) -> list[str]:
    """Submit a job in each of `count` milliseconds; returns their ids in order."""
    batch = []
    for number in range(count):
        job = jobs.submission(job_id=new_job_id(START_MS + number), **more)
        batch.append(calls.accept(job, backlog_limit=10_000, now=START_MS + number))
    accepted: list[str] = []
    for answer in await ledger.run_each(batch):
        assert isinstance(answer, Accepted)
        accepted.append(answer.job_id)
    return accepted


async def pages(ledger: AsyncLedger, *, limit: int, **filters: Any) -> list[list[str]]:
    """The ids of each page, up to the last."""
    found: list[list[str]] = []
    after: str | None = None
    while True:
        page = await reads.page(ledger, TENANT, limit=limit, after=after, **filters)
        found.append([record.id for record in page.jobs])
        after = page.after
        if after is None:
            return found


@pytest.mark.parametrize("limit", [1, 7, 100, 199, 200, 499, 500, 501])
async def test_pages_hold_every_job_once_newest_first(redis_url: str, namespace: str, limit: int) -> None:
    jobs = TimedJobs(redis_url, namespace)
    client = connect_async(redis_url)
    ledger = AsyncLedger(client, namespace)
    submitted = await submit_many(jobs, ledger, 500 if limit >= 100 else 30)
    found = await pages(ledger, limit=limit)
    assert [job_id for page in found for job_id in page] == submitted[::-1]
    assert all(len(page) == limit for page in found[:-1])
    await client.aclose()
    jobs.close()


async def test_the_last_page_has_no_cursor(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    await submit_many(jobs, ledger, 6)
    assert [len(page) for page in await pages(ledger, limit=3)] == [3, 3]


async def test_no_job_is_one_empty_page(ledger: AsyncLedger) -> None:
    assert await pages(ledger, limit=3) == [[]]


async def test_a_page_has_the_tenants_jobs_only(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    jobs.submit(tenant="stranger")
    mine = jobs.submit()
    assert await pages(ledger, limit=3) == [[mine]]


async def test_new_jobs_do_not_move_the_pages_behind(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    submitted = await submit_many(jobs, ledger, 4)
    first = await reads.page(ledger, TENANT, limit=2)
    jobs.submit(job_id=new_job_id(START_MS + 1_000))
    second = await reads.page(ledger, TENANT, limit=2, after=first.after)
    assert [record.id for record in (*first.jobs, *second.jobs)] == submitted[::-1]


async def test_a_page_may_begin_behind_a_job_that_is_gone(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    submitted = await submit_many(jobs, ledger, 4)
    page = await reads.page(ledger, TENANT, limit=2)
    assert page.after == submitted[2]
    jobs.redis.delete(jobs.key("job", submitted[2]))
    jobs.redis.zrem(jobs.key("tenant", TENANT), submitted[2])
    rest = await reads.page(ledger, TENANT, limit=2, after=page.after)
    assert [record.id for record in rest.jobs] == submitted[1::-1]


async def test_a_job_whose_record_is_gone_is_on_no_page(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    submitted = await submit_many(jobs, ledger, 5)
    for gone in (submitted[1], submitted[4]):
        jobs.redis.delete(jobs.key("job", gone))
    assert await pages(ledger, limit=2) == [[submitted[3], submitted[2]], [submitted[0]]]


async def test_pages_are_filtered_by_state_model_and_user(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    matching = [jobs.submit(model="flux", fields={"user_id": "ben"}) for _ in range(3)]
    for fields, model in (({"user_id": "ben"}, "sd"), ({"user_id": "anna"}, "flux"), ({}, "flux")):
        jobs.submit(model=model, fields=fields)
    jobs.cancel(jobs.submit(model="flux", fields={"user_id": "ben"}))
    found = await pages(ledger, limit=2, state=State.PENDING, model="flux", user_id="ben")
    assert sorted(job_id for page in found for job_id in page) == sorted(matching)
    assert len(found[0]) == 2


async def test_a_filter_finds_a_rare_job_far_behind(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    rare = await submit_many(jobs, ledger, 1, model="flux")
    await asyncio.gather(*(submit_many(jobs, ledger, 150) for _ in range(3)))
    assert [job_id for page in await pages(ledger, limit=5, model="flux") for job_id in page] == rare


async def test_a_page_that_matches_nothing_for_long_ends_and_goes_on(
    jobs: TimedJobs, ledger: AsyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.ledger.reads.jobs.SCAN_SLICE", 4)
    monkeypatch.setattr("darkroom.ledger.reads.jobs.SCAN_LIMIT", 8)
    rare = await submit_many(jobs, ledger, 1, model="flux")
    await submit_many(jobs, ledger, 19)
    found = await pages(ledger, limit=5, model="flux")
    assert [job_id for page in found for job_id in page] == rare
    assert found[:2] == [[], []]


# -- workers and pools -------------------------------------------------------------------------------------------------


async def test_the_pools_are_those_that_were_announced(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    jobs.run(calls.announce_pool("another", models=["flux", "sd"], now=jobs.now))
    assert await reads.pools(ledger) == ["another", POOL]


async def test_the_pools_of_an_owner_are_those_that_it_announced_and_that_accept_jobs(
    jobs: TimedJobs, ledger: AsyncLedger
) -> None:
    for pool, models, owner in (("b", ["sd"], "one"), ("a", ["sd"], "one"), ("c", ["sd"], "two"), ("d", [], "one")):
        jobs.run(calls.announce_pool(pool, models=models, owner=owner, now=jobs.now))
    assert await reads.pools_of(ledger, "one") == ["a", "b"]


async def test_the_workers_are_those_that_registered(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    jobs.run(calls.register_worker("b", pool=POOL, state=WorkerState.BUSY, pod="pod-1", models=["sd"], now=jobs.now))
    jobs.worker("a", WorkerState.STARTING)
    jobs.worker("c")
    jobs.worker("c", WorkerState.GONE)
    job_id = jobs.submit()
    jobs.claim(job_id, worker="b")
    assert await reads.workers(ledger) == [
        WorkerRecord("a", POOL, "", "starting", START_MS, None),
        WorkerRecord("b", POOL, "pod-1", "busy", START_MS, job_id),
    ]


async def test_a_worker_without_a_heartbeat_is_removed(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    jobs.worker("old")
    jobs.now += 5 * calls.WORKER_TTL_MS + 1
    jobs.worker("new")
    assert [worker.name for worker in await reads.workers(ledger)] == ["new"]


# -- a reply that is lost ----------------------------------------------------------------------------------------------


class Cutter:
    """A TCP proxy that forwards a request, waits for its reply, and closes the connection instead of returning it."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.cuts = 0
        self.word = b"EVALSHA"
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it closes."""
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            while request := await reader.read(1 << 20):
                upstream_writer.write(request)
                reply = await upstream_reader.read(1 << 20)
                if self.word in request and self.cuts > 0:
                    self.cuts -= 1
                    return
                writer.write(reply)
        finally:
            for each in (writer, upstream_writer):
                each.close()
                with suppress(ConnectionError):
                    await each.wait_closed()


@asynccontextmanager
async def cutter(redis_url: str) -> AsyncIterator[tuple[Cutter, str]]:
    """A cutter in front of this Redis, and its address."""
    proxy = Cutter(urlsplit(redis_url).port or 0)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with server:
        yield proxy, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        server.close()


async def test_a_job_whose_reply_was_lost_is_accepted_once(jobs: TimedJobs, any_redis_url: str) -> None:
    async with cutter(any_redis_url) as (proxy, url):
        client = connect_async(url)
        ledger = AsyncLedger(client, jobs.namespace)
        await ledger.ping()
        proxy.cuts = 1
        job = jobs.submission()
        answer = await ledger.run(calls.accept(job, backlog_limit=10, now=jobs.now))
        assert answer == Accepted(job.job_id, START_MS, repeated=True)
        assert (proxy.cuts, jobs.listed(), len(jobs.log(job.job_id))) == (0, [job.job_id], 1)
        await client.aclose()


async def test_jobs_whose_replies_were_lost_are_each_accepted_once(jobs: TimedJobs, any_redis_url: str) -> None:
    async with cutter(any_redis_url) as (proxy, url):
        client = connect_async(url)
        ledger = AsyncLedger(client, jobs.namespace)
        await ledger.ping()
        proxy.cuts = 2
        submissions = [jobs.submission() for _ in range(3)]
        answers = await ledger.run_each([calls.accept(job, backlog_limit=10, now=jobs.now) for job in submissions])
        assert answers == [Accepted(job.job_id, START_MS, repeated=True) for job in submissions]
        assert proxy.cuts == 0
        assert len(jobs.members("waiting") | jobs.members("dispatched")) == 3
        assert len(jobs.listed()) == 1
        await client.aclose()


async def test_a_worker_whose_replies_were_lost_runs_the_job_once(jobs: TimedJobs, any_redis_url: str) -> None:
    def work(client: Any, proxy: Cutter) -> None:
        ledger = Ledger(client, jobs.namespace)
        proxy.cuts = 1
        assert ledger.run(calls.claim(job_id, token="t", worker="one", now=jobs.now)).attempt == 1
        proxy.cuts = 1
        ledger.run(calls.progress(job_id, token="t", op=1, step=1, steps=2, publish=True, now=jobs.now))
        proxy.cuts = 2
        finish = calls.finish(job_id, token="t", outcome=State.COMPLETED, data={"artifacts": []}, now=jobs.now)
        assert ledger.run(finish) is AttemptEnd.COMPLETED
        assert proxy.cuts == 0

    job_id = jobs.submit()
    async with cutter(any_redis_url) as (proxy, url):
        client = connect(url)
        await asyncio.to_thread(work, client, proxy)
        client.close()
    assert [entry.event for entry in jobs.log(job_id)] == [
        JobEvent.ACCEPTED,
        JobEvent.STARTED,
        JobEvent.PROGRESSED,
        JobEvent.COMPLETED,
    ]


async def test_a_redis_that_cuts_every_connection_is_unavailable(jobs: TimedJobs, any_redis_url: str) -> None:
    async with cutter(any_redis_url) as (proxy, url):
        client = connect_async(url)
        ledger = AsyncLedger(client, jobs.namespace)
        proxy.cuts = 1_000
        with pytest.raises(LedgerUnavailable):
            await ledger.job("unknown-job", tenant=None)
        await client.aclose()


# -- scripts that Redis does not have ----------------------------------------------------------------------------------


def test_a_script_that_redis_does_not_have_is_loaded_again(own_redis: RedisServer, namespace: str) -> None:
    jobs = TimedJobs(own_redis.url, namespace)
    job_id = jobs.submit()
    jobs.redis.script_flush()
    assert jobs.claim(job_id).attempt == 1
    jobs.redis.script_flush()
    assert jobs.ledger.job(job_id) is not None
    jobs.close()


async def test_scripts_that_redis_does_not_have_are_loaded_again_for_a_round_trip(
    own_redis: RedisServer, namespace: str
) -> None:
    jobs = TimedJobs(own_redis.url, namespace)
    client = connect_async(own_redis.url)
    ledger = AsyncLedger(client, namespace)
    job_id = jobs.submit()
    jobs.redis.script_flush()
    cancel = calls.cancel(job_id, tenant=TENANT, now=jobs.now)
    assert (await ledger.run(cancel)).receipt is Receipt.DEQUEUED
    jobs.redis.script_flush()
    submissions = [jobs.submission() for _ in range(3)]
    answers = await ledger.run_each([calls.accept(job, backlog_limit=10, now=jobs.now) for job in submissions])
    assert answers == [Accepted(job.job_id, START_MS, repeated=False) for job in submissions]
    await client.aclose()
    jobs.close()


async def test_calls_whose_scripts_redis_has_run_once_when_others_are_loaded(
    own_redis: RedisServer, namespace: str
) -> None:
    jobs = TimedJobs(own_redis.url, namespace)
    client = connect_async(own_redis.url)
    ledger = AsyncLedger(client, namespace)
    late = jobs.submit(start_deadline=START_MS)
    jobs.redis.script_flush()
    await ledger.run(calls.announce_pool(POOL, models=["sd"], now=jobs.now))  # loads all
    jobs.redis.script_flush()
    job = jobs.submission()
    jobs.run(calls.expire(now=START_MS - 1))  # loads this one alone
    batch: list[calls.Call[Any]] = [
        calls.expire(now=jobs.now),
        calls.accept(job, backlog_limit=10, now=jobs.now),
    ]
    assert await ledger.run_each(batch) == [[late], Accepted(job.job_id, START_MS, repeated=False)]
    await client.aclose()
    jobs.close()


# -- a Redis that is away ----------------------------------------------------------------------------------------------

READS: dict[str, Callable[[AsyncLedger], Awaitable[Any]]] = {
    "run": lambda ledger: ledger.run(calls.expire()),
    "job": lambda ledger: ledger.job("job", tenant=None),
    "jobs": lambda ledger: ledger.jobs(["job"], tenant=None),
    "log": lambda ledger: reads.log(ledger, "job"),
    "heads": lambda ledger: reads.log_heads(ledger, ["job"]),
    "page": lambda ledger: reads.page(ledger, TENANT, limit=1),
    "pools": reads.pools,
    "observe": lambda ledger: reads.observe(ledger, [POOL]),
    "workers": reads.workers,
    "memory": reads.memory,
    "ping": lambda ledger: ledger.ping(),
}


async def refusals(url: str, namespace: str) -> dict[str, object]:
    """The exceptions of each kind of call."""
    client, sync_client = connect_async(url), connect(url)
    ledger, sync_ledger = AsyncLedger(client, namespace), Ledger(sync_client, namespace)
    attempts = {name: read(ledger) for name, read in READS.items()}
    attempts["run_each"] = ledger.run_each([calls.expire(), calls.expire()])
    attempts["sync run"] = asyncio.to_thread(sync_ledger.run, calls.expire())
    attempts["sync job"] = asyncio.to_thread(sync_ledger.job, "job")
    answers = await asyncio.gather(*attempts.values(), return_exceptions=True)
    await client.aclose()
    sync_client.close()
    return dict(zip(attempts, answers, strict=True))


def assert_all_unavailable(answers: dict[str, object]) -> None:
    for name, answer in answers.items():
        for each in answer if isinstance(answer, list) else [answer]:
            assert isinstance(each, LedgerUnavailable), (name, answer)
            assert each.retry_after > 0


async def test_without_redis_every_call_raises(own_redis: RedisServer, namespace: str) -> None:
    own_redis.stop()
    assert_all_unavailable(await refusals(own_redis.url, namespace))


async def test_a_client_that_lost_redis_goes_on_when_it_is_back(own_redis: RedisServer, namespace: str) -> None:
    jobs = TimedJobs(own_redis.url, namespace)
    client = connect_async(own_redis.url)
    ledger = AsyncLedger(client, namespace)
    job_id = jobs.submit()
    assert await ledger.job(job_id, tenant=TENANT) is not None
    own_redis.stop()
    with pytest.raises(LedgerUnavailable):
        await ledger.job(job_id, tenant=TENANT)
    own_redis.start()
    record = await ledger.job(job_id, tenant=TENANT)
    assert record is not None
    assert record.state is State.PENDING
    assert jobs.claim(job_id).attempt == 1
    await client.aclose()
    jobs.close()


async def test_while_redis_loads_its_data_every_call_raises(redis_binary: Path, tmp_path: Path, namespace: str) -> None:
    port = free_port()
    (tmp_path / "appendonly.aof").write_bytes(b"*1\r\n$4\r\nPING\r\n" * LOADED_COMMANDS)
    options = {"bind": "127.0.0.1", "port": port, "dir": tmp_path, "appendonly": "yes", "key-load-delay": LOAD_DELAY_US}
    server = subprocess.Popen(
        [redis_binary, *(str(text) for name, value in options.items() for text in (f"--{name}", value))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"redis://127.0.0.1:{port}/0"
        eventually(lambda: is_loading(url), what="a Redis that loads")
        answers = await refusals(url, namespace)
        del answers["memory"]  # INFO is answered while Redis loads
        assert_all_unavailable(answers)
        assert is_loading(url)
    finally:
        server.kill()
        server.wait()


def is_loading(url: str) -> bool:
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        try:
            client.ping()
        except redis.BusyLoadingError:
            return True
        except redis.ConnectionError:
            pass  # it has not begun to listen
        return False


async def test_a_redis_that_cannot_write_is_unavailable_for_changes(own_redis: RedisServer, namespace: str) -> None:
    """Like the old primary after a failover."""
    jobs = TimedJobs(own_redis.url, namespace)
    client = connect_async(own_redis.url)
    ledger = AsyncLedger(client, namespace)
    job_id = jobs.submit()
    jobs.redis.replicaof("127.0.0.1", "1")
    with pytest.raises(LedgerUnavailable):
        await ledger.run(calls.accept(jobs.submission(), backlog_limit=10))
    with pytest.raises(LedgerUnavailable):
        jobs.claim(job_id)
    (answer,) = await ledger.run_each([calls.cancel(job_id, tenant=TENANT)])
    assert isinstance(answer, LedgerUnavailable)
    assert await ledger.job(job_id, tenant=TENANT) is not None, "it reads all the same"
    await client.aclose()
    jobs.close()


def test_a_script_has_the_parts_of_the_prelude_that_it_needs() -> None:
    prelude = (resources.files("darkroom.ledger") / "lua" / "prelude.lua").read_text()
    defined = set(re.findall(r"^local (?:function )?(\w+)", prelude, re.MULTILINE))
    assert {"P", "a", "now", "dispatch", "finish_job"} <= defined
    for name, text in texts().items():
        code = re.sub(rb"--.*$|'[^'\n]*'", b"", text, flags=re.MULTILINE).decode()
        has = set(re.findall(r"^local (?:function )?(\w+)", code, re.MULTILINE))
        assert defined & set(re.findall(r"\w+", code)) <= has, name
    assert b"finish_job" in texts()["finish"]
    assert b"finish_job" not in texts()["renew"]

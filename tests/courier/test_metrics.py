"""The metrics that couriers export of jobs."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from darkroom.history.store import PastJob
from darkroom.jobs import JobEvent, State
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Applied, AttemptResult, DroppedMessages, WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.queues import Foreign
from darkroom.ledger.reads.jobs import OUTBOX_SAMPLE
from darkroom.ledger.records import FIELDS, JobRecord, LogEntry, Outbox
from darkroom.webhooks.subscriptions import Webhook, WebhookEvent
from darkroom_courier.metrics import MAX_TENANTS, OTHER, CourierMetrics, attempts

from tests.courier.conftest import Start
from tests.courier.sink import Answer, Sink
from tests.driven_jobs import POOL, DrivenJobs
from tests.ports import free_port
from tests.served_metrics import Served, ask, read
from tests.waiting import eventually

QUICK = {"DARKROOM_POLL_INTERVAL_S": "0.05", "DARKROOM_HISTORY_LEASE_S": "60"}
JOB = {"pool": POOL, "model": "sd"}
AT = 1_700_000_000_000


def courier(start: Start, **more: str) -> int:
    """A courier that serves metrics, and its port."""
    port = free_port()
    start(DARKROOM_PROBE_PORT=str(port), **QUICK, **more)

    def answers() -> bool:
        try:
            return ask(port).value("darkroom_ledger_known") == 1
        except httpx.TransportError:
            return False

    eventually(answers, what="the courier has read Redis")
    return port


def apply(jobs: DrivenJobs, job_id: str) -> None:
    """Apply the job's terminal event, as the function `result` does."""
    assert jobs.run(calls.mark_applied(job_id, seq=jobs.end_seq(job_id))) is Applied.APPLIED


def counted(ports: list[int], series: str, **labels: str) -> float:
    """The sum over all couriers."""
    return sum(ask(port).value(series, **labels) for port in ports)


def test_each_job_is_counted_once_by_whichever_courier_archives_it(start: Start, jobs: DrivenJobs) -> None:
    ports = [courier(start), courier(start)]
    ended = [jobs.completed() for _ in range(40)]
    for _ in range(2):
        jobs.submit()
        jobs.cancel(jobs.submit())
    done = len(ended) + 2

    def all_counted() -> bool:
        return counted(ports, "darkroom_jobs_ended_total") >= done

    eventually(all_counted, what="every end is counted")
    # As a courier leaves them that was killed before it reported that they are archived, or whose reply was lost.
    jobs.redis.zadd(f"{jobs.namespace}:history", dict.fromkeys(ended, 0))
    eventually(lambda: jobs.redis.zcard(f"{jobs.namespace}:history") == 0, what="they are archived again")
    marker = jobs.submit()
    jobs.start(marker)
    jobs.fail(marker, message="no more")
    eventually(lambda: counted(ports, "darkroom_jobs_ended_total", state="failed"), what="what came after is counted")
    assert counted(ports, "darkroom_jobs_ended_total", state="completed", **JOB) == len(ended)
    assert counted(ports, "darkroom_jobs_ended_total", state="cancelled", **JOB) == 2
    assert counted(ports, "darkroom_jobs_ended_total", state="failed", error="transient") == 1
    for series in ("darkroom_job_submit_to_start_seconds", "darkroom_job_start_to_end_seconds"):
        assert counted(ports, f"{series}_count", **JOB) == len(ended) + 1, "those that were started"
    assert counted(ports, "darkroom_images_total", **JOB) == len(ended)


def test_a_result_is_counted_when_its_terminal_event_is_applied_even_long_after_it_was_archived(
    start: Start, sink: Sink, jobs: DrivenJobs
) -> None:
    sink.behave = lambda _event: Answer(503, {"Retry-After": "300"})
    port = courier(start)
    applied_job, deleted_job = jobs.completed(), jobs.completed()
    eventually(lambda: ask(port).value("darkroom_jobs_ended_total") == 2, what="both are archived")
    metrics = ask(port)
    assert metrics.value("darkroom_job_submit_to_result_seconds_count") == 0
    assert metrics.value("darkroom_outbox_jobs") == 2
    assert metrics.value("darkroom_outbox_age_seconds") >= 0
    # A deleted job is dropped.
    jobs.run(calls.delete_job(deleted_job, tenant="default"))
    created = int(jobs.redis.hget(f"{jobs.namespace}:job:{applied_job}", "created"))
    apply(jobs, applied_job)
    applied = int(jobs.redis.hget(f"{jobs.namespace}:job:{applied_job}", "applied"))
    eventually(lambda: ask(port).value("darkroom_job_submit_to_result_seconds_count") == 1, what="the result")
    metrics = ask(port)
    assert metrics.value("darkroom_job_submit_to_result_seconds_sum", **JOB) == pytest.approx(
        (applied - created) / 1000
    )
    assert metrics.value("darkroom_outbox_jobs") == 0
    assert metrics.value("darkroom_outbox_age_seconds") == 0


def test_the_backlog_and_the_memory_of_redis_are_read_on_each_scrape(start: Start, jobs: DrivenJobs) -> None:
    port = courier(start)
    assert ask(port).value("darkroom_pool_queue_age_seconds", pool=POOL) == 0
    job_id = jobs.submit()
    jobs.redis.hset(f"{jobs.namespace}:job:{job_id}", "created", int(time.time() * 1000) - 90_000)
    metrics = ask(port)
    assert 89 < metrics.value("darkroom_pool_queue_age_seconds", pool=POOL) < 600
    assert metrics.value("darkroom_redis_memory_used_bytes") > 100_000
    assert ("darkroom_redis_memory_limit_bytes", frozenset()) in metrics.values
    assert metrics.value("darkroom_ledger_known") == 1


def test_foreign_messages_that_workers_dropped_are_counted(start: Start, jobs: DrivenJobs) -> None:
    port = courier(start)
    assert ask(port).value("darkroom_pool_foreign_messages_total", pool=POOL) == 0
    dropped = DroppedMessages(1, 3, Foreign.NOT_JSON)
    jobs.run(calls.register_worker("w-1", pool=POOL, state=WorkerState.BUSY, pod="", models=["sd"], dropped=dropped))
    assert ask(port).value("darkroom_pool_foreign_messages_total", pool=POOL) == 3


def test_dead_letters_lost_attempts_and_attempts_of_deliveries_are_counted(start: Start, jobs: DrivenJobs) -> None:
    port = courier(start, DARKROOM_WEBHOOK_ALLOW="127.0.0.1")
    before = ask(port)
    assert ("darkroom_dead_letters_total", frozenset({("pool", POOL)})) in before.values, "or the first were no rise"
    jobs.run(calls.register_worker("w", pool=POOL, state=WorkerState.READY, pod="", models=["sd"]))
    unreachable = f"http://127.0.0.1:{free_port()}/"
    dead = jobs.submit(max_attempts=1, webhook=Webhook(unreachable, frozenset(WebhookEvent)))
    jobs.start(dead)
    error = {"kind": "out_of_memory", "message": "too large"}
    jobs.run(calls.retry(dead, token="token", error=error, delay_ms=0))
    apply(jobs, dead)
    eventually(lambda: ask(port).value("darkroom_dead_letters_total", pool=POOL) == 1, what="the dead letter")
    assert ask(port).value("darkroom_jobs_ended_total", state="failed", error="out_of_memory") == 1
    eventually(
        lambda: ask(port).value("darkroom_delivery_try_seconds_count", outcome="again") >= 1, what="the failed try"
    )


# What is made of a record, without a courier


def past(*entries: tuple[int, JobEvent, dict[str, Any]], state: State = State.COMPLETED, **more: Any) -> PastJob:
    """A job that was submitted at AT and has this log, so many milliseconds later each; the last is its end."""
    log = [LogEntry("j", seq, event, _state(event), AT + ms, data) for seq, (ms, event, data) in enumerate(entries, 2)]
    end = log[-1]
    starts = [entry.at for entry in log if entry.event is JobEvent.STARTED]
    fields: dict[str, Any] = dict.fromkeys(field.name for field in FIELDS)
    fields |= {"id": "j", "tenant": "default", "model": "sd", "pool": POOL, "state": state, "input": {}, "fields": {}}
    fields |= {"created": AT, "started": starts[0] if starts else None, "ended": end.at, "attempt": len(starts)}
    fields |= {"counted": 0, "max_attempts": 3, "priority": 5, "run_timeout": 60.0, "worker": "w", "progress": 0}
    fields |= {"seq": end.seq, "end_seq": end.seq, "end_data": end.data, **more}
    return PastJob.of(JobRecord(**fields), log)


def _state(event: JobEvent) -> State:
    running = {JobEvent.STARTED, JobEvent.CANCELLING}
    pending = {JobEvent.RELEASED, JobEvent.RETRIED}
    return State.RUNNING if event in running else State.PENDING if event in pending else State(event.value)


STARTED: dict[str, Any] = {"attempt": 1}
THRICE = past(
    (1_000, JobEvent.STARTED, STARTED),
    (3_000, JobEvent.RELEASED, {"reason": "drain", "counted": False}),
    (4_000, JobEvent.STARTED, STARTED),
    (4_500, JobEvent.RETRIED, {"error": {"kind": "out_of_memory", "message": "…"}}),
    (9_000, JobEvent.STARTED, STARTED),
    (19_000, JobEvent.COMPLETED, {"artifacts": [{}, {}]}),
)


def test_each_attempt_has_its_seconds_and_the_reason_without_a_result() -> None:
    assert list(attempts(THRICE)) == [(2.0, "drain"), (0.5, "out_of_memory"), (10.0, None)]


@pytest.mark.parametrize(
    ("state", "data", "reason"),
    [
        (State.FAILED, {"error": {"kind": "deadline", "message": "…"}}, "deadline"),
        (State.CANCELLED, {"error": {"kind": "cancelled", "message": "…"}}, "cancelled"),
        (State.FAILED, {"error": {"kind": "worker_lost", "message": "…"}}, "worker_lost"),
    ],
)
def test_the_last_attempt_of_a_job_without_a_result_is_wasted_too(
    state: State, data: dict[str, Any], reason: str
) -> None:
    job = past(
        (1_000, JobEvent.STARTED, STARTED),
        (1_500, JobEvent.CANCELLING, {}),
        (2_000, JobEvent(state), data),
        state=state,
    )
    assert list(attempts(job)) == [(1.0, reason)]


def test_a_job_that_never_started_used_no_worker() -> None:
    expired = past((5_000, JobEvent.EXPIRED, {"error": {"kind": "deadline", "message": "…"}}), state=State.EXPIRED)
    assert list(attempts(expired)) == []


async def test_metrics_use_the_times_of_the_record() -> None:
    """Also while Redis is unavailable: the metrics of the ledger are left out then, and not reported as 0."""
    metrics = await _metrics_of([THRICE])
    assert metrics.value("darkroom_job_submit_to_start_seconds_sum", **JOB) == 1
    assert metrics.value("darkroom_job_start_to_end_seconds_sum", **JOB) == 18
    assert metrics.value("darkroom_job_gpu_seconds_sum", **JOB) == 12.5
    assert metrics.value("darkroom_tenant_gpu_seconds_total", tenant="default") == 12.5
    assert metrics.value("darkroom_wasted_gpu_seconds_total", pool=POOL, reason="drain") == 2
    assert metrics.value("darkroom_wasted_gpu_seconds_total", pool=POOL, reason="out_of_memory") == 0.5
    assert metrics.value("darkroom_images_total", **JOB) == 2
    assert metrics.value("darkroom_ledger_known") == 0
    of_the_ledger = {"darkroom_outbox_jobs", "darkroom_outbox_age_seconds", "darkroom_redis_memory_used_bytes"}
    assert not of_the_ledger & {name for name, _ in metrics.values}
    assert set(AttemptResult) == {
        dict(labels)["outcome"] for name, labels in metrics.values if name == "darkroom_delivery_try_seconds_count"
    }


async def test_a_clock_that_was_set_back_causes_no_negative_times() -> None:
    metrics = await _metrics_of(
        [past((-5_000, JobEvent.STARTED, STARTED), (-9_000, JobEvent.COMPLETED, {"artifacts": []}))]
    )
    for series in ("submit_to_start", "start_to_end", "gpu"):
        assert metrics.value(f"darkroom_job_{series}_seconds_sum") == 0


async def test_the_number_of_series_of_tenants_is_limited() -> None:
    jobs = [
        past((0, JobEvent.STARTED, STARTED), (1_000, JobEvent.COMPLETED, {"artifacts": []}), tenant=f"tenant-{number}")
        for number in range(MAX_TENANTS + 5)
    ]
    metrics = await _metrics_of([*jobs, jobs[0]])
    series = [labels for name, labels in metrics.values if name == "darkroom_tenant_gpu_seconds_total"]
    assert len(series) == MAX_TENANTS + 1
    assert metrics.value("darkroom_tenant_gpu_seconds_total", tenant="tenant-0") == 2
    assert metrics.value("darkroom_tenant_gpu_seconds_total", tenant=OTHER) == 5


async def _metrics_of(jobs: list[PastJob]) -> Served:
    """The metrics of a courier that counted these, and cannot reach Redis."""
    client = connect_async(f"redis://127.0.0.1:{free_port()}")
    try:
        metrics = CourierMetrics(AsyncLedger(client, "unused"))
        for job in jobs:
            metrics.job_ended(job, is_dead=False)
        return read((await metrics.page()).decode())
    finally:
        await client.aclose()


# What the ledger is asked for


async def test_the_oldest_job_of_a_long_outbox_is_among_those_rescheduled_most(
    redis_url: str, jobs: DrivenJobs
) -> None:
    now = int(time.time() * 1000)
    ages_ms = {f"job-{number}": 1_000 for number in range(2 * OUTBOX_SAMPLE + 200)} | {"oldest": 3_600_000}
    with jobs.redis.pipeline(transaction=False) as pipeline:
        for job_id, age_ms in ages_ms.items():
            pipeline.hset(f"{jobs.namespace}:job:{job_id}", "ended", now - age_ms)
            pipeline.zadd(f"{jobs.namespace}:outbox", {job_id: now + age_ms})
        pipeline.execute()
    found = await _outbox(redis_url, jobs)
    assert found.jobs == len(ages_ms)
    assert 3_600_000 <= found.age_ms < 3_600_000 + 600_000


async def test_a_pending_start_waits_in_the_outbox_too(redis_url: str, jobs: DrivenJobs) -> None:
    job_id = jobs.submit(webhook=Webhook("http://127.0.0.1:1/", frozenset(WebhookEvent)))
    jobs.start(job_id)
    jobs.redis.hset(f"{jobs.namespace}:job:{job_id}", "attempt_started", int(time.time() * 1000) - 90_000)
    found = await _outbox(redis_url, jobs)
    assert found.jobs == 1
    assert 90_000 <= found.age_ms < 90_000 + 600_000


async def _outbox(redis_url: str, jobs: DrivenJobs) -> Outbox:
    client = connect_async(redis_url)
    try:
        return await reads.outbox(AsyncLedger(client, jobs.namespace))
    finally:
        await client.aclose()

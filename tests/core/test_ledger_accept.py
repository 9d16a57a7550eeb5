"""What `accept` accepts, what it refuses and in which order, and that a refusal stores nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from darkroom.errors import BacklogFull, DarkroomError, IdConflict, InvalidInput, KeyReused, MemoryHigh, NoPool
from darkroom.jobs import JobEvent, State
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, Submission, WorkerState
from darkroom.ledger.records import LogEntry

from tests.core.timed_jobs import POOL, START_MS, TENANT, TimedJobs

DAY_MS = 24 * 3600 * 1000


def offer(
    jobs: TimedJobs, job: Submission, *, backlog_limit: int = 10_000, memory_high: bool = False
) -> Accepted | DarkroomError:
    """Submit the job. Returns the receipt or the refusal."""
    return jobs.run(calls.accept(job, backlog_limit=backlog_limit, memory_high=memory_high, now=jobs.now))


def refused(answer: Accepted | DarkroomError) -> DarkroomError:
    assert isinstance(answer, DarkroomError), answer
    return answer


def test_the_receipt_has_the_job_and_the_time(jobs: TimedJobs) -> None:
    job = jobs.submission()
    assert offer(jobs, job) == Accepted(job.job_id, START_MS, repeated=False)


def test_the_record_is_what_was_submitted(jobs: TimedJobs) -> None:
    job = jobs.submission(
        priority=2,
        start_deadline=START_MS + 5_000,
        max_attempts=7,
        run_timeout=12.5,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    offer(jobs, job)
    record = jobs.record(job.job_id)
    for name in (
        "tenant",
        "model",
        "pool",
        "input",
        "fields",
        "run_timeout",
        "priority",
        "start_deadline",
        "max_attempts",
        "traceparent",
    ):
        assert getattr(record, name) == getattr(job, name), name
    assert (record.id, record.state, record.created, record.seq) == (job.job_id, State.PENDING, START_MS, 1)
    assert (record.attempt, record.counted, record.progress) == (0, 0, 0)
    nothing_yet = (record.started, record.ended, record.worker, record.cancel_requested, record.end, record.not_before)
    assert nothing_yet == (None,) * 6


def test_the_log_begins_with_what_was_accepted(jobs: TimedJobs) -> None:
    job_id = jobs.submit(accepted={"model": "sd", "of": []})
    assert jobs.log(job_id) == [
        LogEntry(job_id, 1, JobEvent.ACCEPTED, State.PENDING, START_MS, {"model": "sd", "of": []})
    ]


def test_the_message_carries_the_jobs_id_and_trace_and_nothing_of_its_input(jobs: TimedJobs) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    job = jobs.submission(traceparent=trace)
    offer(jobs, job)
    message = json.loads(jobs.redis.rpop(jobs.list_key))
    arguments, keywords, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, keywords) == ([], {})
    assert (message["headers"]["id"], message["headers"]["traceparent"]) == (job.job_id, trace)


def test_a_job_is_accepted_without_any_worker(jobs: TimedJobs) -> None:
    assert jobs.state(jobs.submit()) is State.PENDING


def test_the_same_id_gets_the_first_answer(jobs: TimedJobs) -> None:
    job = jobs.submission()
    offer(jobs, job)
    before = jobs.everything()
    jobs.now += 5_000
    assert offer(jobs, job) == Accepted(job.job_id, START_MS, repeated=True)
    assert jobs.everything() == before


def test_the_same_id_gets_the_first_answer_after_the_job_finished(jobs: TimedJobs) -> None:
    job = jobs.submission()
    offer(jobs, job)
    jobs.cancel(job.job_id)
    assert offer(jobs, job) == Accepted(job.job_id, START_MS, repeated=True, state=State.CANCELLED)
    assert jobs.state(job.job_id) is State.CANCELLED


def test_an_id_of_another_tenant_is_a_conflict(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    before = jobs.everything()
    assert isinstance(offer(jobs, jobs.submission(job_id=job_id, tenant="stranger")), IdConflict)
    assert jobs.everything() == before


def test_the_same_key_gets_the_earlier_job(jobs: TimedJobs) -> None:
    first = jobs.submit(idempotency_key="key", fingerprint="f")
    jobs.now += 5_000
    before = jobs.everything()
    assert offer(jobs, jobs.submission(idempotency_key="key", fingerprint="f")) == Accepted(
        first, START_MS, repeated=True
    )
    assert jobs.everything() == before


def test_the_same_key_with_another_request_is_refused_and_names_the_job(jobs: TimedJobs) -> None:
    first = jobs.submit(idempotency_key="key", fingerprint="f")
    error = refused(offer(jobs, jobs.submission(idempotency_key="key", fingerprint="g")))
    assert isinstance(error, KeyReused)
    assert first in error.detail


def test_each_tenant_has_its_own_keys(jobs: TimedJobs) -> None:
    first = jobs.submit(idempotency_key="key", fingerprint="f")
    assert jobs.submit(idempotency_key="key", fingerprint="f", tenant="stranger") != first


def test_an_idempotency_key_lasts_a_day(jobs: TimedJobs) -> None:
    jobs.submit(idempotency_key="key", fingerprint="f")
    ttl = jobs.redis.pttl(jobs.key("idem", TENANT, "key"))
    assert DAY_MS - 120_000 < ttl <= DAY_MS


def test_a_key_without_a_fingerprint_is_invalid(jobs: TimedJobs) -> None:
    before = jobs.everything()
    with pytest.raises(ValueError, match="fingerprint"):
        offer(jobs, jobs.submission(idempotency_key="key"))
    assert jobs.everything() == before


def test_an_unannounced_pool_accepts_no_job(jobs: TimedJobs) -> None:
    before = jobs.everything()
    error = refused(offer(jobs, jobs.submission(pool="nowhere")))
    assert isinstance(error, NoPool)
    assert "nowhere" in error.detail
    assert jobs.everything() == before


def test_a_withdrawn_pool_accepts_no_job_until_it_is_announced_again(jobs: TimedJobs) -> None:
    job = jobs.submission()
    jobs.run(calls.announce_pool(job.pool, models=[]))
    assert isinstance(refused(offer(jobs, job)), NoPool)
    jobs.run(calls.announce_pool(job.pool, models=[job.model]))
    assert isinstance(offer(jobs, job), Accepted)


def test_a_full_backlog_accepts_no_job(jobs: TimedJobs) -> None:
    for _ in range(3):
        jobs.submit()
    before = jobs.everything()
    error = refused(offer(jobs, jobs.submission(), backlog_limit=3))
    assert isinstance(error, BacklogFull)
    assert error.detail == "3 jobs wait in pool 'local'"
    assert jobs.everything() == before


def test_the_backlog_is_what_waits_and_not_what_runs(jobs: TimedJobs) -> None:
    jobs.running()
    due = jobs.running(job_id=None)
    jobs.retry(due)
    jobs.submit()
    jobs.submit()
    assert [len(jobs.members(kind)) for kind in ("due", "dispatched", "waiting", "running")] == [1, 1, 1, 1]
    assert isinstance(offer(jobs, jobs.submission(), backlog_limit=3), BacklogFull)
    assert isinstance(offer(jobs, jobs.submission(), backlog_limit=4), Accepted)


def test_retry_after_is_a_minute_before_a_job_has_finished(jobs: TimedJobs) -> None:
    jobs.submit()
    error = refused(offer(jobs, jobs.submission(), backlog_limit=1))
    assert isinstance(error, BacklogFull)
    assert error.retry_after == 60


def test_retry_after_follows_from_how_fast_jobs_finish(jobs: TimedJobs) -> None:
    for _ in range(3):  # one finishes every 2 s
        jobs.finish(jobs.running())
        jobs.now += 2_000
    for _ in range(7):
        jobs.submit()
    error = refused(offer(jobs, jobs.submission(), backlog_limit=3))
    assert isinstance(error, BacklogFull)
    assert error.retry_after == 10  # five must finish before this one has room


def test_retry_after_is_at_most_ten_minutes(jobs: TimedJobs) -> None:
    for _ in range(20):
        jobs.submit()
    error = refused(offer(jobs, jobs.submission(), backlog_limit=1))
    assert isinstance(error, BacklogFull)
    assert error.retry_after == 600


def test_high_memory_accepts_no_job(jobs: TimedJobs) -> None:
    before = jobs.everything()
    error = refused(offer(jobs, jobs.submission(idempotency_key="key", fingerprint="f"), memory_high=True))
    assert isinstance(error, MemoryHigh)
    assert jobs.everything() == before


REASONS: Mapping[str, tuple[type[DarkroomError], Mapping[str, Any]]] = {
    "the key with another request": (KeyReused, {"idempotency_key": "key", "fingerprint": "g"}),
    "no pool": (NoPool, {"pool": "nowhere"}),
    "a full backlog": (BacklogFull, {}),
    "high memory": (MemoryHigh, {}),
}
"""Reasons to refuse in the order of their checks, each with what a submission must be for it."""


@pytest.mark.parametrize("name", REASONS)
def test_of_several_reasons_the_first_in_order_is_returned(jobs: TimedJobs, name: str) -> None:
    jobs.submit(idempotency_key="key", fingerprint="f")
    reasons = list(REASONS.values())[list(REASONS).index(name) :]
    more = {key: value for _, fields in reasons for key, value in fields.items()}
    full = any(kind is BacklogFull for kind, _ in reasons)
    answer = offer(jobs, jobs.submission(**more), backlog_limit=1 if full else 10_000, memory_high=True)
    assert type(answer) is reasons[0][0]


def test_the_same_id_comes_before_every_reason_to_refuse(jobs: TimedJobs) -> None:
    job = jobs.submission(idempotency_key="key", fingerprint="f")
    offer(jobs, job)
    again = jobs.submission(job_id=job.job_id, idempotency_key="key", fingerprint="g", pool="nowhere")
    assert offer(jobs, again, backlog_limit=1, memory_high=True) == Accepted(job.job_id, START_MS, repeated=True)


def test_the_same_key_comes_before_the_state_of_the_pool(jobs: TimedJobs) -> None:
    first = jobs.submit(idempotency_key="key", fingerprint="f")
    again = jobs.submission(idempotency_key="key", fingerprint="f", pool="nowhere")
    assert offer(jobs, again, backlog_limit=1, memory_high=True) == Accepted(first, START_MS, repeated=True)


def test_the_operator_is_woken_when_an_empty_backlog_fills_and_only_then(jobs: TimedJobs) -> None:
    with jobs.redis.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(jobs.key("wake"))
        while heard.get_message(timeout=60) is not None:  # the confirmation
            pass
        jobs.submit()
        jobs.submit()
        jobs.redis.publish(jobs.key("wake"), "that was all")
        woken: list[bytes] = []
        while b"that was all" not in woken:
            message = heard.get_message(timeout=60)
            if message is not None:
                woken.append(message["data"])
    assert woken == [f"backlog {POOL}".encode(), b"that was all"]


def test_an_accepted_job_goes_to_a_ready_worker_at_once(jobs: TimedJobs) -> None:
    jobs.worker(state=WorkerState.READY)
    job_id = jobs.submit()
    assert jobs.listed() == [job_id]


@pytest.mark.parametrize("tenant", ["../x", "a/b", "", ".", "x" * 64], ids=repr)
def test_a_tenant_that_the_object_store_cannot_name_is_refused(jobs: TimedJobs, tenant: str) -> None:
    with pytest.raises(InvalidInput, match="cannot name a tenant"):
        jobs.submission(tenant=tenant)

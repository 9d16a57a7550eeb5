"""An attempt from its claim to its end, and the job of an attempt that did not finish it."""

from __future__ import annotations

from typing import Any

import pytest
from darkroom.jobs import JobEvent, State, UnknownValue
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import AttemptEnd, Cancelled, Claim, LeaseStatus, Receipt, ReleaseReason
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS, new_subscription_id
from redis.exceptions import ResponseError

from tests.core.timed_jobs import HICCUP, POOL, START_MS, TENANT, WORKER, TimedJobs

LEASE_MS = calls.LEASE_MS
GAP_MS = calls.REAP_GAP_MS
AGE_MS = calls.SWEEP_AGE_MS


def error_of(jobs: TimedJobs, job_id: str) -> dict[str, Any]:
    """The error that the job ended with."""
    end = jobs.record(job_id).end_data
    assert end is not None
    error: dict[str, Any] = end["error"]
    return error


# -- claim -------------------------------------------------------------------------------------------------------------


def test_a_claim_gives_the_attempt_its_number_and_its_time(jobs: TimedJobs) -> None:
    job_id = jobs.submit(run_timeout=12.5)
    claim = jobs.claim(job_id)
    assert claim == Claim(
        attempt=1,
        dropped=None,
        run_timeout=12.5,
        counted=0,
        tenant=TENANT,
        model="sd",
        input='{"prompt":"a lighthouse at dusk"}',
    )


def test_a_claim_is_in_the_record_and_in_the_log(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    jobs.now += 70
    jobs.claim(job_id, worker="two")
    record = jobs.record(job_id)
    assert (record.state, record.attempt, record.worker, record.started) == (State.RUNNING, 1, "two", START_MS + 70)
    entry = jobs.log(job_id)[-1]
    assert (entry.event, entry.state, entry.data) == (JobEvent.STARTED, State.RUNNING, {"attempt": 1, "worker": "two"})


def test_a_later_attempt_has_the_first_start_and_no_progress(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.progress(job_id, op=1, step=3, steps=4)
    jobs.now += 5_000
    jobs.retry(job_id, delay_ms=0)
    assert jobs.claim(job_id, token="second").attempt == 2
    record = jobs.record(job_id)
    assert (record.started, record.progress, record.step) == (START_MS, 0, None)


def test_a_claim_of_an_unknown_job_is_dropped(jobs: TimedJobs) -> None:
    assert jobs.claim("unknown-job").dropped == "unknown"


def test_a_retry_is_not_claimed_before_its_time(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.retry(job_id, delay_ms=10_000)
    jobs.now += 9_999
    assert jobs.claim(job_id, token="second").dropped == "early"
    jobs.now += 1
    assert jobs.claim(job_id, token="second").attempt == 2


def test_a_claim_at_the_start_deadline_expires_the_job(jobs: TimedJobs) -> None:
    job_id = jobs.submit(start_deadline=START_MS + 5_000)
    jobs.now += 5_000
    assert jobs.claim(job_id).dropped == "expired"
    assert jobs.state(job_id) is State.EXPIRED
    assert error_of(jobs, job_id)["kind"] == "deadline"


# -- progress and lease ------------------------------------------------------------------------------------------------


def test_progress_is_in_the_record_and_published_on_request(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    assert jobs.progress(job_id, op=1, step=1, steps=3, publish=False) is LeaseStatus.OK
    assert jobs.progress(job_id, op=2, step=2, steps=3, publish=True) is LeaseStatus.OK
    record = jobs.record(job_id)
    assert (record.progress, record.step, record.steps) == (66, 2, 3)
    logged = [entry.data for entry in jobs.log(job_id) if entry.event is JobEvent.PROGRESSED]
    assert logged == [{"progress": 66, "step": 2, "steps": 3}]


def test_late_progress_changes_nothing(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.progress(job_id, op=2, step=2, steps=4)
    before = jobs.everything()
    assert jobs.progress(job_id, op=1, step=1, steps=4) is LeaseStatus.OK
    assert jobs.everything() == before


def test_progress_after_a_cancel_is_not_published(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.cancel(job_id)
    logged = len(jobs.log(job_id))
    assert jobs.progress(job_id, op=1, step=1, steps=4) is LeaseStatus.CANCEL
    assert len(jobs.log(job_id)) == logged


def test_what_waits_again_shows_no_progress(jobs: TimedJobs) -> None:
    retried, released = jobs.running(), jobs.running()
    for job_id in (retried, released):
        jobs.progress(job_id, op=1, step=3, steps=4)
    jobs.retry(retried)
    jobs.release(released, ReleaseReason.DRAIN)
    for job_id in (retried, released):
        record = jobs.record(job_id)
        assert (record.state, record.progress, record.step, record.steps) == (State.PENDING, 0, None, None)


# -- finish ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [State.COMPLETED, State.FAILED])
def test_the_terminal_state_is_what_the_worker_reported(jobs: TimedJobs, outcome: State) -> None:
    job_id = jobs.running()
    data: dict[str, Any] = {"artifacts": [], "record": {"seed": 2**60}, "error": HICCUP}
    jobs.now += 3_000
    assert jobs.finish(job_id, outcome=outcome, data=data) == outcome.value
    record = jobs.record(job_id)
    assert (record.state, record.ended, record.end_data) == (outcome, START_MS + 3_000, data)
    assert record.end == jobs.log(job_id)[-1]


def test_a_completed_job_has_full_progress(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.progress(job_id, op=1, step=1, steps=4)
    jobs.finish(job_id)
    assert jobs.record(job_id).progress == 100


def test_a_finished_job_is_in_the_outbox_and_in_no_other_set(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    assert jobs.outbox() == {job_id}
    assert not any(jobs.members(kind) for kind in ("waiting", "dispatched", "due", "running"))
    assert jobs.redis.hgetall(jobs.key("busy")) == {}


def test_a_finished_job_has_no_message(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    assert jobs.redis.hmget(jobs.key("job", job_id), "message_head", "message_tail") == [None, None]


@pytest.mark.parametrize("outcome", [State.COMPLETED, State.FAILED, State.CANCELLED])
def test_once_a_cancel_is_recorded_the_job_becomes_cancelled(jobs: TimedJobs, outcome: State) -> None:
    job_id = jobs.running()
    jobs.cancel(job_id)
    assert jobs.finish(job_id, outcome=outcome, data={"artifacts": ["never published"]}) is AttemptEnd.CANCELLED
    assert error_of(jobs, job_id) == {"kind": "cancelled", "message": "cancelled on request"}


def test_a_worker_cannot_cancel_a_job_by_itself(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    before = jobs.everything()
    with pytest.raises(ResponseError, match="was not requested"):
        jobs.finish(job_id, outcome=State.CANCELLED)
    assert jobs.everything() == before


def test_a_stale_token_is_refused_and_counted(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    before = jobs.everything()
    assert jobs.finish(job_id, token="stale") is AttemptEnd.LOST
    assert jobs.retry(job_id, token="stale") is AttemptEnd.LOST
    assert jobs.everything() == before
    assert (jobs.counter("stale_finish"), jobs.counter("stale_retry")) == (1, 1)


def test_a_repeated_end_is_not_counted_as_stale(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    jobs.finish(job_id)
    assert jobs.counter("stale_finish") == 0


# -- retry -------------------------------------------------------------------------------------------------------------


def test_a_retry_waits_for_its_time(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    assert jobs.retry(job_id, delay_ms=10_000) is AttemptEnd.PENDING
    assert (jobs.members("due"), jobs.record(job_id).not_before) == ({job_id}, START_MS + 10_000)
    jobs.now += 9_999
    assert jobs.promote() == []
    jobs.now += 1
    assert jobs.promote() == [job_id]
    assert (jobs.listed(), jobs.record(job_id).not_before) == ([job_id], None)


def test_a_retry_logs_its_reason_and_time(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.retry(job_id, delay_ms=10_000)
    entry = jobs.log(job_id)[-1]
    assert (entry.event, entry.state) == (JobEvent.RETRIED, State.PENDING)
    assert entry.data == {"error": HICCUP, "attempt": 1, "worker": "one", "not_before": START_MS + 10_000}


def test_the_last_counted_attempt_fails_with_its_own_error(jobs: TimedJobs) -> None:
    job_id = jobs.submit(max_attempts=2)
    jobs.claim(job_id, token="1")
    assert jobs.retry(job_id, token="1", delay_ms=0) is AttemptEnd.PENDING
    jobs.claim(job_id, token="2")
    assert jobs.retry(job_id, token="2", delay_ms=0) is AttemptEnd.FAILED
    assert error_of(jobs, job_id) == HICCUP
    assert jobs.record(job_id).counted == 2


# -- release -----------------------------------------------------------------------------------------------------------


def test_a_drain_counts_no_attempt_however_often(jobs: TimedJobs) -> None:
    job_id = jobs.submit(max_attempts=1)
    for number in range(20):
        assert jobs.claim(job_id, token=str(number)).attempt == number + 1
        assert jobs.release(job_id, ReleaseReason.DRAIN, token=str(number)) is AttemptEnd.PENDING
    assert (jobs.record(job_id).attempt, jobs.record(job_id).counted) == (20, 0)


def test_a_job_that_ten_workers_released_for_a_fault_fails(jobs: TimedJobs) -> None:
    job_id = jobs.submit(max_attempts=1)
    for number in range(9):
        jobs.claim(job_id, token=str(number))
        assert jobs.release(job_id, ReleaseReason.WORKER_FAULT, token=str(number)) is AttemptEnd.PENDING
    jobs.claim(job_id, token="tenth")
    assert jobs.release(job_id, ReleaseReason.WORKER_FAULT, token="tenth") is AttemptEnd.FAILED
    assert error_of(jobs, job_id)["kind"] == "worker_fault"
    assert jobs.record(job_id).counted == 0


def test_a_lost_worker_counts_and_the_last_attempt_fails(jobs: TimedJobs) -> None:
    job_id = jobs.submit(max_attempts=2)
    jobs.claim(job_id, token="1")
    assert jobs.release(job_id, ReleaseReason.WORKER_LOST, token="1") is AttemptEnd.PENDING
    jobs.claim(job_id, token="2")
    assert jobs.release(job_id, ReleaseReason.WORKER_LOST, token="2", detail="killed") is AttemptEnd.FAILED
    assert error_of(jobs, job_id) == {"kind": "worker_lost", "message": "killed, attempt 2 of 2"}


def test_a_release_logs_its_reason(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.release(job_id, ReleaseReason.DRAIN)
    entry = jobs.log(job_id)[-1]
    assert (entry.event, entry.state) == (JobEvent.RELEASED, State.PENDING)
    assert entry.data == {"reason": "drain", "counted": False, "attempt": 1, "worker": "one"}


@pytest.mark.parametrize("reason", ReleaseReason)
def test_a_release_of_a_cancelled_job_finishes_it(jobs: TimedJobs, reason: ReleaseReason) -> None:
    job_id = jobs.running()
    jobs.cancel(job_id)
    assert jobs.release(job_id, reason) is AttemptEnd.CANCELLED


def test_for_a_worker_that_is_gone_its_name_is_enough(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    assert jobs.release(job_id, ReleaseReason.WORKER_LOST, token=None, worker="one") is AttemptEnd.PENDING


def test_a_workers_name_releases_no_job_of_another(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    before = jobs.everything()
    assert jobs.release(job_id, ReleaseReason.WORKER_LOST, token=None, worker="two") is AttemptEnd.LOST
    assert jobs.everything() == before


def test_an_attempt_that_was_released_cannot_be_claimed_again(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.release(job_id, ReleaseReason.DRAIN)
    assert jobs.claim(job_id).dropped == "ended"


def test_a_worker_whose_job_was_released_gets_lost(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.release(job_id, ReleaseReason.WORKER_LOST, token=None, worker="one")
    assert jobs.finish(job_id) is AttemptEnd.LOST
    assert jobs.counter("stale_finish") == 1


# -- reap --------------------------------------------------------------------------------------------------------------


def test_an_attempt_whose_lease_lapsed_is_requeued(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running()
    assert jobs.reap_until(jobs.now + LEASE_MS) == [], "to its last moment it is believed"
    jobs.now += 1
    assert jobs.reap() == [job_id]
    assert (jobs.state(job_id), jobs.record(job_id).counted, jobs.listed()) == (State.PENDING, 1, [job_id])
    assert jobs.counter("reaped") == 1


def test_an_attempt_that_is_renewed_is_never_reaped(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running()
    for _ in range(8):
        assert jobs.reap_until(jobs.now + LEASE_MS // 3) == []
        assert jobs.renew(job_id) is LeaseStatus.OK


def test_the_first_reap_ever_reaps_nothing_for_a_lease(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.now += 10 * LEASE_MS
    first = jobs.now
    assert jobs.reap_until(first + LEASE_MS - 1) == []
    assert jobs.reap_until(first + LEASE_MS) == [job_id]


def test_after_a_gap_nothing_is_reaped_for_a_lease(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running()
    jobs.now += LEASE_MS
    back = jobs.now
    assert jobs.reap_until(back + LEASE_MS - 1) == [], "its worker could not renew either"
    assert jobs.reap_until(back + LEASE_MS) == [job_id]


def test_a_short_gap_is_no_outage(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running()
    jobs.reap_until(jobs.now + LEASE_MS)
    jobs.now += GAP_MS
    assert jobs.reap() == [job_id]


@pytest.mark.parametrize("pause_ms", [GAP_MS + 400, 13_000], ids=["2.2 s each way", "6 s each way"])
def test_a_courier_that_is_slow_each_time_reaps_when_the_quiet_period_is_over(jobs: TimedJobs, pause_ms: int) -> None:
    job_id = jobs.running()
    reaped: list[str] = []
    while not reaped and jobs.now < START_MS + 60_000:
        reaped = jobs.reap()
        jobs.now += pause_ms
    assert reaped == [job_id]


@pytest.mark.parametrize("reaps_between", [1, 3])
def test_after_a_second_outage_nothing_is_reaped_for_a_lease_either(jobs: TimedJobs, reaps_between: int) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running()
    for _ in range(3):
        jobs.now += 4 * LEASE_MS
        assert jobs.reap_until(jobs.now + (reaps_between - 1) * 1_000) == []
    assert jobs.reap_until(jobs.now + LEASE_MS) == [job_id]


def test_the_last_counted_attempt_that_is_reaped_fails(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running(max_attempts=1)
    assert jobs.reap_until(jobs.now + LEASE_MS + 1) == [job_id]
    assert error_of(jobs, job_id) == {
        "kind": "worker_lost",
        "message": "no sign of life from worker one, attempt 1 of 1",
    }


def test_a_reaped_job_that_was_cancelled_becomes_cancelled(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running()
    jobs.cancel(job_id)
    assert jobs.reap_until(jobs.now + LEASE_MS + 1) == [job_id]
    assert jobs.state(job_id) is State.CANCELLED


def test_a_worker_that_returns_after_the_reap_gets_lost(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    job_id = jobs.running()
    jobs.reap_until(jobs.now + LEASE_MS + 1)
    before = jobs.everything()
    assert jobs.renew(job_id) is LeaseStatus.LOST
    assert jobs.progress(job_id, op=1, step=1, steps=4) is LeaseStatus.LOST
    assert jobs.finish(job_id) is AttemptEnd.LOST
    assert jobs.release(job_id, ReleaseReason.DRAIN) is AttemptEnd.LOST
    assert jobs.claim(job_id).dropped == "ended"
    assert jobs.everything() == before
    assert jobs.counter("stale_finish") == 1


def test_one_reap_requeues_no_more_than_its_limit(jobs: TimedJobs) -> None:
    jobs.reap_until(START_MS + LEASE_MS)
    running = {jobs.start(jobs.submit(), worker=f"worker {number}") for number in range(5)}
    jobs.reap_until(jobs.now + LEASE_MS)
    jobs.now += 1
    reaped = jobs.run(calls.reap(POOL, limit=3, now=jobs.now))
    assert len(reaped) == 3
    assert set(reaped) | set(jobs.reap()) == running


# -- received and never claimed ----------------------------------------------------------------------------------------


def test_a_message_that_was_received_and_never_claimed_is_pushed_again(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    jobs.receive_message()
    jobs.now += AGE_MS - 1
    assert (jobs.sweep(), jobs.listed()) == ([], [])
    jobs.now += 1
    assert (jobs.sweep(), jobs.listed()) == ([job_id], [job_id])
    assert jobs.claim(job_id).attempt == 1


def test_a_message_that_waits_in_the_list_is_left_alone(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    jobs.now += 100 * AGE_MS
    assert (jobs.sweep(), jobs.listed()) == ([], [job_id])


def test_a_message_that_kombu_restored_is_recognized(jobs: TimedJobs) -> None:
    """kombu writes what it restores with its own spacing, and marks it as redelivered."""
    job_id = jobs.submit()
    message = jobs.redis.rpop(jobs.list_key).replace(b'":', b'": ').replace(b',"', b', "')
    jobs.redis.rpush(jobs.list_key, message)
    jobs.now += AGE_MS
    assert jobs.sweep() == []
    jobs.worker()
    released = jobs.submit()
    assert jobs.listed() == [job_id, released]


def test_the_fifth_message_that_is_not_claimed_fails_the_job(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    for _ in range(4):
        assert jobs.receive_message() == job_id
        jobs.now += AGE_MS
        assert jobs.sweep() == [job_id]
    assert jobs.receive_message() == job_id
    jobs.now += AGE_MS
    assert jobs.sweep() == []
    assert jobs.state(job_id) is State.FAILED
    assert error_of(jobs, job_id)["kind"] == "undeliverable"


def test_a_claim_resets_the_count_of_lost_messages(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    for token in ("first", "second"):
        for _ in range(4):
            assert jobs.receive_message() == job_id
            jobs.now += AGE_MS
            assert jobs.sweep() == [job_id]
        jobs.claim(job_id, token=token)
        jobs.retry(job_id, token=token, delay_ms=0)
        assert jobs.promote() == [job_id]
    assert jobs.state(job_id) is State.PENDING


def test_a_sweep_fills_the_list_for_workers_that_came(jobs: TimedJobs) -> None:
    submitted = [jobs.submit() for _ in range(3)]
    jobs.redis.lpop(jobs.list_key)  # the list was flushed
    jobs.now += AGE_MS
    assert jobs.sweep() == submitted[:1]
    assert jobs.listed() == submitted[:1]


# -- cancel ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", ["waiting", "dispatched", "due"])
def test_a_cancelled_job_that_waits_never_runs(jobs: TimedJobs, situation: str) -> None:
    if situation == "waiting":
        jobs.submit()
    job_id = jobs.submit()
    if situation == "due":
        jobs.start(job_id)
        jobs.retry(job_id)
    assert jobs.members(situation) >= {job_id}
    assert jobs.cancel(job_id) == Cancelled(Receipt.DEQUEUED, State.CANCELLED)
    assert jobs.claim(job_id, token="later").dropped == "terminal"
    assert jobs.outbox() == {job_id}
    assert jobs.log(job_id)[-1].event is JobEvent.CANCELLED


def test_a_running_job_is_marked_and_the_worker_gets_cancel(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    assert jobs.cancel(job_id) == Cancelled(Receipt.INTERRUPTING, State.RUNNING)
    assert jobs.renew(job_id) is LeaseStatus.CANCEL
    assert jobs.record(job_id).cancel_requested == START_MS
    assert jobs.log(job_id)[-1].event is JobEvent.CANCELLING


def test_a_cancel_of_a_finished_job_is_too_late(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    before = jobs.everything()
    assert jobs.cancel(job_id) == Cancelled(Receipt.TOO_LATE, State.COMPLETED)
    assert jobs.everything() == before


def test_a_repeated_cancel_gets_the_first_receipt(jobs: TimedJobs) -> None:
    waiting, running = jobs.submit(), jobs.running()
    for job_id, receipt in ((waiting, Receipt.DEQUEUED), (running, Receipt.INTERRUPTING)):
        assert jobs.cancel(job_id).receipt is receipt
    jobs.finish(running)
    for job_id, receipt in ((waiting, Receipt.DEQUEUED), (running, Receipt.INTERRUPTING)):
        assert jobs.cancel(job_id) == Cancelled(receipt, State.CANCELLED)


def test_a_stranger_cannot_cancel(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    assert jobs.cancel(job_id, tenant="stranger") == Cancelled(None, None)
    assert jobs.state(job_id) is State.PENDING


def test_a_part_of_darkroom_cancels_for_any_tenant(jobs: TimedJobs) -> None:
    job_id = jobs.submit(tenant="another")
    assert jobs.cancel(job_id, tenant=None).receipt is Receipt.DEQUEUED


def test_a_cancel_in_a_state_of_a_later_version_returns_and_logs_that_state(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.redis.hset(jobs.key("job", job_id), "state", "resting")
    assert jobs.cancel(job_id) == Cancelled(Receipt.INTERRUPTING, UnknownValue("resting"))
    assert (jobs.log(job_id)[-1].event, jobs.log(job_id)[-1].state) == (JobEvent.CANCELLING, "resting")
    assert jobs.cancel(job_id) == Cancelled(Receipt.INTERRUPTING, UnknownValue("resting"))


def test_an_unknown_job_cannot_be_cancelled(jobs: TimedJobs) -> None:
    assert jobs.cancel("unknown-job") == Cancelled(None, None)


# -- expire ------------------------------------------------------------------------------------------------------------


def test_a_job_that_did_not_start_in_time_expires(jobs: TimedJobs) -> None:
    job_id = jobs.submit(start_deadline=START_MS + 5_000)
    in_time = jobs.submit(start_deadline=START_MS + 5_001)
    jobs.submit()
    jobs.now += 4_999
    assert jobs.expire() == []
    jobs.now += 1
    assert jobs.expire() == [job_id]
    assert (jobs.state(job_id), jobs.state(in_time)) == (State.EXPIRED, State.PENDING)
    assert error_of(jobs, job_id) == {"kind": "deadline", "message": "not started before its start deadline"}


def test_an_expired_job_leaves_no_message(jobs: TimedJobs) -> None:
    jobs.submit(start_deadline=START_MS)
    jobs.expire()
    assert jobs.listed() == []


@pytest.mark.parametrize("transition", ["release", "retry"])
def test_a_start_deadline_binds_the_first_attempt_only(jobs: TimedJobs, transition: str) -> None:
    job_id = jobs.running(start_deadline=START_MS + 5_000)
    if transition == "release":
        jobs.release(job_id, ReleaseReason.DRAIN)
    else:
        jobs.retry(job_id, delay_ms=0)
    jobs.now += 10_000
    assert jobs.expire() == []
    assert jobs.claim(job_id, token="second").attempt == 2


def test_one_call_expires_no_more_than_its_limit(jobs: TimedJobs) -> None:
    late = {jobs.submit(start_deadline=START_MS) for _ in range(3)}
    first = jobs.run(calls.expire(limit=2, now=jobs.now))
    assert len(first) == 2
    assert set(first) | set(jobs.expire()) == late


# -- keys deleted by hand ----------------------------------------------------------------------------------------------


def test_jobs_whose_records_were_deleted_by_hand_stop_no_others(jobs: TimedJobs) -> None:
    first = jobs.running()
    lapsing = jobs.start(jobs.submit(), token="second", worker="two")
    due = jobs.start(jobs.submit(), token="third", worker="three")
    jobs.retry(due, delay_ms=1, token="third")
    expiring = jobs.submit(start_deadline=START_MS + 1)
    for job_id in (first, due, expiring, jobs.submit(), jobs.submit()):
        jobs.redis.delete(jobs.key("job", job_id))
    other = jobs.submit()

    reaped = jobs.reap_until(START_MS + 3 * LEASE_MS)
    assert lapsing in reaped
    jobs.promote()
    jobs.expire()
    jobs.sweep()
    jobs.now += AGE_MS
    jobs.sweep()

    assert jobs.claim(lapsing).attempt == 2
    assert jobs.claim(other).attempt == 1
    kept = set().union(*(jobs.members(kind) for kind in ("waiting", "dispatched", "due", "running")))
    assert kept == {lapsing, other}


# -- a clock that is set back ------------------------------------------------------------------------------------------

HOUR_MS = 3_600_000


def tick(jobs: TimedJobs) -> None:
    """Run `adjust_clock`, as the courier does each second."""
    jobs.run(calls.adjust_clock(clock_ms=jobs.now, now=jobs.now))
    jobs.expire()
    jobs.reap()
    jobs.sweep()
    jobs.promote()


def tick_for(jobs: TimedJobs, time_ms: int) -> None:
    for _ in range(time_ms // 1_000):
        jobs.now += 1_000
        tick(jobs)


def set_back(jobs: TimedJobs) -> None:
    """Set Redis' clock back between two ticks."""
    tick(jobs)
    jobs.now -= HOUR_MS
    tick(jobs)


def test_a_retry_comes_after_its_delay_though_the_clock_was_set_back(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.retry(job_id, delay_ms=10_000)
    set_back(jobs)
    assert jobs.record(job_id).not_before == jobs.now + 10_000
    tick_for(jobs, 8_000)
    assert jobs.record(job_id).not_before is not None
    tick_for(jobs, 4_000)
    assert jobs.claim(job_id, token="second").attempt == 2


def test_a_lost_worker_is_found_though_the_clock_was_set_back(jobs: TimedJobs) -> None:
    tick_for(jobs, LEASE_MS)
    job_id = jobs.running()
    set_back(jobs)
    tick_for(jobs, 2 * LEASE_MS + 1_000)
    assert (jobs.state(job_id), jobs.record(job_id).counted) == (State.PENDING, 1)


def test_a_lost_message_is_pushed_again_though_the_clock_was_set_back(jobs: TimedJobs) -> None:
    jobs.worker()
    job_id = jobs.submit()
    assert jobs.receive_message() == job_id
    set_back(jobs)
    tick_for(jobs, calls.SWEEP_AGE_MS + 2_000)
    assert jobs.receive_message() == job_id


def test_a_relative_start_deadline_stays_as_far_away_and_a_time_stays_that_time(jobs: TimedJobs) -> None:
    within, at = jobs.submit(start_within=30_000), jobs.submit(start_deadline=jobs.now + 30_000)
    set_back(jobs)
    tick_for(jobs, 28_000)
    assert jobs.state(within) is State.PENDING
    tick_for(jobs, 4_000)
    assert (jobs.state(within), jobs.state(at)) == (State.EXPIRED, State.PENDING)


def test_an_event_that_the_sink_refused_is_due_in_time_though_the_clock_was_set_back(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    assert jobs.lease(call="1") == [job_id]
    jobs.run(calls.reschedule_relay(job_id, delay_ms=5_000, now=jobs.now))
    set_back(jobs)
    tick_for(jobs, 7_000)
    assert jobs.lease(call="2") == [job_id]


@pytest.mark.parametrize("kind", ["history", "notice"])
def test_a_rescheduled_entry_is_due_in_time_though_the_clock_was_set_back(jobs: TimedJobs, kind: str) -> None:
    reschedule, lease, subject = outbox_entry(jobs, kind)
    jobs.run(reschedule(subject, delay_ms=5_000, now=jobs.now))
    set_back(jobs)
    assert jobs.run(lease(owner="courier", call="2", limit=10, now=jobs.now)) == []
    tick_for(jobs, 7_000)
    assert jobs.run(lease(owner="courier", call="3", limit=10, now=jobs.now)) == [subject]


def outbox_entry(jobs: TimedJobs, kind: str) -> tuple[Any, Any, str]:
    """How an entry of this kind is rescheduled and leased, and one that is leased."""
    reschedule: Any
    lease: Any
    if kind == "history":
        subject = jobs.running()
        jobs.finish(subject)
        reschedule, lease = calls.reschedule_history, calls.lease_history
    else:
        subject = new_subscription_id(jobs.now)
        said: dict[str, Any] = {"tenant": TENANT, "url": "https://receiver.test/", "events": DEFAULT_EVENTS}
        jobs.run(calls.subscribe(subject, **said, create=True, now=jobs.now))
        jobs.run(calls.subscribe(subject, tenant=TENANT, enabled=False, now=jobs.now))
        jobs.redis.zadd(jobs.key("notices"), {subject: jobs.now})
        reschedule, lease = calls.reschedule_notice, calls.lease_notices
    assert jobs.run(lease(owner="courier", call="1", limit=10, now=jobs.now)) == [subject]
    return reschedule, lease, subject


async def test_a_worker_that_is_lost_gets_no_message_though_the_clock_was_set_back(
    jobs: TimedJobs, ledger: AsyncLedger
) -> None:
    """It counts neither as a worker nor as a free slot once its heartbeat is too old."""
    jobs.worker()
    set_back(jobs)
    tick_for(jobs, calls.WORKER_TTL_MS + 2_000)
    first = jobs.submit()
    jobs.submit()
    assert jobs.listed() == [first]  # as where no worker is
    assert jobs.run(calls.observe(POOL, now=jobs.now)).idle == 0
    jobs.now += 4 * calls.WORKER_TTL_MS
    jobs.worker("another")
    assert [worker.name for worker in await reads.workers(ledger)] == ["another"]


def test_a_drain_that_is_not_renewed_is_over_in_time_though_the_clock_was_set_back(jobs: TimedJobs) -> None:
    jobs.worker()
    (drained,) = jobs.run(calls.drain(POOL, count=1, now=jobs.now))
    assert drained.worker == WORKER
    set_back(jobs)
    tick_for(jobs, calls.DRAIN_TTL_MS + 2_000)
    jobs.worker()
    reading = jobs.run(calls.observe(POOL, now=jobs.now))
    assert (reading.idle, reading.marked) == (1, 0)

"""The outbox: events of finished jobs, their leases, and when the ledger may delete the job."""

from __future__ import annotations

import pytest
from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.calls import Applied, Archived

from tests.core.timed_jobs import START_MS, TENANT, TimedJobs

LEASE_MS = calls.RELAY_LEASE_MS
DAY_MS = 24 * 3600 * 1000
HOUR_MS = 3600 * 1000


def ended(jobs: TimedJobs, *, tenant: str = TENANT) -> str:
    job_id = jobs.running(tenant=tenant)
    jobs.finish(job_id)
    return job_id


def apply(jobs: TimedJobs, job_id: str, *, seq: int | None = None) -> Applied:
    seq = seq or jobs.record(job_id).end_seq or 0
    return jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now))


def archive(jobs: TimedJobs, job_id: str) -> Archived:
    seq = jobs.record(job_id).end_seq or 0
    return jobs.run(calls.mark_archived(job_id, seq=seq, now=jobs.now))


def lives_for(jobs: TimedJobs, kind: str, job_id: str) -> int:
    """The time to live in ms, -1 for ever."""
    ttl: int = jobs.redis.pttl(jobs.key(kind, job_id))
    return ttl


# -- lease and reschedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED])
def test_every_finished_job_is_in_the_outbox(jobs: TimedJobs, state: State) -> None:
    job_id = jobs.submit(start_deadline=START_MS + 1)
    if state is State.EXPIRED:
        jobs.now += 1
        jobs.expire()
    elif state is State.CANCELLED:
        jobs.cancel(job_id)
    else:
        jobs.start(job_id)
        jobs.finish(job_id, outcome=state)
    assert jobs.lease(call="1") == [job_id]


def test_what_is_leased_has_one_owner_while_the_lease_lasts(jobs: TimedJobs) -> None:
    job_id = ended(jobs)
    assert jobs.lease(owner="one", call="1") == [job_id]
    jobs.now += LEASE_MS - 1
    assert jobs.lease(owner="two", call="1") == []
    assert jobs.lease(owner="one", call="2") == []
    jobs.now += 1
    assert jobs.lease(owner="two", call="2") == [job_id]


def test_the_lease_doubles_with_each_lease_up_to_64_fold(jobs: TimedJobs) -> None:
    job_id = ended(jobs)
    leases = []
    for number in range(9):
        assert jobs.lease(call=str(number)) == [job_id]
        taken_at = jobs.now
        jobs.now = int(jobs.redis.zscore(jobs.key("outbox"), job_id))
        leases.append((jobs.now - taken_at) // LEASE_MS)
    assert leases == [1, 2, 4, 8, 16, 32, 64, 64, 64]


def test_a_repeated_lease_returns_the_same_jobs(jobs: TimedJobs) -> None:
    first = [ended(jobs) for _ in range(2)]
    assert sorted(jobs.lease(call="1")) == sorted(first)
    later = ended(jobs)
    assert sorted(jobs.lease(call="1")) == sorted(first)
    assert jobs.lease(call="2") == [later]


def test_two_couriers_never_lease_the_same_job(jobs: TimedJobs) -> None:
    all_ended = [ended(jobs) for _ in range(5)]
    leased = [jobs.lease(owner=owner, call="1", limit=2) for owner in ("one", "two", "three")]
    assert [len(ids) for ids in leased] == [2, 2, 1]
    assert sorted(job_id for ids in leased for job_id in ids) == sorted(all_ended)


def test_the_oldest_entries_are_leased_first(jobs: TimedJobs) -> None:
    in_order = []
    for _ in range(4):
        in_order.append(ended(jobs))
        jobs.now += 10
    assert jobs.lease(call="1", limit=3) == in_order[:3]


def test_what_the_sink_refused_is_due_again_after_the_delay(jobs: TimedJobs) -> None:
    job_id = ended(jobs)
    jobs.lease(call="1")
    jobs.run(calls.reschedule_relay(job_id, delay_ms=2_000, now=jobs.now))
    jobs.now += 1_999
    assert jobs.lease(call="2") == []
    jobs.now += 1
    assert jobs.lease(call="3") == [job_id]


def test_what_the_sink_refused_does_not_lengthen_the_lease(jobs: TimedJobs) -> None:
    """A courier that dies with an event which was refused often holds it up no longer than any other."""
    job_id = ended(jobs)
    for number in range(5):
        assert jobs.lease(call=str(number)) == [job_id]
        jobs.run(calls.reschedule_relay(job_id, delay_ms=1_000, now=jobs.now))
        jobs.now += 1_000
    leases = []
    for number in range(5, 7):
        assert jobs.lease(call=str(number)) == [job_id]
        taken_at = jobs.now
        jobs.now = int(jobs.redis.zscore(jobs.key("outbox"), job_id))
        leases.append((jobs.now - taken_at) // LEASE_MS)
    assert leases == [1, 2]


def test_what_was_applied_meanwhile_is_not_rescheduled(jobs: TimedJobs) -> None:
    job_id = ended(jobs)
    jobs.lease(call="1")
    apply(jobs, job_id)
    assert jobs.run(calls.reschedule_relay(job_id, delay_ms=0, now=jobs.now)) == 0
    assert jobs.lease(call="2") == []


def test_a_job_whose_record_is_gone_is_not_leased(jobs: TimedJobs) -> None:
    job_id, other = ended(jobs), ended(jobs)
    jobs.redis.delete(jobs.key("job", job_id))
    assert jobs.lease(call="1") == [other]
    assert jobs.outbox() == {other}


def test_the_courier_is_woken_by_a_finished_job(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    with jobs.redis.pubsub() as heard:
        heard.subscribe(jobs.key("wake"))
        assert heard.get_message(timeout=60)["type"] == "subscribe"
        jobs.finish(job_id)
        assert heard.get_message(timeout=60)["data"] == b"outbox"


# -- applied, and expired ----------------------------------------------------------------------------------------------


def test_an_applied_event_leaves_the_outbox(jobs: TimedJobs) -> None:
    job_id = ended(jobs)
    assert apply(jobs, job_id) is Applied.APPLIED
    assert jobs.outbox() == set()
    jobs.now += 100 * LEASE_MS
    assert jobs.lease(call="1") == []


def test_an_event_that_is_applied_again_is_a_repeat(jobs: TimedJobs) -> None:
    job_id = ended(jobs)
    apply(jobs, job_id)
    before = jobs.everything()
    jobs.now += 1
    assert apply(jobs, job_id) is Applied.REPEATED
    assert jobs.everything() == before


def test_an_unknown_event_is_unknown(jobs: TimedJobs) -> None:
    job_id, living = ended(jobs), jobs.submit()
    before = jobs.everything()
    assert apply(jobs, job_id, seq=2) is Applied.UNKNOWN
    assert apply(jobs, living, seq=1) is Applied.UNKNOWN
    assert apply(jobs, "unknown-job", seq=1) is Applied.UNKNOWN
    assert jobs.everything() == before


@pytest.mark.parametrize("applied_first", [True, False], ids=["applied first", "archived first"])
def test_once_applied_and_archived_a_job_lives_for_a_day_and_its_log_for_an_hour(
    jobs: TimedJobs, applied_first: bool
) -> None:
    job_id = ended(jobs)
    for first in (applied_first, not applied_first):
        assert (lives_for(jobs, "job", job_id), lives_for(jobs, "log", job_id)) == (-1, -1)
        if first:
            apply(jobs, job_id)
        else:
            archive(jobs, job_id)
    assert DAY_MS - 120_000 < lives_for(jobs, "job", job_id) <= DAY_MS
    assert HOUR_MS - 120_000 < lives_for(jobs, "log", job_id) <= HOUR_MS


def test_a_living_job_has_no_time_to_live(jobs: TimedJobs) -> None:
    for job_id in (jobs.submit(), jobs.running(), ended(jobs)):
        assert (lives_for(jobs, "job", job_id), lives_for(jobs, "log", job_id)) == (-1, -1)


def test_jobs_leave_the_tenants_index_when_their_record_expires(jobs: TimedJobs) -> None:
    old, strange = ended(jobs), ended(jobs, tenant="stranger of note")
    for job_id in (old, strange):
        apply(jobs, job_id)
        archive(jobs, job_id)
    jobs.now += DAY_MS - 1
    younger = ended(jobs)
    apply(jobs, younger)
    archive(jobs, younger)
    indexed = {job.decode() for job in jobs.redis.zrange(jobs.key("tenant", TENANT), 0, -1)}
    assert indexed == {old, younger}
    jobs.now += 1
    last = ended(jobs)
    apply(jobs, last)
    archive(jobs, last)
    indexed = {job.decode() for job in jobs.redis.zrange(jobs.key("tenant", TENANT), 0, -1)}
    assert indexed == {younger, last}
    assert jobs.redis.zcard(jobs.key("tenant", "stranger of note")) == 0

"""Dead letters: which failures become one, how long they are stored, and how they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from darkroom.cloudevents.event import Event, requested_event
from darkroom.errors import BacklogFull, NotFound
from darkroom.history.lookup import Lookup
from darkroom.history.store import History
from darkroom.jobs import JobEvent, State, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, Applied, Archived, AttemptEnd, Purged, Receipt, ReleaseReason
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.dead_letters import DeadLetters
from pydantic import SecretStr

from tests.core.timed_jobs import START_MS, TENANT, TimedJobs

JOB_ID = "00000000-0001-7445-8f64-d6cc8c4e9a1b"


def letters(jobs: TimedJobs, tenant: str = TENANT) -> set[str]:
    return {item.decode() for item in jobs.redis.zrange(jobs.key("dead", tenant), 0, -1)}


def dead(jobs: TimedJobs, **more: object) -> str:
    """A job whose one attempt failed."""
    job_id = jobs.running(max_attempts=1, **more)
    assert jobs.retry(job_id) is AttemptEnd.FAILED
    return job_id


def settle(jobs: TimedJobs, job_id: str) -> None:
    """Its terminal event is applied, and the history has it."""
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    assert jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now)) is Applied.APPLIED
    assert jobs.run(calls.mark_archived(job_id, seq=seq, now=jobs.now)) is Archived.ARCHIVED


def purge(jobs: TimedJobs, job_id: str, *, tenant: str = TENANT) -> Purged:
    return jobs.run(calls.purge_dead_letter(job_id, tenant=tenant, now=jobs.now))


def redrive(jobs: TimedJobs, letter: str, *, tenant: str = TENANT, backlog_limit: int = 100) -> object:
    job = jobs.submission(redrive_of=letter, tenant=tenant)
    return jobs.run(calls.accept(job, backlog_limit=backlog_limit, now=jobs.now))


def is_kept(jobs: TimedJobs, job_id: str) -> bool:
    """Neither its record nor its log has a time to live."""
    limits = {jobs.redis.ttl(jobs.key(kind, job_id)) for kind in ("job", "log")}
    assert limits == {-1} or min(limits) > 0
    return limits == {-1}


# -- which jobs become one ---------------------------------------------------------------------------------------------


def _worker_lost(jobs: TimedJobs) -> str:
    job_id = jobs.running(max_attempts=1)
    assert jobs.release(job_id, ReleaseReason.WORKER_LOST) is AttemptEnd.FAILED
    return job_id


def _reaped(jobs: TimedJobs) -> str:
    jobs.reap()
    job_id = jobs.running(max_attempts=1)
    assert jobs.reap_until(jobs.now + 2 * calls.LEASE_MS) == [job_id]
    return job_id


def _faulty(jobs: TimedJobs) -> str:
    job_id = jobs.submit()
    for number in range(10):
        jobs.start(job_id, token=str(number))
        ended = jobs.release(job_id, ReleaseReason.WORKER_FAULT, token=str(number))
    assert ended is AttemptEnd.FAILED
    return job_id


def _undeliverable(jobs: TimedJobs) -> str:
    job_id = jobs.submit()
    for _ in range(5):
        assert jobs.receive_message() == job_id
        jobs.now += calls.SWEEP_AGE_MS
        jobs.sweep()
    assert jobs.state(job_id) is State.FAILED
    return job_id


USED_UP: Mapping[str, Callable[[TimedJobs], str]] = {
    "failed at every attempt": dead,
    "every worker lost": _worker_lost,
    "every lease lapsed": _reaped,
    "ten faults of workers": _faulty,
    "never claimed": _undeliverable,
}


@pytest.mark.parametrize("use_up", USED_UP.values(), ids=USED_UP.keys())
def test_a_job_whose_attempts_are_used_up_is_a_dead_letter(jobs: TimedJobs, use_up: Callable[[TimedJobs], str]) -> None:
    job_id = use_up(jobs)
    assert letters(jobs) == {job_id}
    assert jobs.redis.zscore(jobs.key("dead", TENANT), job_id) == jobs.record(job_id).ended


def _refused(jobs: TimedJobs) -> None:
    jobs.finish(jobs.running(), outcome=State.FAILED)


def _cancelled_at_the_last_attempt(jobs: TimedJobs) -> None:
    job_id = jobs.running(max_attempts=1)
    assert jobs.cancel(job_id).receipt is Receipt.INTERRUPTING
    assert jobs.retry(job_id) is AttemptEnd.CANCELLED


def _expired(jobs: TimedJobs) -> None:
    job_id = jobs.submit(start_deadline=START_MS)
    assert jobs.expire() == [job_id]


ENDED: Mapping[str, Callable[[TimedJobs], object]] = {
    "completed": lambda jobs: jobs.finish(jobs.running()),
    "refused by its worker, or out of time": _refused,
    "cancelled": _cancelled_at_the_last_attempt,
    "expired": _expired,
    "to be tried again": lambda jobs: jobs.retry(jobs.running(max_attempts=2)),
}


@pytest.mark.parametrize("end", ENDED.values(), ids=ENDED.keys())
def test_no_other_job_is_one(jobs: TimedJobs, end: Callable[[TimedJobs], object]) -> None:
    end(jobs)
    assert letters(jobs) == set()


# -- how long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [purge, redrive], ids=["purged", "redriven"])
def test_a_dead_letter_is_stored_until_it_leaves_and_a_day_more(
    jobs: TimedJobs, leave: Callable[[TimedJobs, str], object]
) -> None:
    job_id = dead(jobs)
    settle(jobs, job_id)
    assert is_kept(jobs, job_id)
    leave(jobs, job_id)
    assert not is_kept(jobs, job_id)
    assert letters(jobs) == set()
    assert jobs.state(job_id) is State.FAILED


def test_one_that_leaves_early_is_stored_until_it_is_applied_and_archived(jobs: TimedJobs) -> None:
    job_id = dead(jobs)
    assert purge(jobs, job_id) is Purged.PURGED
    assert is_kept(jobs, job_id)
    settle(jobs, job_id)
    assert not is_kept(jobs, job_id)


def test_a_repair_keeps_a_dead_letter(jobs: TimedJobs) -> None:
    job_id = dead(jobs)
    settle(jobs, job_id)
    jobs.redis.expire(jobs.key("job", job_id), 60)
    jobs.redis.expire(jobs.key("log", job_id), 60)
    assert jobs.run(calls.repair(job_id, now=jobs.now)) == ["its record kept"]
    assert is_kept(jobs, job_id)


def test_a_deleted_job_is_not_a_dead_letter(jobs: TimedJobs) -> None:
    job_id = dead(jobs)
    jobs.run(calls.delete_job(job_id, tenant=TENANT, now=jobs.now))
    assert letters(jobs) == set()
    assert purge(jobs, job_id) is Purged.UNKNOWN


# -- purged ------------------------------------------------------------------------------------------------------------


def test_a_repeated_purge_changes_nothing(jobs: TimedJobs) -> None:
    job_id = dead(jobs)
    settle(jobs, job_id)
    assert purge(jobs, job_id) is Purged.PURGED
    before = jobs.everything()
    jobs.now += 1
    assert purge(jobs, job_id) is Purged.REPEATED
    assert jobs.everything() == before


def test_only_a_dead_letter_of_the_tenant_is_purged(jobs: TimedJobs) -> None:
    job_id, failed, living = dead(jobs), jobs.running(), jobs.submit()
    jobs.finish(failed, outcome=State.FAILED)
    before = jobs.everything()
    assert purge(jobs, job_id, tenant="stranger") is Purged.UNKNOWN
    for other in (failed, living, "unknown-job"):
        assert purge(jobs, other) is Purged.UNKNOWN
    assert jobs.everything() == before


# -- redriven ----------------------------------------------------------------------------------------------------------


def test_a_redrive_runs_once_and_repeats_return_the_first_job(jobs: TimedJobs) -> None:
    letter = dead(jobs)
    first = redrive(jobs, letter)
    assert isinstance(first, Accepted)
    assert not first.repeated
    assert jobs.state(first.job_id) is State.PENDING
    before = jobs.everything()
    assert redrive(jobs, letter) == Accepted(first.job_id, first.created_ms, repeated=True)
    assert jobs.everything() == before
    assert purge(jobs, letter) is Purged.REPEATED


def test_a_refused_redrive_leaves_the_dead_letter(jobs: TimedJobs) -> None:
    letter = dead(jobs)
    before = jobs.everything()
    assert isinstance(redrive(jobs, letter, backlog_limit=0), BacklogFull)
    assert jobs.everything() == before


def test_only_a_dead_letter_of_the_tenant_is_redriven(jobs: TimedJobs) -> None:
    letter, purged, completed = dead(jobs), dead(jobs), jobs.running()
    jobs.finish(completed)
    purge(jobs, purged)
    before = jobs.everything()
    assert isinstance(redrive(jobs, letter, tenant="stranger"), NotFound)
    for other in (purged, completed, "unknown-job"):
        assert isinstance(redrive(jobs, other), NotFound)
    assert jobs.everything() == before


def test_another_tenant_does_not_see_the_job_of_a_redrive(jobs: TimedJobs) -> None:
    letter = dead(jobs)
    redrive(jobs, letter)
    assert isinstance(redrive(jobs, letter, tenant="stranger"), NotFound)


def test_a_redriven_job_can_become_one_again(jobs: TimedJobs) -> None:
    letter = dead(jobs)
    again = redrive(jobs, letter)
    assert isinstance(again, Accepted)
    for attempt in range(3):
        jobs.start(again.job_id, token=f"{attempt}")
        jobs.retry(again.job_id, token=f"{attempt}", delay_ms=0)
    assert letters(jobs) == {again.job_id}


# -- read --------------------------------------------------------------------------------------------------------------


def dead_letters(ledger: AsyncLedger) -> DeadLetters:
    """Reads without a history: no input has left Redis."""
    return DeadLetters(ledger, Lookup(ledger, History(SecretStr("sqlite+aiosqlite:////nowhere/history"))))


async def test_the_pages_have_every_dead_letter_once_the_newest_first(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    box = dead_letters(ledger)
    ended: list[tuple[int, str]] = []
    for number in range(7):
        jobs.now += number % 3  # so that several end in the same millisecond
        ended.append((jobs.now, dead(jobs, job_id=new_job_id(START_MS))))
    dead(jobs, tenant="stranger")
    for limit in (1, 2, 3, 7, 8):
        found, after = [], None
        while True:
            page = await box.page(TENANT, limit=limit, after=after)
            found.append([letter.record.id for letter in page.letters])
            after = page.after
            if after is None:
                break
        assert [job_id for page_ids in found for job_id in page_ids] == [job_id for _, job_id in sorted(ended)[::-1]]
        assert all(len(page_ids) == limit for page_ids in found[:-1])
        assert found[-1]


async def test_a_page_begins_behind_a_dead_letter_that_has_left(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    ids = []
    for _ in range(3):
        jobs.now += 1
        ids.append(dead(jobs))
    first = await dead_letters(ledger).page(TENANT, limit=1)
    purge(jobs, ids[2])
    second = await dead_letters(ledger).page(TENANT, limit=2, after=first.after)
    assert [letter.record.id for letter in second.letters] == [ids[1], ids[0]]


@pytest.mark.parametrize("cursor", ["", "1", "-", f"x-{JOB_ID}", "5-not-a-job", f"1-{JOB_ID}x"])
async def test_an_invalid_cursor_is_refused(ledger: AsyncLedger, cursor: str) -> None:
    with pytest.raises(ValueError, match="earlier page"):
        await dead_letters(ledger).page(TENANT, limit=1, after=cursor)


async def test_a_dead_letter_has_its_attempts_and_its_event(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    job_id = new_job_id(START_MS)
    fields = {"job_type": "image", "event": {"id": "one", "source": "/tests", "time": "2026-01-02T03:04:05Z"}}
    job_input = {"prompt": "a lighthouse", "none": [], "seed": 2**60}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    event = requested_event(
        job_id=job_id,
        tenant=TENANT,
        model="sd",
        job_input=job_input,
        run_timeout=60,
        fields=fields,
        time_ms=0,
        traceparent=trace,
    )
    submitted = {"fields": fields, "input": job_input, "run_timeout": 60, "traceparent": trace}
    dead(jobs, job_id=job_id, **submitted)
    letter = await dead_letters(ledger).find(job_id, tenant=TENANT)
    assert letter is not None
    assert letter.event == event
    assert Event.decode_structured(letter.event).id == "one"
    assert [entry.event for entry in letter.log] == [JobEvent.ACCEPTED, JobEvent.STARTED, JobEvent.FAILED]
    assert await dead_letters(ledger).find(job_id, tenant="stranger") is None


async def test_a_dead_letter_whose_record_was_removed_is_on_no_page(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    gone, there = dead(jobs), dead(jobs)
    jobs.redis.delete(jobs.key("job", gone))
    page = await dead_letters(ledger).page(TENANT, limit=5)
    assert [letter.record.id for letter in page.letters] == [there]
    assert await dead_letters(ledger).find(gone, tenant=TENANT) is None

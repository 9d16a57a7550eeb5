"""The audit, on a real Redis: a ledger in any state has no findings, and each damage made by a test is found."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from darkroom.artifacts import ArtifactStore, artifact_key
from darkroom.checks import auditor, snapshots
from darkroom.checks.audit import REPAIRABLE, FaultKind
from darkroom.checks.auditor import Auditor, AuditReport
from darkroom.history.store import History, PastJob
from darkroom.jobs import Artifact, State
from darkroom.ledger import calls, queues, reads
from darkroom.ledger.calls import DeliveryOutcome, WorkerState
from darkroom.ledger.connection import connect_async
from darkroom.webhooks.subscriptions import Webhook, WebhookEvent, target_of
from kombu import Connection

from tests.core.timed_jobs import POOL, TENANT, TOKEN, WORKER, TimedJobs
from tests.databases import opened
from tests.driven_jobs import DrivenJobs

GHOST = "01900000-0000-7000-8000-000000000000"
"""The id of an unknown job."""

LONG_AGO_MS = 120_000

WEBHOOK = Webhook("https://receiver.test/hook", frozenset(WebhookEvent))
TARGET = target_of(TENANT, WEBHOOK.url)


@pytest.fixture
def jobs(any_redis_url: str, namespace: str) -> Iterator[TimedJobs]:
    """Jobs at the present time: the audit uses Redis' clock."""
    jobs = TimedJobs(any_redis_url, namespace)
    jobs.now = time.time_ns() // 1_000_000
    yield jobs
    jobs.close()


@dataclass
class Audit:
    """The auditor, whose second pass follows at once by default."""

    redis_url: str
    namespace: str

    async def __call__(
        self,
        *,
        repair: bool = False,
        store: ArtifactStore | None = None,
        history: History | None = None,
        second_pass_s: float = 0,
    ) -> AuditReport:
        async with connect_async(self.redis_url) as client:
            one = Auditor(client, self.namespace, store=store, history=history, second_pass_s=second_pass_s)
            return await one.audit(repair=repair)


@pytest.fixture
def look(jobs: TimedJobs, any_redis_url: str) -> Audit:
    return Audit(any_redis_url, jobs.namespace)


def kinds(report: AuditReport) -> set[FaultKind]:
    return {fault.kind for fault in report.findings}


# -- what is right -----------------------------------------------------------------------------------------------------


def everything(jobs: TimedJobs) -> dict[str, str]:
    """A job in each place. The pool's list is full, since there is no worker, so that one job waits."""
    jobs.limit("limited", 0)
    there = {
        "completed": jobs.running(),
        "failed": jobs.running(),
        "cancelled": jobs.submit(),
        "expired": jobs.submit(start_deadline=jobs.now),
        "due": jobs.running(),
        "running": jobs.running(),
        "dispatched": jobs.submit(),
        "waiting": jobs.submit(),
        "held": jobs.submit(tenant="limited"),
    }
    jobs.finish(there["completed"])
    jobs.finish(there["failed"], outcome=State.FAILED)
    jobs.cancel(there["cancelled"])
    jobs.expire()
    jobs.retry(there["due"])
    return there


async def test_every_place_is_counted_and_nothing_is_found(jobs: TimedJobs, look: Audit) -> None:
    there = everything(jobs)
    report = await look()
    assert dict(report.places) == dict.fromkeys(there, 1)
    assert (report.jobs, report.unapplied, report.findings, report.stale) == (9, 4, (), ())


async def test_an_applied_and_archived_job_has_no_fault(jobs: TimedJobs, look: Audit) -> None:
    job_id = jobs.running()
    jobs.finish(job_id)
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now))
    assert (await look()).findings == ()
    jobs.run(calls.mark_archived(job_id, seq=seq, now=jobs.now))
    jobs.redis.delete(jobs.key("log", job_id))  # it goes before the record does
    report = await look()
    assert (report.places["completed"], report.unapplied, report.findings) == (1, 0, ())


async def test_pending_events_and_deliveries_are_no_faults(jobs: TimedJobs, look: Audit) -> None:
    _applied(jobs)
    _delivered(jobs)
    _dead(jobs)
    jobs.running(webhook=WEBHOOK)
    report = await look()
    assert (report.jobs, report.findings) == (4, ())


async def test_a_target_outside_of_the_set_of_targets_is_found_and_repaired(jobs: TimedJobs, look: Audit) -> None:
    """With all deliveries to it: `_applied` stores two."""
    job_id = _applied(jobs)
    jobs.redis.zrem(jobs.key("targets"), TARGET)
    assert {fault.job for fault in (await look()).findings} == {job_id}
    await look(repair=True)
    assert (await look()).findings == ()
    assert jobs.redis.zscore(jobs.key("targets"), TARGET) is not None


async def test_jobs_of_another_namespace_are_ignored(jobs: TimedJobs, look: Audit, any_redis_url: str) -> None:
    others = TimedJobs(any_redis_url, f"{jobs.namespace}-other")
    others.redis.zrem(others.key("dispatched", POOL), others.submit())
    others.close()
    report = await look()
    assert (report.jobs, report.findings) == (0, ())


async def test_redis_is_read_in_slices(jobs: TimedJobs, look: Audit) -> None:
    for _ in range(3 * reads.SLICE):
        jobs.submit()
    before = jobs.redis.info("commandstats").get("cmdstat_keys", {"calls": 0})["calls"]
    report = await look()
    assert (report.places["waiting"], report.places["dispatched"]) == (3 * reads.SLICE - 1, 1)
    assert jobs.redis.info("commandstats").get("cmdstat_keys", {"calls": 0})["calls"] == before


async def test_jobs_that_change_during_the_audit_are_no_finding(
    look: Audit, any_redis_url: str, namespace: str
) -> None:
    driven = DrivenJobs(any_redis_url, namespace)
    stop = Event()

    def traffic() -> None:
        while not stop.is_set():
            driven.cancel(driven.submit())
            token = driven.start(job_id := driven.submit())
            driven.progress(job_id, step=1, steps=2)
            driven.complete(job_id, token=token)

    thread = Thread(target=traffic)
    thread.start()
    try:
        reports = [await look(second_pass_s=0.2) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
        driven.close()
    assert [report.findings for report in reports] == [()] * 5
    assert reports[-1].jobs > 0


# -- what is wrong -----------------------------------------------------------------------------------------------------


def _waiting(jobs: TimedJobs) -> str:
    jobs.submit()
    return jobs.submit()


def _due(jobs: TimedJobs) -> str:
    job_id = jobs.running()
    jobs.retry(job_id)
    return job_id


def _held(jobs: TimedJobs) -> str:
    jobs.limit(TENANT, 1)
    jobs.running()
    return jobs.submit()


def _running_under_a_limit(jobs: TimedJobs) -> str:
    jobs.limit(TENANT, 1)
    return jobs.running()


def _dispatched_under_a_limit(jobs: TimedJobs) -> str:
    jobs.limit(TENANT, 1)
    return jobs.submit()


def _completed_under_a_limit(jobs: TimedJobs) -> str:
    job_id = _running_under_a_limit(jobs)
    jobs.finish(job_id)
    return job_id


def _completed(jobs: TimedJobs) -> str:
    job_id = jobs.running()
    jobs.finish(job_id)
    return job_id


def _lapsed(jobs: TimedJobs) -> str:
    """A job whose lease lapsed long ago, and which was not reaped."""
    jobs.now -= LONG_AGO_MS
    job_id = jobs.running()
    jobs.now += LONG_AGO_MS
    return job_id


def _lost(jobs: TimedJobs) -> str:
    """A job whose message was received long ago, while no courier swept."""
    jobs.now -= LONG_AGO_MS
    job_id = jobs.submit()
    assert jobs.receive_message() == job_id
    jobs.now += LONG_AGO_MS
    return job_id


def _settled(jobs: TimedJobs) -> str:
    job_id = _completed(jobs)
    seq = jobs.record(job_id).end_seq
    assert seq is not None
    jobs.run(calls.mark_applied(job_id, seq=seq, now=jobs.now))
    jobs.run(calls.mark_archived(job_id, seq=seq, now=jobs.now))
    return job_id


def _applied(jobs: TimedJobs) -> str:
    """A job whose terminal event is applied, with open deliveries."""
    job_id = jobs.running(webhook=WEBHOOK)
    jobs.run(calls.mark_applied(job_id, seq=2, now=jobs.now))
    jobs.finish(job_id)
    jobs.run(calls.mark_applied(job_id, seq=jobs.record(job_id).end_seq or 0, now=jobs.now))
    return job_id


def _delivered(jobs: TimedJobs) -> str:
    job_id = _applied(jobs)
    for number in range(2):
        call = calls.lease_deliveries(owner="c", call=str(number), limit=1, per_target=1, now=jobs.now)
        (delivery,) = jobs.run(call)
        jobs.run(calls.record_attempt(delivery, outcome=DeliveryOutcome.DELIVERED, now=jobs.now))
    return job_id


def _dead(jobs: TimedJobs) -> str:
    job_id = jobs.running(max_attempts=1)
    jobs.retry(job_id)
    return job_id


def delivery_of(job_id: str) -> str:
    return f"{job_id}.3.job"


def out_of(name: str) -> Callable[[TimedJobs, str], Any]:
    return lambda jobs, job_id: jobs.redis.zrem(jobs.key(name, POOL), job_id)


def into(name: str, pool: str | None = POOL) -> Callable[[TimedJobs, str], Any]:
    return lambda jobs, job_id: jobs.redis.zadd(jobs.key(name, pool) if pool else jobs.key(name), {job_id: jobs.now})


def nothing(jobs: TimedJobs, job_id: str) -> None:
    """Do nothing: the situation itself is the damage."""


@dataclass(frozen=True)
class Damage:
    """A damage to a job in a situation, the finding that it must cause, and where a repair moves the job."""

    situation: Callable[[TimedJobs], str]
    harm: Callable[[TimedJobs, str], Any]
    kind: FaultKind
    place: str | None = None


DAMAGES = {
    "a waiting job in no set": Damage(_waiting, out_of("waiting"), FaultKind.NOWHERE, "waiting"),
    "a dispatched job in no set": Damage(TimedJobs.submit, out_of("dispatched"), FaultKind.NOWHERE, "waiting"),
    "a due job in no set": Damage(_due, out_of("due"), FaultKind.NOWHERE, "due"),
    "a running job in no set, its lease live": Damage(
        TimedJobs.running, out_of("running"), FaultKind.NOWHERE, "running"
    ),
    "a running job in no set, its lease lapsed": Damage(_lapsed, out_of("running"), FaultKind.NOWHERE, "dispatched"),
    "a pending job in the running set": Damage(
        _waiting,
        lambda jobs, job_id: (out_of("waiting")(jobs, job_id), into("running")(jobs, job_id)),
        FaultKind.NOWHERE,
        "waiting",
    ),
    "a waiting job that is also due": Damage(_waiting, into("due"), FaultKind.IN_TWO_PLACES, "due"),
    "a dispatched job that also waits": Damage(
        TimedJobs.submit, into("waiting"), FaultKind.IN_TWO_PLACES, "dispatched"
    ),
    "a running job that also waits": Damage(TimedJobs.running, into("waiting"), FaultKind.IN_TWO_PLACES, "running"),
    "a completed job that also waits": Damage(_completed, into("waiting"), FaultKind.IN_TWO_PLACES, "completed"),
    "a completed job with a start deadline": Damage(
        _completed, into("deadlines", None), FaultKind.IN_TWO_PLACES, "completed"
    ),
    "a pending end outside of the outbox": Damage(
        _completed,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("outbox"), job_id),
        FaultKind.NOT_IN_OUTBOX,
        "completed",
    ),
    "an applied end in the outbox": Damage(_settled, into("outbox", None), FaultKind.IN_OUTBOX, "completed"),
    "a running job in the outbox": Damage(TimedJobs.running, into("outbox", None), FaultKind.IN_OUTBOX, "running"),
    "an end outside of the history's queue": Damage(
        _completed,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("history"), job_id),
        FaultKind.NOT_TO_BE_ARCHIVED,
        "completed",
    ),
    "an end that is archived, to be archived again": Damage(
        _settled, into("history", None), FaultKind.TO_BE_ARCHIVED, "completed"
    ),
    "a job that its tenant's index has not": Damage(
        TimedJobs.submit,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("tenant", TENANT), job_id),
        FaultKind.NOT_IN_INDEX,
        "dispatched",
    ),
    "a job in the set of another pool": Damage(_waiting, into("waiting", "other"), FaultKind.OTHER_POOL, "waiting"),
    "a living job whose record will expire": Damage(
        TimedJobs.running,
        lambda jobs, job_id: jobs.redis.pexpire(jobs.key("job", job_id), 3_600_000),
        FaultKind.EXPIRES,
        "running",
    ),
    "a running job that its worker's entry has not": Damage(
        TimedJobs.running,
        lambda jobs, job_id: jobs.redis.hdel(jobs.key("busy"), WORKER),
        FaultKind.BUSY_DIFFERS,
        "running",
    ),
    "a worker's entry for a job that has ended": Damage(
        _completed,
        lambda jobs, job_id: jobs.redis.hset(jobs.key("busy"), "worker-9", job_id),
        FaultKind.BUSY_DIFFERS,
        "completed",
    ),
    "a waiting job that its tenant's share has not": Damage(
        _waiting,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("share", POOL, TENANT), job_id),
        FaultKind.ORDER_DIFFERS,
        "waiting",
    ),
    "a finished job in its tenant's share": Damage(
        _completed,
        lambda jobs, job_id: jobs.redis.zadd(jobs.key("share", POOL, TENANT), {job_id: 1}),
        FaultKind.ORDER_DIFFERS,
        "completed",
    ),
    "a held job that its limit has not": Damage(
        _held,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("excess", POOL, TENANT), job_id),
        FaultKind.ORDER_DIFFERS,
        "held",
    ),
    "a held job that its limit admits": Damage(
        _held,
        lambda jobs, job_id: jobs.redis.zadd(jobs.key("admitted", POOL, TENANT), {job_id: 1}),
        FaultKind.ORDER_DIFFERS,
        "held",
    ),
    "a running job that its limit does not count": Damage(
        _running_under_a_limit,
        lambda jobs, job_id: jobs.redis.srem(jobs.key("running-of", TENANT), job_id),
        FaultKind.ORDER_DIFFERS,
        "running",
    ),
    "a finished job that a limit counts": Damage(
        _completed_under_a_limit,
        lambda jobs, job_id: jobs.redis.sadd(jobs.key("running-of", TENANT), job_id),
        FaultKind.ORDER_DIFFERS,
        "completed",
    ),
    "a dispatched job that its limit does not admit": Damage(
        _dispatched_under_a_limit,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("admitted", POOL, TENANT), job_id),
        FaultKind.ORDER_DIFFERS,
        "dispatched",
    ),
    "a held job in no set": Damage(
        _held,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("held", POOL), job_id),
        FaultKind.NOWHERE,
        "held",
    ),
    "a held job that also waits": Damage(
        _held,
        lambda jobs, job_id: jobs.redis.zadd(jobs.key("waiting", POOL), {job_id: 1}),
        FaultKind.IN_TWO_PLACES,
        "held",
    ),
    "a pending start outside of the outbox": Damage(
        lambda jobs: jobs.running(webhook=WEBHOOK),
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("outbox"), job_id),
        FaultKind.NOT_IN_OUTBOX,
        "running",
    ),
    "a dead letter of a job that completed": Damage(
        _completed, into("dead", TENANT), FaultKind.NO_DEAD_LETTER, "completed"
    ),
    "a dead letter of another tenant's": Damage(_dead, into("dead", "stranger"), FaultKind.NO_DEAD_LETTER, "failed"),
    "a dead letter whose record will expire": Damage(
        _dead,
        lambda jobs, job_id: jobs.redis.pexpire(jobs.key("job", job_id), 3_600_000),
        FaultKind.EXPIRES,
        "failed",
    ),
    "an open delivery that is never due": Damage(
        _applied,
        lambda jobs, job_id: jobs.redis.zrem(jobs.key("deliveries", TARGET), delivery_of(job_id)),
        FaultKind.DELIVERY_MISPLACED,
        "completed",
    ),
    "an open delivery that its job counts as ended": Damage(
        _applied,
        lambda jobs, job_id: jobs.redis.zadd(jobs.key("deliveries-of", job_id), {delivery_of(job_id): 0}),
        FaultKind.DELIVERY_MISPLACED,
        "completed",
    ),
    "an open delivery whose record will expire": Damage(
        _applied,
        lambda jobs, job_id: jobs.redis.pexpire(jobs.key("delivery", delivery_of(job_id)), 3_600_000),
        FaultKind.DELIVERY_MISPLACED,
        "completed",
    ),
    "a delivery that ended and is due": Damage(
        _delivered,
        lambda jobs, job_id: jobs.redis.zadd(jobs.key("deliveries", TARGET), {delivery_of(job_id): jobs.now}),
        FaultKind.DELIVERY_MISPLACED,
        "completed",
    ),
    "a delivery without a record": Damage(
        _applied,
        lambda jobs, job_id: jobs.redis.delete(jobs.key("delivery", delivery_of(job_id))),
        FaultKind.DELIVERY_NO_RECORD,
        "completed",
    ),
    "a message that was taken and never claimed": Damage(_lost, nothing, FaultKind.MESSAGE_LOST, "dispatched"),
    "a lease that lapsed and was not reaped": Damage(_lapsed, nothing, FaultKind.LEASE_LAPSED),
    "a lease that the set has otherwise": Damage(
        TimedJobs.running,
        lambda jobs, job_id: jobs.redis.zincrby(jobs.key("running", POOL), 1000, job_id),
        FaultKind.LEASE_DIFFERS,
    ),
    "a log with a gap": Damage(
        TimedJobs.running, lambda jobs, job_id: jobs.redis.xdel(jobs.key("log", job_id), "1-0"), FaultKind.LOG_GAP
    ),
    "a log that is shorter than its record says": Damage(
        TimedJobs.running, lambda jobs, job_id: jobs.redis.hincrby(jobs.key("job", job_id), "seq", 1), FaultKind.LOG_GAP
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_each_damage_is_found_and_nothing_else(jobs: TimedJobs, look: Audit, damage: Damage) -> None:
    job_id = damage.situation(jobs)
    damage.harm(jobs, job_id)
    report = await look()
    assert [(fault.kind, fault.job) for fault in report.findings] == [(damage.kind, job_id)]
    assert report.findings[0].seen
    assert report.unrepaired == list(report.findings)


@pytest.mark.parametrize(
    "damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items() if damage.place is not None]
)
async def test_each_repairable_damage_is_repaired_once(jobs: TimedJobs, look: Audit, damage: Damage) -> None:
    job_id = damage.situation(jobs)
    damage.harm(jobs, job_id)
    report = await look(repair=True)
    assert report.unrepaired == []
    after = await look()
    assert after.findings == ()
    assert damage.place is not None
    assert after.places[damage.place] >= 1
    assert jobs.ledger.run(snapshots.inspect(job_id)).place == damage.place
    assert jobs.run(calls.repair(job_id)) == []


@pytest.mark.parametrize(
    "situation", [_waiting, TimedJobs.submit, _due, TimedJobs.running, _completed], ids=lambda made: made.__name__
)
async def test_a_job_in_a_state_of_a_later_version_has_no_fault_and_stays_where_it_is(
    jobs: TimedJobs, look: Audit, situation: Callable[[TimedJobs], str]
) -> None:
    job_id = situation(jobs)
    jobs.redis.hset(jobs.key("job", job_id), "state", "resting")
    jobs.redis.zadd(jobs.key("dead", TENANT), {job_id: jobs.now})
    jobs.redis.hset(jobs.key("busy"), WORKER, job_id)
    before = jobs.everything()
    report = await look(repair=True)
    assert report.findings == ()
    assert "nowhere" not in report.places
    assert jobs.run(calls.repair(job_id)) == []
    assert jobs.everything() == before


async def test_a_delivery_in_a_state_of_a_later_version_has_no_fault(jobs: TimedJobs, look: Audit) -> None:
    job_id = _applied(jobs)
    jobs.redis.hset(jobs.key("delivery", delivery_of(job_id)), "state", "parked")
    assert (await look()).findings == ()


def test_every_repairable_kind_is_tested() -> None:
    repaired = {damage.kind for damage in DAMAGES.values() if damage.place is not None}
    assert repaired | {FaultKind.NO_RECORD} >= REPAIRABLE


async def test_a_waiting_job_is_restored_at_its_queue_position(jobs: TimedJobs, look: Audit) -> None:
    first, second, third = jobs.submit(), jobs.submit(), jobs.submit()
    out_of("waiting")(jobs, second)
    await look(repair=True)
    jobs.receive_message()
    jobs.start(first)
    assert jobs.receive_message() == second
    jobs.start(second)
    assert jobs.receive_message() == third


async def test_a_running_job_that_is_requeued_counts_the_attempt_and_refuses_its_worker(
    jobs: TimedJobs, look: Audit
) -> None:
    job_id = _lapsed(jobs)
    out_of("running")(jobs, job_id)
    report = await look(repair=True)
    assert [fault.repaired for fault in report.findings] == ["requeued"]
    record = jobs.record(job_id)
    assert (record.state, record.counted) == (State.PENDING, 1)
    assert jobs.finish(job_id) == "lost"


@pytest.mark.parametrize("name", ["waiting", "dispatched", "due", "running", "outbox", "history", "deadlines"])
async def test_a_member_without_a_record_is_found_and_removed(jobs: TimedJobs, look: Audit, name: str) -> None:
    pool = POOL if name in snapshots.POOL_SETS else None
    into(name, pool)(jobs, GHOST)
    report = await look()
    assert [(fault.kind, fault.job) for fault in report.findings] == [(FaultKind.NO_RECORD, GHOST)]
    assert (await look(repair=True)).unrepaired == []
    assert (await look()).findings == ()


async def test_a_pool_that_was_never_announced_is_checked(jobs: TimedJobs, look: Audit) -> None:
    into("waiting", "unheard-of")(jobs, GHOST)
    report = await look()
    assert [(fault.kind, fault.pool) for fault in report.findings] == [(FaultKind.NO_RECORD, "unheard-of")]


async def test_a_record_that_vanished_is_a_loss_that_no_repair_hides(jobs: TimedJobs, look: Audit) -> None:
    job_id = jobs.submit()
    jobs.redis.delete(jobs.key("job", job_id))
    assert kinds(await look()) == {FaultKind.VANISHED, FaultKind.NO_RECORD, FaultKind.COUNTS_DIFFER}
    after = await look(repair=True)
    assert [fault.kind for fault in after.unrepaired] == [FaultKind.VANISHED]
    assert kinds(await look()) == {FaultKind.VANISHED}


async def test_a_record_may_expire_after_its_time_to_live(jobs: TimedJobs, look: Audit) -> None:
    job_id = _settled(jobs)
    jobs.redis.delete(jobs.key("job", job_id), jobs.key("log", job_id))
    assert (await look()).findings == ()


async def test_a_lease_that_lapsed_while_redis_was_unavailable_is_no_fault(jobs: TimedJobs, look: Audit) -> None:
    _lapsed(jobs)
    jobs.reap()  # the first after an outage reaps nothing, for one lease
    assert (await look()).findings == ()


async def test_a_fault_that_is_repaired_between_the_passes_is_no_finding(
    jobs: TimedJobs, look: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = jobs.running()
    out_of("running")(jobs, job_id)
    slept: list[float] = []

    async def heal(seconds: float) -> None:
        slept.append(seconds)
        jobs.renew(job_id)

    monkeypatch.setattr(asyncio, "sleep", heal)
    report = await look(second_pass_s=auditor.SECOND_PASS_S)
    assert slept == [2.0]
    assert report.findings == ()


# -- messages ----------------------------------------------------------------------------------------------------------


def push(jobs: TimedJobs, job_id: str, number: int) -> str:
    """Push another message of the job, as the ledger does. Returns its tag."""
    message = queues.build_message(job_id=job_id, pool=POOL, traceparent=None)
    jobs.redis.lpush(jobs.list_key, f"{message.head}{job_id}:{number}{message.tail}")
    return f"{job_id}:{number}"


def take(any_redis_url: str, jobs: TimedJobs, count: int) -> None:
    """Receive messages as kombu does, without an acknowledgement: their worker was killed."""
    with Connection(any_redis_url, transport_options=queues.transport_options(jobs.namespace, POOL)) as connection:
        channel = connection.channel()
        for _ in range(count):
            assert channel.basic_get(queues.queue_name(POOL), no_ack=False) is not None
        channel.qos._delivered.clear()  # or it would give them back when it closes
        channel.close()


async def test_messages_of_jobs_that_need_none_are_stale_and_no_finding(jobs: TimedJobs, look: Audit) -> None:
    there = everything(jobs)
    tags = {push(jobs, there[place], 9): place for place in ("completed", "running", "due", "waiting")}
    twice = push(jobs, there["dispatched"], 1)
    unknown = push(jobs, GHOST, 1)
    report = await look()
    reasons = {stale.message.tag: stale.reason for stale in report.stale}
    assert set(reasons) == {*tags, twice, unknown}
    assert reasons[unknown] == "there is no such job"
    assert "completed" in reasons[f"{there['completed']}:9"]
    assert len(report.stale) == 6
    assert report.findings == ()


async def test_foreign_messages_are_reported_whatever_they_contain(jobs: TimedJobs, look: Audit) -> None:
    foreign = [
        b"\xff\xfe",
        b'"x"',
        b"{}",
        b'{"properties": {"delivery_tag": "\xff:1"}}',
        b'{"properties": {"delivery_tag": "a b:1"}}',
        b'{"properties": {"delivery_tag": "2f9f0ec0-0000-4000-8000-000000000000"}}',
    ]
    jobs.redis.lpush(jobs.list_key, *foreign)
    report = await look()
    assert [stale.reason for stale in report.stale] == ["it belongs to no job"] * len(foreign)
    assert {stale.message.tag for stale in report.stale} == {""}
    assert report.findings == ()


async def test_messages_of_a_killed_worker_are_reported(jobs: TimedJobs, look: Audit, any_redis_url: str) -> None:
    ended, running = jobs.submit(), jobs.submit()
    push(jobs, running, 1)
    push(jobs, running, 2)
    take(any_redis_url, jobs, 3)
    jobs.start(ended)
    jobs.finish(ended)
    jobs.start(running)
    report = await look()
    assert {(stale.message.tag, stale.message.where) for stale in report.stale} == {
        (f"{ended}:1", "unacked"),
        (f"{running}:1", "unacked"),
    }


async def test_a_canary_is_no_stale_message(jobs: TimedJobs, look: Audit) -> None:
    assert jobs.run(calls.canary(f"{queues.CANARY}1", pool=POOL)) is None
    assert (await look()).stale == ()


# -- artifacts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "store").as_uri())


def published(jobs: TimedJobs, *contents: bytes) -> tuple[str, list[Artifact]]:
    """A completed job that published these artifacts."""
    job_id = jobs.running()
    artifacts = []
    for index, content in enumerate(contents):
        sha256 = hashlib.sha256(content).hexdigest()
        key = artifact_key(tenant=TENANT, job_id=job_id, attempt=1, index=index, sha256=sha256, extension="png")
        artifacts.append(Artifact(key, sha256, "image/png", size=len(content), width=8, height=8))
    jobs.finish(job_id, data={"artifacts": [artifact.encode() for artifact in artifacts]})
    return job_id, artifacts


async def test_published_artifacts_are_read_and_compared(jobs: TimedJobs, look: Audit, store: ArtifactStore) -> None:
    contents = [b"one", b"two" * 500_000]
    _, artifacts = published(jobs, *contents)
    for artifact, content in zip(artifacts, contents, strict=True):
        store.put(artifact.key, content)
    report = await look(store=store)
    assert (report.artifacts, report.findings) == (2, ())


async def test_an_artifact_that_is_missing_or_has_changed_is_found(
    jobs: TimedJobs, look: Audit, store: ArtifactStore
) -> None:
    job_id, artifacts = published(jobs, b"one", b"two", b"three")
    store.put(artifacts[0].key, b"one")
    store.put(artifacts[1].key, b"another")
    report = await look(store=store, repair=True)
    assert {(fault.kind, fault.job, fault.artifact) for fault in report.unrepaired} == {
        (FaultKind.ARTIFACT_DIFFERS, job_id, artifacts[1].key),
        (FaultKind.ARTIFACT_MISSING, job_id, artifacts[2].key),
    }


async def test_artifacts_that_no_job_publishes_are_named_and_are_no_fault(
    jobs: TimedJobs, look: Audit, store: ArtifactStore
) -> None:
    _, (artifact,) = published(jobs, b"one")
    cancelled = jobs.running()
    jobs.cancel(cancelled)
    jobs.finish(cancelled, outcome=State.CANCELLED)
    running = jobs.running()

    def key_of(job_id: str, attempt: int) -> str:
        sha256 = hashlib.sha256(b"lost").hexdigest()
        return artifact_key(tenant=TENANT, job_id=job_id, attempt=attempt, index=0, sha256=sha256, extension="png")

    retried = artifact.key.replace("/1/", "/2/")
    input_of_job = f"{TENANT}/{cancelled}/input/0-{artifact.sha256}.png"
    for key in (artifact.key, retried, key_of(running, 1), key_of(cancelled, 1), key_of(GHOST, 1), input_of_job):
        store.put(key, b"one")
    report = await look(store=store)
    assert {(orphan.key, orphan.job) for orphan in report.orphans} == {
        (retried, artifact.key.split("/")[1]),
        (key_of(cancelled, 1), cancelled),
    }
    assert report.findings == ()


async def test_without_a_store_no_artifact_is_read(jobs: TimedJobs, look: Audit) -> None:
    published(jobs, b"one")
    report = await look()
    assert (report.artifacts, report.findings) == (None, ())


# -- history -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'history.sqlite'}") as history:
        yield history


async def test_archived_jobs_are_compared_with_the_history(jobs: TimedJobs, look: Audit, history: History) -> None:
    there = everything(jobs)
    for place in ("completed", "failed", "cancelled", "expired"):
        record = jobs.record(there[place])
        await history.write([PastJob.of(record, jobs.log(record.id))])
        assert record.end_seq is not None
        jobs.run(calls.mark_archived(record.id, seq=record.end_seq, now=jobs.now))
    report = await look(history=history)
    assert (report.past, report.findings) == (4, ())


async def test_an_archived_job_that_the_history_lacks_or_has_with_differences_is_found(
    jobs: TimedJobs, look: Audit, history: History
) -> None:
    missing, other = _settled(jobs), _settled(jobs)
    record = jobs.record(other)
    await history.write([PastJob.of(replace(record, worker="worker-9"), jobs.log(other))])
    report = await look(history=history, repair=True)
    assert {(fault.kind, fault.job) for fault in report.unrepaired} == {
        (FaultKind.HISTORY_MISSING, missing),
        (FaultKind.HISTORY_DIFFERS, other),
    }
    assert "worker" in next(fault.seen for fault in report.findings if fault.job == other)


async def test_a_job_that_is_being_deleted_is_no_finding(jobs: TimedJobs, look: Audit, history: History) -> None:
    await history.write_tombstone(jobs.record(_settled(jobs)), now=jobs.now)
    assert (await look(history=history)).findings == ()


# -- canaries ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_claims_a_canary_records_its_name_and_drops_it(jobs: TimedJobs) -> None:
    canary = f"{queues.CANARY}1"
    send = calls.canary(canary, pool=POOL, now=jobs.now)
    assert jobs.run(send) is None
    assert jobs.receive_message() == canary
    assert jobs.run(calls.claim(canary, token=TOKEN, worker=WORKER)).dropped == "canary"
    assert jobs.run(send) == WORKER
    assert jobs.receive_message() is None
    assert jobs.run(calls.canary(canary, pool=POOL, withdraw=True)) == WORKER
    assert jobs.run(calls.claim(canary, token=TOKEN, worker=WORKER)).dropped == "unknown"


def test_a_canary_that_is_withdrawn_leaves_nothing(jobs: TimedJobs) -> None:
    before = jobs.everything()
    for withdraw in (False, True):
        jobs.run(calls.canary(f"{queues.CANARY}1", pool=POOL, withdraw=withdraw, now=jobs.now))
    assert jobs.everything() == before


def test_a_canary_goes_before_the_jobs_and_moves_none(jobs: TimedJobs) -> None:
    jobs.worker(state=WorkerState.READY)
    submitted = [jobs.submit() for _ in range(5)]
    jobs.run(calls.canary(f"{queues.CANARY}1", pool=POOL, now=jobs.now))
    assert jobs.receive_message() == f"{queues.CANARY}1"
    for job_id in submitted:
        assert jobs.receive_message() == job_id
        jobs.start(job_id, token=job_id)


# -- the counts of limits ----------------------------------------------------------------------------------------------


async def test_counts_that_drifted_are_found_and_repaired(jobs: TimedJobs, look: Audit) -> None:
    first = jobs.submit(key_id="a-key")
    jobs.submit(key_id="a-key")
    jobs.start(jobs.submit())
    each = record_bytes(jobs, first)
    expected = {None: (2, 3 * each), "a-key": (2, 2 * each), "old-key": (0, 0)}
    assert {key: counted(jobs, key) for key in expected} == expected
    keys = jobs.ledger.keys
    jobs.redis.hincrby(keys.limits("default"), "jobs", 5)
    jobs.redis.hincrby(keys.limits("default", "a-key"), "bytes", -7)
    jobs.redis.hset(keys.limits("default", "old-key"), "jobs", 1)
    report = await look()
    assert kinds(report) == {FaultKind.COUNTS_DIFFER}
    assert [fault.seen.split(" count ")[0] for fault in report.findings] == [
        f"the limits of default{key}" for key in ("", ":a-key", ":old-key")
    ]
    repaired = await look(repair=True)
    assert repaired.unrepaired == []
    assert {key: counted(jobs, key) for key in expected} == expected
    assert (await look()).findings == ()


def counted(jobs: TimedJobs, key_id: str | None) -> tuple[int, int]:
    """The pending jobs and the bytes that the limits of the tenant, or of a key, count."""
    jobs_and_bytes = jobs.redis.hmget(jobs.ledger.keys.limits("default", key_id), "jobs", "bytes")
    return int(jobs_and_bytes[0] or 0), int(jobs_and_bytes[1] or 0)


def record_bytes(jobs: TimedJobs, job_id: str) -> int:
    key = jobs.key("job", job_id)
    return 3072 + sum(
        int(jobs.redis.hstrlen(key, name)) for name in ("input", "fields", "message_head", "message_tail")
    )

"""Every script in every situation of a job: its effect, and that a repeated call changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from darkroom.checks import snapshots
from darkroom.jobs import TERMINAL, TRANSITIONS, State
from darkroom.ledger import calls
from darkroom.ledger.calls import (
    Applied,
    Archived,
    AttemptEnd,
    Call,
    Cancelled,
    Claim,
    DeliveryOutcome,
    GrantKind,
    LeaseStatus,
    Receipt,
    ReleaseReason,
    WorkerState,
)
from darkroom.ledger.epochs import NEVER, Epoch
from darkroom.ledger.records import decode_job
from darkroom.ledger.scripts import texts
from darkroom.webhooks.subscriptions import PER_JOB, LeasedDelivery, WebhookEvent, new_subscription_id, target_of

from tests.core.timed_jobs import HICCUP, POOL, START_MS, TENANT, TOKEN, WORKER, TimedJobs

DEADLINE_MS = 600_000
"""How long every job here may wait for its first start."""

LATER_MS = 3_600_000
"""When the courier comes: all leases lapsed, all retries due, all start deadlines past."""

SUBSCRIPTION = new_subscription_id(START_MS)
URL = "https://receiver.test/hook"
CALL = "call-1"


def _waiting(jobs: TimedJobs) -> str:
    jobs.submit()  # fills the list, which holds one message while there is no worker
    return _submitted(jobs)


def _submitted(jobs: TimedJobs) -> str:
    return jobs.submit(start_deadline=START_MS + DEADLINE_MS)


def _missed(jobs: TimedJobs) -> str:
    """Its messages were received and never claimed, the last one too."""
    job_id = _submitted(jobs)
    for _ in range(4):
        assert jobs.receive_message() == job_id
        jobs.now += calls.SWEEP_AGE_MS
        assert jobs.sweep() == [job_id]
    assert jobs.receive_message() == job_id
    jobs.now = START_MS
    return job_id


def _held(jobs: TimedJobs) -> str:
    jobs.limit(TENANT, 0)
    return _submitted(jobs)


def _due(jobs: TimedJobs) -> str:
    job_id = _running(jobs)
    assert jobs.retry(job_id) is AttemptEnd.PENDING
    return job_id


def _running(jobs: TimedJobs) -> str:
    return jobs.start(_submitted(jobs))


def _cancelling(jobs: TimedJobs) -> str:
    job_id = _running(jobs)
    assert jobs.cancel(job_id).receipt is Receipt.INTERRUPTING
    return job_id


def _finished(outcome: State) -> Callable[[TimedJobs], str]:
    def finished(jobs: TimedJobs) -> str:
        job_id = _running(jobs)
        assert jobs.finish(job_id, outcome=outcome) == outcome.value
        return job_id

    return finished


def _cancelled(jobs: TimedJobs) -> str:
    job_id = _submitted(jobs)
    assert jobs.cancel(job_id).receipt is Receipt.DEQUEUED
    return job_id


def _expired(jobs: TimedJobs) -> str:
    job_id = jobs.submit(start_deadline=START_MS)
    assert jobs.expire() == [job_id]
    return job_id


SITUATIONS: Mapping[str, Callable[[TimedJobs], str]] = {
    "waiting": _waiting,
    "dispatched": _submitted,
    "missed": _missed,
    "held": _held,
    "due": _due,
    "running": _running,
    "cancelling": _cancelling,
    "completed": _finished(State.COMPLETED),
    "failed": _finished(State.FAILED),
    "cancelled": _cancelled,
    "expired": _expired,
}
"""How a job comes there; each was last held, if at all, under TOKEN by WORKER."""

PENDING = ("waiting", "dispatched", "missed", "held", "due")
ENDED = ("completed", "failed", "cancelled", "expired")


def _held_delivery(job_id: str) -> LeasedDelivery:
    """A terminal event in delivery to the job's own webhook."""
    return LeasedDelivery(
        id=f"{job_id}.3.job",
        job_id=job_id,
        seq=3,
        event=WebhookEvent.COMPLETED,
        recipient=PER_JOB,
        tenant=TENANT,
        url=URL,
        target=target_of(TENANT, URL),
        number=1,
        attempt=1,
        generation=0,
        rotated=None,
        is_permitted=True,
        token=TOKEN,
    )


Maker = Callable[[TimedJobs, str], Call[Any]]

CALLS: Mapping[str, Maker] = {
    "accept": lambda jobs, job_id: calls.accept(jobs.submission(job_id=job_id), backlog_limit=1, now=jobs.now),
    "claim": lambda jobs, job_id: calls.claim(job_id, token=TOKEN, worker=WORKER, now=jobs.now),
    "claim by another": lambda jobs, job_id: calls.claim(job_id, token="other", worker="two", now=jobs.now),
    "claim too late": lambda jobs, job_id: calls.claim(job_id, token="other", worker="two", now=START_MS + LATER_MS),
    "renew": lambda jobs, job_id: calls.renew(job_id, token=TOKEN, now=jobs.now),
    "progress": lambda jobs, job_id: calls.progress(
        job_id, token=TOKEN, op=1, step=1, steps=4, publish=True, now=jobs.now
    ),
    "finish": lambda jobs, job_id: calls.finish(
        job_id, token=TOKEN, outcome=State.COMPLETED, data={"artifacts": []}, now=jobs.now
    ),
    "finish as failed": lambda jobs, job_id: calls.finish(
        job_id, token=TOKEN, outcome=State.FAILED, data={"error": HICCUP}, now=jobs.now
    ),
    "finish by another": lambda jobs, job_id: calls.finish(
        job_id, token="other", outcome=State.COMPLETED, data={"artifacts": []}, now=jobs.now
    ),
    "retry": lambda jobs, job_id: calls.retry(job_id, token=TOKEN, error=HICCUP, delay_ms=10_000, now=jobs.now),
    "release": lambda jobs, job_id: calls.release(
        job_id, token=TOKEN, reason=ReleaseReason.DRAIN, detail="the pod goes", now=jobs.now
    ),
    "release for a worker": lambda jobs, job_id: calls.release(
        job_id, worker=WORKER, reason=ReleaseReason.WORKER_LOST, detail="the pod is gone", now=jobs.now
    ),
    "reap": lambda jobs, job_id: calls.reap(POOL, gap_ms=LATER_MS, now=START_MS + LATER_MS),
    "clock": lambda jobs, job_id: calls.adjust_clock(clock_ms=jobs.now, now=jobs.now),
    "age": lambda jobs, job_id: calls.age(POOL, bound_ms=1, now=START_MS + LATER_MS),
    "publish a limit": lambda jobs, job_id: calls.publish_access(
        {f"tenant:{TENANT}": '7 {"limits":{"running_jobs":1}}'}, now=jobs.now
    ),
    "disable": lambda jobs, job_id: calls.publish_access({f"tenant:{TENANT}": '7 {"disabled":true}'}, now=jobs.now),
    "sweep": lambda jobs, job_id: calls.sweep(POOL, now=START_MS + LATER_MS),
    "promote": lambda jobs, job_id: calls.promote(POOL, now=START_MS + LATER_MS),
    "expire": lambda jobs, job_id: calls.expire(now=START_MS + LATER_MS),
    "cancel": lambda jobs, job_id: calls.cancel(job_id, tenant=TENANT, now=jobs.now),
    "cancel by another tenant": lambda jobs, job_id: calls.cancel(job_id, tenant="stranger", now=jobs.now),
    "applied": lambda jobs, job_id: calls.mark_applied(
        job_id, seq=jobs.record(job_id).end_seq or jobs.record(job_id).seq, now=jobs.now
    ),
    "archived": lambda jobs, job_id: calls.mark_archived(
        job_id, seq=jobs.record(job_id).end_seq or jobs.record(job_id).seq, now=jobs.now
    ),
    "purge": lambda jobs, job_id: calls.purge_dead_letter(job_id, tenant=TENANT, now=jobs.now),
    "delete for another tenant": lambda jobs, job_id: calls.delete_job(job_id, tenant="stranger", now=jobs.now),
    "lease": lambda jobs, job_id: calls.lease_relays(owner="courier", call=CALL, limit=10, now=jobs.now),
    "lease for the history": lambda jobs, job_id: calls.lease_history(
        owner="courier", call=CALL, limit=10, now=jobs.now
    ),
    "reschedule": lambda jobs, job_id: calls.reschedule_relay(job_id, delay_ms=1_000, now=jobs.now),
    "reschedule for the history": lambda jobs, job_id: calls.reschedule_history(job_id, delay_ms=1_000, now=jobs.now),
    "store": lambda jobs, job_id: calls.store_undelivered(
        "und_1", tenant=TENANT, attributes='{"source": "/tests"}', data="{}", failure="{}", now=jobs.now
    ),
    "mark replayed": lambda jobs, job_id: calls.mark_replayed("und_1", last=jobs.now, now=jobs.now),
    "delete undelivered": lambda jobs, job_id: calls.delete_undelivered("und_1", tenant=TENANT, now=jobs.now),
    "subscribe": lambda jobs, job_id: calls.subscribe(
        SUBSCRIPTION, tenant=TENANT, url=URL, events=list(WebhookEvent), create=True, now=jobs.now
    ),
    "change a subscription": lambda jobs, job_id: calls.subscribe(
        SUBSCRIPTION, tenant=TENANT, url=URL, events=[], enabled=False, now=jobs.now
    ),
    "unsubscribe": lambda jobs, job_id: calls.unsubscribe(SUBSCRIPTION, tenant=TENANT, now=jobs.now),
    "rotate": lambda jobs, job_id: calls.rotate_secret(SUBSCRIPTION, tenant=TENANT, generation=1, now=jobs.now),
    "lease deliveries": lambda jobs, job_id: calls.lease_deliveries(
        owner="courier", call=CALL, limit=10, per_target=10, now=jobs.now
    ),
    "record_attempt": lambda jobs, job_id: calls.record_attempt(
        _held_delivery(job_id), outcome=DeliveryOutcome.FAILED, now=jobs.now
    ),
    "set a rate": lambda jobs, job_id: calls.set_rate_limit(target_of(TENANT, URL), rate=60, now=jobs.now),
    "redeliver": lambda jobs, job_id: calls.redeliver(f"{job_id}.3.job", job_id=job_id, tenant=TENANT, now=jobs.now),
    "lease for the notices": lambda jobs, job_id: calls.lease_notices(
        owner="courier", call=CALL, limit=10, now=jobs.now
    ),
    "acknowledge a notice": lambda jobs, job_id: calls.ack_notice(SUBSCRIPTION, changed=START_MS, now=jobs.now),
    "inspect a delivery": lambda jobs, job_id: snapshots.inspect_delivery(f"{job_id}.3.job"),
    "epoch": lambda jobs, job_id: calls.advance_epoch(Epoch(1, 7, jobs.now - 5000), now=jobs.now),
    "epoch acknowledged": lambda jobs, job_id: calls.advance_epoch(NEVER, acknowledge=True, now=jobs.now),
    "announce": lambda jobs, job_id: calls.announce_pool(POOL, models=["sd"], now=jobs.now),
    "worker": lambda jobs, job_id: calls.register_worker(
        WORKER, pool=POOL, state=WorkerState.READY, pod="", models=["sd"], now=jobs.now
    ),
    "worker gone": lambda jobs, job_id: calls.register_worker(
        WORKER, pool=POOL, state=WorkerState.GONE, pod="", models=["sd"], now=jobs.now
    ),
    "observe": lambda jobs, job_id: calls.observe(POOL, now=jobs.now),
    "drain": lambda jobs, job_id: calls.drain(POOL, count=1, now=jobs.now),
    "append a decision": lambda jobs, job_id: calls.append_decision(POOL, at=jobs.now, entry="{}"),
    "read": lambda jobs, job_id: Call("read_job", ("job", job_id), decode_job),
    "inspect": lambda jobs, job_id: snapshots.inspect(job_id, now=jobs.now),
    "repair": lambda jobs, job_id: calls.repair(job_id, pool=POOL, worker=WORKER, now=jobs.now),
    "record a key's use": lambda jobs, job_id: calls.record_key_use({"4k9s0c1x2v3b": jobs.now}),
    "issue a ticket": lambda jobs, job_id: calls.issue_grant(
        GrantKind.TICKET, "a" * 64, owner="owner", content="{}", ttl_ms=60_000, life_ms=60_000, most=1, now=jobs.now
    ),
    "redeem a ticket": lambda jobs, job_id: calls.redeem_ticket("a" * 64, by="caller", now=jobs.now),
    "use a session": lambda jobs, job_id: calls.use_session("b" * 64, idle_ms=60_000, now=jobs.now),
    "end a session": lambda jobs, job_id: calls.end_session("b" * 64),
    "record an operation": lambda jobs, job_id: calls.append_audit({"uid": "entry"}, now=jobs.now),
    "collect the audit trail": lambda jobs, job_id: calls.collect_audit(limit=10, now=jobs.now),
    "drop stored entries": lambda jobs, job_id: calls.drop_audit(["entry"], seq=1, digest="d"),
    "set the retention": lambda jobs, job_id: calls.set_retention(),
    "recount": lambda jobs, job_id: calls.recount_limits([POOL], owners=[TENANT], repair=True, now=jobs.now),
    "canary": lambda jobs, job_id: calls.canary("canary-1", pool=POOL, now=jobs.now),
    "canary withdrawn": lambda jobs, job_id: calls.canary("canary-1", pool=POOL, withdraw=True, now=jobs.now),
}
"""Each script, some in several ways. The job is the one of the situation."""

RETURNS_WHAT_IT_CHANGED = {
    "claim too late",
    "release for a worker",
    "reap",
    "age",
    "publish a limit",
    "disable",
    "sweep",
    "promote",
    "expire",
    "applied",
    "archived",
    "purge",
    "reschedule",
    "reschedule for the history",
    "append a decision",
}
"""Calls whose answer is what they changed: a repeated one has nothing more to return."""

MOVES: Mapping[str, Mapping[str, str]] = {
    "claim": {"waiting": "running", "dispatched": "running", "missed": "running"},
    "claim by another": {"waiting": "running", "dispatched": "running", "missed": "running"},
    "claim too late": {
        "waiting": "expired",
        "dispatched": "expired",
        "missed": "expired",
        "held": "expired",
        "due": "running",  # the start deadline binds the first attempt only
    },
    "finish": {"running": "completed", "cancelling": "cancelled"},
    "finish as failed": {"running": "failed", "cancelling": "cancelled"},
    "retry": {"running": "pending", "cancelling": "cancelled"},
    "release": {"running": "pending", "cancelling": "cancelled"},
    "release for a worker": {"running": "pending", "cancelling": "cancelled"},
    "reap": {"running": "pending", "cancelling": "cancelled"},
    "sweep": {"missed": "failed"},
    "expire": {"waiting": "expired", "dispatched": "expired", "missed": "expired", "held": "expired"},
    "cancel": dict.fromkeys(PENDING, "cancelled"),
}
"""The state after a call, by call and situation. Whatever is not here leaves the job's state as it is."""


def _dropped(reason: str) -> Claim:
    return Claim(None, reason)


def _run(attempt: int, counted: int = 0) -> Claim:
    return Claim(attempt, None, 600.0, counted, TENANT, "sd", '{"prompt":"a lighthouse at dusk"}')


LOST_BUT_WHILE_IT_RUNS: Mapping[str, Any] = dict.fromkeys((*PENDING, *ENDED), "lost")

ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "claim": {
        **dict.fromkeys(ENDED, _dropped("terminal")),
        **dict.fromkeys(("waiting", "dispatched", "missed", "running", "cancelling"), _run(1)),
        "held": _dropped("held"),
        "due": _dropped("ended"),
    },
    "claim by another": {
        **dict.fromkeys(ENDED, _dropped("terminal")),
        **dict.fromkeys(("waiting", "dispatched", "missed"), _run(1)),
        **dict.fromkeys(("running", "cancelling"), _dropped("leased")),
        "held": _dropped("held"),
        "due": _dropped("early"),
    },
    "claim too late": {
        **dict.fromkeys(ENDED, _dropped("terminal")),
        **dict.fromkeys(("waiting", "dispatched", "missed", "held"), _dropped("expired")),
        **dict.fromkeys(("running", "cancelling"), _dropped("leased")),
        "due": _run(2, counted=1),
    },
    "renew": {**LOST_BUT_WHILE_IT_RUNS, "running": LeaseStatus.OK, "cancelling": LeaseStatus.CANCEL},
    "progress": {**LOST_BUT_WHILE_IT_RUNS, "running": LeaseStatus.OK, "cancelling": LeaseStatus.CANCEL},
    "finish": {
        **LOST_BUT_WHILE_IT_RUNS,
        "running": AttemptEnd.COMPLETED,
        "cancelling": AttemptEnd.CANCELLED,
        # As the holder of the token was answered before:
        "due": AttemptEnd.PENDING,
        "completed": AttemptEnd.COMPLETED,
        "failed": AttemptEnd.FAILED,
    },
    "finish by another": dict.fromkeys(SITUATIONS, AttemptEnd.LOST),
    "retry": {
        **LOST_BUT_WHILE_IT_RUNS,
        "running": AttemptEnd.PENDING,
        "cancelling": AttemptEnd.CANCELLED,
        "due": AttemptEnd.PENDING,
        "completed": AttemptEnd.COMPLETED,
        "failed": AttemptEnd.FAILED,
    },
    "release": {
        **LOST_BUT_WHILE_IT_RUNS,
        "running": AttemptEnd.PENDING,
        "cancelling": AttemptEnd.CANCELLED,
        "due": AttemptEnd.PENDING,
        "completed": AttemptEnd.COMPLETED,
        "failed": AttemptEnd.FAILED,
    },
    "cancel": {
        **dict.fromkeys(PENDING, Cancelled(Receipt.DEQUEUED, State.CANCELLED)),
        **dict.fromkeys(("running", "cancelling"), Cancelled(Receipt.INTERRUPTING, State.RUNNING)),
        "completed": Cancelled(Receipt.TOO_LATE, State.COMPLETED),
        "failed": Cancelled(Receipt.TOO_LATE, State.FAILED),
        "cancelled": Cancelled(Receipt.DEQUEUED, State.CANCELLED),
        "expired": Cancelled(Receipt.TOO_LATE, State.EXPIRED),
    },
    "cancel by another tenant": dict.fromkeys(SITUATIONS, Cancelled(None, None)),
    "applied": {
        **dict.fromkeys((*PENDING, "running", "cancelling"), Applied.UNKNOWN),
        **dict.fromkeys(ENDED, Applied.APPLIED),
    },
    "archived": {
        **dict.fromkeys((*PENDING, "running", "cancelling"), Archived.UNKNOWN),
        **dict.fromkeys(ENDED, Archived.ARCHIVED),
    },
}
"""The caller's answer, by call and situation."""


@pytest.fixture(params=SITUATIONS)
def situation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def job_id(jobs: TimedJobs, situation: str) -> str:
    """A job in that situation, in a pool whose courier has been at work."""
    jobs.run(calls.reap(POOL, lease_ms=0, now=jobs.now))
    return SITUATIONS[situation](jobs)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_does_and_returns_what_the_tables_define(
    jobs: TimedJobs, situation: str, job_id: str, name: str
) -> None:
    before = jobs.state(job_id)
    answer = jobs.run(CALLS[name](jobs, job_id))
    assert jobs.state(job_id) == MOVES.get(name, {}).get(situation, before)
    if name in ANSWERS:
        assert answer == ANSWERS[name][situation]


@pytest.mark.parametrize("name", CALLS)
def test_a_repeated_call_changes_nothing(jobs: TimedJobs, job_id: str, name: str) -> None:
    call = CALLS[name](jobs, job_id)
    answer = jobs.run(call)
    after = jobs.everything()
    again = jobs.run(call)
    assert jobs.everything() == after
    if name not in RETURNS_WHAT_IT_CHANGED:
        assert again == answer


def test_the_transitions_are_those_of_the_table() -> None:
    state_in = {
        **dict.fromkeys(PENDING, State.PENDING),
        **dict.fromkeys(("running", "cancelling"), State.RUNNING),
        **{state.value: state for state in TERMINAL},
    }
    moves = {(state_in[name], State(to)) for row in MOVES.values() for name, to in row.items()}
    assert moves == {(state, to) for state, following in TRANSITIONS.items() for to in following}


def test_every_script_is_called(jobs: TimedJobs) -> None:
    job_id = jobs.submit()
    assert {make(jobs, job_id).script for make in CALLS.values()} == set(texts())

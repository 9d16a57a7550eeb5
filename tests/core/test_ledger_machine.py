"""The ledger under everything that may happen to it, in any order, against a real Redis.

Hypothesis interleaves submitters, two workers, the courier, cancels, lapsed leases, lost and repeated messages,
subscriptions that are created and deleted, and receivers that accept, refuse or end deliveries. The clock is the test's
own. After each move the invariants hold; every call is made twice; and in the end everything that was accepted reaches
its one terminal state, and every subscriber gets its event.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import redis
from darkroom.access.limits import UNLIMITED, Limits
from darkroom.checks import snapshots
from darkroom.errors import DarkroomError, NotFound
from darkroom.jobs import TERMINAL, TRANSITIONS, State, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import (
    Accepted,
    Archived,
    AttemptEnd,
    AttemptResult,
    Call,
    DeliveryOutcome,
    GrantKind,
    LeaseStatus,
    Purged,
    Receipt,
    Redelivered,
    ReleaseReason,
    Submission,
    WorkerState,
)
from darkroom.ledger.client import Ledger
from darkroom.ledger.keys import PENDING_STARTS
from darkroom.webhooks.subscriptions import (
    DEFAULT_EVENTS,
    DeliveryState,
    LeasedDelivery,
    Webhook,
    WebhookEvent,
    new_subscription_id,
    target_of,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

T = TypeVar("T")

POOL = "local"
CLASS = 2**49
WORKERS = ("one", "two")
KEYS = ("key-one", "key-two")
TENANT_LIMITS = Limits(submissions_per_minute=60, burst=10, waiting_jobs=8, gpu_seconds_per_day=1_000)
KEY_LIMITS = Limits(waiting_jobs=5, waiting_bytes=30_000, images_per_month=20)
START_MS = 1_800_000_000_000
LEASE_MS = calls.LEASE_MS
ANSWER_LIMIT_S = 60
"""Of Redis: a machine that stands still for some seconds is no fault of the ledger's."""

EXPIRING = (b":worker:", b":taken:")
"""Keys that expire by Redis' own clock, and not by the test's, while the test still reads them."""

ALL = frozenset(WebhookEvent)
URLS = ("https://one.test/hook", "https://two.test/hook")
SUBSCRIPTIONS = tuple(new_subscription_id(number) for number in (1, 2))
DELIVERY_LEASE_MS = 20_000

YEAR_MS = 365 * 24 * 3600 * 1000
MOST_GRANTS = 2

LAST_STEPS = 400
"""Steps of a courier and a worker without failures after which every job must have finished; a few dozen suffice."""

READERS: dict[str, Callable[[bytes], tuple[Any, ...]]] = {
    "hash": lambda key: ("HGETALL", key),
    "zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    "set": lambda key: ("SMEMBERS", key),
    "list": lambda key: ("LRANGE", key, 0, -1),
    "stream": lambda key: ("XRANGE", key, "-", "+"),
    "string": lambda key: ("GET", key),
}
"""How a key of each type is read whole."""


@dataclass
class Attempt:
    """What a worker believes to hold."""

    job_id: str
    token: str
    worker: str
    op: int = 0


@dataclass
class Believed:
    """What the ledger promised to its clients."""

    accepted: dict[str, Submission] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    ended: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    left_dead: set[str] = field(default_factory=set)
    redriven: dict[str, str] = field(default_factory=dict)
    subscribed: dict[str, frozenset[WebhookEvent]] = field(default_factory=dict)
    applied: set[tuple[str, int]] = field(default_factory=set)
    deliveries: set[str] = field(default_factory=set)
    redeemed: dict[str, str] = field(default_factory=dict)


TENANT = "default"
KEY = KEYS[0]
SCOPES = {TENANT: "tenant", f"{TENANT}/{KEY}": "key"}
"""The scopes of running limits, by what a held job's record calls them."""

AGEING_MS = 20_000

PICK = st.integers(0, 63)
"""Which attempt a move is about, see `_held`."""


def has_attempts(machine: Any) -> bool:
    return bool(machine.attempts)


class LedgerMachine(RuleBasedStateMachine):
    """One pool, two workers, a courier and any number of submitters."""

    url = ""

    jobs: Bundle[str] = Bundle("jobs")
    taken: Bundle[str] = Bundle("taken")
    issued: Bundle[tuple[GrantKind, str]] = Bundle("issued")

    def __init__(self) -> None:
        super().__init__()
        self.redis: Any = redis.Redis.from_url(self.url, socket_timeout=ANSWER_LIMIT_S)
        self.namespace = f"m-{secrets.token_hex(6)}"
        self.ledger = Ledger(self.redis, self.namespace)
        self.now = START_MS
        self.believed = Believed()
        self.longest_list = 0
        self.revision = 0
        self.was_held: set[str] = set()
        self.limits: dict[str, int | None] = dict.fromkeys(SCOPES)
        self.attempts: list[Attempt] = []

    @initialize()
    def announced(self) -> None:
        self.run(calls.announce_pool(POOL, models=["flux"], now=self.now))

    # -- submitters ----------------------------------------------------------------------------------------------------

    @rule(
        target=jobs,
        priority=st.integers(0, 9),
        deadline=st.none() | st.integers(1, 40_000),
        key=st.none() | st.sampled_from(["a", "b"]),
        body=st.sampled_from(["x", "y"]),
        limit=st.sampled_from([1000, 1000, 3]),
        memory_high=st.sampled_from([False, False, False, True]),
        attempts=st.sampled_from([1, calls.MAX_ATTEMPTS]),
        webhook=st.none() | st.builds(Webhook, st.sampled_from(URLS), st.sampled_from([DEFAULT_EVENTS, ALL])),
        key_id=st.none() | st.sampled_from(KEYS),
        limits=st.sampled_from([(UNLIMITED, UNLIMITED), (UNLIMITED, UNLIMITED), (TENANT_LIMITS, KEY_LIMITS)]),
        images=st.integers(1, 3),
        weight=st.sampled_from([1.0, 0.5, 3.0]),
        user=st.sampled_from([None, None, "anna", "bert"]),
    )
    def submit(
        self,
        priority: int,
        deadline: int | None,
        key: str | None,
        body: str,
        limit: int,
        memory_high: bool,
        attempts: int,
        webhook: Webhook | None,
        key_id: str | None,
        limits: tuple[Limits, Limits],
        images: int,
        weight: float,
        user: str | None,
    ) -> Any:
        job_id = new_job_id(self.now)
        job = Submission(
            job_id=job_id,
            tenant="default",
            model="flux",
            pool=POOL,
            input={"prompt": body, "list": [], "large": 2**60},
            fields={} if user is None else {"user_id": user},
            run_timeout=60,
            priority=priority,
            start_deadline=None if deadline is None else self.now + deadline,
            max_attempts=attempts,
            webhook=webhook,
            idempotency_key=key,
            fingerprint=body if key else None,
            images=images,
            key_id=key_id,
            tenant_limits=limits[0],
            key_limits=limits[1],
            weight=weight,
        )
        before = self.snapshot()
        accept = calls.accept(job, backlog_limit=limit, memory_high=memory_high, by_user=user is not None, now=self.now)
        answer = self.run(accept)
        if isinstance(answer, DarkroomError):
            assert self.snapshot() == before, "a refusal stores nothing"
            return multiple()
        if answer.repeated:
            assert key is not None
            assert answer.job_id in self.believed.accepted
            assert self.snapshot() == before
            return multiple()
        assert replace(answer, quotas=()) == Accepted(job_id, self.now, repeated=False)
        assert bool(answer.quotas) == (limits[0] is not UNLIMITED)
        self.believed.accepted[job_id] = job
        self.believed.states[job_id] = State.PENDING
        return job_id

    @rule(number=st.integers(0, 5), is_open=st.booleans())
    def record_an_operation(self, number: int, is_open: bool) -> None:
        self.run(calls.append_audit({f"uid-{number}": f"entry {number}"}, is_open=is_open, now=self.now))

    @rule(limit=st.integers(1, 3))
    def store_the_audit_trail(self, limit: int) -> None:
        found = self.run(calls.collect_audit(limit=limit, abandoned_ms=30_000, now=self.now))
        self.run(calls.drop_audit(found.entries, seq=self.now, digest="d"))

    @rule(job_id=jobs)
    def submit_the_same_id_again(self, job_id: str) -> None:
        before = self.snapshot()
        job = self.believed.accepted[job_id]
        answer = self.run(calls.accept(job, backlog_limit=1, memory_high=True, now=self.now))
        assert isinstance(answer, Accepted)
        assert (answer.job_id, answer.repeated) == (job_id, True)
        assert self.snapshot() == before

    @rule(scope=st.sampled_from(list(SCOPES)), running=st.sampled_from([None, 0, 1, 1, 2]))
    def a_running_limit_changes(self, scope: str, running: int | None) -> None:
        """0 disables the tenant, or removes the limit of the key."""
        self._limit(scope, running)

    def _limit(self, scope: str, running: int | None) -> None:
        self.revision += 1
        content: dict[str, Any] = {"limits": {"running_jobs": running}} if running else {}
        name = f"key:{KEY}"
        if SCOPES[scope] == "tenant":
            name = f"tenant:{TENANT}"
            content |= {"disabled": True} if running == 0 else {}
            self.limits[scope] = running
        else:
            content |= {"tenant": TENANT}
            self.limits[scope] = running or None
        entry = f"{self.revision} {json.dumps(content)}"
        self.run(calls.publish_access({name: entry}, now=self.now), twice_alike=False)

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        self._cancel(job_id)

    @precondition(has_attempts)
    @rule(pick=PICK)
    def cancel_what_runs(self, pick: int) -> None:
        self._cancel(self._held(pick).job_id)

    def _cancel(self, job_id: str) -> None:
        state = self.state(job_id)
        first = job_id not in self.believed.cancelled
        answer = self.run(calls.cancel(job_id, tenant="default", now=self.now))
        if first:
            expected = {State.PENDING: Receipt.DEQUEUED, State.RUNNING: Receipt.INTERRUPTING}
            assert answer.receipt == expected.get(state, Receipt.TOO_LATE)
        assert answer.state == self.state(job_id)
        if answer.receipt is not Receipt.TOO_LATE:
            self.believed.cancelled.add(job_id)

    @rule(job_id=jobs)
    def a_stranger_cancels(self, job_id: str) -> None:
        before = self.snapshot()
        assert self.run(calls.cancel(job_id, tenant="stranger", now=self.now)).receipt is None
        assert self.snapshot() == before

    # -- browsers ------------------------------------------------------------------------------------------------------

    @rule(target=issued, kind=st.sampled_from(GrantKind), owner=st.sampled_from(["one", "two"]))
    def issue(self, kind: GrantKind, owner: str) -> Any:
        digest = secrets.token_hex(4)
        most, life_ms = MOST_GRANTS, YEAR_MS
        call = calls.issue_grant(
            kind, digest, owner=owner, content=digest, ttl_ms=life_ms, life_ms=life_ms, most=most, now=self.now
        )
        if self.run(call) is not None:
            assert kind is GrantKind.TICKET
            return multiple()
        return kind, digest

    @rule(grant=issued, by=st.sampled_from(["x", "y"]))
    def redeem(self, grant: tuple[GrantKind, str], by: str) -> None:
        kind, digest = grant
        first = self.believed.redeemed.setdefault(digest, by) if kind is GrantKind.TICKET else None
        assert self.run(calls.redeem_ticket(digest, by=by, now=self.now)) == (digest.encode() if by == first else None)

    @rule(grant=issued, ends=st.booleans())
    def use_session(self, grant: tuple[GrantKind, str], ends: bool) -> None:
        _, digest = grant
        exists = self.redis.exists(f"{self.namespace}:grant:session:{digest}")
        used = self.run(calls.use_session(digest, idle_ms=YEAR_MS, now=self.now))
        assert (used is not None) == bool(exists)
        if ends:
            self.run(calls.end_session(digest))
            assert self.run(calls.use_session(digest, now=self.now)) is None

    @invariant()
    def the_grants_of_an_owner_are_bounded(self) -> None:
        for key in self.redis.scan_iter(f"{self.namespace}:grants-of:*", 1000):
            assert 1 <= self.redis.zcard(key) <= MOST_GRANTS

    # -- workers -------------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(WORKERS), state=st.sampled_from([WorkerState.READY, WorkerState.BUSY, WorkerState.GONE]))
    def heartbeat(self, name: str, state: WorkerState) -> None:
        self.run(calls.register_worker(name, pool=POOL, state=state, pod=name, models=["flux"], now=self.now))

    @rule(target=taken)
    def receive_a_message(self) -> Any:
        """As kombu does; what becomes of it is another move, or none: then it is lost."""
        message = self.redis.rpop(self.list_key)
        return multiple() if message is None else _job_of(message)

    @rule(job_id=taken, name=st.sampled_from(WORKERS))
    def claim(self, job_id: str, name: str) -> None:
        """A taken message may be claimed late, and more than once: the queue broker redelivers."""
        self._claim(job_id, name)

    @rule(name=st.sampled_from(WORKERS))
    def receive_and_claim(self, name: str) -> None:
        message = self.redis.rpop(self.list_key)
        if message is not None:
            self._claim(_job_of(message), name)

    @rule(job_id=jobs, name=st.sampled_from(WORKERS))
    def claim_without_a_message(self, job_id: str, name: str) -> None:
        self._claim(job_id, name)

    def _claim(self, job_id: str, name: str) -> None:
        attempt = Attempt(job_id, secrets.token_hex(8), name)
        state = self.state(job_id)
        claim = self.run(calls.claim(job_id, token=attempt.token, worker=name, now=self.now), twice_alike=False)
        if claim.attempt is None:
            return
        assert state is State.PENDING
        again = self.ledger.run(calls.claim(job_id, token=attempt.token, worker=name, now=self.now))
        assert again == claim
        self.attempts.append(attempt)

    def _held(self, pick: int) -> Attempt:
        """One of the attempts that were ever begun; three times of four one that still holds its job, if any does."""
        live = [attempt for attempt in self.attempts if self.standing(attempt) is not LeaseStatus.LOST]
        candidates = live if live and pick % 4 else self.attempts
        return candidates[pick % len(candidates)]

    @precondition(has_attempts)
    @rule(pick=PICK, publish=st.booleans())
    def progress(self, pick: int, publish: bool) -> None:
        attempt = self._held(pick)
        attempt.op += 1
        call = calls.progress(
            attempt.job_id, token=attempt.token, op=attempt.op, step=1, steps=4, publish=publish, now=self.now
        )
        assert self.run(call) == self.standing(attempt)

    @precondition(has_attempts)
    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        attempt = self._held(pick)
        expected = self.standing(attempt)
        assert self.run(calls.renew(attempt.job_id, token=attempt.token, now=self.now)) == expected

    @precondition(has_attempts)
    @rule(pick=PICK, outcome=st.sampled_from([State.COMPLETED, State.FAILED]))
    def finish(self, pick: int, outcome: State) -> None:
        attempt = self._held(pick)
        data: dict[str, Any] = {"artifacts": []}
        if outcome is State.FAILED:
            data = {"error": {"kind": "invalid_input", "message": "no"}}
        standing = self.standing(attempt)
        call = calls.finish(attempt.job_id, token=attempt.token, outcome=outcome, data=data, now=self.now)
        answer = self.run(call)
        if standing is not LeaseStatus.LOST:
            assert answer == (AttemptEnd.CANCELLED if standing is LeaseStatus.CANCEL else AttemptEnd(outcome.value))

    @precondition(has_attempts)
    @rule(pick=PICK, delay=st.sampled_from([0, 2_000, 30_000]))
    def retry(self, pick: int, delay: int) -> None:
        attempt = self._held(pick)
        error = {"kind": "transient", "message": "hiccup"}
        standing = self.standing(attempt)
        call = calls.retry(attempt.job_id, token=attempt.token, error=error, delay_ms=delay, now=self.now)
        answer = self.run(call)
        if standing is LeaseStatus.CANCEL:
            assert answer is AttemptEnd.CANCELLED

    @precondition(has_attempts)
    @rule(pick=PICK, reason=st.sampled_from(ReleaseReason))
    def release(self, pick: int, reason: ReleaseReason) -> None:
        attempt = self._held(pick)
        standing = self.standing(attempt)
        counted = self.field(attempt.job_id, "counted")
        call = calls.release(attempt.job_id, reason=reason, detail="gone", token=attempt.token, now=self.now)
        answer = self.run(call)
        if standing is LeaseStatus.CANCEL:
            assert answer is AttemptEnd.CANCELLED
        if reason is not ReleaseReason.WORKER_LOST:
            assert self.field(attempt.job_id, "counted") == counted

    @precondition(has_attempts)
    @rule(pick=PICK)
    def the_operator_sees_the_pod_gone(self, pick: int) -> None:
        attempt = self._held(pick)
        call = calls.release(
            attempt.job_id, reason=ReleaseReason.WORKER_LOST, detail="gone", worker=attempt.worker, now=self.now
        )
        self.run(call, twice_alike=False)

    @rule(count=st.integers(0, len(WORKERS)))
    def the_operator_drains(self, count: int) -> None:
        """Marks last for some moves, or until a smaller count; who runs a job is never marked."""
        busy = {name.decode() for name in self.redis.hkeys(f"{self.namespace}:busy")}
        marked = self.run(calls.drain(POOL, count=count, now=self.now))
        assert len(marked) <= count
        assert busy.isdisjoint(each.worker for each in marked)

    # -- the courier, and time -----------------------------------------------------------------------------------------

    @rule(ms=st.sampled_from([1, 900, 4_000, 6_000, 16_000]))
    def time_passes(self, ms: int) -> None:
        """Steps above REAP_GAP_MS are outages: nothing may be reaped in haste after them."""
        self.now += ms

    @rule()
    def courier_ticks(self) -> None:
        self._tick()

    def _tick(self) -> None:
        running = self.ids("running")
        last = self.redis.hget(f"{self.namespace}:pool:{POOL}", "reaped")
        reaped = self.run(calls.reap(POOL, now=self.now), twice_alike=False)
        if last is None or self.now - int(last) > calls.REAP_GAP_MS:
            assert reaped == []
        for job_id in reaped:
            assert running[job_id] < self.now, "only a lapsed lease is reaped"
        self.run(calls.sweep(POOL, now=self.now), twice_alike=False)
        self.run(calls.promote(POOL, now=self.now), twice_alike=False)
        self.run(calls.age(POOL, bound_ms=AGEING_MS, now=self.now), twice_alike=False)
        self.run(calls.expire(now=self.now), twice_alike=False)

    @rule(apply=st.booleans())
    def courier_relays(self, apply: bool) -> None:
        call = calls.lease_relays(owner="courier", call=secrets.token_hex(4), limit=2, now=self.now)
        for job_id in self.run(call):
            assert self.state(job_id).is_terminal or self.pending_starts(job_id)
            if not apply:
                self.run(calls.reschedule_relay(job_id, delay_ms=1_000, now=self.now), twice_alike=False)
                continue
            for seq in self.pending_starts(job_id):
                self._apply(job_id, seq)
            if self.state(job_id).is_terminal:
                self._apply(job_id)

    @rule(job_id=jobs)
    def an_event_arrives_out_of_turn(self, job_id: str) -> None:
        """A Broker guarantees no order, and may deliver again."""
        if self.state(job_id).is_terminal:
            self._apply(job_id)

    def _apply(self, job_id: str, seq: int | None = None) -> None:
        """The event is applied. Each recipient that asked for it gets a delivery, unless a later event came first."""
        event = WebhookEvent.STARTED if seq else WebhookEvent(self.state(job_id))
        seq = seq or int(self.field(job_id, "end_seq"))
        answer = self.run(calls.mark_applied(job_id, seq=seq, now=self.now), twice_alike=False)
        assert answer == ("repeated" if (job_id, seq) in self.believed.applied else "applied")
        is_overtaken = any(job == job_id and later > seq for job, later in self.believed.applied)
        if answer == "applied" and not is_overtaken:
            webhook = self.believed.accepted[job_id].webhook
            recipients = {name for name, events in self.believed.subscribed.items() if event in events}
            recipients |= {"job"} if webhook is not None and event in webhook.events else set()
            self.believed.deliveries |= {f"{job_id}.{seq}.{recipient}" for recipient in recipients}
        self.believed.applied.add((job_id, seq))

    # -- webhooks ------------------------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(SUBSCRIPTIONS),
        url=st.sampled_from(URLS),
        events=st.sampled_from([DEFAULT_EVENTS, ALL, frozenset({WebhookEvent.FAILED})]),
        enabled=st.sampled_from([True, True, False]),
    )
    def subscribe(self, name: str, url: str, events: frozenset[WebhookEvent], enabled: bool) -> None:
        is_there = self.redis.exists(f"{self.namespace}:subscription:{name}")
        call = calls.subscribe(
            name, tenant="default", url=url, events=events, enabled=enabled, create=not is_there, now=self.now
        )
        self.run(call)
        self.believed.subscribed.pop(name, None)
        if enabled:
            self.believed.subscribed[name] = events

    @rule(name=st.sampled_from(SUBSCRIPTIONS))
    def unsubscribe(self, name: str) -> None:
        self.run(calls.unsubscribe(name, tenant="default", now=self.now), twice_alike=False)
        self.believed.subscribed.pop(name, None)

    @rule(url=st.sampled_from(URLS), rate=st.sampled_from([None, None, 60]))
    def a_receiver_consents(self, url: str, rate: int | None) -> None:
        self.run(calls.set_rate_limit(target_of("default", url), rate=rate, now=self.now))

    @rule(
        limit=st.integers(1, 4),
        per_target=st.integers(1, 2),
        outcomes=st.lists(st.none() | st.sampled_from(DeliveryOutcome), min_size=4, max_size=4),
        again=st.sampled_from([None, 0, 5_000]),
    )
    def courier_delivers(
        self, limit: int, per_target: int, outcomes: list[DeliveryOutcome | None], again: int | None
    ) -> None:
        """None: it was killed before it could record the attempt."""
        for delivery, outcome in zip(self._take_deliveries(limit, per_target), outcomes, strict=False):
            if outcome is not None:
                self._record_attempt(delivery, outcome, again)

    def _take_deliveries(self, limit: int, per_target: int) -> list[LeasedDelivery]:
        call = calls.lease_deliveries(
            owner="courier",
            call=secrets.token_hex(4),
            limit=limit,
            per_target=per_target,
            lease_ms=DELIVERY_LEASE_MS,
            now=self.now,
        )
        held = {url: self.leased(url) for url in URLS}
        taken = self.run(call)
        assert len(taken) <= limit
        for delivery in taken:
            assert delivery.id in self.believed.deliveries
            assert delivery.recipient == "job" or delivery.recipient in self.believed.subscribed
            assert delivery.id not in held[delivery.url], "a leased delivery has one holder"
            assert len(self.leased(delivery.url)) <= max(per_target, len(held[delivery.url]))
        return taken

    def _record_attempt(self, delivery: LeasedDelivery, outcome: DeliveryOutcome, again: int | None) -> None:
        again = 1_000 if outcome is DeliveryOutcome.PUT_OFF else again
        settled = self.run(calls.record_attempt(delivery, outcome=outcome, again_ms=again, now=self.now))
        assert settled is not AttemptResult.LOST
        assert (settled is AttemptResult.DELIVERED) == (outcome is DeliveryOutcome.DELIVERED)
        if settled in {AttemptResult.ENDED, AttemptResult.DISABLED}:
            del self.believed.subscribed[delivery.recipient]

    @precondition(lambda self: bool(self.believed.deliveries))
    @rule(pick=PICK)
    def redeliver(self, pick: int) -> None:
        delivery_id = sorted(self.believed.deliveries)[pick % len(self.believed.deliveries)]
        job_id, _, recipient = delivery_id.split(".")
        call = calls.redeliver(delivery_id, job_id=job_id, tenant="default", now=self.now)
        answer = self.run(call)
        if recipient != "job" and recipient not in self.believed.subscribed:
            assert answer in {Redelivered.NOT_ENABLED, Redelivered.OPEN}
        else:
            assert answer in {Redelivered.DUE, Redelivered.OPEN}

    @rule(commit=st.booleans())
    def courier_archives(self, commit: bool) -> None:
        """The history is unavailable as often as not."""
        call = calls.lease_history(owner="courier", call=secrets.token_hex(4), limit=2, now=self.now)
        for job_id in self.run(call):
            assert self.state(job_id).is_terminal
            if commit:
                self._archive(job_id)
            else:
                self.run(calls.reschedule_history(job_id, delay_ms=1_000, now=self.now), twice_alike=False)

    @rule(job_id=jobs)
    def a_late_courier_archives(self, job_id: str) -> None:
        """Its lease lapsed long ago; it cannot have archived a job that has not finished yet."""
        if self.state(job_id).is_terminal:
            self._archive(job_id)
        else:
            before = self.snapshot()
            answer = self.run(calls.mark_archived(job_id, seq=int(self.field(job_id, "seq")), now=self.now))
            assert answer is Archived.UNKNOWN
            assert self.snapshot() == before

    def _archive(self, job_id: str) -> None:
        seq = int(self.field(job_id, "end_seq"))
        answer = self.run(calls.mark_archived(job_id, seq=seq, now=self.now), twice_alike=False)
        assert answer in {Archived.ARCHIVED, Archived.REPEATED}

    # -- dead letters --------------------------------------------------------------------------------------------------

    @rule(job_id=jobs)
    def purge(self, job_id: str) -> None:
        is_letter = job_id in self.letters()
        answer = self.run(calls.purge_dead_letter(job_id, tenant="default", now=self.now), twice_alike=False)
        if is_letter:
            assert answer is Purged.PURGED
            self.believed.left_dead.add(job_id)
        else:
            assert answer is (Purged.REPEATED if job_id in self.believed.left_dead else Purged.UNKNOWN)

    @rule(target=jobs, letter=jobs)
    def redrive(self, letter: str) -> Any:
        is_letter = letter in self.letters()
        job_id = new_job_id(self.now)
        job = replace(
            self.believed.accepted[letter],
            job_id=job_id,
            start_deadline=None,
            idempotency_key=None,
            fingerprint=None,
            redrive_of=letter,
        )
        answer = self.run(calls.accept(job, backlog_limit=1000, now=self.now))
        if is_letter:
            assert answer == Accepted(job_id, self.now, repeated=False)
            self.believed.accepted[job_id] = job
            self.believed.states[job_id] = State.PENDING
            self.believed.left_dead.add(letter)
            self.believed.redriven[letter] = job_id
            return job_id
        if letter in self.believed.redriven:
            assert isinstance(answer, Accepted)
            assert (answer.job_id, answer.repeated) == (self.believed.redriven[letter], True)
        else:
            assert isinstance(answer, NotFound)
        return multiple()

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def states_only_move_as_the_table_says(self) -> None:
        for job_id, before in self.believed.states.items():
            state = self.state(job_id)
            # A move may pass through several states (a claim that follows a release); two steps reach all of them.
            reachable = {before} | set(TRANSITIONS[before])
            reachable |= {further for near in tuple(reachable) for further in TRANSITIONS[near]}
            assert state in reachable
            self.believed.states[job_id] = state
            if not state.is_terminal:
                continue
            end = (state.value, self.field(job_id, "end_seq"), self.field(job_id, "end_data"))
            assert self.believed.ended.setdefault(job_id, end) == end, "a terminal state never changes"
            if job_id in self.believed.cancelled:
                assert state is State.CANCELLED, "once a cancel is recorded the only end is cancelled"

    @invariant()
    def every_accepted_job_is_in_exactly_one_place(self) -> None:
        places = {kind: self.ids(kind) for kind in ("waiting", "dispatched", "due", "held", "running")}
        relay, history = (
            {item.decode() for item in self.redis.zrange(f"{self.namespace}:{kind}", 0, -1)}
            for kind in ("outbox", "history")
        )
        letters = self.letters()
        for job_id in letters:
            assert self.state(job_id) is State.FAILED
            assert job_id not in self.believed.left_dead, "a letter that left does not come back"
        for job_id in self.believed.accepted:
            state = self.state(job_id)
            found = {kind for kind, members in places.items() if job_id in members}
            published = not self.pending_starts(job_id)
            if state in TERMINAL:
                assert not found
                published = published and self.redis.hexists(f"{self.namespace}:job:{job_id}", "applied")
                archived = self.redis.hexists(f"{self.namespace}:job:{job_id}", "archived")
                assert (job_id in history) != archived, "written, or still to be written"
            elif state is State.RUNNING:
                assert found == {"running"}
                assert places["running"][job_id] == int(self.field(job_id, "lease"))
            else:
                assert len(found) == 1
                assert found <= {"waiting", "dispatched", "due", "held"}
            assert self.ledger.run(snapshots.inspect(job_id, now=self.now)).is_in_order
            assert (job_id in relay) != published, "published, or still in the outbox"
            may_go = state in TERMINAL and job_id not in relay | history | letters
            for kind in ("job", "log"):
                assert (self.redis.ttl(f"{self.namespace}:{kind}:{job_id}") > 0) == may_go
        assert sum(map(len, places.values())) <= len(self.believed.accepted)
        busy = {name.decode(): job.decode() for name, job in self.redis.hgetall(f"{self.namespace}:busy").items()}
        assert set(busy.values()) <= set(places["running"])

    @invariant()
    def limits_count_every_job_once(self) -> None:
        owners = ["default", *(f"default:{key}" for key in KEYS)]
        assert self.ledger.run(calls.recount_limits([POOL], owners=owners, now=self.now)) == []
        used: Counter[str] = Counter()
        for job_id, job in self.believed.accepted.items():
            names = ("images", "gpu_ms", "reserved")
            values = self.redis.hmget(f"{self.namespace}:job:{job_id}", *names)
            images, gpu_ms, reserved = (int(value or 0) for value in values)
            for owner in ["default"] if job.key_id is None else ["default", f"default:{job.key_id}"]:
                used[f"{owner} gpu_ms"] += gpu_ms + reserved
                used[f"{owner} images"] += 0 if self.state(job_id).is_terminal else images
        for owner in owners:
            for period in ("day", "month"):
                counted = self.redis.hmget(f"{self.namespace}:limits:{owner}", f"{period}_images", f"{period}_gpu_ms")
                assert [int(value or 0) for value in counted] == [used[f"{owner} images"], used[f"{owner} gpu_ms"]]

    @invariant()
    def running_limits_hold_as_many_jobs_as_they_must(self) -> None:
        """In each scope the first jobs in line are admitted: as many as limit and running jobs leave room for."""
        running, held = self.ids("running"), self.ids("held")
        for scope, kind in SCOPES.items():
            limit = self.limits[scope]
            admitted, excess = (self.scores(f"{name}:{POOL}:{scope}") for name in ("admitted", "excess"))
            of_scope = {job_id for job_id in running if kind == "tenant" or self.field(job_id, "key_id") == KEY}
            counted = {each.decode() for each in self.redis.smembers(f"{self.namespace}:running-of:{scope}")}
            assert {job_id for job_id in held if self.field(job_id, "held") == kind} == set(excess)
            if limit is None:
                assert not excess
                continue
            assert counted == of_scope
            room = max(0, limit - len(counted))
            assert len(admitted) <= room
            assert len(admitted) == room or not excess, "the next job is eligible as soon as there is room"
            assert not (admitted and excess) or max(admitted.values()) <= min(excess.values())
        assert set(held) == {job_id for scope in SCOPES for job_id in self.scores(f"excess:{POOL}:{scope}")}

    @invariant()
    def the_queue_has_the_first_jobs_in_their_order(self) -> None:
        waiting, dispatched = self.ids("waiting"), self.ids("dispatched")
        assert self.scores(f"share:{POOL}:{TENANT}") == waiting | dispatched
        for job_id, order in (waiting | dispatched).items():
            assert order == int(self.field(job_id, "order"))
            line, priority = int(self.field(job_id, "line")), int(self.field(job_id, "priority"))
            assert order // CLASS == line // CLASS <= priority
        listed = [_job_of(message) for message in reversed(self.redis.lrange(self.list_key, 0, -1))]
        assert listed == [job_id for job_id in dispatched if job_id in set(listed)], "the next first"
        if waiting and set(listed) == set(dispatched):
            assert not listed or (dispatched[listed[-1]], listed[-1]) <= min((at, job) for job, at in waiting.items())
        users = self.scores(f"by-user:{POOL}:{TENANT}")
        assert set(users) == {job_id for job_id in waiting if self.field(job_id, "user")}

    @invariant()
    def jobs_without_users_run_in_the_order_of_their_arrival(self) -> None:
        """Within a class, where no job has aged and none was held or is one of a user."""
        eligible = sorted(self.ids("waiting").items(), key=lambda pair: (pair[1], pair[0]))
        plain = [
            job_id
            for job_id, order in eligible
            if not self.field(job_id, "user")
            and job_id not in self.was_held
            and order // CLASS == int(self.field(job_id, "priority"))
        ]
        self.was_held |= set(self.ids("held"))
        if not any(self.field(job_id, "user") for job_id, _ in eligible) and not self.was_held:
            lines = [int(self.field(job_id, "line")) for job_id in plain]
            assert lines == sorted(lines)

    @invariant()
    def every_delivery_is_due_or_has_ended(self) -> None:
        due: dict[str, set[str]] = {}
        for url in URLS:
            target = target_of("default", url)
            due[target] = {each.decode() for each in self.redis.zrange(f"{self.namespace}:deliveries:{target}", 0, -1)}
            is_known = self.redis.zscore(f"{self.namespace}:targets", target) is not None
            assert is_known == bool(due[target]), "a target is looked at while something is due to it"
            assert self.leased(url) <= due[target]
        of_jobs = {
            each.decode(): score
            for job_id in self.believed.accepted
            for each, score in self.redis.zrange(f"{self.namespace}:deliveries-of:{job_id}", 0, -1, withscores=True)
        }
        assert set(of_jobs) == self.believed.deliveries, "each event is delivered to its subscribers alone"
        for delivery_id, score in of_jobs.items():
            key = f"{self.namespace}:delivery:{delivery_id}"
            state, target = (value.decode() for value in self.redis.hmget(key, "state", "target"))
            is_open = state == DeliveryState.OPEN
            assert {name for name, members in due.items() if delivery_id in members} == ({target} if is_open else set())
            assert score == is_open
            is_leased = any(delivery_id in self.leased(url) for url in URLS)
            assert not is_leased or self.redis.hexists(key, "token"), "a place is held by a courier"
            assert (self.redis.ttl(key) > 0) == (not is_open)
        for job_id in self.believed.accepted:
            all_ended = all(not score for each, score in of_jobs.items() if each.startswith(job_id))
            ttl = self.redis.ttl(f"{self.namespace}:deliveries-of:{job_id}")
            assert ttl == -2 or (ttl > 0) == all_ended

    @invariant()
    def the_celery_list_is_short_and_holds_dispatched_jobs_only(self) -> None:
        messages = self.redis.lrange(self.list_key, 0, -1)
        slots = self.redis.zcount(f"{self.namespace}:slots:{POOL}", self.now, "+inf")
        assert len(messages) <= max(2 * slots + 1, self.longest_list), "it grows only within the bound"
        self.longest_list = len(messages)
        listed = [_job_of(message) for message in messages]
        assert len(set(listed)) == len(listed)
        assert set(listed) <= set(self.ids("dispatched"))

    @invariant()
    def the_log_has_no_gap_and_no_repeat(self) -> None:
        for job_id in self.believed.accepted:
            entries = self.redis.xrange(f"{self.namespace}:log:{job_id}")
            assert [entry.decode() for entry, _ in entries] == [f"{n}-0" for n in range(1, len(entries) + 1)]
            assert len(entries) == int(self.field(job_id, "seq"))
            states = [State(fields[b"state"].decode()) for _, fields in entries]
            assert all(not state.is_terminal for state in states[:-1]), "nothing follows a terminal entry"
            assert states[-1] is self.state(job_id) or states[-1] is State.RUNNING
            assert all(json.loads(fields[b"data"]) is not None for _, fields in entries)

    def teardown(self) -> None:
        """With a courier and one willing worker all accepted jobs finish, are published once and archived once."""
        for scope in SCOPES:
            self._limit(scope, None)
        for _ in range(LAST_STEPS):
            if not self.believed.accepted or not self._unfinished():
                break
            self.now += 1_000
            self.run(
                calls.register_worker("one", pool=POOL, state=WorkerState.READY, pod="one", models=[], now=self.now)
            )
            self._tick()
            message = self.redis.rpop(self.list_key)
            if message is not None:
                job_id, token = _job_of(message), secrets.token_hex(8)
                if self.ledger.run(calls.claim(job_id, token=token, worker="one", now=self.now)).attempt:
                    self.ledger.run(
                        calls.finish(job_id, token=token, outcome=State.COMPLETED, data={"artifacts": []}, now=self.now)
                    )
            self.states_only_move_as_the_table_says()
            self.every_accepted_job_is_in_exactly_one_place()
        assert not self._unfinished(), "nothing accepted is nowhere"
        for job_id in self.believed.accepted:
            for seq in self.pending_starts(job_id):
                self._apply(job_id, seq)
            self._apply(job_id)
            self._archive(job_id)
            self.run(calls.purge_dead_letter(job_id, tenant="default", now=self.now), twice_alike=False)
            assert self.redis.ttl(f"{self.namespace}:job:{job_id}") > 0
        self._deliver_all()
        for kind in ("outbox", "history", "targets", f"share:{POOL}:{TENANT}", f"ageing:{POOL}", f"virtual:{POOL}"):
            if ":" in kind:
                assert not self.redis.exists(f"{self.namespace}:{kind}"), kind
        for kind in ("outbox", "history", "targets"):
            assert self.redis.zcard(f"{self.namespace}:{kind}") == 0
        assert self.redis.llen(self.list_key) == 0
        for key in self.redis.scan_iter(f"{self.namespace}:*"):
            self.redis.delete(key)
        self.redis.close()

    def _deliver_all(self) -> None:
        """With receivers that accept everything."""
        for _ in range(LAST_STEPS):
            if not self.redis.exists(f"{self.namespace}:targets"):
                break
            self.now += 5_000
            for url in URLS:
                self.a_receiver_consents(url, None)
            for delivery in self._take_deliveries(100, 100):
                self._record_attempt(delivery, DeliveryOutcome.DELIVERED, None)
        self.every_delivery_is_due_or_has_ended()

    # -- helpers -------------------------------------------------------------------------------------------------------

    def run(self, call: Call[T], *, twice_alike: bool = True) -> T:
        """Make the call twice, as a client does whose reply was lost: the second changes nothing, and answers alike
        unless the call's whole answer is what it changed.
        """
        answer = self.ledger.run(call)
        after = self.snapshot()
        again = self.ledger.run(call)
        assert self.snapshot() == after, f"a repeated {call.script} changed something"
        if twice_alike and call.script != "accept":
            assert again == answer
        return answer

    def snapshot(self) -> dict[bytes, Any]:
        """Everything under the prefix, but for counters of refused calls and what may expire meanwhile."""
        keys = [
            key
            for key in self.redis.scan_iter(f"{self.namespace}:*", 1000)
            if not key.endswith(b":counters") and not any(kind in key for kind in EXPIRING)
        ]
        pipeline = self.redis.pipeline(transaction=False)
        for key in keys:
            pipeline.type(key)
        kinds = pipeline.execute()
        for key, kind in zip(keys, kinds, strict=True):
            pipeline.execute_command(*READERS[kind.decode()](key))
        return dict(zip(keys, pipeline.execute(), strict=True))

    @property
    def list_key(self) -> str:
        return f"{self.namespace}:celery:pool.{POOL}"

    def ids(self, kind: str) -> dict[str, int]:
        members = self.redis.zrange(f"{self.namespace}:{kind}:{POOL}", 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in members}

    def scores(self, name: str) -> dict[str, int]:
        members = self.redis.zrange(f"{self.namespace}:{name}", 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in members}

    def letters(self) -> set[str]:
        return {member.decode() for member in self.redis.zrange(f"{self.namespace}:dead:default", 0, -1)}

    def pending_starts(self, job_id: str) -> list[int]:
        """The `started` events of the job that are still to be published."""
        return [int(seq) for seq in self.field(job_id, PENDING_STARTS).split()]

    def leased(self, url: str) -> set[str]:
        """The deliveries to the receiver that a courier has now."""
        key = f"{self.namespace}:leased:{target_of('default', url)}"
        return {each.decode() for each in self.redis.zrangebyscore(key, f"({self.now}", "+inf")}

    def field(self, job_id: str, name: str) -> str:
        value = self.redis.hget(f"{self.namespace}:job:{job_id}", name)
        return "" if value is None else value.decode()

    def state(self, job_id: str) -> State:
        return State(self.field(job_id, "state"))

    def standing(self, attempt: Attempt) -> LeaseStatus:
        """How an attempt must stand by the record alone."""
        if self.state(attempt.job_id) is not State.RUNNING or self.field(attempt.job_id, "token") != attempt.token:
            return LeaseStatus.LOST
        return LeaseStatus.CANCEL if self.field(attempt.job_id, "cancel") else LeaseStatus.OK

    def _unfinished(self) -> list[str]:
        return [job_id for job_id in self.believed.accepted if not self.state(job_id).is_terminal]


def _job_of(message: bytes) -> str:
    found = re.search(rb'"correlation_id":"([^"]+)"', message)
    assert found
    return found.group(1).decode()


def test_the_ledger_holds_its_invariants(any_redis_url: str) -> None:
    LedgerMachine.url = any_redis_url
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

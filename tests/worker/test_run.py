"""Decisions of the worker's child: delays of retries, progress, interruption, self-tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from darkroom.artifacts import ArtifactStore
from darkroom.catalogue.models import Catalogue, Model
from darkroom.errors import LedgerUnavailable
from darkroom.jobs import ErrorKind, JobEvent, State
from darkroom.ledger import calls
from darkroom.ledger.calls import Call, LeaseStatus, WorkerState
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect
from darkroom.ledger.records import JobRecord
from darkroom_worker.child.memory import ChildMemory
from darkroom_worker.child.progress import ProgressReporter
from darkroom_worker.child.results import ClaimedJob, retry_delay_ms
from darkroom_worker.child.runner import Runner
from darkroom_worker.child.self_test import FailedJobs, passes_self_test, self_test_input
from darkroom_worker.engines.instant import InstantEngine
from darkroom_worker.engines.registry import EngineResult, Interrupted, OnStep, OutOfMemory, WorkerFault
from darkroom_worker.parent.pool import EXIT_FAULT, SELF_TEST_BACKOFF, QueueGate
from darkroom_worker.parent.probes import respond

from tests.driven_jobs import DrivenJobs


@pytest.mark.parametrize(
    ("counted", "chance", "delay_ms"),
    [
        pytest.param(0, 0.5, 2_000, id="the first failure"),
        pytest.param(1, 0.5, 4_000, id="doubled"),
        pytest.param(4, 0.5, 32_000, id="doubled again"),
        pytest.param(5, 0.5, 60_000, id="a minute at most"),
        pytest.param(5_000, 0.5, 60_000, id="however often it failed"),
        pytest.param(0, 0.0, 1_500, id="a quarter less"),
        pytest.param(0, 1.0, 2_500, id="a quarter more"),
    ],
)
def test_a_retry_waits_longer_each_time(counted: int, chance: float, delay_ms: int) -> None:
    assert retry_delay_ms(counted, chance=chance) == delay_ms


T = TypeVar("T")


class AwayLedger(Ledger):
    """A ledger that can be made unavailable."""

    away = False
    calls = 0

    def run(self, call: Call[T]) -> T:
        self.calls += 1
        if self.away:
            raise LedgerUnavailable("away")
        return super().run(call)


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """A claimed job whose steps the test reports."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.jobs = DrivenJobs(redis_url, namespace)
        self.ledger = AwayLedger(connect(redis_url), namespace)
        self.clock = Clock()
        self.job_id = self.jobs.submit()
        token = self.jobs.start(self.job_id)
        job = ClaimedJob(
            id=self.job_id,
            token=token,
            tenant="default",
            model="sd",
            input="{}",
            attempt=1,
            counted=0,
            run_timeout_s=100,
        )
        self.steps = ProgressReporter(self.ledger, job, clock=self.clock)

    def step(self, number: int, *, at: float, of: int = 100) -> None:
        self.clock.now = at
        self.steps(number, of)

    def logged_steps(self) -> list[int]:
        """The steps in the job log."""
        entries = self.jobs.redis.xrange(f"{self.ledger.namespace}:log:{self.job_id}")
        return [
            int(fields[b"data"].split(b'"step":')[1].split(b",")[0])
            for _, fields in entries
            if fields[b"event"] == b"progressed"
        ]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory() -> ChildMemory:
    return ChildMemory(["quick", "slow"])


@pytest.fixture
def stage(redis_url: str, namespace: str) -> Iterator[Stage]:
    stage = Stage(redis_url, namespace)
    yield stage
    stage.jobs.close()


def test_progress_is_logged_after_a_quarter_of_a_second_and_at_the_last_step(stage: Stage) -> None:
    for number, at in ((1, 0.0), (2, 0.1), (3, 0.24), (4, 0.25), (5, 0.49), (6, 0.5), (100, 0.51)):
        stage.step(number, at=at)

    assert stage.logged_steps() == [1, 4, 6, 100]
    assert stage.ledger.calls == 7


def test_a_cancel_stops_the_run_at_the_next_step(stage: Stage) -> None:
    stage.step(1, at=0)
    stage.jobs.run(calls.cancel(stage.job_id, tenant=None))

    with pytest.raises(Interrupted):
        stage.step(2, at=1)

    assert stage.steps.stopped_by is LeaseStatus.CANCEL


def test_a_lost_lease_stops_the_run_at_the_next_step(stage: Stage) -> None:
    reason = calls.ReleaseReason.WORKER_LOST
    stage.jobs.run(calls.release(stage.job_id, reason=reason, detail="", token="token"))

    with pytest.raises(Interrupted):
        stage.step(1, at=1)

    assert stage.steps.stopped_by is LeaseStatus.LOST


def test_a_run_stops_after_its_run_timeout(stage: Stage) -> None:
    stage.step(1, at=100)

    with pytest.raises(Interrupted):
        stage.step(2, at=100.1)

    assert stage.steps.stopped_by is None


def test_run_time_excludes_the_wait_for_progress_calls(stage: Stage) -> None:
    def run_slowly(call: Call[T]) -> T:
        stage.clock.now += 60
        raise LedgerUnavailable("frozen")

    stage.ledger.run = run_slowly  # type: ignore[method-assign]
    stage.step(1, at=50)
    stage.step(2, at=111)
    assert stage.steps.waited_s == 60

    with pytest.raises(Interrupted):
        stage.step(3, at=161)


def test_a_run_continues_without_calls_while_redis_is_unavailable(stage: Stage) -> None:
    stage.ledger.away = True
    for number in range(1, 11):
        stage.step(number, at=number * 0.1)
    assert stage.ledger.calls == 1

    stage.ledger.away = False
    stage.step(11, at=1.1)
    stage.step(12, at=2.2)

    assert stage.logged_steps() == [12]


def test_the_last_step_is_reported_after_an_outage_of_redis(stage: Stage) -> None:
    stage.ledger.away = True
    stage.step(99, at=1)
    stage.ledger.away = False

    stage.step(100, at=1.01)

    assert stage.logged_steps() == [100]


@dataclass
class FakeSupervisor:
    """The part of a supervisor that its probes read."""

    last_round_at: float
    accepts_jobs: bool = True


@pytest.mark.parametrize(
    ("path", "supervisor", "status"),
    [
        pytest.param("/healthz", FakeSupervisor(70), 200, id="rounds complete"),
        pytest.param("/healthz", FakeSupervisor(69), 503, id="no round for 31 s"),
        pytest.param("/healthz", FakeSupervisor(99, accepts_jobs=False), 200, id="rounds complete, no jobs accepted"),
        pytest.param("/readyz", FakeSupervisor(99), 200, id="jobs accepted"),
        pytest.param("/readyz", FakeSupervisor(99, accepts_jobs=False), 503, id="no jobs accepted"),
        pytest.param("/elsewhere", FakeSupervisor(99), 404, id="no probe"),
    ],
)
def test_probes_are_answered_from_the_state_of_the_supervisor(
    path: str, supervisor: FakeSupervisor, status: int
) -> None:
    assert respond(path, supervisor, clock=lambda: 100).status == status


# Memory that does not suffice


class NarrowEngine(InstantEngine):
    """An engine on a device too small for a normal run and, with `lean_fails`, for a lean one too."""

    def __init__(self, model: Model, *, lean_fails: bool) -> None:
        super().__init__(model)
        self.lean_fails = lean_fails
        self.runs: list[bool] = []

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> EngineResult:
        self.runs.append(lean)
        if self.lean_fails or not lean:
            raise OutOfMemory(f"too small, lean {lean}")
        return super().run(parameters, job_id=job_id, on_step=on_step, lean=lean)


class Narrow:
    """A runner with such an engine, and its job."""

    def __init__(self, redis_url: str, namespace: str, store: Path, *, lean_fails: bool) -> None:
        jobs = DrivenJobs(redis_url, namespace)
        model = replace(Catalogue.load().get("sd"), engine="instant")
        self.engine = NarrowEngine(model, lean_fails=lean_fails)
        ledger = Ledger(connect(redis_url), namespace)
        engines = {"sd": (model, self.engine)}
        runner = Runner(
            engines, ledger, ArtifactStore(store.as_uri()), "narrow", progress_ledger=ledger, memory=ChildMemory(["sd"])
        )
        job_id = jobs.submit(input={"prompt": "x", "seed": 7})
        self.answer = runner.run_job(job_id, token="token", traceparent=None)
        record = ledger.job(job_id)
        assert record is not None
        self.record: JobRecord = record
        self.retried = [
            entry[b"data"]
            for _, entry in jobs.redis.xrange(f"{namespace}:log:{job_id}")
            if entry[b"event"].decode() == JobEvent.RETRIED
        ]
        jobs.close()


def test_a_job_that_runs_out_of_memory_is_run_lean_in_the_same_attempt(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    narrow = Narrow(redis_url, namespace, tmp_path, lean_fails=False)
    assert narrow.engine.runs == [False, True]
    assert (narrow.record.state, narrow.record.attempt, narrow.record.counted) == (State.COMPLETED, 1, 0)
    assert narrow.answer == "completed"


def test_a_job_that_runs_out_of_memory_in_a_lean_run_is_retried(redis_url: str, namespace: str, tmp_path: Path) -> None:
    narrow = Narrow(redis_url, namespace, tmp_path, lean_fails=True)
    assert narrow.engine.runs == [False, True]
    assert (narrow.record.state, narrow.record.counted) == (State.PENDING, 1)
    assert narrow.record.not_before is not None
    assert b'"kind":"out_of_memory","message":"too small, lean True"' in narrow.retried[0]
    assert narrow.answer == "pending: out_of_memory"


# The gate


def is_out(gate: QueueGate) -> bool:
    return gate.state is WorkerState.FAULTY


@pytest.fixture
def gate(memory: ChildMemory) -> QueueGate:
    """The gate of a worker whose child is up."""
    gate = QueueGate("pool.quick", memory)
    gate.on_child_up()
    return gate


def test_failures_of_jobs_do_not_make_a_worker_faulty(gate: QueueGate) -> None:
    for kind in (*[ErrorKind.TRANSIENT] * 5, *[ErrorKind.OUT_OF_MEMORY] * 5):
        gate.on_attempt_finished(f"pending: {kind}")
    assert not is_out(gate)
    assert gate.suspects is None


def test_a_child_that_replaces_another_tests_itself_with_other_models_first(
    gate: QueueGate, memory: ChildMemory
) -> None:
    for model in ("quick", "slow"):
        memory.begin_attempt(model)
        gate.on_child_end(-9)
        gate.on_child_up()
    assert gate.suspects == frozenset({"quick", "slow"})
    assert not is_out(gate)

    gate.on_attempt_finished("completed")
    assert gate.suspects == frozenset()
    gate.on_child_end(-9)  # between two jobs
    assert gate.suspects == frozenset()


def test_two_consecutive_faults_make_a_worker_faulty_until_a_child_passes_its_self_test(
    clock: Clock, memory: ChildMemory
) -> None:
    gate = QueueGate("pool.quick", memory, clock=clock)
    seen = []
    for _ in range(2):
        gate.on_child_end(EXIT_FAULT)
        seen.append((gate.state, gate.starts_children))
    clock.now += SELF_TEST_BACKOFF.first_s
    seen.append((gate.state, gate.starts_children))
    gate.on_child_up()
    seen.append((gate.state, gate.starts_children))

    assert seen == [
        (WorkerState.STARTING, True),
        (WorkerState.FAULTY, False),
        (WorkerState.FAULTY, True),
        (WorkerState.READY, True),
    ]
    gate.on_child_end(EXIT_FAULT)
    assert not is_out(gate)


def test_a_failed_self_test_is_repeated_after_a_growing_pause(clock: Clock, memory: ChildMemory) -> None:
    gate = QueueGate("pool.quick", memory, clock=clock)
    gate.on_child_end(EXIT_FAULT)
    pauses = []
    for _ in range(8):
        gate.on_child_end(EXIT_FAULT)
        began = clock.now
        while not gate.starts_children:
            clock.now += 1
        pauses.append(clock.now - began)
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]


def test_a_completed_job_clears_faults(gate: QueueGate) -> None:
    for _ in range(3):
        gate.on_child_end(EXIT_FAULT)
        gate.on_child_up()
        gate.on_attempt_finished("completed")
    assert not is_out(gate)


def test_a_draining_worker_counts_no_faults(gate: QueueGate) -> None:
    gate.draining = True
    for _ in range(3):
        gate.on_child_end(EXIT_FAULT)
    assert not gate.is_faulty


# Proof runs


def test_three_different_jobs_that_fail_in_a_row_cause_a_self_test() -> None:
    failed = FailedJobs()
    assert [failed.failed(job_id) for job_id in ("a", "a", "a", "b", "b", "c")] == [False] * 5 + [True]
    failed.completed()
    assert [failed.failed(job_id) for job_id in ("d", "e")] == [False, False]


@pytest.mark.parametrize("model", list(Catalogue.load()), ids=lambda model: model.name)
def test_a_self_test_runs_the_smallest_job_of_its_model(model: Model) -> None:
    given = self_test_input(model)
    assert (given["width"], given["height"], given["steps"], given["images"]) == (64, 64, 1, 1)


class CountingEngine(InstantEngine):
    """An engine whose first `failures` runs fail."""

    def __init__(self, model: Model, *, failures: int, error: type[Exception] = RuntimeError) -> None:
        super().__init__(model)
        self.failures, self.error = failures, error
        self.runs = 0

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> EngineResult:
        self.runs += 1
        if self.runs <= self.failures:
            raise self.error("broken")
        return super().run(parameters, job_id=job_id, on_step=on_step, lean=lean)


def unexpected() -> None:
    raise AssertionError("the self-test took too long")


@pytest.mark.parametrize(
    ("failures", "error", "is_proven", "runs"),
    [
        pytest.param(0, RuntimeError, True, 1, id="a device that works"),
        pytest.param(3, RuntimeError, True, 4, id="an engine that fails now and then"),
        pytest.param(99, RuntimeError, False, 4, id="a device that fails each time"),
        pytest.param(99, WorkerFault, False, 1, id="a device that reports a fault"),
    ],
)
def test_a_self_test_fails_if_all_of_its_runs_fail(
    failures: int, error: type[Exception], is_proven: bool, runs: int
) -> None:
    model = Catalogue.load().get("sd")
    engine = CountingEngine(model, failures=failures, error=error)
    assert passes_self_test({"sd": (model, engine)}, on_timeout=unexpected) is is_proven
    assert engine.runs == runs


def test_a_self_test_passes_if_one_model_works() -> None:
    catalogue = Catalogue.load()
    broken = CountingEngine(catalogue.get("flux"), failures=99)
    works = CountingEngine(catalogue.get("sd"), failures=0)
    engines = {"flux": (catalogue.get("flux"), broken), "sd": (catalogue.get("sd"), works)}
    assert passes_self_test(engines, suspects={"flux"}, on_timeout=unexpected)
    assert (broken.runs, works.runs) == (0, 1)


# Time that is no run time


def test_pauses_add_up_including_the_current_one(clock: Clock) -> None:
    memory = ChildMemory(["sd"], clock=clock)
    clock.now = 100
    memory.begin_attempt("sd")
    with memory.paused():
        clock.now += 3
    clock.now += 10
    with memory.paused():
        clock.now += 4
        assert memory.paused_s == 7
    assert memory.paused_s == 7
    memory.begin_attempt("sd")
    assert memory.paused_s == 0

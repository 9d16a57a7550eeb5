"""What the worker's child decides by itself: how long a retry waits, when progress is told, when a run stops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from darkroom import transitions
from darkroom.artifacts import ArtifactStore
from darkroom.errors import LedgerUnavailable
from darkroom.jobs import ErrorKind, JobEvent, State
from darkroom.ledger import JobRecord, Ledger, connect
from darkroom.models import Catalogue, Model
from darkroom.transitions import Call, Standing, WorkerState
from darkroom_worker.engine import Interrupted, OnStep, OutOfMemory, Run
from darkroom_worker.engines.instant import InstantEngine
from darkroom_worker.probes import answer
from darkroom_worker.readiness import EXIT_FAULT, Gate
from darkroom_worker.run import Job, Runner, Steps, retry_delay_ms

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


class AwayLedger(Ledger):
    """A ledger that can be made not to answer."""

    away = False
    calls = 0

    def run(self, call: Call[transitions.T]) -> transitions.T:
        self.calls += 1
        if self.away:
            raise LedgerUnavailable("away")
        return super().run(call)


class Clock:
    """Seconds, as the test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """A claimed job whose steps the test makes."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.jobs = DrivenJobs(redis_url, namespace)
        self.ledger = AwayLedger(connect(redis_url), namespace)
        self.clock = Clock()
        self.job_id = self.jobs.submit()
        token = self.jobs.start(self.job_id)
        job = Job(
            id=self.job_id,
            token=token,
            tenant="default",
            model="sd",
            input="{}",
            attempt=1,
            counted=0,
            run_timeout_s=100,
        )
        self.steps = Steps(self.ledger, job, clock=self.clock)

    def step(self, number: int, *, at: float, of: int = 100) -> None:
        self.clock.now = at
        self.steps(number, of)

    def told(self) -> list[int]:
        """The steps that the job's log tells of."""
        entries = self.jobs.redis.xrange(f"{self.ledger.namespace}:log:{self.job_id}")
        return [
            int(fields[b"data"].split(b'"step":')[1].split(b",")[0])
            for _, fields in entries
            if fields[b"event"] == b"progressed"
        ]


@pytest.fixture
def stage(redis_url: str, namespace: str) -> Iterator[Stage]:
    stage = Stage(redis_url, namespace)
    yield stage
    stage.jobs.close()


def test_progress_is_told_after_a_quarter_of_a_second_and_at_the_last_step(stage: Stage) -> None:
    for number, at in ((1, 0.0), (2, 0.1), (3, 0.24), (4, 0.25), (5, 0.49), (6, 0.5), (100, 0.51)):
        stage.step(number, at=at)

    assert stage.told() == [1, 4, 6, 100]
    assert stage.ledger.calls == 7


def test_a_cancel_stops_the_run_at_the_next_step(stage: Stage) -> None:
    stage.step(1, at=0)
    stage.jobs.run(transitions.cancel(stage.job_id, tenant=None))

    with pytest.raises(Interrupted):
        stage.step(2, at=1)

    assert stage.steps.stopped_by is Standing.CANCEL


def test_a_lost_lease_stops_the_run_at_the_next_step(stage: Stage) -> None:
    reason = transitions.Reason.WORKER_LOST
    stage.jobs.run(transitions.release(stage.job_id, reason=reason, detail="", token="token"))

    with pytest.raises(Interrupted):
        stage.step(1, at=1)

    assert stage.steps.stopped_by is Standing.LOST


def test_a_run_stops_when_its_time_is_up(stage: Stage) -> None:
    stage.step(1, at=100)

    with pytest.raises(Interrupted):
        stage.step(2, at=100.1)

    assert stage.steps.stopped_by is None


def test_the_time_that_a_progress_call_waits_is_no_run_time(stage: Stage) -> None:
    def run_slowly(call: Call[transitions.T]) -> transitions.T:
        stage.clock.now += 60
        raise LedgerUnavailable("frozen")

    stage.ledger.run = run_slowly  # type: ignore[method-assign]
    stage.step(1, at=50)
    stage.step(2, at=111)
    assert stage.steps.waited_s == 60

    with pytest.raises(Interrupted):
        stage.step(3, at=161)


def test_a_run_goes_on_while_redis_is_away_and_does_not_ask_at_every_step(stage: Stage) -> None:
    stage.ledger.away = True
    for number in range(1, 11):
        stage.step(number, at=number * 0.1)
    assert stage.ledger.calls == 1

    stage.ledger.away = False
    stage.step(11, at=1.1)
    stage.step(12, at=2.2)

    assert stage.told() == [12]


def test_the_last_step_is_told_though_redis_was_away_just_before(stage: Stage) -> None:
    stage.ledger.away = True
    stage.step(99, at=1)
    stage.ledger.away = False

    stage.step(100, at=1.01)

    assert stage.told() == [100]


@dataclass
class Round:
    """A watch as its probes see it."""

    went_round_at: float
    takes_jobs: bool = True


@pytest.mark.parametrize(
    ("path", "watch", "status"),
    [
        pytest.param("/healthz", Round(70), 200, id="it goes round"),
        pytest.param("/healthz", Round(69), 503, id="it hangs"),
        pytest.param("/healthz", Round(99, takes_jobs=False), 200, id="it goes round and takes no jobs"),
        pytest.param("/readyz", Round(99), 200, id="it takes jobs"),
        pytest.param("/readyz", Round(99, takes_jobs=False), 503, id="it takes none"),
        pytest.param("/elsewhere", Round(99), 404, id="no probe"),
    ],
)
def test_a_probe_is_answered_by_what_the_watch_does(path: str, watch: Round, status: int) -> None:
    assert answer(path, watch, clock=lambda: 100).status == status


# Memory that does not suffice


class NarrowEngine(InstantEngine):
    """An engine on a device too small for its usual run, and where `lean_fails` for its lean one too."""

    def __init__(self, model: Model, *, lean_fails: bool) -> None:
        super().__init__(model)
        self.lean_fails = lean_fails
        self.runs: list[bool] = []

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> Run:
        self.runs.append(lean)
        if self.lean_fails or not lean:
            raise OutOfMemory(f"too small, lean {lean}")
        return super().run(parameters, job_id=job_id, on_step=on_step, lean=lean)


class Narrow:
    """A runner with such an engine, and the job that it ran."""

    def __init__(self, redis_url: str, namespace: str, store: Path, *, lean_fails: bool) -> None:
        jobs = DrivenJobs(redis_url, namespace)
        model = replace(Catalogue.load().get("sd"), engine="instant")
        self.engine = NarrowEngine(model, lean_fails=lean_fails)
        ledger = Ledger(connect(redis_url), namespace)
        engines = {"sd": (model, self.engine)}
        runner = Runner(engines, ledger, ArtifactStore(store.as_uri()), "narrow", of_steps=ledger)
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


def test_a_job_that_memory_does_not_suffice_for_is_run_lean_in_the_same_attempt(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    narrow = Narrow(redis_url, namespace, tmp_path, lean_fails=False)
    assert narrow.engine.runs == [False, True]
    assert (narrow.record.state, narrow.record.attempt, narrow.record.counted) == (State.COMPLETED, 1, 0)
    assert narrow.answer == "completed"


def test_a_job_that_does_not_fit_lean_either_is_tried_again_later(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    narrow = Narrow(redis_url, namespace, tmp_path, lean_fails=True)
    assert narrow.engine.runs == [False, True]
    assert (narrow.record.state, narrow.record.counted) == (State.PENDING, 1)
    assert narrow.record.not_before is not None
    assert b'"kind":"out_of_memory","message":"too small, lean True"' in narrow.retried[0]
    assert narrow.answer == "pending: out_of_memory"


# The gate


def is_out(gate: Gate) -> bool:
    return gate.state is WorkerState.FAULTY


@pytest.fixture
def gate() -> Gate:
    """Of a worker whose child is up."""
    gate = Gate("pool.quick")
    gate.on_child_up()
    return gate


@pytest.mark.parametrize("kind", [ErrorKind.TRANSIENT, ErrorKind.OUT_OF_MEMORY])
def test_three_jobs_that_fail_in_a_row_take_the_worker_out(gate: Gate, kind: ErrorKind) -> None:
    for job_id in ("a", "b"):
        gate.on_answer(job_id, f"pending: {kind}")
    assert not is_out(gate)
    gate.on_answer("c", f"failed: {kind}")
    assert is_out(gate)
    assert not gate.starts_children


def test_failures_of_different_kinds_count_together(gate: Gate) -> None:
    gate.on_answer("a", "pending: transient")
    gate.on_failed_run("b")  # its child was lost
    gate.on_answer("c", "lost: out_of_memory")
    assert is_out(gate)


def test_one_job_that_fails_again_and_again_takes_no_worker_out(gate: Gate) -> None:
    for _ in range(5):
        gate.on_answer("a", "pending: transient")
    assert not is_out(gate)


@pytest.mark.parametrize("answer", ["failed", "cancelled", "lost", "pending", "dropped: leased"])
def test_what_is_the_callers_doing_neither_counts_nor_clears(gate: Gate, answer: str) -> None:
    gate.on_answer("a", "pending: transient")
    for job_id in ("b", "c", "d"):
        gate.on_answer(job_id, answer)
    gate.on_answer("e", "pending: transient")
    assert not is_out(gate)
    gate.on_answer("f", "pending: transient")
    assert is_out(gate)


def test_a_completed_job_clears_failures_and_faults(gate: Gate) -> None:
    for job_id in ("a", "b"):
        gate.on_failed_run(job_id)
    gate.on_child_end(EXIT_FAULT)
    gate.on_child_up()
    gate.on_answer("c", "completed")
    for job_id in ("d", "e"):
        gate.on_failed_run(job_id)
    gate.on_child_end(EXIT_FAULT)
    gate.on_child_up()
    assert not is_out(gate)


def test_a_worker_that_drains_counts_no_failures(gate: Gate) -> None:
    gate.draining = True
    for job_id in ("a", "b", "c"):
        gate.on_failed_run(job_id)
    assert not gate.is_faulty

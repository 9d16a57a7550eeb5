"""What the worker's child decides by itself: how long a retry waits, when progress is told, when a run stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from darkroom import transitions
from darkroom.errors import LedgerUnavailable
from darkroom.ledger import Ledger, connect
from darkroom.transitions import Call, Standing
from darkroom_worker.celery_app import broker_url
from darkroom_worker.engine import Interrupted
from darkroom_worker.run import Job, Steps, retry_delay_ms

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


@pytest.mark.parametrize(
    ("address", "kombus"),
    [
        pytest.param("redis://:secret@host:6380/4", "redis://:secret@host:6380/4", id="over TCP"),
        pytest.param("rediss://host/0", "rediss://host/0", id="over TLS"),
        pytest.param("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0", id="a socket"),
        pytest.param("unix://:x@/r.sock?db=3", "redis+socket://:x@/r.sock?virtual_host=3", id="a database of a socket"),
    ],
)
def test_the_brokers_address_is_the_ledgers(address: str, kombus: str) -> None:
    assert broker_url(address) == kombus


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
        job = Job(id=self.job_id, token=token, event={}, tenant="default", attempt=1, counted=0, run_timeout_s=100)
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

"""The operator's calls of the ledger: demand and workers, marks on workers that run nothing, and a log
of what was decided.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from typing import Any

import pytest
from darkroom.errors import LedgerUnavailable
from darkroom.jobs import State
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import AttemptEnd, Drained, Reading, Recorded, WorkerState
from darkroom.ledger.client import AsyncLedger, Ledger
from darkroom.ledger.connection import connect, connect_async

from tests.core.timed_jobs import POOL, START_MS, TimedJobs, job_of

TTL_MS = calls.DRAIN_TTL_MS


def worker(jobs: TimedJobs, name: str, state: WorkerState = WorkerState.READY, *, pool: str = POOL) -> None:
    """The heartbeat of a worker whose pod has a name like its own."""
    jobs.run(calls.register_worker(name, pool=pool, state=state, pod=f"pod-{name}", models=["sd"], now=jobs.now))


def drain(jobs: TimedJobs, count: int, pods: list[str] | None = None) -> list[str]:
    """The workers that are marked now."""
    marked = jobs.run(calls.drain(POOL, count=count, pods=pods, now=jobs.now))
    assert all(each.pod == f"pod-{each.worker}" for each in marked)
    return [each.worker for each in marked]


def observe(jobs: TimedJobs, **more: Any) -> Reading:
    return jobs.run(calls.observe(POOL, now=jobs.now, **more))


def busy(jobs: TimedJobs, name: str) -> str:
    """A worker with a job."""
    worker(jobs, name)
    return jobs.start(jobs.submit(), worker=name, token=name)


# -- drain -------------------------------------------------------------------------------------------------------------


def test_a_marked_worker_claims_nothing(jobs: TimedJobs) -> None:
    worker(jobs, "one")
    assert drain(jobs, 1) == ["one"]
    job_id = jobs.submit()
    assert jobs.claim(job_id).dropped == "draining"
    assert jobs.claim(job_id, worker="two").attempt == 1


def test_no_more_are_marked_than_requested(jobs: TimedJobs) -> None:
    for name in "abc":
        worker(jobs, name)
    assert drain(jobs, 2) == ["a", "b"]


def test_a_busy_worker_is_never_marked(jobs: TimedJobs) -> None:
    busy(jobs, "a")
    worker(jobs, "b")
    assert drain(jobs, 2) == ["b"]


def test_a_worker_that_reports_busy_without_a_job_may_be_marked(jobs: TimedJobs) -> None:
    """A worker reports this state for up to a second after its job; a message that it has not claimed is requeued."""
    worker(jobs, "a", WorkerState.BUSY)
    assert drain(jobs, 1) == ["a"]


def test_faulty_and_starting_workers_are_marked_before_idle_ones(jobs: TimedJobs) -> None:
    worker(jobs, "a")
    worker(jobs, "b", WorkerState.STARTING)
    worker(jobs, "c", WorkerState.FAULTY)
    assert drain(jobs, 1) == ["c"]
    assert drain(jobs, 2) == ["b", "c"]


def test_workers_of_other_pools_silent_and_draining_ones_are_not_marked(jobs: TimedJobs) -> None:
    jobs.run(calls.announce_pool("other", models=["flux"], now=jobs.now))
    worker(jobs, "silent")
    jobs.now += calls.WORKER_TTL_MS + 1
    worker(jobs, "theirs", pool="other")
    worker(jobs, "leaving", WorkerState.DRAINING)
    worker(jobs, "gone")
    worker(jobs, "gone", WorkerState.GONE)
    assert drain(jobs, 9) == []


def test_only_workers_on_the_named_pods_are_marked(jobs: TimedJobs) -> None:
    for name in "abc":
        worker(jobs, name)
    assert drain(jobs, 2, pods=["pod-c"]) == ["c"]
    assert drain(jobs, 2, pods=[]) == []
    assert drain(jobs, 1, pods=["pod-a", "pod-b"]) == ["a"], "what is marked elsewhere does not count"
    assert observe(jobs).marked == 2


def test_a_repeated_call_renews_the_marks(jobs: TimedJobs) -> None:
    for name in "abc":
        worker(jobs, name)
    marked = drain(jobs, 2)
    jobs.now += TTL_MS - 1
    for name in "abc":
        worker(jobs, name)
    worker(jobs, "0")
    assert drain(jobs, 2) == marked
    jobs.now += TTL_MS - 1
    assert jobs.claim(jobs.submit(), worker="a").dropped == "draining"


def test_the_call_may_be_repeated(jobs: TimedJobs) -> None:
    for name in "abc":
        worker(jobs, name)
    busy(jobs, "d")
    marked = drain(jobs, 2)
    before = jobs.everything()
    assert drain(jobs, 2) == marked
    assert jobs.everything() == before


def test_a_mark_ends_unless_it_is_renewed(jobs: TimedJobs) -> None:
    worker(jobs, "one")
    drain(jobs, 1)
    jobs.now += TTL_MS
    assert jobs.claim(jobs.submit()).attempt == 1


def test_a_smaller_count_removes_the_other_marks(jobs: TimedJobs) -> None:
    for name in "abc":
        worker(jobs, name)
    drain(jobs, 3)
    assert drain(jobs, 1) == ["a"]
    assert jobs.claim(jobs.submit(), worker="b", token="b").attempt == 1
    assert drain(jobs, 0) == []
    assert jobs.claim(jobs.submit(), worker="a", token="a").attempt == 1


def test_marked_workers_are_no_slots(jobs: TimedJobs) -> None:
    """So that the queue has no more messages than the others can run. Removing a mark restores the slot at once."""
    for name in "ab":
        worker(jobs, name)
    drain(jobs, 1)
    worker(jobs, "a")  # its heartbeat does not make it one
    for _ in range(9):
        jobs.submit()
    assert len(jobs.listed()) == 3
    drain(jobs, 0)
    assert len(jobs.listed()) == 5


def test_a_mark_outlives_heartbeats_and_ends_with_the_worker(jobs: TimedJobs) -> None:
    worker(jobs, "one")
    drain(jobs, 1)
    worker(jobs, "one")
    assert observe(jobs).marked == 1
    worker(jobs, "one", WorkerState.GONE)
    worker(jobs, "one")
    assert (observe(jobs).marked, observe(jobs).idle) == (0, 1)


class Crowd:
    """Workers that claim and finish as fast as they can, and a client that submits, each a thread; until `stop`."""

    def __init__(self, jobs: TimedJobs, redis_url: str, names: list[str]) -> None:
        self._jobs, self._redis_url = jobs, redis_url
        self._stopping = threading.Event()
        self.done: list[str] = []
        self.lost: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(name,), daemon=True) for name in names]
        self._threads.append(threading.Thread(target=self._submit, daemon=True))
        for thread in self._threads:
            thread.start()

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, name: str) -> None:
        client: Any = connect(self._redis_url)
        ledger, dice = Ledger(client, self._jobs.namespace), random.Random(name)
        heartbeat = calls.register_worker(name, pool=POOL, state=WorkerState.READY, pod=f"pod-{name}", models=["sd"])
        while not self._stopping.is_set():
            ledger.run(heartbeat)
            message = client.rpop(self._jobs.list_key)
            if message is None:
                time.sleep(0.001)
                continue
            job_id, token = job_of(message), secrets.token_hex(4)
            if ledger.run(calls.claim(job_id, token=token, worker=name)).attempt is None:
                continue
            time.sleep(dice.random() * 0.004)
            call = calls.finish(job_id, token=token, outcome=State.COMPLETED, data={"artifacts": []})
            (self.done if ledger.run(call) is AttemptEnd.COMPLETED else self.lost).append(job_id)
        client.close()

    def _submit(self) -> None:
        client = connect(self._redis_url)
        ledger = Ledger(client, self._jobs.namespace)
        while not self._stopping.is_set():
            ledger.run(calls.accept(self._jobs.submission(), backlog_limit=10_000))
            time.sleep(0.002)
        client.close()


@pytest.mark.parametrize("named", [False, True], ids=["all pods", "some pods"])
def test_against_workers_that_claim_all_the_time_no_busy_one_is_ever_marked(
    jobs: TimedJobs, any_redis_url: str, named: bool
) -> None:
    """Marks come and go at any moment. What is marked runs nothing, as long as it is marked; no job is lost."""
    names = [f"w{number}" for number in range(8)]
    crowd, dice, marks = Crowd(jobs, any_redis_url, names), random.Random(7), 0
    caught: list[tuple[str, bytes]] = []
    while (marks < 300 or len(crowd.done) < 100) and crowd.is_alive():
        pods = [f"pod-{name}" for name in dice.sample(names, 5)] if named else None
        marked = jobs.run(calls.drain(POOL, count=dice.randint(1, 8), pods=pods))
        marks += len(marked)
        busy_ones = jobs.redis.hgetall(jobs.key("busy"))
        caught += [(each.worker, job) for each in marked if (job := busy_ones.get(each.worker.encode()))]
        jobs.run(calls.drain(POOL, count=0))
    crowd.stop()
    assert (caught, crowd.lost) == ([], [])
    assert marks >= 300
    assert len(set(crowd.done)) == len(crowd.done) >= 100


# -- observe -----------------------------------------------------------------------------------------------------------


def test_an_unknown_pool_has_nothing(jobs: TimedJobs) -> None:
    assert jobs.run(calls.observe("unknown-pool")) == Reading()


def test_all_kinds_of_demand_are_read(jobs: TimedJobs) -> None:
    busy(jobs, "one")
    for _ in range(7):
        jobs.submit()
    reading = observe(jobs)
    assert (reading.waiting, reading.dispatched, reading.running) == (4, 3, 1)
    assert (reading.jobs, reading.arrivals) == (8, 8)


def test_a_retry_is_demand_when_it_is_due_soon(jobs: TimedJobs) -> None:
    jobs.retry(jobs.running(), delay_ms=60_000)
    assert observe(jobs).due_soon == 1
    assert observe(jobs, soon_ms=59_999).due_soon == 0


def test_the_oldest_is_the_oldest_of_any_priority(jobs: TimedJobs) -> None:
    assert observe(jobs).oldest_ms is None
    jobs.submit(priority=9)
    jobs.now += 1_000
    jobs.submit(priority=0)
    jobs.submit(priority=9)
    jobs.now += 500
    assert observe(jobs).oldest_ms == 1_500
    jobs.worker()  # now all three are dispatched or wait behind those
    assert observe(jobs).oldest_ms is not None


def test_workers_are_counted_by_state(jobs: TimedJobs) -> None:
    busy(jobs, "busy")
    worker(jobs, "done", WorkerState.BUSY)
    worker(jobs, "ready")
    worker(jobs, "starting", WorkerState.STARTING)
    worker(jobs, "leaving", WorkerState.DRAINING)
    worker(jobs, "faulty", WorkerState.FAULTY)
    reading = observe(jobs)
    assert (reading.idle, reading.busy, reading.starting, reading.draining, reading.faulty) == (2, 1, 1, 1, 1)
    drain(jobs, 3)
    reading = observe(jobs)
    assert (reading.marked, reading.idle, reading.busy, reading.starting, reading.faulty) == (3, 1, 1, 0, 0)
    assert reading.runs_nothing == 4


def test_a_silent_worker_is_not_counted(jobs: TimedJobs) -> None:
    worker(jobs, "one")
    jobs.now += calls.WORKER_TTL_MS + 1
    assert observe(jobs).idle == 0


def test_the_time_of_a_job_is_smoothed_over_completed_ones(jobs: TimedJobs) -> None:
    assert observe(jobs).service_ms is None
    for took, outcome in ((2_000, State.COMPLETED), (60_000, State.FAILED), (12_000, State.COMPLETED)):
        job_id = jobs.running()
        jobs.now += took
        jobs.finish(job_id, outcome=outcome)
    assert observe(jobs).service_ms == pytest.approx(3_000)


def test_a_retried_job_counts_from_its_last_start(jobs: TimedJobs) -> None:
    job_id = jobs.running()
    jobs.now += 50_000
    jobs.retry(job_id, delay_ms=0)
    jobs.claim(job_id, token="second")
    jobs.now += 4_000
    jobs.finish(job_id, token="second")
    assert observe(jobs).service_ms == pytest.approx(4_000)


def test_reading_changes_nothing(jobs: TimedJobs) -> None:
    busy(jobs, "one")
    jobs.submit()
    before = jobs.everything()
    observe(jobs)
    assert jobs.everything() == before


async def test_all_pools_are_read_in_one_round_trip(
    jobs: TimedJobs, ledger: AsyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = [f"pool-{number}" for number in range(50)]
    await reads.observe(ledger, pools)  # Redis knows the script now
    trips = 0
    ask = AsyncLedger._send

    async def counted(self: AsyncLedger, commands: Any) -> Any:
        nonlocal trips
        trips += 1
        return await ask(self, commands)

    monkeypatch.setattr(AsyncLedger, "_send", counted)
    jobs.submit()
    readings = await reads.observe(ledger, [*pools, POOL])
    assert trips == 1
    assert list(readings) == [*pools, POOL]
    reading = readings[POOL]
    assert isinstance(reading, Reading)
    assert reading.jobs == 1
    assert await reads.observe(ledger, []) == {}


async def test_without_redis_there_is_no_reading(namespace: str) -> None:
    client = connect_async("redis://127.0.0.1:1/0")
    with pytest.raises(LedgerUnavailable):
        await reads.observe(AsyncLedger(client, namespace), [POOL])
    await client.aclose()


# -- the decision log --------------------------------------------------------------------------------------------------


async def test_decisions_are_stored_in_order(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    assert await reads.decisions(ledger, POOL) == []
    for step in range(3):
        recorded = jobs.run(calls.append_decision(POOL, at=START_MS + step, entry=f'{{"at":{step}}}'))
        assert recorded is Recorded.RECORDED
    assert await reads.decisions(ledger, POOL) == ['{"at":0}', '{"at":1}', '{"at":2}']
    assert await reads.decisions(ledger, POOL, limit=2) == ['{"at":1}', '{"at":2}']


async def test_a_decision_is_recorded_once(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    call = calls.append_decision(POOL, at=START_MS, entry="first")
    jobs.run(call)
    before = jobs.everything()
    assert jobs.run(call) is Recorded.REPEATED
    assert jobs.run(calls.append_decision(POOL, at=START_MS - 1, entry="late")) is Recorded.REPEATED
    assert jobs.everything() == before


async def test_the_log_is_bounded_and_expires(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    for step in range(600):
        jobs.run(calls.append_decision(POOL, at=START_MS + step, entry=str(step), keep=100))
    kept = await reads.decisions(ledger, POOL)
    assert 100 <= len(kept) < 300
    assert kept[-1] == "599"
    assert jobs.redis.pttl(jobs.key("decisions", POOL)) > 0


def test_a_drained_worker_has_its_pod(jobs: TimedJobs) -> None:
    worker(jobs, "one")
    assert jobs.run(calls.drain(POOL, count=1, now=jobs.now)) == [Drained("one", "pod-one")]

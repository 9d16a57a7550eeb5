"""How long a tenant waits beside one that floods the pool, and how tenants share it by their weights.

The ledger is real, with its scripts in Redis; the workers and the clock are simulated, so that the figures depend on
the order of the jobs alone and are the same on every machine. One tenant submits 10,000 jobs. Later another submits
ten, several times: `fair_p95_vs_solo` is the 95th percentile of the time until they have finished, by that in an empty
pool.
`fair_weight_error` is the deviation of two tenants' shares from their weights of 3 to 1.

The command fails where a goal is missed. `--by-arrival` removes the fair step from the scripts: then it must fail.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

from darkroom.checks.snapshots import tag_of
from darkroom.jobs import State, new_job_id
from darkroom.ledger import calls, scripts
from darkroom.ledger.calls import Accepted, Submission, WorkerState
from darkroom.ledger.client import Ledger

from darkroom_loadtest.measurement.figures import Figure, Goal, percentile, report
from darkroom_loadtest.measurement.rig import BenchmarkFailed, Rig, run_benchmark

BENCH = "fairness"

POOL = "fair"
WORKERS = 4
SERVICE_MS = (500, 1500)
"""The shortest and the longest job; the durations are distributed evenly."""

HEARTBEAT_MS = 5_000
START_MS = 1_800_000_000_000

FLOOD = 10_000
FEW = 10
ROUNDS = 10
"""How often the other tenant comes in one run, so that the percentile is of a hundred jobs."""

BEFORE = 10
"""Jobs of the flood that finish before the other tenant comes: the workers are busy."""

WEIGHTS: Mapping[str, float] = {"heavy": 3.0, "light": 1.0}
COUNTED = 400
"""Jobs that start while both tenants have jobs that wait."""

MOST_VS_SOLO = 2.0
"""Two tenants of equal weight share the pool, so that each has half of it."""

MOST_WEIGHT_ERROR = 0.05

FAIR_STEP = b"  return class * CLASS + math.min(start + share, CLASS - 1)\n"
BY_ARRIVAL = b"  return class * CLASS + tonumber(redis.call('HGET', pool_key(pool), 'arrivals'))\n"
"""The step of the prelude that makes the order fair, and the order of arrival that replaces it."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.fairness", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="number of runs of each measurement (default: 5)")
    parser.add_argument("--flood", type=int, default=FLOOD, help=f"jobs of the flood (default: {FLOOD:,})")
    parser.add_argument("--by-arrival", action="store_true", help="remove the fair step from the scripts")
    options = parser.parse_args(arguments)
    missed: list[str] = []

    def measure(rig: Rig) -> None:
        missed.extend(_measure(rig, runs=options.runs, flood=options.flood))

    if options.by_arrival:
        with scripts_by_arrival():
            status = run_benchmark(measure)
    else:
        status = run_benchmark(measure)
    if missed:
        sys.stderr.write(f"missed: {', '.join(missed)}\n")
    return status or (1 if missed else 0)


@contextmanager
def scripts_by_arrival() -> Iterator[None]:
    """Replace the fair step of all scripts by the order of arrival."""
    texts = scripts.texts()
    if FAIR_STEP not in texts["accept"]:
        raise BenchmarkFailed("the prelude has no such fair step")
    replaced = {name: text.replace(FAIR_STEP, BY_ARRIVAL) for name, text in texts.items()}
    scripts.digest.cache_clear()
    with mock.patch.object(scripts, "texts", return_value=replaced):
        yield
    scripts.digest.cache_clear()


def _measure(rig: Rig, *, runs: int, flood: int) -> list[str]:
    """Measure, and report. Returns the figures whose goals are missed."""
    began = time.monotonic()
    solo: list[float] = []
    beside: list[float] = []
    errors: list[float] = []
    for seed in range(runs):
        solo.append(_few_p95_ms(_pool(rig, seed)))
        beside.append(_few_p95_ms(_pool(rig, seed), flood=flood))
        errors.append(_weight_error(_pool(rig, seed)))
    figures = [
        Figure.ratio("fair_p95_vs_solo", ours=beside, baseline=solo, goal=Goal(most=MOST_VS_SOLO)),
        Figure(name="fair_weight_error", unit="ratio", runs=errors, goal=Goal(most=MOST_WEIGHT_ERROR)),
    ]
    notes = [
        f"{WORKERS} simulated workers, jobs of {SERVICE_MS[0]} to {SERVICE_MS[1]} ms; the clock is simulated too",
        f"a flood of {flood:,} jobs, and {FEW} jobs of another tenant; weights of 3 to 1",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)
    return [figure.name for figure in figures if figure.goal is not None and not figure.goal.is_met(figure.value)]


def _few_p95_ms(pool: Pool, *, flood: int = 0) -> float:
    """The 95th percentile of the times from the submission of ten jobs to their ends, beside a flood if given."""
    pool.submit("flood", flood)
    times: list[int] = []
    for _ in range(ROUNDS):
        pool.run(partial(pool.has_ended_fewer_than, min(len(pool.ended) + BEFORE, flood)))
        came = pool.now
        few = pool.submit("few", FEW)
        pool.run(partial(pool.has_unfinished, few))
        times += [pool.ended[job_id] - came for job_id in few]
    return percentile(times, 95)


def _weight_error(pool: Pool) -> float:
    """How far the share of the heavy tenant's jobs among those that start is from its weight, relatively."""
    for tenant, weight in WEIGHTS.items():
        pool.submit(tenant, COUNTED, weight=weight)
    pool.run(lambda: sum(pool.started.values()) < COUNTED)
    expected = WEIGHTS["heavy"] / WEIGHTS["light"]
    return abs(pool.started["heavy"] / max(1, pool.started["light"]) / expected - 1)


def _pool(rig: Rig, seed: int) -> Pool:
    """An empty pool, in an empty Redis."""
    rig.redis.flushdb()
    return Pool(rig.ledger, rig.redis, random.Random(seed))


@dataclass
class Pool:
    """A pool with simulated workers, whose clock is `now` (ms).

    `started` counts started jobs by tenant; `ended` has the time at which each job ended.
    """

    ledger: Ledger
    redis: Any
    dice: random.Random
    now: int = START_MS
    started: Counter[str] = field(default_factory=Counter)
    ended: dict[str, int] = field(default_factory=dict)
    _busy: list[tuple[int, str, str]] = field(default_factory=list)
    _idle: list[str] = field(default_factory=lambda: [f"worker-{number}" for number in range(WORKERS)])
    _seen: int = 0

    def __post_init__(self) -> None:
        self.ledger.run(calls.announce_pool(POOL, models=[POOL], now=self.now))
        self._heartbeat()

    def submit(self, tenant: str, count: int, *, weight: float = 1.0) -> list[str]:
        """Accept so many jobs now; returns their ids."""
        found = []
        for number in range(count):
            job = Submission(
                job_id=new_job_id(self.now),
                tenant=tenant,
                model=POOL,
                pool=POOL,
                input={"prompt": "a lighthouse at dusk", "seed": number},
                fields={},
                run_timeout=60,
                weight=weight,
            )
            answer = self.ledger.run(calls.accept(job, backlog_limit=10 * FLOOD, backlog_bytes=2**40, now=self.now))
            if not isinstance(answer, Accepted):
                raise BenchmarkFailed(f"a job was not accepted: {answer}")
            found.append(answer.job_id)
        return found

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Let the workers run jobs while `goes_on`."""
        while goes_on():
            self._start_jobs()
            if not self._busy:
                raise BenchmarkFailed("no job is left")
            self.now, worker, job_id = heapq.heappop(self._busy)
            if self.now - self._seen > HEARTBEAT_MS:
                self._heartbeat()
            finish = calls.finish(
                job_id, token=f"of-{job_id}", outcome=State.COMPLETED, data={"artifacts": []}, now=self.now
            )
            self.ledger.run(finish)
            self.ended[job_id] = self.now
            self._idle.append(worker)

    def has_ended_fewer_than(self, count: int) -> bool:
        return len(self.ended) < count

    def has_unfinished(self, job_ids: Sequence[str]) -> bool:
        return any(job_id not in self.ended for job_id in job_ids)

    def _start_jobs(self) -> None:
        """Each idle worker receives a message, as kombu does, and claims its job."""
        while self._idle and (job_id := self._receive()) is not None:
            worker = self._idle.pop(0)
            claim = self.ledger.run(calls.claim(job_id, token=f"of-{job_id}", worker=worker, now=self.now))
            if claim.attempt is None:
                raise BenchmarkFailed(f"the message of job {job_id} was dropped: {claim.dropped}")
            self.started[claim.tenant] += 1
            heapq.heappush(self._busy, (self.now + self.dice.randint(*SERVICE_MS), worker, job_id))

    def _receive(self) -> str | None:
        message = self.redis.rpop(self.ledger.keys.queue(POOL))
        return None if message is None else tag_of(message).rpartition(":")[0]

    def _heartbeat(self) -> None:
        self._seen = self.now
        for number in range(WORKERS):
            worker, state = f"worker-{number}", WorkerState.READY
            self.ledger.run(
                calls.register_worker(worker, pool=POOL, state=state, pod=worker, models=[POOL], now=self.now)
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

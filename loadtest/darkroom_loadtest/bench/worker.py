"""The overhead of a worker over the engine's own time.

Two figures. The throughput with an instant engine, compared with an empty Celery task: a backlog is queued while the
worker is stopped, then the worker resumes, and jobs are counted from outside after a warm-up. And the worker's time
around an engine of three seconds, from the end of one job to the end of the next.

Artifacts are stored in memory if the system has a file system for that, to measure the worker and no disk.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from tempfile import TemporaryDirectory
from typing import Any

from baselines import task
from darkroom.cloudevents.event import REQUESTED
from darkroom.errors import DarkroomError
from darkroom.jobs import State, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import Submission
from darkroom.ledger.keys import Keys
from darkroom_cli.local.processes import Process

from darkroom_loadtest.measurement.figures import Figure, Goal, report
from darkroom_loadtest.measurement.rig import NAMESPACE, BenchmarkFailed, Rig, run_benchmark, signal_group

BENCH = "worker"

POOL = "instant"

TIMEOUT_S = 60.0
"""Timeout of a backlog; on two busy cores it takes a few seconds."""

POLL_S = 0.01

WARM_UP = 0.1
"""Share of a backlog before the measurement, which opens connections and fills the list."""

MEMORY = Path("/dev/shm")  # noqa: S108 - the folder in it has a unique name

ENGINE_S = 3.0
ENGINE_STEPS = 30
"""The steps of a typical image; each is a call to the ledger."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-worker", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per worker (default: 5)")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs per run (default: 1000)")
    parser.add_argument(
        "--engine-seconds", type=float, default=ENGINE_S, help=f"duration of the slow engine (default: {ENGINE_S:g})"
    )
    options = parser.parse_args(arguments)
    return run_benchmark(
        lambda rig: measure(rig, runs=options.runs, jobs=options.jobs, engine_s=options.engine_seconds)
    )


def measure(rig: Rig, *, runs: int, jobs: int, engine_s: float) -> None:
    """Run all measurements and write the report. `engine_s` is the duration of the slow engine in seconds."""
    began = time.monotonic()
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else rig.folder, prefix="darkroom-bench-") as store:
        ours = rig.start_worker(POOL, own={"DARKROOM_STORE": Path(store).as_uri()})
        try:
            figures = _figures(rig, ours, runs=runs, jobs=jobs, engine_s=engine_s)
        finally:
            rig.stop(ours)  # writes nothing into the folder afterwards
    notes = [
        "worker_overhead_vs_celery_task: our jobs per second as a share of Celery's tasks.",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _figures(rig: Rig, ours: Process, *, runs: int, jobs: int, engine_s: float) -> list[Figure]:
    celery = rig.start("celery", "baselines.task")
    run_task = task.make_app(rig.redis_url, keeps_results=False).tasks[task.run.name]
    per_s: list[float] = []
    celery_per_s: list[float] = []
    for run in range(1, runs + 1):
        with paused(ours):
            for number in range(jobs):
                submit(rig, seed=number)
        per_s.append(_rate(lambda: _left(rig), jobs))
        with paused(celery):
            for number in range(jobs):
                run_task.delay(_event(new_job_id(_now_ms()), {"prompt": "a lighthouse at dusk", "seed": number}))
        celery_per_s.append(_rate(lambda: _left_of_celery(rig), jobs))
        print(f"run {run}: {per_s[-1]:.0f} jobs/s, {celery_per_s[-1]:.0f} Celery tasks/s", flush=True)
    print(f"{runs + 1} jobs of an engine that takes {engine_s:g} s", flush=True)
    overhead = [100 * (cycle - engine_s) / engine_s for cycle in _cycles_s(rig, runs + 1, engine_s)]
    return [
        Figure.ratio("worker_overhead_vs_celery_task", ours=per_s, baseline=celery_per_s, goal=Goal(least=0.65)),
        Figure(name="engine_overhead_percent", unit="%", runs=overhead, goal=Goal(most=2)),
    ]


@contextmanager
def paused(process: Process) -> Iterator[None]:
    """Stop a worker and its child (SIGSTOP) for the block."""
    signal_group(process, SIGSTOP)
    try:
        yield
    finally:
        signal_group(process, SIGCONT)


def _rate(left: Callable[[], int], jobs: int) -> float:
    """Jobs per second of a backlog after the worker resumed. `left` returns the number of unfinished jobs."""
    deadline = time.monotonic() + TIMEOUT_S
    first_at, first_left = 0.0, jobs
    while True:
        now, still = time.perf_counter(), left()
        if not first_at and still <= jobs * (1 - WARM_UP):
            first_at, first_left = now, still
        if still == 0:
            return first_left / (now - first_at)
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{still} of {jobs} jobs were not done within {TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def _left(rig: Rig) -> int:
    """The number of unfinished jobs of darkroom."""
    pipeline = rig.redis.pipeline(transaction=False)
    keys = Keys(NAMESPACE)
    for key in (keys.waiting, keys.dispatched, keys.running):
        pipeline.zcard(key(POOL))
    return sum(pipeline.execute())


def _left_of_celery(rig: Rig) -> int:
    """The number of Celery's messages that are waiting or not acknowledged."""
    pipeline = rig.redis.pipeline(transaction=False)
    pipeline.llen(task.QUEUE)
    pipeline.hlen("unacked")
    return sum(pipeline.execute())


def _cycles_s(rig: Rig, jobs: int, engine_s: float) -> list[float]:
    """Seconds from each job's end to the next one's, by Redis' clock; the first job is not counted."""
    parameters = {"seconds": engine_s, "steps": ENGINE_STEPS}
    job_ids = [submit(rig, seed=number, **parameters) for number in range(jobs)]
    deadline = time.monotonic() + TIMEOUT_S + jobs * engine_s
    while _left(rig):
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{jobs} jobs of {engine_s:g} s were not done in time")
        time.sleep(POLL_S)
    ends: list[int] = []
    for job_id in job_ids:
        record = rig.ledger.job(job_id)
        if record is None or record.ended is None or record.state is not State.COMPLETED:
            raise BenchmarkFailed(f"a job did not complete: {record}")
        ends.append(record.ended)
    return [(later - earlier) / 1000 for earlier, later in pairwise(sorted(ends))]


def submit(rig: Rig, **parameters: object) -> str:
    """Accept a job as submit does; returns its id."""
    job_id = new_job_id(_now_ms())
    job_input = {"prompt": "a lighthouse at dusk", **parameters}
    job = Submission(
        job_id=job_id,
        tenant="default",
        model=POOL,
        pool=POOL,
        input=job_input,
        fields={},
        run_timeout=60,
    )
    accepted = rig.ledger.run(calls.accept(job, backlog_limit=1_000_000))
    if isinstance(accepted, DarkroomError):
        raise BenchmarkFailed(f"the ledger refused a job: {accepted}")
    return job_id


def _event(job_id: str, job_input: dict[str, Any]) -> dict[str, Any]:
    """The argument of the baseline's task."""
    return {
        "specversion": "1.0",
        "id": job_id,
        "source": "/bench",
        "type": REQUESTED,
        "subject": job_id,
        "datacontenttype": "application/json",
        "data": {"model": POOL, "input": job_input},
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

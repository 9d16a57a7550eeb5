"""What a worker adds to the engine's own time.

Two figures. Jobs a second of an engine that takes no time, against a Celery task that does nothing: a backlog is laid
out while the worker stands still, then it is let go, and what it does is counted from outside, once it has come into
its stride. And the worker's time around an engine of three seconds, from the end of one job to the end of the next.

Pictures are kept in memory where the system has a file system there: it is the worker that is measured, and no disk.
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

from darkroom_loadtest.bench.figures import Figure, Goal, report
from darkroom_loadtest.bench.rig import NAMESPACE, BenchmarkFailed, Rig, run_benchmark, signal_group

BENCH = "worker"

POOL = "instant"

LIMIT_S = 60.0
"""For a backlog to be done; on two busy cores it takes a few seconds."""

POLL_S = 0.01

STRIDE = 0.1
"""This share of a backlog is done before the count begins: connections are open then, and the list is full."""

MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it is made under a name of its own

ENGINE_S = 3.0
ENGINE_STEPS = 30
"""As an image of 30 denoising steps: each is a call to the ledger."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-worker", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each side (default 5)")
    parser.add_argument("--jobs", type=int, default=1000, help="in one run (default 1000)")
    parser.add_argument("--engine-seconds", type=float, default=ENGINE_S, help=f"of the slow engine ({ENGINE_S:g})")
    options = parser.parse_args(arguments)
    return run_benchmark(
        lambda rig: measure(rig, runs=options.runs, jobs=options.jobs, engine_s=options.engine_seconds)
    )


def measure(rig: Rig, *, runs: int, jobs: int, engine_s: float) -> None:
    """Everything, and the report of it. `engine_s` is how long the slow engine takes, in seconds."""
    began = time.monotonic()
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else rig.folder, prefix="darkroom-bench-") as store:
        ours = rig.start_worker(POOL, own={"DARKROOM_STORE": Path(store).as_uri()})
        try:
            figures = _figures(rig, ours, runs=runs, jobs=jobs, engine_s=engine_s)
        finally:
            rig.stop(ours)  # however this ends, it writes into the folder no more
    notes = [
        "worker_overhead_vs_celery_task: our jobs a second as a share of Celery's tasks.",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _figures(rig: Rig, ours: Process, *, runs: int, jobs: int, engine_s: float) -> list[Figure]:
    celery = rig.start("celery", "baselines.task")
    run_task = task.make_app(rig.redis_url, keeps_results=False).tasks[task.run.name]
    per_s: list[float] = []
    celery_per_s: list[float] = []
    for run in range(1, runs + 1):
        with standing_still(ours):
            for number in range(jobs):
                submit(rig, seed=number)
        per_s.append(_rate(lambda: _left(rig), jobs))
        with standing_still(celery):
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
def standing_still(process: Process) -> Iterator[None]:
    """A worker, with its child, does nothing while the block runs."""
    signal_group(process, SIGSTOP)
    try:
        yield
    finally:
        signal_group(process, SIGCONT)


def _rate(left: Callable[[], int], jobs: int) -> float:
    """Jobs a second, of a backlog that a worker has just been let at. `left` tells how many are not done."""
    deadline = time.monotonic() + LIMIT_S
    first_at, first_left = 0.0, jobs
    while True:
        now, still = time.perf_counter(), left()
        if not first_at and still <= jobs * (1 - STRIDE):
            first_at, first_left = now, still
        if still == 0:
            return first_left / (now - first_at)
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{still} of {jobs} jobs were not done within {LIMIT_S:g} s")
        time.sleep(POLL_S)


def _left(rig: Rig) -> int:
    """Jobs of ours that have not ended."""
    pipeline = rig.redis.pipeline(transaction=False)
    keys = Keys(NAMESPACE)
    for key in (keys.waiting, keys.dispatched, keys.running):
        pipeline.zcard(key(POOL))
    return sum(pipeline.execute())


def _left_of_celery(rig: Rig) -> int:
    """Celery's messages that are waiting or not acknowledged."""
    pipeline = rig.redis.pipeline(transaction=False)
    pipeline.llen(task.QUEUE)
    pipeline.hlen("unacked")
    return sum(pipeline.execute())


def _cycles_s(rig: Rig, jobs: int, engine_s: float) -> list[float]:
    """Seconds from each job's end to the next one's, by Redis' clock; the first begins a queue and is not counted."""
    parameters = {"seconds": engine_s, "steps": ENGINE_STEPS}
    job_ids = [submit(rig, seed=number, **parameters) for number in range(jobs)]
    deadline = time.monotonic() + LIMIT_S + jobs * engine_s
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
    """Accept a job as submit does. Answers its id."""
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

"""How soon a job starts, and how soon its end is told, when nothing else is to be done.

All parts run, as on one machine: the functions behind one port, the courier, a worker with an engine that takes no
time. A job is submitted and its socket opened as soon as its id is there; the time counts from before the submission.
The baseline calls `.delay` of a Celery task that does nothing, and waits for its result on the Redis backend.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from baselines import task
from darkroom.ledger.keys import Keys

from darkroom_loadtest.bench.figures import Figure, Goal, percentile, report
from darkroom_loadtest.bench.rig import NAMESPACE, BenchmarkFailed, Rig, run_benchmark
from darkroom_loadtest.load.caller import Caller

BENCH = "latency"

POOL = "instant"
PATH = "/instant"
BODY = '{"prompt": "a lighthouse at dusk", "seed": 7}'

PAUSE_S = 0.015
"""Between two jobs: by then the courier has posted the end of the last, and everybody is idle again."""

WARM_UP = 20
"""Jobs before the first that counts: scripts are loaded, connections opened."""

LIMIT_S = 30.0
"""How long anything may take that takes milliseconds."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-latency", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each side (default 5)")
    parser.add_argument("--jobs", type=int, default=200, help="in one run (default 200)")
    options = parser.parse_args(arguments)
    return run_benchmark(lambda rig: measure(rig, runs=options.runs, jobs=options.jobs))


def measure(rig: Rig, *, runs: int, jobs: int) -> None:
    """Everything, and the report of it."""
    began = time.monotonic()
    functions = rig.serve("functions", "darkroom_functions.serve", "all")
    rig.start("courier", "darkroom_courier", own={"K_SINK": f"{functions.url}/events"})
    rig.start_worker(POOL)
    rig.start("celery", "baselines.task", "--results")
    celery = task.make_app(rig.redis_url, keeps_results=True).tasks[task.run.name]
    start_p50: list[float] = []
    ours_p50: list[float] = []
    ours_p99: list[float] = []
    celery_p50: list[float] = []
    celery_p99: list[float] = []
    with Caller(functions.port) as caller, rig.redis.pubsub(ignore_subscribe_messages=True) as live:
        live.psubscribe(Keys(NAMESPACE).live_channel("*"))
        ways: list[Callable[[], float]] = [
            lambda: _until_started(caller, live),
            lambda: _until_told(caller),
            lambda: _until_result(celery),
        ]
        for way in ways:
            _times_ms(way, WARM_UP)
        for run in range(1, runs + 1):
            started, told, result = (_times_ms(way, jobs) for way in ways)
            start_p50.append(percentile(started, 50))
            ours_p50.append(percentile(told, 50))
            ours_p99.append(percentile(told, 99))
            celery_p50.append(percentile(result, 50))
            celery_p99.append(percentile(result, 99))
            print(
                f"run {run}: started {start_p50[-1]:.1f} ms, told {ours_p50[-1]:.1f} ms (99 %: {ours_p99[-1]:.1f}), "
                f"Celery {celery_p50[-1]:.1f} ms (99 %: {celery_p99[-1]:.1f})",
                flush=True,
            )
    figures = [
        Figure(name="latency_start_p50_ms", unit="ms", runs=start_p50),
        Figure(name="latency_ws_p50_ms", unit="ms", runs=ours_p50, goal=Goal(most=10)),
        Figure(name="latency_ws_p99_ms", unit="ms", runs=ours_p99, goal=Goal(most=30)),
        Figure.ratio("latency_vs_celery", ours=ours_p50, baseline=celery_p50),
        Figure(name="celery_p99_ms", unit="ms", runs=celery_p99),
    ]
    notes = [
        "latency_vs_celery: our median to the message `completed` on a socket, over HTTP, as a multiple of Celery's to",
        "the result, from the process that called. Less is better.",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _times_ms(way: Callable[[], float], jobs: int) -> list[float]:
    """What each of so many jobs took, one after another, with a pause before each."""
    times: list[float] = []
    for _ in range(jobs):
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        times.append(1000 * (way() - began))
    return times


def _until_started(caller: Caller, live: Any) -> float:
    """When the ledger said that the job runs; returns after its end. `live` hears every entry of every job's log."""
    _drain(live)
    job_id = caller.submit(PATH, BODY)
    started = 0.0
    while True:
        message = live.get_message(timeout=LIMIT_S)
        now = time.perf_counter()
        if message is None or not message["channel"].endswith(job_id.encode()):
            raise BenchmarkFailed(f"job {job_id} did not end within {LIMIT_S} s, or another did")
        event = message["data"].split(b"\n", 2)[1]
        if event == b"started":
            started = now
        elif event == b"completed":
            return started


def _drain(live: Any) -> None:
    """Forget what was said of earlier jobs."""
    while live.get_message() is not None:
        pass


def _until_told(caller: Caller) -> float:
    """When the socket said that the job is completed."""
    told = caller.await_end(caller.submit(PATH, BODY))
    if told.status != "completed":
        raise BenchmarkFailed(f"a job was {told.status}")
    return told.at


def _until_result(celery: Any) -> float:
    """When Celery gave the result."""
    celery.delay(BODY).get(timeout=LIMIT_S)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

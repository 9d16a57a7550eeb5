"""The latency until a job starts, and until a client receives its terminal message, on an idle system.

All parts run as on one machine: the functions behind one port, the courier, and a worker with an instant engine. A job
is submitted and its socket opened as soon as the id is known; the time counts from before the submission. The baseline
calls `.delay` of an empty Celery task and waits for its result on the Redis backend.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from baselines import task
from darkroom.ledger.keys import Keys

from darkroom_loadtest.clients.jobs import JobClient
from darkroom_loadtest.measurement.figures import Figure, Goal, percentile, report
from darkroom_loadtest.measurement.rig import NAMESPACE, BenchmarkFailed, Rig, run_benchmark

BENCH = "latency"

POOL = "instant"
PATH = "/instant"
BODY = '{"prompt": "a lighthouse at dusk", "seed": 7}'

PAUSE_S = 0.015
"""Pause between two jobs: by then the courier has posted the last event, and all processes are idle."""

WARM_UP = 20
"""Jobs before the measurement, which load scripts and open connections."""

TIMEOUT_S = 30.0
"""Timeout of operations that take milliseconds."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-latency", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per server (default: 5)")
    parser.add_argument("--jobs", type=int, default=200, help="jobs per run (default: 200)")
    options = parser.parse_args(arguments)
    return run_benchmark(lambda rig: measure(rig, runs=options.runs, jobs=options.jobs))


def measure(rig: Rig, *, runs: int, jobs: int) -> None:
    """Run all measurements and write the report."""
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
    with JobClient(functions.port) as client, rig.redis.pubsub(ignore_subscribe_messages=True) as live:
        live.psubscribe(Keys(NAMESPACE).live_channel("*"))
        ways: list[Callable[[], float]] = [
            lambda: _until_started(client, live),
            lambda: _until_notified(client),
            lambda: _until_result(celery),
        ]
        for way in ways:
            _times_ms(way, WARM_UP)
        for run in range(1, runs + 1):
            started, notified, result = (_times_ms(way, jobs) for way in ways)
            start_p50.append(percentile(started, 50))
            ours_p50.append(percentile(notified, 50))
            ours_p99.append(percentile(notified, 99))
            celery_p50.append(percentile(result, 50))
            celery_p99.append(percentile(result, 99))
            print(
                f"run {run}: started {start_p50[-1]:.1f} ms, notified {ours_p50[-1]:.1f} ms "
                f"(99 %: {ours_p99[-1]:.1f}), "
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
        "the result, at the calling process. Less is better.",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _times_ms(way: Callable[[], float], jobs: int) -> list[float]:
    """The latencies of that many sequential jobs, with a pause before each."""
    times: list[float] = []
    for _ in range(jobs):
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        times.append(1000 * (way() - began))
    return times


def _until_started(client: JobClient, live: Any) -> float:
    """The time of the log entry `started`; returns after the job's end. `live` receives all entries of all logs."""
    _drain(live)
    job_id = client.submit(PATH, BODY)
    started = 0.0
    while True:
        message = live.get_message(timeout=TIMEOUT_S)
        now = time.perf_counter()
        if message is None or not message["channel"].endswith(job_id.encode()):
            raise BenchmarkFailed(f"job {job_id} did not finish within {TIMEOUT_S} s, or another job did")
        event = message["data"].split(b"\n", 2)[1]
        if event == b"started":
            started = now
        elif event == b"completed":
            return started


def _drain(live: Any) -> None:
    """Drop the messages of earlier jobs."""
    while live.get_message() is not None:
        pass


def _until_notified(client: JobClient) -> float:
    """The arrival time of the message `completed`."""
    last = client.await_end(client.submit(PATH, BODY))
    if last.status != "completed":
        raise BenchmarkFailed(f"a job was {last.status}")
    return last.at


def _until_result(celery: Any) -> float:
    """The time of Celery's result."""
    celery.delay(BODY).get(timeout=TIMEOUT_S)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

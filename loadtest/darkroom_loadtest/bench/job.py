"""The costs of one job: Redis' memory, calls and time, and the processor time of each process.

Jobs pass through all parts: from an HTTP request through a worker with an instant engine to the sink, and into the
history. They are submitted while the worker is stopped, then the worker resumes. `darkroom_loadtest.profiling.capacity`
uses these costs. Bytes and calls are the same on all machines; times are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from darkroom.ledger import calls, scripts
from darkroom.ledger.calls import WorkerState
from darkroom.ledger.keys import Keys
from darkroom_cli.local.processes import Process

from darkroom_loadtest.bench.worker import paused
from darkroom_loadtest.clients.jobs import JobClient
from darkroom_loadtest.measurement.figures import Figure, Goal, report
from darkroom_loadtest.measurement.rig import NAMESPACE, BenchmarkFailed, Rig, processor_s, run_benchmark
from darkroom_loadtest.measurement.samples import tree_of

BENCH = "job"

POOL = "instant"

STEPS = 30
"""The steps of a job with steps, as of a typical image; each is a call of the ledger."""

COUNTED = 50
"""Jobs whose calls are counted."""

WORKERS = 200
"""Registered workers without a process, to measure the cost of a worker for `observe`."""

OBSERVATIONS = 50

PROMPT = "a lighthouse at dusk, long exposure, the sea like fog"

EMOJI_PROMPT = "".join(chr(0x1F600 + number % 80) for number in range(4_000))
"""The maximum length of any model: 16,000 bytes in UTF-8, 48,000 in JSON's escapes."""

EMOJI_JOBS = 500
"""The number of jobs in every run, enough to make Redis' constant memory negligible."""

MOST_EMOJI_BYTES = 20 * 1024
"""The input once, in UTF-8, and the rest of the record, the log and the queue."""

OF_EACH_JOB = ("accept", "claim", "progress", "finish", "mark_applied", "mark_archived")
"""The scripts that run once per job or step, without those that lease many jobs at once."""

SLOWLOG_LENGTH = 1_000_000
"""Entries of Redis' slow log: more than any count."""

STEADY_S = 0.5
LIMIT_S = 120.0
POLL_S = 0.02


@dataclass
class JobCosts:
    """The costs by run. Processor times are in microseconds per job, by process."""

    pending_bytes: list[float] = field(default_factory=list)
    ended_bytes: list[float] = field(default_factory=list)
    record_bytes: list[float] = field(default_factory=list)
    log_bytes: list[float] = field(default_factory=list)
    file_bytes: list[float] = field(default_factory=list)
    submit_us: dict[str, list[float]] = field(default_factory=dict)
    run_us: dict[str, list[float]] = field(default_factory=dict)
    step_us: list[float] = field(default_factory=list)
    step_file_bytes: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class System:
    """The running processes by name. `jobs` is the number per run."""

    rig: Rig
    processes: Mapping[str, Process]
    client: JobClient
    jobs: int

    def processor_us(self) -> dict[str, float]:
        """The processor time of each process with its children."""
        return {
            name: 1e6 * sum(processor_s(pid) for pid in tree_of({name: process.pid}).values())
            for name, process in self.processes.items()
        }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-job", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per measurement (default: 5)")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs per run (default: 1000)")
    options = parser.parse_args(arguments)
    return run_benchmark(lambda rig: measure(rig, runs=options.runs, jobs=options.jobs))


def measure(rig: Rig, *, runs: int, jobs: int) -> None:
    """Run all measurements and write the report."""
    began = time.monotonic()
    functions = rig.serve("functions", "darkroom_functions.serve", "all")
    processes = {
        "redis": rig.redis_process,
        "functions": functions.process,
        "courier": rig.start("courier", "darkroom_courier", own={"K_SINK": f"{functions.url}/events"}),
        "worker": rig.start_worker(POOL),
    }
    costs = JobCosts()
    with JobClient(functions.port) as client:
        system = System(rig, processes, client, jobs)
        _do(system, COUNTED, steps=1)
        counts, with_steps = (_calls(system, steps=steps) for steps in (1, STEPS))
        for run in range(1, runs + 1):
            _run(system, costs)
            print(f"run {run}: Redis takes {costs.run_us['redis'][-1]:.0f} µs to run a job", flush=True)
        emoji_bytes = [_emoji_bytes(system) for _ in range(runs)]
    connections = _connections_of(rig, processes["worker"])
    observe_us = [_observe_us(rig) for _ in range(runs)]
    figures = [
        Figure(name="job_pending_bytes", unit="B", runs=costs.pending_bytes),
        Figure(name="redis_bytes_waiting_4000_emoji", unit="B", runs=emoji_bytes, goal=Goal(most=MOST_EMOJI_BYTES)),
        Figure(name="job_ended_bytes", unit="B", runs=costs.ended_bytes),
        Figure(name="job_record_bytes", unit="B", runs=costs.record_bytes),
        Figure(name="job_log_bytes", unit="B", runs=costs.log_bytes),
        Figure(name="job_file_bytes", unit="B", runs=costs.file_bytes),
        Figure(name="job_calls", unit="calls", runs=[sum(counts[name] for name in OF_EACH_JOB) / COUNTED]),
        Figure(
            name="step_calls",
            unit="calls",
            runs=[(with_steps["progress"] - counts["progress"]) / (STEPS - 1) / COUNTED],
        ),
        *(Figure(name=f"submit_{name}_us", unit="µs", runs=costs.submit_us[name]) for name in ("functions", "redis")),
        *(Figure(name=f"run_{name}_us", unit="µs", runs=costs.run_us[name]) for name in processes),
        Figure(name="step_redis_us", unit="µs", runs=costs.step_us),
        Figure(name="step_file_bytes", unit="B", runs=costs.step_file_bytes),
        Figure(name="observe_worker_us", unit="µs", runs=observe_us),
        Figure(name="worker_connections", unit="", runs=[connections]),
    ]
    notes = [
        "calls of a job: " + ", ".join(f"{name} {counts[name] / COUNTED:.2f}" for name in sorted(counts)),
        "submit_…: from the request to the 202; run_…: from the worker's start to the end in the history",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _run(system: System, costs: JobCosts) -> None:
    """One run of the measurements with a backlog."""
    rig, jobs = system.rig, system.jobs
    base, base_file, before = _used(rig), _file(rig), system.processor_us()
    with paused(system.processes["worker"]):
        job_ids = [_submit(system, steps=1) for _ in range(jobs)]
        submitted = system.processor_us()
        costs.pending_bytes.append((_used(rig) - base) / jobs)
    _await_all(rig, jobs)
    ended = system.processor_us()
    costs.ended_bytes.append((_used(rig) - base) / jobs)
    costs.file_bytes.append((_file(rig) - base_file) / jobs)
    costs.record_bytes.append(_bytes_of(rig, Keys(NAMESPACE).job, job_ids))
    costs.log_bytes.append(_bytes_of(rig, Keys(NAMESPACE).log, job_ids))
    for name in system.processes:
        costs.submit_us.setdefault(name, []).append((submitted[name] - before[name]) / jobs)
        costs.run_us.setdefault(name, []).append((ended[name] - submitted[name]) / jobs)
    fewer, base_file = max(1, jobs // 5), _file(rig)
    with paused(system.processes["worker"]):
        for _ in range(fewer):
            _submit(system, steps=STEPS)
        submitted = system.processor_us()
    _await_all(rig, fewer)
    with_steps_us = (system.processor_us()["redis"] - submitted["redis"]) / fewer
    costs.step_us.append((with_steps_us - costs.run_us["redis"][-1]) / (STEPS - 1))
    costs.step_file_bytes.append(((_file(rig) - base_file) / fewer - costs.file_bytes[-1]) / (STEPS - 1))


def _emoji_bytes(system: System) -> float:
    """Redis' memory for a waiting job with the longest prompt, in 4-byte characters."""
    base = _used(system.rig)
    with paused(system.processes["worker"]):
        for _ in range(EMOJI_JOBS):
            _submit(system, steps=1, prompt=EMOJI_PROMPT)
        used = _used(system.rig) - base
    _await_all(system.rig, EMOJI_JOBS)
    return used / EMOJI_JOBS


def _do(system: System, jobs: int, *, steps: int) -> None:
    """Run that many jobs and wait for them."""
    for _ in range(jobs):
        _submit(system, steps=steps)
    _await_all(system.rig, jobs)


def _submit(system: System, *, steps: int, prompt: str = PROMPT) -> str:
    parameters = {"prompt": prompt, "seed": 7, "steps": steps}
    return system.client.submit(f"/{POOL}", json.dumps({"input": parameters}))


def _await_all(rig: Rig, jobs: int) -> None:
    """Wait until all jobs have finished, are applied, and are in the history."""
    deadline = time.monotonic() + LIMIT_S + jobs / 10
    names = Keys(NAMESPACE)
    keys = [names.waiting(POOL), names.dispatched(POOL), names.running(POOL), names.outbox, names.history]
    while True:
        pipeline = rig.redis.pipeline(transaction=False)
        for key in keys:
            pipeline.zcard(key)
        left = pipeline.execute()
        if not any(left):
            return
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{jobs} jobs have not finished in time: {dict(zip(keys, left, strict=True))}")
        time.sleep(POLL_S)


def _calls(system: System, *, steps: int) -> Counter[str]:
    """The number of calls of each script for COUNTED jobs, by Redis' slow log."""
    redis = system.rig.redis
    names = {hashlib.sha1(text, usedforsecurity=False).hexdigest(): name for name, text in scripts.texts().items()}
    redis.config_set("slowlog-max-len", SLOWLOG_LENGTH)
    redis.config_set("slowlog-log-slower-than", 0)
    _do(system, COUNTED, steps=steps)
    redis.config_set("slowlog-log-slower-than", -1)
    commands = [entry["command"].split(b" ", 2) for entry in redis.slowlog_get(SLOWLOG_LENGTH)]
    redis.slowlog_reset()
    return Counter(names[words[1].decode()] for words in commands if words[0].upper() == b"EVALSHA")


def _connections_of(rig: Rig, worker: Process) -> float:
    """The number of a worker's connections to Redis, by the difference without it."""
    with_it = _connections(rig)
    rig.stop(worker)
    return float(with_it - _connections(rig))


def _connections(rig: Rig) -> int:
    """The number of Redis' connections once it is stable: Redis notices a closed connection late."""
    last = -1
    while (now := int(rig.redis.info("clients")["connected_clients"])) != last:
        last = now
        time.sleep(STEADY_S)
    return now


def _observe_us(rig: Rig) -> float:
    """Redis' time that each worker of a pool adds to `observe`."""
    pool = "observed"
    rig.ledger.run(calls.announce_pool(pool, models=[pool]))
    without = _observed_us(rig, pool)
    for number in range(WORKERS):
        name = f"worker-{number}"
        rig.ledger.run(calls.register_worker(name, pool=pool, state=WorkerState.READY, pod=name, models=[pool]))
    with_them = _observed_us(rig, pool)
    for number in range(WORKERS):
        rig.ledger.run(
            calls.register_worker(f"worker-{number}", pool=pool, state=WorkerState.GONE, pod="", models=[pool])
        )
    return (with_them - without) / WORKERS


def _observed_us(rig: Rig, pool: str) -> float:
    rig.redis.config_resetstat()
    for _ in range(OBSERVATIONS):
        rig.ledger.run(calls.observe(pool))
    return float(rig.redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])


def _bytes_of(rig: Rig, key: Callable[[str], str], job_ids: Sequence[str]) -> float:
    """The mean memory of one kind of key per job."""
    return float(mean(rig.redis.memory_usage(key(job), samples=0) for job in job_ids))


def _used(rig: Rig) -> int:
    return int(rig.redis.info("memory")["used_memory"])


def _file(rig: Rig) -> int:
    """The size of the append-only file."""
    return int(rig.redis.info("persistence")["aof_current_size"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

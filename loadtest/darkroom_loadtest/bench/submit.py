"""The throughput of submissions of one function process, and their latency at an ordinary rate.

The same request, `POST /flux`, goes to the submit function, to one that requires keys, to a server that calls Celery
directly (`baselines.seed_submit`) and to a bare server with one write to Redis (`baselines.bare_submit`), in turn. The
measured process has its own core; Redis and the generator share the others. `submit_keys_vs_open` compares submissions
per second of the process' processor time, and is independent of other load. `verify_us` is the time of one verification
of a key (`verification.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from darkroom.access.credentials import Credential
from darkroom.ledger import calls

from darkroom_loadtest.clients.generator import KEY, RequestPlan, RequestResult
from darkroom_loadtest.measurement.figures import Figure, Goal, report
from darkroom_loadtest.measurement.rig import (
    NAMESPACE,
    SHOWN_CHARS,
    BenchmarkFailed,
    Cores,
    FunctionServer,
    Rig,
    on_cores,
    processor_s,
    run_benchmark,
)

BENCH = "submit"

BODY = json.dumps(
    {"input": {"prompt": "a lighthouse at dusk, long exposure, the sea like fog", "seed": 7, "size": "832x1216"}}
)

CONNECTIONS = 32
"""The number of the process' connections to Redis, so that no request waits for one."""

RATE = 200
"""Requests per second of the open load."""

RATE_CONNECTIONS = 64

RUN_TIME_S = 7.0
"""Maximum duration of a run: five runs of three servers stay below three minutes on a slow machine too."""

VERIFICATIONS = 20_000
"""Verifications of a run: some tenths of a second."""

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""The resolution of processor times."""

BUSY = 0.9
"""Below this share of its core the measured process was waiting, and the figure is not its own."""


@dataclass
class SubmitTarget:
    """A measured server with its values by run."""

    name: str
    server: FunctionServer
    key: Credential | None = None
    per_s: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)
    per_processor_s: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    redis_busy: list[float] = field(default_factory=list)
    generator_busy: list[float] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-submit", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per server (default: 5)")
    parser.add_argument("--requests", type=int, default=8000, help="requests per run (default: 8000)")
    parser.add_argument(
        "--rate-seconds", type=float, default=3.0, help=f"seconds with {RATE} requests per second (default: 3)"
    )
    options = parser.parse_args(arguments)
    cores = Cores.of_this_machine()
    with on_cores(cores.others):
        return run_benchmark(
            lambda rig: measure(rig, cores, runs=options.runs, requests=options.requests, rate_s=options.rate_seconds)
        )


def measure(rig: Rig, cores: Cores, *, runs: int, requests: int, rate_s: float) -> None:
    """Run all measurements and write the report. `rate_s` is the duration of a run of the open load in seconds."""
    began = time.monotonic()
    key = Credential.generate()
    verify_us: list[float] = []
    with on_cores(cores.measured):
        ours = SubmitTarget("darkroom", rig.serve("submit", "darkroom_functions.serve", "submit"))
        with_keys = {"DARKROOM_AUTH": "keys"}
        keyed = SubmitTarget("keys", rig.serve("keyed", "darkroom_functions.serve", "submit", own=with_keys), key)
        seed = SubmitTarget("seed", rig.serve("seed", "baselines.seed_submit"))
        bare = SubmitTarget("bare", rig.serve("bare", "baselines.bare_submit"))
    for run in range(1, runs + 1):
        for side in (ours, keyed, seed, bare):
            outcome = _closed(rig, side, requests)
            print(f"run {run}: {side.name:9} {outcome.per_s:6.0f}/s, half within {outcome.p50_ms:.1f} ms", flush=True)
        for side in (ours, seed):
            outcome = _open(rig, side, rate_s)
            print(f"run {run}: {side.name:9} at {RATE}/s: 95 % within {outcome.p95_ms:.2f} ms", flush=True)
        with on_cores(cores.measured):
            verify_us.append(_verification(rig, key))
        print(f"run {run}: a key is verified in {verify_us[-1]:.1f} µs", flush=True)
    figures = [
        Figure.ratio("submit_vs_seed", ours=ours.per_s, baseline=seed.per_s, goal=Goal(least=2)),
        Figure.ratio("submit_vs_limit", ours=ours.per_s, baseline=bare.per_s, goal=Goal(least=0.6)),
        Figure.ratio(
            "submit_keys_vs_open", ours=keyed.per_processor_s, baseline=ours.per_processor_s, goal=Goal(least=0.95)
        ),
        Figure(name="verify_us", unit="µs", runs=verify_us, goal=Goal(most=30)),
        Figure(name=f"submit_p95_ms_at_{RATE}rps", unit="ms", runs=ours.p95_ms, goal=Goal(most=50)),
        Figure(name=f"seed_p95_ms_at_{RATE}rps", unit="ms", runs=seed.p95_ms),
        *(Figure(name=f"{side.name}_submissions", unit="1/s", runs=side.per_s) for side in (ours, keyed, seed, bare)),
    ]
    notes = [_shares(side) for side in (ours, keyed, seed, bare)]
    notes.append(f"{time.monotonic() - began:.0f} s in all")
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _closed(rig: Rig, side: SubmitTarget, requests: int) -> RequestResult:
    """The closed load, over CONNECTIONS."""
    _clear(rig, key=side.key)
    _load(side, requests=max(CONNECTIONS, requests // 20))
    server, redis = processor_s(side.server.process.pid), processor_s(rig.redis_pid)
    outcome = _load(side, requests=requests)
    side.per_s.append(outcome.per_s)
    used = max(processor_s(side.server.process.pid) - server, TICK_S)
    side.per_processor_s.append(outcome.answered / used)
    side.busy.append(used / outcome.seconds)
    side.redis_busy.append((processor_s(rig.redis_pid) - redis) / outcome.seconds)
    side.generator_busy.append(outcome.processor_s / outcome.seconds)
    return outcome


def _open(rig: Rig, side: SubmitTarget, rate_s: float) -> RequestResult:
    """The open load, at RATE requests per second."""
    _clear(rig, key=side.key)
    outcome = _load(side, requests=int(RATE * rate_s), rate=RATE)
    side.p95_ms.append(outcome.p95_ms)
    return outcome


def _load(side: SubmitTarget, *, requests: int, rate: float | None = None) -> RequestResult:
    connections = CONNECTIONS if rate is None else RATE_CONNECTIONS
    plan = RequestPlan(side.server.port, "/flux", BODY, connections, requests, RUN_TIME_S, rate)
    command = [sys.executable, "-m", "darkroom_loadtest.clients.generator", json.dumps(asdict(plan))]
    own = {} if side.key is None else {KEY: side.key.text}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=4 * RUN_TIME_S, check=False, env={**os.environ, **own}
    )
    if done.returncode != 0:
        raise BenchmarkFailed(f"the generator failed:\n{(done.stdout + done.stderr)[-SHOWN_CHARS:]}")
    outcome = RequestResult(**json.loads(done.stdout))
    if outcome.refused:
        raise BenchmarkFailed(f"{side.name} refused {outcome.refused} of {outcome.answered} requests")
    return outcome


def _verification(rig: Rig, key: Credential) -> float:
    """Microseconds of one warm verification, in a process of its own."""
    _clear(rig, key=key)
    own = {KEY: key.text, "DARKROOM_REDIS_URL": rig.redis_url, "DARKROOM_NAMESPACE": NAMESPACE}
    command = [sys.executable, "-m", "darkroom_loadtest.bench.verification", str(VERIFICATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    if done.returncode != 0:
        raise BenchmarkFailed(f"the verification failed:\n{(done.stdout + done.stderr)[-SHOWN_CHARS:]}")
    return float(done.stdout)


def _clear(rig: Rig, *, key: Credential | None) -> None:
    """Empty Redis, announce the model's pool, and publish the key."""
    rig.redis.flushall()
    rig.ledger.run(calls.announce_pool("flux", models=["flux"]))
    if key is not None:
        rig.publish_key(key)


def _shares(side: SubmitTarget) -> str:
    """The share of time that each process was running: the figure is the server's own if the others had idle time."""
    busy, redis, generator = (median(runs) for runs in (side.busy, side.redis_busy, side.generator_busy))
    verdict = "" if busy >= BUSY else "  (the process was waiting for others, or for its core)"
    return (
        f"{side.name:9} used {busy:4.0%} of its core; Redis {redis:4.0%} and the generator {generator:4.0%} of theirs"
        f"{verdict}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

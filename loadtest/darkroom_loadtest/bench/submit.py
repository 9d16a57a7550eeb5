"""How many submissions one function process takes, and how long one takes at an ordinary rate.

The same request, `POST /flux`, goes to the submit function, to the way of the systems before (`baselines.seed_submit`)
and to a bare server with one write to Redis (`baselines.bare_submit`), in turn. The one that is measured has a core of
its own; Redis and the generator share what is left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from darkroom.ledger import calls

from darkroom_loadtest.bench.figures import Figure, Goal, report
from darkroom_loadtest.bench.rig import (
    SHOWN_CHARS,
    BenchmarkFailed,
    Cores,
    Rig,
    Server,
    on_cores,
    processor_s,
    run_benchmark,
)
from darkroom_loadtest.load.generator import Outcome, Plan

BENCH = "submit"

BODY = json.dumps(
    {"input": {"prompt": "a lighthouse at dusk, long exposure, the sea like fog", "seed": 7, "size": "832x1216"}}
)

CONNECTIONS = 32
"""As many as the process has connections to Redis, so that no side waits for one."""

RATE = 200
"""Requests a second of the open load."""

RATE_CONNECTIONS = 64

RUN_LIMIT_S = 7.0
"""A run ends then, with what it has: five runs of three sides stay below three minutes on a slow machine too."""

BUSY = 0.9
"""Below this share of its core the measured process waited for something, and the figure is not its own."""


@dataclass
class Side:
    """One of those that are measured, and what was seen of it, run by run."""

    name: str
    server: Server
    per_s: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    redis_busy: list[float] = field(default_factory=list)
    generator_busy: list[float] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-submit", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each side (default 5)")
    parser.add_argument("--requests", type=int, default=8000, help="in one run (default 8000)")
    parser.add_argument("--rate-seconds", type=float, default=3.0, help=f"of {RATE} requests a second (default 3)")
    options = parser.parse_args(arguments)
    cores = Cores.of_this_machine()
    with on_cores(cores.others):
        return run_benchmark(
            lambda rig: measure(rig, cores, runs=options.runs, requests=options.requests, rate_s=options.rate_seconds)
        )


def measure(rig: Rig, cores: Cores, *, runs: int, requests: int, rate_s: float) -> None:
    """Everything, and the report of it. `rate_s` is how long a run of the open load takes, in seconds."""
    began = time.monotonic()
    with on_cores(cores.measured):
        ours = Side("darkroom", rig.serve("submit", "darkroom_functions.serve", "submit"))
        seed = Side("seed", rig.serve("seed", "baselines.seed_submit"))
        bare = Side("bare", rig.serve("bare", "baselines.bare_submit"))
    for run in range(1, runs + 1):
        for side in (ours, seed, bare):
            outcome = _closed(rig, side, requests)
            print(f"run {run}: {side.name:9} {outcome.per_s:6.0f}/s, half within {outcome.p50_ms:.1f} ms", flush=True)
        for side in (ours, seed):
            outcome = _open(rig, side, rate_s)
            print(f"run {run}: {side.name:9} at {RATE}/s: 95 % within {outcome.p95_ms:.2f} ms", flush=True)
    figures = [
        Figure.ratio("submit_vs_seed", ours=ours.per_s, baseline=seed.per_s, goal=Goal(least=2)),
        Figure.ratio("submit_vs_limit", ours=ours.per_s, baseline=bare.per_s, goal=Goal(least=0.6)),
        Figure(name=f"submit_p95_ms_at_{RATE}rps", unit="ms", runs=ours.p95_ms, goal=Goal(most=50)),
        Figure(name=f"seed_p95_ms_at_{RATE}rps", unit="ms", runs=seed.p95_ms),
        *(Figure(name=f"{side.name}_submissions", unit="1/s", runs=side.per_s) for side in (ours, seed, bare)),
    ]
    notes = [_shares(side) for side in (ours, seed, bare)]
    notes.append(f"{time.monotonic() - began:.0f} s in all")
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _closed(rig: Rig, side: Side, requests: int) -> Outcome:
    """As many as it takes, CONNECTIONS at a time."""
    _clear(rig)
    _load(side, requests=max(CONNECTIONS, requests // 20))
    server, redis = processor_s(side.server.process.pid), processor_s(rig.redis_pid)
    outcome = _load(side, requests=requests)
    side.per_s.append(outcome.per_s)
    side.busy.append((processor_s(side.server.process.pid) - server) / outcome.seconds)
    side.redis_busy.append((processor_s(rig.redis_pid) - redis) / outcome.seconds)
    side.generator_busy.append(outcome.processor_s / outcome.seconds)
    return outcome


def _open(rig: Rig, side: Side, rate_s: float) -> Outcome:
    """RATE requests a second, however long each takes."""
    _clear(rig)
    outcome = _load(side, requests=int(RATE * rate_s), rate=RATE)
    side.p95_ms.append(outcome.p95_ms)
    return outcome


def _load(side: Side, *, requests: int, rate: float | None = None) -> Outcome:
    connections = CONNECTIONS if rate is None else RATE_CONNECTIONS
    plan = Plan(side.server.port, "/flux", BODY, connections, requests, RUN_LIMIT_S, rate)
    command = [sys.executable, "-m", "darkroom_loadtest.load.generator", json.dumps(asdict(plan))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * RUN_LIMIT_S, check=False)
    if done.returncode != 0:
        raise BenchmarkFailed(f"the generator failed:\n{(done.stdout + done.stderr)[-SHOWN_CHARS:]}")
    outcome = Outcome(**json.loads(done.stdout))
    if outcome.refused:
        raise BenchmarkFailed(f"{side.name} did not take {outcome.refused} of {outcome.answered} requests")
    return outcome


def _clear(rig: Rig) -> None:
    """Each run begins with an empty Redis, where the pool of the model is known."""
    rig.redis.flushall()
    rig.ledger.run(calls.announce_pool("flux", models=["flux"]))


def _shares(side: Side) -> str:
    """Who was busy: the figure is the server's own only while the others had time left."""
    busy, redis, generator = (median(runs) for runs in (side.busy, side.redis_busy, side.generator_busy))
    verdict = "" if busy >= BUSY else "  (it waited: for the others, or for its core)"
    return (
        f"{side.name:9} used {busy:4.0%} of its core; Redis {redis:4.0%} and the generator {generator:4.0%} of theirs"
        f"{verdict}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

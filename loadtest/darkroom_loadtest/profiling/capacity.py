"""What a load takes, and what holds it: `make capacity`. Arithmetic alone; docs/capacity.md says what it rests on.

A load is jobs a second of one kind. Every cost is one of `make bench-job` and `make bench-broadcast`, times how often
it comes up; nothing queues and nothing is shared, so it holds where no resource is nearly used up. The columns are the
load and its multiples; below stands how much one Redis holds, by what is used up first.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from darkroom.ledger.calls import LEASE_MS, WORKER_TTL_MS
from darkroom.ledger.connection import CONNECTIONS

from darkroom_loadtest.bench.figures import align

BUSY = 0.7
"""A share of a core, or of a worker, above which waits grow fast."""

MEMORY_SHARE = 0.8
"""Of `maxmemory`: above, submissions are refused (`Memory.high`)."""

MAX_CLIENTS = 10_000
"""Redis' own default of `maxclients`."""

HOUR_S = 3600

RECORD_KEPT_H = 24
LOG_KEPT_H = 1
"""How long a job's record and its log stay in Redis after its end (`lua/prelude.lua`)."""

TOLD_PER_S = 4
"""Progress is told so often at most (`TELL_EVERY_S` of the worker); each step is a call of the ledger nonetheless."""

OTHER_MESSAGES = 3
"""Of a job to each of its sockets beside progress: the snapshot, its start, its end."""

TICK_S = 1.0
"""Between two looks of the operator at all pools."""

SLOTS = 256
"""The values of a job id's last byte (`darkroom.jobs.slot_of`): the most Redis servers that jobs can be spread over."""

GROWTH = (1, 10, 100, 10_000)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Jobs of one kind. `sockets` watch each job; it waits for `wait_s` before it starts."""

    jobs_per_s: float = 1.0
    engine_s: float = 5.0
    steps: float = 30
    sockets: float = 1.0
    wait_s: float = 10.0
    pools: float = 10


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one of each takes, as measured on two cores of an AMD EPYC (docs/capacity.md). Times are processor time."""

    submit_functions_us: float = 520
    run_functions_us: float = 560
    run_courier_us: float = 2400
    run_worker_us: float = 1820
    submit_redis_us: float = 150
    run_redis_us: float = 700
    step_redis_us: float = 45
    call_us: float = 20
    observe_worker_us: float = 1.9
    message_us: float = 57
    socket_kib: float = 35
    pending_bytes: float = 3700
    ended_bytes: float = 6400
    log_bytes: float = 1580
    told_bytes: float = 170
    file_bytes: float = 9_800
    step_file_bytes: float = 190
    worker_connections: float = 9
    record_kept_h: float = RECORD_KEPT_H
    redis_gb: float = 16


@dataclass(frozen=True)
class Needs:
    """What a load takes. Processes are whole ones, each below BUSY; `…_cores` are of the one Redis."""

    functions: int
    results: int
    couriers: int
    workers: int
    sockets: float
    redis_cores: float
    redis_gb: float
    redis_connections: float
    redis_file_mb_per_s: float
    observe_ms: float
    redis_servers: int
    bends_at: str


def needs(load: Load, costs: Costs) -> Needs:
    """What it takes to hold the load."""
    workers = load.jobs_per_s * (load.engine_s + costs.run_worker_us / 1e6) / BUSY
    functions = load.jobs_per_s * (costs.submit_functions_us + costs.run_functions_us) / 1e6 / BUSY
    couriers = load.jobs_per_s * costs.run_courier_us / 1e6 / BUSY
    told = min(load.steps, TOLD_PER_S * load.engine_s)
    results = load.jobs_per_s * load.sockets * (told + OTHER_MESSAGES) * costs.message_us / 1e6 / BUSY
    whole = [max(1, math.ceil(count)) for count in (functions, results, couriers, workers)]
    each_job_us = costs.submit_redis_us + costs.run_redis_us + load.steps * costs.step_redis_us
    observe_us_per_s = workers * costs.observe_worker_us / TICK_S
    lives_us_per_s = workers * costs.call_us * 3000 * (1 / WORKER_TTL_MS + BUSY / LEASE_MS)
    pools_us_per_s = load.pools * costs.call_us / TICK_S
    cores = (load.jobs_per_s * each_job_us + observe_us_per_s + lives_us_per_s + pools_us_per_s) / 1e6
    log_bytes = costs.log_bytes + max(0, told - 1) * costs.told_bytes
    kept = HOUR_S * (costs.record_kept_h * (costs.ended_bytes - costs.log_bytes) + LOG_KEPT_H * log_bytes)
    gb = load.jobs_per_s * (kept + (load.wait_s + load.engine_s) * costs.pending_bytes) / 1e9
    connections = whole[3] * costs.worker_connections + sum(whole[:3]) * CONNECTIONS
    uses = {
        "processor": cores / BUSY,
        "memory": gb / (MEMORY_SHARE * costs.redis_gb),
        "connections": connections / MAX_CLIENTS,
    }
    return Needs(
        functions=whole[0],
        results=whole[1],
        couriers=whole[2],
        workers=whole[3],
        sockets=load.jobs_per_s * load.sockets * (load.wait_s + load.engine_s),
        redis_cores=cores,
        redis_gb=gb,
        redis_connections=connections,
        redis_file_mb_per_s=load.jobs_per_s * (costs.file_bytes + load.steps * costs.step_file_bytes) / 1e6,
        observe_ms=(observe_us_per_s + pools_us_per_s) * TICK_S / 1e3,
        redis_servers=math.ceil(max(uses.values())),
        bends_at=max(uses, key=lambda name: uses[name]),
    )


def most_of_one_redis(load: Load, costs: Costs) -> dict[str, float]:
    """Jobs a second of this kind at which one Redis is full, by what fills it."""
    much = replace(load, jobs_per_s=1e6)  # where whole processes and pools make no difference
    taken = needs(much, costs)
    return {
        "processor": much.jobs_per_s * BUSY / taken.redis_cores,
        "memory": much.jobs_per_s * MEMORY_SHARE * costs.redis_gb / taken.redis_gb,
        "connections": much.jobs_per_s * MAX_CLIENTS / taken.redis_connections,
    }


def table(load: Load, costs: Costs) -> str:
    """The load and its multiples."""
    loads = [replace(load, jobs_per_s=load.jobs_per_s * growth) for growth in GROWTH]
    columns = [needs(each, costs) for each in loads]
    rows = [
        ("", *(f"{growth:,}×" for growth in GROWTH)),
        ("jobs a second", *(f"{each.jobs_per_s:,g}" for each in loads)),
        ("workers", *(f"{each.workers:,}" for each in columns)),
        ("functions: submit, jobs, result", *(f"{each.functions:,}" for each in columns)),
        ("result: for sockets", *(f"{each.results:,}" for each in columns)),
        ("couriers", *(f"{each.couriers:,}" for each in columns)),
        ("open sockets", *(f"{each.sockets:,.0f}" for each in columns)),
        ("their memory, MB", *(f"{each.sockets * costs.socket_kib / 1024:,.0f}" for each in columns)),
        ("Redis: cores", *(_short(each.redis_cores) for each in columns)),
        ("Redis: memory, GB", *(_short(each.redis_gb) for each in columns)),
        ("Redis: connections", *(f"{each.redis_connections:,.0f}" for each in columns)),
        ("Redis: file, MB/s", *(_short(each.redis_file_mb_per_s) for each in columns)),
        ("Redis: a look of the operator, ms", *(_short(each.observe_ms) for each in columns)),
        ("Redis servers", *(_servers(each) for each in columns)),
        ("bends first", *(each.bends_at for each in columns)),
    ]
    return align(rows)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="capacity", description=__doc__)
    for part, about in ((Load(), "of the load"), (Costs(), "a cost")):
        for item in fields(part):
            value = getattr(part, item.name)
            option = f"--{item.name.replace('_', '-')}"
            parser.add_argument(option, type=float, default=value, help=f"{about} (default {value:g})")
    chosen = vars(parser.parse_args(arguments))
    load = Load(**{item.name: chosen[item.name] for item in fields(Load)})
    costs = Costs(**{item.name: chosen[item.name] for item in fields(Costs)})
    print(table(load, costs))
    print(f"\nOne Redis of {costs.redis_gb:g} GB holds, in jobs of this kind a second:")
    for name, most in sorted(most_of_one_redis(load, costs).items(), key=lambda item: item[1]):
        print(f"  {most:8,.1f}  by its {name}")
    return 0


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _servers(taken: Needs) -> str:
    return f"{taken.redis_servers:,}" if taken.redis_servers <= SLOTS else f"{taken.redis_servers:,} (> {SLOTS})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The resources that a load needs: `make capacity`. Arithmetic only; docs/capacity.md has its assumptions.

A load is jobs per second of one kind. Each cost is a figure of `make bench-job` or `make bench-broadcast` times its
frequency. Queueing is ignored, so the result holds while no resource is nearly exhausted. The columns are the load and
its multiples; below is the capacity of one Redis by each resource.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, get_type_hints

from darkroom.ledger.calls import LEASE_MS, WORKER_TTL_MS
from darkroom.ledger.connection import CONNECTIONS

from darkroom_loadtest.measurement.figures import align

BUSY = 0.7
"""Share of a core or a worker above which waits grow quickly."""

MEMORY_SHARE = 0.8
"""Of `maxmemory`: above, submissions are refused (`Memory.high`)."""

MAX_CLIENTS = 10_000
"""Redis' own default of `maxclients`."""

HOUR_S = 3600

RECORD_KEPT_H = 24
LOG_RETENTION_H = 1
"""Retention of a finished job's record and log in Redis (`lua/prelude.lua`)."""

PUBLISHED_PER_S = 4
"""Maximum rate of published progress of a job (`LOG_PROGRESS_EVERY_S` of the worker); every step calls the ledger."""

OTHER_MESSAGES = 3
"""Messages to each socket of a job besides progress: snapshot, start and end."""

TICK_S = 1.0
"""Interval of the operator's observation of all pools."""

SLOTS = 256
"""The values of a job id's last byte (`darkroom.jobs.slot_of`): the most Redis servers that jobs can be spread over."""

GROWTH = (1, 10, 100, 10_000)


@dataclass(frozen=True, kw_only=True)
class PlannedLoad:
    """Jobs of one kind. The annotations are the help texts of the options."""

    jobs_per_s: Annotated[float, "jobs per second"] = 1.0
    engine_s: Annotated[float, "seconds of the engine per job"] = 5.0
    steps: Annotated[float, "the engine's steps per job"] = 30
    sockets: Annotated[float, "sockets that follow each job"] = 1.0
    wait_s: Annotated[float, "seconds that a job waits for its start"] = 10.0
    pools: Annotated[float, "number of worker pools"] = 10


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """The cost per unit, measured on two cores (docs/capacity.md). Times are processor time."""

    submit_functions_us: Annotated[float, "functions: µs to submit a job"] = 610
    run_functions_us: Annotated[float, "functions: µs to apply its event and read it"] = 700
    run_courier_us: Annotated[float, "courier: µs to publish and archive a job"] = 2130
    run_worker_us: Annotated[float, "worker: µs around the engine per job"] = 1570
    submit_redis_us: Annotated[float, "Redis: µs to submit a job"] = 200
    run_redis_us: Annotated[float, "Redis: µs of a job after its submission"] = 830
    step_redis_us: Annotated[float, "Redis: µs per step"] = 26
    call_us: Annotated[float, "Redis: µs per heartbeat and per pool observed"] = 20
    observe_worker_us: Annotated[float, "Redis: µs per worker observed"] = 1.0
    message_us: Annotated[float, "functions: µs per message to a socket"] = 57
    socket_kib: Annotated[float, "functions: KiB per socket"] = 35
    pending_bytes: Annotated[float, "Redis: bytes of a waiting job"] = 4450
    ended_bytes: Annotated[float, "Redis: bytes of a finished job, with its log"] = 6550
    log_bytes: Annotated[float, "Redis: bytes of a log with one published step"] = 1580
    published_bytes: Annotated[float, "Redis: bytes of a log per further published step"] = 170
    file_bytes: Annotated[float, "Redis: bytes of the append-only file per job"] = 12_700
    step_file_bytes: Annotated[float, "Redis: bytes of the append-only file per step"] = 190
    worker_connections: Annotated[float, "connections of a worker to Redis"] = 9
    record_kept_h: Annotated[float, "hours that a finished job stays in Redis"] = RECORD_KEPT_H
    redis_gb: Annotated[float, "GB of one Redis (maxmemory)"] = 16


@dataclass(frozen=True)
class Needs:
    """The resources of a load. Processes are integers, each below BUSY; `…_cores` are of the single Redis."""

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


def needs(load: PlannedLoad, costs: UnitCosts) -> Needs:
    """The resources that the load needs."""
    workers = load.jobs_per_s * (load.engine_s + costs.run_worker_us / 1e6) / BUSY
    functions = load.jobs_per_s * (costs.submit_functions_us + costs.run_functions_us) / 1e6 / BUSY
    couriers = load.jobs_per_s * costs.run_courier_us / 1e6 / BUSY
    published = min(load.steps, PUBLISHED_PER_S * load.engine_s)
    results = load.jobs_per_s * load.sockets * (published + OTHER_MESSAGES) * costs.message_us / 1e6 / BUSY
    whole = [max(1, math.ceil(count)) for count in (functions, results, couriers, workers)]
    each_job_us = costs.submit_redis_us + costs.run_redis_us + load.steps * costs.step_redis_us
    observe_us_per_s = workers * costs.observe_worker_us / TICK_S
    lives_us_per_s = workers * costs.call_us * 3000 * (1 / WORKER_TTL_MS + BUSY / LEASE_MS)
    pools_us_per_s = load.pools * costs.call_us / TICK_S
    cores = (load.jobs_per_s * each_job_us + observe_us_per_s + lives_us_per_s + pools_us_per_s) / 1e6
    log_bytes = costs.log_bytes + max(0, published - 1) * costs.published_bytes
    kept = HOUR_S * (costs.record_kept_h * (costs.ended_bytes - costs.log_bytes) + LOG_RETENTION_H * log_bytes)
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


def most_of_one_redis(load: PlannedLoad, costs: UnitCosts) -> dict[str, float]:
    """The jobs per second that exhaust one Redis, by resource."""
    much = replace(load, jobs_per_s=1e6)  # so large that rounding of processes and pools is negligible
    taken = needs(much, costs)
    return {
        "processor": much.jobs_per_s * BUSY / taken.redis_cores,
        "memory": much.jobs_per_s * MEMORY_SHARE * costs.redis_gb / taken.redis_gb,
        "connections": much.jobs_per_s * MAX_CLIENTS / taken.redis_connections,
    }


def table(load: PlannedLoad, costs: UnitCosts) -> str:
    """The table of the load and its multiples."""
    loads = [replace(load, jobs_per_s=load.jobs_per_s * growth) for growth in GROWTH]
    columns = [needs(each, costs) for each in loads]
    rows = [
        ("", *(f"{growth:,}×" for growth in GROWTH)),
        ("jobs per second", *(f"{each.jobs_per_s:,g}" for each in loads)),
        ("workers", *(f"{each.workers:,}" for each in columns)),
        ("functions: submit, jobs, result", *(f"{each.functions:,}" for each in columns)),
        ("functions: result, for sockets", *(f"{each.results:,}" for each in columns)),
        ("couriers", *(f"{each.couriers:,}" for each in columns)),
        ("open sockets", *(f"{each.sockets:,.0f}" for each in columns)),
        ("memory of sockets, MB", *(f"{each.sockets * costs.socket_kib / 1024:,.0f}" for each in columns)),
        ("Redis: cores", *(_short(each.redis_cores) for each in columns)),
        ("Redis: memory, GB", *(_short(each.redis_gb) for each in columns)),
        ("Redis: connections", *(f"{each.redis_connections:,.0f}" for each in columns)),
        ("Redis: file, MB/s", *(_short(each.redis_file_mb_per_s) for each in columns)),
        ("Redis: operator observation, ms", *(_short(each.observe_ms) for each in columns)),
        ("Redis servers", *(_servers(each) for each in columns)),
        ("first bottleneck", *(each.bends_at for each in columns)),
    ]
    return align(rows)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="capacity", description=__doc__)
    for part in (PlannedLoad(), UnitCosts()):
        meanings = get_type_hints(type(part), include_extras=True)
        for item in fields(part):
            value = getattr(part, item.name)
            option = f"--{item.name.replace('_', '-')}"
            (meaning,) = meanings[item.name].__metadata__
            parser.add_argument(option, type=float, default=value, help=f"{meaning} (default: {value:g})")
    chosen = vars(parser.parse_args(arguments))
    load = PlannedLoad(**{item.name: chosen[item.name] for item in fields(PlannedLoad)})
    costs = UnitCosts(**{item.name: chosen[item.name] for item in fields(UnitCosts)})
    print(table(load, costs))
    print(f"\nOne Redis of {costs.redis_gb:g} GB sustains, in jobs of this kind per second:")
    for name, most in sorted(most_of_one_redis(load, costs).items(), key=lambda item: item[1]):
        print(f"  {most:8,.1f}  by its {name}")
    return 0


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _servers(taken: Needs) -> str:
    return f"{taken.redis_servers:,}" if taken.redis_servers <= SLOTS else f"{taken.redis_servers:,} (> {SLOTS})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What Prometheus and the probes are told: `/metrics`, `/healthz`, `/readyz`.

The figures are made from the world when somebody asks, so that a tick over a thousand pools costs nothing for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from darkroom_operator.control import replicas_by_state
from darkroom_operator.kubernetes.world import ClusterState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEMAND = ("waiting", "dispatched", "running", "due_soon")

REPLICA_STATES = ("starting", "idle", "busy", "draining", "faulty")

ProbeResponse = Callable[[], tuple[int, dict[str, object]]]
"""Status and body for a probe."""


class PoolMetrics(Collector):
    """All pools, as they stand."""

    def __init__(self, world: ClusterState) -> None:
        self._world = world

    def collect(self) -> Iterator[Metric]:
        standings = list(self._world.standings.values())
        demand = GaugeMetricFamily("darkroom_pool_demand", "Jobs of a pool.", labels=["pool", "state"])
        known = GaugeMetricFamily(
            "darkroom_pool_demand_known", "1 where the demand could be read at the last look.", labels=["pool"]
        )
        desired = GaugeMetricFamily(
            "darkroom_pool_replicas_desired", "Replicas that its Deployment asks for.", labels=["pool"]
        )
        replicas = GaugeMetricFamily("darkroom_pool_replicas", "Replicas by what they do.", labels=["pool", "state"])
        seconds = CounterMetricFamily(
            "darkroom_pool_replica_seconds", "Seconds of replicas by what they did.", labels=["pool", "state"]
        )
        decisions = CounterMetricFamily(
            "darkroom_pool_decisions",
            "Decisions that differ from the one before, by reason.",
            labels=["pool", "reason"],
        )
        for standing in standings:
            name, reading = standing.name, standing.reading
            known.add_metric([name], 0 if reading is None else 1)
            if reading is not None:
                for state in DEMAND:
                    demand.add_metric([name, state], getattr(reading, state))
            if standing.deployment is not None:
                desired.add_metric([name], standing.deployment.replicas)
            for state, number in replicas_by_state(standing).items():
                replicas.add_metric([name, state], number)
            for state in REPLICA_STATES:
                seconds.add_metric([name, state], standing.replica_seconds.get(state, 0.0))
            for reason, count in standing.decisions.items():
                decisions.add_metric([name, reason], count)
        yield from (demand, known, desired, replicas, seconds, decisions)


@asynccontextmanager
async def served(
    world: ClusterState, *, healthy: ProbeResponse, ready: ProbeResponse, host: str, port: int | None
) -> AsyncIterator[None]:
    """Answers on `port` while the block runs; without one it answers nobody."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(PoolMetrics(world))

    async def figures(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def probe(answer: ProbeResponse) -> Callable[[web.Request], object]:
        async def handle(_request: web.Request) -> web.Response:
            status, body = answer()
            return web.json_response(body, status=status)

        return handle

    app = web.Application()
    app.router.add_get("/metrics", figures)
    app.router.add_get("/healthz", probe(healthy))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()

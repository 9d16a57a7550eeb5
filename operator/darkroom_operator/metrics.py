"""Probes and metrics of the operator: `/healthz`, `/readyz`, `/metrics`.

The metrics are computed from the cluster's state at each request, so a tick over a thousand pools costs nothing for
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from darkroom import probes
from darkroom.probes import ProbeResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from darkroom_operator.kubernetes.state import ClusterState
from darkroom_operator.observation import replicas_by_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEMAND = ("waiting", "dispatched", "running", "due_soon")

REPLICA_STATES = ("starting", "idle", "busy", "draining", "faulty")

Probe = Callable[[], tuple[int, dict[str, object]]]
"""Returns the status and body of the response to a probe."""


class PoolMetrics(Collector):
    """The metrics of all pools."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        pools = list(self._state.pools.values())
        demand = GaugeMetricFamily("darkroom_pool_demand", "Jobs of the pool by state.", labels=["pool", "state"])
        known = GaugeMetricFamily(
            "darkroom_pool_demand_known", "1 if the demand is known, otherwise 0.", labels=["pool"]
        )
        desired = GaugeMetricFamily(
            "darkroom_pool_replicas_desired", "Desired replicas of the Deployment.", labels=["pool"]
        )
        replicas = GaugeMetricFamily(
            "darkroom_pool_replicas", "Replicas of the pool by state.", labels=["pool", "state"]
        )
        seconds = CounterMetricFamily(
            "darkroom_pool_replica_seconds", "Seconds of replicas by state.", labels=["pool", "state"]
        )
        decisions = CounterMetricFamily(
            "darkroom_pool_decisions",
            "Decisions that differ from the previous one, by reason.",
            labels=["pool", "reason"],
        )
        for pool in pools:
            name, reading = pool.name, pool.reading
            known.add_metric([name], 0 if reading is None else 1)
            if reading is not None:
                for state in DEMAND:
                    demand.add_metric([name, state], getattr(reading, state))
            if pool.deployment is not None:
                desired.add_metric([name], pool.deployment.replicas)
            for state, number in replicas_by_state(pool).items():
                replicas.add_metric([name, state], number)
            for state in REPLICA_STATES:
                seconds.add_metric([name, state], pool.replica_seconds.get(state, 0.0))
            for reason, count in pool.decisions.items():
                decisions.add_metric([name, reason], count)
        yield from (demand, known, desired, replicas, seconds, decisions)


@asynccontextmanager
async def serving(
    state: ClusterState, *, healthy: Probe, ready: Probe, host: str, port: int | None
) -> AsyncIterator[None]:
    """Serve probes and metrics on `port` while the block runs; without a port, do nothing. Raises SettingError."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(PoolMetrics(state))
    by_path = {"/healthz": healthy, "/readyz": ready}

    async def respond(path: str) -> ProbeResponse:
        if path == "/metrics":
            return ProbeResponse(200, generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
        if path in by_path:
            return ProbeResponse.of_json(*by_path[path]())
        return ProbeResponse.of_json(404, {"status": "not found"})

    async with probes.served(respond, host=host, port=port, variable="DARKROOM_PROBE_PORT"):
        yield

"""The state of all pools in memory: their objects in the cluster, and what the operator knows and decided about them.

kopf's handlers store what the watches deliver, and the resync what it lists; the newer of two versions is kept. The
operator decides on this state alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from darkroom.ledger.calls import Reading
from darkroom.scaling.decision import Decision, ScalingHistory
from darkroom.scaling.decision_log import DecisionEntry

from darkroom_operator.kubernetes.client import Object
from darkroom_operator.kubernetes.objects import Deployment, Pod, pool_of, read_deployment, read_pod
from darkroom_operator.pools import PoolSpec

POOLS, DEPLOYMENTS, PODS = "pools", "deployments", "pods"

SMOOTHING = 0.3
"""The weight of the newest cold start against the earlier ones."""


@dataclass
class PoolState:
    """The state of one pool. Only the operator's event loop changes it. Times are monotonic unless they end in `_ms`.

    The specification: `spec` is the last valid one, `fault` what is wrong with the newest one (reason and message).
    `generation` is the newest one, `applied_generation` that of the objects, `tried_generation` that of the last
    attempt to apply, which the API server may have refused. `retry_at`: no attempt before. `lock`: held while the
    pool's objects are applied. `applied`: the essence of the Deployment as applied.

    The objects: `deployment`, `pods`; `gone_pods` with the time when each was deleted; `chosen_pods` that are to be
    deleted, since when; `faulty` pods whose worker is faulty, since when. `deleting`: the pool is being deleted.

    The decision: `reading` of the ledger, or `unknown_reason`; `history`, which `is_resumed` once the decision log was
    read since this process leads; `recorded` is the last entry of the log.

    The status: `written_status` at `status_written_at`; `settled_status` is what it was made of, once nothing else is
    to be written.
    """

    name: str
    uid: str | None = None
    generation: int = 0
    applied_generation: int = 0
    tried_generation: int = 0
    spec: PoolSpec | None = None
    fault: tuple[str, str] | None = None
    deleting: bool = False
    deployment: Deployment | None = None
    applied: str | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    gone_pods: dict[str, float] = field(default_factory=dict)
    chosen_pods: dict[str, float] = field(default_factory=dict)
    faulty: dict[str, float] = field(default_factory=dict)
    is_resumed: bool = False
    history: ScalingHistory = field(default_factory=ScalingHistory)
    reading: Reading | None = None
    unknown_reason: str | None = None
    decision: Decision | None = None
    cold_start_s: float | None = None
    recorded: DecisionEntry | None = None
    last_change: Mapping[str, Any] | None = None
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    written_status: dict[str, Any] = field(default_factory=dict)
    status_written_at: float = 0.0
    settled_status: tuple[Any, ...] | None = None
    retry_at: float = 0.0
    counted_at: float | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    replica_seconds: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)

    def broken(self) -> dict[str, int]:
        """Pods that cannot start, by reason."""
        found: dict[str, int] = {}
        for pod in self.pods.values():
            if pod.counts and pod.start_failure is not None:
                found[pod.start_failure[0]] = found.get(pod.start_failure[0], 0) + 1
        return found

    def unplaced(self, now_ms: int) -> int:
        """Number of pods that no node accepts."""
        return sum(pod.counts and pod.start_failure is None and pod.is_stuck(now_ms) for pod in self.pods.values())


class ClusterState:
    """All pools by name, and the known version of each object."""

    def __init__(self) -> None:
        self.pools: dict[str, PoolState] = {}
        self.last_received: dict[str, float] = dict.fromkeys((POOLS, DEPLOYMENTS, PODS), 0.0)
        self._versions: dict[tuple[str, str], str] = {}

    def pool(self, name: str) -> PoolState:
        """The pool of this name, which is created if it is not known."""
        if name not in self.pools:
            self.pools[name] = PoolState(name)
        return self.pools[name]

    def watch_received(self, kind: str) -> None:
        """Record that the watch of a kind delivered an event."""
        self.last_received[kind] = time.monotonic()

    def is_known(self, kind: str, resource: Object) -> bool:
        """Whether this version of the object, or a newer one, is known."""
        metadata = resource["metadata"]
        known = self._versions.get((kind, metadata["name"]))
        return known is not None and not _newer(metadata["resourceVersion"], known)

    def record_version(self, kind: str, resource: Object) -> bool:
        """Record the version of the object if it is newer than the known one. Returns whether it is."""
        if self.is_known(kind, resource):
            return False
        metadata = resource["metadata"]
        self._versions[kind, metadata["name"]] = metadata["resourceVersion"]
        return True

    def set_version(self, kind: str, name: str, version: str) -> None:
        """Record a version that the operator wrote itself: events of older ones are ignored."""
        self._versions[kind, name] = version

    def drop_version(self, kind: str, name: str) -> None:
        """The object is deleted."""
        self._versions.pop((kind, name), None)

    def missing(self, kind: str, names: Iterable[str], *, version: str) -> list[str]:
        """Known objects that are not among the `names` in a list of this version: they were deleted."""
        listed = set(names)
        return [
            name
            for (known_kind, name), known in self._versions.items()
            if known_kind == kind and name not in listed and not _newer(known, version)
        ]

    def update_deployment(self, resource: Object) -> PoolState:
        """Store a Deployment. Returns its pool."""
        pool = self.pool(pool_of(resource))
        pool.deployment = read_deployment(resource)
        return pool

    def update_pod(self, resource: Object) -> PoolState:
        """Store a pod, and measure its cold start once it is ready. Returns its pool."""
        pool = self.pool(pool_of(resource))
        pod = read_pod(resource)
        before = pool.pods.get(pod.name)
        pool.pods[pod.name] = pod
        if pod.ready_ms is not None and before is not None and before.ready_ms is None:
            took = max(pod.ready_ms - pod.created_ms, 0) / 1000
            known = pool.cold_start_s
            pool.cold_start_s = took if known is None else known + SMOOTHING * (took - known)
        if pod.finished:
            pool.gone_pods[pod.name] = time.monotonic()
        return pool

    def remove_pod(self, name: str) -> PoolState | None:
        """The pod is deleted. Returns its pool, if it is known."""
        for pool in self.pools.values():
            if pool.pods.pop(name, None) is not None:
                pool.gone_pods[name] = time.monotonic()
                pool.chosen_pods.pop(name, None)
                return pool
        return None

    def remove_pool(self, name: str) -> None:
        """The pool is deleted. Its Deployment and its pods follow, and are known until then."""
        before = self.pools.pop(name, None)
        if before is not None:
            self.pools[name] = PoolState(
                name, deployment=before.deployment, pods=before.pods, gone_pods=before.gone_pods
            )

    def prune(self) -> None:
        """Drop deleted pools of which no object is left."""
        for name, pool in list(self.pools.items()):
            if pool.uid is None and pool.deployment is None and not pool.pods and not pool.gone_pods:
                del self.pools[name]


def _newer(one: str, other: str) -> bool:
    """Whether version `one` is newer than `other`: they are increasing whole numbers
    (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions).
    """
    return int(one) > int(other)

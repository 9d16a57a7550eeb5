"""The world as the watches told of it: pools with their Deployments and pods. The operator decides on this alone.

kopf's handlers put in what they hear, and the resync what it read; the newer of two versions stays. What the operator
thinks of a pool besides, from one look to the next, is here too (`PoolState`), and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from darkroom import times
from darkroom.ledger.calls import Reading
from darkroom.scaling.policy import Decision, DecisionEntry, ScalingHistory

from darkroom_operator.kubernetes.client import Object
from darkroom_operator.pools import DELETION_COST, POOL_LABEL, SERVING, PoolSpec

POOLS, DEPLOYMENTS, PODS = "pools", "deployments", "pods"

FAILED_WAITING_REASONS = frozenset(
    {
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "ErrImagePull",
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""What the kubelet says of a container that waits and will not run by itself."""

SCHEDULING_MS = 5_000
"""A scheduler has an answer within milliseconds. A pod that has none after this waits for one in vain."""

NO_GPU_NODE = "NoGpuNode"

SMOOTHING = 0.3
"""What the newest cold start weighs against those before it."""


@dataclass(frozen=True)
class Deployment:
    """A pool's Deployment. `essence` is what the operator applies of it, to see whether somebody changed that."""

    name: str
    uid: str
    version: str
    replicas: int
    rolling: bool
    failure: str | None
    essence: str


@dataclass(frozen=True)
class Pod:
    """A pod of a pool. `trouble`: why it does not start, reason and message. `unplaced`: why no node takes it.

    `chosen`: it has the deletion cost of a drained one. `serving`: what its readiness gate says, None before anybody
    did.
    """

    name: str
    version: str
    created_ms: int
    ready_ms: int | None
    is_pending: bool
    has_node: bool
    ending: bool
    over: bool
    chosen: bool
    serving: bool | None
    trouble: tuple[str, str] | None
    unplaced: tuple[str, str] | None

    @property
    def counts(self) -> bool:
        """Whether a ReplicaSet counts it among its replicas."""
        return not self.ending and not self.over

    @property
    def is_out(self) -> bool:
        """Whether a ReplicaSet takes it before all that run and were not chosen."""
        return self.chosen and self.serving is False

    def is_stuck(self, now_ms: int) -> bool:
        """Whether nothing can run in it: its container does not start, or no node takes it."""
        if self.trouble is not None or self.unplaced is not None:
            return True
        return self.is_pending and not self.has_node and now_ms - self.created_ms > SCHEDULING_MS

    def is_on_its_way(self, now_ms: int) -> bool:
        """Whether it is neither stuck nor running yet. A ReplicaSet takes such a pod first, and it may run at any
        moment.
        """
        return self.is_pending and not self.is_stuck(now_ms)


@dataclass
class PoolState:
    """What is known of one pool, and what was last decided, said and measured. Only the operator's loop changes it.

    `pool` is the last specification that was understood, `fault` what is wrong with the newest one: reason and message.
    `in_force` is the generation whose objects were made last, `tried` the one that was tried last: they differ where
    the API server refused the template. `try_again_at`: not before, after another failure (monotonic). `ending`: the
    pool is being deleted.
    `faulty`: pods whose worker is faulty, and since when (monotonic). `is_resumed`: the decision log
    was read since this process leads.
    `victims`: pods that are chosen to go, and since when (monotonic). `gone`: pods that are gone, and when (monotonic).
    `changing`: held by whoever makes the pool's objects. `settled`: what the status that was written last was made of,
    once that is all that there is to say.
    """

    name: str
    uid: str | None = None
    generation: int = 0
    in_force: int = 0
    tried: int = 0
    pool: PoolSpec | None = None
    fault: tuple[str, str] | None = None
    ending: bool = False
    deployment: Deployment | None = None
    applied: str | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)
    victims: dict[str, float] = field(default_factory=dict)
    faulty: dict[str, float] = field(default_factory=dict)
    is_resumed: bool = False
    history: ScalingHistory = field(default_factory=ScalingHistory)
    reading: Reading | None = None
    unknown: str | None = None
    decision: Decision | None = None
    cold_start_s: float | None = None
    written: DecisionEntry | None = None
    last_change: Mapping[str, Any] | None = None
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    said_at: float = 0.0
    settled: tuple[Any, ...] | None = None
    try_again_at: float = 0.0
    counted_at: float | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    replica_seconds: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)

    def broken(self) -> dict[str, int]:
        """Pods that cannot start, by reason."""
        found: dict[str, int] = {}
        for pod in self.pods.values():
            if pod.counts and pod.trouble is not None:
                found[pod.trouble[0]] = found.get(pod.trouble[0], 0) + 1
        return found

    def unplaced(self, now_ms: int) -> int:
        """Pods that no node takes."""
        return sum(pod.counts and pod.trouble is None and pod.is_stuck(now_ms) for pod in self.pods.values())


class ClusterState:
    """All pools by name."""

    def __init__(self) -> None:
        self.standings: dict[str, PoolState] = {}
        self.heard: dict[str, float] = dict.fromkeys((POOLS, DEPLOYMENTS, PODS), 0.0)
        self._versions: dict[tuple[str, str], str] = {}

    def standing(self, name: str) -> PoolState:
        if name not in self.standings:
            self.standings[name] = PoolState(name)
        return self.standings[name]

    def hear(self, kind: str) -> None:
        """A watch said something: it is not deaf."""
        self.heard[kind] = time.monotonic()

    def is_known(self, kind: str, resource: Object) -> bool:
        """Whether this version of the object, or a newer one, is known."""
        metadata = resource["metadata"]
        known = self._versions.get((kind, metadata["name"]))
        return known is not None and not _newer(metadata["resourceVersion"], known)

    def is_news(self, kind: str, resource: Object) -> bool:
        """Whether this version of the object is newer than the known one; then it is the known one from now on."""
        if self.is_known(kind, resource):
            return False
        metadata = resource["metadata"]
        self._versions[kind, metadata["name"]] = metadata["resourceVersion"]
        return True

    def note_version(self, kind: str, name: str, version: str) -> None:
        """We made this version ourselves: what a watch says of older ones is no news."""
        self._versions[kind, name] = version

    def forget(self, kind: str, name: str) -> None:
        self._versions.pop((kind, name), None)

    def missing(self, kind: str, names: Iterable[str], *, version: str) -> list[str]:
        """Objects that are known, and were not in a list of this version: they are gone."""
        listed = set(names)
        return [
            name
            for (known_kind, name), known in self._versions.items()
            if known_kind == kind and name not in listed and not _newer(known, version)
        ]

    def take_deployment(self, resource: Object) -> PoolState:
        standing = self.standing(pool_of(resource))
        standing.deployment = read_deployment(resource)
        return standing

    def take_pod(self, resource: Object) -> PoolState:
        standing = self.standing(pool_of(resource))
        pod = read_pod(resource)
        before = standing.pods.get(pod.name)
        standing.pods[pod.name] = pod
        if pod.ready_ms is not None and (before is None or before.ready_ms is None) and before is not None:
            took = max(pod.ready_ms - pod.created_ms, 0) / 1000
            known = standing.cold_start_s
            standing.cold_start_s = took if known is None else known + SMOOTHING * (took - known)
        if pod.over:
            standing.gone[pod.name] = time.monotonic()
        return standing

    def lose_pod(self, name: str) -> PoolState | None:
        """The pod is gone; answers whose it was."""
        for standing in self.standings.values():
            if standing.pods.pop(name, None) is not None:
                standing.gone[name] = time.monotonic()
                standing.victims.pop(name, None)
                return standing
        return None

    def lose_pool(self, name: str) -> None:
        """The pool is gone. Its Deployment and its pods follow, and are known until then."""
        before = self.standings.pop(name, None)
        if before is not None:
            self.standings[name] = PoolState(name, deployment=before.deployment, pods=before.pods, gone=before.gone)

    def prune(self) -> None:
        """Drop what is left of pools that are gone, once nothing of them is there."""
        for name, standing in list(self.standings.items()):
            if standing.uid is None and standing.deployment is None and not standing.pods and not standing.gone:
                del self.standings[name]


def pool_of(resource: Object) -> str:
    name: str = resource["metadata"]["labels"][POOL_LABEL]
    return name


def _newer(one: str, other: str) -> bool:
    """Whether version `one` is newer than `other`: they are whole numbers that grow
    (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions).
    """
    return int(one) > int(other)


def read_deployment(resource: Object) -> Deployment:
    metadata, spec, status = resource["metadata"], resource["spec"], resource.get("status") or {}
    replicas = spec.get("replicas", 1)
    failures = [
        condition.get("message") or condition.get("reason") or "replicas cannot be created"
        for condition in status.get("conditions") or []
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True"
    ]
    return Deployment(
        name=metadata["name"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        replicas=replicas,
        rolling=_is_rolling(metadata, status),
        failure=failures[0] if failures else None,
        essence=essence(resource),
    )


def _is_rolling(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Whether pods of another template are there still, or may be: a change that nobody has seen yet may be one."""
    unseen = status.get("observedGeneration", 0) < metadata.get("generation", 1)
    return unseen or bool(status.get("updatedReplicas", 0) < status.get("replicas", 0))


def essence(resource: Object) -> str:
    """What the operator says of an object, as text to compare: no status, no number of replicas, no foreign labels."""
    metadata = resource["metadata"]
    spec = {name: value for name, value in (resource.get("spec") or {}).items() if name != "replicas"}
    labels = {name: value for name, value in (metadata.get("labels") or {}).items() if _is_ours(name)}
    owners = [owner.get("uid") for owner in metadata.get("ownerReferences") or []]
    automount = resource.get("automountServiceAccountToken")
    return json.dumps([spec, labels, owners, automount], sort_keys=True, separators=(",", ":"))


def _is_ours(label: str) -> bool:
    return label == POOL_LABEL or label.startswith("app.kubernetes.io/")


def read_pod(resource: Object) -> Pod:
    metadata, spec, status = resource["metadata"], resource.get("spec") or {}, resource.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    ready, gate = conditions.get("Ready", {}), conditions.get(SERVING)
    phase = status.get("phase", "Pending")
    is_ready = ready.get("status") == "True"
    return Pod(
        name=metadata["name"],
        version=metadata["resourceVersion"],
        created_ms=times.to_ms(metadata["creationTimestamp"]),
        ready_ms=times.to_ms(ready.get("lastTransitionTime") or metadata["creationTimestamp"]) if is_ready else None,
        is_pending=phase == "Pending",
        has_node=bool(spec.get("nodeName")),
        ending=metadata.get("deletionTimestamp") is not None,
        over=phase in {"Failed", "Succeeded"},
        chosen=DELETION_COST in (metadata.get("annotations") or {}),
        serving=None if gate is None else gate.get("status") == "True",
        trouble=_trouble(status),
        unplaced=_unplaced(conditions.get("PodScheduled", {}), spec),
    )


def _trouble(status: Mapping[str, Any]) -> tuple[str, str] | None:
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in FAILED_WAITING_REASONS:
            return waiting["reason"], f"container {container.get('name')}: {waiting.get('message') or 'no message'}"
    return None


def _unplaced(scheduled: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, str] | None:
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    message = scheduled.get("message") or "no node takes it"
    wanted = {
        name
        for container in spec.get("containers") or []
        for name in ((container.get("resources") or {}).get("limits") or {})
        if "/" in name
    }
    lacks_gpu = any(f"Insufficient {name}" in message for name in wanted)
    return (NO_GPU_NODE if lacks_gpu else "Unschedulable"), message

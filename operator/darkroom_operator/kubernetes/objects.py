"""Deployments and pods as the operator sees them: what the API server returns, read into types.

The readers are pure functions; `state.py` stores what they return.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darkroom import times

from darkroom_operator.kubernetes.client import Object
from darkroom_operator.pools import DELETION_COST, POOL_LABEL, SERVING

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
"""The kubelet's reasons for a container that waits and will not start by itself."""

SCHEDULING_MS = 5_000
"""A scheduler answers within milliseconds. A pod without an answer after this time has no scheduler."""

NO_GPU_NODE = "NoGpuNode"


@dataclass(frozen=True)
class Deployment:
    """A pool's Deployment. `essence` is the part that the operator applies, to detect changes by others."""

    name: str
    uid: str
    version: str
    replicas: int
    rolling: bool
    failure: str | None
    essence: str


@dataclass(frozen=True)
class Pod:
    """A pod of a pool. `start_failure`: why it does not start; `unschedulable`: why no node accepts it.

    `chosen`: it has the deletion cost of a drained pod. `serving`: the status of its readiness gate, None before it was
    set.
    """

    name: str
    version: str
    created_ms: int
    ready_ms: int | None
    is_pending: bool
    has_node: bool
    deleting: bool
    finished: bool
    chosen: bool
    serving: bool | None
    start_failure: tuple[str, str] | None
    unschedulable: tuple[str, str] | None

    @property
    def counts(self) -> bool:
        """Whether a ReplicaSet counts it among its replicas."""
        return not self.deleting and not self.finished

    @property
    def is_out(self) -> bool:
        """Whether a ReplicaSet deletes it before all running pods that were not chosen."""
        return self.chosen and self.serving is False

    def is_stuck(self, now_ms: int) -> bool:
        """Whether no worker can run in it: its container does not start, or no node accepts it."""
        if self.start_failure is not None or self.unschedulable is not None:
            return True
        return self.is_pending and not self.has_node and now_ms - self.created_ms > SCHEDULING_MS

    def is_on_its_way(self, now_ms: int) -> bool:
        """Whether it is pending and not stuck. A ReplicaSet deletes such a pod first, and it may run at any moment."""
        return self.is_pending and not self.is_stuck(now_ms)


def pool_of(resource: Object) -> str:
    """The name of the pool that an object belongs to."""
    name: str = resource["metadata"]["labels"][POOL_LABEL]
    return name


def read_deployment(resource: Object) -> Deployment:
    """The Deployment of an object of the API server."""
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
    """Whether there are, or may be, pods of another template: a change not yet observed may be one of the template."""
    unobserved = status.get("observedGeneration", 0) < metadata.get("generation", 1)
    return unobserved or bool(status.get("updatedReplicas", 0) < status.get("replicas", 0))


def essence(resource: Object) -> str:
    """The part of an object that the operator applies, as text: no status, no replicas, no labels of others."""
    metadata = resource["metadata"]
    spec = {name: value for name, value in (resource.get("spec") or {}).items() if name != "replicas"}
    labels = {name: value for name, value in (metadata.get("labels") or {}).items() if _is_ours(name)}
    owners = [owner.get("uid") for owner in metadata.get("ownerReferences") or []]
    automount = resource.get("automountServiceAccountToken")
    return json.dumps([spec, labels, owners, automount], sort_keys=True, separators=(",", ":"))


def _is_ours(label: str) -> bool:
    return label == POOL_LABEL or label.startswith("app.kubernetes.io/")


def read_pod(resource: Object) -> Pod:
    """The pod of an object of the API server."""
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
        deleting=metadata.get("deletionTimestamp") is not None,
        finished=phase in {"Failed", "Succeeded"},
        chosen=DELETION_COST in (metadata.get("annotations") or {}),
        serving=None if gate is None else gate.get("status") == "True",
        start_failure=_start_failure(status),
        unschedulable=_unschedulable(conditions.get("PodScheduled", {}), spec),
    )


def _start_failure(status: Mapping[str, Any]) -> tuple[str, str] | None:
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in FAILED_WAITING_REASONS:
            return waiting["reason"], f"container {container.get('name')}: {waiting.get('message') or 'no message'}"
    return None


def _unschedulable(scheduled: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, str] | None:
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    message = scheduled.get("message") or "no node accepts it"
    wanted = {
        name
        for container in spec.get("containers") or []
        for name in ((container.get("resources") or {}).get("limits") or {})
        if "/" in name
    }
    lacks_gpu = any(f"Insufficient {name}" in message for name in wanted)
    return (NO_GPU_NODE if lacks_gpu else "Unschedulable"), message

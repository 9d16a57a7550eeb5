"""A `WorkerPool` as the operator understands it, and the objects that are made of it.

Nothing here speaks to anybody: an object comes in, a `PoolSpec` or an InvalidInput that names the fields comes out, and
a `PoolSpec` says what its Deployment, ServiceAccount and PodDisruptionBudget are. The rules between fields are those of
the schema (`knative/base/operator/workerpools.yaml`), for what came in while the schema was an older one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from darkroom.errors import FieldError, InvalidInput
from darkroom.scaling import fields
from darkroom.scaling.policy import ScalingPolicy

from darkroom_operator.kubernetes.client import Object

GROUP = "darkroom.dev"
API_VERSION = f"{GROUP}/v1alpha1"

POOL_LABEL = f"{GROUP}/pool"
"""On everything that belongs to a pool."""

SERVING = f"{GROUP}/serving"
"""The pods' readiness gate: the operator says True of every pod, and False of the drained ones that are to go."""

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Which of equally ready pods a ReplicaSet takes away first (Kubernetes 1.22 and newer)."""

DO_NOT_EVICT: Mapping[str, str] = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Nobody who tidies up nodes is to move a pod that may run a job."""

WORKER = "worker"
"""The container that is the worker, where a template has several."""

NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")

GRACE_MARGIN_S = 10
"""What a worker has left after its drain time, to hand its job back."""

PROBE_PORT = 8080
"""Where a worker answers `/healthz` and `/readyz`: what the probes of a template ask."""

DEFAULT_DRAIN_S = 60
DEFAULT_GRACE_S = 90
DEFAULT_GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class PoolSpec:
    """One pool, understood. `template` is the pod template as its owner wrote it."""

    name: str
    uid: str
    generation: int
    models: tuple[str, ...]
    policy: ScalingPolicy
    template: Object
    gpus: int
    gpu_resource: str
    max_surge: int
    max_unavailable: int
    drain_s: int
    grace_s: int

    @property
    def objects_name(self) -> str:
        """What Deployment, ServiceAccount and PodDisruptionBudget of the pool are called."""
        return f"darkroom-{self.name}"


def objects_name(pool: str) -> str:
    """As `Pool.objects_name`, of a pool that is not understood."""
    return f"darkroom-{pool}"


def read(resource: Object) -> PoolSpec:
    """The pool of a `WorkerPool` object. Raises InvalidInput, whose `fields` name what is at fault."""
    metadata, spec = resource["metadata"], resource.get("spec") or {}
    faults = fields.unknown(spec)
    try:
        policy = ScalingPolicy.from_spec(spec)
    except InvalidInput as error:
        raise _invalid([*faults, *error.fields]) from error
    gpu, rollout = spec.get("gpu") or {}, spec.get("rollout") or {}
    pool = PoolSpec(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        models=tuple(spec.get("models") or ()),
        policy=policy,
        template=spec.get("template") or {},
        gpus=gpu.get("count", 1),
        gpu_resource=gpu.get("resourceName", DEFAULT_GPU),
        max_surge=rollout.get("maxSurge", 0),
        max_unavailable=rollout.get("maxUnavailable", 1),
        drain_s=spec.get("drainSeconds", DEFAULT_DRAIN_S),
        grace_s=spec.get("graceSeconds", DEFAULT_GRACE_S),
    )
    faults += _faults(pool)
    if faults:
        raise _invalid(faults)
    return pool


def _invalid(faults: Sequence[FieldError]) -> InvalidInput:
    return InvalidInput("; ".join(f"{fault.field}: {fault.detail}" for fault in faults), fields=faults)


def _faults(pool: PoolSpec) -> list[FieldError]:
    checks = [
        ("metadata.name", NAME.fullmatch(pool.name) is not None, "must be a letter and up to 40 of a-z, 0-9 and -"),
        ("models", bool(pool.models), "must name a model"),
        ("template.spec", bool((pool.template.get("spec") or {}).get("containers")), "must have a container"),
        ("rollout", pool.max_surge + pool.max_unavailable > 0, "maxSurge and maxUnavailable must not both be 0"),
        (
            "graceSeconds",
            pool.drain_s + GRACE_MARGIN_S <= pool.grace_s,
            f"must be at least {GRACE_MARGIN_S} above drainSeconds",
        ),
    ]
    return [FieldError(field, detail) for field, good, detail in checks if not good]


def owner_reference(pool: PoolSpec) -> Object:
    """What belongs to the pool goes with it, and holds up nothing of its deletion: the finalizer drains first."""
    return {
        "apiVersion": API_VERSION,
        "kind": "WorkerPool",
        "name": pool.name,
        "uid": pool.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def service_account(pool: PoolSpec) -> Object:
    """Workers speak to Redis and the object store alone: no token for the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(pool),
        "automountServiceAccountToken": False,
    }


def disruption_budget(pool: PoolSpec) -> Object:
    """Who empties nodes takes one worker of the pool at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(pool),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(pool.name)}},
    }


def deployment(pool: PoolSpec, *, config_maps: Mapping[str, str]) -> dict[str, Any]:
    """The pool's Deployment, as it is applied: without a number of replicas, which is never applied.

    `config_maps`: the current names of ConfigMaps by those that the template may use for them.
    """
    strategy = {"maxSurge": pool.max_surge, "maxUnavailable": pool.max_unavailable}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(pool),
        "spec": {
            "selector": {"matchLabels": selector(pool.name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": strategy},
            "revisionHistoryLimit": 3,
            "template": _with_current_names(_pod_template(pool), config_maps),
        },
    }


def selector(pool: str) -> dict[str, str]:
    """Labels that the pool's pods have, and no others."""
    return {POOL_LABEL: pool}


def selector_text(pool: str) -> str:
    return f"{POOL_LABEL}={pool}"


def _labels(pool: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "darkroom-worker",
        "app.kubernetes.io/part-of": "darkroom",
        "app.kubernetes.io/managed-by": "darkroom-operator",
        POOL_LABEL: pool,
    }


def _metadata(pool: PoolSpec) -> dict[str, Any]:
    return {"name": pool.objects_name, "labels": _labels(pool.name), "ownerReferences": [owner_reference(pool)]}


def _pod_template(pool: PoolSpec) -> dict[str, Any]:
    """The owner's template with what every worker needs. The operator's own labels and annotations win."""
    template = deepcopy(dict(pool.template))
    metadata, spec = dict(template.get("metadata") or {}), dict(template["spec"])
    labels = {**(metadata.get("labels") or {}), **_labels(pool.name)}
    annotations = {**(metadata.get("annotations") or {}), **DO_NOT_EVICT}
    spec.setdefault("serviceAccountName", pool.objects_name)
    spec.setdefault("automountServiceAccountToken", False)
    spec["terminationGracePeriodSeconds"] = pool.grace_s
    gates = [gate for gate in spec.get("readinessGates") or [] if gate.get("conditionType") != SERVING]
    spec["readinessGates"] = [*gates, {"conditionType": SERVING}]
    _equip(_worker_of(spec["containers"]), pool)
    return {"metadata": {**metadata, "labels": labels, "annotations": annotations}, "spec": spec}


CONFIG_MAP_REFERENCES = frozenset({"configMap", "configMapRef", "configMapKeyRef"})
"""Fields of a pod that name a ConfigMap, as `name`: volumes (projected ones, too) and variables."""


def _with_current_names(value: Any, config_maps: Mapping[str, str]) -> Any:
    """A copy of the template in which each ConfigMap has its current name."""
    if isinstance(value, list):
        return [_with_current_names(each, config_maps) for each in value]
    if not isinstance(value, dict):
        return value
    copied = {name: _with_current_names(each, config_maps) for name, each in value.items()}
    for name in CONFIG_MAP_REFERENCES & copied.keys():
        reference = copied[name]
        if isinstance(reference, dict) and reference.get("name") in config_maps:
            reference["name"] = config_maps[reference["name"]]
    return copied


def _worker_of(containers: list[dict[str, Any]]) -> dict[str, Any]:
    return next((container for container in containers if container.get("name") == WORKER), containers[0])


def _equip(container: dict[str, Any], pool: PoolSpec) -> None:
    told = {
        "DARKROOM_POOL": pool.name,
        "DARKROOM_DRAIN_GRACE_S": str(pool.drain_s),
        "DARKROOM_HOST": "0.0.0.0",  # noqa: S104 - in its pod
        "DARKROOM_PROBE_PORT": str(PROBE_PORT),
    }
    env = [variable for variable in container.get("env") or [] if variable.get("name") not in told]
    container["env"] = [*env, *({"name": name, "value": value} for name, value in told.items())]
    if pool.gpus:
        resources = dict(container.get("resources") or {})
        resources["limits"] = {**(resources.get("limits") or {}), pool.gpu_resource: str(pool.gpus)}
        container["resources"] = resources

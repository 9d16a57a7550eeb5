"""The specification of a `WorkerPool`, and the objects that are made from it.

Pure functions: `read_spec` reads an object into a `PoolSpec` or raises InvalidInput, which names the fields; from a
`PoolSpec` follow the Deployment, the ServiceAccount and the PodDisruptionBudget. The rules between fields are those of
the schema (`knative/base/operator/workerpools.yaml`), for pools that were created under an older one.
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
from darkroom.scaling.specification import read_policy

from darkroom_operator.kubernetes.client import Object

GROUP = "darkroom.dev"
API_VERSION = f"{GROUP}/v1alpha1"

POOL_LABEL = f"{GROUP}/pool"
"""The label of every object of a pool."""

SERVING = f"{GROUP}/serving"
"""The pods' readiness gate: the operator sets it to True, and to False for drained pods that are to be deleted."""

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""The order in which a ReplicaSet deletes pods of equal readiness (Kubernetes 1.22 and newer)."""

DO_NOT_EVICT: Mapping[str, str] = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Annotations against the eviction of pods that may run a job by node autoscalers."""

WORKER = "worker"
"""The name of the worker's container in a template with several."""

NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")

GRACE_MARGIN_S = 10
"""The time that a worker has after its drain time to release its job."""

PROBE_PORT = 8080
"""The port of `/healthz` and `/readyz`, which the probes of a template use."""

DEFAULT_DRAIN_S = 60
DEFAULT_GRACE_S = 90
DEFAULT_GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class PoolSpec:
    """A valid specification. `template` is the pod template as the owner of the pool wrote it."""

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
        """The name of the pool's Deployment, ServiceAccount and PodDisruptionBudget."""
        return objects_name(self.name)


def objects_name(pool: str) -> str:
    """The name of the objects of the pool with this name."""
    return f"darkroom-{pool}"


def read_spec(resource: Object) -> PoolSpec:
    """The specification of a `WorkerPool` object. Raises InvalidInput, whose `fields` name the invalid ones."""
    metadata, spec = resource["metadata"], resource.get("spec") or {}
    faults = fields.unknown(spec)
    try:
        policy = read_policy(spec)
    except InvalidInput as error:
        raise _invalid([*faults, *error.fields]) from error
    gpu, rollout = spec.get("gpu") or {}, spec.get("rollout") or {}
    result = PoolSpec(
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
    faults += _faults(result)
    if faults:
        raise _invalid(faults)
    return result


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
    """The owner reference of the pool's objects, by which Kubernetes deletes them with the pool."""
    return {
        "apiVersion": API_VERSION,
        "kind": "WorkerPool",
        "name": pool.name,
        "uid": pool.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def service_account(pool: PoolSpec) -> Object:
    """The ServiceAccount of the workers, without a token: they use only Redis and the object store."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(pool),
        "automountServiceAccountToken": False,
    }


def disruption_budget(pool: PoolSpec) -> Object:
    """The PodDisruptionBudget: nodes are drained of one worker of the pool at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(pool),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(pool.name)}},
    }


def deployment(pool: PoolSpec, *, config_maps: Mapping[str, str]) -> dict[str, Any]:
    """The pool's Deployment as it is applied, without `replicas`, which is never applied.

    `config_maps`: the current names of ConfigMaps by the names that a template may use.
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
    """The labels that select the pool's pods."""
    return {POOL_LABEL: pool}


def selector_text(pool: str) -> str:
    """The selector as a string, as the scale subresource has it."""
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
    """The owner's template with what every worker needs. The operator's labels and annotations take precedence."""
    template = deepcopy(dict(pool.template))
    metadata, spec = dict(template.get("metadata") or {}), dict(template["spec"])
    labels = {**(metadata.get("labels") or {}), **_labels(pool.name)}
    annotations = {**(metadata.get("annotations") or {}), **DO_NOT_EVICT}
    spec.setdefault("serviceAccountName", pool.objects_name)
    spec.setdefault("automountServiceAccountToken", False)
    spec["terminationGracePeriodSeconds"] = pool.grace_s
    gates = [gate for gate in spec.get("readinessGates") or [] if gate.get("conditionType") != SERVING]
    spec["readinessGates"] = [*gates, {"conditionType": SERVING}]
    _configure(_worker_of(spec["containers"]), pool)
    return {"metadata": {**metadata, "labels": labels, "annotations": annotations}, "spec": spec}


CONFIG_MAP_REFERENCES = frozenset({"configMap", "configMapRef", "configMapKeyRef"})
"""Fields of a pod whose `name` is that of a ConfigMap: volumes, projected volumes and variables."""


def _with_current_names(value: Any, config_maps: Mapping[str, str]) -> Any:
    """A copy of the template with the current name of each ConfigMap."""
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


def _configure(container: dict[str, Any], pool: PoolSpec) -> None:
    variables = {
        "DARKROOM_POOL": pool.name,
        "DARKROOM_DRAIN_GRACE_S": str(pool.drain_s),
        "DARKROOM_HOST": "0.0.0.0",  # noqa: S104 - in its pod
        "DARKROOM_PROBE_PORT": str(PROBE_PORT),
    }
    env = [variable for variable in container.get("env") or [] if variable.get("name") not in variables]
    container["env"] = [*env, *({"name": name, "value": value} for name, value in variables.items())]
    if pool.gpus:
        resources = dict(container.get("resources") or {})
        resources["limits"] = {**(resources.get("limits") or {}), pool.gpu_resource: str(pool.gpus)}
        container["resources"] = resources

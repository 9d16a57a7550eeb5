"""The rules of Knative Serving's webhook with default flags, beyond those of the CRDs.

Read in Serving's sources (pkg/apis/serving: fieldmask.go, k8s_validation.go, and the flags in pkg/apis/config). The
webhook needs Serving's own controllers, which do not run here.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.knative.rendering import Object

MAX_TIMEOUT_S = 600
"""The default of `max-revision-timeout-seconds` in the ConfigMap config-defaults."""

POD_FIELDS = frozenset(
    {
        *("automountServiceAccountToken", "containerConcurrency", "containers", "enableServiceLinks"),
        *("idleTimeoutSeconds", "imagePullSecrets", "responseStartTimeoutSeconds", "serviceAccountName"),
        *("timeoutSeconds", "volumes"),
    }
)
"""Allowed fields of a pod. Others need a feature flag that is off: initContainers, nodeSelector, securityContext."""

CONTAINER_FIELDS = frozenset(
    {
        *("args", "command", "env", "envFrom", "image", "imagePullPolicy", "livenessProbe", "name", "ports"),
        *("readinessProbe", "resources", "securityContext", "startupProbe", "terminationMessagePath"),
        *("terminationMessagePolicy", "volumeMounts", "workingDir"),
    }
)

SECURITY_FIELDS = frozenset(
    {
        *("allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem", "runAsGroup", "runAsNonRoot"),
        *("runAsUser", "seccompProfile"),
    }
)

VOLUMES = frozenset({"name", "configMap", "secret", "projected", "emptyDir"})

RESERVED = frozenset({"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"})
"""Variables that Knative itself sets."""


def refusals(service: Object) -> list[str]:
    """The fields that the webhook would reject, as paths within the pod."""
    pod = service["spec"]["template"]["spec"]
    return sorted(_of_pod(pod))


def _of_pod(pod: Object) -> Iterator[str]:
    yield from pod.keys() - POD_FIELDS
    if pod.get("timeoutSeconds", 0) > MAX_TIMEOUT_S:
        yield "timeoutSeconds"
    for volume in pod.get("volumes", []):
        for kind in volume.keys() - VOLUMES:
            yield f"volumes.{kind}"
    if len(pod["containers"]) != 1:
        yield "containers"
    for container in pod["containers"]:
        yield from _of_container(container)


def _of_container(container: Object) -> Iterator[str]:
    yield from container.keys() - CONTAINER_FIELDS
    if len(container.get("ports", [])) > 1:
        yield "ports"
    for name in container.get("securityContext", {}).keys() - SECURITY_FIELDS:
        yield f"securityContext.{name}"
    if set(container.get("securityContext", {}).get("capabilities", {})) - {"drop"}:
        yield "securityContext.capabilities"
    for variable in container.get("env", []):
        if variable["name"] in RESERVED:
            yield f"env.{variable['name']}"
        for source in variable.get("valueFrom", {}).keys() - {"configMapKeyRef", "secretKeyRef"}:
            yield f"env.{source}"

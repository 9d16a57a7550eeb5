"""Serving's webhook accepts our Services with default flags; the CRDs alone would accept more."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest

from tests.knative.rendering import OVERLAYS, SERVING, Object, find, of_kind, sample
from tests.knative.serving_rules import refusals
from tests.operator.control_plane import ControlPlane

Change = Callable[[Object, Object], object]

REFUSED: dict[str, Change] = {
    "timeoutSeconds": lambda pod, _: pod.update(timeoutSeconds=601),
    "securityContext": lambda pod, _: pod.update(securityContext={"runAsNonRoot": True}),
    "nodeSelector": lambda pod, _: pod.update(nodeSelector={"disk": "fast"}),
    "initContainers": lambda pod, _: pod.update(initContainers=[{"name": "first", "image": "darkroom-functions"}]),
    "volumes.persistentVolumeClaim": lambda pod, _: pod.update(
        volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    ),
    "env.fieldRef": lambda _, container: container["env"].append(
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ),
    "env.PORT": lambda _, container: container["env"].append({"name": "PORT", "value": "8080"}),
    "ports": lambda _, container: container["ports"].append({"containerPort": 9090}),
    "lifecycle": lambda _, container: container.update(lifecycle={"preStop": {"exec": {"command": ["sleep", "5"]}}}),
    "terminationGracePeriodSeconds": lambda pod, _: pod.update(terminationGracePeriodSeconds=900),
}

LET_PASS_BY_THE_CRDS = ("timeoutSeconds", "securityContext", "nodeSelector", "env.fieldRef", "env.PORT")


def _spoilt(rendered: dict[str, list[Object]], rule: str) -> Object:
    service = copy.deepcopy(find(rendered["k3d"], "Service", "jobs", version=SERVING))
    pod = service["spec"]["template"]["spec"]
    REFUSED[rule](pod, pod["containers"][0])
    return service


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serving_accepts_our_services(overlay: str, rendered: dict[str, list[Object]]) -> None:
    services = [*of_kind(rendered[overlay], "Service", version=SERVING)]
    services += of_kind(sample("subscription"), "Service", version=SERVING)
    assert {each["metadata"]["name"] for each in services} == {"submit", "jobs", "result", "undelivered", "printer"}
    assert {each["metadata"]["name"]: refusals(each) for each in services if refusals(each)} == {}


@pytest.mark.parametrize("rule", REFUSED)
def test_fields_that_serving_rejects_are_detected(rule: str, rendered: dict[str, list[Object]]) -> None:
    assert refusals(_spoilt(rendered, rule)) == [rule]


@pytest.mark.parametrize("rule", LET_PASS_BY_THE_CRDS)
def test_the_crds_accept_these_fields(rule: str, rendered: dict[str, list[Object]], cluster: ControlPlane) -> None:
    service = _spoilt(rendered, rule)
    cluster.kubectl("apply", "-f", "-", given='{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"darkroom"}}')
    service["metadata"]["name"] = "tried"
    cluster.kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(service))

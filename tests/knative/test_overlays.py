"""Every overlay renders, and a real API server with Knative's CRDs accepts every object without dropping a field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.knative.rendering import (
    OVERLAYS,
    SAMPLES,
    SERVING,
    Object,
    containers,
    find,
    main_container,
    of_kind,
    pods,
    sample,
)
from tests.operator.control_plane import ControlPlane

OFF_IN_1_20 = frozenset({"ttlSecondsAfterFinished"})
"""Behind a feature gate that is off in 1.20, which drops them."""


def apply(cluster: ControlPlane, objects: Sequence[Object], *options: str, fails: bool = False) -> str:
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": cluster.fitted(objects)})
    return cluster.kubectl("apply", "--server-side", "-f", "-", "--output=json", *options, given=given, fails=fails)


def accept(cluster: ControlPlane, objects: Sequence[Object]) -> list[str]:
    """Apply all objects after a dry run. Returns the fields that the API server dropped."""
    apply(cluster, [each for each in objects if each["kind"] == "Namespace"])
    apply(cluster, objects, "--dry-run=server")
    said = json.loads(apply(cluster, objects))
    items = said["items"] if said["kind"] == "List" else [said]
    kept = {(item["kind"], item["metadata"]["name"]): item for item in items}
    dropped = []
    for each in objects:
        name = (each["kind"], each["metadata"]["name"])
        if each["kind"] != "CustomResourceDefinition":
            dropped += [f"{name}{path}" for path in lost(cluster.fitted(each), kept[name])]
    return dropped


def lost(ours: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Fields that the API server did not return; values may be normalised."""
    if isinstance(ours, dict):
        for name, value in ours.items():
            if name in OFF_IN_1_20:
                continue
            if not isinstance(kept, dict) or name not in kept:
                if value not in ({}, []):
                    yield f"{path}.{name}"
            else:
                yield from lost(value, kept[name], f"{path}.{name}")
    elif isinstance(ours, list):
        if len(ours) != len(kept):
            yield path
        else:
            for index, (mine, theirs) in enumerate(zip(ours, kept, strict=True)):
                yield from lost(mine, theirs, f"{path}[{index}]")


def unknown(schema: Object, value: Any, path: str = "") -> Iterator[str]:
    """Fields that are not in the schema, also where it preserves unknown ones."""
    if isinstance(value, dict) and schema.get("properties"):
        for name, member in value.items():
            if name in schema["properties"]:
                yield from unknown(schema["properties"][name], member, f"{path}.{name}")
            elif path not in ("", ".metadata"):
                yield f"{path}.{name}"
    elif isinstance(value, list) and "items" in schema:
        for index, member in enumerate(value):
            yield from unknown(schema["items"], member, f"{path}[{index}]")


def unknown_of(crds: Sequence[Object], each: Object) -> list[str]:
    group, _, version = each["apiVersion"].partition("/")
    for crd in crds:
        if (crd["spec"]["group"], crd["spec"]["names"]["kind"]) == (group, each["kind"]):
            (found,) = [known for known in crd["spec"]["versions"] if known["name"] == version]
            return [f"{each['kind']}{path}" for path in unknown(found["schema"]["openAPIV3Schema"], each)]
    return []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_accepts_every_object_without_dropping_a_field(
    overlay: str, rendered: dict[str, list[Object]], cluster: ControlPlane
) -> None:
    objects = rendered[overlay]
    try:
        assert accept(cluster, objects) == []
    finally:  # a Job cannot be changed, and that of another overlay may be of the same name
        namespace = find(objects, "Namespace", _namespace(objects))["metadata"]["name"]
        cluster.kubectl("-n", namespace, "delete", "jobs", "--all", "--cascade=orphan")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_field_is_in_its_schema(
    overlay: str, rendered: dict[str, list[Object]], knative_crds: list[Object], own_crd: Object
) -> None:
    assert [path for each in rendered[overlay] for path in unknown_of([*knative_crds, own_crd], each)] == []


@pytest.mark.parametrize("name", SAMPLES)
def test_the_api_server_accepts_every_sample(name: str, cluster: ControlPlane) -> None:
    objects = sample(name)
    cluster.kubectl("apply", "-f", "-", given='{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"darkroom"}}')
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    cluster.kubectl("create", "--dry-run=server", "-f", "-", given=given)
    cluster.kubectl("create", "-f", "-", given=given)
    for each in of_kind(objects, "WorkerPool"):  # two samples are the same pool, for different machines
        cluster.kubectl("delete", "workerpool", each["metadata"]["name"], "--namespace=darkroom")


Spoil = Callable[[list[Object]], Object]


def _service(change: Callable[[Object], None]) -> Spoil:
    def spoil(objects: list[Object]) -> Object:
        service = find(objects, "Service", "result", version=SERVING)
        change(service["spec"]["template"]["spec"])
        return service

    return spoil


def _changed(kind: str, name: str, change: Callable[[Object], None]) -> Spoil:
    def spoil(objects: list[Object]) -> Object:
        each = find(objects, kind, name)
        change(each["spec"])
        return each

    return spoil


SPOILT = {
    "Knative Service, unknown": _service(lambda pod: pod.update(timeoutSecond=600)),
    "Knative Service, unknown in a container": _service(lambda pod: pod["containers"][0].update(lifecycle={})),
    "Knative Service, wrong type": _service(lambda pod: pod.update(containerConcurrency="none")),
    "Trigger, unknown": _changed("Trigger", "applied", lambda spec: spec.update(brokers="default")),
    "Trigger, unknown in delivery": _changed("Trigger", "applied", lambda spec: spec["delivery"].update(retries=3)),
    "Trigger, wrong type": _changed("Trigger", "applied", lambda spec: spec["delivery"].update(retry="ten")),
    "Broker, wrong type": _changed("Broker", "default", lambda spec: spec["delivery"].update(retry=[])),
    "SinkBinding, unknown": _changed("SinkBinding", "courier", lambda spec: spec.update(sinks=[])),
    "Deployment, unknown": _changed("Deployment", "courier", lambda spec: spec.update(replica=3)),
    "Deployment, wrong type": _changed("Deployment", "courier", lambda spec: spec.update(replicas="two")),
    "PodDisruptionBudget, unknown": _changed(
        "PodDisruptionBudget", "courier", lambda spec: spec.update(maxUnavailables=1)
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_unknown_fields_and_wrong_types_are_detected(
    how: str, rendered: dict[str, list[Object]], cluster: ControlPlane, knative_crds: list[Object]
) -> None:
    """The tests above detect such fields."""
    objects = copy.deepcopy(rendered["k3d"])
    apply(cluster, [each for each in objects if each["kind"] == "Namespace"])
    spoilt = SPOILT[how](objects)
    if unknown_of(knative_crds, spoilt):
        return
    try:
        dropped = accept(cluster, [spoilt])
    except AssertionError:
        return
    assert dropped != []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_restricted_by_itself(overlay: str, rendered: dict[str, list[Object]]) -> None:
    """Pod security `restricted` on containers, since Serving rejects it on pods."""
    found = [*pods(rendered[overlay]), *(pod for name in SAMPLES for pod in pods(sample(name)))]
    assert found
    for what, pod in found:
        for container in containers(pod):
            context = container["securityContext"]
            said = {name: context.get(name) for name in ("runAsNonRoot", "readOnlyRootFilesystem")}
            assert said == {"runAsNonRoot": True, "readOnlyRootFilesystem": True}, what
            assert context["allowPrivilegeEscalation"] is False, what
            assert context["capabilities"] == {"drop": ["ALL"]}, what
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, what
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, what


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_the_overlays_namespace(overlay: str, rendered: dict[str, list[Object]]) -> None:
    cluster_wide = {"Namespace", "CustomResourceDefinition"}
    namespaces = {each["metadata"].get("namespace") for each in rendered[overlay] if each["kind"] not in cluster_wide}
    assert namespaces == {_namespace(rendered[overlay])}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_manifest_contains_a_secret(overlay: str, rendered: dict[str, list[Object]]) -> None:
    """There is no Secret, and no variable of a Secret has a value."""
    assert [each for each in rendered[overlay] if each["kind"] == "Secret"] == []
    for what, pod in pods(rendered[overlay]):
        for container in containers(pod):
            for variable in container.get("env", []):
                if variable["name"].endswith(("_KEY", "_KEYS", "_PASSWORD", "_URL", "_AUTH")):
                    assert "secretKeyRef" in variable["valueFrom"], (what, variable)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_has_a_tag_or_a_digest(overlay: str, rendered: dict[str, list[Object]]) -> None:
    images = {container["image"] for _, pod in pods(rendered[overlay]) for container in containers(pod)}
    assert [image for image in images if ":" not in image or image.endswith(":latest")] == []


def test_no_timeout_closes_a_socket_before_its_own_limit(rendered: dict[str, list[Object]]) -> None:
    """Sockets are held by replicas of `result`: the timeout is Serving's maximum, and one replica always runs."""
    template = find(rendered["k3d"], "Service", "result", version=SERVING)["spec"]["template"]
    assert template["spec"]["timeoutSeconds"] == 600
    assert int(template["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"]) >= 1


def test_the_operators_manifests_are_the_tested_ones(rendered: dict[str, list[Object]]) -> None:
    container = main_container(find(rendered["k3d"], "Deployment", "darkroom-operator"))
    assert container["command"] == ["python", "-m", "darkroom_operator"]


def _namespace(objects: Sequence[Object]) -> str:
    (namespace,) = [each["metadata"]["name"] for each in objects if each["kind"] == "Namespace"]
    return str(namespace)

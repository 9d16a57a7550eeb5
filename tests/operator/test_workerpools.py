"""The CRD on a real API server: descriptions, defaults, columns and validation."""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from darkroom.scaling.fields import FIELDS

from tests.knative.rendering import SAMPLES, of_kind, sample
from tests.operator import cel_rules
from tests.operator.cel_rules import CEL
from tests.operator.conftest import Stage, pool_manifest
from tests.operator.control_plane import ControlPlane
from tests.operator.down_conversion import older

SIZE_LIMIT = 200_000
"""In bytes. A client-side apply fails beyond 256 KiB."""

Object = dict[str, Any]


def _schema(manifests: dict[str, list[Object]]) -> Object:
    (version,) = manifests["workerpools"][0]["spec"]["versions"]
    schema: Object = version["schema"]["openAPIV3Schema"]
    return schema


def _fields(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    for name, member in schema.get("properties", {}).items():
        yield f"{path}.{name}", member
        yield from _fields(member, f"{path}.{name}")
    if "items" in schema:
        yield f"{path}[]", schema["items"]
        yield from _fields(schema["items"], f"{path}[]")


def test_every_field_has_a_description(manifests: dict[str, list[Object]]) -> None:
    lacking = [path for path, member in _fields(_schema(manifests)) if not member.get("description")]
    assert lacking == [".metadata"]  # which the API server does not let us describe


def test_the_crd_is_small(manifests: dict[str, list[Object]]) -> None:
    assert len(json.dumps(manifests["workerpools"][0])) < SIZE_LIMIT


def test_the_down_conversion_removes_only_rules(manifests: dict[str, list[Object]]) -> None:
    shipped = json.dumps(manifests["workerpools"][0], sort_keys=True)
    assert CEL in shipped

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(member) for name, member in value.items() if name != CEL}
        return [without(member) for member in value] if isinstance(value, list) else value

    assert older(manifests["workerpools"][0]) == without(json.loads(shipped))


@pytest.mark.parametrize("name", ["rbac", "deployment", "workerpools"])
def test_manifests_have_current_api_versions_only(manifests: dict[str, list[Object]], name: str) -> None:
    current = {"v1", "apps/v1", "rbac.authorization.k8s.io/v1", "apiextensions.k8s.io/v1"}
    assert {body["apiVersion"] for body in manifests[name]} <= current


def test_rights_name_their_resources_and_verbs(manifests: dict[str, list[Object]]) -> None:
    roles = [body for body in manifests["rbac"] if body["kind"].endswith("Role")]
    assert [role["kind"] for role in roles] == ["Role"]
    for rule in roles[0]["rules"]:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert "secrets" not in rule["resources"]
        assert "delete" not in rule["verbs"] or rule["resources"] == ["pods"]


def test_the_known_fields_are_those_of_the_schema(manifests: dict[str, list[Object]]) -> None:
    """Each object preserves unknown fields, so that the operator can reject them."""
    spec = _schema(manifests)["properties"]["spec"]
    objects = {"": spec} | {
        f"{name}[]" if "items" in member else name: member.get("items", member)
        for name, member in spec["properties"].items()
        if "properties" in member.get("items", member)
    }
    assert {path: set(names) for path, names in FIELDS.items()} == {
        path: set(member["properties"]) for path, member in objects.items()
    }
    assert all(member["x-kubernetes-preserve-unknown-fields"] for member in objects.values())


@pytest.mark.parametrize("field", ["minReplicas", "target.waitSeconds", "scaleDown.idleSeconds", "paused", "schedule"])
def test_kubectl_explains_a_field(control_plane: ControlPlane, manifests: dict[str, list[Object]], field: str) -> None:
    """From OpenAPI v3. OpenAPI v2, the only one of old servers, describes no field below one with unknown fields."""
    member = _schema(manifests)["properties"]["spec"]
    for name in () if control_plane.is_old else field.split("."):
        member = member["properties"][name]
    said = re.sub(r"\s+", " ", control_plane.kubectl("explain", f"workerpools.spec.{field}"))
    assert re.sub(r"\s+", " ", member["description"]) in said


def test_defaults_are_applied(stage: Stage) -> None:
    spec = stage.apply("flux")["spec"]
    assert spec["minReplicas"] == 0
    assert spec["scaleUp"] == {"waitSeconds": 0}
    assert spec["scaleDown"] == {"idleSeconds": 60}
    assert spec["gpu"] == {"count": 1, "resourceName": "nvidia.com/gpu"}
    assert spec["rollout"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert (spec["buffer"], spec["paused"], spec["drainSeconds"], spec["graceSeconds"]) == (0, "none", 60, 90)
    assert spec["schedule"] == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"models": []}, "spec.models"),
        ({"models": ["Flux"]}, "spec.models"),
        ({"maxReplicas": 0}, "spec.maxReplicas"),
        ({"minReplicas": -1}, "spec.minReplicas"),
        ({"paused": "yes"}, "spec.paused"),
        ({"target": {"jobsPerReplica": 0}}, "spec.target.jobsPerReplica"),
        ({"template": {}}, "spec.template.spec"),
        ({"gpu": {"count": 65}}, "spec.gpu.count"),
        ({"schedule": [{"start": "0 8 * * *"}]}, "spec.schedule[0].end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_field_is_rejected_by_its_name(stage: Stage, change: Object, named: str) -> None:
    if stage.control_plane.is_old:
        named = named.replace("[0]", "")  # it does not count the items of a list
    body = json.dumps(pool_manifest("flux", **change))
    arguments = ("-n", stage.namespace, "create", "--validate=false", "-f", "-")  # kubectl does not judge
    assert named in stage.control_plane.kubectl(*arguments, given=body, fails=True)


def test_a_missing_key_breaks_a_rule(manifests: dict[str, list[Object]]) -> None:
    """The tests below detect a rule without `has()` by a default that lacks its key."""
    schema = deepcopy(_schema(manifests))
    rollout = schema["properties"]["spec"]["properties"]["rollout"]
    rollout[CEL] = [{"rule": "self.maxSurge > 0 || self.maxUnavailable > 0", "message": "not both 0"}]
    assert any("self.spec.rollout" in each for each in cel_rules.broken_by_defaults(schema, "self"))
    rollout[CEL] = [{"rule": "self.maxSurge >= oldSelf.maxSurge", "message": "maxSurge must not fall"}]
    pool = cel_rules.with_defaults(schema, pool_manifest("flux"))
    assert cel_rules.broken(schema, pool) == []
    fallen = cel_rules.with_defaults(schema, pool_manifest("flux", rollout={"maxSurge": 1}))
    assert cel_rules.broken(schema, pool, before=fallen) == ["self.spec.rollout: maxSurge must not fall"]


def test_the_defaults_of_the_schema_conform_to_its_rules(manifests: dict[str, list[Object]]) -> None:
    """The API server evaluates the rules on each default as written, and rejects the CRD if one fails."""
    assert cel_rules.broken_by_defaults(_schema(manifests)) == []


def _partial(schema: Object) -> Iterator[Object]:
    """Specifications with one field, and with all but one."""
    fields = schema["properties"]["spec"]["properties"]
    whole = cel_rules.with_defaults(schema, pool_manifest("flux"))["spec"]
    for name in fields:
        if name in whole:
            yield {name: whole[name]}
            yield {other: member for other, member in whole.items() if other != name}


def test_every_rule_guards_optional_keys(manifests: dict[str, list[Object]]) -> None:
    """With and without defaults, also for minimal specifications."""
    schema = _schema(manifests)
    for spec in ({}, {"schedule": [{}]}, *_partial(schema)):
        pool = {**pool_manifest("flux"), "spec": spec}
        assert cel_rules.broken(schema, pool) == []
        assert cel_rules.broken(schema, cel_rules.with_defaults(schema, pool)) == []


def test_the_samples_conform_to_the_rules(manifests: dict[str, list[Object]]) -> None:
    schema = _schema(manifests)
    pools = [each for name in SAMPLES for each in of_kind(sample(name), "WorkerPool")]
    assert pools
    for pool in pools:
        whole = cel_rules.with_defaults(schema, pool)
        assert (cel_rules.broken(schema, whole), cel_rules.broken(schema, whole, before=whole)) == ([], [])


BETWEEN_FIELDS: list[tuple[Object, list[str]]] = [
    ({}, []),
    ({"minReplicas": 5, "maxReplicas": 5, "buffer": 5}, []),
    ({"schedule": [{"start": "0 8 * * *", "end": "0 18 * * *", "replicas": 5}]}, []),
    ({"target": {"waitSeconds": 30}}, []),
    ({"minReplicas": 6}, ["minReplicas must not be above maxReplicas"]),
    ({"buffer": 6}, ["buffer must not be above maxReplicas"]),
    (
        {"schedule": [{"start": "0 8 * * *", "end": "0 18 * * *", "replicas": 6}]},
        ["replicas of a window in schedule must not be above maxReplicas"],
    ),
    (
        {"drainSeconds": 60, "graceSeconds": 69},
        ["graceSeconds must be at least 10 above drainSeconds, so that a worker can release its job"],
    ),
    ({"target": {"jobsPerReplica": 1, "waitSeconds": 30}}, ["jobsPerReplica and waitSeconds exclude one another"]),
    (
        {"rollout": {"maxSurge": 0, "maxUnavailable": 0}},
        ["maxSurge and maxUnavailable must not both be 0"],
    ),
]
"""A change of a pool, and the rules that it breaks."""


@pytest.mark.parametrize(("change", "broken"), BETWEEN_FIELDS)
def test_the_rules_between_fields_reject_invalid_pools(
    manifests: dict[str, list[Object]], change: Object, broken: list[str]
) -> None:
    """`test_operator.py` tests what the operator reports for a broken rule."""
    schema = _schema(manifests)
    found = cel_rules.broken(schema, cel_rules.with_defaults(schema, pool_manifest("flux", **change)))
    assert [message.partition(": ")[2] for message in found] == broken


NAMES = ["1flux", "a" * 42, "flux.one"]
"""Invalid names."""


@pytest.mark.parametrize("name", NAMES)
def test_an_invalid_name_of_a_pool_breaks_a_rule(manifests: dict[str, list[Object]], name: str) -> None:
    schema = _schema(manifests)
    (message,) = cel_rules.broken(schema, cel_rules.with_defaults(schema, pool_manifest(name)))
    assert message.startswith("self: a pool's name")


def _refused(stage: Stage, pool: Object) -> list[str]:
    """The messages of the rules for which the API server rejects the pool."""
    path = f"/apis/darkroom.dev/v1alpha1/namespaces/{stage.namespace}/workerpools?dryRun=All"
    try:
        stage.control_plane.ask("POST", path, pool)
    except urllib.error.HTTPError as error:
        return [cause["message"].rpartition(": ")[2] for cause in json.load(error)["details"]["causes"]]
    return []


@pytest.mark.parametrize(("change", "broken"), BETWEEN_FIELDS)
def test_the_api_server_evaluates_the_rules_between_fields(stage: Stage, change: Object, broken: list[str]) -> None:
    """Kubernetes 1.20 has no CEL, and accepts what the rules reject."""
    assert _refused(stage, pool_manifest("flux", **change)) == ([] if stage.control_plane.is_old else broken)


@pytest.mark.parametrize("name", NAMES)
def test_the_api_server_evaluates_the_rule_of_the_name(stage: Stage, name: str) -> None:
    refused = _refused(stage, pool_manifest(name, models=["flux"]))
    assert [message.partition(" begins")[0] for message in refused] == (
        [] if stage.control_plane.is_old else ["a pool's name"]
    )


def test_kubectl_shows_the_columns(stage: Stage) -> None:
    stage.apply("flux", minReplicas=1)
    header, row = stage.control_plane.kubectl("-n", stage.namespace, "get", "wp").splitlines()
    names = "NAME MIN MAX DESIRED READY BUSY WAITING RUNNING OLDEST REASON AGE"
    assert header.split() == names.split()
    assert row.split()[:3] == ["flux", "1", "5"]


def test_kubectl_scale_sets_the_minimum(stage: Stage) -> None:
    stage.apply("flux")
    stage.control_plane.kubectl("-n", stage.namespace, "scale", "wp/flux", "--replicas=3")
    assert stage.pool("flux")["spec"]["minReplicas"] == 3


def test_kubectl_scale_does_not_set_a_minimum_above_the_maximum(stage: Stage) -> None:
    """Kubernetes 1.20 accepts it, and the operator reports it."""
    stage.apply("flux")
    beyond = ("-n", stage.namespace, "scale", "wp/flux", "--replicas=6")
    said = stage.control_plane.kubectl(*beyond, fails=not stage.control_plane.is_old)
    assert ("minReplicas must not be above maxReplicas" in said) is not stage.control_plane.is_old

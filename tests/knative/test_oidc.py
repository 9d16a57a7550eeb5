"""The component for clusters where Knative's OIDC authentication is on: senders, audience, tokens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.knative.rendering import KNATIVE, SERVING, Object, find, kubectl, main_container, of_kind, render
from tests.knative.test_overlays import accept, unknown_of
from tests.operator.control_plane import ControlPlane

AUDIENCE = "eventing.knative.dev/broker/darkroom/default"
"""The audience of a Broker: group, kind, namespace and name (knative/eventing, pkg/auth/audience.go)."""


@pytest.fixture(params=["k3d", "prod"])
def objects(request: pytest.FixtureRequest, rendered: dict[str, list[Object]], tmp_path: Path) -> list[Object]:
    """An overlay with the component."""
    program = kubectl()
    assert program is not None
    assert rendered
    place = os.path.relpath(KNATIVE.resolve(), tmp_path.resolve())
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{place}/overlays/{request.param}"],
        "components": [f"{place}/components/oidc"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(program, tmp_path)


def test_the_broker_accepts_the_parts_that_post_to_it_and_no_others(objects: list[Object]) -> None:
    (policy,) = of_kind(objects, "EventPolicy")
    assert [each["ref"]["kind"] for each in policy["spec"]["to"]] == ["Broker"]
    senders = {(each["ref"]["kind"], each["ref"]["name"]) for each in policy["spec"]["from"]}
    bindings = {("SinkBinding", each["metadata"]["name"]) for each in of_kind(objects, "SinkBinding")}
    assert senders == bindings | {("Trigger", "requested")}, "`submit` answers with an event"
    for each in (*policy["spec"]["to"], *policy["spec"]["from"]):
        assert find(objects, each["ref"]["kind"], each["ref"]["name"], version=each["ref"]["apiVersion"])


def test_every_sender_names_the_audience_and_sends_its_token(objects: list[Object]) -> None:
    for binding in of_kind(objects, "SinkBinding"):
        assert binding["spec"]["sink"]["audience"] == AUDIENCE
        subject = binding["spec"]["subject"]
        container = main_container(find(objects, subject["kind"], subject["name"], version=subject["apiVersion"]))
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert variables["DARKROOM_SINK_TOKEN_FILE"] == "/oidc/token"


def test_the_api_server_accepts_the_component(
    objects: list[Object], cluster: ControlPlane, knative_crds: list[Object]
) -> None:
    own = [each for each in objects if each["kind"] in {"Namespace", "EventPolicy", "SinkBinding"}]
    assert accept(cluster, own) == []
    assert [path for each in own for path in unknown_of(knative_crds, each)] == []


def test_functions_behind_the_gateway_have_no_public_address(rendered: dict[str, list[Object]]) -> None:
    """`undelivered` never has one."""
    for overlay, each in rendered.items():
        has_gateway = any(service["metadata"]["name"] == "gateway" for service in of_kind(each, "Deployment"))
        for service in of_kind(each, "Service", version=SERVING):
            is_local = service["metadata"].get("labels", {}).get("networking.knative.dev/visibility") == "cluster-local"
            name = service["metadata"]["name"]
            assert is_local == (has_gateway or name == "undelivered"), f"{overlay}: {name}"

"""The gateway in the manifests: addresses of functions, start, probes and network policy."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom_functions.settings import SubmitSettings

from tests.gateway.running import Gateway, running, start_program
from tests.knative.rendering import OVERLAYS, SERVING, Object, find, main_container, variables_of
from tests.waiting import eventually

Rendered = dict[str, list[Object]]

FUNCTIONS = {"SUBMIT": "submit", "JOBS": "jobs", "RESULT": "result"}
"""The functions that it calls. `undelivered` is for operators, not for callers."""


def environment(objects: list[Object]) -> dict[str, str]:
    return variables_of(objects, main_container(find(objects, "Deployment", "gateway")), {})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_calls_the_functions_by_their_knative_names(overlay: str, rendered: Rendered) -> None:
    values = environment(rendered[overlay])
    places = {name: value for name, value in values.items() if value.endswith(".svc.cluster.local")}
    places.pop("DARKROOM_PUBLIC_URL", None)
    assert places == {
        f"DARKROOM_GATEWAY_{name}": f"{service}.{values['NAMESPACE']}.svc.cluster.local"
        for name, service in FUNCTIONS.items()
    }
    for service in FUNCTIONS.values():
        assert find(rendered[overlay], "Service", service, version=SERVING)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_links_to_artifacts_name_the_gateway(overlay: str, rendered: Rendered) -> None:
    """By its name in the cluster, or by the address that the overlay sets for callers."""
    values = environment(rendered[overlay])
    by_overlay = {"k3d": "http://localhost:8000", "prod": "https://darkroom.example.org"}
    inside = f"http://gateway.{values['NAMESPACE']}.svc.cluster.local"
    assert values["DARKROOM_PUBLIC_URL"] == by_overlay.get(overlay, inside)
    (port,) = find(rendered[overlay], "Service", "gateway", version="v1")["spec"]["ports"]
    assert port["port"] == 80


def test_it_has_no_unknown_variable(rendered: Rendered) -> None:
    names = {variable["name"] for variable in main_container(_deployment(rendered))["env"]}
    described = (Path(__file__).parents[2] / "functions" / "gateway" / "start").read_text().partition("set -eu")[0]
    assert {name for name in names if name not in described} - {f"DARKROOM_GATEWAY_{each}" for each in FUNCTIONS} == {
        "NAMESPACE"
    }


def test_its_grace_period_covers_the_requests_that_it_holds(rendered: Rendered) -> None:
    template = (Path(__file__).parents[2] / "functions" / "gateway" / "start").read_text()
    (beyond,) = re.findall(r"SHUTDOWN_S.*max_wait_s \+ (\d+)", template)
    longest_wait = SubmitSettings.model_fields["max_wait_s"].default
    pause = int(main_container(_deployment(rendered))["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = _deployment(rendered)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > pause + longest_wait + int(beyond)


@pytest.mark.parametrize("overlay", ["gpu", "prod"])
def test_its_network_policy_allows_every_source(overlay: str, rendered: Rendered) -> None:
    policy = find(rendered[overlay], "NetworkPolicy", "gateway")["spec"]
    labels = find(rendered[overlay], "Deployment", "gateway")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["ingress"] == [
        {"ports": [{"port": main_container(_deployment(rendered))["ports"][0]["containerPort"]}]}
    ]


def test_it_starts_with_its_manifest_and_passes_its_probes(rendered: Rendered, tmp_path: Path) -> None:
    container = main_container(_deployment(rendered))
    assert Path(container["command"][0]).name == start_program().name
    (mount,) = container["volumeMounts"]
    values: dict[str, Any] = environment(rendered["k3d"])
    assert values["DARKROOM_GATEWAY_FOLDER"].startswith(f"{mount['mountPath']}/")
    assert values["DARKROOM_GATEWAY_PORT"] == str(container["ports"][0]["containerPort"])
    own = {"DARKROOM_GATEWAY_FOLDER", "DARKROOM_GATEWAY_PORT", *(f"DARKROOM_GATEWAY_{name}" for name in FUNCTIONS)}
    more = {name: value for name, value in values.items() if name not in own}
    with running(tmp_path, dict.fromkeys(FUNCTIONS, "127.0.0.1:1"), **more) as gateway:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == container["ports"][0]["name"]
            assert httpx.get(f"{gateway.url}{asked['path']}", trust_env=False).is_success
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0


def test_it_waits_for_functions_without_an_address(tmp_path: Path) -> None:
    start_program()
    gateway = Gateway(tmp_path, {f"DARKROOM_GATEWAY_{name}": "not..there" for name in FUNCTIONS})
    gateway.launch()
    try:
        (line, *_) = eventually(lambda: gateway.lines("waits_for_name"), what="it to say whom it waits for")
        assert "not..there" in line["message"]
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
    finally:
        gateway.kill()


def _deployment(rendered: Rendered) -> Object:
    return find(rendered["k3d"], "Deployment", "gateway")

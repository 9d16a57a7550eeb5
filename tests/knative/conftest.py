"""Fixtures of the tests of the manifests: rendered overlays, and an API server with Knative's CRDs.

A machine may lack kubectl, Knative's CRDs or the programs of a control plane, but the gate (`.ci/run`) may not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.knative import bootstrap_program, manifest_redis
from tests.knative.rendering import KNATIVE, OVERLAYS, Object, kubectl, render
from tests.operator.control_plane import ControlPlane, assets
from tests.redis_server import RedisKind, needed_binary
from tests.waiting import eventually


def _lacks(what: str) -> None:
    if "CI" in os.environ:
        raise LookupError(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Object]]:
    """The objects of every overlay, by its name."""
    program = kubectl()
    if program is None:
        _lacks("no kubectl of 1.21 or newer on the PATH or among KUBEBUILDER_ASSETS: older ones know no components")
    assert program is not None
    return {name: render(program, KNATIVE / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="session")
def knative_crds() -> list[Object]:
    """Knative's own resource definitions: KNATIVE_CRDS names their folder. CONTRIBUTING.md says how to get them."""
    named = os.environ.get("KNATIVE_CRDS")
    files = sorted(Path(named).glob("*.yaml")) if named else []
    found = [each for path in files for each in yaml.safe_load_all(path.read_text()) if each]
    crds = [each for one in found for each in (one["items"] if one["kind"] == "List" else [one])]
    if not crds:
        _lacks(f"KNATIVE_CRDS names no folder with Knative's resource definitions, but {named!r} (CONTRIBUTING.md)")
    return crds


@pytest.fixture(scope="session")
def own_crd() -> Object:
    crd: Object = yaml.safe_load((KNATIVE / "base" / "operator" / "workerpools.yaml").read_text())
    return crd


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, knative_crds: list[Object], own_crd: Object
) -> Iterator[ControlPlane]:
    """An API server with Knative's CRDs and ours."""
    programs = assets()
    if programs is None:
        _lacks("KUBEBUILDER_ASSETS names no folder with etcd, kube-apiserver and the others")
    assert programs is not None
    plane = ControlPlane(programs, tmp_path_factory.mktemp("knative-plane"))
    crds = [*knative_crds, own_crd]
    try:
        plane.start()
        kinds = {"apiVersion": "v1", "kind": "List", "items": plane.fitted(crds)}
        plane.kubectl("apply", "--server-side", "-f", "-", given=json.dumps(kinds))
        names = [f"crd/{crd['metadata']['name']}" for crd in crds]
        plane.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
        eventually(lambda: all(_is_served(plane, crd) for crd in crds), what="every kind is served")
        yield plane
    finally:
        plane.stop()


def _is_served(plane: ControlPlane, crd: Object) -> bool:
    spec = crd["spec"]
    return plane.find(f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}") is not None


@pytest.fixture(scope="session")
def bootstrap() -> ModuleType:
    """The program of the bootstrap Job."""
    return bootstrap_program.load()


@pytest.fixture(params=list(RedisKind))
def users(
    request: pytest.FixtureRequest, rendered: dict[str, list[Object]], bootstrap: ModuleType, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """The addresses of Redis by user, for Redis as in its manifest, of either build."""
    secret = bootstrap.redis_secret({"DARKROOM_NAMESPACE": "darkroom", "REDIS_DATABASE": "0"})
    folder = tmp_path / "redis"
    folder.mkdir()
    with manifest_redis.running(needed_binary(request.param), rendered["k3d"], secret, folder) as found:
        yield found

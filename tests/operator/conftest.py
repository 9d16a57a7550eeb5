"""Fixtures: a control plane with darkroom's CRD, and for each test a namespace with the objects that an operator needs.

Tests are skipped on a machine without the programs of a control plane, but not in the gate (`.ci/run`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.operator.control_plane import ControlPlane, needed_assets
from tests.operator.kubelet import Kubelet
from tests.operator.running_operator import RunningOperator, operator_config
from tests.waiting import eventually

Object = dict[str, Any]


@pytest.fixture(scope="session")
def manifests(repository: Path) -> dict[str, list[Object]]:
    """The operator's manifests by the name of the file."""
    folder = repository / "knative" / "base" / "operator"
    return {path.stem: list(yaml.safe_load_all(path.read_text())) for path in folder.glob("*.yaml")}


@pytest.fixture(scope="session")
def control_plane(
    tmp_path_factory: pytest.TempPathFactory, manifests: dict[str, list[Object]]
) -> Iterator[ControlPlane]:
    plane = ControlPlane(needed_assets(), tmp_path_factory.mktemp("control-plane"))
    try:
        plane.start()
        given = json.dumps(plane.fitted(manifests["workerpools"][0]))
        plane.kubectl("apply", "--server-side", "-f", "-", given=given)
        plane.kubectl("wait", "--for=condition=Established", "crd/workerpools.darkroom.dev", "--timeout=60s")
        eventually(lambda: plane.explains("workerpools"), what="kubectl explain knows of worker pools")
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def front(control_plane: ControlPlane) -> Iterator[str | None]:
    """The address of the API server for the operator, if it is another one."""
    with control_plane.front() as address:
        yield address


@dataclass
class Stage:
    """One namespace with the operator's account and rights, and methods to read and change its objects."""

    control_plane: ControlPlane
    namespace: str
    config: Path
    folder: Path
    redis_url: str
    prefix: str
    operators: list[RunningOperator] = field(default_factory=list)

    def operator(self, *, redis_url: str | None = None, **settings: str) -> RunningOperator:
        """Another operator, not started. It is stopped after the test."""
        running = RunningOperator(
            self.config,
            self.folder / f"operator-{len(self.operators)}.log",
            namespace=self.namespace,
            redis_url=redis_url or self.redis_url,
            prefix=self.prefix,
            **settings,
        )
        self.operators.append(running)
        return running

    def apply(self, name: str, **spec: Any) -> Object:
        """Create or change a pool."""
        body = pool_manifest(name, **spec)
        self.control_plane.kubectl("-n", self.namespace, "apply", "-f", "-", given=json.dumps(body))
        return self.pool(name)

    def pool(self, name: str) -> Object:
        found: Object | None = self.find_pool(name)
        assert found is not None
        return found

    def find_pool(self, name: str) -> Object | None:
        path = f"/apis/darkroom.dev/v1alpha1/namespaces/{self.namespace}/workerpools/{name}"
        found: Object | None = self.control_plane.find(path)
        return found

    def deployment(self, pool: str) -> Object | None:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/darkroom-{pool}"
        found: Object | None = self.control_plane.find(path)
        return found

    def replicas(self, pool: str) -> int | None:
        found = self.deployment(pool)
        return None if found is None else int(found["spec"]["replicas"])

    def pods(self, pool: str) -> list[Object]:
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=darkroom.dev/pool={pool}"
        items: list[Object] = self.control_plane.ask("GET", path)["items"]
        return items

    def events(self, pool: str) -> list[Object]:
        items: list[Object] = self.control_plane.ask("GET", f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return [item for item in items if item["involvedObject"]["name"] == pool]

    def condition(self, pool: str, kind: str) -> Object:
        """The condition, or an empty one."""
        conditions = (self.find_pool(pool) or {}).get("status", {}).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    @property
    def budgets(self) -> str:
        """The path of the PodDisruptionBudgets."""
        version = "v1beta1" if self.control_plane.is_old else "v1"
        return f"/apis/policy/{version}/namespaces/{self.namespace}/poddisruptionbudgets"

    def has_replicas(self, pool: str, number: int) -> None:
        """Wait for the condition of the pool."""
        try:
            eventually(lambda: self.replicas(pool) == number, what=f"{pool} has {number} replicas")
        except AssertionError as error:
            said = "\n".join(running.said()[-6000:] for running in self.operators)
            raise AssertionError(f"{error}\n{self.find_pool(pool)}\n{said}") from None


def pool_manifest(name: str, **spec: Any) -> Object:
    template = {"spec": {"containers": [{"name": "worker", "image": "darkroom-worker"}]}}
    return {
        "apiVersion": "darkroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": name},
        "spec": {"models": [name], "maxReplicas": 5, "template": template, **spec},
    }


@pytest.fixture
def stage(
    control_plane: ControlPlane,
    front: str | None,
    manifests: dict[str, list[Object]],
    redis_url: str,
    namespace: str,
    tmp_path: Path,
) -> Iterator[Stage]:
    kubernetes_namespace = f"t-{secrets.token_hex(6)}"
    control_plane.kubectl("create", "namespace", kubernetes_namespace)
    rights = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests["rbac"]})
    control_plane.kubectl("-n", kubernetes_namespace, "apply", "-f", "-", given=rights)
    config = operator_config(control_plane, tmp_path, namespace=kubernetes_namespace, server=front)
    stage = Stage(control_plane, kubernetes_namespace, config, tmp_path, redis_url, namespace)
    yield stage
    for running in stage.operators:
        running.end()


@pytest.fixture
def kubelet(stage: Stage) -> Iterator[Kubelet]:
    """A stand-in for the kubelet of the stage's namespace: pods run, are ready, and exit when they are deleted."""
    running = Kubelet(stage.control_plane, stage.namespace)
    running.start()
    yield running
    running.stop()

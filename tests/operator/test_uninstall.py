"""Uninstallation while a pool runs jobs, in any order: nothing waits for a deleted operator."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.operator.conftest import Stage, pool_manifest
from tests.operator.control_plane import ControlPlane
from tests.waiting import eventually

Object = dict[str, Any]

FINALIZER = "darkroom.dev/drain"
"""The finalizer of earlier versions."""

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workerpools.darkroom.dev"

ORDERS = {
    "as kubectl delete -k does": ("namespace", "crd", "rights", "operator"),
    "the operator first": ("operator", "rights", "crd", "namespace"),
    "the kind first": ("crd", "operator", "namespace", "rights"),
    "the rights first": ("rights", "namespace", "operator", "crd"),
}


@pytest.fixture
def install_crd(control_plane: ControlPlane, manifests: dict[str, list[Object]]) -> Iterator[Callable[[], None]]:
    """Install the CRD again, also after a test, since other tests need it."""

    def install() -> None:
        given = json.dumps(control_plane.fitted(manifests["workerpools"][0]))
        eventually(lambda: control_plane.find(CRD) is None, what="the CRD is gone")
        control_plane.kubectl("apply", "--server-side", "-f", "-", given=given)
        control_plane.kubectl("wait", "--for=condition=Established", "crd/workerpools.darkroom.dev", "--timeout=60s")
        eventually(lambda: control_plane.explains("workerpools"), what="kubectl explain knows of worker pools")

    yield install
    if control_plane.find(CRD) is None:
        install()


@pytest.mark.usefixtures("install_crd")
@pytest.mark.parametrize("order", ORDERS)
def test_deletion_completes_in_any_order(order: str, stage: Stage) -> None:
    plane = stage.control_plane
    operator = stage.operator()
    operator.lead()
    stage.apply("flux", minReplicas=1)
    eventually(lambda: stage.pods("flux"), what="the pool has a pod")
    for step in ORDERS[order]:
        if step == "operator":
            assert operator.end() == 0, operator.said()
        elif step == "rights":
            plane.kubectl("-n", stage.namespace, "delete", "role,rolebinding", "--all", "--wait=false")
        else:
            name = {"namespace": stage.namespace, "crd": "workerpools.darkroom.dev"}[step]
            plane.kubectl("delete", step, name, "--wait=false")
    eventually(lambda: plane.find(CRD) is None, what="the CRD is gone")
    eventually(lambda: plane.find(f"/api/v1/namespaces/{stage.namespace}") is None, what="the namespace is gone")


def test_an_operator_without_the_crd_exits_and_the_next_waits_for_it(
    stage: Stage, install_crd: Callable[[], None]
) -> None:
    """The CRD is deleted with all pools and installed again; Kubernetes restarts the operator meanwhile."""
    operator = stage.operator()
    operator.lead()
    stage.apply("flux", minReplicas=1)
    stage.has_replicas("flux", 1)
    stage.control_plane.kubectl("delete", "crd", "workerpools.darkroom.dev", "--timeout=60s")
    eventually(operator.has_ended, what="the operator has ended")
    assert operator.end() == 1
    operator.start()
    eventually(lambda: "not_read_yet" in operator.said(), what="the next one waits")
    install_crd()
    stage.apply("flux", minReplicas=2)
    stage.has_replicas("flux", 2)
    assert operator.status_of("/healthz") == 200


def test_the_finalizer_of_earlier_versions_is_removed(stage: Stage) -> None:
    """From an existing pool, and from one whose deletion waits for it."""
    plane = stage.control_plane
    for name in ("flux", "sd"):
        body = pool_manifest(name)
        body["metadata"]["finalizers"] = [FINALIZER]
        plane.kubectl("-n", stage.namespace, "create", "-f", "-", given=json.dumps(body))
    plane.kubectl("-n", stage.namespace, "delete", "wp/sd", "--wait=false")
    assert stage.find_pool("sd") is not None
    operator = stage.operator()
    operator.lead()
    eventually(lambda: stage.find_pool("sd") is None, what="the deleted pool is gone")
    eventually(lambda: not stage.pool("flux")["metadata"].get("finalizers"), what="the other has no finalizer")
    operator.end(signal.SIGKILL)
    plane.kubectl("-n", stage.namespace, "delete", "wp/flux", "--timeout=30s")

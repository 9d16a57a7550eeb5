"""The operator as its manifest starts it, with the rights of its account: it needs exactly these."""

from __future__ import annotations

import copy
import itertools
import json
import secrets
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.knative.rendering import Object, find, of_kind
from tests.knative.test_started import Started
from tests.operator.conftest import Stage
from tests.operator.control_plane import MERGE, ControlPlane
from tests.operator.kubelet import Kubelet
from tests.operator.running_operator import operator_config
from tests.operator.worker_standins import StandIns
from tests.waiting import eventually

Rendered = dict[str, list[Object]]
Right = tuple[str, str, str]
"""A verb, a group and a resource with its subresource: `("update", "apps", "deployments/scale")`."""

Front = tuple[str | None, ExitStack]
"""The address that the operator uses in place of the API server's own, where that is too old for what it says; and what
ends the server there.
"""

ACCOUNT = "darkroom-operator"
POOL = "flux"
MOST = 30

LOOK_AGAIN: Right = ("get", "apps", "deployments/scale")
"""Used after a conflict on a Deployment, which the test provokes sooner or later."""

NOT_ASKED: Right = ("update", "darkroom.dev", "workerpools/finalizers")
"""Checked for requests that create an object which blocks its owner's deletion, not a request itself."""


@pytest.fixture
def front(cluster: ControlPlane) -> Iterator[Front]:
    with ExitStack() as stack:
        yield stack.enter_context(cluster.front()), stack


@pytest.fixture
def stage(
    cluster: ControlPlane,
    front: Front,
    rendered: Rendered,
    redis_url: str,
    namespace: str,
    tmp_path: Path,
) -> Stage:
    place = f"o-{secrets.token_hex(6)}"
    cluster.kubectl("create", "namespace", place)
    rights = [
        each
        for kind in ("ServiceAccount", "Role", "RoleBinding")
        for each in copy.deepcopy(of_kind(rendered["k3d"], kind))
        if each["metadata"]["name"] == ACCOUNT
    ]
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": rights})
    cluster.kubectl("apply", "-f", "-", given=given.replace('"namespace": "darkroom"', f'"namespace": "{place}"'))
    config = operator_config(cluster, tmp_path, namespace=place, server=front[0])
    return Stage(cluster, place, config, tmp_path, redis_url, namespace)


@pytest.fixture
def operator(stage: Stage, rendered: Rendered, tmp_path: Path) -> Iterator[Started]:
    """The variables of the Deployment, except those that a kubelet would resolve."""
    objects = rendered["k3d"]
    deployment = find(objects, "Deployment", ACCOUNT)
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == ACCOUNT
    redis_secret = {"darkroom-redis": {"operator": stage.redis_url}}
    part = Started(deployment, objects, redis_secret, tmp_path)
    assert part.environment["DARKROOM_WATCH_NAMESPACE"] == deployment["metadata"]["namespace"]
    part.environment |= {
        "DARKROOM_WATCH_NAMESPACE": stage.namespace,
        "KUBECONFIG": str(stage.config),
        "DARKROOM_NAMESPACE": stage.prefix,
        "DARKROOM_RESYNC_S": "1",
        "DARKROOM_REPLACE_AFTER_S": "1",
    }
    part.start()
    yield part
    part.stop()


def granted(role: Object) -> set[Right]:
    """The granted rights, without wildcards."""
    rights = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert not [right for right in rights if "*" in "".join(right)]
    return rights


def used(asked: list[Object]) -> set[Right]:
    """The rights that the requests needed, without discovery, which every account may use."""
    rights = set()
    for each in asked:
        if "objectRef" not in each:
            continue
        thing = each["objectRef"]
        resource = "/".join(filter(None, (thing["resource"], thing.get("subresource"))))
        rights.add((each["verb"], thing.get("apiGroup", ""), resource))
        if each["verb"] == "patch" and each["responseStatus"]["code"] == 201:  # an apply that made it
            rights.add(("create", thing.get("apiGroup", ""), resource))
    return rights


@contextmanager
def written_again_and_again(stage: Stage) -> Iterator[None]:
    """Change the pool's Deployment continuously, so that the operator's version is outdated."""
    path = f"/apis/apps/v1/namespaces/{stage.namespace}/deployments/darkroom-{POOL}"
    is_over = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if is_over.is_set():
                return
            stage.control_plane.ask(
                "PATCH", path, {"metadata": {"annotations": {"tests/number": str(number)}}}, kind=MERGE
            )

    writing = threading.Thread(target=write)
    writing.start()
    try:
        yield
    finally:
        is_over.set()
        writing.join()


def test_the_operator_starts_with_its_manifest_and_needs_exactly_its_rights(
    operator: Started, stage: Stage, front: Front, rendered: Rendered
) -> None:
    """The whole lifecycle: election, and a pool that is created, scaled up, scaled down and deleted."""
    role = find(rendered["k3d"], "Role", ACCOUNT)
    standins = StandIns(stage.redis_url, stage.prefix)
    kubelet = Kubelet(stage.control_plane, stage.namespace)
    kubelet.workers = standins
    kubelet.start()

    def asked() -> list[Object]:
        return stage.control_plane.asked_by(stage.namespace, ACCOUNT)

    try:
        for probe in ("readinessProbe", "livenessProbe"):
            eventually(lambda probe=probe: operator.passes(probe), what=f"the operator's {probe}")  # type: ignore[misc]
        for floor in range(2, MOST):
            with written_again_and_again(stage) if floor > 2 else nullcontext():
                stage.apply(POOL, minReplicas=floor, maxReplicas=MOST, scaleDown={"idleSeconds": 1})
                stage.has_replicas(POOL, floor)
            if LOOK_AGAIN in used(asked()):
                break
        eventually(lambda: len(standins.pods) == stage.replicas(POOL), what="workers are there")
        pool = f"/apis/darkroom.dev/v1alpha1/namespaces/{stage.namespace}/workerpools/{POOL}"
        stage.control_plane.ask("PATCH", pool, {"metadata": {"finalizers": ["darkroom.dev/drain"]}}, kind=MERGE)
        eventually(lambda: not stage.pool(POOL)["metadata"].get("finalizers"), what="the old finalizer is removed")
        before = sorted(standins.pods)
        standins.fail(before[0])
        eventually(lambda: before[0] not in standins.pods, what="the faulty worker is replaced")
        eventually(lambda: len(standins.pods) == len(before), what="by another")
        stage.apply(POOL, minReplicas=0, scaleDown={"idleSeconds": 1})
        eventually(lambda: not stage.pods(POOL), what="the idle workers are gone")
        eventually(lambda: stage.events(POOL), what="an Event reports it")
        stage.control_plane.kubectl("-n", stage.namespace, "delete", f"wp/{POOL}", "--wait=false")
        eventually(lambda: stage.find_pool(POOL) is None, what="the pool is gone")
        eventually(lambda: stage.deployment(POOL) is None, what="its Deployment is gone")
    finally:
        kubelet.stop()
    assert operator.stop() == 0, operator.log.read_text()
    front[1].close()

    wanted = granted(role) - {NOT_ASKED}
    watches = {right for right in wanted if right[0] == "watch"}
    eventually(lambda: used(asked()) >= watches, what="the watches, which are over, are written down")
    assert (wanted - used(asked()), used(asked()) - wanted) == (set(), set())
    assert [each for each in asked() if each["responseStatus"]["code"] in {401, 403}] == []


def test_an_owner_reference_that_blocks_deletion_needs_a_right_on_finalizers(stage: Stage, rendered: Rendered) -> None:
    plane, place = stage.control_plane, stage.namespace
    pool = stage.apply(POOL)
    owner = {"apiVersion": pool["apiVersion"], "kind": "WorkerPool", "name": POOL, "uid": pool["metadata"]["uid"]}
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": POOL, "ownerReferences": [{**owner, "blockOwnerDeletion": True}]},
    }

    def status() -> int:
        path = f"/api/v1/namespaces/{place}/serviceaccounts?dryRun=All"
        try:
            plane.ask("POST", path, account, token=plane.token_of(place, ACCOUNT))
        except urllib.error.HTTPError as error:
            return error.code
        return 201

    assert status() == 201
    rules = [
        rule
        for rule in find(rendered["k3d"], "Role", ACCOUNT)["rules"]
        if "workerpools/finalizers" not in rule["resources"]
    ]
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{place}/roles/{ACCOUNT}"
    plane.ask("PATCH", path, {"rules": rules}, kind=MERGE)
    eventually(lambda: status() == 403, what="it is refused")

"""The operator's state: specifications, objects of the cluster, statuses."""

from __future__ import annotations

import time
from typing import Any

import pytest
from darkroom.errors import InvalidInput
from darkroom.ledger.calls import Reading
from darkroom_operator import pools
from darkroom_operator.kubernetes.objects import read_pod
from darkroom_operator.kubernetes.resync import covers
from darkroom_operator.kubernetes.state import DEPLOYMENTS, PODS, ClusterState
from darkroom_operator.status import status_of

Object = dict[str, Any]

NOW_MS = 1_795_200_000_000


def pool_resource(**spec: Any) -> Object:
    template = {"spec": {"containers": [{"name": "side", "image": "a"}, {"name": "worker", "image": "b"}]}}
    return {
        "metadata": {"name": "flux", "uid": "u-1", "generation": 3, "resourceVersion": "5"},
        "spec": {"models": ["flux"], "maxReplicas": 5, "template": template, **spec},
    }


def pod_resource(*, version: str = "7", phase: str = "Running", **status: Any) -> Object:
    return {
        "metadata": {
            "name": "darkroom-flux-1",
            "resourceVersion": version,
            "creationTimestamp": "2026-11-20T18:00:00Z",
            "labels": {"darkroom.dev/pool": "flux"},
        },
        "spec": {"nodeName": "a-node", "containers": [{"name": "worker", "resources": {"limits": {"amd.com/gpu": 1}}}]},
        "status": {"phase": phase, **status},
    }


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"models": []}, ["models"]),
        ({"template": {"spec": {"containers": []}}}, ["template.spec"]),
        ({"drainSeconds": 81}, ["graceSeconds"]),
        ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, ["rollout"]),
        ({"minReplicas": 6}, ["minReplicas"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_broken_rule_names_its_field(change: Object, fields: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        pools.read_spec(pool_resource(**change))
    assert [fault.field for fault in refused.value.fields] == fields


def test_the_container_worker_is_configured_and_its_own_values_are_overridden() -> None:
    resource = pool_resource(gpu={"count": 2, "resourceName": "amd.com/gpu"}, graceSeconds=200)
    worker = resource["spec"]["template"]["spec"]["containers"][1]
    worker["env"] = [{"name": "DARKROOM_POOL", "value": "another"}, {"name": "HF_HOME", "value": "/models"}]
    template = pools.deployment(pools.read_spec(resource), config_maps={})["spec"]["template"]
    side, worker_container = template["spec"]["containers"]
    assert side == {"name": "side", "image": "a"}
    assert {one["name"]: one["value"] for one in worker_container["env"]}["DARKROOM_POOL"] == "flux"
    assert {one["name"] for one in worker_container["env"]} == {
        *("HF_HOME", "DARKROOM_POOL", "DARKROOM_DRAIN_GRACE_S", "DARKROOM_HOST", "DARKROOM_PROBE_PORT")
    }
    assert worker_container["resources"]["limits"] == {"amd.com/gpu": "2"}
    assert template["spec"]["terminationGracePeriodSeconds"] == 200


def test_a_template_gets_the_current_name_of_each_config_map() -> None:
    resource = pool_resource()
    spec = resource["spec"]["template"]["spec"]
    spec["containers"][1]["envFrom"] = [{"configMapRef": {"name": "darkroom-settings"}}, {"secretRef": {"name": "a"}}]
    spec["containers"][1]["env"] = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "own", "key": "a"}}}]
    spec["volumes"] = [
        {"name": "models", "configMap": {"name": "darkroom-models"}},
        {"name": "all", "projected": {"sources": [{"configMap": {"name": "darkroom-models"}}]}},
    ]
    names = {"darkroom-settings": "darkroom-settings-1", "darkroom-models": "darkroom-models-2"}
    made = pools.deployment(pools.read_spec(resource), config_maps=names)["spec"]["template"]["spec"]
    worker = made["containers"][1]
    assert worker["envFrom"] == [{"configMapRef": {"name": "darkroom-settings-1"}}, {"secretRef": {"name": "a"}}]
    assert worker["env"][0]["valueFrom"]["configMapKeyRef"]["name"] == "own"
    assert made["volumes"][0]["configMap"]["name"] == "darkroom-models-2"
    assert made["volumes"][1]["projected"]["sources"] == [{"configMap": {"name": "darkroom-models-2"}}]
    assert spec["volumes"][0]["configMap"]["name"] == "darkroom-models", "the owner's template stays as it is"


def test_a_deployment_has_no_replicas() -> None:
    assert "replicas" not in pools.deployment(pools.read_spec(pool_resource()), config_maps={})["spec"]


def test_an_older_version_is_not_recorded() -> None:
    known = ClusterState()
    assert known.record_version(PODS, pod_resource(version="10"))
    assert not known.record_version(PODS, pod_resource(version="10"))
    assert not known.record_version(PODS, pod_resource(version="9"))
    assert known.record_version(PODS, pod_resource(version="100"))


def test_an_object_that_a_newer_list_lacks_is_deleted() -> None:
    known = ClusterState()
    known.record_version(PODS, pod_resource(version="10"))
    assert known.missing(PODS, [], version="11") == ["darkroom-flux-1"]
    assert known.missing(PODS, [], version="9") == []  # the list is older than the pod
    assert known.missing(PODS, ["darkroom-flux-1"], version="11") == []
    assert known.missing(DEPLOYMENTS, [], version="11") == []


@pytest.mark.parametrize(
    ("status", "trouble", "unplaced"),
    [
        ({}, None, None),
        (
            {"containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            "ImagePullBackOff",
            None,
        ),
        (
            {"initContainerStatuses": [{"name": "weights", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            "CrashLoopBackOff",
            None,
        ),
        (
            {"containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "ContainerCreating"}}}]},
            None,
            None,
        ),
        (
            {"conditions": [unschedulable := {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]},
            None,
            "Unschedulable",
        ),
        (
            {"conditions": [{**unschedulable, "message": "0/2 nodes are available: 2 Insufficient amd.com/gpu."}]},
            None,
            "NoGpuNode",
        ),
    ],
    ids=["fine", "no image", "crashes", "is being made", "taints", "no GPU"],
)
def test_a_pod_that_does_not_start_has_a_reason(status: Object, trouble: str | None, unplaced: str | None) -> None:
    pod = read_pod(pod_resource(**status))
    assert (pod.start_failure and pod.start_failure[0]) == trouble
    assert (pod.unschedulable and pod.unschedulable[0]) == unplaced


def test_deleted_and_finished_pods_are_recorded_for_their_workers_jobs() -> None:
    known = ClusterState()
    known.update_pod(pod_resource())
    pool = known.remove_pod("darkroom-flux-1")
    assert pool is not None
    assert list(pool.gone_pods) == ["darkroom-flux-1"]
    assert list(known.update_pod(pod_resource(phase="Failed")).gone_pods) == ["darkroom-flux-1"]


def test_the_cold_start_is_measured_from_the_creation_of_a_pod_until_it_is_ready() -> None:
    known = ClusterState()
    known.update_pod(pod_resource(version="7", phase="Pending"))
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-20T18:00:42Z"}
    pool = known.update_pod(pod_resource(version="8", conditions=[ready]))
    assert pool.cold_start_s == pytest.approx(42)


def test_the_time_of_the_oldest_job_in_the_status_is_stable() -> None:
    pool = ClusterState().pool("flux")
    pool.reading = Reading(waiting=1, oldest_ms=5_000)
    first = status_of(pool, now_ms=NOW_MS)
    pool.written_status = first
    pool.reading = Reading(waiting=1, oldest_ms=6_020)
    assert status_of(pool, now_ms=NOW_MS + 1_000)["oldest"] == first["oldest"]
    pool.reading = Reading()
    assert status_of(pool, now_ms=NOW_MS)["oldest"] is None


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    pool = ClusterState().pool("flux")
    (before, *_) = status_of(pool, now_ms=NOW_MS)["conditions"]
    (after, *_) = status_of(pool, now_ms=NOW_MS + 60_000)["conditions"]
    assert after["lastTransitionTime"] == before["lastTransitionTime"]
    pool.fault = ("InvalidSpec", "models: must name a model")
    (changed, *_) = status_of(pool, now_ms=NOW_MS + 120_000)["conditions"]
    assert changed["lastTransitionTime"] == before["lastTransitionTime"]  # it was False before, too
    assert changed["reason"] == "InvalidSpec"


@pytest.mark.parametrize(
    ("present", "wanted", "answer"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        (None, {"a": 1}, False),
        ({"a": 1}, {"a": 1, "kind": "any"}, True),
    ],
    ids=["more", "other", "within a list", "longer list", "nothing", "a kind, which lists do not say"],
)
def test_an_object_is_intact_when_it_has_all_that_was_applied(present: object, wanted: object, *, answer: bool) -> None:
    assert covers(present, wanted) is answer


def test_the_last_event_of_each_watch_is_recorded() -> None:
    known = ClusterState()
    before = time.monotonic()
    known.watch_received(PODS)
    assert known.last_received[PODS] >= before
    assert known.last_received[DEPLOYMENTS] < before

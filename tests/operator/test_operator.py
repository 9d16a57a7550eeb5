"""The operator against a real control plane, as a process with only its own rights."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from darkroom.jobs import State
from darkroom.ledger import calls

from tests.driven_jobs import DrivenJobs
from tests.operator.conftest import Stage, pool_manifest
from tests.operator.control_plane import STRATEGIC
from tests.operator.kubelet import Kubelet
from tests.operator.running_operator import RunningOperator
from tests.operator.worker_standins import StandIns
from tests.redis_server import RedisKind, RedisServer, needed_binary
from tests.waiting import eventually

Object = dict[str, Any]

SOON: Object = {"scaleDown": {"idleSeconds": 1}}
"""Idle replicas are removed at once, so that a test does not wait."""

SHORT_LEASE = {"lease_s": "3"}


@pytest.fixture
def jobs(stage: Stage) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(stage.redis_url, stage.prefix)
    yield driven
    driven.close()


@pytest.fixture
def standins(stage: Stage, kubelet: Kubelet) -> StandIns:
    """Stand-ins for workers in the pods."""
    workers = StandIns(stage.redis_url, stage.prefix)
    kubelet.workers = workers
    return workers


def submitted(jobs: DrivenJobs, number: int, pool: str = "flux") -> list[str]:
    """Submit `count` jobs once the pool is announced."""
    eventually(lambda: jobs.redis.sismember(f"{jobs.namespace}:pools", pool), what=f"{pool} is announced")
    return [jobs.submit(pool=pool, model=pool) for _ in range(number)]


def worker_of(deployment: Object) -> Object:
    container: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def has_condition(stage: Stage, pool: str, kind: str, status: str, reason: str) -> None:
    def says_so() -> bool:
        condition = stage.condition(pool, kind)
        return (condition.get("status"), condition.get("reason")) == (status, reason)

    eventually(says_so, what=f"{pool} is {kind}={status}, {reason}")


def names_of(stage: Stage, pool: str = "flux") -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in stage.pods(pool))


def has_workers(standins: StandIns, number: int) -> None:
    eventually(lambda: len(standins.pods) == number, what=f"{number} workers are there")


def test_a_pool_becomes_a_deployment_an_account_and_a_budget(stage: Stage) -> None:
    stage.operator().lead()
    uid = stage.apply("flux")["metadata"]["uid"]
    stage.has_replicas("flux", 0)
    has_condition(stage, "flux", "Ready", "True", "Reconciled")
    deployment = stage.deployment("flux")
    assert deployment is not None
    spec, pod = deployment["spec"], deployment["spec"]["template"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert pod["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    assert pod["spec"]["terminationGracePeriodSeconds"] == 90
    assert pod["spec"]["serviceAccountName"] == "darkroom-flux"
    worker = worker_of(deployment)
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert {variable["name"]: variable["value"] for variable in worker["env"]} == {
        "DARKROOM_POOL": "flux",
        "DARKROOM_DRAIN_GRACE_S": "60",
        "DARKROOM_HOST": "0.0.0.0",
        "DARKROOM_PROBE_PORT": "8080",
    }
    base = f"namespaces/{stage.namespace}"
    account = stage.control_plane.find(f"/api/v1/{base}/serviceaccounts/darkroom-flux")
    budget = stage.control_plane.find(f"{stage.budgets}/darkroom-flux")
    assert account["automountServiceAccountToken"] is False
    assert budget["spec"]["maxUnavailable"] == 1
    for owned in (deployment, account, budget):
        (owner,) = owned["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (uid, True)


def test_a_pool_scales_from_zero_to_its_jobs_and_back(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    stage.operator().lead()
    stage.apply("flux", **SOON)
    has_condition(stage, "flux", "ScalingActive", "True", "FollowingDemand")
    ids = submitted(jobs, 3)
    stage.has_replicas("flux", 3)
    has_workers(standins, 3)
    for pod, job_id in zip(list(standins.pods), ids, strict=True):
        assert standins.claim(pod, job_id) is None
    for pod in list(standins.pods):
        standins.complete(pod)
    stage.has_replicas("flux", 0)
    eventually(lambda: not stage.pods("flux"), what="no pod is left")
    assert [jobs.state(job_id) for job_id in ids] == [State.COMPLETED] * 3
    reasons = [event["reason"] for event in stage.events("flux")]
    assert {"ScaledUp", "ScaledDown"} <= set(reasons)
    assert jobs.redis.xlen(f"{stage.prefix}:decisions:flux") >= 2


def test_a_busy_worker_is_not_removed_by_a_scale_in(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    stage.operator().lead()
    stage.apply("flux", **SOON, minReplicas=3)
    has_workers(standins, 3)
    (job_id,) = submitted(jobs, 1)
    busy = sorted(standins.pods)[0]
    assert standins.claim(busy, job_id) is None
    stage.apply("flux", **SOON, minReplicas=0)
    stage.has_replicas("flux", 1)
    eventually(lambda: names_of(stage) == [busy], what="only the busy one is left")
    assert "controller.kubernetes.io/pod-deletion-cost" not in stage.pods("flux")[0]["metadata"].get("annotations", {})
    standins.complete(busy)
    stage.has_replicas("flux", 0)
    assert jobs.state(job_id) is State.COMPLETED


def test_kubectl_scale_raises_the_minimum(stage: Stage) -> None:
    stage.operator().lead()
    stage.apply("flux")
    stage.control_plane.kubectl("-n", stage.namespace, "scale", "wp/flux", "--replicas=2")
    stage.has_replicas("flux", 2)
    assert stage.pool("flux")["status"]["desired"] == 2 or eventually(
        lambda: stage.pool("flux")["status"]["desired"] == 2, what="the status says so"
    )


def test_a_changed_template_is_rolled_out_without_the_fields_that_it_drops(stage: Stage) -> None:
    stage.operator().lead()
    variable = {"name": "EXTRA", "value": "1"}
    stage.apply("flux", minReplicas=2, template=template("one", env=[variable]))
    stage.has_replicas("flux", 2)
    stage.apply("flux", minReplicas=2, template=template("two"))

    def is_changed() -> bool:
        worker = worker_of(stage.deployment("flux") or {})
        return worker["image"] == "two" and "EXTRA" not in {one["name"] for one in worker["env"]}

    eventually(is_changed, what="the Deployment has the new template and nothing of the old one")
    assert stage.replicas("flux") == 2


def template(image: str, **worker: Any) -> Object:
    return {"spec": {"containers": [{"name": "worker", "image": image, **worker}]}}


def test_changes_by_others_are_reverted(stage: Stage) -> None:
    stage.operator().lead()
    stage.apply("flux", minReplicas=1)
    stage.has_replicas("flux", 1)
    kubectl = stage.control_plane.kubectl
    kubectl("-n", stage.namespace, "set", "image", "deployment/darkroom-flux", "worker=another")
    eventually(
        lambda: worker_of(stage.deployment("flux") or {})["image"] == "darkroom-worker", what="the image is put back"
    )
    kubectl("-n", stage.namespace, "scale", "deployment/darkroom-flux", "--replicas=4")
    stage.has_replicas("flux", 1)


def test_deleted_objects_are_created_again(stage: Stage) -> None:
    stage.operator(resync_s="2").lead()
    stage.apply("flux", minReplicas=2)
    stage.has_replicas("flux", 2)
    old = (stage.deployment("flux") or {})["metadata"]["uid"]
    stage.control_plane.kubectl("-n", stage.namespace, "delete", "deployment,pdb", "darkroom-flux")
    budget = f"{stage.budgets}/darkroom-flux"
    eventually(lambda: (stage.deployment("flux") or {}).get("metadata", {}).get("uid") not in {old, None}, what="anew")
    stage.has_replicas("flux", 2)
    eventually(lambda: stage.control_plane.find(budget), what="the budget is there again")


def test_a_deleted_pool_drains_and_its_objects_are_deleted(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    stage.operator().lead()
    stage.apply("flux", minReplicas=2)
    has_workers(standins, 2)
    (job_id,) = submitted(jobs, 1)
    busy = sorted(standins.pods)[0]
    assert standins.claim(busy, job_id) is None
    stage.control_plane.kubectl("-n", stage.namespace, "delete", "wp/flux", "--wait=false")
    eventually(lambda: names_of(stage) == [busy], what="the idle worker is gone")
    eventually(lambda: stage.find_pool("flux") is None, what="the pool is gone")
    assert names_of(stage) == [busy]
    standins.complete(busy)
    eventually(lambda: not stage.pods("flux"), what="the worker is gone, its job done")
    eventually(lambda: stage.deployment("flux") is None, what="its Deployment is gone")
    assert jobs.state(job_id) is State.COMPLETED
    is_withdrawn(jobs)
    stage.apply("flux")
    eventually(lambda: jobs.redis.hget(f"{stage.prefix}:pool:flux", "models"), what="the pool is announced again")
    jobs.submit(pool="flux", model="flux")


def errors_of(operator: RunningOperator) -> list[str]:
    """The log entries of level error."""
    return [line for line in operator.said().splitlines() if json.loads(line)["level"] == "error"]


def is_withdrawn(jobs: DrivenJobs) -> None:
    eventually(lambda: not jobs.redis.hget(f"{jobs.namespace}:pool:flux", "models"), what="the pool is withdrawn")
    with pytest.raises(AssertionError, match="there is no worker pool"):
        jobs.submit(pool="flux", model="flux")


def test_a_pool_that_is_deleted_while_no_operator_runs_is_withdrawn_by_the_next(stage: Stage, jobs: DrivenJobs) -> None:
    """Pools that others announced are kept."""
    first = stage.operator()
    first.lead()
    stage.apply("flux")
    submitted(jobs, 1)
    jobs.run(calls.announce_pool("sd", models=["sd"]))
    first.end(signal.SIGKILL)
    stage.control_plane.kubectl("-n", stage.namespace, "delete", "wp/flux", "--timeout=30s")
    stage.operator(**SHORT_LEASE).lead()
    is_withdrawn(jobs)
    jobs.submit(pool="sd", model="sd")


def test_a_deletion_in_the_foreground_waits_for_busy_workers(
    stage: Stage, jobs: DrivenJobs, standins: StandIns
) -> None:
    """Like `make remove-app`. Meanwhile the operator does not create deleted objects again."""
    operator = stage.operator(resync_s="1")
    operator.lead()
    stage.apply("flux", minReplicas=1)
    has_workers(standins, 1)
    (job_id,) = submitted(jobs, 1)
    (busy,) = standins.pods
    assert standins.claim(busy, job_id) is None
    path = f"/apis/darkroom.dev/v1alpha1/namespaces/{stage.namespace}/workerpools/flux"
    stage.control_plane.ask("DELETE", path, {"propagationPolicy": "Foreground"})
    is_withdrawn(jobs)
    assert stage.pool("flux")["status"]["reason"] == "Deleting" or eventually(
        lambda: stage.pool("flux")["status"]["reason"] == "Deleting", what="the status reports the deletion"
    )
    standins.complete(busy)
    eventually(lambda: stage.find_pool("flux") is None, what="the pool is gone")
    assert stage.deployment("flux") is None
    assert stage.pods("flux") == []
    assert errors_of(operator) == []


def test_another_operator_takes_over_from_a_killed_one(stage: Stage, jobs: DrivenJobs) -> None:
    first = stage.operator(**SHORT_LEASE)
    first.lead()
    stage.apply("flux", **SOON)
    submitted(jobs, 1)
    stage.has_replicas("flux", 1)
    first.end(signal.SIGKILL)
    submitted(jobs, 1)
    stage.apply("sd", minReplicas=1)
    stage.operator(**SHORT_LEASE).lead()
    stage.has_replicas("flux", 2)
    stage.has_replicas("sd", 1)


def test_of_two_operators_one_acts_and_the_other_takes_over(stage: Stage, jobs: DrivenJobs) -> None:
    first, second = stage.operator(**SHORT_LEASE), stage.operator(**SHORT_LEASE)
    first.lead()
    second.start()
    stage.apply("flux")
    stage.has_replicas("flux", 0)
    submitted(jobs, 1)
    stage.has_replicas("flux", 1)
    eventually(lambda: second.status_of("/readyz") == 503, what="the second waits")
    assert "scaled" not in second.said()
    first.end(signal.SIGKILL)
    eventually(second.is_leading, what="the second leads")
    submitted(jobs, 1)
    stage.has_replicas("flux", 2)


def test_an_operator_releases_the_lease_on_sigterm(stage: Stage) -> None:
    first = stage.operator()
    first.lead()
    assert first.end() == 0
    lease = stage.control_plane.find(
        f"/apis/coordination.k8s.io/v1/namespaces/{stage.namespace}/leases/darkroom-operator"
    )
    assert not lease["spec"].get("holderIdentity")


def test_the_operator_continues_after_an_outage_of_the_api_server(stage: Stage, jobs: DrivenJobs) -> None:
    operator = stage.operator()
    operator.lead()
    stage.apply("flux")
    stage.has_replicas("flux", 0)
    submitted(jobs, 1)
    stage.has_replicas("flux", 1)
    stage.control_plane.stop_api_server(signal.SIGKILL)
    submitted(jobs, 1)
    stage.control_plane.start_api_server()
    stage.has_replicas("flux", 2)
    stage.apply("flux", minReplicas=3)
    stage.has_replicas("flux", 3)
    assert operator.status_of("/healthz") == 200


def test_without_redis_the_replicas_stay_and_a_condition_reports_it(stage: Stage, tmp_path: Path) -> None:
    binary = needed_binary(RedisKind.EMBEDDED)
    (tmp_path / "redis").mkdir()
    server = RedisServer(binary, tmp_path / "redis")
    server.start()
    try:
        stage.operator(redis_url=server.url).lead()
        stage.apply("flux", **SOON, minReplicas=2)
        stage.has_replicas("flux", 2)
        server.stop()
        has_condition(stage, "flux", "ScalingActive", "False", "DemandUnknown")
        stage.apply("flux", **SOON, minReplicas=1)
        eventually(
            lambda: stage.pool("flux")["status"]["observedGeneration"] == stage.pool("flux")["metadata"]["generation"],
            what="the change was seen",
        )
        assert stage.replicas("flux") == 2
        server.start()
        has_condition(stage, "flux", "ScalingActive", "True", "FollowingDemand")
        stage.has_replicas("flux", 1)
    finally:
        server.stop()


@pytest.mark.parametrize(
    "malformed",
    [
        {"spec": {"containers": [{"name": "worker"}]}},
        {"spec": {"containers": [{"name": "worker", "image": "two", "imagePullPolicys": "Always"}]}},
    ],
    ids=["a field is missing", "a field is unknown"],
)
def test_a_malformed_template_is_reported_and_the_previous_one_stays(stage: Stage, malformed: Object) -> None:
    stage.operator().lead()
    stage.apply("flux", minReplicas=1)
    stage.has_replicas("flux", 1)
    stage.apply("flux", minReplicas=2, template=malformed)
    has_condition(stage, "flux", "Ready", "False", "InvalidTemplate")
    stage.has_replicas("flux", 2)  # the pool goes on being scaled
    assert worker_of(stage.deployment("flux") or {})["image"] == "darkroom-worker"
    assert "InvalidTemplate" in [event["reason"] for event in stage.events("flux")]
    assert stage.pool("flux")["status"]["reason"] == "InvalidTemplate"
    stage.apply("flux", minReplicas=2, template=template("two"))
    has_condition(stage, "flux", "Ready", "True", "Reconciled")
    assert worker_of(stage.deployment("flux") or {})["image"] == "two"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"minReplicas": 9}, "minReplicas"),
        ({"drainSeconds": 85}, "graceSeconds"),
        ({"target": {"jobsPerReplica": 1, "waitSeconds": 10}}, "target"),
        ({"schedule": [{"start": "whenever we like", "end": "0 8 * * *", "replicas": 1}]}, "schedule"),
        ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "rollout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_rule_between_fields_is_rejected_or_a_condition(stage: Stage, change: Object, named: str) -> None:
    """The API server enforces the CEL rules; the operator repeats them for API servers without CEL."""
    if not stage.control_plane.is_old and named != "schedule":
        given = json.dumps(pool_manifest("flux", **change))
        stage.control_plane.kubectl("-n", stage.namespace, "create", "-f", "-", given=given, fails=True)
        return
    stage.operator().lead()
    stage.apply("flux", **change)
    has_condition(stage, "flux", "Ready", "False", "InvalidSpec")
    assert named in stage.condition("flux", "Ready")["message"]
    assert stage.deployment("flux") is None


def test_the_job_of_a_deleted_pod_is_released_at_once(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    stage.operator().lead()
    stage.apply("flux", minReplicas=1)
    has_workers(standins, 1)
    (job_id,) = submitted(jobs, 1)
    (pod,) = standins.pods
    assert standins.claim(pod, job_id) is None
    path = f"/api/v1/namespaces/{stage.namespace}/pods/{pod}"
    stage.control_plane.ask("DELETE", path, {"gracePeriodSeconds": 0})
    eventually(lambda: jobs.state(job_id) is State.PENDING, what="the job waits again", deadline_s=10)
    released = [fields[b"data"] for _, fields in jobs.redis.xrange(f"{stage.prefix}:log:{job_id}")][-1]
    assert json.loads(released)["reason"] == "worker_lost"


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff"])
def test_pods_that_do_not_start_are_reported_and_stop_the_scale_up(stage: Stage, jobs: DrivenJobs, reason: str) -> None:
    stage.operator().lead()
    stage.apply("flux")
    submitted(jobs, 1)
    stage.has_replicas("flux", 1)
    (pod,) = eventually(lambda: stage.pods("flux"), what="there is a pod")
    waiting = {"reason": reason, "message": "no such image"}
    status = {
        "name": "worker",
        "state": {"waiting": waiting},
        "ready": False,
        "restartCount": 0,
        "image": "",
        "imageID": "",
    }
    stage.control_plane.ask(
        "PATCH",
        f"/api/v1/namespaces/{stage.namespace}/pods/{pod['metadata']['name']}/status",
        {"status": {"containerStatuses": [status]}},
        kind=STRATEGIC,
    )
    has_condition(stage, "flux", "Degraded", "True", reason)
    submitted(jobs, 2)
    eventually(lambda: stage.pool("flux")["status"].get("waiting") == 3, what="the new jobs were seen")
    assert stage.replicas("flux") == 1
    assert stage.pool("flux")["status"]["reason"] == reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "NoGpuNode"), ("0/3 nodes: taints", "Unschedulable")],
    ids=["no GPU", "taints"],
)
def test_unschedulable_pods_are_reported(stage: Stage, message: str, reason: str) -> None:
    stage.operator().lead()
    stage.apply("flux", minReplicas=1)
    (pod,) = eventually(lambda: stage.pods("flux"), what="there is a pod")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    stage.control_plane.ask(
        "PATCH",
        f"/api/v1/namespaces/{stage.namespace}/pods/{pod['metadata']['name']}/status",
        {"status": {"conditions": [condition]}},
        kind=STRATEGIC,
    )
    has_condition(stage, "flux", "Degraded", "True", reason)


def test_workers_that_stay_faulty_are_replaced(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    """All workers of a pool are faulty: their pods are deleted, and the new ones run the job."""
    stage.operator(replace_after_s="2").lead()
    stage.apply("flux", minReplicas=2, maxReplicas=2)
    has_workers(standins, 2)
    before = names_of(stage)
    (job_id,) = submitted(jobs, 1)
    for pod in before:
        standins.fail(pod)
    has_condition(stage, "flux", "Degraded", "True", "WorkersFaulty")
    eventually(lambda: len(standins.pods) == 2 and not {*standins.pods} & {*before}, what="two others are there")
    (event,) = [each for each in stage.events("flux") if each["reason"] == "WorkersReplaced"]
    assert all(pod in event["message"] for pod in before)
    assert standins.claim(sorted(standins.pods)[0], job_id) is None
    has_condition(stage, "flux", "Degraded", "False", "AsExpected")


def test_a_worker_that_recovers_is_not_replaced(stage: Stage, standins: StandIns) -> None:
    stage.operator(replace_after_s="1").lead()
    stage.apply("flux", minReplicas=2, maxReplicas=2, paused="all")
    stage.apply("flux", minReplicas=2, maxReplicas=2, paused="none")
    has_workers(standins, 2)
    recovers, stays = names_of(stage)
    stage.apply("flux", minReplicas=2, maxReplicas=2, paused="all")
    for pod in (recovers, stays):
        standins.fail(pod)
    has_condition(stage, "flux", "Degraded", "True", "WorkersFaulty")
    standins.begin({"metadata": {"name": recovers, "labels": {"darkroom.dev/pool": "flux"}}})
    eventually(lambda: stage.pool("flux")["status"]["faulty"] == 1, what="one has recovered")
    assert names_of(stage) == sorted([recovers, stays])  # a paused pool is left as it is
    stage.apply("flux", minReplicas=2, maxReplicas=2, paused="none")
    eventually(lambda: stays not in names_of(stage), what="the one that stays faulty is replaced")
    assert recovers in names_of(stage)


def with_a_busy_worker(
    stage: Stage, jobs: DrivenJobs, standins: StandIns, *, idle_s: int
) -> tuple[RunningOperator, str]:
    """An operator that leads, and the only pod of the pool flux, which runs a job."""
    operator = stage.operator(**SHORT_LEASE)
    operator.lead()
    stage.apply("flux", scaleDown={"idleSeconds": idle_s})
    (job_id,) = submitted(jobs, 1)
    has_workers(standins, 1)
    (pod,) = standins.pods
    assert standins.claim(pod, job_id) is None
    return operator, pod


def test_idle_replicas_survive_a_restart_of_the_operator(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    """The idle time continues: the decision log has the replicas that were wanted before."""
    first, pod = with_a_busy_worker(stage, jobs, standins, idle_s=15)
    standins.complete(pod)
    eventually(lambda: stage.pool("flux")["status"]["reason"] == "Settling", what="the replica is idle")
    first.end(signal.SIGKILL)
    stage.operator(**SHORT_LEASE).lead()
    stage.has_replicas("flux", 0)
    log = [json.loads(fields[b"entry"]) for _, fields in jobs.redis.xrange(f"{stage.prefix}:decisions:flux")]
    ended_at = next(each["at"] for each in log if each["decision"]["reason"] == "Settling")
    removed_at = next(each["at"] for each in log if each["decision"]["reason"] == "Idle")
    assert removed_at - ended_at >= 14_000


def test_time_without_leadership_is_no_idle_time(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    """A process that was stopped for longer than its Lease and the idle time continues as after a restart."""
    operator, pod = with_a_busy_worker(stage, jobs, standins, idle_s=5)
    os.kill(operator.pid, signal.SIGSTOP)
    try:
        time.sleep(7)
        standins.complete(pod)
        continued_at = time.time_ns() // 1_000_000
    finally:
        os.kill(operator.pid, signal.SIGCONT)
    stage.has_replicas("flux", 0)
    log = [json.loads(fields[b"entry"]) for _, fields in jobs.redis.xrange(f"{stage.prefix}:decisions:flux")]
    removed_at = next(each["at"] for each in log if each["decision"]["reason"] == "Idle")
    assert removed_at - continued_at >= 5_000


MISSPELT: dict[str, tuple[Object, str]] = {
    "target.jobsPerReplika": ({"target": {"jobsPerReplika": 4}}, "jobsPerReplica"),
    "maxReplica": ({"maxReplica": 4}, "maxReplicas"),
    "schedule[0].timeZone": (
        {"schedule": [{"start": "0 8 * * *", "end": "0 9 * * *", "replicas": 1, "timeZone": "UTC"}]},
        "timezone",
    ),
    "rollout.surge": ({"rollout": {"surge": 1}}, "maxSurge"),
    "template.labels": ({"template": {**template("one"), "labels": {}}}, "metadata"),
}


def test_unknown_fields_are_rejected_by_name(stage: Stage) -> None:
    """Unknown fields at any level; the previous specification stays applied."""
    stage.operator().lead()
    for number, (field, (change, known)) in enumerate(MISSPELT.items()):
        name = f"flux-{number}"
        stage.apply(name, minReplicas=1)
        stage.has_replicas(name, 1)
        stage.apply(name, **{"minReplicas": 2, **change})
        has_condition(stage, name, "Ready", "False", "InvalidSpec")
        message = stage.condition(name, "Ready")["message"]
        assert f"{field}: unknown field" in message
        assert known in message
        assert message in [each["message"] for each in stage.events(name) if each["reason"] == "InvalidSpec"]
        assert stage.replicas(name) == 1


def test_metrics_have_demand_replicas_and_decisions(stage: Stage, jobs: DrivenJobs, standins: StandIns) -> None:
    operator = stage.operator()
    operator.lead()
    stage.apply("flux")
    submitted(jobs, 2)
    has_workers(standins, 2)
    eventually(
        lambda: 'darkroom_pool_replicas{pool="flux",state="idle"} 2.0' in operator.metrics(), what="two idle replicas"
    )
    said = operator.metrics()
    assert 'darkroom_pool_replicas_desired{pool="flux"} 2.0' in said
    assert 'darkroom_pool_demand{pool="flux",state="dispatched"} 2.0' in said
    assert 'darkroom_pool_replica_seconds_total{pool="flux",state="idle"}' in said
    assert 'darkroom_pool_decisions_total{pool="flux",reason="Demand"}' in said


def test_a_paused_pool_is_not_changed(stage: Stage, jobs: DrivenJobs) -> None:
    stage.operator().lead()
    stage.apply("flux", paused="all")
    submitted(jobs, 2)
    eventually(lambda: stage.pool("flux").get("status", {}).get("waiting") == 2, what="the jobs were seen")
    assert stage.replicas("flux") == 0
    has_condition(stage, "flux", "ScalingActive", "False", "Paused")
    stage.apply("flux", paused="none")
    stage.has_replicas("flux", 2)


def test_a_pool_created_before_the_operator_is_reconciled(stage: Stage) -> None:
    body = json.dumps(pool_manifest("flux", minReplicas=1))
    stage.control_plane.kubectl("-n", stage.namespace, "create", "-f", "-", given=body)
    stage.operator().lead()
    stage.has_replicas("flux", 1)

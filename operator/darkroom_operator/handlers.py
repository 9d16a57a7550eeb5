"""kopf's side of the operator: its watches, whose events update the world. kopf makes the watches anew when they end.

Nothing is decided here, and the control loop does the rest: kopf's own handlers of changes would keep their progress in
annotations and log each wait as an error. There is no finalizer either. A pool's objects belong to it and are deleted
with it, its workers drain themselves when their pods are deleted, and an operator that is deleted first, or that has
lost its rights, could not remove a finalizer any more.
"""

from __future__ import annotations

from typing import Any

import kopf
from darkroom.errors import DarkroomError, InvalidInput
from darkroom.logs import logger

from darkroom_operator import pools
from darkroom_operator.control import INVALID_SPEC, ControlLoop
from darkroom_operator.kubernetes.election import Leadership
from darkroom_operator.kubernetes.world import DEPLOYMENTS, PODS, POOLS, ClusterState, pool_of
from darkroom_operator.pools import GROUP, POOL_LABEL
from darkroom_operator.reconciliation import has_drifted

WORKERPOOLS = (GROUP, "v1alpha1", "workerpools")

_log = logger(__name__)


class Handlers:
    """What kopf calls. `registry` has all of it."""

    def __init__(self, world: ClusterState, control: ControlLoop, leadership: Leadership) -> None:
        self._world, self._control, self._leadership = world, control, leadership

    def registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, retries=3)(_log_in)
        kopf.on.event(*WORKERPOOLS, registry=registry)(self.pool_seen)
        of_a_pool: dict[str, Any] = {"labels": {POOL_LABEL: kopf.PRESENT}, "registry": registry}
        kopf.on.event("apps", "v1", "deployments", **of_a_pool)(self.deployment_seen)
        kopf.on.event("", "v1", "pods", **of_a_pool)(self.pod_seen)
        return registry

    async def pool_seen(self, *, type: str | None, body: kopf.Body, **_: Any) -> None:
        self._world.hear(POOLS)
        if type == "DELETED":
            name, uid = body["metadata"]["name"], body["metadata"]["uid"]
            if self._world.standing(name).uid in {None, uid}:  # else it is there again, and the resync saw it first
                self.lose_pool(name)
        else:
            await self.take_pool(dict(body))

    def lose_pool(self, name: str) -> None:
        """The pool was deleted: it accepts no more jobs. Its pods are watched until they are gone."""
        self._world.forget(POOLS, name)
        self._world.lose_pool(name)
        self._control.withdraw(name)
        _log.info("pool_deleted", pool=name)

    async def take_pool(self, resource: dict[str, Any]) -> None:
        """A version of a pool was seen, by the watch or by the resync."""
        if not self._world.is_news(POOLS, resource):
            return
        metadata = resource["metadata"]
        standing = self._world.standing(metadata["name"])
        if standing.uid not in {None, metadata["uid"]}:  # made anew under the same name
            self._world.lose_pool(metadata["name"])
            standing = self._world.standing(metadata["name"])
        fresh = standing.uid is None
        standing.uid = metadata["uid"]
        if metadata.get("deletionTimestamp") is not None and not standing.ending:
            standing.ending = True  # a deletion in the foreground, or a finalizer that is not ours
            self._control.withdraw(standing.name)
        if not fresh and standing.generation == metadata.get("generation", 1):
            return
        standing.generation = metadata.get("generation", 1)
        if fresh:
            for condition in (resource.get("status") or {}).get("conditions") or []:
                standing.conditions[condition["type"]] = dict(condition)
        try:
            standing.pool = pools.read(resource)
            if standing.fault is not None and standing.fault[0] == INVALID_SPEC:
                standing.fault = None
        except InvalidInput as error:
            if not standing.ending:
                await self._control.refuse(standing, error.detail)
        self._control.wake(standing.name)

    async def deployment_seen(self, *, type: str | None, body: kopf.Body, **_: Any) -> None:
        self._world.hear(DEPLOYMENTS)
        if type == "DELETED":
            self.lose_deployment(body["metadata"]["name"])
        else:
            await self.take_deployment(dict(body))

    async def take_deployment(self, resource: dict[str, Any]) -> None:
        """A version of a Deployment was seen. What somebody else changed is put back."""
        if not _is_of_its_pool(resource) or not self._world.is_news(DEPLOYMENTS, resource):
            return
        before = self._world.standing(pool_of(resource)).deployment
        standing = self._world.take_deployment(resource)
        if standing.applied is not None and has_drifted(resource, standing.applied) and self._leadership.held:
            _log.info("drift", pool=standing.name)
            try:
                await self._control.reconcile(standing)
            except DarkroomError as error:  # the resync comes by again
                _log.warning("drift_not_put_back", pool=standing.name, error=error.detail)
        after = standing.deployment
        if before is None or after is None or before.replicas != after.replicas:
            self._control.wake(standing.name)  # other news of it can wait for the next tick

    def lose_deployment(self, name: str) -> None:
        self._world.forget(DEPLOYMENTS, name)
        for standing in self._world.standings.values():
            if standing.deployment is not None and standing.deployment.name == name:
                standing.deployment = standing.applied = None
                self._control.wake(standing.name)

    async def pod_seen(self, *, type: str | None, body: kopf.Body, **_: Any) -> None:
        self._world.hear(PODS)
        if type == "DELETED":
            self.lose_pod(body["metadata"]["name"])
        elif self._world.is_news(PODS, body):
            self._wake_if_restless(self._world.take_pod(body).name)

    def lose_pod(self, name: str) -> None:
        self._world.forget(PODS, name)
        standing = self._world.lose_pod(name)
        if standing is not None:
            self._control.wake(standing.name)

    def _wake_if_restless(self, pool: str) -> None:
        """A pod that is new is let serve at once; other news of pods can wait for the next tick."""
        standing = self._world.standing(pool)
        if standing.gone or any(pod.counts and pod.serving is None for pod in standing.pods.values()):
            self._control.wake(pool)


def _is_of_its_pool(deployment: dict[str, Any]) -> bool:
    metadata = deployment["metadata"]
    return bool(metadata["name"] == pools.objects_name(metadata["labels"][POOL_LABEL]))


def kopf_settings() -> kopf.OperatorSettings:
    """kopf alone in its namespace. Where no handler needs the finalizer, kopf removes it: earlier versions set one."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our own Events say more
    settings.scanning.disabled = True  # it needs to list no CRDs and no namespaces
    settings.persistence.finalizer = f"{GROUP}/drain"
    settings.networking.request_timeout = 30
    return settings


def _log_in(**arguments: Any) -> kopf.ConnectionInfo | None:
    """As lightkube does: the service account of a pod, else `KUBECONFIG`."""
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

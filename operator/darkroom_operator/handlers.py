"""kopf's side of the operator: what its watches tell goes into the world, and a pool's changes are reconciled.

Nothing is decided here. kopf retries what failed, keeps the finalizer, and makes its watches anew when they end.
"""

from __future__ import annotations

import time
from typing import Any

import kopf
from darkroom.errors import DarkroomError, InvalidInput
from darkroom.logs import logger

from darkroom_operator import pools
from darkroom_operator.control import INVALID_SPEC, Control
from darkroom_operator.election import Leadership
from darkroom_operator.pools import DEFAULT_DRAIN_S, DEFAULT_GRACE_S, GROUP, POOL_LABEL
from darkroom_operator.reconciliation import has_drifted
from darkroom_operator.world import DEPLOYMENTS, PODS, POOLS, World, pool_of

RETRY_S = 2.0
"""Pause before a handler that failed is called again."""

CHECK_EVERY_S = 1.0
"""How often a deletion looks whether the pool's pods are gone."""

WORKERPOOLS = (GROUP, "v1alpha1", "workerpools")

_log = logger(__name__)


class Handlers:
    """What kopf calls. `registry` has all of it."""

    def __init__(self, world: World, control: Control, leadership: Leadership) -> None:
        self._world, self._control, self._leadership = world, control, leadership

    def registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, retries=3)(_log_in)
        kopf.on.event(*WORKERPOOLS, registry=registry)(self.pool_seen)
        for on in (kopf.on.create, kopf.on.resume):
            on(*WORKERPOOLS, registry=registry, id="reconcile", backoff=RETRY_S)(self.pool_changed)
        kopf.on.update(*WORKERPOOLS, field="spec", registry=registry, id="reconcile", backoff=RETRY_S)(
            self.pool_changed
        )
        kopf.on.delete(*WORKERPOOLS, registry=registry, id="drain", backoff=RETRY_S)(self.pool_deleted)
        of_a_pool: dict[str, Any] = {"labels": {POOL_LABEL: kopf.PRESENT}, "registry": registry}
        kopf.on.event("apps", "v1", "deployments", **of_a_pool)(self.deployment_seen)
        kopf.on.event("", "v1", "pods", **of_a_pool)(self.pod_seen)
        return registry

    async def pool_seen(self, *, type: str | None, body: kopf.Body, **_: Any) -> None:
        self._world.hear(POOLS)
        if type == "DELETED":
            self._world.forget(POOLS, body["metadata"]["name"])
            self._world.drop(body["metadata"]["name"])
        else:
            await self.take_pool(dict(body))

    async def take_pool(self, resource: dict[str, Any]) -> None:
        """A version of a pool was seen, by the watch or by the resync."""
        if not self._world.is_news(POOLS, resource):
            return
        metadata = resource["metadata"]
        standing = self._world.standing(metadata["name"])
        if standing.uid not in {None, metadata["uid"]}:  # made anew under the same name
            self._world.drop(metadata["name"])
            standing = self._world.standing(metadata["name"])
        fresh = standing.uid is None
        standing.uid = metadata["uid"]
        if metadata.get("deletionTimestamp") is not None and standing.ending_since is None:
            standing.ending_since = time.monotonic()
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

    async def pool_changed(self, *, name: str, body: kopf.Body, **_: Any) -> None:
        await self.take_pool(dict(body))
        self._require_lease()
        standing = self._world.standing(name)
        if standing.fault is not None and standing.fault[0] == INVALID_SPEC:
            return
        try:
            await self._control.reconcile(standing)
        except DarkroomError as error:
            raise kopf.TemporaryError(error.detail, delay=RETRY_S) from error

    async def pool_deleted(self, *, name: str, body: kopf.Body, **_: Any) -> None:
        """Holds the finalizer until no pod of the pool is left; the control loop winds it down. A pod that ends later
        than it may, as on a node that is lost, holds it no longer.
        """
        await self.take_pool(dict(body))
        self._require_lease()
        standing = self._world.standing(name)
        deployment, pool = standing.deployment, standing.pool
        allowed_s = DEFAULT_DRAIN_S + DEFAULT_GRACE_S if pool is None else pool.drain_s + pool.grace_s
        waited_s = time.monotonic() - (standing.ending_since or time.monotonic())
        if waited_s < allowed_s and deployment is not None and (deployment.replicas > 0 or standing.pods):
            self._control.wake(name)
            raise kopf.TemporaryError(f"{len(standing.pods)} pods are left", delay=CHECK_EVERY_S)
        await self._control.withdraw(name)
        _log.info("pool_gone", pool=name)

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

    def _require_lease(self) -> None:
        if not self._leadership.held:
            raise kopf.TemporaryError("another operator may hold the Lease", delay=RETRY_S)


def _is_of_its_pool(deployment: dict[str, Any]) -> bool:
    metadata = deployment["metadata"]
    return bool(metadata["name"] == pools.objects_name(metadata["labels"][POOL_LABEL]))


def kopf_settings() -> kopf.OperatorSettings:
    """kopf alone in its namespace, with annotations and a finalizer of our own."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our own Events say more
    settings.scanning.disabled = True  # it needs to list no CRDs and no namespaces
    settings.persistence.finalizer = f"{GROUP}/drain"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"operator.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"operator.{GROUP}")
    settings.networking.request_timeout = 30
    return settings


def _log_in(**arguments: Any) -> kopf.ConnectionInfo | None:
    """As lightkube does: the service account of a pod, else `KUBECONFIG`."""
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

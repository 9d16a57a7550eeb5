"""kopf's side of the operator: the watches, whose events update the state. kopf restarts watches that end.

Nothing is decided here, and the control loop does the rest: kopf's own handlers of changes would store their progress
in annotations and log each wait as an error. There is no finalizer either. A pool's objects are owned by it and deleted
with it, its workers drain themselves when their pods are deleted, and an operator that is deleted first, or that has
lost its rights, could not remove a finalizer any more.
"""

from __future__ import annotations

from typing import Any

import kopf
from darkroom.errors import DarkroomError, InvalidInput
from darkroom.logs import logger

from darkroom_operator.control import INVALID_SPEC, ControlLoop
from darkroom_operator.kubernetes.election import Leadership
from darkroom_operator.kubernetes.objects import pool_of
from darkroom_operator.kubernetes.state import DEPLOYMENTS, PODS, POOLS, ClusterState
from darkroom_operator.pools import GROUP, POOL_LABEL, objects_name, read_spec
from darkroom_operator.reconciliation import has_drifted

WORKERPOOLS = (GROUP, "v1alpha1", "workerpools")

_log = logger(__name__)


class Handlers:
    """The handlers of the watches' events. `registry` has all of them."""

    def __init__(self, state: ClusterState, control: ControlLoop, leadership: Leadership) -> None:
        self._state, self._control, self._leadership = state, control, leadership

    def registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, retries=3)(_log_in)
        kopf.on.event(*WORKERPOOLS, registry=registry)(self.on_pool_event)
        of_a_pool: dict[str, Any] = {"labels": {POOL_LABEL: kopf.PRESENT}, "registry": registry}
        kopf.on.event("apps", "v1", "deployments", **of_a_pool)(self.on_deployment_event)
        kopf.on.event("", "v1", "pods", **of_a_pool)(self.on_pod_event)
        return registry

    async def on_pool_event(self, *, type: str | None, body: kopf.Body, **_: Any) -> None:
        self._state.watch_received(POOLS)
        if type == "DELETED":
            name, uid = body["metadata"]["name"], body["metadata"]["uid"]
            # Otherwise a new pool of the name exists, which the resync listed first.
            if self._state.pool(name).uid in {None, uid}:
                self.remove_pool(name)
        else:
            await self.update_pool(dict(body))

    def remove_pool(self, name: str) -> None:
        """The pool was deleted: it accepts no more jobs. Its pods are watched until they are gone."""
        self._state.drop_version(POOLS, name)
        self._state.remove_pool(name)
        self._control.withdraw(name)
        _log.info("pool_deleted", pool=name)

    async def update_pool(self, resource: dict[str, Any]) -> None:
        """Store a version of a pool, from the watch or the resync."""
        if not self._state.record_version(POOLS, resource):
            return
        metadata = resource["metadata"]
        pool = self._state.pool(metadata["name"])
        if pool.uid not in {None, metadata["uid"]}:  # a new pool of the same name
            self._state.remove_pool(metadata["name"])
            pool = self._state.pool(metadata["name"])
        is_new = pool.uid is None
        pool.uid = metadata["uid"]
        if metadata.get("deletionTimestamp") is not None and not pool.deleting:
            pool.deleting = True  # a deletion in the foreground, or a finalizer of another controller
            self._control.withdraw(pool.name)
        if not is_new and pool.generation == metadata.get("generation", 1):
            return
        pool.generation = metadata.get("generation", 1)
        if is_new:
            for condition in (resource.get("status") or {}).get("conditions") or []:
                pool.conditions[condition["type"]] = dict(condition)
        try:
            pool.spec = read_spec(resource)
            if pool.fault is not None and pool.fault[0] == INVALID_SPEC:
                pool.fault = None
        except InvalidInput as error:
            if not pool.deleting:
                await self._control.reject(pool, error.detail)
        self._control.wake(pool.name)

    async def on_deployment_event(self, *, type: str | None, body: kopf.Body, **_: Any) -> None:
        self._state.watch_received(DEPLOYMENTS)
        if type == "DELETED":
            self.remove_deployment(body["metadata"]["name"])
        else:
            await self.update_deployment(dict(body))

    async def update_deployment(self, resource: dict[str, Any]) -> None:
        """Store a version of a Deployment. Changes by others are reverted."""
        if not _is_of_its_pool(resource) or not self._state.record_version(DEPLOYMENTS, resource):
            return
        before = self._state.pool(pool_of(resource)).deployment
        pool = self._state.update_deployment(resource)
        if pool.applied is not None and has_drifted(resource, pool.applied) and self._leadership.held:
            _log.info("drift", pool=pool.name)
            try:
                await self._control.reconcile(pool)
            except DarkroomError as error:  # the next resync tries again
                _log.warning("drift_not_reverted", pool=pool.name, error=error.detail)
        after = pool.deployment
        if before is None or after is None or before.replicas != after.replicas:
            self._control.wake(pool.name)  # other changes can wait for the next tick

    def remove_deployment(self, name: str) -> None:
        self._state.drop_version(DEPLOYMENTS, name)
        for pool in self._state.pools.values():
            if pool.deployment is not None and pool.deployment.name == name:
                pool.deployment = pool.applied = None
                self._control.wake(pool.name)

    async def on_pod_event(self, *, type: str | None, body: kopf.Body, **_: Any) -> None:
        self._state.watch_received(PODS)
        if type == "DELETED":
            self.remove_pod(body["metadata"]["name"])
        elif self._state.record_version(PODS, body):
            self._wake_for_pod(self._state.update_pod(body).name)

    def remove_pod(self, name: str) -> None:
        self._state.drop_version(PODS, name)
        pool = self._state.remove_pod(name)
        if pool is not None:
            self._control.wake(pool.name)

    def _wake_for_pod(self, pool: str) -> None:
        """Open the readiness gate of a new pod at once; other changes of pods can wait for the next tick."""
        state = self._state.pool(pool)
        if state.gone_pods or any(pod.counts and pod.serving is None for pod in state.pods.values()):
            self._control.wake(pool)


def _is_of_its_pool(deployment: dict[str, Any]) -> bool:
    metadata = deployment["metadata"]
    return bool(metadata["name"] == objects_name(metadata["labels"][POOL_LABEL]))


def kopf_settings() -> kopf.OperatorSettings:
    """kopf's settings. kopf removes a finalizer that an earlier version of the operator set."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # the operator records its own Events
    settings.scanning.disabled = True  # no rights to list CRDs and namespaces are needed
    settings.persistence.finalizer = f"{GROUP}/drain"
    settings.networking.request_timeout = 30
    return settings


def _log_in(**arguments: Any) -> kopf.ConnectionInfo | None:
    """The same credentials as lightkube's: the service account of a pod, otherwise `KUBECONFIG`."""
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

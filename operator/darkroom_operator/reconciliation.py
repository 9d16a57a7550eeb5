"""Reconciliation: a pool's specification becomes its objects, a ServiceAccount, a PodDisruptionBudget and a Deployment.

Objects are applied whole, and applying is idempotent: after a crash the next call continues. The Deployment is applied
as a dry run first. Its replicas are never applied: a Deployment that is applied without replicas and does not exist yet
would start with one pod, so it is created with the replicas that were decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.errors import InvalidInput

from darkroom_operator.kubernetes.client import (
    CREATION_FIELD_MANAGER,
    DEPLOYMENT,
    Cluster,
    Conflict,
    Object,
    RequestRejected,
)
from darkroom_operator.kubernetes.objects import essence
from darkroom_operator.pools import POOL_LABEL, PoolSpec, deployment, disruption_budget, service_account

UNPROCESSABLE = frozenset({400, 403, 422})
"""The statuses for an object that is invalid, or that a policy of the cluster forbids."""

TRIES = 5
"""How often a change is written again after a conflict."""


class InvalidTemplate(InvalidInput):
    """The API server rejects a Deployment of this template."""


class Reconciliation:
    """Applies the objects of pools. It is stateless."""

    def __init__(self, cluster: Cluster, *, config_maps: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._config_maps = config_maps

    async def apply(self, spec: PoolSpec) -> Object | None:
        """Apply all objects of the pool. Returns the Deployment, or None if it does not exist yet.

        Raises InvalidTemplate before any change.
        """
        wanted = deployment(spec, config_maps=self._config_maps)
        await self._try(wanted)
        await self._cluster.apply(service_account(spec))
        await self._cluster.apply(disruption_budget(spec))
        present = await self._cluster.get(DEPLOYMENT, spec.objects_name)
        if present is None:
            return None
        if not _belongs_to(present, spec):
            raise InvalidTemplate(f"the Deployment {spec.objects_name} already exists and has another owner")
        applied = await self._cluster.apply(wanted)
        for _ in range(TRIES):
            if not _has_creation_manager(applied):
                break
            try:
                applied = await self._cluster.drop_creation_manager(applied)
            except Conflict:  # its status has changed
                applied = await self._cluster.get(DEPLOYMENT, spec.objects_name) or applied
        return applied

    async def create(self, spec: PoolSpec, *, replicas: int) -> Object | None:
        """Create the pool's Deployment. Returns None if it already exists. Raises InvalidTemplate."""
        body = deployment(spec, config_maps=self._config_maps)
        body["spec"] = {"replicas": replicas, **body["spec"]}
        try:
            await self._cluster.create(body, field_manager=CREATION_FIELD_MANAGER)
        except Conflict:
            return None
        except RequestRejected as error:
            raise InvalidTemplate(error.detail) from error
        return await self.apply(spec)

    async def _try(self, wanted: Mapping[str, Any]) -> None:
        try:
            await self._cluster.apply(wanted, dry_run=True)
        except RequestRejected as error:
            if error.code in UNPROCESSABLE:
                raise InvalidTemplate(error.detail) from error
            raise


def has_drifted(present: Object, applied: str) -> bool:
    """Whether the applied part was changed by others. `applied` is the essence as it was applied."""
    return essence(present) != applied


def _has_creation_manager(present: Object) -> bool:
    return any(entry.get("manager") == CREATION_FIELD_MANAGER for entry in present["metadata"].get("managedFields", []))


def _belongs_to(present: Object, spec: PoolSpec) -> bool:
    metadata = present["metadata"]
    owners = [owner.get("uid") for owner in metadata.get("ownerReferences") or [] if owner.get("controller")]
    return owners == [spec.uid] or (not owners and (metadata.get("labels") or {}).get(POOL_LABEL) == spec.name)

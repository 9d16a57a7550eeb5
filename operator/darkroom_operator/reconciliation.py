"""A pool's specification becomes its objects: ServiceAccount, PodDisruptionBudget, Deployment.

Everything is applied whole and may be applied again: a crash at any point is picked up by the next call. The Deployment
is tried on the API server first (dry run), and its number of replicas is never part of an apply: applied without one, a
Deployment that is not there yet would begin with one pod. So it is created with the number that was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.errors import InvalidInput

from darkroom_operator import pools
from darkroom_operator.kubernetes.client import (
    CREATION_FIELD_MANAGER,
    DEPLOYMENT,
    Cluster,
    Conflict,
    Object,
    RequestRejected,
)
from darkroom_operator.kubernetes.world import essence
from darkroom_operator.pools import POOL_LABEL, PoolSpec

UNPROCESSABLE = frozenset({400, 403, 422})
"""What the API server answers to an object that is at fault, or that a policy of the cluster forbids."""


TRIES = 5
"""How often a change is made anew on what another has just written."""


class InvalidTemplate(InvalidInput):
    """The API server does not take a Deployment of this template."""


class Reconciliation:
    """Makes the objects of pools. It keeps nothing between two calls."""

    def __init__(self, cluster: Cluster, *, config_maps: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._config_maps = config_maps

    async def apply(self, pool: PoolSpec) -> Object | None:
        """All objects of the pool are as it says; answers the Deployment, or None where that is not there yet.

        Raises InvalidTemplate, and has changed nothing then.
        """
        wanted = pools.deployment(pool, config_maps=self._config_maps)
        await self._try(wanted)
        await self._cluster.apply(pools.service_account(pool))
        await self._cluster.apply(pools.disruption_budget(pool))
        present = await self._cluster.get(DEPLOYMENT, pool.objects_name)
        if present is None:
            return None
        if not _belongs_to(present, pool):
            raise InvalidTemplate(f"the Deployment {pool.objects_name} is there already and belongs to somebody else")
        applied = await self._cluster.apply(wanted)
        for _ in range(TRIES):
            if not _is_owned_by_its_creator(applied):
                break
            try:
                applied = await self._cluster.forget_creator(applied)
            except Conflict:  # its status has changed
                applied = await self._cluster.get(DEPLOYMENT, pool.objects_name) or applied
        return applied

    async def create(self, pool: PoolSpec, *, replicas: int) -> Object | None:
        """The pool's Deployment, with so many replicas; None where somebody was faster. Raises InvalidTemplate."""
        body = pools.deployment(pool, config_maps=self._config_maps)
        body["spec"] = {"replicas": replicas, **body["spec"]}
        try:
            await self._cluster.create(body, field_manager=CREATION_FIELD_MANAGER)
        except Conflict:
            return None
        except RequestRejected as error:
            raise InvalidTemplate(error.detail) from error
        return await self.apply(pool)

    async def _try(self, deployment: Mapping[str, Any]) -> None:
        try:
            await self._cluster.apply(deployment, dry_run=True)
        except RequestRejected as error:
            if error.code in UNPROCESSABLE:
                raise InvalidTemplate(error.detail) from error
            raise


def has_drifted(present: Object, applied: str) -> bool:
    """Whether somebody changed what was applied; `applied` is its essence."""
    return essence(present) != applied


def _is_owned_by_its_creator(deployment: Object) -> bool:
    return any(
        entry.get("manager") == CREATION_FIELD_MANAGER for entry in deployment["metadata"].get("managedFields", [])
    )


def _belongs_to(deployment: Object, pool: PoolSpec) -> bool:
    metadata = deployment["metadata"]
    owners = [owner.get("uid") for owner in metadata.get("ownerReferences") or [] if owner.get("controller")]
    return owners == [pool.uid] or (not owners and (metadata.get("labels") or {}).get(POOL_LABEL) == pool.name)

"""The resync: each minute all objects are listed, to find what a watch did not deliver and to revert changes by others.

A watch without events may have stalled. If the resync finds a change that a watch should have delivered, and the watch
has delivered nothing by the next resync, the watch has stalled: `/healthz` reports it, and Kubernetes restarts the pod.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from darkroom.errors import DarkroomError
from darkroom.logs import logger

from darkroom_operator.control import ControlLoop
from darkroom_operator.handlers import Handlers
from darkroom_operator.kubernetes.client import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    POD,
    SERVICE_ACCOUNT,
    WORKER_POOL,
    Cluster,
    Kind,
    Object,
)
from darkroom_operator.kubernetes.state import DEPLOYMENTS, PODS, POOLS, ClusterState
from darkroom_operator.pools import POOL_LABEL, disruption_budget, service_account

WATCH_DELAY_S = 5.0
"""A change younger than this may still be delivered by the watch."""

OMITTED_IN_LISTS = frozenset({"apiVersion", "kind"})
"""Fields that objects in a list omit."""

_log = logger(__name__)


class Resync:
    """`read` runs one resync."""

    def __init__(self, cluster: Cluster, state: ClusterState, control: ControlLoop, handlers: Handlers) -> None:
        self._cluster, self._state, self._control, self._handlers = cluster, state, control, handlers
        self._suspected: dict[str, float] = {}
        self.stalled: frozenset[str] = frozenset()

    async def read(self, *, first: bool = False) -> None:
        """List all objects of pools. `first`: no watch runs yet. Raises ClusterUnavailable."""
        found = {
            POOLS: await self._update(POOLS, WORKER_POOL, None),
            DEPLOYMENTS: await self._update(DEPLOYMENTS, DEPLOYMENT, POOL_LABEL),
            PODS: await self._update(PODS, POD, POOL_LABEL),
        }
        await self._control.withdraw_orphans()
        if not first:
            self._find_stalled([kind for kind, missed in found.items() if missed])
            await self._reconcile_all()

    def _find_stalled(self, missed: Iterable[str]) -> None:
        now = time.monotonic()
        still = {kind for kind, since in self._suspected.items() if self._state.last_received[kind] < since}
        self.stalled = frozenset(still)
        if still:
            _log.error("watch_stalled", kinds=sorted(still))
        self._suspected = dict.fromkeys(missed, now) | {kind: self._suspected[kind] for kind in still}

    async def _update(self, kind: str, of: Kind, label: str | None) -> bool:
        """Store the listed objects. Returns whether there was a change that the watch should have delivered."""
        listed, version = await self._cluster.listing(of, label=label)
        missed = False
        for resource in listed:
            name = resource["metadata"]["name"]
            if not self._state.is_known(kind, resource):
                missed = missed or time.monotonic() - self._state.last_received[kind] > WATCH_DELAY_S
                await self._store(kind, resource)
                _log.debug("resynced", kind=kind, name=name)
        for name in self._state.missing(kind, (resource["metadata"]["name"] for resource in listed), version=version):
            missed = missed or time.monotonic() - self._state.last_received[kind] > WATCH_DELAY_S
            self._remove(kind, name)
        return missed

    async def _store(self, kind: str, resource: Object) -> None:
        if kind == POOLS:
            await self._handlers.update_pool(dict(resource))
        elif kind == DEPLOYMENTS:
            await self._handlers.update_deployment(dict(resource))
        elif self._state.record_version(PODS, resource):
            self._state.update_pod(resource)

    def _remove(self, kind: str, name: str) -> None:
        if kind == POOLS:
            self._handlers.remove_pool(name)
        elif kind == DEPLOYMENTS:
            self._handlers.remove_deployment(name)
        else:
            self._handlers.remove_pod(name)

    async def _reconcile_all(self) -> None:
        """Reconcile pools whose ServiceAccount or PodDisruptionBudget is missing or changed, and announce all pools
        again to the ledger, which may have lost its data.
        """
        present: dict[tuple[str, str], Object] = {}
        for kind in (SERVICE_ACCOUNT, DISRUPTION_BUDGET):
            listed, _ = await self._cluster.listing(kind, label=POOL_LABEL)
            present |= {(kind.__name__, resource["metadata"]["name"]): resource for resource in listed}
        for pool in [*self._state.pools.values()]:
            spec = pool.spec
            if spec is None or pool.deleting:
                continue
            wanted = (service_account(spec), disruption_budget(spec))
            intact = all(covers(present.get((body["kind"], spec.objects_name)), body) for body in wanted)
            if intact and (pool.applied is not None or pool.fault is not None):
                self._control.announce(spec)
                continue
            try:
                await self._control.reconcile(pool)
            except DarkroomError as error:
                _log.warning("not_reconciled", pool=pool.name, error=error.detail)


def covers(present: object, wanted: object) -> bool:
    """Whether `present` has all that is `wanted`, and possibly more. Objects in a list omit `apiVersion` and `kind`."""
    if isinstance(wanted, Mapping):
        return isinstance(present, Mapping) and all(
            name in OMITTED_IN_LISTS or covers(present.get(name), value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(present, list) and len(present) == len(wanted) and all(map(covers, present, wanted))
    return present == wanted

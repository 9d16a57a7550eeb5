"""The whole world read again, each minute: what a watch did not tell is found, and what was changed is put back.

A watch that says nothing may be deaf. Where the resync finds something that a watch should have told, it remembers
that; where the watch has still said nothing by the next resync, it is deaf, `/healthz` says so, and the pod is started
anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from darkroom.errors import DarkroomError
from darkroom.logs import logger

from darkroom_operator import pools
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
from darkroom_operator.kubernetes.world import DEPLOYMENTS, PODS, POOLS, ClusterState
from darkroom_operator.pools import POOL_LABEL

WATCH_DELAY_S = 5.0
"""A change that is younger than this may be on its way to the watch."""

OMITTED_IN_LISTS = frozenset({"apiVersion", "kind"})
"""What objects in a list do not say."""

_log = logger(__name__)


class Resync:
    """`read` is one resync."""

    def __init__(self, cluster: Cluster, world: ClusterState, control: ControlLoop, handlers: Handlers) -> None:
        self._cluster, self._world, self._control, self._handlers = cluster, world, control, handlers
        self._suspected: dict[str, float] = {}
        self.deaf: frozenset[str] = frozenset()

    async def read(self, *, first: bool = False) -> None:
        """Read everything that belongs to pools. `first`: nobody watches yet. Raises ClusterUnavailable."""
        found = {
            POOLS: await self._news(POOLS, WORKER_POOL, None),
            DEPLOYMENTS: await self._news(DEPLOYMENTS, DEPLOYMENT, POOL_LABEL),
            PODS: await self._news(PODS, POD, POOL_LABEL),
        }
        await self._control.withdraw_orphans()
        if not first:
            self._judge([kind for kind, news in found.items() if news])
            await self._complete()

    def _judge(self, missed: Iterable[str]) -> None:
        now = time.monotonic()
        still = {kind for kind, since in self._suspected.items() if self._world.heard[kind] < since}
        self.deaf = frozenset(still)
        if still:
            _log.error("watch_is_deaf", kinds=sorted(still))
        self._suspected = dict.fromkeys(missed, now) | {kind: self._suspected[kind] for kind in still}

    async def _news(self, kind: str, of: Kind, label: str | None) -> bool:
        """Take what is listed; answers whether there was something that the watch ought to have told."""
        listed, version = await self._cluster.listing(of, label=label)
        missed = False
        for resource in listed:
            name = resource["metadata"]["name"]
            if not self._world.is_known(kind, resource):
                missed = missed or time.monotonic() - self._world.heard[kind] > WATCH_DELAY_S
                await self._take(kind, resource)
                _log.debug("resynced", kind=kind, name=name)
        for name in self._world.missing(kind, (resource["metadata"]["name"] for resource in listed), version=version):
            missed = missed or time.monotonic() - self._world.heard[kind] > WATCH_DELAY_S
            self._lose(kind, name)
        return missed

    async def _take(self, kind: str, resource: Object) -> None:
        if kind == POOLS:
            await self._handlers.take_pool(dict(resource))
        elif kind == DEPLOYMENTS:
            await self._handlers.take_deployment(dict(resource))
        elif self._world.is_news(PODS, resource):
            self._world.take_pod(resource)

    def _lose(self, kind: str, name: str) -> None:
        if kind == POOLS:
            self._handlers.lose_pool(name)
        elif kind == DEPLOYMENTS:
            self._handlers.lose_deployment(name)
        else:
            self._handlers.lose_pod(name)

    async def _complete(self) -> None:
        """Pools whose lesser objects are gone or changed are reconciled; all are announced again to the ledger, which
        may have lost its memory.
        """
        present: dict[tuple[str, str], Object] = {}
        for kind in (SERVICE_ACCOUNT, DISRUPTION_BUDGET):
            listed, _ = await self._cluster.listing(kind, label=POOL_LABEL)
            present |= {(kind.__name__, resource["metadata"]["name"]): resource for resource in listed}
        for standing in [*self._world.standings.values()]:
            pool = standing.pool
            if pool is None or standing.ending:
                continue
            wanted = (pools.service_account(pool), pools.disruption_budget(pool))
            intact = all(covers(present.get((body["kind"], pool.objects_name)), body) for body in wanted)
            if intact and (standing.applied is not None or standing.fault is not None):
                self._control.announce(pool)
                continue
            try:
                await self._control.reconcile(standing)
            except DarkroomError as error:
                _log.warning("not_reconciled", pool=pool.name, error=error.detail)


def covers(present: object, wanted: object) -> bool:
    """Whether all that is wanted is so; what else is there does not matter. Lists name no version and kind."""
    if isinstance(wanted, Mapping):
        return isinstance(present, Mapping) and all(
            name in OMITTED_IN_LISTS or covers(present.get(name), value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(present, list) and len(present) == len(wanted) and all(map(covers, present, wanted))
    return present == wanted

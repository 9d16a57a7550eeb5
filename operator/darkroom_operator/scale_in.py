"""Changes of a pool's replicas. A scale-in removes only pods that run nothing.

The ledger marks idle workers atomically with `claim`, so that none of them gets a job afterwards. Exactly their pods
get a low deletion cost and lose their readiness, which a ReplicaSet compares in the other order; a moment later the
replicas are lowered by exactly their number. Until the pods are deleted the marks are renewed; if they are not to be
deleted after all, everything is undone. Stuck pods, in which no worker can run, are chosen before any worker is marked.
While pods are pending nothing is removed: a ReplicaSet prefers those, and they may run by the time it deletes them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.ledger import calls
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger

from darkroom_operator.kubernetes.client import POD, Cluster, Conflict, RequestRejected
from darkroom_operator.kubernetes.objects import Pod
from darkroom_operator.kubernetes.state import DEPLOYMENTS, PODS, ClusterState, PoolState
from darkroom_operator.pools import DELETION_COST, SERVING

CHOSEN_POD_COST = "-1000"
"""Below the cost of pods that were not chosen, which is 0."""

PROPAGATION_S = 0.25
"""The pause between choosing pods and lowering the replicas. A ReplicaSet receives pods and its replicas on two
watches: without a pause it deleted other pods than those chosen a few milliseconds before.
"""

SCALE_TIMEOUT_S = 5.0
"""How long a ReplicaSet may take to delete pods before the remaining ones are restored."""

TRIES = 4
"""How often the replicas are written again after a conflict."""

MAX_CONCURRENT_REQUESTS = 16
"""Concurrent requests to the API server for one pool."""

_log = logger(__name__)


class ScaleIn:
    """Changes the replicas of Deployments: up at once, down as described above."""

    def __init__(self, cluster: Cluster, ledger: AsyncLedger, state: ClusterState) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._state = state
        self._scaled_at: dict[str, float] = {}  # monotonic, by pool
        self._restored_at: dict[str, float] = {}

    async def scale_in(self, pool: PoolState, *, to: int) -> int:
        """Lower the replicas, as far as pods run nothing. Returns the replicas that are desired now."""
        deployment = pool.deployment
        if deployment is None or to >= deployment.replicas:
            return 0 if deployment is None else deployment.replicas
        now_ms = round(time.time() * 1000)
        present = [pod for pod in pool.pods.values() if pod.counts]
        if len(present) > deployment.replicas:
            return deployment.replicas  # pods that were chosen before are not deleted yet
        count = deployment.replicas - to
        never_created = min(deployment.replicas - len(present), count)
        if any(pod.is_on_its_way(now_ms) for pod in present) or (
            never_created and _age(self._scaled_at, pool) < SCALE_TIMEOUT_S
        ):
            return deployment.replicas  # a ReplicaSet would delete these before any chosen pod
        stuck = {pod.name for pod in [pod for pod in present if pod.is_stuck(now_ms)][: count - never_created]}
        out = {pod.name for pod in present if pod.is_out}
        before = {name: at for name, at in pool.chosen_pods.items() if name in out}
        others = [pod.name for pod in present if pod.name not in stuck]
        # Marked workers stay marked: after a pod was restored, a pause is needed before the replicas are lowered.
        workers = max(count - never_created - len(stuck), sum(name not in stuck for name in before))
        marked = await self._ledger.run(calls.drain(pool.name, count=workers, pods=others)) if workers else []
        names = stuck | ({drained.pod for drained in marked} & set(others))
        now = time.monotonic()
        pool.chosen_pods = {name: before.get(name, now) for name in names}
        stale = [pod for pod in present if pod.chosen and pod.name not in names]
        if stale:
            await self._each(pool, stale, self._restore)
            self._restored_at[pool.name] = time.monotonic()
        added = [pod for pod in present if pod.name in names - before.keys()]
        await self._each(pool, added, self._choose)
        propagated = [name for name, at in pool.chosen_pods.items() if name in before and now - at >= PROPAGATION_S]
        if _age(self._restored_at, pool) < PROPAGATION_S:
            return deployment.replicas
        lowered = max(deployment.replicas - never_created - len(propagated), to)
        if lowered < deployment.replicas:
            await self.scale(pool, to=lowered)
        return lowered

    async def scale(self, pool: PoolState, *, to: int) -> None:
        """Set the replicas, if they are unchanged since they were read. Raises Conflict."""
        known = pool.deployment
        assert known is not None  # noqa: S101 - checked by the caller
        version = known.version
        for tries_left in range(TRIES - 1, -1, -1):
            try:
                version = await self._cluster.scale(known.name, replicas=to, version=version)
                break
            except Conflict:
                # Most often only the status has changed. Only a change of the replicas matters.
                replicas, version = await self._cluster.replicas(known.name)
                if replicas != known.replicas or not tries_left:
                    raise
        self._scaled_at[pool.name] = time.monotonic()
        pool.deployment = replace(known, replicas=to, version=version)
        self._state.set_version(DEPLOYMENTS, known.name, version)

    async def maintain(self, pool: PoolState) -> None:
        """Renew the marks of chosen pods, restore those that stay after all, and open the gate of new pods."""
        deployment = pool.deployment
        present = {pod.name: pod for pod in pool.pods.values() if pod.counts}
        pool.chosen_pods = {name: at for name, at in pool.chosen_pods.items() if name in present}
        chosen = [pod for pod in present.values() if pod.chosen or pod.name in pool.chosen_pods]
        if chosen:
            replicas = deployment.replicas if deployment is not None else 0
            wants_fewer = pool.decision is not None and pool.decision.replicas < replicas
            newest = max(pool.chosen_pods.values(), default=-math.inf)
            is_choosing = wants_fewer and time.monotonic() - newest < SCALE_TIMEOUT_S
            if len(present) > replicas or _age(self._scaled_at, pool) < SCALE_TIMEOUT_S or is_choosing:
                names = [pod.name for pod in chosen]
                await self._ledger.run(calls.drain(pool.name, count=len(names), pods=names))
            else:
                await self._restore_all(pool, chosen)
        closed = [pod for pod in present.values() if pod.serving is not True and not pod.chosen]
        await self._each(pool, closed, self._open_gate)

    async def _restore_all(self, pool: PoolState, chosen: list[Pod]) -> None:
        _log.info("taken_back", pool=pool.name, pods=[pod.name for pod in chosen])
        await self._each(pool, chosen, self._restore)
        pool.chosen_pods = {}
        self._restored_at[pool.name] = time.monotonic()
        await self._ledger.run(calls.drain(pool.name, count=0))

    async def _each(self, pool: PoolState, pods: list[Pod], act: Callable[[Pod], Awaitable[None]]) -> None:
        """Apply `act` to each pod. The failure of one does not affect the others; a deleted pod is no failure."""
        limit = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

        async def one(pod: Pod) -> None:
            async with limit:
                try:
                    await act(pod)
                except RequestRejected:
                    pass
                except DarkroomError as error:
                    _log.warning("pod_unchanged", pool=pool.name, pod=pod.name, error=error.detail)

        await asyncio.gather(*(one(pod) for pod in pods))

    async def _choose(self, pod: Pod) -> None:
        await self._annotate(pod, CHOSEN_POD_COST)
        await self._cluster.set_conditions(pod.name, _conditions(serving=False))

    async def _restore(self, pod: Pod) -> None:
        await self._annotate(pod, None)
        await self._open_gate(pod)

    async def _open_gate(self, pod: Pod) -> None:
        await self._cluster.set_conditions(pod.name, _conditions(serving=True))

    async def _annotate(self, pod: Pod, cost: str | None) -> None:
        patch = {"metadata": {"annotations": {DELETION_COST: cost}}}
        resource = await self._cluster.merge(POD, pod.name, patch)
        if self._state.record_version(PODS, resource):
            self._state.update_pod(resource)


def _age(times: Mapping[str, float], pool: PoolState) -> float:
    return time.monotonic() - times[pool.name] if pool.name in times else math.inf


def _conditions(*, serving: bool) -> list[Mapping[str, Any]]:
    """The readiness gate and, if it is closed, the condition Ready, which a ReplicaSet reads."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    status = "True" if serving else "False"
    gate = {"type": SERVING, "status": status, "lastTransitionTime": now}
    if serving:
        return [gate]
    reason = {"reason": "Draining", "message": "the worker runs nothing and accepts no more jobs"}
    return [{**gate, **reason}, {"type": "Ready", "status": status, "lastTransitionTime": now, **reason}]

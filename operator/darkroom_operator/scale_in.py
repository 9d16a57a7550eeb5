"""Taking replicas away, and only ones that run nothing.

The ledger marks idle workers atomically with `claim`, so that there is nothing left to confirm. Exactly their pods get
a low deletion cost and lose their readiness, which is what a ReplicaSet looks at, in the other order; a moment later
the replicas are lowered by exactly their number. Until those pods go the marks are renewed; where they are not to go
after all, it is all undone. Pods that are stuck, where nothing can run, are chosen before any worker is asked; while
others are on their way nothing is taken, since a ReplicaSet prefers those, and they may run by the time it does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.ledger import calls
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger

from darkroom_operator.kubernetes.client import POD, Cluster, Conflict, RequestRejected
from darkroom_operator.kubernetes.world import DEPLOYMENTS, PODS, ClusterState, Pod, PoolState
from darkroom_operator.pools import DELETION_COST, SERVING

CHOSEN_POD_COST = "-1000"
"""Below that of any pod that nobody has chosen, which is 0."""

PROPAGATION_S = 0.25
"""Between choosing pods and lowering the replicas. A ReplicaSet hears of pods and of its replicas on two watches:
without a pause it was seen to take other pods than those that were chosen a few milliseconds before.
"""

SCALE_TIMEOUT_S = 5.0
"""How long a ReplicaSet is given to take pods away before those that stayed are taken back."""

TRIES = 4
"""How often the replicas are set anew on what another has just written."""

MAX_CONCURRENT_REQUESTS = 16
"""Requests to the API server on their way at one time, for one pool."""

_log = logger(__name__)


class ScaleIn:
    """Changes the replicas of Deployments: up at once, down as said above."""

    def __init__(self, cluster: Cluster, ledger: AsyncLedger, world: ClusterState) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._world = world
        self._scaled_at: dict[str, float] = {}  # monotonic, by pool
        self._spared_at: dict[str, float] = {}

    async def lower(self, standing: PoolState, *, to: int) -> int:
        """Fewer replicas, as far as there are some that run nothing; answers how many there are to be now."""
        deployment = standing.deployment
        if deployment is None or to >= deployment.replicas:
            return 0 if deployment is None else deployment.replicas
        now_ms = round(time.time() * 1000)
        present = [pod for pod in standing.pods.values() if pod.counts]
        if len(present) > deployment.replicas:
            return deployment.replicas  # those that were chosen before are not gone yet
        count = deployment.replicas - to
        never_made = min(deployment.replicas - len(present), count)
        if any(pod.is_on_its_way(now_ms) for pod in present) or (
            never_made and _age(self._scaled_at, standing) < SCALE_TIMEOUT_S
        ):
            return deployment.replicas  # a ReplicaSet would take these before any that we choose
        free = [pod for pod in present if pod.is_stuck(now_ms)][: count - never_made]
        out = {pod.name for pod in present if pod.is_out}
        before = {name: at for name, at in standing.victims.items() if name in out}
        stuck = {pod.name for pod in free}
        others = [pod.name for pod in present if pod.name not in stuck]
        # Those that are marked stay so: taken back, a pod must rest before anything is lowered.
        asked = max(count - never_made - len(free), sum(name not in stuck for name in before))
        marked = await self._ledger.run(calls.drain(standing.name, count=asked, pods=others)) if asked else []
        names = stuck | ({drained.pod for drained in marked} & set(others))
        now = time.monotonic()
        standing.victims = {name: before.get(name, now) for name in names}
        stale = [pod for pod in present if pod.chosen and pod.name not in names]
        if stale:
            await self._each(standing, stale, self._spare)
            self._spared_at[standing.name] = time.monotonic()
        fresh = [pod for pod in present if pod.name in names - before.keys()]
        await self._each(standing, fresh, self._choose)
        seen = [name for name, at in standing.victims.items() if name in before and now - at >= PROPAGATION_S]
        if _age(self._spared_at, standing) < PROPAGATION_S:
            return deployment.replicas
        lowered = max(deployment.replicas - never_made - len(seen), to)
        if lowered < deployment.replicas:
            await self.scale(standing, to=lowered)
        return lowered

    async def scale(self, standing: PoolState, *, to: int) -> None:
        """Set the replicas, if they are still what was seen. Raises Conflict."""
        seen = standing.deployment
        assert seen is not None  # noqa: S101 - who calls has looked
        version = seen.version
        for tries_left in range(TRIES - 1, -1, -1):
            try:
                version = await self._cluster.scale(seen.name, replicas=to, version=version)
                break
            except Conflict:
                # Most often only its status has changed. What matters is the number.
                replicas, version = await self._cluster.replicas(seen.name)
                if replicas != seen.replicas or not tries_left:
                    raise
        self._scaled_at[standing.name] = time.monotonic()
        standing.deployment = replace(seen, replicas=to, version=version)
        self._world.note_version(DEPLOYMENTS, seen.name, version)

    async def settle(self, standing: PoolState) -> None:
        """Renew the marks of pods that are to go, take back those that stay after all, and let new pods serve."""
        deployment = standing.deployment
        present = {pod.name: pod for pod in standing.pods.values() if pod.counts}
        standing.victims = {name: at for name, at in standing.victims.items() if name in present}
        chosen = [pod for pod in present.values() if pod.chosen or pod.name in standing.victims]
        if chosen:
            replicas = deployment.replicas if deployment is not None else 0
            wants_fewer = standing.decision is not None and standing.decision.replicas < replicas
            newest = max(standing.victims.values(), default=-math.inf)
            is_choosing = wants_fewer and time.monotonic() - newest < SCALE_TIMEOUT_S
            if len(present) > replicas or _age(self._scaled_at, standing) < SCALE_TIMEOUT_S or is_choosing:
                names = [pod.name for pod in chosen]
                await self._ledger.run(calls.drain(standing.name, count=len(names), pods=names))
            else:
                await self._take_back(standing, chosen)
        fresh = [pod for pod in present.values() if pod.serving is not True and not pod.chosen]
        await self._each(standing, fresh, self._let_serve)

    async def _take_back(self, standing: PoolState, chosen: list[Pod]) -> None:
        _log.info("taken_back", pool=standing.name, pods=[pod.name for pod in chosen])
        await self._each(standing, chosen, self._spare)
        standing.victims = {}
        self._spared_at[standing.name] = time.monotonic()
        await self._ledger.run(calls.drain(standing.name, count=0))

    async def _each(self, standing: PoolState, pods: list[Pod], act: Any) -> list[Pod]:
        """Do it to each; answers those that it was done to. What a pod that is gone refuses is no failure."""
        gate = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

        async def one(pod: Pod) -> Pod | None:
            async with gate:
                try:
                    await act(pod)
                except RequestRejected:
                    return None
                except DarkroomError as error:
                    _log.warning("pod_unchanged", pool=standing.name, pod=pod.name, error=error.detail)
                    return None
            return pod

        done = await asyncio.gather(*(one(pod) for pod in pods))
        return [pod for pod in done if pod is not None]

    async def _choose(self, pod: Pod) -> None:
        await self._annotate(pod, CHOSEN_POD_COST)
        await self._cluster.set_conditions(pod.name, _conditions(serving=False))

    async def _spare(self, pod: Pod) -> None:
        await self._annotate(pod, None)
        await self._let_serve(pod)

    async def _let_serve(self, pod: Pod) -> None:
        await self._cluster.set_conditions(pod.name, _conditions(serving=True))

    async def _annotate(self, pod: Pod, cost: str | None) -> None:
        patch = {"metadata": {"annotations": {DELETION_COST: cost}}}
        resource = await self._cluster.merge(POD, pod.name, patch)
        if self._world.is_news(PODS, resource):
            self._world.take_pod(resource)


def _age(times: Mapping[str, float], standing: PoolState) -> float:
    return time.monotonic() - times[standing.name] if standing.name in times else math.inf


def _conditions(*, serving: bool) -> list[Mapping[str, Any]]:
    """The readiness gate and, where it is shut, what follows from it at once: a ReplicaSet looks at Ready."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    status = "True" if serving else "False"
    gate = {"type": SERVING, "status": status, "lastTransitionTime": now}
    if serving:
        return [gate]
    reason = {"reason": "Draining", "message": "the worker runs nothing and takes no more jobs"}
    return [{**gate, **reason}, {"type": "Ready", "status": status, "lastTransitionTime": now, **reason}]

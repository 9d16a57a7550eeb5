"""Replacement of workers that stay faulty: their pods are deleted, so that the Deployment creates new ones.

A faulty worker accepts no job, but tests itself and may recover; it has `after_s` to do so. When the decision is to
replace, the ledger marks the workers atomically with `claim`, as for a scale-in, so that a worker that has just
recovered loses no job: a busy worker is not marked, and only the pods of marked workers are deleted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from darkroom.errors import DarkroomError
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger

from darkroom_operator.kubernetes.client import NOT_FOUND, POD, Cluster, RequestRejected
from darkroom_operator.kubernetes.state import PoolState

_log = logger(__name__)


class FaultyWorkerReplacement:
    """Measures how long workers have been faulty, and replaces their pods."""

    def __init__(self, cluster: Cluster, ledger: AsyncLedger, *, after_s: float) -> None:
        self._cluster, self._ledger, self._after_s = cluster, ledger, after_s

    async def observe(self, pools: Sequence[PoolState]) -> None:
        """Update since when workers of these pools have been faulty. One that starts a self-test is still faulty."""
        affected = {each.name: each for each in pools if each.faulty or (each.reading and each.reading.faulty)}
        if not affected:
            return
        try:
            workers = await reads.workers(self._ledger)
        except DarkroomError as error:
            _log.warning("faulty_unknown", error=error.detail)
            return
        now = time.monotonic()
        for name, pool in affected.items():
            states = {worker.pod: worker.state for worker in workers if worker.pool == name}
            pool.faulty = {
                pod: pool.faulty.get(pod, now)
                for pod, state in states.items()
                if state == WorkerState.FAULTY or (state == WorkerState.STARTING and pod in pool.faulty)
            }

    def overdue(self, pool: PoolState) -> list[str]:
        """Pods whose worker has been faulty for longer than `after_s`, the longest first."""
        before = time.monotonic() - self._after_s
        since = {pod: at for pod, at in pool.faulty.items() if pod in pool.pods and pool.pods[pod].counts}
        return sorted((pod for pod, at in since.items() if at <= before), key=lambda pod: since[pod])

    async def replace(self, pool: PoolState, number: int) -> list[str]:
        """Delete at most `number` of the overdue pods. Returns those that were deleted."""
        names = self.overdue(pool)[:number]
        marked = await self._ledger.run(calls.drain(pool.name, count=len(names), pods=names))
        deleted = []
        for pod in sorted({worker.pod for worker in marked} & set(names)):
            try:
                await self._cluster.delete(POD, pod)
            except RequestRejected as error:
                if error.code != NOT_FOUND:
                    _log.warning("pod_not_replaced", pool=pool.name, pod=pod, error=error.detail)
            else:
                deleted.append(pod)
            pool.faulty.pop(pod, None)
        return deleted

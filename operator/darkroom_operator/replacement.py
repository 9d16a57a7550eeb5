"""The pods of workers that stay faulty are deleted, so that the Deployment makes new ones.

A faulty worker takes no job, but tests itself again and may recover; `after_s` is the time that it is given. When the
decision is to replace, the ledger marks the workers atomically with `claim`, as for a scale-in, so that a worker that
has just recovered loses no job: a busy one is not marked, and only the pods of marked ones are deleted.
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
from darkroom_operator.kubernetes.world import PoolState

_log = logger(__name__)


class FaultyWorkerReplacement:
    """Observes how long workers have been faulty, and replaces pods."""

    def __init__(self, cluster: Cluster, ledger: AsyncLedger, *, after_s: float) -> None:
        self._cluster, self._ledger, self._after_s = cluster, ledger, after_s

    async def observe(self, standings: Sequence[PoolState]) -> None:
        """Update since when workers of these pools have been faulty. One that starts for a test of itself still is."""
        of_interest = {each.name: each for each in standings if each.faulty or (each.reading and each.reading.faulty)}
        if not of_interest:
            return
        try:
            workers = await reads.workers(self._ledger)
        except DarkroomError as error:
            _log.warning("faulty_unknown", error=error.detail)
            return
        now = time.monotonic()
        for name, standing in of_interest.items():
            states = {worker.pod: worker.state for worker in workers if worker.pool == name}
            standing.faulty = {
                pod: standing.faulty.get(pod, now)
                for pod, state in states.items()
                if state == WorkerState.FAULTY or (state == WorkerState.STARTING and pod in standing.faulty)
            }

    def overdue(self, standing: PoolState) -> list[str]:
        """Pods whose worker has been faulty for too long, the longest first."""
        before = time.monotonic() - self._after_s
        since = {pod: at for pod, at in standing.faulty.items() if pod in standing.pods and standing.pods[pod].counts}
        return sorted((pod for pod, at in since.items() if at <= before), key=lambda pod: since[pod])

    async def replace(self, standing: PoolState, number: int) -> list[str]:
        """Delete that many of the overdue pods; answers those that were deleted."""
        names = self.overdue(standing)[:number]
        marked = await self._ledger.run(calls.drain(standing.name, count=len(names), pods=names))
        deleted = []
        for pod in sorted({worker.pod for worker in marked} & set(names)):
            try:
                await self._cluster.delete(POD, pod)
            except RequestRejected as error:
                if error.code != NOT_FOUND:
                    _log.warning("pod_not_replaced", pool=standing.name, pod=pod, error=error.detail)
            else:
                deleted.append(pod)
            standing.faulty.pop(pod, None)
        return deleted

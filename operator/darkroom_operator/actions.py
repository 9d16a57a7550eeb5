"""Changes of a pool's cluster objects and jobs: what the control loop does after it has decided.

The replicas follow the decision (`scale_in.py`), pods of faulty workers are replaced (`replacement.py`), and the jobs
of workers whose pod is gone are released. Every change is logged and recorded as a Kubernetes Event.
"""

from __future__ import annotations

from darkroom import times
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import ReleaseReason, WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.scaling.decision import Decision

from darkroom_operator.kubernetes.client import Cluster
from darkroom_operator.kubernetes.objects import Deployment
from darkroom_operator.kubernetes.state import ClusterState, PoolState
from darkroom_operator.replacement import FaultyWorkerReplacement
from darkroom_operator.scale_in import ScaleIn
from darkroom_operator.status import NORMAL, REPLACED, WARNING, StatusWriter, next_replacement

_log = logger(__name__)


class PoolActions:
    """The actions on pools. They raise DarkroomError if the cluster or the ledger refuses, or is unavailable."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: AsyncLedger,
        state: ClusterState,
        replacement: FaultyWorkerReplacement,
        status: StatusWriter,
    ) -> None:
        self._ledger, self._replacement, self._status = ledger, replacement, status
        self.scaling = ScaleIn(cluster, ledger, state)

    async def apply(self, pool: PoolState, deployment: Deployment, decision: Decision, now_ms: int) -> bool:
        """Change the replicas as decided, as far as no busy worker is removed, and replace faulty workers.

        Returns whether pods were chosen whose removal is to be continued after `PROPAGATION_S`.
        """
        before = deployment.replicas
        is_choosing = False
        if decision.replicas > before:
            await self.scaling.scale(pool, to=decision.replicas)
            await self.report_change(pool, before, decision.replicas, decision, now_ms)
        elif decision.replicas < before:
            after = await self.scaling.scale_in(pool, to=decision.replicas)
            is_choosing = after == before and bool(pool.chosen_pods)
            if after < before:
                await self.report_change(pool, before, after, decision, now_ms)
        if decision.replace and not pool.chosen_pods:
            await self._replace(pool, decision.replace)
        return is_choosing

    async def report_change(self, pool: PoolState, before: int, after: int, decision: Decision, now_ms: int) -> None:
        """Report a change of the replicas: a log entry, a Kubernetes Event, the status."""
        if before == after:
            return
        inputs = dict(decision.inputs)
        _log.info("scaled", pool=pool.name, reason=decision.reason, **{"from": before, "to": after}, **inputs)
        pool.last_change = {
            "time": times.iso(now_ms),
            "from": before,
            "to": after,
            "reason": decision.reason.value,
            "inputs": inputs,
        }
        reason = "ScaledUp" if after > before else "ScaledDown"
        message = f"from {before} to {after} replicas: {decision.reason.value}, {inputs.get('jobs', 0)} jobs"
        await self._status.event(pool, NORMAL, reason, message)

    async def _replace(self, pool: PoolState, number: int) -> None:
        """Replace the pods of workers that stay faulty: a log entry, and a Kubernetes Event."""
        pods = await self._replacement.replace(pool, number)
        if not pods:
            return
        _log.warning("replaced", pool=pool.name, pods=pods, in_a_row=pool.history.replacements)
        names = ", ".join(pods)
        message = f"{len(pods)} workers stayed faulty; their pods are replaced: {names}. {next_replacement(pool)}"
        await self._status.event(pool, WARNING, REPLACED, message)

    async def release_jobs(self, pool: PoolState) -> None:
        """Release the jobs of workers whose pod is gone, before their lease expires."""
        if not pool.gone_pods:
            return
        pods = set(pool.gone_pods)
        for worker in await reads.workers(self._ledger):
            if worker.pod not in pods or worker.pool != pool.name:
                continue
            if worker.job is not None:
                detail = f"pod {worker.pod} is gone"
                released = await self._ledger.run(
                    calls.release(worker.job, reason=ReleaseReason.WORKER_LOST, detail=detail, worker=worker.name)
                )
                _log.info("job_freed", pool=pool.name, job=worker.job, worker=worker.name, now=released)
            await self._ledger.run(
                calls.register_worker(worker.name, pool=worker.pool, state=WorkerState.GONE, pod=worker.pod, models=())
            )
        for pod in pods:
            pool.gone_pods.pop(pod, None)

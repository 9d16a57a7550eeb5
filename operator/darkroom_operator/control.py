"""Observe, decide, act: the operator's loop over all pools.

It looks at every pool each tick, and at once at one that got work while it had none (`wake`). One round trip to Redis
reads the demand of all of them, gives back the jobs of workers that fell silent, and writes the last decisions down;
`decide` (core) says how many replicas there are to be; acting goes through `scale_in.py`. It acts while this process
holds the Lease, and changes nothing of a pool whose demand it could not read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from darkroom import times
from darkroom.errors import DarkroomError, LedgerUnavailable
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Call, Reading, WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.scaling.policy import Decision, DecisionEntry, PoolObservation, decide, is_recorded, resume

from darkroom_operator.kubernetes.client import Cluster, Conflict
from darkroom_operator.kubernetes.election import Leadership
from darkroom_operator.kubernetes.world import DEPLOYMENTS, ClusterState, PoolState, essence
from darkroom_operator.pools import PoolSpec
from darkroom_operator.reconciliation import InvalidTemplate, Reconciliation
from darkroom_operator.replacement import FaultyWorkerReplacement
from darkroom_operator.report import NORMAL, REPLACED, WARNING, StatusWriter, next_replacement
from darkroom_operator.scale_in import PROPAGATION_S, ScaleIn

ROUND_LIMIT_S = 20.0
"""One look takes no longer: a Redis or an API server that takes connections and does not answer is a failure too."""

POOLS_AT_ONCE = 16
"""Pools that are acted on at one time."""

RETRY_S = 2.0
"""Pause before a specification that could not be put in force is tried again."""

MAX_PENDING_WRITES = 10_000
"""Entries of decision logs that wait for Redis; beyond it the oldest are dropped."""

INVALID_SPEC, INVALID_TEMPLATE = "InvalidSpec", "InvalidTemplate"
"""What can be wrong with a specification: a rule of ours is broken, or the API server refuses the template."""

_log = logger(__name__)


class ControlLoop:
    """The loop. Handlers and the resync change the world beside it; they call `wake` where it should look."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: AsyncLedger,
        world: ClusterState,
        leadership: Leadership,
        *,
        tick_s: float,
        replace_after_s: float,
        config_maps: Mapping[str, str],
    ) -> None:
        self._ledger, self._world, self._leadership = ledger, world, leadership
        self._tick_s = tick_s
        self._reconciliation = Reconciliation(cluster, config_maps=config_maps)
        self._scale = ScaleIn(cluster, ledger, world)
        self._replacement = FaultyWorkerReplacement(cluster, ledger, after_s=replace_after_s)
        self._report = StatusWriter(cluster)
        self._woken: set[str] = set()
        self._to_do = asyncio.Event()
        self._changed = asyncio.Event()
        self._owner = f"operator of {cluster.namespace}"
        self._unsaid: list[Call[Any]] = []
        self._gate = asyncio.Semaphore(POOLS_AT_ONCE)
        self._reconciling = asyncio.Semaphore(POOLS_AT_ONCE)
        self.went_round = time.monotonic()

    def wake(self, pool: str) -> None:
        """Look at this pool at once."""
        self._woken.add(pool)
        self._to_do.set()
        self._changed.set()

    async def run(self) -> None:
        """Look, until cancelled. No failure ends it."""
        full_at = 0.0
        while True:
            now = time.monotonic()
            is_full = now >= full_at
            names = list(self._world.standings) if is_full else [*self._woken]
            self._woken.clear()
            self._to_do.clear()
            if is_full:
                full_at = now + self._tick_s
                self._world.prune()
            try:
                async with asyncio.timeout(ROUND_LIMIT_S):
                    await self.look(names, reap=is_full)
            except DarkroomError as error:
                _log.warning("round_failed", error=error.detail)
            except TimeoutError:
                _log.warning("round_failed", error=f"took longer than {ROUND_LIMIT_S} s")
            except Exception:  # whatever it is, the next look may do better
                _log.exception("round_failed")
            self.went_round = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(full_at - time.monotonic(), 0)):
                    await self._to_do.wait()

    async def keep_in_force(self) -> None:
        """Put the newest specification of each pool in force, until cancelled. No failure ends it."""
        while True:
            self._changed.clear()
            if self._leadership.held:
                await asyncio.gather(*(self._try(each) for each in self._world.standings.values() if _is_new(each)))
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._changed.wait()

    async def _try(self, standing: PoolState) -> None:
        if time.monotonic() < standing.try_again_at:
            return
        try:
            async with self._reconciling:
                await self.reconcile(standing)
        except DarkroomError as error:
            standing.try_again_at = time.monotonic() + RETRY_S
            _log.warning("not_reconciled", pool=standing.name, error=error.detail)
        except Exception:  # one pool must not stop the others
            standing.try_again_at = time.monotonic() + RETRY_S
            _log.exception("not_reconciled", pool=standing.name)

    async def look(self, names: Iterable[str], *, reap: bool) -> None:
        """One look at these pools."""
        standings = [standing for name in names if (standing := self._world.standings.get(name)) is not None]
        if not self._leadership.held:
            for standing in standings:
                standing.is_resumed = False  # nothing is observed meanwhile, as while no operator runs
            return
        if not (standings or self._unsaid):
            return
        await self._observe(standings, reap=reap)
        await self._replacement.observe(standings)
        now_ms = round(time.time() * 1000)
        await asyncio.gather(*(self._resume(standing, now_ms) for standing in standings if not standing.is_resumed))
        for standing in standings:
            self._count_time(standing)
        # Most pools need nothing most of the time: a task for each would cost more than thinking about it.
        restless = [standing for standing in standings if self._think(standing, now_ms)]
        await asyncio.gather(*(self._attend(standing, now_ms) for standing in restless))

    async def reconcile(self, standing: PoolState) -> None:
        """The pool's objects are as its specification says. Raises what stands in the way, if a repeat may cure it."""
        pool = standing.pool
        if pool is None or standing.ending:
            return
        try:
            async with standing.changing:
                deployment = await self._reconciliation.apply(pool)
        except InvalidTemplate as error:
            standing.tried = pool.generation
            await self._find_fault(standing, INVALID_TEMPLATE, error.detail)
            return
        standing.in_force = standing.tried = pool.generation
        if standing.generation == pool.generation:
            standing.fault = None
        if deployment is not None:
            standing.applied = essence(deployment)
            if self._world.is_news(DEPLOYMENTS, deployment):
                self._world.take_deployment(deployment)
        if self._world.standings.get(pool.name) is standing and not standing.ending:
            self.announce(pool)
        self.wake(standing.name)

    def announce(self, pool: PoolSpec) -> None:
        """Announce the pool to the ledger, with the next look."""
        self._announce(pool.name, pool.models)

    def withdraw(self, name: str) -> None:
        """The pool is deleted: with the next look that reaches the ledger, it accepts no more jobs."""
        self._announce(name, ())

    def _announce(self, name: str, models: Sequence[str]) -> None:
        before = ("pool", name)
        self._unsaid = [call for call in self._unsaid if call.script != "announce_pool" or call.args[:2] != before]
        self._unsaid.append(calls.announce_pool(name, models=models, owner=self._owner))
        self.wake(name)

    async def withdraw_orphans(self) -> None:
        """Withdraw the pools that were deleted while no operator watched."""
        try:
            announced = await reads.pools_of(self._ledger, self._owner)
        except DarkroomError as error:
            _log.warning("orphans_unknown", error=error.detail)
            return
        for name in announced:
            standing = self._world.standings.get(name)
            if standing is None or standing.uid is None:
                _log.info("orphan_withdrawn", pool=name)
                self.withdraw(name)

    async def _find_fault(self, standing: PoolState, reason: str, message: str) -> None:
        if standing.fault == (reason, message):
            return
        standing.fault = (reason, message)
        _log.warning("at_fault", pool=standing.name, reason=reason, detail=message)
        await self._report.event(standing, WARNING, reason, message)
        self.wake(standing.name)

    async def refuse(self, standing: PoolState, message: str) -> None:
        """The newest specification is not understood; the last one that was stays in force."""
        await self._find_fault(standing, INVALID_SPEC, message)

    async def _observe(self, standings: list[PoolState], *, reap: bool) -> None:
        """The demand of each pool, all in one round trip, and the upkeep that goes with it."""
        unsaid, self._unsaid = self._unsaid[-MAX_PENDING_WRITES:], []
        batch: list[Call[Any]] = [calls.observe(standing.name) for standing in standings]
        # A pool in which nothing ran at the last look has nothing to be reaped.
        due = [standing for standing in standings if reap and (standing.reading is None or standing.reading.running)]
        batch += [calls.reap(standing.name) for standing in due]
        try:
            answers: list[Any] = await self._ledger.run_each([*batch, *unsaid])
        except LedgerUnavailable as error:
            self._unsaid = unsaid + self._unsaid
            answers = [error] * len(batch)
        for standing, answer in zip(standings, answers, strict=False):
            if isinstance(answer, Reading):
                standing.reading, standing.unknown = answer, None
            else:
                if standing.unknown is None:
                    _log.warning("demand_unknown", pool=standing.name, error=answer.detail)
                standing.reading, standing.unknown = None, answer.detail
        for standing, answer in zip(due, answers[len(standings) : len(batch)], strict=True):
            if isinstance(answer, list) and answer:
                _log.info("reaped", pool=standing.name, jobs=answer)

    async def _resume(self, standing: PoolState, now_ms: int) -> None:
        """Continue from the pool's decision log. Without it the demand counts as unknown."""
        if standing.pool is None or standing.unknown is not None:
            return
        try:
            async with self._gate:
                texts = await reads.decisions(self._ledger, standing.name, limit=1)
            last = DecisionEntry.decode(texts[-1]) if texts else None
        except LedgerUnavailable as error:
            standing.reading, standing.unknown = None, error.detail
            return
        except (DarkroomError, KeyError, TypeError, ValueError) as error:
            _log.warning("log_not_readable", pool=standing.name, error=repr(error))
            last = None
        replicas = standing.deployment.replicas if standing.deployment is not None else 0
        standing.history = resume(last, replicas=replicas, now=now_ms)
        if last is not None and standing.cold_start_s is None:
            standing.cold_start_s = last.observation.cold_start_seconds
        standing.is_resumed = True

    def _think(self, standing: PoolState, now_ms: int) -> bool:
        """Decide on one pool; answers whether anything is to be done or said."""
        before = standing.decision
        if standing.pool is not None and not standing.ending:
            observation = _observation(standing, now_ms, stays_faulty=len(self._replacement.overdue(standing)))
            history = standing.history
            decision, standing.history = decide(observation, standing.pool.policy, history, now_ms)
            standing.decision = decision
            if before != decision:
                standing.decisions[decision.reason] = standing.decisions.get(decision.reason, 0) + 1
            entry = DecisionEntry(
                at=now_ms,
                policy=standing.pool.policy,
                observation=observation,
                history=history,
                decision=decision,
                after=standing.history,
            )
            if is_recorded(entry, standing.written):
                self._write_down(standing, entry)
        return self._is_restless(standing) or self._report.has_news(standing, now_ms=now_ms)

    def _write_down(self, standing: PoolState, entry: DecisionEntry) -> None:
        """An entry of the pool's decision log. It goes with the next look's round trip."""
        standing.written = entry
        self._unsaid.append(calls.append_decision(standing.name, at=entry.at, entry=entry.encode()))

    def _is_restless(self, standing: PoolState) -> bool:
        deployment, decision = standing.deployment, standing.decision
        if standing.gone or standing.victims:
            return True
        if decision is not None and (deployment is None or decision.replicas != deployment.replicas):
            return True
        if decision is not None and decision.replace:
            return True
        return any(pod.counts and (pod.chosen or pod.serving is not True) for pod in standing.pods.values())

    async def _attend(self, standing: PoolState, now_ms: int) -> None:
        """Act on one pool; what fails is of this pool alone, and the next look tries again."""
        async with self._gate:
            try:
                if standing.unknown is None:
                    await self._free_jobs(standing)
                if standing.unknown is None and not standing.ending:
                    if standing.pool is not None and standing.decision is not None:
                        await self._act(standing, standing.pool, standing.decision, now_ms)
                    await self._scale.settle(standing)
            except Conflict as error:
                _log.info("changed_by_another", pool=standing.name, detail=error.detail)
            except InvalidTemplate as error:
                await self._find_fault(standing, INVALID_TEMPLATE, error.detail)
            except DarkroomError as error:
                _log.warning("not_acted", pool=standing.name, error=error.detail)
            except Exception:  # one pool must not stop the others
                _log.exception("not_acted", pool=standing.name)
            if standing.uid is not None:
                await self._report.status(standing, now_ms=now_ms)

    async def _act(self, standing: PoolState, pool: PoolSpec, decision: Decision, now_ms: int) -> None:
        """The replicas are as decided, as far as that takes no busy worker away."""
        deployment = standing.deployment
        if deployment is None:
            if standing.fault is not None and standing.fault[0] == INVALID_TEMPLATE:
                return
            async with standing.changing:
                created = await self._reconciliation.create(pool, replicas=decision.replicas)
            if created is None:
                return
            standing.applied = essence(created)
            if self._world.is_news(DEPLOYMENTS, created):
                self._world.take_deployment(created)
            await self._tell(standing, 0, decision.replicas, decision, now_ms)
            return
        before = deployment.replicas
        if decision.replicas > before:
            await self._scale.scale(standing, to=decision.replicas)
            await self._tell(standing, before, decision.replicas, decision, now_ms)
        elif decision.replicas < before:
            after = await self._scale.lower(standing, to=decision.replicas)
            if after == before and standing.victims:
                asyncio.get_running_loop().call_later(PROPAGATION_S, self.wake, standing.name)
            elif after < before:
                await self._tell(standing, before, after, decision, now_ms)
        if decision.replace and not standing.victims:
            await self._replace(standing, decision.replace)

    async def _tell(self, standing: PoolState, before: int, after: int, decision: Decision, now_ms: int) -> None:
        """A change of the replicas: a log line, a Kubernetes Event, the status."""
        if before == after:
            return
        inputs = dict(decision.inputs)
        _log.info("scaled", pool=standing.name, reason=decision.reason, **{"from": before, "to": after}, **inputs)
        standing.last_change = {
            "time": times.iso(now_ms),
            "from": before,
            "to": after,
            "reason": decision.reason.value,
            "inputs": inputs,
        }
        reason = "ScaledUp" if after > before else "ScaledDown"
        message = f"from {before} to {after} replicas: {decision.reason.value}, {inputs.get('jobs', 0)} jobs"
        await self._report.event(standing, NORMAL, reason, message)

    async def _replace(self, standing: PoolState, number: int) -> None:
        """Replace the pods of workers that stay faulty: a log line, and a Kubernetes Event."""
        pods = await self._replacement.replace(standing, number)
        if not pods:
            return
        _log.warning("replaced", pool=standing.name, pods=pods, in_a_row=standing.history.replacements)
        names = ", ".join(pods)
        message = f"{len(pods)} workers stayed faulty; their pods are replaced: {names}. {next_replacement(standing)}"
        await self._report.event(standing, WARNING, REPLACED, message)

    async def _free_jobs(self, standing: PoolState) -> None:
        """Jobs of workers whose pod is gone are given back at once, and wait for no lease."""
        if not standing.gone:
            return
        pods = set(standing.gone)
        for worker in await reads.workers(self._ledger):
            if worker.pod not in pods or worker.pool != standing.name:
                continue
            if worker.job is not None:
                detail = f"pod {worker.pod} is gone"
                reason = calls.ReleaseReason.WORKER_LOST
                freed = await self._ledger.run(
                    calls.release(worker.job, reason=reason, detail=detail, worker=worker.name)
                )
                _log.info("job_freed", pool=standing.name, job=worker.job, worker=worker.name, now=freed)
            await self._ledger.run(
                calls.register_worker(worker.name, pool=worker.pool, state=WorkerState.GONE, pod=worker.pod, models=())
            )
        for pod in pods:
            standing.gone.pop(pod, None)

    def _count_time(self, standing: PoolState) -> None:
        """Replica-seconds by what the replicas did, since the last look."""
        now = time.monotonic()
        since, standing.counted_at = standing.counted_at, now
        if since is None:
            return
        for state, number in replicas_by_state(standing).items():
            if number:
                standing.replica_seconds[state] = standing.replica_seconds.get(state, 0.0) + number * (now - since)


def _is_new(standing: PoolState) -> bool:
    """Whether the pool has a specification that was not tried yet."""
    return standing.pool is not None and not standing.ending and standing.pool.generation != standing.tried


def replicas_by_state(standing: PoolState) -> dict[str, int]:
    """What the pool's pods do, as far as is known."""
    pods = sum(pod.counts for pod in standing.pods.values())
    reading = standing.reading or Reading()
    broken = sum(standing.broken().values())
    known = {
        "idle": reading.idle,
        "busy": reading.busy,
        "draining": reading.marked + reading.draining,
        "faulty": max(reading.faulty, broken),
    }
    return {"starting": max(pods - sum(known.values()), 0), **known}


def _observation(standing: PoolState, now_ms: int, *, stays_faulty: int) -> PoolObservation:
    deployment = standing.deployment
    return PoolObservation(
        reading=standing.reading,
        replicas=deployment.replicas if deployment is not None else 0,
        ready=sum(pod.counts and pod.ready_ms is not None for pod in standing.pods.values()),
        broken=standing.broken(),
        unplaced=standing.unplaced(now_ms),
        rolling=deployment is not None and deployment.rolling,
        cold_start_seconds=standing.cold_start_s,
        stays_faulty=stays_faulty,
    )

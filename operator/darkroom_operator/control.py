"""The control loop over all pools: observe, decide, act.

It considers every pool each tick, and at once a pool that gets work while it had none (`wake`). One round trip to Redis
reads the demand of all of them, releases the jobs of workers whose lease expired, and appends to the decision logs;
`decide` (core) computes the replicas; `actions.py` changes the cluster. The loop acts while this process holds the
Lease, and changes nothing of a pool whose demand is unknown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from darkroom.errors import DarkroomError, LedgerUnavailable
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Call, Reading
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.scaling.decision import Decision, decide
from darkroom.scaling.decision_log import DecisionEntry, is_recorded, resume

from darkroom_operator.actions import PoolActions
from darkroom_operator.kubernetes.client import Cluster, Conflict
from darkroom_operator.kubernetes.election import Leadership
from darkroom_operator.kubernetes.objects import essence
from darkroom_operator.kubernetes.state import DEPLOYMENTS, ClusterState, PoolState
from darkroom_operator.observation import count_time, observation_of
from darkroom_operator.pools import PoolSpec
from darkroom_operator.reconciliation import InvalidTemplate, Reconciliation
from darkroom_operator.replacement import FaultyWorkerReplacement
from darkroom_operator.scale_in import PROPAGATION_S
from darkroom_operator.status import WARNING, StatusWriter

ROUND_TIMEOUT_S = 20.0
"""The limit of one round: a Redis or an API server that accepts connections and does not answer is a failure too."""

POOLS_AT_ONCE = 16
"""Pools that are changed concurrently."""

RETRY_S = 2.0
"""Pause before a specification that could not be applied is tried again."""

MAX_PENDING_WRITES = 10_000
"""Calls of the ledger that wait for Redis; beyond it the oldest are dropped."""

INVALID_SPEC, INVALID_TEMPLATE = "InvalidSpec", "InvalidTemplate"
"""Faults of a specification: it breaks a rule of darkroom, or the API server refuses the template."""

_log = logger(__name__)


class ControlLoop:
    """The loop. Handlers and the resync change the state beside it, and call `wake` for a pool to consider at once."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: AsyncLedger,
        state: ClusterState,
        leadership: Leadership,
        *,
        tick_s: float,
        replace_after_s: float,
        config_maps: Mapping[str, str],
    ) -> None:
        self._ledger, self._state, self._leadership = ledger, state, leadership
        self._tick_s = tick_s
        self._reconciliation = Reconciliation(cluster, config_maps=config_maps)
        self._replacement = FaultyWorkerReplacement(cluster, ledger, after_s=replace_after_s)
        self._status = StatusWriter(cluster)
        self._actions = PoolActions(cluster, ledger, state, self._replacement, self._status)
        self._woken: set[str] = set()
        self._to_do = asyncio.Event()
        self._changed = asyncio.Event()
        self._owner = f"operator of {cluster.namespace}"
        self._pending_writes: list[Call[Any]] = []
        self._acting = asyncio.Semaphore(POOLS_AT_ONCE)
        self._reconciling = asyncio.Semaphore(POOLS_AT_ONCE)
        self.last_round_at = time.monotonic()

    def wake(self, pool: str) -> None:
        """Consider this pool at once."""
        self._woken.add(pool)
        self._to_do.set()
        self._changed.set()

    async def run(self) -> None:
        """Run rounds until cancelled. No failure ends the loop."""
        full_at = 0.0
        while True:
            now = time.monotonic()
            is_full = now >= full_at
            names = list(self._state.pools) if is_full else [*self._woken]
            self._woken.clear()
            self._to_do.clear()
            if is_full:
                full_at = now + self._tick_s
                self._state.prune()
            try:
                async with asyncio.timeout(ROUND_TIMEOUT_S):
                    await self.run_round(names, reap=is_full)
            except DarkroomError as error:
                _log.warning("round_failed", error=error.detail)
            except TimeoutError:
                _log.warning("round_failed", error=f"took longer than {ROUND_TIMEOUT_S} s")
            except Exception:  # the next round may succeed
                _log.exception("round_failed")
            self.last_round_at = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(full_at - time.monotonic(), 0)):
                    await self._to_do.wait()

    async def run_round(self, names: Iterable[str], *, reap: bool) -> None:
        """Observe, decide and act for these pools."""
        pools = [pool for name in names if (pool := self._state.pools.get(name)) is not None]
        if not self._leadership.held:
            for pool in pools:
                pool.is_resumed = False  # nothing is observed meanwhile, as while no operator runs
            return
        if not (pools or self._pending_writes):
            return
        await self._observe(pools, reap=reap)
        await self._replacement.observe(pools)
        now_ms = round(time.time() * 1000)
        await asyncio.gather(*(self._resume(pool, now_ms) for pool in pools if not pool.is_resumed))
        for pool in pools:
            count_time(pool)
        # Most pools need no change most of the time: a task for each would cost more than the decision.
        changing = [pool for pool in pools if self._decide(pool, now_ms)]
        await asyncio.gather(*(self._act(pool, now_ms) for pool in changing))

    async def _observe(self, pools: list[PoolState], *, reap: bool) -> None:
        """Read the demand of each pool in one round trip, together with the pending writes."""
        pending, self._pending_writes = self._pending_writes[-MAX_PENDING_WRITES:], []
        # A pool in which nothing ran at the last round has no lease that could expire.
        due = [pool for pool in pools if reap and (pool.reading is None or pool.reading.running)]
        observing: list[Call[Any]] = [calls.observe(pool.name) for pool in pools]
        observing += [calls.reap(pool.name) for pool in due]
        try:
            answers: list[Any] = await self._ledger.run_each([*observing, *pending])
        except LedgerUnavailable as error:
            self._pending_writes = pending + self._pending_writes
            answers = [error] * len(observing)
        for pool, answer in zip(pools, answers, strict=False):
            if isinstance(answer, Reading):
                pool.reading, pool.unknown_reason = answer, None
            else:
                if pool.unknown_reason is None:
                    _log.warning("demand_unknown", pool=pool.name, error=answer.detail)
                pool.reading, pool.unknown_reason = None, answer.detail
        for pool, answer in zip(due, answers[len(pools) : len(observing)], strict=True):
            if isinstance(answer, list) and answer:
                _log.info("reaped", pool=pool.name, jobs=answer)

    async def _resume(self, pool: PoolState, now_ms: int) -> None:
        """Continue from the pool's decision log. While it cannot be read, the demand is unknown."""
        if pool.spec is None or pool.unknown_reason is not None:
            return
        try:
            async with self._acting:
                texts = await reads.decisions(self._ledger, pool.name, limit=1)
            last = DecisionEntry.decode(texts[-1]) if texts else None
        except LedgerUnavailable as error:
            pool.reading, pool.unknown_reason = None, error.detail
            return
        except (DarkroomError, KeyError, TypeError, ValueError) as error:
            _log.warning("log_not_readable", pool=pool.name, error=repr(error))
            last = None
        replicas = pool.deployment.replicas if pool.deployment is not None else 0
        pool.history = resume(last, replicas=replicas, now=now_ms)
        if last is not None and pool.cold_start_s is None:
            pool.cold_start_s = last.observation.cold_start_seconds
        pool.is_resumed = True

    def _decide(self, pool: PoolState, now_ms: int) -> bool:
        """Decide on one pool. Returns whether its objects or its status are to be changed."""
        before = pool.decision
        if pool.spec is not None and not pool.deleting:
            observation = observation_of(pool, now_ms, stays_faulty=len(self._replacement.overdue(pool)))
            history = pool.history
            decision, pool.history = decide(observation, pool.spec.policy, history, now_ms)
            pool.decision = decision
            if before != decision:
                pool.decisions[decision.reason] = pool.decisions.get(decision.reason, 0) + 1
            entry = DecisionEntry(
                at=now_ms,
                policy=pool.spec.policy,
                observation=observation,
                history=history,
                decision=decision,
                after=pool.history,
            )
            if is_recorded(entry, pool.recorded):
                pool.recorded = entry
                self._pending_writes.append(calls.append_decision(pool.name, at=entry.at, entry=entry.encode()))
        return _needs_action(pool, pool.decision) or self._status.needs_update(pool, now_ms=now_ms)

    async def _act(self, pool: PoolState, now_ms: int) -> None:
        """Act on one pool. A failure concerns this pool only, and the next round tries again."""
        async with self._acting:
            try:
                if pool.unknown_reason is None:
                    await self._actions.release_jobs(pool)
                if pool.unknown_reason is None and not pool.deleting:
                    if pool.spec is not None and pool.decision is not None:
                        await self._apply(pool, pool.spec, pool.decision, now_ms)
                    await self._actions.scaling.maintain(pool)
            except Conflict as error:
                _log.info("changed_by_another", pool=pool.name, detail=error.detail)
            except InvalidTemplate as error:
                await self._set_fault(pool, INVALID_TEMPLATE, error.detail)
            except DarkroomError as error:
                _log.warning("not_acted", pool=pool.name, error=error.detail)
            except Exception:  # other pools are not affected
                _log.exception("not_acted", pool=pool.name)
            if pool.uid is not None:
                await self._status.write(pool, now_ms=now_ms)

    async def _apply(self, pool: PoolState, spec: PoolSpec, decision: Decision, now_ms: int) -> None:
        """Apply the decision. No busy worker is removed."""
        if pool.deployment is not None:
            if await self._actions.apply(pool, pool.deployment, decision, now_ms):
                asyncio.get_running_loop().call_later(PROPAGATION_S, self.wake, pool.name)
            return
        if pool.fault is not None and pool.fault[0] == INVALID_TEMPLATE:
            return
        async with pool.lock:
            created = await self._reconciliation.create(spec, replicas=decision.replicas)
        if created is None:
            return
        self._store_applied(pool, created)
        await self._actions.report_change(pool, 0, decision.replicas, decision, now_ms)

    async def reconcile_changes(self) -> None:
        """Apply the newest specification of each pool, until cancelled. No failure ends the loop."""
        while True:
            self._changed.clear()
            if self._leadership.held:
                await asyncio.gather(*(self._try(pool) for pool in self._state.pools.values() if _is_new(pool)))
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._changed.wait()

    async def _try(self, pool: PoolState) -> None:
        if time.monotonic() < pool.retry_at:
            return
        try:
            async with self._reconciling:
                await self.reconcile(pool)
        except DarkroomError as error:
            pool.retry_at = time.monotonic() + RETRY_S
            _log.warning("not_reconciled", pool=pool.name, error=error.detail)
        except Exception:  # other pools are not affected
            pool.retry_at = time.monotonic() + RETRY_S
            _log.exception("not_reconciled", pool=pool.name)

    async def reconcile(self, pool: PoolState) -> None:
        """Apply the pool's specification to its objects. Raises DarkroomError for failures that a retry may solve."""
        spec = pool.spec
        if spec is None or pool.deleting:
            return
        try:
            async with pool.lock:
                deployment = await self._reconciliation.apply(spec)
        except InvalidTemplate as error:
            pool.tried_generation = spec.generation
            await self._set_fault(pool, INVALID_TEMPLATE, error.detail)
            return
        pool.applied_generation = pool.tried_generation = spec.generation
        if pool.generation == spec.generation:
            pool.fault = None
        if deployment is not None:
            self._store_applied(pool, deployment)
        if self._state.pools.get(spec.name) is pool and not pool.deleting:
            self.announce(spec)
        self.wake(pool.name)

    def _store_applied(self, pool: PoolState, deployment: Mapping[str, Any]) -> None:
        pool.applied = essence(deployment)
        if self._state.record_version(DEPLOYMENTS, deployment):
            self._state.update_deployment(deployment)

    def announce(self, spec: PoolSpec) -> None:
        """Announce the pool to the ledger in the next round."""
        self._announce(spec.name, spec.models)

    def withdraw(self, name: str) -> None:
        """The pool is deleted: it accepts no jobs after the next round that reaches the ledger."""
        self._announce(name, ())

    def _announce(self, name: str, models: Sequence[str]) -> None:
        of_pool = ("pool", name)
        self._pending_writes = [
            call for call in self._pending_writes if call.script != "announce_pool" or call.args[:2] != of_pool
        ]
        self._pending_writes.append(calls.announce_pool(name, models=models, owner=self._owner))
        self.wake(name)

    async def withdraw_orphans(self) -> None:
        """Withdraw the pools that were deleted while no operator ran."""
        try:
            announced = await reads.pools_of(self._ledger, self._owner)
        except DarkroomError as error:
            _log.warning("orphans_unknown", error=error.detail)
            return
        for name in announced:
            pool = self._state.pools.get(name)
            if pool is None or pool.uid is None:
                _log.info("orphan_withdrawn", pool=name)
                self.withdraw(name)

    async def reject(self, pool: PoolState, message: str) -> None:
        """The newest specification is invalid; the last valid one stays applied."""
        await self._set_fault(pool, INVALID_SPEC, message)

    async def _set_fault(self, pool: PoolState, reason: str, message: str) -> None:
        if pool.fault == (reason, message):
            return
        pool.fault = (reason, message)
        _log.warning("at_fault", pool=pool.name, reason=reason, detail=message)
        await self._status.event(pool, WARNING, reason, message)
        self.wake(pool.name)


def _is_new(pool: PoolState) -> bool:
    """Whether the pool has a specification that was not tried yet."""
    return pool.spec is not None and not pool.deleting and pool.spec.generation != pool.tried_generation


def _needs_action(pool: PoolState, decision: Decision | None) -> bool:
    """Whether the objects of the pool are to be changed."""
    if pool.gone_pods or pool.chosen_pods:
        return True
    if decision is not None and (pool.deployment is None or decision.replicas != pool.deployment.replicas):
        return True
    if decision is not None and decision.replace:
        return True
    return any(pod.counts and (pod.chosen or pod.serving is not True) for pod in pool.pods.values())

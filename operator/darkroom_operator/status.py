"""The status of a pool with its conditions, and the Kubernetes Events about it.

A status is written when it differs from the one written last: important fields at once, mere counts some seconds later,
so that a thousand busy pools do not cause a thousand writes a second.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from darkroom import times
from darkroom.errors import DarkroomError
from darkroom.logs import logger
from darkroom.scaling.decision import Reason
from darkroom.scaling.policy import Paused

from darkroom_operator.kubernetes.client import Cluster, RequestRejected
from darkroom_operator.kubernetes.state import PoolState
from darkroom_operator.pools import API_VERSION, selector_text

COMPONENT = "darkroom-operator"

COUNTS_EVERY_S = 2.0
"""Pause between two writes that change only counts."""

COUNTS = frozenset({"waiting", "running", "due", "oldest", "busy", "ready", "starting", "draining", "lastDecision"})

OLDEST_SLACK_MS = 2_000
"""The time of the oldest job is measured in each round; a smaller difference is none."""

NORMAL, WARNING = "Normal", "Warning"

REPLACED = "WorkersReplaced"
"""The reason of an Event, and of the condition until a worker is ready again."""

_log = logger(__name__)


class StatusWriter:
    """Writes statuses and Events. The operator does not depend on them: failures are logged."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def event(self, pool: PoolState, kind: str, reason: str, message: str) -> None:
        """Record a Kubernetes Event about the pool."""
        if pool.uid is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{pool.name}.", "namespace": self._cluster.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "WorkerPool",
                "name": pool.name,
                "namespace": self._cluster.namespace,
                "uid": pool.uid,
            },
            "type": kind,
            "reason": reason,
            "message": message[:1000],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": socket.gethostname(),
        }
        try:
            await self._cluster.create(body)
        except DarkroomError as error:
            _log.warning("event_not_recorded", pool=pool.name, reason=reason, error=error.detail)

    def needs_update(self, pool: PoolState, *, now_ms: int) -> bool:
        """Whether the pool's status is to be written now. For an unchanged pool this is one comparison."""
        if pool.uid is None:
            return False
        inputs = _status_inputs(pool)
        if inputs == pool.settled_status:
            return False
        status = status_of(pool, now_ms=now_ms)
        pool.settled_status = inputs if status == pool.written_status else None
        return bool(self._changed(pool, status))

    def _changed(self, pool: PoolState, status: dict[str, Any]) -> dict[str, Any]:
        written = pool.written_status
        changed = {name: value for name, value in status.items() if written.get(name, _NOTHING) != value}
        if changed.keys() <= COUNTS and written and time.monotonic() - pool.status_written_at < COUNTS_EVERY_S:
            return {}
        return changed

    async def write(self, pool: PoolState, *, now_ms: int) -> None:
        """Write the changed fields of the pool's status."""
        status = status_of(pool, now_ms=now_ms)
        changed = self._changed(pool, status)
        if not changed:
            return
        try:
            await self._cluster.merge_status(pool.name, changed)
        except RequestRejected as error:
            _log.warning("status_refused", pool=pool.name, error=error.detail)  # most often the pool was just deleted
        except DarkroomError as error:
            _log.warning("status_not_written", pool=pool.name, error=error.detail)
            return
        pool.written_status, pool.status_written_at = status, time.monotonic()


_NOTHING = object()


def _status_inputs(pool: PoolState) -> tuple[Any, ...]:
    """Everything that a status is made of except the time, which matters only with waiting jobs."""
    return (
        *(pool.generation, pool.applied_generation, pool.fault, pool.deleting, pool.unknown_reason),
        *(pool.spec, pool.reading, pool.decision, pool.deployment, pool.history.replaced_at),
        *pool.pods.values(),
    )


def status_of(pool: PoolState, *, now_ms: int) -> dict[str, Any]:
    """The current status of a pool."""
    conditions = _conditions(pool, now_ms=now_ms)
    status: dict[str, Any] = {
        "observedGeneration": pool.generation,
        "replicas": sum(pod.counts for pod in pool.pods.values()),
        "selector": selector_text(pool.name),
        "desired": pool.deployment.replicas if pool.deployment is not None else 0,
        "reason": _reason(pool),
        "conditions": conditions,
    }
    if pool.last_change is not None:
        status["lastDecision"] = dict(pool.last_change)
    reading = pool.reading
    if reading is not None:
        working = reading.idle + reading.busy
        faulty = max(reading.faulty, sum(pool.broken().values()))
        draining = reading.marked + reading.draining
        status |= {
            "ready": working,
            "busy": reading.busy,
            "draining": draining,
            "faulty": faulty,
            "starting": max(status["replicas"] - working - faulty - draining, 0),
            "waiting": reading.waiting + reading.dispatched,
            "running": reading.running,
            "due": reading.due_soon,
            "oldest": _oldest(pool, now_ms),
        }
    return status


def _oldest(pool: PoolState, now_ms: int) -> str | None:
    reading, written = pool.reading, pool.written_status.get("oldest")
    if reading is None or reading.oldest_ms is None:
        return None
    since = now_ms - reading.oldest_ms
    if written is not None and abs(times.to_ms(written) - since) < OLDEST_SLACK_MS:
        return str(written)
    return times.iso(since)


def degradation(pool: PoolState) -> tuple[str, str] | None:
    """What keeps replicas from working, the most severe first: reason and message."""
    pods = [pod for pod in pool.pods.values() if pod.counts]
    for pod in pods:
        if pod.start_failure is not None:
            return pod.start_failure[0], f"pod {pod.name}, {pod.start_failure[1]}"
    reading = pool.reading
    if reading is not None and reading.faulty:
        return Reason.FAULTY.value, f"{reading.faulty} workers are faulty. {next_replacement(pool)}".strip()
    if reading is not None and pool.history.replacements and not (reading.idle or reading.busy):
        return (
            REPLACED,
            f"the pods of faulty workers were replaced, and no worker is ready yet. {next_replacement(pool)}",
        )
    if pool.deployment is not None and pool.deployment.failure is not None:
        return "FailedCreate", pool.deployment.failure
    for pod in pods:
        if pod.unschedulable is not None:
            return pod.unschedulable[0], f"pod {pod.name}: {pod.unschedulable[1]}"
    return None


def next_replacement(pool: PoolState) -> str:
    """The time of the next replacement of faulty workers, as text; empty if none was replaced."""
    at, times_in_a_row = pool.history.replaceable_at(), pool.history.replacements
    return "" if at is None else f"Replacements in a row: {times_in_a_row}, the next not before {times.iso(at)}"


def _reason(pool: PoolState) -> str:
    found = pool.fault or degradation(pool)
    if found is not None:
        return found[0]
    if pool.deleting:
        return "Deleting"
    if pool.unknown_reason is not None:
        return Reason.UNKNOWN.value
    return pool.decision.reason.value if pool.decision is not None else "Starting"


def _conditions(pool: PoolState, *, now_ms: int) -> list[dict[str, Any]]:
    fault, found = pool.fault, degradation(pool)
    if fault is not None:
        ready = ("False", *fault)
    elif pool.deployment is None:
        ready = ("False", "Creating", "the Deployment does not exist yet")
    elif pool.applied_generation != pool.generation:
        ready = ("False", "Reconciling", "the newest specification is not applied yet")
    else:
        ready = ("True", "Reconciled", "the specification is applied")
    degraded = ("True", *found) if found is not None else ("False", "AsExpected", "nothing keeps replicas from working")
    conditions = {"Ready": ready, "ScalingActive": _scaling(pool), "Degraded": degraded}
    return [_condition(pool, kind, *words, now_ms=now_ms) for kind, words in conditions.items()]


def _scaling(pool: PoolState) -> tuple[str, str, str]:
    if pool.deleting:
        return "False", "Deleting", "the pool is being deleted"
    if pool.spec is None:
        return "False", "InvalidSpec", "the pool had no valid specification yet"
    if pool.unknown_reason is not None:
        return "False", Reason.UNKNOWN.value, f"the replicas stay as they are: {pool.unknown_reason}"
    if pool.spec.policy.paused is not Paused.NONE:
        return "False", "Paused", f"paused: {pool.spec.policy.paused.value}"
    return "True", "FollowingDemand", "the replicas follow the demand"


def _condition(pool: PoolState, kind: str, status: str, reason: str, message: str, *, now_ms: int) -> dict[str, Any]:
    before: Mapping[str, Any] = pool.conditions.get(kind, {})
    same = before.get("status") == status
    condition = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:1000],
        "observedGeneration": pool.generation,
        "lastTransitionTime": before["lastTransitionTime"] if same else times.iso(now_ms),
    }
    pool.conditions[kind] = condition
    return condition

"""What the operator says of a pool: its status with the conditions, and Kubernetes Events.

A status is written when it differs from what was written last: what matters at once, mere counts some seconds later, so
that a thousand busy pools do not mean a thousand writes a second.
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
from darkroom.scaling.policy import Paused, Reason

from darkroom_operator.kubernetes.client import Cluster, RequestRejected
from darkroom_operator.kubernetes.world import PoolState
from darkroom_operator.pools import API_VERSION, selector_text

COMPONENT = "darkroom-operator"

COUNTS_EVERY_S = 2.0
"""Pause between two writes of nothing but counts."""

COUNTS = frozenset({"waiting", "running", "due", "oldest", "busy", "ready", "starting", "draining", "lastDecision"})

OLDEST_SLACK_MS = 2_000
"""The oldest job's time is measured anew at each look; within this it is the same."""

NORMAL, WARNING = "Normal", "Warning"

REPLACED = "WorkersReplaced"
"""Of an Event, and of the condition until a worker works again."""

_log = logger(__name__)


class StatusWriter:
    """Writes statuses and Events. Neither is needed by anything that the operator does: failing, they are logged."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def event(self, standing: PoolState, kind: str, reason: str, message: str) -> None:
        """A Kubernetes Event about the pool."""
        if standing.uid is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{standing.name}.", "namespace": self._cluster.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "WorkerPool",
                "name": standing.name,
                "namespace": self._cluster.namespace,
                "uid": standing.uid,
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
            _log.warning("event_not_recorded", pool=standing.name, reason=reason, error=error.detail)

    def has_news(self, standing: PoolState, *, now_ms: int) -> bool:
        """Whether the pool's status is to be written now. Of a pool where nothing moves that is seen at a glance."""
        if standing.uid is None:
            return False
        seen = _all_that_counts(standing)
        if seen == standing.settled:
            return False
        status = status_of(standing, now_ms=now_ms)
        standing.settled = seen if status == standing.said else None
        return bool(self._changed(standing, status))

    def _changed(self, standing: PoolState, status: dict[str, Any]) -> dict[str, Any]:
        said = standing.said
        changed = {name: value for name, value in status.items() if said.get(name, _NOTHING) != value}
        if changed.keys() <= COUNTS and said and time.monotonic() - standing.said_at < COUNTS_EVERY_S:
            return {}
        return changed

    async def status(self, standing: PoolState, *, now_ms: int) -> None:
        """Write what has changed of the pool's status."""
        status = status_of(standing, now_ms=now_ms)
        changed = self._changed(standing, status)
        if not changed:
            return
        try:
            await self._cluster.merge_status(standing.name, changed)
        except RequestRejected as error:
            _log.warning("status_refused", pool=standing.name, error=error.detail)  # most often, it was just deleted
        except DarkroomError as error:
            _log.warning("status_not_written", pool=standing.name, error=error.detail)
            return
        standing.said, standing.said_at = status, time.monotonic()


_NOTHING = object()


def _all_that_counts(standing: PoolState) -> tuple[Any, ...]:
    """What a status is made of, but for the time: without waiting jobs it says nothing of that."""
    return (
        *(standing.generation, standing.in_force, standing.fault, standing.ending, standing.unknown),
        *(standing.pool, standing.reading, standing.decision, standing.deployment, standing.history.replaced_at),
        *standing.pods.values(),
    )


def status_of(standing: PoolState, *, now_ms: int) -> dict[str, Any]:
    """The status of a pool as it stands."""
    conditions = _conditions(standing, now_ms=now_ms)
    status: dict[str, Any] = {
        "observedGeneration": standing.generation,
        "replicas": sum(pod.counts for pod in standing.pods.values()),
        "selector": selector_text(standing.name),
        "desired": standing.deployment.replicas if standing.deployment is not None else 0,
        "reason": _reason(standing),
        "conditions": conditions,
    }
    if standing.last_change is not None:
        status["lastDecision"] = dict(standing.last_change)
    reading = standing.reading
    if reading is not None:
        works = reading.idle + reading.busy
        faulty = max(reading.faulty, sum(standing.broken().values()))
        draining = reading.marked + reading.draining
        status |= {
            "ready": works,
            "busy": reading.busy,
            "draining": draining,
            "faulty": faulty,
            "starting": max(status["replicas"] - works - faulty - draining, 0),
            "waiting": reading.waiting + reading.dispatched,
            "running": reading.running,
            "due": reading.due_soon,
            "oldest": _oldest(standing, now_ms),
        }
    return status


def _oldest(standing: PoolState, now_ms: int) -> str | None:
    reading, said = standing.reading, standing.said.get("oldest")
    if reading is None or reading.oldest_ms is None:
        return None
    since = now_ms - reading.oldest_ms
    if said is not None and abs(times.to_ms(said) - since) < OLDEST_SLACK_MS:
        return str(said)
    return times.iso(since)


def trouble(standing: PoolState) -> tuple[str, str] | None:
    """What keeps replicas from working, the gravest first: reason and message."""
    pods = [pod for pod in standing.pods.values() if pod.counts]
    for pod in pods:
        if pod.trouble is not None:
            return pod.trouble[0], f"pod {pod.name}, {pod.trouble[1]}"
    reading = standing.reading
    if reading is not None and reading.faulty:
        return Reason.FAULTY.value, f"{reading.faulty} workers are faulty. {next_replacement(standing)}".strip()
    if reading is not None and standing.history.replacements and not (reading.idle or reading.busy):
        return (
            REPLACED,
            f"the pods of faulty workers were replaced, and no worker works yet. {next_replacement(standing)}",
        )
    if standing.deployment is not None and standing.deployment.failure is not None:
        return "FailedCreate", standing.deployment.failure
    for pod in pods:
        if pod.unplaced is not None:
            return pod.unplaced[0], f"pod {pod.name}: {pod.unplaced[1]}"
    return None


def next_replacement(standing: PoolState) -> str:
    """When faulty workers may be replaced again, as a sentence; empty where none was replaced."""
    at, times_in_a_row = standing.history.replaceable_at(), standing.history.replacements
    return "" if at is None else f"Replacements in a row: {times_in_a_row}, the next not before {times.iso(at)}"


def _reason(standing: PoolState) -> str:
    found = standing.fault or trouble(standing)
    if found is not None:
        return found[0]
    if standing.ending:
        return "Deleting"
    if standing.unknown is not None:
        return Reason.UNKNOWN.value
    return standing.decision.reason.value if standing.decision is not None else "Starting"


def _conditions(standing: PoolState, *, now_ms: int) -> list[dict[str, Any]]:
    fault, found = standing.fault, trouble(standing)
    if fault is not None:
        ready = ("False", *fault)
    elif standing.deployment is None:
        ready = ("False", "Creating", "the Deployment is not there yet")
    elif standing.in_force != standing.generation:
        ready = ("False", "Reconciling", "the newest specification is not in force yet")
    else:
        ready = ("True", "Reconciled", "the specification is in force")
    degraded = ("True", *found) if found is not None else ("False", "AsExpected", "nothing keeps replicas from working")
    said = {"Ready": ready, "ScalingActive": _scaling(standing), "Degraded": degraded}
    return [_condition(standing, kind, *words, now_ms=now_ms) for kind, words in said.items()]


def _scaling(standing: PoolState) -> tuple[str, str, str]:
    if standing.ending:
        return "False", "Deleting", "the pool is being deleted"
    if standing.pool is None:
        return "False", "InvalidSpec", "no specification of the pool was understood yet"
    if standing.unknown is not None:
        return "False", Reason.UNKNOWN.value, f"the replicas stay as they are: {standing.unknown}"
    if standing.pool.policy.paused is not Paused.NONE:
        return "False", "Paused", f"paused: {standing.pool.policy.paused.value}"
    return "True", "FollowingDemand", "the replicas follow the demand"


def _condition(
    standing: PoolState, kind: str, status: str, reason: str, message: str, *, now_ms: int
) -> dict[str, Any]:
    before: Mapping[str, Any] = standing.conditions.get(kind, {})
    same = before.get("status") == status
    condition = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:1000],
        "observedGeneration": standing.generation,
        "lastTransitionTime": before["lastTransitionTime"] if same else times.iso(now_ms),
    }
    standing.conditions[kind] = condition
    return condition

"""Other autoscalers, by their documented rules, as `Scaler`s of a simulated day.

KEDA 2.x with the HorizontalPodAutoscaler that it makes:
- KEDA polls the queue each `pollingInterval`. It scales from zero to one when the queue is not empty, and to zero when
  the queue was empty for `cooldownPeriod`. https://keda.sh/docs/latest/concepts/scaling-deployments/
- The HPA scales between one and the maximum, every 15 s: to `ceil(metric / target)` (an `AverageValue`), if that is
  more than a tenth off; up by at most four pods or 100 % in 15 s, whichever is more; down to the highest recommendation
  of the stabilisation window.
  https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#configurable-scaling-behavior
- The metric is the length of the list, read at each sync of the HPA. It excludes the workers' unacknowledged messages;
  the tuned variant adds them.
- The ReplicaSet chooses the pods to remove, independent of jobs.

RunPod's queue delay: one more worker while a request has waited longer than the delay (4 s by default) and no starting
worker accounts for it; a worker is removed after the idle timeout (5 s by default). The number of concurrent starts is
not documented; here one for each such request. https://docs.runpod.io/serverless/endpoints/endpoint-configurations
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.scaling.simulation import TICK_MS, RemovalOrder, SimulatedFleet, SimulatedJob

SYNC_MS = 15_000
"""The controller manager's `--horizontal-pod-autoscaler-sync-period`."""

TOLERANCE = 0.1
"""Its `--horizontal-pod-autoscaler-tolerance`."""

PODS_AT_ONCE = 4
"""The HPA's default policy for scaling up: this many pods, or 100 %, in 15 s."""


@dataclass(frozen=True, kw_only=True)
class KedaSettings:
    """The settings of a ScaledObject. Durations are in milliseconds."""

    target: float
    least: int
    most: int
    poll: int
    stabilisation: int
    cooldown: int
    counts_unacked: bool


class Keda:
    """KEDA and its HPA."""

    removal_order = RemovalOrder.ANY
    listens = False

    def __init__(self, settings: KedaSettings) -> None:
        self._settings = settings
        self._active_at: int | None = None
        self._recommended: deque[tuple[int, int]] = deque()

    def ask(self, fleet: SimulatedFleet, jobs: Sequence[SimulatedJob], now: int) -> tuple[int, int | None]:
        """Poll and sync when they are due."""
        metric = len(fleet.waiting) + (len(fleet.busy) if self._settings.counts_unacked else 0)
        replicas = fleet.replicas
        if now % self._settings.poll == 0:
            replicas = self._poll(metric, replicas, now)
        if now % SYNC_MS == 0 and replicas > 0:
            replicas = self._sync(metric, replicas, now)
        again = min((now // every + 1) * every for every in (self._settings.poll, SYNC_MS))
        return replicas, again

    def _poll(self, metric: int, replicas: int, now: int) -> int:
        """KEDA's part: activation of the workload."""
        if metric > 0:
            self._active_at = now
            return max(replicas, self._settings.least, 1)
        if self._settings.least > 0:
            return max(replicas, self._settings.least)
        if self._active_at is None or now - self._active_at >= self._settings.cooldown:
            self._recommended.clear()
            return 0
        return replicas

    def _sync(self, metric: int, replicas: int, now: int) -> int:
        """The HPA's part."""
        settings = self._settings
        wanted = math.ceil(metric / settings.target)
        if abs(metric / (settings.target * replicas) - 1) <= TOLERANCE:
            wanted = replicas
        wanted = min(max(wanted, settings.least, 1), settings.most)
        while self._recommended and self._recommended[0][0] <= now - settings.stabilisation:
            self._recommended.popleft()
        self._recommended.append((now, wanted))
        if wanted >= replicas:
            return min(wanted, max(replicas + PODS_AT_ONCE, 2 * replicas))
        return min(replicas, max(each for _, each in self._recommended))


class QueueDelay:
    """RunPod's scaling by queue delay."""

    removal_order = RemovalOrder.IDLE
    listens = True

    def __init__(self, *, delay: int, idle: int, least: int, most: int) -> None:
        self._delay, self._idle, self._least, self._most = delay, idle, least, most

    def ask(self, fleet: SimulatedFleet, jobs: Sequence[SimulatedJob], now: int) -> tuple[int, int | None]:
        late = 0
        for job in fleet.waiting:
            if now - jobs[job].arrival < self._delay:
                break  # the remaining jobs arrived later
            late += 1
        expired = [each for each in fleet.idle.values() if now - each.since >= self._idle]
        replicas = fleet.replicas
        wanted = replicas - len(expired) if not late else replicas + max(late - len(fleet.starting), 0)
        again = [each.since + self._idle for each in fleet.idle.values() if each not in expired]
        if late < len(fleet.waiting):
            again.append(jobs[fleet.waiting[late]].arrival + self._delay)
        bounded = min(max(wanted, self._least), self._most)
        return bounded, max(-(-min(again) // TICK_MS) * TICK_MS, now + TICK_MS) if again else None


class Fixed:
    """A constant number of replicas."""

    removal_order = RemovalOrder.IDLE
    listens = False

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def ask(self, fleet: SimulatedFleet, jobs: Sequence[SimulatedJob], now: int) -> tuple[int, int | None]:
        return self._replicas, None

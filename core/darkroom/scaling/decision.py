"""The scaling decision: how many replicas a pool should have, as a pure function.

The operator observes a pool, calls `decide` and acts on the result; `darkroom replay` calls `decide` again with the
recorded observations, and `make bench-policy` with simulated days. Nothing here reads a clock, Redis or Kubernetes, and
every type is JSON and back without loss: the same inputs give the same decision, bit for bit.

The rules, in the order in which they apply:

1. *Unknown is not zero.* Without a reading of the ledger the replicas stay.
2. The wanted replicas: enough for the target, plus `buffer`; at least the floor (`min_replicas`, or an open window of
   the schedule), at most `max_replicas`. A faulty worker runs nothing and is compensated for.
3. Too few: scale up at once, or after `scale_up.wait_seconds`, unless as many replicas are broken as work: additional
   ones would be broken too.
4. Too many: scale down after no more was wanted for `scale_down.idle_seconds`, and by no more than the replicas that
   run nothing. A busy worker is never removed, and nothing is removed during a rollout.
5. Faulty workers that do not recover by themselves are replaced, unless there are replicas to spare: all of them at
   once, each time after a longer pause, since the new ones may be faulty for the same reason.

Times are milliseconds since the epoch where they are points, and seconds where they are spans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from darkroom.backoff import Backoff
from darkroom.jobs import UnknownValue, read_value
from darkroom.ledger.calls import Reading
from darkroom.scaling.policy import Paused, ScalingPolicy

PEAKS = 60
"""Peaks of the wanted number in the history; beyond it the two oldest are merged into the higher and later one."""

REPLACEMENT_BACKOFF = Backoff(first_s=60, longest_s=900)
"""Between two replacements of faulty workers. Most models load in less than the first pause. The longest one is a
guess: a new pod costs a cold start, of minutes for large models.
"""

IN_A_ROW_WITHIN_S = round(2 * REPLACEMENT_BACKOFF.longest_s)
"""A replacement after a longer time than this counts as the first."""


class Reason(StrEnum):
    """The reason of a decision, spelled like Kubernetes' reasons."""

    AT_TARGET = "AtTarget"
    DEMAND = "Demand"  # up: more jobs
    FLOOR = "Floor"  # up: to the minimum, or to that of a window
    IDLE = "Idle"  # down: fewer were wanted for long enough
    ABOVE_MAXIMUM = "AboveMaximum"  # down: the maximum was lowered
    AT_MAXIMUM = "AtMaximum"  # more are wanted than the maximum
    WAITING = "WaitingToScaleUp"  # more are wanted, and not for long enough
    SETTLING = "Settling"  # fewer are wanted, and not for long enough
    BUSY = "AllBusy"  # fewer are wanted, and every replica is busy
    ROLLOUT = "RolloutInProgress"  # fewer are wanted, and the template is being rolled out
    PAUSED = "Paused"
    UNKNOWN = "DemandUnknown"
    NOT_STARTING = "PodsNotStarting"  # more are wanted, and pods crash or cannot start
    FAULTY = "WorkersFaulty"  # more are wanted, and workers are faulty


@dataclass(frozen=True, kw_only=True)
class PoolObservation:
    """The state of a pool at one time, as the operator observed it.

    `reading`: the demand in the ledger, None if it could not be read. `replicas`: the desired replicas of the
    Deployment. `ready`: ready pods. `broken`: pods that crash repeatedly or cannot start, by Kubernetes' reason
    (CrashLoopBackOff, ImagePullBackOff, …). `unplaced`: pods that no node accepts yet. `rolling`: the template is being
    rolled out. `cold_start_seconds`: the measured time from a pod's creation until its worker is ready; None while
    unknown. `stays_faulty`: workers that have been faulty for so long that they will not recover by themselves.
    """

    reading: Reading | None
    replicas: int
    ready: int = 0
    broken: Mapping[str, int] = field(default_factory=dict)
    unplaced: int = 0
    rolling: bool = False
    cold_start_seconds: float | None = None
    stays_faulty: int = 0

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> PoolObservation:
        reading = members["reading"]
        known = None if reading is None else Reading(**_known(Reading, reading))
        return cls(**{**_known(cls, members), "reading": known})


@dataclass(frozen=True, kw_only=True)
class ScalingHistory:
    """The state that one decision passes to the next; it is empty for the first decision on a pool.

    `peaks`: the recent maxima of the wanted replicas, each with the last time when it was wanted; a maximum that a
    later one reached is omitted, so that they decrease from left to right. `short_since`: since when more replicas are
    wanted than exist. `shrunk_at`: the last scale-down. `replaced_at`: the last replacement of faulty workers, and
    `replacements`: their number in a row.
    """

    peaks: tuple[tuple[int, int], ...] = ()
    short_since: int | None = None
    shrunk_at: int | None = None
    replaced_at: int | None = None
    replacements: int = 0

    def replaceable_at(self) -> int | None:
        """When faulty workers may be replaced again; None without an earlier replacement."""
        if self.replaced_at is None:
            return None
        return self.replaced_at + round(REPLACEMENT_BACKOFF.after(self.replacements) * 1000)

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> ScalingHistory:
        return cls(**{**_known(cls, members), "peaks": tuple((at, wanted) for at, wanted in members["peaks"])})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The desired replicas, the reason, and the numbers behind it.

    `inputs`: `jobs` (waiting, running or due soon), `target` (replicas for them), `floor`, `wanted` (within the
    bounds), `held` (the maximum that was wanted within the idle time), `removable` (replicas that run nothing).
    `replace`: number of faulty workers to replace now.
    """

    replicas: int
    reason: Reason | UnknownValue
    inputs: Mapping[str, int] = field(default_factory=dict)
    replace: int = 0

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Decision:
        return cls(**{**_known(cls, members), "reason": read_value(Reason, members["reason"])})


def _known(kind: type, members: Mapping[str, Any]) -> dict[str, Any]:
    """The members that are fields of the dataclass: a later version may have written others."""
    return {each.name: members[each.name] for each in fields(kind) if each.name in members}


def decide(
    observation: PoolObservation, policy: ScalingPolicy, history: ScalingHistory, now: int
) -> tuple[Decision, ScalingHistory]:
    """Decide on the replicas at `now` (ms). Returns the decision and the history for the next one."""
    replicas, reading = observation.replicas, observation.reading
    if reading is None:
        # Time without a reading is no idle time: all existing replicas count as wanted.
        after = replace(history, peaks=_with_peak(history.peaks, replicas, policy, now), short_since=None)
        return Decision(replicas=replicas, reason=Reason.UNKNOWN), after
    floor = policy.floor(now)
    target = _for_target(reading, observation.cold_start_seconds, policy)
    asked = max(target + policy.buffer + (reading.faulty if target > 0 else 0), floor)
    wanted = min(asked, policy.max_replicas)
    peaks = _with_peak(history.peaks, wanted, policy, now)
    held = min(max(peak for _, peak in peaks), policy.max_replicas)
    without_worker = sum(observation.broken.values()) + observation.unplaced
    removable = max(min(reading.runs_nothing + without_worker, replicas - reading.busy), 0)
    inputs = {
        "jobs": reading.jobs,
        "target": target,
        "floor": floor,
        "wanted": wanted,
        "held": held,
        "removable": removable,
    }
    short_since = None
    if wanted > replicas:
        short_since = now if history.short_since is None else history.short_since
        number, reason = _up(observation, reading, policy, wanted=wanted, waited_ms=now - short_since)
        if number > replicas:
            short_since = now  # the next step waits again
            reason = Reason.FLOOR if wanted == floor else Reason.DEMAND
    elif wanted == replicas:
        number, reason = replicas, Reason.AT_MAXIMUM if asked > wanted else Reason.AT_TARGET
    else:
        number, reason = _down(observation, policy, history, held=held, removable=removable, now=now)
    replaced = _replaced(observation, policy, history, now) if wanted >= replicas else 0
    after = replace(history, peaks=peaks, short_since=short_since)
    if number < replicas:
        after = replace(after, shrunk_at=now)
    if replaced:
        is_in_a_row = history.replaced_at is not None and now - history.replaced_at <= IN_A_ROW_WITHIN_S * 1000
        after = replace(after, replaced_at=now, replacements=history.replacements + 1 if is_in_a_row else 1)
    return Decision(replicas=number, reason=reason, inputs=inputs, replace=replaced), after


def _replaced(observation: PoolObservation, policy: ScalingPolicy, history: ScalingHistory, now: int) -> int:
    """Number of faulty workers to replace now, if there are no replicas to spare."""
    allowed_at = history.replaceable_at()
    if policy.paused is Paused.ALL or observation.rolling or (allowed_at is not None and now < allowed_at):
        return 0
    return observation.stays_faulty


def _up(
    observation: PoolObservation, reading: Reading, policy: ScalingPolicy, *, wanted: int, waited_ms: int
) -> tuple[int, Reason]:
    """The replicas and the reason if more are wanted than exist."""
    replicas = observation.replicas
    working = reading.idle + reading.busy
    broken = sum(observation.broken.values())
    if policy.paused in {Paused.SCALE_OUT, Paused.ALL}:
        return replicas, Reason.PAUSED
    if broken and broken >= working:
        return replicas, Reason.NOT_STARTING
    if reading.faulty and reading.faulty >= working:
        return replicas, Reason.FAULTY
    if waited_ms < policy.scale_up.wait_seconds * 1000:
        return replicas, Reason.WAITING
    step = policy.scale_up.max_step
    return wanted if step is None else min(replicas + step, wanted), Reason.DEMAND


def _down(
    observation: PoolObservation, policy: ScalingPolicy, history: ScalingHistory, *, held: int, removable: int, now: int
) -> tuple[int, Reason]:
    """The replicas and the reason if fewer are wanted than exist. `held`: the maximum wanted within the idle time."""
    replicas = observation.replicas
    step = policy.scale_down.max_step
    idle_ms = policy.scale_down.idle_seconds * 1000
    if policy.paused in {Paused.SCALE_IN, Paused.ALL}:
        return replicas, Reason.PAUSED
    if observation.rolling:
        return replicas, Reason.ROLLOUT
    if held >= replicas or (step is not None and history.shrunk_at is not None and now - history.shrunk_at < idle_ms):
        return replicas, Reason.SETTLING
    fewer = min(replicas - held, removable if step is None else min(removable, step))
    if fewer == 0:
        return replicas, Reason.BUSY
    return replicas - fewer, Reason.ABOVE_MAXIMUM if replicas > policy.max_replicas else Reason.IDLE


def _for_target(reading: Reading, cold_start_seconds: float | None, policy: ScalingPolicy) -> int:
    """The replicas that the jobs need, without the bounds."""
    if policy.jobs_per_replica is not None:
        return -(-reading.jobs // policy.jobs_per_replica)
    if policy.wait_seconds is None or reading.service_ms is None or cold_start_seconds is None:
        return reading.jobs
    return _for_wait(reading, cold_start_seconds, policy.wait_seconds)


def _for_wait(reading: Reading, cold_start_seconds: float, wait_seconds: float) -> int:
    """The replicas with which a job that arrives now starts within `wait_seconds`, as far as new replicas can help.

    A working replica starts one job per service time, an idle one also one at once. Jobs that these can start before a
    new replica would be ready need no new one. A new replica starts its first job when it is ready, and further ones
    until the wait has passed.
    """
    service_s = max((reading.service_ms or 0.0) / 1000, 0.001)
    horizon_s = max(wait_seconds, cold_start_seconds)
    queued = reading.waiting + reading.dispatched + reading.due_soon
    each = horizon_s / service_s
    working = reading.idle + reading.busy
    left_over = queued - working * each - reading.idle
    if left_over > 0:
        of_a_new_one = 1 + max(wait_seconds - cold_start_seconds, 0.0) / service_s
        return working + math.ceil(left_over / of_a_new_one)
    # The working replicas are enough. Fewer suffice: the busy ones, and the idle ones that the queue needs.
    spare = queued - reading.running * each
    return reading.running + (math.ceil(spare / (1 + each)) if spare > 0 else 0)


def _with_peak(
    peaks: tuple[tuple[int, int], ...], wanted: int, policy: ScalingPolicy, now: int
) -> tuple[tuple[int, int], ...]:
    """The peaks with the wanted replicas of now. Peaks that are too old or reached by a later one are dropped."""
    oldest = now - policy.scale_down.idle_seconds * 1000
    kept = [(at, peak) for at, peak in peaks if at > oldest and peak > wanted]
    if len(kept) >= PEAKS:
        kept[:2] = [(kept[1][0], kept[0][1])]
    return (*kept, (now, wanted))

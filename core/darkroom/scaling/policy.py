"""How many replicas a pool is to have: the decision, as a pure function.

The operator observes a pool, hands the observation to `decide` and acts on the answer; `darkroom replay` feeds what was
written down to `decide` again; `make bench-policy` does so with simulated days. Nothing here reads a clock, Redis or
Kubernetes, and all of it is JSON and back without loss: the same inputs give the same decision, bit for bit.

The rules, in the order in which they are asked:

1. *Unknown is not zero.* Without a reading of the ledger the replicas stay.
2. What is wanted: enough for the target, and `buffer` more; no less than the floor (`min_replicas`, or an open window
   of the schedule), no more than `max_replicas`. A faulty worker serves nobody and is made up for.
3. Too few: up at once, or after `scale_up.wait_seconds`, unless as many replicas are broken as work: more of the same
   would be broken too.
4. Too many: down when for `scale_down.idle_seconds` no more was wanted, and by no more than there are replicas that run
   nothing. A busy worker is never part of the count, and nothing goes during a rollout.
5. Faulty workers that do not recover by themselves are replaced, unless there are replicas to spare: all of them at
   once, and each time after a longer pause, since the next ones may be faulty for the same cause.

Times are milliseconds since the epoch where they are points, and seconds where they are spans.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from darkroom.backoff import Backoff
from darkroom.errors import FieldError, InvalidInput
from darkroom.jobs import UnknownValue, read_value
from darkroom.ledger.calls import Reading

PEAKS = 60
"""Peaks of the wanted number that the history keeps; beyond it the two oldest become one, the higher and later."""

MINUTE_MS = 60_000

MAX_SECONDS = 7 * 24 * 3600
"""The longest span that a policy may name: a week. Longer ones are mistakes, of milliseconds for seconds."""

KEPT_WHILE_BUSY_S = 10
"""Between two entries of the decision log that say nothing new but how many jobs there are: as long as a short job."""

KEPT_WHILE_QUIET_S = 300
"""Between two entries of which the later says nothing new at all: the log of a quiet pool still shows that it lives."""

REPLACEMENT_BACKOFF = Backoff(first_s=60, longest_s=900)
"""Between two replacements of faulty workers. Most models load in less than the first pause. The longest one is a
guess: a new pod costs a cold start, of minutes for large models.
"""

IN_A_ROW_WITHIN_S = round(2 * REPLACEMENT_BACKOFF.longest_s)
"""A replacement after a longer time than this is a first one again."""

RESUMED_WITHIN_S = KEPT_WHILE_QUIET_S + 60
"""A log whose newest entry is younger was continued until now: no more than a minute is missing for a restart."""

CRON_FIELDS = 5
"""Minute, hour, day of month, month, day of week. The library also takes six, with seconds; a window has none."""


class Paused(StrEnum):
    """In which direction a pool must not be scaled, for a while."""

    NONE = "none"
    SCALE_IN = "scaleIn"
    SCALE_OUT = "scaleOut"
    ALL = "all"


class Reason(StrEnum):
    """Why the decision is what it is, in Kubernetes' spelling of reasons."""

    AT_TARGET = "AtTarget"
    DEMAND = "Demand"  # up, since there is more to do
    FLOOR = "Floor"  # up to the minimum, or to that of a window
    IDLE = "Idle"  # down, since less was wanted for long enough
    ABOVE_MAXIMUM = "AboveMaximum"  # down, since the maximum is lower now
    AT_MAXIMUM = "AtMaximum"  # more is wanted than may be
    WAITING = "WaitingToScaleUp"  # more is wanted, and not for long enough
    SETTLING = "Settling"  # less is wanted, and not for long enough
    BUSY = "AllBusy"  # less is wanted, and nobody runs nothing
    ROLLOUT = "RolloutInProgress"  # less is wanted, and the template is being rolled out
    PAUSED = "Paused"
    UNKNOWN = "DemandUnknown"
    NOT_STARTING = "PodsNotStarting"  # more is wanted, and pods crash or cannot be started
    FAULTY = "WorkersFaulty"  # more is wanted, and workers take themselves out


@dataclass(frozen=True, kw_only=True)
class ScheduleWindow:
    """A span of the week in which at least `replicas` are kept.

    `start` and `end` are cron lines of five fields, read in `timezone` (an IANA name). The window is open from a start
    until the next end; where both come in the same minute, the end counts.
    """

    start: str
    end: str
    replicas: int
    timezone: str = "UTC"

    def is_open(self, now: int) -> bool:
        """Whether it is open at `now`: its last start came after its last end."""
        return _is_open(self.start, self.end, self.timezone, now // MINUTE_MS)


@dataclass(frozen=True, kw_only=True)
class ScaleUp:
    """How a pool grows: by at most `max_step` replicas at once (None: by any number), each time when more has been
    wanted for `wait_seconds`.
    """

    max_step: int | None = None
    wait_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScaleDown:
    """How a pool shrinks: when for `idle_seconds` no more was wanted; by at most `max_step` replicas in so long."""

    idle_seconds: float = 60.0
    max_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """What the owner of a pool asks for: the part of a `WorkerPool`'s spec that says how many replicas there are.

    The target is one of two. `jobs_per_replica`: for so many jobs that wait, run or are due soon there is one replica.
    `wait_seconds`: a job that arrives now is to start within that, by the mean time of a job and of a cold start, as
    measured (where times differ much, some jobs wait longer); a new replica is started only where it comes in time to
    take a job off the ones that run. While one of the two times is not known, and where there is no target, there is a
    replica for each job.
    """

    min_replicas: int = 0
    max_replicas: int = 1
    jobs_per_replica: int | None = None
    wait_seconds: float | None = None
    scale_up: ScaleUp = field(default_factory=ScaleUp)
    scale_down: ScaleDown = field(default_factory=ScaleDown)
    buffer: int = 0
    schedule: tuple[ScheduleWindow, ...] = ()
    paused: Paused | UnknownValue = Paused.NONE

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> ScalingPolicy:
        """The policy in the spec of a `WorkerPool`; what else is in there is not looked at.

        Raises InvalidInput; its `fields` name each field at fault as the spec does (`scaleUp.maxStep`).
        """
        return _Spec(spec).policy()

    def spec(self) -> dict[str, Any]:
        """As `from_spec` takes it."""
        target: dict[str, Any] = {}
        if self.jobs_per_replica is not None:
            target["jobsPerReplica"] = self.jobs_per_replica
        if self.wait_seconds is not None:
            target["waitSeconds"] = float(self.wait_seconds)
        return {
            "minReplicas": self.min_replicas,
            "maxReplicas": self.max_replicas,
            "target": target,
            "scaleUp": _without_none(
                {"maxStep": self.scale_up.max_step, "waitSeconds": float(self.scale_up.wait_seconds)}
            ),
            "scaleDown": _without_none(
                {"maxStep": self.scale_down.max_step, "idleSeconds": float(self.scale_down.idle_seconds)}
            ),
            "buffer": self.buffer,
            "schedule": [asdict(window) for window in self.schedule],
            "paused": self.paused.value,
        }

    def floor(self, now: int) -> int:
        """The fewest replicas that there may be at `now`."""
        open_windows = [window.replicas for window in self.schedule if window.is_open(now)]
        return min(max([self.min_replicas, *open_windows]), self.max_replicas)


@dataclass(frozen=True, kw_only=True)
class PoolObservation:
    """What the operator sees of a pool at one time.

    `reading`: what the ledger says, None where it could not be read. `replicas`: what the Deployment asks for. `ready`:
    pods that serve. `broken`: pods that crash again and again or cannot be started, by Kubernetes' reason
    (CrashLoopBackOff, ImagePullBackOff, …). `unplaced`: pods that no node takes yet. `rolling`: the template is being
    rolled out. `cold_start_seconds`: from a pod's creation until its worker is ready, as measured; None while unknown.
    `stays_faulty`: workers that have been faulty for so long that they will not recover by themselves.
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
    """What one decision hands to the next; a pool that was never decided on has an empty one.

    `peaks`: numbers that were wanted lately, each with when it was wanted last; only those that no later one reached,
    so that they fall from left to right. `short_since`: since when more is wanted than there is. `shrunk_at`: the last
    time that replicas were taken away. `replaced_at`: the last time that faulty workers were replaced, and
    `replacements`: how often in a row.
    """

    peaks: tuple[tuple[int, int], ...] = ()
    short_since: int | None = None
    shrunk_at: int | None = None
    replaced_at: int | None = None
    replacements: int = 0

    def replaceable_at(self) -> int | None:
        """When faulty workers may be replaced again; None where there is nothing to wait for."""
        if self.replaced_at is None:
            return None
        return self.replaced_at + round(REPLACEMENT_BACKOFF.after(self.replacements) * 1000)

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> ScalingHistory:
        return cls(**{**_known(cls, members), "peaks": tuple((at, wanted) for at, wanted in members["peaks"])})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How many replicas there are to be, why, and the numbers that it came from.

    `inputs`: `jobs` (all that is to be done now or soon), `target` (replicas for them), `floor`, `wanted` (within the
    bounds), `held` (the most that was wanted within the idle time), `removable` (replicas that run nothing). `replace`:
    how many workers that stay faulty are to be replaced now.
    """

    replicas: int
    reason: Reason | UnknownValue
    inputs: Mapping[str, int] = field(default_factory=dict)
    replace: int = 0

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Decision:
        return cls(**{**_known(cls, members), "reason": read_value(Reason, members["reason"])})


@dataclass(frozen=True, kw_only=True)
class DecisionEntry:
    """One entry of a pool's decision log: a decision with everything that it was made of, and what follows from it."""

    at: int
    policy: ScalingPolicy
    observation: PoolObservation
    history: ScalingHistory
    decision: Decision
    after: ScalingHistory

    def encode(self) -> str:
        """As JSON text; equal entries give equal text."""
        members = {
            "at": self.at,
            "policy": self.policy.spec(),
            "observation": asdict(self.observation),
            "history": asdict(self.history),
            "decision": asdict(self.decision),
            "after": asdict(self.after),
        }
        return json.dumps(members, sort_keys=True, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str | bytes) -> DecisionEntry:
        """The counterpart of `encode`. Members that this version does not know are ignored."""
        members = json.loads(text)
        return cls(
            at=members["at"],
            policy=_logged_policy(members["policy"]),
            observation=PoolObservation.from_json(members["observation"]),
            history=ScalingHistory.from_json(members["history"]),
            decision=Decision.from_json(members["decision"]),
            after=ScalingHistory.from_json(members["after"]),
        )


def _known(kind: type, members: Mapping[str, Any]) -> dict[str, Any]:
    """The members that are fields of the dataclass: a later version may have written others."""
    return {each.name: members[each.name] for each in fields(kind) if each.name in members}


def _logged_policy(spec: Mapping[str, Any]) -> ScalingPolicy:
    """The policy of an entry; a later version may have paused it in a way that is unknown here."""
    paused = read_value(Paused, spec["paused"])
    return replace(ScalingPolicy.from_spec({**spec, "paused": Paused.NONE}), paused=paused)


def is_recorded(entry: DecisionEntry, before: DecisionEntry | None) -> bool:
    """Whether the decision log needs `entry`; `before` is the last that was written.

    Every decision that changes something, and every other reason, is kept. What lies between is kept now and then, so
    that it can be said what another policy would have done with the same jobs.
    """
    if before is None or entry.decision.replicas != entry.observation.replicas or entry.decision.replace:
        return True
    if entry.decision.reason != before.decision.reason or entry.policy != before.policy:
        return True
    moves = entry.observation.reading != before.observation.reading
    return entry.at - before.at >= (KEPT_WHILE_BUSY_S if moves else KEPT_WHILE_QUIET_S) * 1000


def decide(
    observation: PoolObservation, policy: ScalingPolicy, history: ScalingHistory, now: int
) -> tuple[Decision, ScalingHistory]:
    """How many replicas there are to be at `now` (ms), and the history for the next decision."""
    replicas, reading = observation.replicas, observation.reading
    if reading is None:
        # Time without a reading is no idle time: as far as is known, all that there are were wanted.
        after = replace(history, peaks=_risen(history.peaks, replicas, policy, now), short_since=None)
        return Decision(replicas=replicas, reason=Reason.UNKNOWN), after
    floor = policy.floor(now)
    target = _for_target(reading, observation.cold_start_seconds, policy)
    asked = max(target + policy.buffer + (reading.faulty if target > 0 else 0), floor)
    wanted = min(asked, policy.max_replicas)
    peaks = _risen(history.peaks, wanted, policy, now)
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
            short_since = now  # the next step waits anew
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


def resume(last: DecisionEntry | None, *, replicas: int, now: int) -> ScalingHistory:
    """The history for the first decision of a process; `last` is the newest entry of the decision log.

    What was wanted last is taken as wanted until now, since a log has no entry while nothing changes. Without a log,
    and after a longer gap, as many were wanted as there are: unknown time is no idle time.
    """
    history = ScalingHistory() if last is None else last.after
    is_continued = last is not None and 0 <= now - last.at <= RESUMED_WITHIN_S * 1000
    wanted = last.decision.inputs.get("wanted", replicas) if last is not None and is_continued else replicas
    peaks = (*((at, peak) for at, peak in history.peaks if peak > wanted), (now, wanted))
    return replace(history, peaks=peaks, short_since=history.short_since if is_continued else None)


def _replaced(observation: PoolObservation, policy: ScalingPolicy, history: ScalingHistory, now: int) -> int:
    """How many workers that stay faulty are replaced now, where none of them can be spared."""
    allowed_at = history.replaceable_at()
    if policy.paused is Paused.ALL or observation.rolling or (allowed_at is not None and now < allowed_at):
        return 0
    return observation.stays_faulty


def _up(
    observation: PoolObservation, reading: Reading, policy: ScalingPolicy, *, wanted: int, waited_ms: int
) -> tuple[int, Reason]:
    """More is wanted than there is."""
    replicas = observation.replicas
    works = reading.idle + reading.busy
    broken = sum(observation.broken.values())
    if policy.paused in {Paused.SCALE_OUT, Paused.ALL}:
        return replicas, Reason.PAUSED
    if broken and broken >= works:
        return replicas, Reason.NOT_STARTING
    if reading.faulty and reading.faulty >= works:
        return replicas, Reason.FAULTY
    if waited_ms < policy.scale_up.wait_seconds * 1000:
        return replicas, Reason.WAITING
    step = policy.scale_up.max_step
    return wanted if step is None else min(replicas + step, wanted), Reason.DEMAND


def _down(
    observation: PoolObservation, policy: ScalingPolicy, history: ScalingHistory, *, held: int, removable: int, now: int
) -> tuple[int, Reason]:
    """Less is wanted than there is. `held` is the most that was wanted within the idle time."""
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
    """The replicas that the jobs need, whatever the bounds."""
    if policy.jobs_per_replica is not None:
        return -(-reading.jobs // policy.jobs_per_replica)
    if policy.wait_seconds is None or reading.service_ms is None or cold_start_seconds is None:
        return reading.jobs
    return _for_wait(reading, cold_start_seconds, policy.wait_seconds)


def _for_wait(reading: Reading, cold_start_seconds: float, wait_seconds: float) -> int:
    """The replicas with which a job that comes now starts within `wait_seconds`, as far as a new one can help.

    A replica that works starts a job each service time, an idle one also one at once. What those that work can start by
    the time when a new one would be up needs no new one. Each new one takes its first job when it is up, and further
    ones until the wait is over.
    """
    service_s = max((reading.service_ms or 0.0) / 1000, 0.001)
    horizon_s = max(wait_seconds, cold_start_seconds)
    queued = reading.waiting + reading.dispatched + reading.due_soon
    each = horizon_s / service_s
    works = reading.idle + reading.busy
    left_over = queued - works * each - reading.idle
    if left_over > 0:
        of_a_new_one = 1 + max(wait_seconds - cold_start_seconds, 0.0) / service_s
        return works + math.ceil(left_over / of_a_new_one)
    # Those that work are enough. So would be fewer: as many as run jobs, and the idle ones that the queue needs.
    spare = queued - reading.running * each
    return reading.running + (math.ceil(spare / (1 + each)) if spare > 0 else 0)


def _risen(
    peaks: tuple[tuple[int, int], ...], wanted: int, policy: ScalingPolicy, now: int
) -> tuple[tuple[int, int], ...]:
    """The peaks with what is wanted now. One that is too old, or that a later one is no less than, goes."""
    oldest = now - policy.scale_down.idle_seconds * 1000
    kept = [(at, peak) for at, peak in peaks if at > oldest and peak > wanted]
    if len(kept) >= PEAKS:
        kept[:2] = [(kept[1][0], kept[0][1])]
    return (*kept, (now, wanted))


@lru_cache(maxsize=4096)
def _is_open(start: str, end: str, timezone: str, minute: int) -> bool:
    # Cron knows minutes, so the answer is the same for all of one. A line that comes in this minute has come.
    after = datetime.fromtimestamp((minute + 1) * 60, tz=UTC).astimezone(ZoneInfo(timezone))
    last_start, last_end = (next(CronSim(line, after, reverse=True)).timestamp() for line in (start, end))
    return last_start > last_end


class _Spec:
    """A spec being read: what is at fault is gathered, so that all of it is said at once."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._faults: list[FieldError] = []

    def policy(self) -> ScalingPolicy:
        policy = ScalingPolicy(
            min_replicas=self._count("minReplicas", 0),
            max_replicas=self._count("maxReplicas", 1, least=1),
            jobs_per_replica=self._count_or_none("target.jobsPerReplica"),
            wait_seconds=self._seconds("target.waitSeconds", None),
            scale_up=ScaleUp(
                max_step=self._count_or_none("scaleUp.maxStep"),
                wait_seconds=self._seconds("scaleUp.waitSeconds", 0.0) or 0.0,
            ),
            scale_down=ScaleDown(
                max_step=self._count_or_none("scaleDown.maxStep"),
                idle_seconds=self._idle_seconds(),
            ),
            buffer=self._count("buffer", 0),
            schedule=self._schedule(),
            paused=self._paused(),
        )
        if policy.min_replicas > policy.max_replicas:
            self._fault("minReplicas", "is more than maxReplicas")
        if policy.jobs_per_replica is not None and policy.wait_seconds is not None:
            self._fault("target", "has two goals: it takes jobsPerReplica or waitSeconds")
        if self._faults:
            said = "; ".join(f"{fault.field} {fault.detail}" for fault in self._faults)
            raise InvalidInput(said, fields=self._faults)
        return policy

    def _fault(self, name: str, detail: str) -> None:
        self._faults.append(FieldError(name, detail))

    def _value(self, path: str) -> Any:
        value: Any = self._spec
        for name in path.split("."):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                self._fault(path, "has no object above it")
                return None
            value = value.get(name)
        return value

    def _whole(self, name: str, value: Any, *, least: int) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self._fault(name, f"is not a whole number of at least {least}: {value!r}")
        return None

    def _count(self, path: str, default: int, *, least: int = 0) -> int:
        value = self._value(path)
        found = None if value is None else self._whole(path, value, least=least)
        return default if found is None else found

    def _count_or_none(self, path: str) -> int | None:
        value = self._value(path)
        return None if value is None else self._whole(path, value, least=1)

    def _seconds(self, path: str, default: float | None) -> float | None:
        value = self._value(path)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS:
            return float(value)
        self._fault(path, f"is not a number of seconds from 0 to {MAX_SECONDS}: {value!r}")
        return default

    def _idle_seconds(self) -> float:
        found = self._seconds("scaleDown.idleSeconds", None)
        return ScaleDown().idle_seconds if found is None else found

    def _paused(self) -> Paused:
        value = self._value("paused")
        if value is None:
            return Paused.NONE
        if value in list(Paused):
            return Paused(value)
        self._fault("paused", f"is none of {', '.join(Paused)}: {value!r}")
        return Paused.NONE

    def _schedule(self) -> tuple[ScheduleWindow, ...]:
        value = self._value("schedule")
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            self._fault("schedule", "is not a list")
            return ()
        return tuple(
            window
            for index, each in enumerate(value)
            if (window := self._window(f"schedule[{index}]", each)) is not None
        )

    def _window(self, path: str, value: Any) -> ScheduleWindow | None:
        if not isinstance(value, Mapping):
            self._fault(path, "is not an object")
            return None
        timezone = value.get("timezone", "UTC")
        faults = len(self._faults)
        for name in ("start", "end"):
            if not _is_cron(value.get(name)):
                self._fault(f"{path}.{name}", f"is not a cron line of five fields that ever comes: {value.get(name)!r}")
        if not _is_timezone(timezone):
            self._fault(f"{path}.timezone", f"is not a time zone such as Europe/Paris: {timezone!r}")
        if value.get("start") == value.get("end"):
            self._fault(f"{path}.end", "is the same as start: the window would never be open")
        replicas = self._whole(f"{path}.replicas", value.get("replicas"), least=0)
        if replicas is None or len(self._faults) > faults:
            return None
        return ScheduleWindow(start=value["start"], end=value["end"], timezone=timezone, replicas=replicas)


def _is_cron(line: Any) -> bool:
    if not isinstance(line, str) or len(line.split()) != CRON_FIELDS:
        return False
    try:
        return next(CronSim(line, datetime(2026, 1, 1, tzinfo=UTC)), None) is not None
    except CronSimError:
        return False


def _is_timezone(name: Any) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, TypeError, ValueError):  # one that is not there is a KeyError, a folder's an OSError
        return False
    return True


def _without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}

"""The reading of a `WorkerPool`'s specification into a `ScalingPolicy`.

The operator reads the specifications of the cluster with it, `darkroom replay` those of files, and the decision log its
own entries. `fields.py` finds unknown fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from darkroom.errors import FieldError, InvalidInput
from darkroom.scaling.policy import Paused, ScaleDown, ScaleUp, ScalingPolicy, ScheduleWindow

MAX_SECONDS = 7 * 24 * 3600
"""The longest span of a policy: a week. Longer ones are mistakes, of milliseconds for seconds."""

CRON_FIELDS = 5
"""Minute, hour, day of month, month, day of week. The library also accepts six, with seconds; a window has none."""


def read_policy(spec: Mapping[str, Any]) -> ScalingPolicy:
    """The policy in a specification; other fields of it are ignored.

    Raises InvalidInput; its `fields` name each invalid field as the specification does (`scaleUp.maxStep`).
    """
    return _Spec(spec).policy()


class _Spec:
    """A specification while it is read. Faults are collected, so that all of them are reported at once."""

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
            self._fault("target", "must have only one of jobsPerReplica and waitSeconds")
        if self._faults:
            detail = "; ".join(f"{fault.field} {fault.detail}" for fault in self._faults)
            raise InvalidInput(detail, fields=self._faults)
        return policy

    def _fault(self, name: str, detail: str) -> None:
        self._faults.append(FieldError(name, detail))

    def _value(self, path: str) -> Any:
        value: Any = self._spec
        for name in path.split("."):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                self._fault(path, "is below a value that is no object")
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
    except (KeyError, OSError, TypeError, ValueError):  # an unknown zone is a KeyError, a folder's name an OSError
        return False
    return True

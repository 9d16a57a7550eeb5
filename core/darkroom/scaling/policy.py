"""The scaling policy of a pool: the part of a `WorkerPool`'s specification that determines the replicas.

`specification.py` reads it from a specification, and `decision.py` decides by it. Times are milliseconds since the
epoch where they are points, and seconds where they are spans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim

from darkroom.jobs import UnknownValue

MINUTE_MS = 60_000


class Paused(StrEnum):
    """The direction in which a pool must not be scaled."""

    NONE = "none"
    SCALE_IN = "scaleIn"
    SCALE_OUT = "scaleOut"
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ScheduleWindow:
    """A window of the week with at least `replicas`.

    `start` and `end` are cron lines of five fields, read in `timezone` (an IANA name). The window is open from a start
    until the next end; if both come in the same minute, the end counts.
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
    """How a pool grows: by at most `max_step` replicas at once (None: by any number), each time after more have been
    wanted for `wait_seconds`.
    """

    max_step: int | None = None
    wait_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScaleDown:
    """How a pool shrinks: after no more was wanted for `idle_seconds`, by at most `max_step` replicas per such time."""

    idle_seconds: float = 60.0
    max_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """The policy of a pool.

    The target is one of two. `jobs_per_replica`: one replica for so many jobs that wait, run or are due soon.
    `wait_seconds`: a job that arrives now starts within that time, by the measured mean times of a job and of a cold
    start (if these vary much, some jobs wait longer); a new replica is started only if it can start a job before the
    existing ones. While one of the two means is unknown, and without a target, there is one replica for each job.
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

    def spec(self) -> dict[str, Any]:
        """The policy as `specification.read_policy` reads it."""
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
        """The minimum of replicas at `now`."""
        open_windows = [window.replicas for window in self.schedule if window.is_open(now)]
        return min(max([self.min_replicas, *open_windows]), self.max_replicas)


@lru_cache(maxsize=4096)
def _is_open(start: str, end: str, timezone: str, minute: int) -> bool:
    # The resolution of cron is a minute, so the result holds for the whole minute. A time in this minute has come.
    after = datetime.fromtimestamp((minute + 1) * 60, tz=UTC).astimezone(ZoneInfo(timezone))
    last_start, last_end = (next(CronSim(line, after, reverse=True)).timestamp() for line in (start, end))
    return last_start > last_end


def _without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}

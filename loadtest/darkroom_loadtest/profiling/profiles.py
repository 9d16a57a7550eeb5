"""Profiles and shapes: who calls, how often over time, and what a run must reach. `run_load.py` makes a `Plan` of them.

A shape is a curve: parts of the duration, and parts of the peak. Callers ask at an even pace each, whatever the system
does (an open loop), so the rate follows the number of callers: that is what locust changes. The plan goes to locust's
processes as JSON in one variable of their environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

PLAN_VARIABLE = "DARKROOM_LOAD_PLAN"
"""Where locust's processes find the plan."""

Curve = tuple[tuple[float, float], ...]

SHAPES: Mapping[str, Curve] = {
    "smoke": ((0, 1), (1, 1)),
    "steady": ((0, 1), (1, 1)),
    "burst-from-zero": ((0, 0), (0.2, 0), (0.2, 1), (0.4, 1), (0.4, 0), (0.7, 0), (0.7, 1), (0.8, 1), (0.8, 0), (1, 0)),
    "sawtooth": ((0, 0), (1 / 3, 1), (1 / 3, 0), (2 / 3, 1), (2 / 3, 0), (1, 1)),
    # Hours of a day over 24: a quiet night, a morning, a dip at noon, an evening that is the peak.
    "diurnal": ((0, 0.1), (5 / 24, 0.05), (9 / 24, 0.6), (12 / 24, 0.7), (13 / 24, 0.5), (20 / 24, 1), (1, 0.1)),
    "soak": ((0, 1), (1, 1)),
    "twice-capacity": ((0, 1), (1, 1)),
    "ten-users": ((0, 1), (1, 1)),
    # 10 a minute, then 30.
    "ten-then-thirty": ((0, 1 / 3), (0.5, 1 / 3), (0.5, 1), (1, 1)),
}
"""(part of the duration, part of the peak rate), in order: straight lines, and a step where a part stands twice."""

SCALES: Mapping[str, tuple[float, float]] = {
    "smoke": (20, 2),
    "steady": (60, 2),
    "burst-from-zero": (60, 6),
    "sawtooth": (90, 4),
    "diurnal": (120, 4),
    "soak": (1200, 1),
    "twice-capacity": (120, 0),
    "ten-users": (81, 1),  # with the callers coming one by one, about once each of the 71 prompts
    "ten-then-thirty": (120, 0.5),
}
"""Seconds, and jobs a second at the peak, unless told otherwise: what two cores hold beside locust, with the stand-in
models. The rate of `twice-capacity` is measured before it begins."""

ALL_KINDS = ("binary", "structured", "batch", "rest", "waiting", "socket", "shared-socket", "cancelling", "hostile")


@dataclass(frozen=True)
class Thresholds:
    """The most that a run may have of each; its exit status is 1 where one is passed. None: any number."""

    lost: float | None = 0
    """Jobs that a 202 promised, and that have not ended or are not there."""
    doubled: float | None = 0
    """Jobs with two different ends, and requests that became two jobs."""
    untold: float | None = 0
    """Jobs that have ended, and whose client was not told."""
    audit_findings: float | None = 0
    """What `darkroom audit` finds."""
    failed: float | None = 0
    """Jobs that ended as failed or expired."""
    not_cancelled: float | None = 0
    """Jobs that were to be cancelled in time, by the answer, and ended otherwise."""
    errors: float | None = 0
    """Answers and sockets that were not as they must be."""
    hostile_let_in: float | None = 0
    """Hostile requests that were not refused with a 4xx and a problem+json."""
    refused_otherwise: float | None = 0
    """Refusals that were not 429, or had no `Retry-After`."""
    refused_percent: float | None = 0
    """Of what was offered."""
    submit_p95_ms: float | None = 500
    """A guess for a busy machine; what one process does is measured by `make bench-submit`."""
    end_to_end_p95_s: float | None = 30
    """From just before the submission to the end as the client was told of it."""
    settle_s: float | None = 60
    """From the last submission to the last end."""
    backlog_at_end: float | None = 0
    """Jobs that wait when all is over, whoever submitted them."""

    def but(self, changes: Mapping[str, float | None]) -> Thresholds:
        """These, with some changed. Raises ValueError for a name that is none."""
        known = {each.name for each in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"there is no threshold {', '.join(unknown)}: there are {', '.join(sorted(known))}")
        return Thresholds(**{**asdict(self), **changes})


@dataclass(frozen=True)
class Profile:
    """Who calls: `kinds` of callers, each as often as it stands there; `pace_s` is between two requests of one."""

    shape: str
    kinds: tuple[str, ...] = ALL_KINDS
    pace_s: float = 10
    spawn_per_s: float = 100
    thresholds: Thresholds = field(default_factory=Thresholds)


PROFILES: Mapping[str, Profile] = {
    "smoke": Profile("smoke", pace_s=9),
    "mixed": Profile("steady"),
    # Most shapes are about jobs: hostile callers offer none.
    "jobs": Profile("steady", kinds=("binary", "structured", "batch", "rest", "waiting", "socket", "shared-socket")),
    "twice-capacity": Profile(
        "twice-capacity",
        kinds=("binary", "structured", "rest", "shared-socket"),
        thresholds=Thresholds(refused_percent=None, end_to_end_p95_s=120, settle_s=180),
    ),
    # The two documents' own: ten callers, one more each second; then ten requests a minute and thirty.
    "ten-users": Profile(
        "ten-users", kinds=("socket",), spawn_per_s=1, thresholds=Thresholds(end_to_end_p95_s=10, settle_s=10)
    ),
    "ten-then-thirty": Profile(
        "ten-then-thirty", kinds=("socket",), pace_s=6, thresholds=Thresholds(end_to_end_p95_s=10, settle_s=10)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run, whole. `peak_per_s` is what callers offer at the peak; hostile ones offer no jobs, but count."""

    profile: str
    shape: str
    host: str
    duration_s: float
    peak_per_s: float
    pace_s: float
    spawn_per_s: float
    kinds: tuple[str, ...]
    model: str
    parameters: Mapping[str, Any]
    wait_s: int
    settle_s: float
    thresholds: Thresholds

    def rate(self, at_s: float) -> float:
        """Requests a second, `at_s` after the beginning."""
        return self.peak_per_s * height(SHAPES[self.shape], at_s / self.duration_s)

    def callers(self, at_s: float) -> int:
        """How many it takes. A rate above zero has at least one."""
        rate = self.rate(at_s)
        return max(1, round(rate * self.pace_s)) if rate > 0 else 0

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Plan:
        raw = json.loads(text)
        return cls(**{**raw, "kinds": tuple(raw["kinds"]), "thresholds": Thresholds(**raw["thresholds"])})


def height(curve: Curve, part: float) -> float:
    """The curve at this part of the duration: at a step the later height, and none after the end."""
    if not 0 <= part < 1:
        return 0.0
    found = 0.0
    for (begin, low), (end, high) in pairwise(curve):
        if begin <= part < end:
            found = low + (high - low) * (part - begin) / (end - begin)
    return found

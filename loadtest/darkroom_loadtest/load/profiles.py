"""Profiles and shapes: kinds of users, load over time, and thresholds. `load/run.py` makes a `LoadPlan` from them.

A shape is a curve: parts of the duration, and parts of the peak. Each user submits at a constant rate (an open loop),
so that the number of users, which locust changes, defines the rate. Locust's processes receive the plan as JSON in an
environment variable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

PLAN_VARIABLE = "DARKROOM_LOAD_PLAN"
"""The environment variable with the plan."""

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
"""(part of the duration, part of the peak rate), in order: linear between points, a step where a part occurs twice."""

SCALES: Mapping[str, tuple[float, float]] = {
    "smoke": (20, 2),
    "steady": (60, 2),
    "burst-from-zero": (60, 6),
    "sawtooth": (90, 4),
    "diurnal": (120, 4),
    "soak": (1200, 1),
    "twice-capacity": (120, 0),
    "ten-users": (81, 1),  # with users that start one by one, about once each of the 71 prompts
    "ten-then-thirty": (120, 0.5),
}
"""The default duration in seconds and jobs per second at the peak: the load that two cores sustain beside locust, with
the stand-in models. The rate of `twice-capacity` is measured before the run."""

ALL_KINDS = ("binary", "structured", "batch", "rest", "waiting", "socket", "shared-socket", "cancelling", "hostile")


@dataclass(frozen=True)
class Thresholds:
    """The maximum of each value; the exit status of a run that exceeds one is 1. None: no limit."""

    lost: float | None = 0
    """Accepted jobs (202) that have not finished or do not exist."""
    doubled: float | None = 0
    """Jobs with two different terminal messages, and requests that became two jobs."""
    unnotified: float | None = 0
    """Finished jobs whose client received no terminal message."""
    audit_findings: float | None = 0
    """Findings of `darkroom audit`."""
    failed: float | None = 0
    """Failed or expired jobs."""
    not_cancelled: float | None = 0
    """Jobs whose cancel was accepted but that finished in another state."""
    errors: float | None = 0
    """Unexpected responses, and errors of sockets."""
    hostile_let_in: float | None = 0
    """Hostile requests that were not refused with a 4xx and a problem+json."""
    refused_otherwise: float | None = 0
    """Refusals that were not 429, or had no `Retry-After`."""
    refused_percent: float | None = 0
    """Refusals in percent of the submissions."""
    submit_p95_ms: float | None = 500
    """A guess for a busy machine; `make bench-submit` measures one process."""
    end_to_end_p95_s: float | None = 30
    """From just before the submission to the terminal message at the client."""
    settle_s: float | None = 60
    """From the last submission to the last terminal message."""
    backlog_at_end: float | None = 0
    """Jobs of all clients that wait after the run."""

    def but(self, changes: Mapping[str, float | None]) -> Thresholds:
        """These thresholds with changes. Raises ValueError for an unknown name."""
        known = {each.name for each in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"unknown threshold {', '.join(unknown)}; the thresholds are {', '.join(sorted(known))}")
        return Thresholds(**{**asdict(self), **changes})


@dataclass(frozen=True)
class Profile:
    """The kinds of users, weighted by their number in `kinds`; `pace_s` is the time between two requests of a user."""

    shape: str
    kinds: tuple[str, ...] = ALL_KINDS
    pace_s: float = 10
    spawn_per_s: float = 100
    thresholds: Thresholds = field(default_factory=Thresholds)


PROFILES: Mapping[str, Profile] = {
    "smoke": Profile("smoke", pace_s=9),
    "mixed": Profile("steady"),
    # For most shapes: hostile users submit no jobs.
    "jobs": Profile("steady", kinds=("binary", "structured", "batch", "rest", "waiting", "socket", "shared-socket")),
    "twice-capacity": Profile(
        "twice-capacity",
        kinds=("binary", "structured", "rest", "shared-socket"),
        thresholds=Thresholds(refused_percent=None, end_to_end_p95_s=120, settle_s=180),
    ),
    # The two load tests of the requirements: ten users, one more each second; then ten requests per minute, and thirty.
    "ten-users": Profile(
        "ten-users", kinds=("socket",), spawn_per_s=1, thresholds=Thresholds(end_to_end_p95_s=10, settle_s=10)
    ),
    "ten-then-thirty": Profile(
        "ten-then-thirty", kinds=("socket",), pace_s=6, thresholds=Thresholds(end_to_end_p95_s=10, settle_s=10)
    ),
}


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """One run. `peak_per_s` is the rate of all users at the peak, including hostile ones, which submit no jobs."""

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
        """Requests per second at `at_s`, relative to the start."""
        return self.peak_per_s * height(SHAPES[self.shape], at_s / self.duration_s)

    def users(self, at_s: float) -> int:
        """The number of users for that rate; at least one for a rate above zero."""
        rate = self.rate(at_s)
        return max(1, round(rate * self.pace_s)) if rate > 0 else 0

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> LoadPlan:
        raw = json.loads(text)
        return cls(**{**raw, "kinds": tuple(raw["kinds"]), "thresholds": Thresholds(**raw["thresholds"])})


def height(curve: Curve, part: float) -> float:
    """The curve's value at this part of the duration: at a step the later value, 0 after the end."""
    if not 0 <= part < 1:
        return 0.0
    found = 0.0
    for (begin, low), (end, high) in pairwise(curve):
        if begin <= part < end:
            found = low + (high - low) * (part - begin) / (end - begin)
    return found

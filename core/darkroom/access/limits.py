"""Limits of a tenant or a key. The ledger enforces them when it accepts jobs, and holds those above a running limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1, le=2**53)]
NotNegative = Annotated[int, Field(ge=0, le=2**53)]


class Limits(BaseModel):
    """Limits of a tenant or a key; None: without a limit.

    Rates and counts below are per tenant, or per key, over all its models and pools.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    submissions_per_minute: Positive | None = None
    """The most submissions per minute, evenly spread (GCRA); `burst` of them may arrive at once."""

    burst: Positive | None = None
    """The submissions that may arrive at once; one second's worth by default, rounded up."""

    waiting_jobs: NotNegative | None = None
    """The most jobs that may wait; further submissions are rejected with 429."""

    waiting_bytes: NotNegative | None = None
    """The most bytes of Redis that unfinished jobs may use; further submissions are rejected with 429."""

    running_jobs: Positive | None = None
    """The most jobs that may run at the same time; further jobs wait, and do not count as demand."""

    images_per_day: NotNegative | None = None
    """The most images of jobs accepted in one day (UTC); further submissions are rejected with 429."""

    images_per_month: NotNegative | None = None
    """The most images of jobs accepted in one calendar month (UTC)."""

    gpu_seconds_per_day: NotNegative | None = None
    """The GPU seconds of one day (UTC) after which submissions are rejected with 429."""

    gpu_seconds_per_month: NotNegative | None = None
    """The GPU seconds of one calendar month (UTC) after which submissions are rejected with 429."""


UNLIMITED = Limits()


class Owner(StrEnum):
    """Whose limit it is."""

    TENANT = "tenant"
    KEY = "key"


@dataclass(frozen=True)
class Quota:
    """What remains of a limit after a submission.

    `limit` is the limit's name in `Limits`, `most` the whole quota, and `window_s` the time in which it is granted, in
    seconds, if that is fixed. `reset_s` are the seconds until more remains, if that is known.
    """

    owner: Owner
    limit: str
    most: int
    remaining: int
    reset_s: int | None = None
    window_s: int | None = None

    @property
    def policy(self) -> str:
        """Its name in the header fields."""
        return policy_name(self.owner, self.limit)

    @classmethod
    def of(cls, owner: Owner, limit: str, limits: Limits, *, remaining: int, reset_s: int | None) -> Quota:
        """The quota of one of the owner's limits."""
        most, window_s = getattr(limits, limit), None
        if limit == "submissions_per_minute":
            burst = limits.burst or max(1, math.ceil(most / 60))
            most, window_s = burst, max(1, math.ceil(burst * 60 / most))
        elif limit.endswith("_per_day"):
            window_s = 24 * 3600
        return cls(owner, limit, most, remaining, reset_s, window_s)


def policy_name(owner: Owner, limit: str) -> str:
    """The name of a limit in the header fields, such as `tenant-waiting-jobs`."""
    return f"{owner}-{limit.replace('_', '-')}"

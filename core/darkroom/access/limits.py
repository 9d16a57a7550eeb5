"""Limits of a tenant or a key. The ledger enforces them when it accepts and claims jobs."""

from __future__ import annotations

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
    """The submissions that may arrive at once; one second's worth by default."""

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

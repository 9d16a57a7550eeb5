"""Progress of a run: what the child does after each denoising step of an engine.

`runner.py` passes a `ProgressReporter` to the engine. It reports the step to the ledger, which answers whether the job
was cancelled or belongs to another attempt, and stops the run if so or if its run timeout has passed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from darkroom.errors import TemporaryError
from darkroom.ledger import calls
from darkroom.ledger.calls import LeaseStatus
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import ConnectionOptions

from darkroom_worker.child.results import ClaimedJob
from darkroom_worker.engines.registry import Interrupted

LOG_PROGRESS_EVERY_S = 0.25
"""Progress is written to the job log at most four times a second: people see no more."""

PROGRESS_TIMEOUTS = ConnectionOptions(timeout_s=1.0, retries=0)
"""The engine waits for a progress call, so it has one short timeout and is not retried."""

SILENCE_S = 2.0
"""How long steps continue without a call after Redis was unavailable: each call would delay the engine."""


class ProgressReporter:
    """An engine's `on_step`: reports each step to the ledger and raises Interrupted if the run must not continue.

    `stopped_by` is then the reason: the job was cancelled, it belongs to another attempt, or (None) its run timeout has
    passed. The time that the calls take, `waited_s` in all, is no run time.
    """

    def __init__(self, ledger: Ledger, job: ClaimedJob, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._job, self._clock = ledger, job, clock
        self._overdue_at = clock() + job.run_timeout_s
        self._op = 0
        self._logged_at = -math.inf
        self._silent_until = -math.inf
        self.waited_s = 0.0
        self.stopped_by: LeaseStatus | None = None

    def __call__(self, step: int, steps: int) -> None:
        """Report that `step` of `steps` is done."""
        now = self._clock()
        if now > self._overdue_at + self.waited_s:
            raise Interrupted("the run timeout has passed")
        last = step >= steps
        if now < self._silent_until and not last:
            return
        is_logged = last or now - self._logged_at >= LOG_PROGRESS_EVERY_S
        self._op += 1
        call = calls.progress(
            self._job.id, token=self._job.token, op=self._op, step=step, steps=steps, publish=is_logged
        )
        try:
            status = self._ledger.run(call)
        except TemporaryError:
            self._silent_until = self._clock() + SILENCE_S
            return
        finally:
            self.waited_s += self._clock() - now
        if is_logged:
            self._logged_at = now
        self._continue_if(status)

    def check(self) -> None:
        """Between steps: raise Interrupted if the job was cancelled or belongs to another attempt."""
        try:
            status = self._ledger.run(calls.renew(self._job.id, token=self._job.token))
        except TemporaryError:
            return
        self._continue_if(status)

    def _continue_if(self, status: LeaseStatus) -> None:
        if status is not LeaseStatus.OK:
            self.stopped_by = status
            raise Interrupted(f"the lease is {status}")

"""Acceptance of checked submissions by the ledger.

`submit` passes the jobs that clients request, `jobs` the dead letters that are redriven. Submissions that arrive
together share a round trip.
"""

from __future__ import annotations

import time

from darkroom import logs, traces
from darkroom.errors import DarkroomError
from darkroom.ledger import reads
from darkroom.ledger.batching import GroupCommit
from darkroom.ledger.calls import Accepted, Submission, accept
from darkroom.ledger.client import AsyncLedger

from darkroom_functions.http.probes import LEDGER_TIMEOUT_S, ledger_timeout
from darkroom_functions.settings import FairBy, IntakeSettings

MEMORY_READING_S = 1.0
"""How old a reading of Redis' memory may be: it grows by megabytes a second at most, and 20 % are kept free."""

_log = logs.logger(__name__)


class Intake:
    """Accepts jobs into one ledger, within the limits of the settings."""

    def __init__(self, ledger: AsyncLedger, settings: IntakeSettings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._commits: GroupCommit[Accepted | DarkroomError] = GroupCommit(ledger, timeout_s=LEDGER_TIMEOUT_S)
        self._memory_high = False
        self._memory_due = 0.0

    async def take(self, job: Submission, *, memory_high: bool, audit: str | None = None) -> Accepted:
        """Accept one job, after those of earlier calls. Raises the ledger's refusal.

        `audit` is the entry of the audit trail; None where the caller records the operation itself. The `quotas` of the
        refusal, as those of the accepted job, are for the header fields of the response (`http/rate_limits.py`).
        """
        call = accept(
            job,
            backlog_limit=self._settings.backlog_limit,
            backlog_bytes=self._settings.backlog_bytes,
            memory_high=memory_high,
            audit=audit,
            by_user=self._settings.fair_by is FairBy.USER,
        )
        accepted = await self._commits.run(call)
        if isinstance(accepted, DarkroomError):
            raise accepted
        _log.info(
            "accepted",
            job=accepted.job_id,
            tenant=job.tenant,
            model=job.model,
            pool=job.pool,
            repeated=accepted.repeated,
            redrive_of=job.redrive_of,
            **traces.in_logs(job.traceparent),
        )
        return accepted

    async def is_memory_high(self) -> bool:
        """The last reading; the first request after MEMORY_READING_S takes a new one, and other requests do not wait
        for it.
        """
        now = time.monotonic()
        if now >= self._memory_due:
            self._memory_due = now + MEMORY_READING_S
            try:
                async with ledger_timeout():
                    self._memory_high = (await reads.memory(self._ledger)).high
            except BaseException:
                self._memory_due = 0.0  # the next request takes a reading
                raise
        return self._memory_high

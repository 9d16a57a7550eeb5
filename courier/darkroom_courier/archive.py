"""The archive: from the ledger's history entries to the history database.

It leases finished jobs in batches, reads their records and logs, commits them in one transaction, and marks them as
archived in the ledger; only then does their time to live in Redis start. While the database is unavailable the
entries stay in the ledger.

A job is written at least once, by any number of couriers, and stored once: its id is the key, and a second insert has
no effect. So a courier that is killed after the commit leaves nothing to repair: after its lease another one writes the
job again, without effect, and marks it as archived.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from uuid import uuid4

from darkroom.database.migrations import migrate
from darkroom.errors import DarkroomError, HistoryUnavailable
from darkroom.history.store import History, PastJob
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Archived
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.epochs import NEVER, DataLoss
from darkroom.ledger.records import JobRecord
from darkroom.logs import logger

from darkroom_courier.metrics import CourierMetrics
from darkroom_courier.settings import CourierSettings

BATCH = 200
"""Jobs in one transaction: the commit is then a small part of the work, and reading them takes Redis a few ms."""

BEAT_S = 1.0
"""Between two beats of the epoch: Redis flushes its file each second, so it cannot avoid a shorter loss."""

AGAIN_MS = 1_000
"""After this the entries are due again that the database did not accept because it became unavailable."""

MAX_UNAPPLIED = 10_000
"""The most archived jobs that are not applied yet, as while the sink is unavailable, whose records are held for the
metrics."""

FAULTY_AGAIN_MS = 10 * 60 * 1000
"""After this a job is due again that the database rejects although it accepts others. It stays in Redis meanwhile."""

_log = logger(__name__)


class Archive:
    """`step` is called over and over; the first one migrates the database to the schema of this version."""

    def __init__(
        self, ledger: AsyncLedger, history: History, metrics: CourierMetrics, settings: CourierSettings, *, owner: str
    ) -> None:
        self._ledger = ledger
        self._history = history
        self._metrics = metrics
        self._unapplied: dict[str, JobRecord] = {}
        self._lease_ms = round(settings.history_lease_s * 1000)
        self._owner = owner
        self._call = uuid4().hex
        self._is_migrated = False
        self._is_in_doubt = False
        self._beat_due = 0.0
        self._loss: DataLoss | None = None

    async def step(self) -> bool:
        """Write one batch. True: there may be more. Raises LedgerUnavailable and HistoryUnavailable.

        A step after a failure of Redis repeats the same call, so that nothing which was leased waits for its lease.
        """
        if not self._is_migrated:
            await migrate(self._history)
            self._is_migrated = True
        if self._is_in_doubt:
            await self._history.ping()
            self._is_in_doubt = False
        await self._beat()
        leased = await self._ledger.run(
            calls.lease_history(owner=self._owner, call=self._call, limit=BATCH, lease_ms=self._lease_ms)
        )
        try:
            await self._write(leased)
        except HistoryUnavailable:
            self._is_in_doubt = True
            await self._ledger.run_each([calls.reschedule_history(job_id, delay_ms=AGAIN_MS) for job_id in leased])
            self._call = uuid4().hex
            raise
        self._call = uuid4().hex
        await self._read_applied()
        return len(leased) == BATCH

    async def _beat(self) -> None:
        """Count one beat in the ledger, then in SQL; a ledger with fewer beats than SQL lost data (`epochs.py`)."""
        if time.monotonic() < self._beat_due:
            return
        self._beat_due = time.monotonic() + BEAT_S
        outside = await self._history.epoch(self._ledger.namespace)
        ledger = await self._ledger.run(calls.advance_epoch(outside or NEVER))
        await self._history.note_epoch(self._ledger.namespace, ledger.epoch)
        if ledger.loss != self._loss and ledger.loss is not None:
            _log.error("redis_lost_data", epoch=ledger.epoch.number, lost=ledger.loss.described)
        self._loss = ledger.loss

    async def _write(self, job_ids: Sequence[str]) -> None:
        """Write all jobs at once or, if one of them fails, each alone, so that it does not delay the others."""
        try:
            await self._write_together(job_ids)
        except DarkroomError:
            raise
        except Exception:
            _log.warning("batch_refused", jobs=len(job_ids))
            for job_id in job_ids:
                await self._write_alone(job_id)

    async def _write_alone(self, job_id: str) -> None:
        try:
            await self._write_together([job_id])
        except DarkroomError:
            raise
        except Exception:  # a damaged record, or one that the database rejects
            _log.exception("not_archived", job=job_id)
            await self._ledger.run(calls.reschedule_history(job_id, delay_ms=FAULTY_AGAIN_MS))

    async def _write_together(self, job_ids: Sequence[str]) -> None:
        records = [record for record in await self._ledger.jobs(job_ids, tenant=None) if record is not None]
        logs = await reads.logs(self._ledger, [record.id for record in records])
        past = [PastJob.of(record, log) for record, log in zip(records, logs, strict=True)]
        await self._history.write(past)
        marks = await reads.marks(self._ledger, [record.id for record in records])
        answers = await self._ledger.run_each([calls.mark_archived(job.record.id, seq=job.log[-1].seq) for job in past])
        for job, its, answer in zip(past, marks, answers, strict=True):
            if answer is Archived.ARCHIVED and its is not None:
                self._metrics.job_ended(job, is_dead=its.is_dead)
                self._report_applied(job.record, its.applied)
        for answer in answers:
            if isinstance(answer, DarkroomError):
                raise answer
        if past:
            about = [job.record.about for job in past]
            _log.info(
                "archived", jobs=[job.record.id for job in past], trace_ids=[each.get("trace_id") for each in about]
            )

    def _report_applied(self, record: JobRecord, applied: int | None) -> None:
        """Report the time at which the terminal event was applied; None: it is read again, after the others."""
        self._unapplied.pop(record.id, None)
        if applied is not None:
            self._metrics.job_applied(record, applied=applied)
        elif len(self._unapplied) < MAX_UNAPPLIED:
            self._unapplied[record.id] = replace(record, input={}, fields={}, end_data=None)  # these may be large

    async def _read_applied(self) -> None:
        """Read which of the jobs that were archived before their terminal event was applied are applied by now."""
        records = list(islice(self._unapplied.values(), BATCH))
        for record, its in zip(records, await reads.marks(self._ledger, [each.id for each in records]), strict=True):
            if its is None:  # deleted meanwhile, and never applied
                del self._unapplied[record.id]
            else:
                self._report_applied(record, its.applied)

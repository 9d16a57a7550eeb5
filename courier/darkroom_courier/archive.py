"""The archive: from the ledger's history entries to the history database.

It takes jobs that have ended, many at a time, reads their records and logs, commits them in one transaction, and tells
the ledger that they are `archived`; only then does their time to live in Redis start. While the database is away the
entries stay where they are and nothing is lost but time.

A job is written at least once, by any number of couriers, and is there once: its id is the key, and who comes second
changes nothing. So a courier that is killed after the commit leaves nothing to repair: when its lease is over, another
one writes the job again, in vain, and says that it is archived.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from uuid import uuid4

from darkroom.errors import DarkroomError, HistoryUnavailable
from darkroom.history.migrations import migrate
from darkroom.history.store import History, PastJob
from darkroom.ledger import calls
from darkroom.ledger.calls import Archived
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.epochs import NEVER, Loss
from darkroom.ledger.records import JobRecord
from darkroom.logs import logger

from darkroom_courier.metrics import CourierMetrics
from darkroom_courier.settings import CourierSettings

BATCH = 200
"""Jobs in one transaction: the commit is then a small part of the work, and to read them takes Redis a few ms."""

BEAT_S = 1.0
"""Between two beats of the epoch: Redis flushes its file each second, so a shorter loss is none that it could avoid."""

AGAIN_MS = 1_000
"""When entries are due again that a database did not take which has just gone away: it is asked for before they are."""

MOST_UNTOLD = 10_000
"""Jobs that were archived and not told yet, as while the sink is away, of which the metrics keep the record."""

FAULTY_AGAIN_MS = 10 * 60 * 1000
"""When a job is tried again that the database does not take although it takes others. It stays in Redis until then."""

_log = logger(__name__)


class Archive:
    """`step` is called over and over; the first one brings the database to the table of this version."""

    def __init__(
        self, ledger: AsyncLedger, history: History, metrics: CourierMetrics, settings: CourierSettings, *, taker: str
    ) -> None:
        self._ledger = ledger
        self._history = history
        self._metrics = metrics
        self._untold: dict[str, JobRecord] = {}
        self._lease_ms = round(settings.history_lease_s * 1000)
        self._taker = taker
        self._call = uuid4().hex
        self._is_migrated = False
        self._is_in_doubt = False
        self._beat_due = 0.0
        self._loss: Loss | None = None

    async def step(self) -> bool:
        """Write one batch. True: there may be more. Raises LedgerUnavailable and HistoryUnavailable.

        A step after a failure of Redis repeats the same call, so that nothing which was taken waits for its lease.
        """
        if not self._is_migrated:
            await migrate(self._history)
            self._is_migrated = True
        if self._is_in_doubt:
            await self._history.ping()
            self._is_in_doubt = False
        await self._beat()
        taken = await self._ledger.run(
            calls.lease_history(taker=self._taker, call=self._call, limit=BATCH, lease_ms=self._lease_ms)
        )
        try:
            await self._write(taken)
        except HistoryUnavailable:
            self._is_in_doubt = True
            await self._ledger.run_each([calls.reschedule_history(job_id, delay_ms=AGAIN_MS) for job_id in taken])
            self._call = uuid4().hex
            raise
        self._call = uuid4().hex
        await self._look_for_told()
        return len(taken) == BATCH

    async def _beat(self) -> None:
        """Count one beat in the ledger, then in SQL; a ledger that has fewer than SQL lost data (`epochs.py`)."""
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
        """All at once or, where one of them is at fault, each alone, so that it holds up no other."""
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
        except Exception:  # a record that somebody damaged, or that the database does not take
            _log.exception("not_archived", job=job_id)
            await self._ledger.run(calls.reschedule_history(job_id, delay_ms=FAULTY_AGAIN_MS))

    async def _write_together(self, job_ids: Sequence[str]) -> None:
        records = [record for record in await self._ledger.jobs(job_ids, tenant=None) if record is not None]
        logs = await self._ledger.logs([record.id for record in records])
        past = [PastJob.of(record, log) for record, log in zip(records, logs, strict=True)]
        await self._history.write(past)
        marks = await self._ledger.marks([record.id for record in records])
        answers = await self._ledger.run_each([calls.mark_archived(job.record.id, seq=job.log[-1].seq) for job in past])
        for job, its, answer in zip(past, marks, answers, strict=True):
            if answer is Archived.ARCHIVED and its is not None:
                self._metrics.job_ended(job, is_dead=its.is_dead)
                self._note(job.record, its.applied)
        for answer in answers:
            if isinstance(answer, DarkroomError):
                raise answer
        if past:
            about = [job.record.about for job in past]
            _log.info(
                "archived", jobs=[job.record.id for job in past], trace_ids=[each.get("trace_id") for each in about]
            )

    def _note(self, record: JobRecord, applied: int | None) -> None:
        """When the job's end was applied; None: to be looked for again, after the others."""
        self._untold.pop(record.id, None)
        if applied is not None:
            self._metrics.job_told(record, applied=applied)
        elif len(self._untold) < MOST_UNTOLD:
            self._untold[record.id] = replace(record, input={}, fields={}, end_data=None)  # which may be large

    async def _look_for_told(self) -> None:
        """Whether some of the jobs that were archived before their end was applied are told by now."""
        records = list(islice(self._untold.values(), BATCH))
        for record, its in zip(records, await self._ledger.marks([each.id for each in records]), strict=True):
            if its is None:  # deleted meanwhile: nobody was told
                del self._untold[record.id]
            else:
                self._note(record, its.applied)

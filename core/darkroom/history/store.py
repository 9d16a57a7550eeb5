"""The history: all terminal jobs, in a SQL database, for longer than Redis stores them.

The courier writes it (`write`), from the ledger's history entries; the job's time to live in Redis starts only then.
Readers use it for jobs that are no longer in the ledger (`lookup.py`). A deleted job leaves a tombstone
(`deletion.py`).

Terminal states never change, so a job is written once: later writes of it have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Row, func, inspect, select, update

from darkroom.database.client import Database
from darkroom.errors import Gone
from darkroom.history.schema import CONTENT, RECORD_FIELDS, epochs, jobs
from darkroom.jobs import JobEvent, State, UnknownValue, read_value
from darkroom.ledger.epochs import Epoch
from darkroom.ledger.records import FIELDS, JobRecord, LogEntry, Page
from darkroom.times import iso

DROPPED_EVENTS = frozenset({JobEvent.ACCEPTED, JobEvent.PROGRESSED})
"""Entries of a log that are not stored: the record has the acceptance, and progress is of no use later.

The terminal entry is in the record; those of attempts are stored, and those of a later version.
"""


@dataclass(frozen=True)
class PastJob:
    """A terminal job: its record, and the entries of its log that belong to its attempts, the terminal one included."""

    record: JobRecord
    log: tuple[LogEntry, ...]

    @classmethod
    def of(cls, record: JobRecord, log: Sequence[LogEntry]) -> PastJob:
        """From the ledger's record and whole log. Raises ValueError for a job that is not terminal."""
        if record.end is None:
            raise ValueError(f"job {record.id} is not terminal")
        kept = (entry for entry in log if entry.event not in DROPPED_EVENTS and entry.seq < record.end.seq)
        return cls(record, (*kept, record.end))


@dataclass(frozen=True)
class Tombstone:
    """The remainder of a deleted job. Times are milliseconds since the epoch."""

    job_id: str
    tenant: str
    state: State | UnknownValue
    ended: int
    deleted: int

    @property
    def gone(self) -> Gone:
        """The error for callers."""
        return Gone(
            f"job {self.job_id} has been deleted",
            state=self.state.value,
            ended_at=iso(self.ended),
            deleted_at=iso(self.deleted),
        )


class History(Database):
    """The tables of terminal jobs, and of epochs."""

    # -- writes of the courier -----------------------------------------------------------------------------------------

    async def write(self, past: Sequence[PastJob]) -> None:
        """Store all of them or none; those that exist already, or were deleted, stay unchanged.

        Raises SQLAlchemyError where the database permanently refuses one of them.
        """
        if not past:
            return
        rows = sorted((_row(job) for job in past), key=itemgetter("id"))  # in one order, or two writers may lock up
        async with self.transaction() as connection:
            await connection.execute(self.insert(jobs).on_conflict_do_nothing(), rows)

    # -- reads ---------------------------------------------------------------------------------------------------------

    async def job(self, job_id: str, *, tenant: str) -> PastJob | Tombstone | None:
        """The tenant's job, or its tombstone."""
        async with self.transaction() as connection:
            rows = await connection.execute(select(jobs).where(jobs.c.id == job_id, jobs.c.tenant == tenant))
            row = rows.one_or_none()
        if row is None:
            return None
        return _past_job(row) if row.deleted is None else _tombstone(row)

    async def inputs(self, job_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The inputs of these jobs of any tenant; jobs that are unknown or deleted are left out."""
        async with self.transaction() as connection:
            rows = await connection.execute(select(jobs.c.id, jobs.c.input).where(jobs.c.id.in_(job_ids), _is_job()))
            return {row.id: row.input for row in rows}

    async def known(self, job_ids: Sequence[str]) -> dict[str, PastJob | Tombstone]:
        """These jobs of any tenant, by id, as far as they are known. For darkroom's own parts only."""
        if not job_ids:
            return {}
        async with self.transaction() as connection:
            rows = (await connection.execute(select(jobs).where(jobs.c.id.in_(job_ids)))).all()
        return {row.id: _past_job(row) if row.deleted is None else _tombstone(row) for row in rows}

    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        after: str | None = None,
        state: State | None = None,
        model: str | None = None,
        user_id: str | None = None,
    ) -> Page:
        """As `reads.page`, of terminal jobs that were not deleted."""
        wanted = {"tenant": tenant, "state": state, "model": model, "user_id": user_id}
        if any("\0" in (value or "") for value in wanted.values()):
            return Page((), None)  # no name contains it, and PostgreSQL refuses it in a query
        conditions = [jobs.c[name] == str(value) for name, value in wanted.items() if value is not None]
        if after is not None:
            conditions.append(jobs.c.id < after)
        one_more = select(jobs).where(_is_job(), *conditions).order_by(jobs.c.id.desc()).limit(limit + 1)
        async with self.transaction() as connection:
            rows = (await connection.execute(one_more)).all()
        found = tuple(_record(row) for row in rows[:limit])
        return Page(found, found[-1].id if len(rows) > limit else None)

    # -- deletion ------------------------------------------------------------------------------------------------------

    async def write_tombstone(self, record: JobRecord, *, now: int) -> Tombstone:
        """Replace a terminal job by a tombstone, whether or not it has been written yet. An earlier tombstone stays."""
        if record.ended is None:
            raise ValueError(f"job {record.id} is not terminal")
        insert = self.insert(jobs).values(
            id=record.id,
            tenant=record.tenant,
            state=record.state.value,
            ended=record.ended,
            deleted=now,
            **_usage(record),
        )
        statement = insert.on_conflict_do_update(index_elements=[jobs.c.id], set_=_tombstone_values(now)).returning(
            jobs
        )
        async with self.transaction() as connection:
            return _tombstone((await connection.execute(statement)).one())

    async def replace_older(self, before: int, *, limit: int, now: int) -> list[Tombstone]:
        """Replace up to `limit` jobs of any tenant that finished before then by tombstones, the oldest first."""
        oldest = select(jobs.c.id).where(_is_job(), jobs.c.ended < before).order_by(jobs.c.ended).limit(limit)
        async with self.transaction() as connection:
            # Two statements: PostgreSQL may apply the limit of a locking subquery more than once.
            mine = (await connection.scalars(oldest.with_for_update(skip_locked=True))).all()
            statement = (
                update(jobs).where(jobs.c.id.in_(mine), _is_job()).values(_tombstone_values(now)).returning(jobs)
            )
            return [_tombstone(row) for row in await connection.execute(statement)]

    async def unfinished(self, *, limit: int) -> list[Tombstone]:
        """Deleted jobs that may have data left in Redis or the object store."""
        question = (
            select(jobs)
            .where(jobs.c.deleted.is_not(None), jobs.c.cleared.is_(None))
            .order_by(jobs.c.deleted)
            .limit(limit)
        )
        async with self.transaction() as connection:
            return [_tombstone(row) for row in await connection.execute(question)]

    async def mark_cleared(self, job_ids: Sequence[str], *, now: int) -> None:
        """Mark these deleted jobs as removed from Redis and the object store."""
        if not job_ids:
            return
        async with self.transaction() as connection:
            await connection.execute(
                update(jobs).where(jobs.c.id.in_(job_ids), jobs.c.deleted.is_not(None)).values(cleared=now)
            )

    # -- epochs of the ledger ------------------------------------------------------------------------------------------

    async def epoch(self, namespace: str) -> Epoch | None:
        """The last epoch of the ledger with this prefix; None where no courier has stored it."""
        question = select(epochs.c.epoch, epochs.c.beats, epochs.c.at).where(epochs.c.namespace == namespace)
        async with self.transaction() as connection:
            if not await connection.run_sync(lambda sync: inspect(sync).has_table(epochs.name)):
                return None
            row = (await connection.execute(question)).one_or_none()
        return None if row is None else Epoch(row.epoch, row.beats, row.at)

    async def note_epoch(self, namespace: str, epoch: Epoch) -> None:
        """Store the epoch of the ledger. Beats only increase: a courier that is late has no effect."""
        insert = self.insert(epochs).values(namespace=namespace, epoch=epoch.number, beats=epoch.beats, at=epoch.at)
        later = {name: insert.excluded[name] for name in ("epoch", "beats", "at")}
        statement = insert.on_conflict_do_update(
            index_elements=[epochs.c.namespace], set_=later, where=epochs.c.beats < insert.excluded.beats
        )
        async with self.transaction() as connection:
            await connection.execute(statement)


def _is_job() -> ColumnElement[bool]:
    return jobs.c.deleted.is_(None)


def _tombstone_values(now: int) -> dict[str, Any]:
    return {**dict.fromkeys(CONTENT), "deleted": func.coalesce(jobs.c.deleted, now)}


def _row(past: PastJob) -> dict[str, Any]:
    record = past.record
    row = dict(zip(_NAMES, _values(record), strict=True))
    row["state"] = record.state.value
    row["user_id"] = record.fields.get("user_id")
    row.update(_usage(record))
    row["attempts"] = [
        {"seq": entry.seq, "event": entry.event, "state": entry.state, "at": entry.at, "data": entry.data}
        for entry in past.log
        if entry.seq != record.end_seq
    ]
    return row


def _usage(record: JobRecord) -> dict[str, Any]:
    """What reports of usage count, of a terminal job."""
    published = (record.end_data or {}).get("artifacts") if record.state is State.COMPLETED else None
    return {
        "model": record.model,
        "key_id": record.key_id,
        "gpu_ms": record.gpu_ms,
        "artifacts": len(published) if isinstance(published, list) else 0,
    }


def _record(row: Row[Any]) -> JobRecord:
    values = dict(_NOT_STORED)
    values.update(zip(_NAMES, row, strict=False))  # the record's fields are the first columns of the table
    if row.gpu_ms is None:  # a job that an earlier version archived
        values["gpu_ms"] = 0
    values["state"] = read_value(State, row.state)
    return JobRecord(**values)


_NAMES = tuple(field.name for field in RECORD_FIELDS)
_values = attrgetter(*_NAMES)
_NOT_STORED: Mapping[str, Any] = {field.name: field.absent for field in FIELDS if not field.in_history}


def _past_job(row: Row[Any]) -> PastJob:
    return PastJob.of(_record(row), [_entry(row.id, raw) for raw in row.attempts])


def _entry(job_id: str, raw: Mapping[str, Any]) -> LogEntry:
    return LogEntry(
        job_id, raw["seq"], read_value(JobEvent, raw["event"]), read_value(State, raw["state"]), raw["at"], raw["data"]
    )


def _tombstone(row: Row[Any]) -> Tombstone:
    return Tombstone(row.id, row.tenant, read_value(State, row.state), row.ended, row.deleted)

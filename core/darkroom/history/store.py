"""The history: every job that has ended, in a SQL database, for longer than Redis keeps it.

The courier writes it (`write`), from the ledger's history entries; only then does the job's time to live in Redis
start. Readers come here when the ledger has a job no longer (`lookup.py`). A deleted job leaves a tombstone
(`deletion.py`). SQLite serves one machine, PostgreSQL a cluster; what they do differently is here alone.

Terminal states never change, so a job is written once: whoever comes later changes nothing.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from pydantic import SecretStr
from sqlalchemy import ColumnElement, Row, Table, func, inspect, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from darkroom.errors import Gone, HistoryUnavailable, SettingError
from darkroom.history.schema import CONTENT, epochs, jobs
from darkroom.jobs import JobEvent, State
from darkroom.ledger.epochs import Epoch
from darkroom.ledger.records import JobRecord, LogEntry, Page
from darkroom.logs import logger
from darkroom.times import iso

CONNECT_LIMIT_S = 3.0
LOCK_LIMIT_S = 3.0
"""How long SQLite waits for another writer; a batch takes it some ten milliseconds."""

LOCK_PAUSE_S = 0.05
"""Between two tries for the lock of a file that somebody else changes."""

LIMIT_S = 6.0
"""A transaction takes no longer, or the database is as good as away. More than the above, less than callers wait."""

LOCK = 0x6461726B726F6F6D
"""Ours among PostgreSQL's advisory locks: "darkroom" as a number. Nobody else in the database should have it."""

CONNECTIONS = 8
"""Of one process at most. Reads of the history are rare beside those of the ledger."""

KEPT_EVENTS = frozenset({JobEvent.STARTED, JobEvent.RELEASED, JobEvent.RETRIED, JobEvent.CANCELLING})
"""The entries of a log that tell of attempts. The terminal one is in the record, and progress is of no use later."""

DATA_FAULTS = ("21", "22", "23")
"""Classes of SQLSTATE that say that what was sent is at fault.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

_log = logger(__name__)


@dataclass(frozen=True)
class PastJob:
    """A job that has ended: its record, and of its log what tells of its attempts, the end included."""

    record: JobRecord
    log: tuple[LogEntry, ...]

    @classmethod
    def of(cls, record: JobRecord, log: Sequence[LogEntry]) -> PastJob:
        """From the ledger's record and whole log. Raises ValueError for a job that lives."""
        if record.end is None:
            raise ValueError(f"job {record.id} has not ended")
        kept = (entry for entry in log if entry.event in KEPT_EVENTS and entry.seq < record.end.seq)
        return cls(record, (*kept, record.end))


@dataclass(frozen=True)
class Tombstone:
    """What is left of a deleted job. Times are milliseconds since the epoch."""

    job_id: str
    tenant: str
    state: State
    ended: int
    deleted: int

    @property
    def gone(self) -> Gone:
        """What callers are told."""
        return Gone(
            f"job {self.job_id} has been deleted",
            state=self.state.value,
            ended_at=iso(self.ended),
            deleted_at=iso(self.deleted),
        )


class History:
    """The database. It connects when it is first asked for something; every question may raise HistoryUnavailable."""

    def __init__(self, url: SecretStr) -> None:
        """Raises SettingError where the driver is not installed."""
        self._is_file = url.get_secret_value().startswith("sqlite")
        timeouts: dict[str, Any] = {"timeout": LOCK_LIMIT_S if self._is_file else CONNECT_LIMIT_S}
        try:
            self.engine: AsyncEngine = create_async_engine(
                url.get_secret_value(),
                connect_args=timeouts,
                pool_size=CONNECTIONS,
                max_overflow=0,
                pool_timeout=CONNECT_LIMIT_S,
                pool_pre_ping=True,  # a connection from before a restart of the database is replaced, unnoticed
                hide_parameters=True,  # prompts are nobody's business in a log
            )
        except ModuleNotFoundError as error:
            raise SettingError(f"DARKROOM_DATABASE_URL=(hidden): the package {error.name} is not installed") from error
        except (ArgumentError, ValueError) as error:  # a port that is no number
            raise SettingError("DARKROOM_DATABASE_URL=(hidden): is not an address that can be used") from error

    async def aclose(self) -> None:
        await self.engine.dispose()

    async def ping(self) -> None:
        """Raises HistoryUnavailable unless the database answers."""
        async with self._transaction() as connection:
            await connection.execute(text("SELECT 1"))

    # -- what the courier writes ---------------------------------------------------------------------------------------

    async def write(self, past: Sequence[PastJob]) -> None:
        """All of them or none; those that are there already, or were deleted, stay as they are.

        Raises SQLAlchemyError where the database does not take one of them, whenever that is tried.
        """
        if not past:
            return
        rows = sorted((_row(job) for job in past), key=itemgetter("id"))  # in one order, or two writers may lock up
        async with self._transaction() as connection:
            await connection.execute(self._insert().on_conflict_do_nothing(), rows)

    # -- what readers ask ----------------------------------------------------------------------------------------------

    async def job(self, job_id: str, *, tenant: str) -> PastJob | Tombstone | None:
        """The tenant's job, or what is left of it."""
        async with self._transaction() as connection:
            rows = await connection.execute(select(jobs).where(jobs.c.id == job_id, jobs.c.tenant == tenant))
            row = rows.one_or_none()
        if row is None:
            return None
        return _past_job(row) if row.deleted is None else _tombstone(row)

    async def inputs(self, job_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The input of each of these jobs that is there and was not deleted, of whatever tenant."""
        async with self._transaction() as connection:
            rows = await connection.execute(select(jobs.c.id, jobs.c.input).where(jobs.c.id.in_(job_ids), _is_job()))
            return {row.id: row.input for row in rows}

    async def known(self, job_ids: Sequence[str]) -> dict[str, PastJob | Tombstone]:
        """Of these jobs of any tenant, by their ids, those that are known here. For darkroom's own parts only."""
        if not job_ids:
            return {}
        async with self._transaction() as connection:
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
        """As `AsyncLedger.page`, of the jobs that have ended and were not deleted."""
        wanted = {"tenant": tenant, "state": state, "model": model, "user_id": user_id}
        if any("\0" in (value or "") for value in wanted.values()):
            return Page((), None)  # no name holds it, and PostgreSQL does not take it in a question
        conditions = [jobs.c[name] == str(value) for name, value in wanted.items() if value is not None]
        if after is not None:
            conditions.append(jobs.c.id < after)
        one_more = select(jobs).where(_is_job(), *conditions).order_by(jobs.c.id.desc()).limit(limit + 1)
        async with self._transaction() as connection:
            rows = (await connection.execute(one_more)).all()
        found = tuple(_record(row) for row in rows[:limit])
        return Page(found, found[-1].id if len(rows) > limit else None)

    # -- deletion ------------------------------------------------------------------------------------------------------

    async def bury(self, record: JobRecord, *, now: int) -> Tombstone:
        """Put a tombstone in the place of an ended job, whether or not it has been written yet. The first one stays."""
        if record.ended is None:
            raise ValueError(f"job {record.id} has not ended")
        fresh = self._insert().values(
            id=record.id, tenant=record.tenant, state=record.state.value, ended=record.ended, deleted=now
        )
        statement = fresh.on_conflict_do_update(index_elements=[jobs.c.id], set_=_burial(now)).returning(jobs)
        async with self._transaction() as connection:
            return _tombstone((await connection.execute(statement)).one())

    async def bury_older(self, before: int, *, limit: int, now: int) -> list[Tombstone]:
        """Put tombstones in the place of up to `limit` jobs of any tenant that ended before then, the oldest first."""
        oldest = select(jobs.c.id).where(_is_job(), jobs.c.ended < before).order_by(jobs.c.ended).limit(limit)
        async with self._transaction() as connection:
            # Two statements: as a subquery that locks, PostgreSQL may take the limit more than once.
            mine = (await connection.scalars(oldest.with_for_update(skip_locked=True))).all()
            statement = update(jobs).where(jobs.c.id.in_(mine), _is_job()).values(_burial(now)).returning(jobs)
            return [_tombstone(row) for row in await connection.execute(statement)]

    async def unfinished(self, *, limit: int) -> list[Tombstone]:
        """Deleted jobs of which something may be left elsewhere."""
        question = (
            select(jobs)
            .where(jobs.c.deleted.is_not(None), jobs.c.cleared.is_(None))
            .order_by(jobs.c.deleted)
            .limit(limit)
        )
        async with self._transaction() as connection:
            return [_tombstone(row) for row in await connection.execute(question)]

    async def cleared(self, job_ids: Sequence[str], *, now: int) -> None:
        """Nothing is left of these deleted jobs but the tombstones."""
        if not job_ids:
            return
        async with self._transaction() as connection:
            await connection.execute(
                update(jobs).where(jobs.c.id.in_(job_ids), jobs.c.deleted.is_not(None)).values(cleared=now)
            )

    # -- epochs of the ledger ------------------------------------------------------------------------------------------

    async def epoch(self, namespace: str) -> Epoch | None:
        """How far the ledger with this prefix had come; None where no courier has noted it."""
        question = select(epochs.c.epoch, epochs.c.beats, epochs.c.at).where(epochs.c.namespace == namespace)
        async with self._transaction() as connection:
            if not await connection.run_sync(lambda sync: inspect(sync).has_table(epochs.name)):
                return None
            row = (await connection.execute(question)).one_or_none()
        return None if row is None else Epoch(row.epoch, row.beats, row.at)

    async def note_epoch(self, namespace: str, epoch: Epoch) -> None:
        """Note how far the ledger has come. Beats are only ever added: a courier that is late changes nothing."""
        fresh = self._insert(epochs).values(namespace=namespace, epoch=epoch.number, beats=epoch.beats, at=epoch.at)
        later = {name: fresh.excluded[name] for name in ("epoch", "beats", "at")}
        statement = fresh.on_conflict_do_update(
            index_elements=[epochs.c.namespace], set_=later, where=epochs.c.beats < fresh.excluded.beats
        )
        async with self._transaction() as connection:
            await connection.execute(statement)

    # -- the database itself -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for a change of the table: nobody else has one of these, and it takes as long as it takes.

        With SQLite nobody else writes at all; that readers go on meanwhile, and while jobs are written (WAL), is a
        property of the file that is set here.
        """
        async with self._transaction(limit_s=None) as connection:
            if self._is_file:
                await _when_free(connection, "PRAGMA journal_mode=WAL")
                await _when_free(connection, "BEGIN IMMEDIATE")
            else:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            yield connection

    @asynccontextmanager
    async def _transaction(self, *, limit_s: float | None = LIMIT_S) -> AsyncIterator[AsyncConnection]:
        """Committed at the end of the block. Raises HistoryUnavailable; what was sent may be repeated then."""
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._connect()
                try:
                    async with connection.begin():
                        yield connection
                finally:
                    await connection.close()
        except DBAPIError as error:
            if _is_of_what_was_sent(error):
                raise
            raise _unavailable(error.orig or error) from error
        except (TimeoutError, OSError) as error:
            raise _unavailable(error) from error

    async def _connect(self) -> AsyncConnection:
        try:
            return await self.engine.connect()
        except Exception as error:  # absent, refusing, starting up, out of places: each driver has its own words for it
            raise _unavailable(error) from error

    def _insert(self, table: Table = jobs) -> Any:
        """SQLAlchemy's two inserts that know of conflicts have no common type."""
        return sqlite.insert(table) if self._is_file else postgresql.insert(table)


async def _when_free(connection: AsyncConnection, statement: str) -> None:
    """SQLite's own patience ends after LOCK_LIMIT_S, and a change of the journal's mode has none at all."""
    while True:
        try:
            await connection.exec_driver_sql(statement)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:  # the rest says why it is busy
                raise
            await asyncio.sleep(LOCK_PAUSE_S)
        else:
            return


def _is_job() -> ColumnElement[bool]:
    return jobs.c.deleted.is_(None)


def _burial(now: int) -> dict[str, Any]:
    return {**dict.fromkeys(CONTENT), "deleted": func.coalesce(jobs.c.deleted, now)}


def _is_of_what_was_sent(error: DBAPIError) -> bool:
    """Whether the same would be refused again; anything else is the database's own trouble, and passes."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return str(sqlstate).startswith(DATA_FAULTS)
    of_sqlite = isinstance(error.orig, sqlite3.Error) and not isinstance(error.orig, sqlite3.OperationalError)
    return of_sqlite and type(error.orig) is not sqlite3.DatabaseError  # which says that the file is broken


def _unavailable(error: BaseException) -> HistoryUnavailable:
    """The reason is for our log: it may name hosts and users."""
    _log.warning("history_unavailable", error=f"{type(error).__name__}: {error}")
    return HistoryUnavailable("the database of ended jobs does not answer", retry_after=5)


def _row(past: PastJob) -> dict[str, Any]:
    record = past.record
    return {
        "id": record.id,
        "tenant": record.tenant,
        "state": record.state.value,
        "ended": record.ended,
        "model": record.model,
        "pool": record.pool,
        "user_id": record.fields.get("user_id"),
        "input": record.input,
        "fields": record.fields,
        "created": record.created,
        "started": record.started,
        "attempt": record.attempt,
        "counted": record.counted,
        "max_attempts": record.max_attempts,
        "priority": record.priority,
        "run_timeout": record.run_timeout,
        "start_deadline": record.start_deadline,
        "worker": record.worker,
        "progress": record.progress,
        "step": record.step,
        "steps": record.steps,
        "cancel_requested": record.cancel_requested,
        "seq": record.seq,
        "end_seq": record.end_seq,
        "end_data": record.end_data,
        "traceparent": record.traceparent,
        "attempts": [
            {"seq": entry.seq, "event": entry.event, "state": entry.state, "at": entry.at, "data": entry.data}
            for entry in past.log
            if not entry.state.is_terminal
        ],
    }


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(
        id=row.id,
        tenant=row.tenant,
        model=row.model,
        pool=row.pool,
        state=State(row.state),
        input=row.input,
        fields=row.fields,
        created=row.created,
        started=row.started,
        ended=row.ended,
        attempt=row.attempt,
        counted=row.counted,
        max_attempts=row.max_attempts,
        priority=row.priority,
        run_timeout=row.run_timeout,
        start_deadline=row.start_deadline,
        not_before=None,
        worker=row.worker,
        progress=row.progress,
        step=row.step,
        steps=row.steps,
        cancel_requested=row.cancel_requested,
        seq=row.seq,
        end_seq=row.end_seq,
        end_data=row.end_data,
        traceparent=row.traceparent,
        place=None,
    )


def _past_job(row: Row[Any]) -> PastJob:
    return PastJob.of(_record(row), [_entry(row.id, raw) for raw in row.attempts])


def _entry(job_id: str, raw: Mapping[str, Any]) -> LogEntry:
    return LogEntry(job_id, raw["seq"], JobEvent(raw["event"]), State(raw["state"]), raw["at"], raw["data"])


def _tombstone(row: Row[Any]) -> Tombstone:
    return Tombstone(row.id, row.tenant, State(row.state), row.ended, row.deleted)

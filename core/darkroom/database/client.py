"""The SQL database: its connections, its transactions, and the differences between SQLite and PostgreSQL.

SQLite serves one machine, PostgreSQL a cluster. `history/` stores terminal jobs in it, `access/` tenants and keys,
`trail/` the audit trail.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr
from sqlalchemy import MetaData, Table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from darkroom.errors import HistoryUnavailable, SettingError
from darkroom.logs import logger

metadata = MetaData()
"""All tables."""

CONNECT_LIMIT_S = 3.0
LOCK_LIMIT_S = 3.0
"""How long SQLite waits for another writer; a batch takes some ten milliseconds."""

LOCK_PAUSE_S = 0.05
"""Pause between two attempts to lock a file that another process changes."""

LIMIT_S = 6.0
"""The longest transaction: beyond it the database is unavailable. More than the above, and less than callers wait."""

LOCK = 0x6461726B726F6F6D
"""The key of darkroom's advisory lock in PostgreSQL: "darkroom" as a number. Other applications must not use it."""

CONNECTIONS = 8
"""The most connections of one process. Reads of the history are rare compared with those of the ledger."""

DATA_FAULTS = ("21", "22", "23")
"""Classes of SQLSTATE for faults of the statement or its data.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

_log = logger(__name__)


class Database:
    """The database. It connects on first use; every method may raise HistoryUnavailable."""

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
                pool_pre_ping=True,  # replaces connections from before a restart of the database
                hide_parameters=True,  # prompts must not be logged
            )
        except ModuleNotFoundError as error:
            raise SettingError(f"DARKROOM_DATABASE_URL=(hidden): the package {error.name} is not installed") from error
        except (ArgumentError, ValueError) as error:  # such as a port that is not a number
            raise SettingError("DARKROOM_DATABASE_URL=(hidden): is not a valid address") from error

    async def aclose(self) -> None:
        await self.engine.dispose()

    async def ping(self) -> None:
        """Raises HistoryUnavailable unless the database answers."""
        async with self.transaction() as connection:
            await connection.execute(text("SELECT 1"))

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """An exclusive transaction for a migration, without a time limit.

        With SQLite it excludes all other writers; the file is set to WAL, so that readers continue during it and while
        jobs are written.
        """
        async with self.transaction(limit_s=None) as connection:
            if self._is_file:
                await _when_free(connection, "PRAGMA journal_mode=WAL")
                await _when_free(connection, "BEGIN IMMEDIATE")
            else:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            yield connection

    @asynccontextmanager
    async def transaction(self, *, limit_s: float | None = LIMIT_S) -> AsyncIterator[AsyncConnection]:
        """Commit at the end of the block. Raises HistoryUnavailable; the statements may be repeated then."""
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
        except Exception as error:  # absent, refusing, starting, no free connection: each driver has its own errors
            raise _unavailable(error) from error

    def insert(self, table: Table) -> Any:
        """SQLAlchemy's two inserts with ON CONFLICT have no common type."""
        return sqlite.insert(table) if self._is_file else postgresql.insert(table)


async def _when_free(connection: AsyncConnection, statement: str) -> None:
    """Execute it once the file is unlocked: SQLite waits LOCK_LIMIT_S, and not at all to change the journal mode."""
    while True:
        try:
            await connection.exec_driver_sql(statement)
        except OperationalError as error:
            if (
                getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY
            ):  # the higher bits have the reason
                raise
            await asyncio.sleep(LOCK_PAUSE_S)
        else:
            return


def _is_of_what_was_sent(error: DBAPIError) -> bool:
    """Whether the same statement would fail again; any other error is a temporary one of the database itself."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return str(sqlstate).startswith(DATA_FAULTS)
    of_sqlite = isinstance(error.orig, sqlite3.Error) and not isinstance(error.orig, sqlite3.OperationalError)
    return of_sqlite and type(error.orig) is not sqlite3.DatabaseError  # the file is damaged


def _unavailable(error: BaseException) -> HistoryUnavailable:
    """Log the reason, which may name hosts and users, and hide it from callers."""
    _log.warning("history_unavailable", error=f"{type(error).__name__}: {error}")
    return HistoryUnavailable("the database of finished jobs is unavailable", retry_after=5)

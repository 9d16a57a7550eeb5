"""The history's database in tests: SQLite and PostgreSQL, empty at first, and unavailable on request."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from darkroom.database.migrations import migrate
from darkroom.history.store import History
from pydantic import SecretStr

from tests.postgres_server import PostgresServer


class DatabaseKind(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class Database(Protocol):
    """In an `away` block nothing can be written; in an `absent` block no new connection can be opened."""

    url: str

    def away(self) -> AbstractContextManager[None]: ...

    def absent(self) -> AbstractContextManager[None]: ...


class SqliteDatabase:
    """A file in a separate folder. For `away`, another connection holds its lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._path = folder / "jobs.sqlite"
        self.url = f"sqlite+aiosqlite:///{self._path}"

    @contextmanager
    def away(self) -> Iterator[None]:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=60)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
        finally:
            connection.close()

    @contextmanager
    def absent(self) -> Iterator[None]:
        elsewhere = self._folder.rename(self._folder.with_suffix(".elsewhere"))
        try:
            yield
        finally:
            elsewhere.rename(self._folder)


class PostgresDatabase:
    """A database of a real server. For `away`, the server is stopped."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.new_database()

    @contextmanager
    def away(self) -> Iterator[None]:
        self._server.stop()
        try:
            yield
        finally:
            self._server.start()

    absent = away


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[History]:
    """The history in a migrated database."""
    history = History(SecretStr(url))
    try:
        await migrate(history)
        yield history
    finally:
        await history.aclose()


def migrated(url: str) -> None:
    """Migrate a database, from outside of any event loop."""

    async def migrate_it() -> None:
        async with opened(url):
            pass

    asyncio.run(migrate_it())

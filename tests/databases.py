"""The history's database as tests have it: SQLite and PostgreSQL, empty at first, and away when a test says so."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from darkroom.history.migrations import migrate
from darkroom.history.store import History
from pydantic import SecretStr

from tests.postgres_server import PostgresServer


class DatabaseKind(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class Database(Protocol):
    """`away` is a block in which nothing can be written; in `absent`, nobody who was not there before gets in."""

    url: str

    def away(self) -> AbstractContextManager[None]: ...

    def absent(self) -> AbstractContextManager[None]: ...


class SqliteDatabase:
    """A file in a folder of its own. Away means that another program does not let go of it."""

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
    """A database of a real server, which is stopped."""

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
    """The history in a database that has its table."""
    history = History(SecretStr(url))
    try:
        await migrate(history)
        yield history
    finally:
        await history.aclose()


def migrated(url: str) -> None:
    """Give a database its table, from outside of any event loop."""

    async def migrate_it() -> None:
        async with opened(url):
            pass

    asyncio.run(migrate_it())

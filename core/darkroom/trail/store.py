"""The audit trail in SQL: the courier appends to it, administrators read it, `darkroom audit` verifies it.

The chain's end is stored three times: in `audit_heads`, in Redis, and in a log line of the courier for each batch. So
these are detected: a row that was changed, removed, inserted or moved; and rows that were removed at the end, unless
`audit_heads` and Redis were changed too, which only a comparison with the logs shows. Where Redis has an end
that SQL lacks, the courier appends an entry about that (`entries.TRUNCATED`) before anything else, since its next batch
gives Redis another end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Row, Select, inspect, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from darkroom.database.client import Database
from darkroom.trail.entries import EMPTY, INTERNAL, TRUNCATED, Chained, Entry, Head, digest_of
from darkroom.trail.schema import audit_heads, audit_trail

SLICE = 1000
"""Rows that are read at once: a few hundred kB."""


@dataclass(frozen=True)
class TrailFilter:
    """Which entries to list; None for all."""

    tenant: str | None = None
    actor: str | None = None
    operation: str | None = None
    object: str | None = None


@dataclass(frozen=True)
class TrailPage:
    """One page of the trail, newest first. `after` is the number of its last entry; None for the last page."""

    entries: tuple[Chained, ...]
    after: int | None


@dataclass(frozen=True)
class Break:
    """The first fault of the chain: the number of the entry, and the reason."""

    seq: int
    reason: str


@dataclass(frozen=True)
class Verification:
    """The result of a verification: the end of the chain, how many entries it has, and its first fault.

    `truncations` are the entries about missing ends that the courier has noticed.
    """

    head: Head
    entries: int
    broken: Break | None
    truncations: tuple[Chained, ...] = ()

    @property
    def is_intact(self) -> bool:
        return self.broken is None and not self.truncations


class TrailStore:
    """The trail of one ledger. Every method may raise HistoryUnavailable."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def append(self, entries: Sequence[Entry], *, published: Head | None = None, now: int) -> Head:
        """Append entries in their order and return the end of the chain. An entry that is stored already is skipped.

        `published` is the end that Redis has; None where it has none. `now` is in milliseconds since the epoch.
        """
        async with self._database.transaction() as connection:
            head = await self._lock(connection)
            if published is not None and not await self._has(connection, published):
                entries = (_truncation(published, now=now), *entries)
            known = await self._known(connection, [entry.uid for entry in entries])
            fresh = {entry.uid: entry for entry in entries if entry.uid not in known}
            rows = []
            for entry in fresh.values():
                chained = Chained.after(head, entry)
                rows.append(self._row(chained))
                head = chained.head
            if rows:
                await connection.execute(audit_trail.insert(), rows)
                await connection.execute(
                    update(audit_heads)
                    .where(audit_heads.c.namespace == self._namespace)
                    .values(seq=head.seq, digest=head.digest)
                )
        return head

    async def page(self, wanted: TrailFilter, *, limit: int, after: int | None = None) -> TrailPage:
        """A page of entries, newest first, below the number `after`."""
        values = asdict(wanted)
        if any("\0" in (value or "") for value in values.values()):
            return TrailPage((), None)  # no text contains it, and PostgreSQL refuses it in a query
        conditions = [audit_trail.c[name] == value for name, value in values.items() if value is not None]
        if after is not None:
            conditions.append(audit_trail.c.seq < after)
        question = self._rows().where(*conditions).order_by(audit_trail.c.seq.desc()).limit(limit + 1)
        async with self._database.transaction() as connection:
            rows = (await connection.execute(question)).all()
        found = tuple(_chained(row) for row in rows[:limit])
        return TrailPage(found, found[-1].seq if len(rows) > limit else None)

    async def read(self) -> AsyncIterator[Chained]:
        """All entries, oldest first."""
        async for row in self._scan():
            yield _chained(row)

    async def exists(self) -> bool:
        """Whether the database has been migrated to a version with the trail."""
        async with self._database.transaction() as connection:
            return await connection.run_sync(lambda sync: inspect(sync).has_table(audit_trail.name))

    async def verify(self, *, published: Head | None = None) -> Verification:
        """Compute the chain again. `published` is the end that Redis has."""
        # First: entries that are appended meanwhile are behind it.
        stored = await self._stored_head()
        head, count, broken = EMPTY, 0, None
        truncations: list[Chained] = []
        is_published = published is None or published.seq == 0
        async for row in self._scan():
            count += 1
            chained = _chained(row)
            broken = broken or _fault(chained, head)
            if chained.entry.operation == TRUNCATED:
                truncations.append(chained)
            head = chained.head
            is_published = is_published or head == published
            if stored is not None and head.seq == stored.seq and head.digest != stored.digest:
                broken = broken or Break(head.seq, "its hash is not that of audit_heads")
        if broken is None and stored is not None and head.seq < stored.seq:
            broken = Break(head.seq + 1, f"entries to {stored.seq} are missing at the end: audit_heads counts them")
        if broken is None and stored is None and count:
            broken = Break(head.seq, "audit_heads has no row")
        if broken is None and published is not None and not is_published:
            missing = head.seq < published.seq
            reason = (
                f"entries to {published.seq} are missing at the end: Redis counts them"
                if missing
                else "its hash is not the one that Redis has"
            )
            broken = Break(head.seq + 1 if missing else published.seq, reason)
        return Verification(head, count, broken, tuple(truncations))

    async def _lock(self, connection: AsyncConnection) -> Head:
        """Lock the end of the chain, and return it. The statement is a write, so that SQLite locks too."""
        table, mine = audit_heads, audit_heads.c.namespace == self._namespace
        first = self._database.insert(table).values(namespace=self._namespace, seq=0, digest=EMPTY.digest)
        await connection.execute(first.on_conflict_do_nothing())
        statement = update(table).where(mine).values(seq=table.c.seq).returning(table.c.seq, table.c.digest)
        row = (await connection.execute(statement)).one()
        return Head(row.seq, row.digest)

    async def _known(self, connection: AsyncConnection, uids: Sequence[str]) -> set[str]:
        question = select(audit_trail.c.uid).where(
            audit_trail.c.namespace == self._namespace, audit_trail.c.uid.in_(uids)
        )
        return set((await connection.execute(question)).scalars())

    async def _has(self, connection: AsyncConnection, head: Head) -> bool:
        """Whether the chain has, or had at that number, this end."""
        if head.seq == 0:
            return True
        found = await connection.execute(self._rows().where(audit_trail.c.seq == head.seq))
        row = found.one_or_none()
        return row is not None and row.digest == head.digest

    async def _stored_head(self) -> Head | None:
        question = select(audit_heads).where(audit_heads.c.namespace == self._namespace)
        async with self._database.transaction() as connection:
            row = (await connection.execute(question)).one_or_none()
        return None if row is None else Head(row.seq, row.digest)

    async def _scan(self) -> AsyncIterator[Row[Any]]:
        """All rows by number, in slices."""
        last = -1
        while True:
            question = self._rows().where(audit_trail.c.seq > last).order_by(audit_trail.c.seq).limit(SLICE)
            async with self._database.transaction() as connection:
                rows = (await connection.execute(question)).all()
            for row in rows:
                yield row
            if len(rows) < SLICE:
                return
            last = rows[-1].seq

    def _rows(self) -> Select[Any]:
        return select(audit_trail).where(audit_trail.c.namespace == self._namespace)

    def _row(self, chained: Chained) -> dict[str, Any]:
        return {
            "namespace": self._namespace,
            "seq": chained.seq,
            **asdict(chained.entry),
            "digest": chained.digest,
        }


_FIELDS = tuple(field.name for field in fields(Entry))


def _fault(chained: Chained, before: Head) -> Break | None:
    if chained.seq != before.seq + 1:
        missing = before.seq + 1
        return Break(missing, f"entries {missing} to {chained.seq - 1} are missing")
    if chained.digest != digest_of(chained.seq, chained.entry, before.digest):
        return Break(chained.seq, "its hash is not that of its content and the entry before it")
    return None


def _truncation(published: Head, *, now: int) -> Entry:
    return Entry(
        uid=f"truncated-{published.seq}-{published.digest}",
        at=now,
        tenant="",
        actor="courier",
        kind=INTERNAL,
        operation=TRUNCATED,
        object=f"{published.seq} {published.digest}",
        outcome="missing",
    )


def _chained(row: Row[Any]) -> Chained:
    entry = Entry(**{name: row._mapping[name] for name in _FIELDS})
    return Chained(row.seq, entry, row.digest)

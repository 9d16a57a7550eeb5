"""The tables of the audit trail. `store.py` reads and writes them.

Triggers refuse UPDATE and DELETE (`database/migrations/versions/r0004_audit_and_usage.py`). They stop mistakes, and
users of PostgreSQL without the right to drop a trigger. The owner of the database, and every process that can write
SQLite's file, can remove them; the chain does not verify then.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, SmallInteger, Table, Text

from darkroom.database.client import metadata

audit_trail = Table(
    "audit_trail",
    metadata,
    # The prefix of the ledger's keys, each with a chain of its own: a database may serve several.
    Column("namespace", Text, primary_key=True),
    # The number in the chain, from 1.
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    # The fields of `entries.Entry`.
    Column("uid", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("trace", Text, nullable=False),
    Column("count", Integer, nullable=False),
    # SHA-256 of the entry and the hash of the one before it.
    Column("digest", Text, nullable=False),
)

audit_heads = Table(
    "audit_heads",
    metadata,
    Column("namespace", Text, primary_key=True),
    # The end of the chain, by which a missing end is detected. Writers lock this row.
    Column("seq", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
)

FIRST_REFUSAL = 400
"""The least status of a refusal."""

SUBMISSIONS = ("submitEvents", "submitJob", "submitToModel")
"""The operations that submit jobs, whose refusals usage counts. Their object is the model then."""

_IS_REFUSED = audit_trail.c.status >= FIRST_REFUSAL

Index("audit_trail_by_uid", audit_trail.c.namespace, audit_trail.c.uid, unique=True)
Index("audit_trail_by_tenant", audit_trail.c.tenant, audit_trail.c.seq)
Index(
    "audit_trail_refused",
    audit_trail.c.at,
    audit_trail.c.tenant,
    postgresql_where=_IS_REFUSED,
    sqlite_where=_IS_REFUSED,
)

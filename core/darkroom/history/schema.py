"""The history's tables: `jobs`, the terminal jobs that SQL stores, and `epochs` (`ledger/epochs.py`).

A row is a job's whole record in its terminal state, with a column for each field of the record that the table of fields
(`ledger/records.py`) assigns to the history. When the job is deleted, the row stays as its tombstone: its id, tenant,
last state and times, and what usage counts; everything else is NULL. Both are one row, so the primary key decides
between a deletion and a courier that writes the job late: a deleted job never comes back.

`store.py` reads and writes the tables. A change needs a new file in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.types import TypeEngine

from darkroom.database.client import metadata
from darkroom.ledger.records import FIELDS, FieldType

_JSON = JSON(none_as_null=True)
"""PostgreSQL's `json` and not `jsonb`: it returns the text as it was stored and accepts U+0000, as in a prompt."""

_COLUMN_TYPES: Mapping[FieldType, TypeEngine[Any]] = {
    FieldType.ID: Uuid(as_uuid=False),
    FieldType.TEXT: Text(),
    FieldType.STATE: Text(),
    FieldType.JSON: _JSON,
    FieldType.INTEGER: Integer(),
    FieldType.SMALL: SmallInteger(),
    FieldType.DECIMAL: Float(),
    FieldType.TIME: BigInteger(),
}

OF_TOMBSTONE = ("id", "tenant", "state", "ended")
"""The fields of the record that stay when a job is deleted, and that every row has."""

OF_USAGE = ("model", "key_id", "gpu_ms", "artifacts")
"""The columns that stay when a job is deleted, for the reports of usage. Rows of earlier versions lack them."""

RECORD_FIELDS = tuple(field for field in FIELDS if field.in_history)
"""The fields of the record that have a column, which has their name."""

jobs = Table(
    "jobs",
    metadata,
    # The ids are UUIDv7, which sort by time: a list scans down the primary key.
    *(
        Column(
            field.name,
            _COLUMN_TYPES[field.type],
            primary_key=field.type is FieldType.ID,
            nullable=field.name not in OF_TOMBSTONE,
        )
        for field in RECORD_FIELDS
    ),
    # `user_id` of `fields`, by which lists are filtered.
    Column("user_id", Text),
    # The number of images that the job published.
    Column("artifacts", Integer),
    # The entries of the job's log that belong to its attempts.
    Column("attempts", _JSON),
    # When the job was deleted: from then on the row is a tombstone.
    Column("deleted", BigInteger),
    # When its artifacts and its data in Redis were found to be gone.
    Column("cleared", BigInteger),
    CheckConstraint("(deleted IS NULL) = (input IS NOT NULL)", name="job_or_tombstone"),
)

epochs = Table(
    "epochs",
    metadata,
    # The prefix of the ledger's keys: a database may serve several.
    Column("namespace", Text, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("beats", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
)

CONTENT = tuple(
    column.name for column in jobs.columns if column.nullable and column.name not in {"deleted", "cleared", *OF_USAGE}
)
"""The columns that are NULL in a tombstone."""

_IS_JOB = jobs.c.deleted.is_(None)
_IS_UNFINISHED = jobs.c.deleted.is_not(None) & jobs.c.cleared.is_(None)

# Lists scan one of the first three; retention and unfinished deletions use the next two, and usage the
# last one, which has tombstones too.
Index("jobs_by_tenant", jobs.c.tenant, jobs.c.id, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_by_user", jobs.c.tenant, jobs.c.user_id, jobs.c.id, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_by_state", jobs.c.tenant, jobs.c.state, jobs.c.id, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_by_end", jobs.c.ended, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_unfinished", jobs.c.deleted, postgresql_where=_IS_UNFINISHED, sqlite_where=_IS_UNFINISHED)
Index("jobs_by_end_and_tenant", jobs.c.ended, jobs.c.tenant)

"""The history's tables: `jobs`, what SQL keeps of jobs that have ended, and `epochs` (`epochs.py`).

A row is a job's whole record as the ledger had it at its end; its input, fields, data and attempts are JSON. When the
job is deleted the row stays as its tombstone: who it was, its last state, the times; everything else is NULL. One row
for both, because then the key alone decides between a deletion and a courier that comes late with the job: nothing that
was deleted comes back.

`history.py` reads and writes it. A change of it is a new file in `migrations/versions`; a test holds the two together.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

metadata = MetaData()

_JSON = JSON(none_as_null=True)
"""PostgreSQL's `json` and not `jsonb`: it gives back the text as it came, and takes U+0000, which a prompt may hold."""

jobs = Table(
    "jobs",
    metadata,
    # Sorted by time, as UUIDv7 are; a list is a walk down this column.
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("state", Text, nullable=False),
    # All times are milliseconds since the epoch.
    Column("ended", BigInteger, nullable=False),
    # When it was deleted: from then on the row is a tombstone.
    Column("deleted", BigInteger),
    # When its artifacts, and what Redis had of it, were found to be gone.
    Column("cleared", BigInteger),
    Column("model", Text),
    Column("pool", Text),
    Column("user_id", Text),
    Column("input", _JSON),
    Column("fields", _JSON),
    Column("created", BigInteger),
    Column("started", BigInteger),
    Column("attempt", Integer),
    Column("counted", Integer),
    Column("max_attempts", Integer),
    Column("priority", SmallInteger),
    Column("run_timeout", Float),
    Column("start_deadline", BigInteger),
    Column("worker", Text),
    Column("progress", SmallInteger),
    Column("step", Integer),
    Column("steps", Integer),
    Column("cancel_requested", BigInteger),
    Column("seq", Integer),
    Column("end_seq", Integer),
    Column("end_data", _JSON),
    Column("traceparent", Text),
    # The entries of the job's log that tell of its attempts.
    Column("attempts", _JSON),
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

CONTENT = tuple(column.name for column in jobs.columns if column.nullable and column.name not in {"deleted", "cleared"})
"""What a tombstone has not."""

_IS_JOB = jobs.c.deleted.is_(None)
_IS_UNFINISHED = jobs.c.deleted.is_not(None) & jobs.c.cleared.is_(None)

# Lists walk down one of the first three; retention and unfinished deletions look into the last two.
Index("jobs_by_tenant", jobs.c.tenant, jobs.c.id, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_by_user", jobs.c.tenant, jobs.c.user_id, jobs.c.id, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_by_state", jobs.c.tenant, jobs.c.state, jobs.c.id, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_by_end", jobs.c.ended, postgresql_where=_IS_JOB, sqlite_where=_IS_JOB)
Index("jobs_unfinished", jobs.c.deleted, postgresql_where=_IS_UNFINISHED, sqlite_where=_IS_UNFINISHED)

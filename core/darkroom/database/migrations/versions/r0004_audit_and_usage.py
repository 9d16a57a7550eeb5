"""The audit trail, which refuses changes of its rows, and what usage needs of jobs, tombstones included."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SLICE = 1000

JOBS = sa.table(
    "jobs",
    sa.column("id", sa.Uuid(as_uuid=False)),
    sa.column("state", sa.Text),
    sa.column("ended", sa.BigInteger),
    sa.column("deleted", sa.BigInteger),
    sa.column("end_data", sa.JSON),
    sa.column("attempts", sa.JSON),
    sa.column("gpu_ms", sa.Integer),
    sa.column("artifacts", sa.Integer),
)

IS_REFUSED = sa.text("status >= 400")

POSTGRESQL_GUARD = (
    """
    CREATE FUNCTION audit_trail_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'audit_trail is append-only';
    END $$
    """,
    """
    CREATE TRIGGER audit_trail_no_change BEFORE UPDATE OR DELETE ON audit_trail
        FOR EACH ROW EXECUTE FUNCTION audit_trail_is_append_only()
    """,
    """
    CREATE TRIGGER audit_trail_no_truncate BEFORE TRUNCATE ON audit_trail
        FOR EACH STATEMENT EXECUTE FUNCTION audit_trail_is_append_only()
    """,
)
SQLITE_GUARD = tuple(
    f"""
    CREATE TRIGGER audit_trail_no_{change.lower()} BEFORE {change} ON audit_trail
    BEGIN
        SELECT RAISE(ABORT, 'audit_trail is append-only');
    END
    """
    for change in ("UPDATE", "DELETE")
)


def upgrade() -> None:
    op.create_table(
        "audit_trail",
        sa.Column("namespace", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("trace", sa.Text, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
    )
    op.create_index("audit_trail_by_uid", "audit_trail", ["namespace", "uid"], unique=True)
    op.create_index("audit_trail_by_tenant", "audit_trail", ["tenant", "seq"])
    op.create_index(
        "audit_trail_refused", "audit_trail", ["at", "tenant"], postgresql_where=IS_REFUSED, sqlite_where=IS_REFUSED
    )
    for statement in SQLITE_GUARD if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_GUARD:
        op.execute(statement)
    op.create_table(
        "audit_heads",
        sa.Column("namespace", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
    )
    for column in (
        sa.Column("key_id", sa.Text),
        sa.Column("gpu_ms", sa.Integer),
        sa.Column("artifacts", sa.Integer),
    ):
        op.add_column("jobs", column)
    op.create_index("jobs_by_end_and_tenant", "jobs", ["ended", "tenant"])
    _compute_usage(op.get_bind())


def _compute_usage(connection: sa.Connection) -> None:
    """What usage counts of the jobs that are there, from the log entries of their attempts."""
    last = None
    while True:
        rows = connection.execute(
            sa.select(JOBS.c.id, JOBS.c.state, JOBS.c.ended, JOBS.c.end_data, JOBS.c.attempts)
            .where(JOBS.c.deleted.is_(None), *([] if last is None else [JOBS.c.id > last]))
            .order_by(JOBS.c.id)
            .limit(SLICE)
        ).all()
        if not rows:
            return
        last = rows[-1].id
        connection.execute(
            sa.update(JOBS).where(JOBS.c.id == sa.bindparam("job")),
            [{"job": row.id, "gpu_ms": gpu_ms(row), "artifacts": _artifacts(row)} for row in rows],
        )


def gpu_ms(row: Any) -> int:
    """The duration of all attempts: each begins with its `started` and ends with the next entry that is not one."""
    total, began = 0, None
    for entry in (*(row.attempts or ()), {"event": row.state, "at": row.ended}):
        if entry["event"] == "started":
            began = entry["at"]
        elif entry["event"] != "cancelling" and began is not None:
            total, began = total + max(0, entry["at"] - began), None
    return total


def _artifacts(row: Any) -> int:
    return len((row.end_data or {}).get("artifacts") or ()) if row.state == "completed" else 0


def downgrade() -> None:
    op.drop_index("jobs_by_end_and_tenant", "jobs")
    for column in ("key_id", "gpu_ms", "artifacts"):
        op.drop_column("jobs", column)
    op.drop_table("audit_heads")
    op.drop_table("audit_trail")

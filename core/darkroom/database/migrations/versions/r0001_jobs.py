"""The table of terminal jobs and of the tombstones of deleted ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True)
IS_JOB = sa.text("deleted IS NULL")
IS_UNFINISHED = sa.text("deleted IS NOT NULL AND cleared IS NULL")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(as_uuid=False), primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("ended", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.BigInteger),
        sa.Column("cleared", sa.BigInteger),
        sa.Column("model", sa.Text),
        sa.Column("pool", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("input", JSON),
        sa.Column("fields", JSON),
        sa.Column("created", sa.BigInteger),
        sa.Column("started", sa.BigInteger),
        sa.Column("attempt", sa.Integer),
        sa.Column("counted", sa.Integer),
        sa.Column("max_attempts", sa.Integer),
        sa.Column("priority", sa.SmallInteger),
        sa.Column("run_timeout", sa.Float),
        sa.Column("start_deadline", sa.BigInteger),
        sa.Column("worker", sa.Text),
        sa.Column("progress", sa.SmallInteger),
        sa.Column("step", sa.Integer),
        sa.Column("steps", sa.Integer),
        sa.Column("cancel_requested", sa.BigInteger),
        sa.Column("seq", sa.Integer),
        sa.Column("end_seq", sa.Integer),
        sa.Column("end_data", JSON),
        sa.Column("traceparent", sa.Text),
        sa.Column("attempts", JSON),
        sa.CheckConstraint("(deleted IS NULL) = (input IS NOT NULL)", name="job_or_tombstone"),
    )
    for name, columns in (
        ("jobs_by_tenant", ["tenant", "id"]),
        ("jobs_by_user", ["tenant", "user_id", "id"]),
        ("jobs_by_state", ["tenant", "state", "id"]),
        ("jobs_by_end", ["ended"]),
    ):
        op.create_index(name, "jobs", columns, postgresql_where=IS_JOB, sqlite_where=IS_JOB)
    op.create_index("jobs_unfinished", "jobs", ["deleted"], postgresql_where=IS_UNFINISHED, sqlite_where=IS_UNFINISHED)


def downgrade() -> None:
    op.drop_table("jobs")

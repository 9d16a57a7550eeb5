"""The script that alembic runs to migrate, in the transaction and under the lock of `migrate`."""

from __future__ import annotations

from alembic import context

from darkroom.database.client import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()

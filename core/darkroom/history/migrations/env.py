"""The script that alembic runs to migrate, in the transaction and under the lock of `migrate`."""

from __future__ import annotations

from alembic import context

from darkroom.access import schema as access_schema
from darkroom.database import metadata
from darkroom.history import schema as history_schema

TABLES = (access_schema, history_schema)
"""The modules that define tables."""

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()

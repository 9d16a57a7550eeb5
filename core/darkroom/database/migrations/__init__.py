"""Migrations: bring the database to the schema of this version, with alembic (`schema.py` of `history/` and `access/`).

The courier migrates when it starts, and `python -m darkroom_courier.migrate` does so manually. Several processes may
start at once: one migrates, the others wait. Each file in `versions` is one step. A step only adds what the version
before can ignore, so that both versions may run during an upgrade; therefore a database that a newer version has
already migrated is left unchanged.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from darkroom.database.client import Database
from darkroom.logs import logger

FOLDER = "darkroom.database:migrations"
"""The folder of `env.py` and `versions`, in alembic's notation for a folder of a package."""

_log = logger(__name__)


async def migrate(database: Database) -> str | None:
    """Migrate the database to the newest known revision, without a time limit. Returns its revision afterwards.

    Raises HistoryUnavailable.
    """
    async with database.alone() as connection:
        return await connection.run_sync(_migrate)


def _migrate(connection: Connection) -> str | None:
    config = Config()
    config.set_main_option("script_location", FOLDER)
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current == newest:
        return newest
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        _log.warning("history_is_newer", revision=current, known=newest)
        return current
    command.upgrade(config, "head")
    _log.info("history_migrated", before=current, revision=newest)
    return newest

"""Migrations: the history database brought to the table of this version (`history_schema.py`), by alembic.

The courier does it when it starts, and `python -m darkroom_courier.migrate` by hand. Any number may begin at once: one
does the work, the others wait for it. Each file in `versions` is one step, written and read by people. It only adds
what the version before can do without, so that both may run while one replaces the other; for the same reason a
database that a newer version has changed already is left as it is.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from darkroom.history.store import History
from darkroom.logs import logger

FOLDER = "darkroom.history:migrations"
"""Where alembic finds `env.py` and `versions`, as it writes folders of a package."""

_log = logger(__name__)


async def migrate(history: History) -> str | None:
    """Bring the database to the newest revision that is known here. Answers the one that it has then.

    Takes as long as it takes. Raises HistoryUnavailable.
    """
    async with history.alone() as connection:
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

"""`python -m darkroom_courier.migrate`: migrates the history database to the schema of this version.

The courier does the same when it starts. The command is for deployments where only a dedicated job may change tables,
or whose database is so large that a migration takes longer than the courier's limit (20 s). It may run at any time,
also while couriers run. The exit status is 0, 1 if the database is unavailable, and 2 for an invalid setting.
"""

from __future__ import annotations

import asyncio
import sys

from darkroom import logs, settings
from darkroom.database.migrations import migrate
from darkroom.errors import HistoryUnavailable, SettingError
from darkroom.history.store import History
from darkroom.settings import HistorySettings


async def _run(history: History) -> None:
    try:
        revision = await migrate(history)
    finally:
        await history.aclose()
    sys.stdout.write(f"the history database is at revision {revision}\n")


def main() -> int:
    logs.configure("migrate")
    try:
        asyncio.run(_run(History(settings.load(HistorySettings).database_url)))
    except SettingError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 2
    except HistoryUnavailable as error:
        sys.stderr.write(f"{error.detail}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m darkroom_courier.migrate`: brings the history database to the table of this version, and ends.

The courier does the same when it starts. By hand it is for those who let nobody but a job of their own change tables,
or whose database is so large that a change takes longer than the courier waits (20 s). It may run at any time, beside
the couriers too. Exit status 0, 1 where the database is away, 2 where a setting cannot be used.
"""

from __future__ import annotations

import asyncio
import sys

from darkroom import logs, settings
from darkroom.errors import HistoryUnavailable, SettingError
from darkroom.history.migrations import migrate
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

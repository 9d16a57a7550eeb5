"""The courier's part in access: the root key, the file of tenants, and the copy of tenants and keys in Redis.

The file is applied when the courier starts and when it changes, and never because the records changed: couriers may see
different versions of it for a minute, while a new one is mounted, and must not undo each other's.

Functions publish their own changes. The courier publishes what they could not, and everything to a Redis that has lost
its data (`darkroom.access.directory`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from darkroom.access.administration import Administration, ensure_root
from darkroom.access.credentials import Credential
from darkroom.access.declarations.reconciliation import apply, release
from darkroom.access.declarations.tenants_file import Declaration, TenantsFile, TenantsFileRefused
from darkroom.access.directory import Directory, reconcile
from darkroom.access.store import AccessStore
from darkroom.database.migrations import migrate
from darkroom.history.store import History
from darkroom.ledger import reads
from darkroom.ledger.calls import record_key_use
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.trail.recording import Recorder

RECONCILE_S = 5.0
"""The interval of comparisons between SQL and the copy, and of looks at the file of tenants."""

_log = logger(__name__)


class AccessCopy:
    """The loop. `root` is the key that the cluster's Secret has; `on_file` is called after each reading of `file` with
    the reason why it was refused, or None.
    """

    def __init__(
        self,
        ledger: AsyncLedger,
        history: History,
        *,
        root: Credential | None,
        file: Path | None,
        on_file: Callable[[str | None], None],
    ) -> None:
        self._history = history
        self._declared = _Declared(file, on_file)
        self._ledger = ledger
        self._store = AccessStore(history)
        self._directory = Directory(ledger)
        self._administration = Administration(self._store, self._directory, record=Recorder(ledger).internal)
        self._root = root
        self._due = 0.0
        self._is_migrated = False

    async def step(self) -> bool:
        """Compare, at most every RECONCILE_S. Raises HistoryUnavailable and LedgerUnavailable."""
        if time.monotonic() < self._due:
            return False
        if not self._is_migrated:
            await migrate(self._history)
            self._is_migrated = True
        if self._root is not None:
            await ensure_root(self._administration, self._root)
            self._root = None
        await self._declared.step(self._administration)
        await reconcile(self._store, self._directory)
        if used := await reads.key_uses(self._ledger):
            await self._store.note_use(used)
            await self._ledger.run(record_key_use(used, stored=True))
        self._due = time.monotonic() + RECONCILE_S
        return False


class _Declared:
    """The file of tenants. `path` is None where there is none."""

    def __init__(self, path: Path | None, on_file: Callable[[str | None], None]) -> None:
        self._file = None if path is None else TenantsFile(path)
        self._on_file = on_file
        self._declaration: Declaration | None = None
        self._is_applied = False
        self._revision = 0

    async def step(self, administration: Administration) -> None:
        """Apply the file if it is new. Raises HistoryUnavailable; then the next step applies it."""
        if self._file is None:
            if not self._is_applied:
                await release(administration)
                self._is_applied = True
            return
        revision = await administration.store.revision()
        if revision < self._revision:  # SQL was restored from a backup
            self._is_applied = False
        self._revision = revision
        if await asyncio.to_thread(self._file.has_changed):
            self._is_applied = False
            self._declaration = await self._read(self._file)
        if self._declaration is None or self._is_applied:
            return
        try:
            await apply(self._declaration, administration)
        except TenantsFileRefused as error:
            self._refuse(error)
            self._declaration = None
            return
        self._is_applied = True
        self._on_file(None)

    async def _read(self, file: TenantsFile) -> Declaration | None:
        try:
            return await asyncio.to_thread(file.read)
        except TenantsFileRefused as error:
            self._refuse(error)
            return None

    def _refuse(self, error: TenantsFileRefused) -> None:
        _log.error("tenants_file_refused", error=error.detail)
        self._on_file(error.detail)

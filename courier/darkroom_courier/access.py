"""The courier's part in access: the root key, and the copy of tenants and keys in Redis.

Functions publish their own changes. The courier publishes what they could not, and everything to a Redis that has lost
its data (`darkroom.access.directory`).
"""

from __future__ import annotations

import time

from darkroom.access.administration import Administration, ensure_root
from darkroom.access.credentials import Credential
from darkroom.access.directory import Directory, reconcile
from darkroom.access.store import AccessStore
from darkroom.database.migrations import migrate
from darkroom.history.store import History
from darkroom.ledger import reads
from darkroom.ledger.calls import record_key_use
from darkroom.ledger.client import AsyncLedger
from darkroom.trail.recording import Recorder

RECONCILE_S = 5.0
"""The interval of comparisons between SQL and the copy."""


class AccessCopy:
    """The loop. `root` is the key that the cluster's Secret has."""

    def __init__(self, ledger: AsyncLedger, history: History, *, root: Credential | None) -> None:
        self._history = history
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
        await reconcile(self._store, self._directory)
        if used := await reads.key_uses(self._ledger):
            await self._store.note_use(used)
            await self._ledger.run(record_key_use(used, stored=True))
        self._due = time.monotonic() + RECONCILE_S
        return False

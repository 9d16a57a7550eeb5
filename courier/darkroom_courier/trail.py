"""The courier's part in the audit trail: from the ledger's entries to SQL, in their order, as one chain.

While the database is unavailable the entries stay in Redis. A courier that is killed after the commit leaves nothing to
repair: an entry is stored once, by its uid. Any number of couriers may do this at the same time: the end of the chain
is locked.

The end of the chain is logged with each batch (`audit_stored`): logs that are shipped elsewhere prove it later.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from darkroom.database.migrations import migrate
from darkroom.history.store import History
from darkroom.ledger.calls import collect_audit, drop_audit
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.trail.entries import INTERNAL, Entry, Head, stored_text
from darkroom.trail.store import TrailStore

BATCH = 500
"""Entries in one transaction: about 150 kB."""

UNREADABLE = "unreadable"
"""The operation of an entry that is not one: its text is its object."""

_log = logger(__name__)


class AuditTrail:
    """`step` is called over and over; the first one migrates the database to the schema of this version."""

    def __init__(self, ledger: AsyncLedger, history: History) -> None:
        self._ledger = ledger
        self._history = history
        self._store = TrailStore(history, ledger.namespace)
        self._is_migrated = False

    async def step(self) -> bool:
        """Store one batch. True: there may be more. Raises LedgerUnavailable and HistoryUnavailable."""
        if not self._is_migrated:
            await migrate(self._history)
            self._is_migrated = True
        collected = await self._ledger.run(collect_audit(limit=BATCH))
        if not collected.entries:
            return False
        published = None if collected.head is None else Head(*collected.head)
        head = await self._store.append(
            list(_decoded(collected.entries)), published=published, now=time.time_ns() // 1_000_000
        )
        await self._ledger.run(drop_audit(collected.entries, seq=head.seq, digest=head.digest))
        _log.info("audit_stored", entries=len(collected.entries), seq=head.seq, digest=head.digest)
        return len(collected.entries) == BATCH


def _decoded(texts: Iterable[str]) -> Iterable[Entry]:
    """The entries. A text that is none, which was written by hand, is recorded as it is."""
    for text in texts:
        try:
            yield Entry.decode(text)
        except (ValueError, TypeError):
            _log.error("audit_unreadable", text=text[:100])
            yield Entry(
                uid=text, at=0, tenant="", actor="", kind=INTERNAL, operation=UNREADABLE, object=stored_text(text)
            )

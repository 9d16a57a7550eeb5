"""Recording of operations: entries of the audit trail go to the ledger, and the courier stores them (`store.py`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

from darkroom.errors import AuditFull, LedgerUnavailable
from darkroom.ledger.calls import append_audit
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger
from darkroom.trail.entries import INTERNAL, OK, Entry, stored_text

_log = logger(__name__)


class Recorder:
    """Records operations in one ledger. `append` and `open` raise AuditFull and LedgerUnavailable."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._ledger = ledger

    async def append(self, *entries: Entry) -> None:
        """Record what is done, or was refused."""
        await self._append(entries, is_open=False)

    async def open(self, entry: Entry) -> None:
        """Record an operation before it is done. Without `close` its outcome becomes `unknown` in the trail."""
        await self._append([entry], is_open=True)

    async def close(self, entry: Entry, *, outcome: str, status: int, object: str = "") -> None:
        """Record the outcome of an open operation, and its object where that was not known before."""
        closed = replace(entry, outcome=outcome, status=status, object=entry.object or stored_text(object))
        try:
            await self._append([closed], is_open=False)
        except LedgerUnavailable as error:  # the open entry remains
            _log.warning("outcome_unrecorded", operation=entry.operation, outcome=outcome, error=error.detail)

    async def internal(self, *, actor: str, tenant: str, operation: str, object: str) -> None:
        """Record what a part of darkroom itself, or an operator's command, has done. It is done: where it cannot be
        recorded, the log has the entry.
        """
        entry = Entry(
            uid=uuid4().hex,
            at=time.time_ns() // 1_000_000,
            tenant=tenant,
            actor=stored_text(actor),
            kind=INTERNAL,
            operation=operation,
            object=stored_text(object),
            outcome=OK,
        )
        try:
            await self.append(entry)
        except (AuditFull, LedgerUnavailable) as error:
            _log.error("audit_unrecorded", entry=entry.encode(), error=error.detail)

    async def _append(self, entries: Sequence[Entry], *, is_open: bool) -> None:
        call = append_audit({entry.uid: entry.encode() for entry in entries}, is_open=is_open)
        if not await self._ledger.run(call):
            raise AuditFull("the audit trail is full; nothing was done", retry_after=30)

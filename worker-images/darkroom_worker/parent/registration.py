"""The worker's registration in the ledger: its identity, its state, and the foreign messages that it dropped.

The supervisor (`supervisor.py`) updates it. A registration expires unless it is renewed; the ledger then counts the
worker as gone.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

from darkroom import logs
from darkroom.ledger import calls
from darkroom.ledger.calls import DroppedMessages, WorkerState
from darkroom.ledger.client import Ledger
from darkroom.ledger.queues import Foreign

from darkroom_worker.health import ACCEPTING

RENEW_EVERY_S = calls.WORKER_TTL_MS / 3000


@dataclass(frozen=True)
class WorkerIdentity:
    """The identity of a worker. `name` is unique to this process, `pod` is the name of the pod or of the host."""

    name: str
    pod: str
    pool: str
    models: tuple[str, ...]


class Registration:
    """The registration of one worker. Its methods raise TemporaryError while Redis is unavailable."""

    def __init__(self, identity: WorkerIdentity, ledger: Ledger) -> None:
        self._identity, self._ledger = identity, ledger
        self._log = logs.logger(__name__)
        self._state: WorkerState | None = None
        self._renew_at = 0.0
        self._confirmed_at = -math.inf
        self._counting = threading.Lock()
        self._dropped = 0
        self._dropped_reason = Foreign.NOT_A_MESSAGE
        self._reports = 0
        self._report_at = 0.0
        self._report: DroppedMessages | None = None

    @property
    def accepts_jobs(self) -> bool:
        """Whether the ledger confirmed lately that the worker is ready or busy. For any thread."""
        is_recent = time.monotonic() - self._confirmed_at < calls.WORKER_TTL_MS / 1000
        return is_recent and self._state in ACCEPTING

    def message_dropped(self, reason: Foreign) -> None:
        """Count a message that is no job's, for the next report. For any thread."""
        with self._counting:
            self._dropped += 1
            self._dropped_reason = reason

    def update(self, state: WorkerState, now: float) -> None:
        """Register the state if it changed, if the registration is due, or with a report of dropped messages."""
        self._prepare_report(now)
        if state is self._state and now < self._renew_at and self._report is None:
            return
        self._register(state)
        if state is not self._state:
            self._log.info("state", worker=self._identity.name, state=state)
        self._state, self._renew_at, self._confirmed_at = state, now + RENEW_EVERY_S, now

    def remove(self) -> None:
        """Register the worker as gone."""
        self._prepare_report(math.inf)
        if self._state is not None:
            self._register(WorkerState.GONE)

    def _register(self, state: WorkerState) -> None:
        who = self._identity
        self._ledger.run(
            calls.register_worker(
                who.name, pool=who.pool, state=state, pod=who.pod, models=who.models, dropped=self._report
            )
        )
        self._report = None

    def _prepare_report(self, now: float) -> None:
        """Make a report of dropped messages, if one is due. A report that the ledger did not confirm is sent again."""
        if self._report is not None or not self._dropped or now < self._report_at:
            return
        with self._counting:
            count, reason, self._dropped = self._dropped, self._dropped_reason, 0
        self._reports += 1
        self._report_at = now + RENEW_EVERY_S
        self._report = DroppedMessages(self._reports, count, reason)
        self._log.warning("foreign_messages_dropped", count=count, reason=reason)

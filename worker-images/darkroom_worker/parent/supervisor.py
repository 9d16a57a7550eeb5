"""The thread of the worker's parent that talks to the ledger and limits what the child may do.

The supervisor keeps the worker registered, renews the lease of the job that the child runs, kills a child that does not
stop in time, finishes attempts that a dead child cannot, and completes a drain. While Redis is unavailable it continues
and retries. When Celery stops requesting messages, it ends the process.

The parent's other thread is Celery's event loop. The supervisor schedules on it what only the loop may do
(`Hub.call_soon`); the loop queues for the supervisor what may block.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from celery.platforms import EX_OK
from celery.worker import state as celery_state
from darkroom import logs
from darkroom.errors import TemporaryError
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, Call, LeaseStatus, WorkerState
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import ConnectionOptions
from darkroom.ledger.records import JobRecord
from darkroom.supervision import FAILED

from darkroom_worker.child.memory import ChildMemory
from darkroom_worker.parent.attempt import Attempt, KillReason
from darkroom_worker.parent.pool import QueueGate, kill_child
from darkroom_worker.parent.registration import Registration

if TYPE_CHECKING:
    from celery.apps.worker import Worker

CHECK_EVERY_S = 1.0
"""The pause between two rounds. A state that lasts less is not registered: short jobs must not cost calls of their own.
"""

DRAIN_CHECK_EVERY_S = 0.05
"""The pause during a drain, so that the process exits as soon as its job has finished."""

RENEW_EVERY_S = calls.LEASE_MS / 3000

SUPERVISOR_TIMEOUTS = ConnectionOptions(timeout_s=2.5, retries=1)
"""A connection may be dead without a sign, so that only the timeout shows it. A renewal is due after a third of the
lease: with this timeout it can be sent three more times before the lease expires.
"""

RETRY_EVERY_S = 1.0
"""The pause after Redis was unavailable."""

FORCED_STOP_AFTER_S = 5.0
"""A drain that still waits so long after its grace, for a message that no child will run, is cut short."""

STALLED_AFTER_S = 60.0
"""How long a ready worker may request no message while Redis is available. It requests one each second; a connection
that is dead without a sign blocks the event loop for up to half a minute (`socket_timeout`).
"""

SHUTDOWN_TIMEOUT_S = 10.0
"""How long the exit of the process waits for Redis to accept what is still to be recorded. Past that, the lease
expires.
"""


@dataclass(frozen=True)
class PendingReport:
    """What is left to do for an attempt that did not complete its job: the transition that its child cannot make, if
    there is one, and Celery's event, which then follows from the job's record.
    """

    attempt: Attempt
    transition: Call[AttemptEnd] | None


@dataclass
class _RunningAttempt:
    """The attempt that the child runs. Times are the monotonic clock's.

    `confirmed`: the ledger recognised the token at least once; before, the child may not have claimed the job yet.
    `revoked_at`: when the ledger first answered that the job is cancelled or belongs to another attempt; the child
    receives that at its next step.
    """

    attempt: Attempt
    renew_at: float
    confirmed: bool = False
    revoked_at: float | None = None
    overdue_at: float | None = None


class Supervisor(threading.Thread):
    """Runs from `start` to `close`. When it fails before, `has_failed` is set and the process exits."""

    def __init__(
        self,
        registration: Registration,
        ledger: Ledger,
        gate: QueueGate,
        memory: ChildMemory,
        *,
        drain_grace_s: float,
        interrupt_grace_s: float,
    ) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._registration, self._ledger, self._gate, self._memory = registration, ledger, gate, memory
        self._drain_grace_s, self._interrupt_grace_s = drain_grace_s, interrupt_grace_s
        self._log = logs.logger(__name__)
        self._worker: Worker | None = None
        self._inbox: SimpleQueue[PendingReport | None] = SimpleQueue()
        self._pending: list[PendingReport] = []
        self._unsent_events: set[Attempt] = set()
        self._current: _RunningAttempt | None = None
        self._changing = threading.Lock()
        self.last_round_at = time.monotonic()
        self._asked_at: float | None = None
        self._stalled_s = 0.0
        self._unavailable_since: float | None = None
        self._retry_at: float | None = None
        self._drains_requested = 0
        self._drains_seen = 0
        self._drain_until: float | None = None
        self._stopping = False
        self._closing = False
        self.has_failed = False

    # Called by the event loop's thread.

    def bind(self, worker: Worker) -> None:
        """Set the Celery worker that a drain stops."""
        self._worker = worker

    def attempt_started(self, attempt: Attempt) -> None:
        """Renew the lease of the attempt from now on."""
        with self._changing:
            self._current = _RunningAttempt(attempt, renew_at=time.monotonic() + RENEW_EVERY_S)

    def attempt_finished(self, attempt: Attempt) -> None:
        """Stop renewing the lease of the attempt."""
        with self._changing:
            if self._current is not None and self._current.attempt is attempt:
                self._current = None

    def report(self, attempt: Attempt, transition: Call[AttemptEnd] | None) -> None:
        """Finish an attempt for the child that cannot, and send its event: now, or when Redis is available again."""
        if transition is not None or attempt.is_watched:
            self._inbox.put(PendingReport(attempt, transition))

    def drain(self) -> None:
        """Stop accepting jobs, let the running one continue for the grace, then stop. A second call ends the grace.

        For signal handlers: it takes no lock that the interrupted code may hold.
        """
        self._drains_requested += 1
        self._inbox.put(None)

    def close(self) -> None:
        """Record what is pending, register the worker as gone, and stop the thread."""
        self._closing = True
        self._inbox.put(None)
        self.join()

    # Read by the thread of the probes.

    @property
    def accepts_jobs(self) -> bool:
        """Whether the ledger confirmed lately that the worker is ready or busy."""
        return self._registration.accepts_jobs

    # The thread itself.

    def run(self) -> None:
        """The body of the thread."""
        try:
            self._supervise()
        except BaseException:  # without this thread no lease is renewed, and no drain completes
            self._log.critical("thread_ended", thread=self.name, exc_info=True)
            self._fail()

    def _supervise(self) -> None:
        while not self._closing:
            now = time.monotonic()
            for step in (
                self._begin_drain,
                self._update_ledger,
                self._enforce_limits,
                self._detect_stall,
                self._stop_when_drained,
            ):
                try:
                    step(now)
                except Exception:  # the other steps do not depend on this one
                    self._log.exception("supervision_failed")
            self.last_round_at = time.monotonic()
            self._wait(DRAIN_CHECK_EVERY_S if self._drain_until is not None else CHECK_EVERY_S)
        self._shut_down(time.monotonic() + SHUTDOWN_TIMEOUT_S)

    def _wait(self, timeout_s: float) -> None:
        try:
            received = self._inbox.get(timeout=timeout_s)
        except Empty:
            return
        if received is not None:
            self._pending.append(received)

    def _update_ledger(self, now: float) -> None:
        """Make every call of the ledger that is due, the most urgent first."""
        if self._retry_at is not None and now < self._retry_at:
            return
        try:
            for step in (self._renew, self._record_pending, self._register):
                try:
                    step(now)
                except TemporaryError:
                    raise
                except Exception:  # such as a record that cannot be decoded: the registration does not depend on it
                    self._log.exception("supervision_failed")
        except TemporaryError as error:
            if self._unavailable_since is None:
                self._log.warning("ledger_away", detail=error.detail)
                self._unavailable_since = now
            self._retry_at = now + RETRY_EVERY_S
        else:
            if self._unavailable_since is not None:
                self._log.info("ledger_back")
                self._postpone_overdue(time.monotonic() - self._unavailable_since)
            self._unavailable_since = self._retry_at = None

    def _postpone_overdue(self, unavailable_s: float) -> None:
        """Run time excludes how long the child may have waited for the ledger (`child/progress.py`)."""
        running = self._current
        if running is not None and running.overdue_at is not None:
            running.overdue_at += unavailable_s

    def _record_pending(self, _now: float) -> None:
        """Record the pending reports. One that fails permanently is dropped: the expired lease ends its attempt."""
        while self._pending:
            try:
                self._record_first()
            except TemporaryError:
                raise
            except Exception:
                self._log.exception("report_failed", **self._pending[0].attempt.about)
            self._pending.pop(0)

    def _record_first(self) -> None:
        attempt, transition = self._pending[0].attempt, self._pending[0].transition
        if transition is not None:
            end = self._ledger.run(transition)
            self._log.warning("attempt_ended_for_child", transition=transition.script, ended=end, **attempt.about)
            self._pending[0] = PendingReport(attempt, None)
        if attempt.is_watched:
            self._send_event(attempt, self._ledger.job(attempt.id))

    def _send_event(self, attempt: Attempt, record: JobRecord | None) -> None:
        """Send Celery's event from the event loop. A drain waits for that."""

        def send() -> None:
            try:
                attempt.send_final_event(record)
            finally:
                self._unsent_events.discard(attempt)

        self._unsent_events.add(attempt)
        self._in_loop(send)

    def _renew(self, now: float) -> None:
        running = self._current
        if running is None or now < running.renew_at:
            return
        status = self._ledger.run(calls.renew(running.attempt.id, token=running.attempt.token))
        running.renew_at = now + RENEW_EVERY_S
        if status is LeaseStatus.OK:
            running.revoked_at = None
        elif status is LeaseStatus.CANCEL or running.confirmed:
            running.revoked_at = running.revoked_at or now
        running.confirmed = running.confirmed or status is not LeaseStatus.LOST
        if running.confirmed and running.overdue_at is None:
            record = self._ledger.job(running.attempt.id)
            if record is not None:
                running.overdue_at = now + record.run_timeout + self._interrupt_grace_s

    def _register(self, now: float) -> None:
        state = self._gate.state
        if state is WorkerState.READY and self._current is not None:
            state = WorkerState.BUSY
        self._registration.update(state, now)

    def _enforce_limits(self, now: float) -> None:
        """Kill the child if the job must not continue and the engine did not stop by itself."""
        running = self._current
        if running is None:
            return
        overdue_at = math.inf if running.overdue_at is None else running.overdue_at + self._memory.paused_s
        if now > overdue_at and self._unavailable_since is None:
            self._kill_child(running, KillReason.OVERDUE)
        elif running.revoked_at is not None and now > running.revoked_at + self._interrupt_grace_s:
            self._kill_child(running, KillReason.INTERRUPTED)
        elif self._drain_until is not None and now > self._drain_until:
            self._kill_child(running, KillReason.DRAINED)

    def _kill_child(self, running: _RunningAttempt, reason: KillReason) -> None:
        # Under the lock the child cannot be given another job that would die instead of this one.
        with self._changing:
            if self._current is not running or running.attempt.kill_reason is not None:
                return
            running.attempt.kill_reason = reason
            kill_child(running.attempt.worker_pid)
        self._log.warning("child_ended", reason=reason, **running.attempt.about)

    def _detect_stall(self, now: float) -> None:
        """End the process when it is ready, Redis is available, and Celery requests no message.

        Observed once, after an outage of Redis of 21 s: Celery kept a request reserved that its child had never
        received, and requests no other message until that one has finished. The process is started again by Kubernetes
        or `darkroom up`; the ledger requeues the job.
        """
        if self._worker is None:
            return
        asked_at = self._worker.consumer.asked_at
        idle = self._gate.state is WorkerState.READY and self._current is None and self._unavailable_since is None
        if not idle or asked_at != self._asked_at:
            self._asked_at, self._stalled_s = asked_at, 0.0
        else:
            # Not the whole time since the last round: the process may have been stopped.
            self._stalled_s += min(now - self.last_round_at, 2 * CHECK_EVERY_S)
        if self._stalled_s > STALLED_AFTER_S and not self.has_failed:
            self._fail()  # first: a fault of the report must not keep the worker
            self._log.critical(
                "consumer_stalled",
                seconds=round(self._stalled_s),
                reserved=[request.id for request in celery_state.reserved_requests],
                handed_over=[repr(result) for result in list(self._worker.pool._pool._cache.values())],
                stack=traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0]),
            )

    def _fail(self) -> None:
        """End the process with the exit status of one that must be started again."""
        self.has_failed = True
        celery_state.should_terminate = FAILED
        self._in_loop(lambda: None)

    def _begin_drain(self, now: float) -> None:
        if self._drains_requested == self._drains_seen:
            return
        again = self._drains_seen > 0
        self._drains_seen = self._drains_requested
        self._drain_until = now if again else now + self._drain_grace_s
        self._gate.draining = True
        self._in_loop(self._gate.update)
        self._log.info("draining", again=again, grace_s=self._drain_grace_s)

    def _stop_when_drained(self, now: float) -> None:
        if self._drain_until is None or self._stopping or self._worker is None:
            return
        idle = self._gate.is_shut and not celery_state.reserved_requests
        is_reporting = self._unsent_events or not self._inbox.empty()
        if (not idle or is_reporting) and now < self._drain_until + FORCED_STOP_AFTER_S:
            return
        self._stopping = True
        if self._worker.pool is not None and not (idle and self._gate.child_up):
            self._worker.pool.kill()  # it loads, or hangs, and Celery would wait for it
        if idle:
            celery_state.should_stop = EX_OK
        else:
            celery_state.should_terminate = EX_OK
        self._in_loop(lambda: None)

    def _in_loop(self, action: object) -> None:
        if self._worker is not None and self._worker.hub is not None:
            self._worker.hub.call_soon(action)

    def _shut_down(self, until: float) -> None:
        while True:
            while not self._inbox.empty():
                self._wait(0)
            try:
                self._record_pending(math.inf)
                self._registration.remove()
            except TemporaryError as error:
                if time.monotonic() > until:
                    self._log.warning("shutdown_incomplete", reports=len(self._pending), detail=error.detail)
                    return
                time.sleep(RETRY_EVERY_S)
            else:
                return

"""What a worker says to the ledger while it lives, and the one thread of the parent that says it.

The `Watch` registers the worker and says so again before that is forgotten, renews the lease of the job that the child
runs, ends a child that does not stop where it should, books what a dead child could not, and sees a drain through. When
Redis goes away it stays, and catches up later. Where Celery takes no messages any more, it ends the process.

The parent's other thread is Celery's event loop. This thread hands it what only the loop may do (`Hub.call_soon`); the
loop hands over, as mail, what may block.
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
from darkroom import logs, transitions
from darkroom.errors import TemporaryError
from darkroom.ledger import JobRecord, Ledger, Patience
from darkroom.queues import Foreign
from darkroom.supervision import FAILED
from darkroom.transitions import Call, DroppedMessages, Ended, Standing, WorkerState

from darkroom_worker.attempt import Attempt, Sentence
from darkroom_worker.child_memory import ChildMemory
from darkroom_worker.health import TAKING
from darkroom_worker.readiness import Gate, kill_child

if TYPE_CHECKING:
    from celery.apps.worker import Worker

TICK_S = 1.0
"""How often it looks. A state that lasts less is not told: short jobs must not cost calls of their own."""

DRAIN_TICK_S = 0.05
"""How often it looks while it drains, so that the process ends as soon as its job has."""

RENEW_EVERY_S = transitions.LEASE_MS / 3000

WATCH_PATIENCE = Patience(timeout_s=2.5, retries=1)
"""A connection may be dead without a sign of it, so that only the time-out shows it. A renewal is due after a third of
the lease: with this time-out it can be sent three times more before the lease lapses.
"""

TELL_EVERY_S = transitions.WORKER_TTL_MS / 3000

RETRY_EVERY_S = 1.0
"""How long it lets Redis be after it did not answer."""

COLD_STOP_AFTER_S = 5.0
"""A drain that still waits so long after its grace, for a message that no child will take, is cut short."""

STALLED_AFTER_S = 60.0
"""How long the worker may be ready, with Redis there, and ask for no message. It asks each second; the event loop may
be held up for half a minute by a connection that gives no sign (`socket_timeout`).
"""

FAREWELL_S = 10.0
"""How long the end of the process waits for Redis to take what is still to be booked. Past that, the lease lapses."""


@dataclass(frozen=True)
class Identity:
    """Who a worker is. `name` is this process' alone, `pod` what Kubernetes, or the host, calls the machine."""

    name: str
    pod: str
    pool: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Booking:
    """What is left to do for an attempt that did not complete its job: the end that its child cannot make, if there is
    one, and Celery's event, which follows from the job's record then.
    """

    attempt: Attempt
    ending: Call[Ended] | None


@dataclass
class _Run:
    """The attempt that the child runs, and what is known of it. Times are the monotonic clock's.

    `confirmed`: the ledger knew the token at least once; before, the child may not have claimed yet. `disturbed_at`:
    when the ledger first said that the job is cancelled or another's; the child hears that at its next step.
    """

    attempt: Attempt
    renew_at: float
    confirmed: bool = False
    disturbed_at: float | None = None
    overdue_at: float | None = None


class Watch(threading.Thread):
    """Lives from `start` to `close`. Where it ends before, `has_failed`, and so does the process."""

    def __init__(
        self,
        identity: Identity,
        ledger: Ledger,
        gate: Gate,
        memory: ChildMemory,
        *,
        drain_grace_s: float,
        interrupt_grace_s: float,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._identity, self._ledger, self._gate, self._memory = identity, ledger, gate, memory
        self._drain_grace_s, self._interrupt_grace_s = drain_grace_s, interrupt_grace_s
        self._log = logs.logger(__name__)
        self._program: Worker | None = None
        self._mail: SimpleQueue[Booking | None] = SimpleQueue()
        self._bookings: list[Booking] = []
        self._unreported: set[Attempt] = set()
        self._current: _Run | None = None
        self._changing = threading.Lock()
        self._dropped = 0
        self._dropped_reason = Foreign.NOT_A_MESSAGE
        self._dropped_op = 0
        self._report_at = 0.0
        self._report: DroppedMessages | None = None
        self._told: WorkerState | None = None
        self._tell_at = 0.0
        self._told_at = -math.inf
        self.went_round_at = time.monotonic()
        self._asked_at: float | None = None
        self._stalled_s = 0.0
        self._away_since: float | None = None
        self._away_until: float | None = None
        self._drains_asked = 0
        self._drains_seen = 0
        self._drain_until: float | None = None
        self._stopping = False
        self._closing = False
        self.has_failed = False

    # What the event loop's thread calls.

    def bind(self, program: Worker) -> None:
        """The worker program that a drain stops."""
        self._program = program

    def attempt_began(self, attempt: Attempt) -> None:
        with self._changing:
            self._current = _Run(attempt, renew_at=time.monotonic() + RENEW_EVERY_S)

    def attempt_ended(self, attempt: Attempt) -> None:
        with self._changing:
            if self._current is not None and self._current.attempt is attempt:
                self._current = None

    def book(self, attempt: Attempt, ending: Call[Ended] | None) -> None:
        """End an attempt in place of the child that cannot, and emit its event: now, or when Redis is back."""
        if ending is not None or attempt.is_watched:
            self._mail.put(Booking(attempt, ending))

    def message_dropped(self, reason: Foreign) -> None:
        """A message on the pool's list was no job's: that is reported with the next heartbeat."""
        with self._changing:
            self._dropped += 1
            self._dropped_reason = reason

    def drain(self) -> None:
        """Stop taking jobs, let the running one go on for the grace, then stop. Asked again, the grace is over.

        For signal handlers: it takes no lock that the interrupted code may hold.
        """
        self._drains_asked += 1
        self._mail.put(None)

    def close(self) -> None:
        """Book what is left, say that the worker is gone, and end."""
        self._closing = True
        self._mail.put(None)
        self.join()

    # What the probes' thread reads.

    @property
    def takes_jobs(self) -> bool:
        """Whether the ledger confirmed lately that the worker is ready or busy."""
        is_recent = time.monotonic() - self._told_at < transitions.WORKER_TTL_MS / 1000
        return is_recent and self._told in TAKING

    # The thread itself.

    def run(self) -> None:
        try:
            self._watch()
        except BaseException:  # whatever it is: without this thread no lease is renewed, and no drain is seen through
            self._log.critical("thread_ended", thread=self.name, exc_info=True)
            self._fail()

    def _watch(self) -> None:
        while not self._closing:
            now = time.monotonic()
            for duty in (self._begin_drain, self._say, self._judge, self._end_where_stalled, self._stop_when_drained):
                try:
                    duty(now)
                except Exception:  # the worker is not let alone because of one of them
                    self._log.exception("watch_failed")
            self.went_round_at = time.monotonic()
            self._wait(DRAIN_TICK_S if self._drain_until is not None else TICK_S)
        self._say_farewell(time.monotonic() + FAREWELL_S)

    def _wait(self, timeout_s: float) -> None:
        try:
            mail = self._mail.get(timeout=timeout_s)
        except Empty:
            return
        if mail is not None:
            self._bookings.append(mail)

    def _say(self, now: float) -> None:
        """Everything that is due to the ledger, the most urgent first."""
        if self._away_until is not None and now < self._away_until:
            return
        try:
            for step in (self._renew, self._book, self._tell):
                try:
                    step(now)
                except TemporaryError:
                    raise
                except Exception:  # as for a record that cannot be read: the heartbeat does not depend on it
                    self._log.exception("watch_failed")
        except TemporaryError as error:
            if self._away_since is None:
                self._log.warning("ledger_away", detail=error.detail)
                self._away_since = now
            self._away_until = now + RETRY_EVERY_S
        else:
            if self._away_since is not None:
                self._log.info("ledger_back")
                self._postpone_overdue(time.monotonic() - self._away_since)
            self._away_since = self._away_until = None

    def _postpone_overdue(self, away_s: float) -> None:
        """The child may have waited for the ledger as long as this thread did: that is no run time (`Steps`)."""
        run = self._current
        if run is not None and run.overdue_at is not None:
            run.overdue_at += away_s

    def _book(self, _now: float) -> None:
        """Make the bookings. One that fails for good is dropped: the lease ends its attempt."""
        while self._bookings:
            try:
                self._book_first()
            except TemporaryError:
                raise
            except Exception:
                self._log.exception("booking_failed", **self._bookings[0].attempt.about)
            self._bookings.pop(0)

    def _book_first(self) -> None:
        attempt, ending = self._bookings[0].attempt, self._bookings[0].ending
        if ending is not None:
            ended = self._ledger.run(ending)
            self._log.warning("attempt_ended_for_child", transition=ending.script, ended=ended, **attempt.about)
            self._bookings[0] = Booking(attempt, None)
        if attempt.is_watched:
            self._emit(attempt, self._ledger.job(attempt.id))

    def _emit(self, attempt: Attempt, record: JobRecord | None) -> None:
        """Have the event loop emit an event. A drain waits for that."""

        def report() -> None:
            try:
                attempt.report(record)
            finally:
                self._unreported.discard(attempt)

        self._unreported.add(attempt)
        self._in_loop(report)

    def _renew(self, now: float) -> None:
        run = self._current
        if run is None or now < run.renew_at:
            return
        standing = self._ledger.run(transitions.renew(run.attempt.id, token=run.attempt.token))
        run.renew_at = now + RENEW_EVERY_S
        if standing is Standing.OK:
            run.disturbed_at = None
        elif standing is Standing.CANCEL or run.confirmed:
            run.disturbed_at = run.disturbed_at or now
        run.confirmed = run.confirmed or standing is not Standing.LOST
        if run.confirmed and run.overdue_at is None:
            record = self._ledger.job(run.attempt.id)
            if record is not None:
                run.overdue_at = now + record.run_timeout + self._interrupt_grace_s

    def _tell(self, now: float) -> None:
        state = self._gate.state
        if state is WorkerState.READY and self._current is not None:
            state = WorkerState.BUSY
        self._report_dropped(now)
        if state is self._told and now < self._tell_at and self._report is None:
            return
        self._ledger.run(self._registration(state, self._report))
        self._report = None
        if state is not self._told:
            self._log.info("state", worker=self._identity.name, state=state)
        self._told, self._tell_at, self._told_at = state, now + TELL_EVERY_S, now

    def _report_dropped(self, now: float) -> None:
        """Make a report of dropped messages, if one is due. One that the ledger did not confirm is repeated."""
        if self._report is not None or not self._dropped or now < self._report_at:
            return
        with self._changing:
            count, reason, self._dropped = self._dropped, self._dropped_reason, 0
        self._dropped_op += 1
        self._report_at = now + TELL_EVERY_S
        self._report = DroppedMessages(self._dropped_op, count, reason)
        self._log.warning("foreign_messages_dropped", count=count, reason=reason)

    def _registration(self, state: WorkerState, dropped: DroppedMessages | None = None) -> Call[str]:
        who = self._identity
        return transitions.worker(who.name, pool=who.pool, state=state, pod=who.pod, models=who.models, dropped=dropped)

    def _judge(self, now: float) -> None:
        """End the child where the job may not go on and the engine did not stop by itself."""
        run = self._current
        if run is None:
            return
        overdue_at = math.inf if run.overdue_at is None else run.overdue_at + self._memory.paused_s
        if now > overdue_at and self._away_since is None:
            self._end_child(run, Sentence.OVERDUE)
        elif run.disturbed_at is not None and now > run.disturbed_at + self._interrupt_grace_s:
            self._end_child(run, Sentence.INTERRUPTED)
        elif self._drain_until is not None and now > self._drain_until:
            self._end_child(run, Sentence.DRAINED)

    def _end_child(self, run: _Run, sentence: Sentence) -> None:
        # Under the lock the child cannot be given another job that would die in this one's place.
        with self._changing:
            if self._current is not run or run.attempt.sentence is not None:
                return
            run.attempt.sentence = sentence
            kill_child(run.attempt.worker_pid)
        self._log.warning("child_ended", reason=sentence, **run.attempt.about)

    def _end_where_stalled(self, now: float) -> None:
        """End the process when it is ready, Redis is available, and Celery requests no message.

        Observed once, after an outage of Redis of 21 s: Celery kept a request reserved that its child had never
        received, and requests no other message until that one has finished. Kubernetes or `darkroom up` starts the
        process again; the ledger requeues the job.
        """
        if self._program is None:
            return
        asked_at = self._program.consumer.asked_at
        waits = self._gate.state is WorkerState.READY and self._current is None and self._away_since is None
        if not waits or asked_at != self._asked_at:
            self._asked_at, self._stalled_s = asked_at, 0.0
        else:
            # Not the whole time since the last look: this process may have been stopped.
            self._stalled_s += min(now - self.went_round_at, 2 * TICK_S)
        if self._stalled_s > STALLED_AFTER_S and not self.has_failed:
            self._fail()  # first: no fault of the report keeps the worker
            self._log.critical(
                "consumer_stalled",
                seconds=round(self._stalled_s),
                reserved=[request.id for request in celery_state.reserved_requests],
                handed_over=[repr(result) for result in list(self._program.pool._pool._cache.values())],
                stack=traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0]),
            )

    def _fail(self) -> None:
        """End the process, with the status of one that is to be started anew."""
        self.has_failed = True
        celery_state.should_terminate = FAILED
        self._in_loop(lambda: None)

    def _begin_drain(self, now: float) -> None:
        if self._drains_asked == self._drains_seen:
            return
        again = self._drains_seen > 0
        self._drains_seen = self._drains_asked
        self._drain_until = now if again else now + self._drain_grace_s
        self._gate.draining = True
        self._in_loop(self._gate.update)
        self._log.info("draining", again=again, grace_s=self._drain_grace_s)

    def _stop_when_drained(self, now: float) -> None:
        if self._drain_until is None or self._stopping or self._program is None:
            return
        idle = self._gate.is_shut and not celery_state.reserved_requests
        is_reporting = self._unreported or not self._mail.empty()
        if (not idle or is_reporting) and now < self._drain_until + COLD_STOP_AFTER_S:
            return
        self._stopping = True
        if self._program.pool is not None and not (idle and self._gate.child_up):
            self._program.pool.kill()  # it loads, or hangs, and would be waited for
        if idle:
            celery_state.should_stop = EX_OK
        else:
            celery_state.should_terminate = EX_OK
        self._in_loop(lambda: None)

    def _in_loop(self, action: object) -> None:
        if self._program is not None and self._program.hub is not None:
            self._program.hub.call_soon(action)

    def _say_farewell(self, until: float) -> None:
        while True:
            while not self._mail.empty():
                self._wait(0)
            try:
                self._book(math.inf)
                self._report_dropped(math.inf)
                if self._told is not None:
                    self._ledger.run(self._registration(WorkerState.GONE, self._report))
            except TemporaryError as error:
                if time.monotonic() > until:
                    self._log.warning("left_unsaid", bookings=len(self._bookings), detail=error.detail)
                    return
                time.sleep(RETRY_EVERY_S)
            else:
                return

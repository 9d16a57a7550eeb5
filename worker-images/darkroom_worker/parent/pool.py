"""When a worker takes messages: only while its child has the engines loaded.

Celery's parent says "ready" and pops a message while its child still loads; a death in between leaves the job waiting
though others could have run it. So the worker starts without its queue. The pool of children (`ChildPool`) tells the
`QueueGate` when a child is up, which is after its models are loaded, and when one ended; the gate adds the queue and
cancels it. A message that Redis popped while the queue was being cancelled is put back by kombu, and one that was lost
on the way is pushed again by the ledger's sweep.

All of this happens in the thread of the parent's event loop, but `Gate.draining`, which the watch sets.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool
from darkroom import logs
from darkroom.backoff import Backoff
from darkroom.ledger.calls import AttemptEnd, WorkerState

from darkroom_worker.child.memory import ChildMemory

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu.asynchronous import Hub

EXIT_FAULT = 77
"""How a child ends itself when a model does not load, or its device is at fault. No other end of it has this status."""

MAX_FAULTS = 2
"""Faults in a row that take the worker out: the first may be chance, and one broken GPU must not eat the backlog."""

PROBE_BACKOFF = Backoff(first_s=5.0, longest_s=300.0)
"""How long a worker that is out waits until it starts a child to prove itself; each that fails is one more failure."""

EXIT_POLL_S = 0.02
"""How often a child is looked for that has closed its pipe and is not ended yet: it takes milliseconds."""


class QueueGate:
    """Whether the queue is consumed, and why not.

    Only evidence about the worker itself takes it out as `faulty`: a child that cannot be started, a model that does
    not load, a device that reports a fault, a proof run that fails (`proof.py`). It takes no message then, but it is
    not out for good: after a pause it starts a child, and is back when that one has proven itself. What a job does to
    its child is charged to the job; the next child proves itself before it takes another.
    """

    def __init__(self, queue: str, memory: ChildMemory, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._memory = queue, memory
        self._clock = clock
        self._log = logs.logger(__name__)
        self._consumer: Consumer | None = None
        self._consuming = False
        self._child_up = False
        self._faults = 0
        self._probe_at: float | None = None
        self._probes = PROBE_BACKOFF.pauses()
        self._suspects: set[str] | None = None
        self.draining = False

    @property
    def state(self) -> WorkerState:
        """What the worker is, whether or not it runs a job just now."""
        if self.draining:
            return WorkerState.DRAINING
        if self.is_faulty:
            return WorkerState.FAULTY
        return WorkerState.READY if self._child_up else WorkerState.STARTING

    @property
    def is_faulty(self) -> bool:
        return self._probe_at is not None

    @property
    def suspects(self) -> frozenset[str] | None:
        """The models whose jobs ended a child, for the next child, which is to prove itself. None for the first."""
        return None if self._suspects is None else frozenset(self._suspects)

    @property
    def child_up(self) -> bool:
        return self._child_up

    @property
    def is_shut(self) -> bool:
        """Whether no message can come in any more: the queue is not consumed, or there is no connection."""
        return not self._consuming or self._consumer is None or self._consumer.connection is None

    @property
    def starts_children(self) -> bool:
        """A probe begins when the pool next looks for missing children, which it does every five seconds."""
        return not self.draining and (self._probe_at is None or self._clock() >= self._probe_at)

    def bind(self, consumer: Consumer) -> None:
        """The consumer whose queue this is. It consumes nothing yet."""
        self._consumer = consumer

    def on_child_up(self) -> None:
        """The models are loaded and, if the child replaced another one, it has proven itself."""
        if self.is_faulty:
            self._log.info("recovered")
            self._faults = 0
        self._child_up, self._probe_at, self._probes = True, None, PROBE_BACKOFF.pauses()
        self.update()

    def on_child_end(self, exit_status: int) -> None:
        """A child that ends before it was up could not load its models, whatever the reason: a fault as well."""
        was_up, self._child_up = self._child_up, False
        self._suspects = (self._suspects or set()) | ({self._memory.model} if self._memory.model else set())
        self._memory.end_attempt()
        if not self.draining and (exit_status == EXIT_FAULT or not was_up):
            self._count_fault()
        self.update()

    def on_child_not_started(self, error: OSError) -> None:
        """The system refused another child, as where the disk is full or no process id is left."""
        self._log.error("child_not_started", error=str(error))
        self._count_fault()
        self.update()

    def _count_fault(self) -> None:
        self._faults += 1
        if self._faults >= MAX_FAULTS:
            pause_s = next(self._probes)
            self._probe_at = self._clock() + pause_s
            self._log.error("faulty", faults=self._faults, probed_in_s=pause_s)
        else:
            self._log.error("fault", in_a_row=self._faults)

    def on_answer(self, answer: str) -> None:
        """The child ended an attempt, and says how: the end and, behind a colon, why the attempt failed."""
        if answer == AttemptEnd.COMPLETED:
            self._faults = 0
            self._suspects = None if self._suspects is None else set()

    def update(self) -> None:
        """Add or cancel the queue, as the state asks."""
        wanted = self.state is WorkerState.READY
        if wanted == self._consuming or self._consumer is None:
            return
        self._consuming = wanted
        if self._consumer.connection is None:
            # Between two connections. The next one consumes what is selected.
            queues = self._consumer.app.amqp.queues
            queues.select_add(queues[self._queue]) if wanted else queues.deselect(self._queue)
        elif wanted:
            self._consumer.add_task_queue(self._queue)
        else:
            self._consumer.cancel_task_queue(self._queue)


class WatchedPool(AsynPool):  # type: ignore[misc]  # Celery has no types
    """The pool of one child, which tells the gate what becomes of it."""

    gate: QueueGate

    def register_with_event_loop(self, hub: Hub) -> None:
        """Celery limits the time to load of every child but the first, which starts before the event loop."""
        super().register_with_event_loop(hub)
        hub.call_later(self._proc_alive_timeout, self._end_what_loads, list(self._pool))

    def _end_what_loads(self, processes: list[Any]) -> None:
        for process in processes:
            if process in self._pool and process.inqW_fd not in self._all_inqueues:
                kill_child(process.pid)

    def on_process_alive(self, pid: int) -> None:
        """A child said that it is up: its initialiser, which loads the models, has returned."""
        super().on_process_alive(pid)
        if any(process.pid == pid for process in self._pool):
            self.gate.on_child_up()

    def _event_process_exit(self, hub: Hub, process: Any) -> None:
        """A child closed its end of a pipe, as processes do shortly before the kernel has them as ended.

        Celery looks once, and then not for five seconds.
        """
        super()._event_process_exit(hub, process)
        if process in self._pool:
            hub.call_later(EXIT_POLL_S, self._event_process_exit, hub, process)

    def _join_exited_workers(self, *args: Any, **kwargs: Any) -> list[int]:
        exit_statuses: list[int] = super()._join_exited_workers(*args, **kwargs)
        for exit_status in exit_statuses:
            self.gate.on_child_end(exit_status)
        return exit_statuses

    def _repopulate_pool(self, exit_statuses: list[int]) -> None:
        """Start the child that is missing. Celery's worker would end with an error where the system refuses one."""
        if not self.gate.starts_children:
            return
        try:
            super()._repopulate_pool(exit_statuses)
        except OSError as error:
            for process in [each for each in self._pool if each.pid is None]:
                self._pool.remove(process)
                self._process_cleanup_queues(process)
            self.gate.on_child_not_started(error)


class ChildPool(TaskPool):  # type: ignore[misc]  # as above
    """Celery's prefork execution pool with a `WatchedPool` in it."""

    Pool = WatchedPool

    def on_start(self) -> None:
        """Start the child. Whatever it says is read by the event loop, later."""
        super().on_start()
        self._pool.gate = self.app.gate

    def did_start_ok(self) -> bool:
        """Always: a child that ended at once is a fault like any other, and replaced."""
        return True

    def kill(self) -> None:
        """End the child, which may be loading and would not listen to anything softer. For any thread."""
        for process in list(self._pool._pool):
            kill_child(process.pid)


def kill_child(pid: int) -> None:
    """End a child of this process. Until the pool has taken note of its end the id is nobody else's."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

"""When a worker consumes its queue: only while its child has the engines loaded.

Celery's parent reports "ready" and pops a message while its child still loads; if the child dies before it is up, the
job waits although other workers could run it. So the worker starts without its queue. The pool of children
(`ChildPool`) reports to the `QueueGate` when a child is up, which is after its models are loaded, and when one exits;
the gate adds the queue to the consumer and cancels it. kombu puts a message back that Redis popped while the queue was
being cancelled; the ledger's sweep pushes a lost one again.

All of this happens in the thread of the parent's event loop, except `QueueGate.draining`, which the supervisor sets.
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
"""The exit status of a child whose model does not load or whose device is faulty. It exits with it for no other reason.
"""

MAX_FAULTS = 2
"""Consecutive faults that make the worker faulty: the first may be chance, and one broken GPU must not fail the
backlog.
"""

SELF_TEST_BACKOFF = Backoff(first_s=5.0, longest_s=300.0)
"""The pause before a faulty worker starts a child that tests itself."""

EXIT_POLL_S = 0.02
"""How often the pool checks for the exit of a child that has closed its pipe: it takes milliseconds."""


class QueueGate:
    """The state of the worker, and whether it consumes the queue.

    Only evidence about the worker itself makes it `faulty`: a child that cannot be started, a model that does not load,
    a device that reports a fault, a self-test that fails (`child/self_test.py`). A faulty worker consumes no message;
    after a pause it starts a child, and recovers when that child passes its self-test. What a job does to its child
    counts as a failed attempt of the job; the next child tests itself before it runs another job.
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
        self._probes = SELF_TEST_BACKOFF.pauses()
        self._suspects: set[str] | None = None
        self.draining = False

    @property
    def state(self) -> WorkerState:
        """The state of the worker, whether or not it runs a job."""
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
        """The models whose jobs ended a child. The next child tests itself, these models last. None for the first
        child.
        """
        return None if self._suspects is None else frozenset(self._suspects)

    @property
    def child_up(self) -> bool:
        return self._child_up

    @property
    def is_shut(self) -> bool:
        """Whether no further message can arrive: the queue is not consumed, or there is no connection."""
        return not self._consuming or self._consumer is None or self._consumer.connection is None

    @property
    def starts_children(self) -> bool:
        """Whether the pool may start a child. It checks for missing children every five seconds."""
        return not self.draining and (self._probe_at is None or self._clock() >= self._probe_at)

    def bind(self, consumer: Consumer) -> None:
        """Set the consumer of the queue. It consumes nothing yet."""
        self._consumer = consumer

    def on_child_up(self) -> None:
        """The models are loaded and, if the child replaced another one, it has passed its self-test."""
        if self.is_faulty:
            self._log.info("recovered")
            self._faults = 0
        self._child_up, self._probe_at, self._probes = True, None, SELF_TEST_BACKOFF.pauses()
        self.update()

    def on_child_end(self, exit_status: int) -> None:
        """A child exited. One that exits before it was up could not load its models, which is a fault too."""
        was_up, self._child_up = self._child_up, False
        self._suspects = (self._suspects or set()) | ({self._memory.model} if self._memory.model else set())
        self._memory.end_attempt()
        if not self.draining and (exit_status == EXIT_FAULT or not was_up):
            self._count_fault()
        self.update()

    def on_child_not_started(self, error: OSError) -> None:
        """The operating system refused to start a child, such as because the disk is full or no process id is left."""
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

    def on_attempt_finished(self, returned: str) -> None:
        """The child finished an attempt. `returned` is how, and after a colon why the attempt failed."""
        if returned == AttemptEnd.COMPLETED:
            self._faults = 0
            self._suspects = None if self._suspects is None else set()

    def update(self) -> None:
        """Add the queue to the consumer or cancel it, as the state requires."""
        wanted = self.state is WorkerState.READY
        if wanted == self._consuming or self._consumer is None:
            return
        self._consuming = wanted
        if self._consumer.connection is None:
            # Between two connections. The next one consumes the selected queues.
            queues = self._consumer.app.amqp.queues
            queues.select_add(queues[self._queue]) if wanted else queues.deselect(self._queue)
        elif wanted:
            self._consumer.add_task_queue(self._queue)
        else:
            self._consumer.cancel_task_queue(self._queue)


class WatchedPool(AsynPool):  # type: ignore[misc]  # Celery has no types
    """The pool of one child, which reports the start and the exit of the child to the gate."""

    gate: QueueGate

    def register_with_event_loop(self, hub: Hub) -> None:
        """Limit the time to load of the first child too, which starts before the event loop."""
        super().register_with_event_loop(hub)
        hub.call_later(self._proc_alive_timeout, self._kill_loading, list(self._pool))

    def _kill_loading(self, processes: list[Any]) -> None:
        for process in processes:
            if process in self._pool and process.inqW_fd not in self._all_inqueues:
                kill_child(process.pid)

    def on_process_alive(self, pid: int) -> None:
        """A child reported that it is up: its initialiser, which loads the models, has returned."""
        super().on_process_alive(pid)
        if any(process.pid == pid for process in self._pool):
            self.gate.on_child_up()

    def _event_process_exit(self, hub: Hub, process: Any) -> None:
        """A child closed its end of a pipe, as processes do shortly before the kernel reports their exit.

        Celery checks once, and then not for five seconds.
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
        """Start the missing child. Celery's worker would exit with an error if the operating system refuses it."""
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
        """Start the child. The event loop reads what it reports later."""
        super().on_start()
        self._pool.gate = self.app.gate

    def did_start_ok(self) -> bool:
        """Return True: a child that exited at once is a fault like any other, and is replaced."""
        return True

    def kill(self) -> None:
        """Kill the child, which may be loading and would ignore other signals. For any thread."""
        for process in list(self._pool._pool):
            kill_child(process.pid)


def kill_child(pid: int) -> None:
    """Kill a child of this process. Its id is not reused until the pool has collected its exit status."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

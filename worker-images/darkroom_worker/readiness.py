"""When a worker takes messages: only while its child has the engines loaded.

Celery's parent says "ready" and pops a message while its child still loads; a death in between leaves the job waiting
though others could have run it. So the worker starts without its queue. The pool of children (`ChildPool`) tells the
`Gate` when a child is up, which is after its models are loaded, and when one ended; the gate adds the queue and cancels
it. A message that Redis popped while the queue was being cancelled is put back by kombu, and one that was lost on the
way is pushed again by the ledger's sweep.

All of this happens in the thread of the parent's event loop, but `Gate.draining`, which the watch sets.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool
from darkroom import logs
from darkroom.jobs import ErrorKind
from darkroom.transitions import Ended, WorkerState

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu.asynchronous import Hub

EXIT_FAULT = 77
"""How a child ends itself when a model does not load, or its device is at fault. No other end of it has this status."""

MAX_FAULTS = 2
"""Faults in a row that take the worker out: the first may be chance, and one broken GPU must not eat the backlog."""

MAX_FAILED_JOBS = 3
"""Jobs in a row whose attempts here failed, none completed between them, that take the worker out: its device may be at
fault without saying so. Different ones: one job that fails at every attempt says more of itself, and whoever sends such
a job must not be able to take a worker out with it. Three is a guess: two may be chance, and each costs an attempt."""

FAILURES = frozenset({ErrorKind.TRANSIENT, ErrorKind.OUT_OF_MEMORY})
"""Why an attempt failed that the child ended itself, where it counts: invalid input, a cancel and a deadline are the
caller's, and after a fault of its own the child ends."""

EXIT_POLL_S = 0.02
"""How often a child is looked for that has closed its pipe and is not ended yet: it takes milliseconds."""


class Gate:
    """Whether the queue is consumed, and why not.

    A worker that is out as `faulty` stays: it takes nothing, starts no child, and shows as what it is until somebody
    looks at its machine and restarts it.
    """

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._log = logs.logger(__name__)
        self._consumer: Consumer | None = None
        self._consuming = False
        self._child_up = False
        self._faults = 0
        self._failed_jobs: set[str] = set()
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
        return self._faults >= MAX_FAULTS or len(self._failed_jobs) >= MAX_FAILED_JOBS

    @property
    def child_up(self) -> bool:
        return self._child_up

    @property
    def is_shut(self) -> bool:
        """Whether no message can come in any more: the queue is not consumed, or there is no connection."""
        return not self._consuming or self._consumer is None or self._consumer.connection is None

    @property
    def starts_children(self) -> bool:
        return not (self.draining or self.is_faulty)

    def bind(self, consumer: Consumer) -> None:
        """The consumer whose queue this is. It consumes nothing yet."""
        self._consumer = consumer

    def on_child_up(self) -> None:
        self._child_up = True
        self.update()

    def on_child_end(self, exit_status: int) -> None:
        """A child that ends before it was up could not load its models, whatever the reason: a fault as well."""
        was_up, self._child_up = self._child_up, False
        if not self.draining and (exit_status == EXIT_FAULT or not was_up):
            self._faults += 1
            self._log.error("fault", in_a_row=self._faults, faulty=self.is_faulty)
        self.update()

    def on_answer(self, job_id: str, answer: str) -> None:
        """The child ended an attempt, and says how: the end and, behind a colon, why the attempt failed.

        A completed job clears the worker. What neither completed nor failed, such as a cancelled job, says nothing.
        """
        ended, _, failure = answer.partition(": ")
        if ended == Ended.COMPLETED:
            self._faults = 0
            self._failed_jobs.clear()
        elif failure in FAILURES:
            self.on_failed_run(job_id)

    def on_failed_run(self, job_id: str) -> None:
        """An attempt failed, or ended with its child."""
        if self.draining:
            return
        self._failed_jobs.add(job_id)
        self._log.warning("failed_run", job=job_id, jobs_in_a_row=len(self._failed_jobs), faulty=self.is_faulty)
        self.update()

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

    gate: Gate

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
        if self.gate.starts_children:
            super()._repopulate_pool(exit_statuses)


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

"""The Celery app of a worker: its one task, and every setting that the way of a job relies on.

Two processes have it. The parent (`program.py`) takes messages from the pool's queue and watches over the child; the
child (`run.py`) has the engines and runs the task. The child is started afresh (`spawn`, since CUDA does not survive a
fork), so the app travels as what it was made of (`WorkerApp.__reduce__`) and is made again there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import billiard.util
from celery import Celery, Task, signals
from darkroom import collector, logs
from darkroom.catalogue.models import Model
from darkroom.ledger import queues
from darkroom.ledger.address import RedisAddress
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import ConnectionOptions, connect
from kombu import Exchange, Queue

from darkroom_worker.child.memory import ChildMemory
from darkroom_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from darkroom_worker.child.run import Runner
    from darkroom_worker.parent.pool import QueueGate
    from darkroom_worker.parent.registration import Supervisor

CONNECTION_OPTIONS: dict[str, Any] = {
    # redis-py's own default of 5 s is near the second that kombu's BRPOP blocks; without any, a frozen Redis would hold
    # the event loop for ever.
    "socket_timeout": 30.0,
    "socket_connect_timeout": 3.0,
    "socket_keepalive": True,
    # A BRPOP on a connection that died silently is given up after a second more than this, looked for as often.
    "health_check_interval": 10,
}

START_ALLOWANCE_S = 60
"""For the child's interpreter and the libraries of its engines, before the models load."""

COLLECT_EVERY = 10_000
"""Objects that the parent makes before garbage is looked for among them: a few megabytes at most."""

QUIET_LOGGERS = ("celery.worker.strategy", "celery.app.trace")
"""Two lines a job, of which ours (`run.py`) say more."""


class RunJob(Task):  # type: ignore[misc]  # Celery has no types
    """The one task: run the job that a message names. Its return value, a word or two, is for Flower to show."""

    name = queues.TASK_NAME
    Request = "darkroom_worker.parent.attempt:Attempt"

    def run(self, *_: object) -> str:
        """Messages of records before version 3 have an argument, the event that asked for the job."""
        request = self.request
        runner: Runner = self.app.runner
        return runner.run_job(request.id, token=request.token, traceparent=request.get("traceparent"))


class WorkerApp(Celery):  # type: ignore[misc]  # as above
    """Celery's app with what its parts need to find: `gate` and `watch` in the parent, `runner` in the child.

    `suspects` are the models whose jobs ended an earlier child: this one is to prove that it works. None for the first.
    """

    settings: WorkerSettings
    models: tuple[Model, ...]
    worker_name: str
    memory: ChildMemory
    suspects: Collection[str] | None
    gate: QueueGate
    watch: Supervisor
    runner: Runner

    def ledger(self, options: ConnectionOptions = ConnectionOptions()) -> Ledger:  # noqa: B008 - frozen
        """A ledger on connections of its own, opened when they are first used."""
        return Ledger(connect(self.settings.redis_url.get_secret_value(), options), self.settings.namespace)

    def __reduce__(self) -> tuple[Any, ...]:
        return make_app, (self.settings, self.models, self.worker_name, self.memory, self.gate.suspects)


def make_app(
    settings: WorkerSettings,
    models: tuple[Model, ...],
    worker_name: str,
    memory: ChildMemory,
    suspects: Collection[str] | None = None,
) -> WorkerApp:
    """The app of the worker that is registered as `worker_name`, in its parent and in its child."""
    app = WorkerApp("darkroom.worker", set_as_current=False)
    app.settings, app.models, app.worker_name = settings, models, worker_name
    app.memory, app.suspects = memory, suspects
    app.conf.update(configuration(settings, models))
    app.register_task(RunJob())
    signals.setup_logging.connect(lambda **_: _configure_logs(settings.pool), weak=False, dispatch_uid="darkroom-logs")
    signals.worker_ready.connect(_settle, weak=False, dispatch_uid="darkroom-ready")
    signals.worker_process_init.connect(lambda **_: _open(app), weak=False, dispatch_uid="darkroom-open")
    signals.worker_process_shutdown.connect(lambda **_: app.runner.close(), weak=False, dispatch_uid="darkroom-close")
    return app


def configuration(settings: WorkerSettings, models: tuple[Model, ...]) -> dict[str, Any]:
    """Celery's configuration. ARCHITECTURE.md tells what was seen without each of these."""
    queue = queues.queue_name(settings.pool)
    return {
        **RedisAddress.parse(settings.redis_url.get_secret_value()).broker_settings,
        "broker_transport_options": {
            **queues.transport_options(settings.namespace, settings.pool),
            **CONNECTION_OPTIONS,
            # What was taken is remembered in this process alone. kombu would also write it into `unacked`, and out of
            # it: two more round trips a job, for a visibility timeout that recovers nothing here (`sweep.lua` and
            # `reap.lua` do). And of a message that a full Redis refused to take in there, nothing would be left.
            "ack_emulation": False,
        },
        "broker_transport": "darkroom_worker.parent.transport:Transport",
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_queues": [Queue(queue, Exchange(""), routing_key=queue)],
        "task_default_queue": queue,
        "task_default_exchange": "",
        "task_create_missing_queues": False,
        "accept_content": ["json"],
        "task_serializer": "json",
        "event_serializer": "json",
        # The ledger says what becomes of a job whose worker was lost; a message that came back would only be dropped.
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_concurrency": 1,
        "worker_pool": "darkroom_worker.parent.pool:ChildPool",
        "worker_pool_start_method": "spawn",
        "worker_consumer": "darkroom_worker.parent.transport:GatheringConsumer",
        # With the default of 4 s a replaced child that loads longer is killed again and again. The models of a pool
        # load one after another.
        "worker_proc_alive_timeout": START_ALLOWANCE_S + sum(model.load_timeout_s for model in models),
        # Flower switches them on while it runs (its option `enable_events`); before, nobody would read them, and
        # telling three of every job took the parent as long as all else.
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # Never reached by SIGTERM: `program.py` says why.
        "worker_soft_shutdown_timeout": settings.drain_grace_s,
    }


def _configure_logs(pool: str) -> None:
    logs.configure("worker", pool=pool)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    of_processes = billiard.util.get_logger()
    of_processes.handlers.clear()
    of_processes.propagate = True
    of_processes.setLevel(logging.WARNING)
    of_processes.addFilter(_handled)


def _handled(record: logging.LogRecord) -> bool:
    """The end of a child is no error: `QueueGate` counts the faults, and the attempt is finished at once."""
    if "exited with" in str(record.msg) and record.levelno == logging.ERROR:
        record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
    return True


def _settle(**_: object) -> None:
    """The parent has loaded everything. Its garbage is small and may wait; that of a child may hold a GPU's memory."""
    collector.spare_what_is_loaded(look_every=COLLECT_EVERY)


def _open(app: WorkerApp) -> None:
    """The child loads its models, before it tells the parent that it is up."""
    from darkroom_worker.child.run import open_runner

    app.runner = open_runner(app)
    collector.spare_what_is_loaded()

"""The Celery app of a worker: its one task, and the settings that the processing of a job relies on.

Two processes have it. The parent (`parent/process.py`) consumes the pool's queue and supervises the child; the child
(`child/runner.py`) has the engines and runs the task. The child is spawned, since CUDA does not survive a fork, so the
app is pickled as the arguments that it was made from (`WorkerApp.__reduce__`) and made again in the child.
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
    from darkroom_worker.child.runner import Runner
    from darkroom_worker.parent.pool import QueueGate
    from darkroom_worker.parent.supervisor import Supervisor

CONNECTION_OPTIONS: dict[str, Any] = {
    # redis-py's default of 5 s is near the second that kombu's BRPOP blocks; without a timeout, a frozen Redis would
    # block the event loop for ever.
    "socket_timeout": 30.0,
    "socket_connect_timeout": 3.0,
    "socket_keepalive": True,
    # A BRPOP on a connection that died silently ends a second after this interval.
    "health_check_interval": 10,
}

START_ALLOWANCE_S = 60
"""For the child's interpreter and the libraries of its engines, before the models load."""

COLLECT_EVERY = 10_000
"""Objects that the parent allocates between two garbage collections: a few megabytes at most."""

QUIET_LOGGERS = ("celery.worker.strategy", "celery.app.trace")
"""They log two lines for each job; `child/runner.py` logs more about it."""


class RunJob(Task):  # type: ignore[misc]  # Celery has no types
    """The one task: run the job that a message names. Flower shows its return value, one or two words."""

    name = queues.TASK_NAME
    Request = "darkroom_worker.parent.attempt:Attempt"

    def run(self, *_: object) -> str:
        """Messages of records before version 3 have an argument, the event that asked for the job."""
        request = self.request
        runner: Runner = self.app.runner
        return runner.run_job(request.id, token=request.token, traceparent=request.get("traceparent"))


class WorkerApp(Celery):  # type: ignore[misc]  # as above
    """Celery's app with the objects of its process: `gate` and `supervisor` in the parent, `runner` in the child.

    `suspects` are the models whose jobs ended an earlier child: this one tests itself first. None for the first child.
    """

    settings: WorkerSettings
    models: tuple[Model, ...]
    worker_name: str
    memory: ChildMemory
    suspects: Collection[str] | None
    gate: QueueGate
    supervisor: Supervisor
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
    """Make the app of the worker that is registered as `worker_name`, in its parent or in its child."""
    app = WorkerApp("darkroom.worker", set_as_current=False)
    app.settings, app.models, app.worker_name = settings, models, worker_name
    app.memory, app.suspects = memory, suspects
    app.conf.update(configuration(settings, models))
    app.register_task(RunJob())
    signals.setup_logging.connect(lambda **_: _configure_logs(settings.pool), weak=False, dispatch_uid="darkroom-logs")
    signals.worker_ready.connect(_tune_collector, weak=False, dispatch_uid="darkroom-ready")
    signals.worker_process_init.connect(lambda **_: _open(app), weak=False, dispatch_uid="darkroom-open")
    signals.worker_process_shutdown.connect(lambda **_: app.runner.close(), weak=False, dispatch_uid="darkroom-close")
    return app


def configuration(settings: WorkerSettings, models: tuple[Model, ...]) -> dict[str, Any]:
    """Celery's configuration. docs/decisions.md describes what was observed without these settings."""
    queue = queues.queue_name(settings.pool)
    return {
        **RedisAddress.parse(settings.redis_url.get_secret_value()).broker_settings,
        "broker_transport_options": {
            **queues.transport_options(settings.namespace, settings.pool),
            **CONNECTION_OPTIONS,
            # Unacknowledged messages are kept in this process alone. kombu would also write them to `unacked` and
            # delete them from it: two more round trips for each job, for a visibility timeout that recovers nothing
            # here (`sweep.lua` and `reap.lua` do). A message that a full Redis refuses there would be lost.
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
        # The ledger decides about a job whose worker was lost; a redelivered message would only be dropped.
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_concurrency": 1,
        "worker_pool": "darkroom_worker.parent.pool:ChildPool",
        "worker_pool_start_method": "spawn",
        "worker_consumer": "darkroom_worker.parent.transport:BatchingConsumer",
        # With the default of 4 s a replaced child that loads longer is killed repeatedly. The models of a pool load one
        # after another.
        "worker_proc_alive_timeout": START_ALLOWANCE_S + sum(model.load_timeout_s for model in models),
        # Flower enables them while it runs (its option `enable_events`). Three events for each job take the parent as
        # long as all its other work.
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # SIGTERM never reaches it: see `parent/process.py`.
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


def _tune_collector(**_: object) -> None:
    """The parent has loaded everything. It collects garbage rarely; a child does not, since its garbage may hold GPU
    memory.
    """
    collector.freeze_loaded_objects(collect_every=COLLECT_EVERY)


def _open(app: WorkerApp) -> None:
    """Load the models, before the child reports to the parent that it is up."""
    from darkroom_worker.child.runner import open_runner

    app.runner = open_runner(app)
    collector.freeze_loaded_objects()

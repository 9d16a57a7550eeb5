"""The worker's parent process: Celery's worker, whose signals start a drain of our own.

Celery's soft shutdown sleeps through its whole timeout inside the signal handler, even if the job finishes after a
second, and blocks the event loop meanwhile; its warm shutdown waits without a limit. So the signals go to the
supervisor, which starts Celery's warm shutdown when nothing runs. The children ignore SIGTERM, which a process manager
may send to the whole group: `__main__.py` sets REMAP_SIGTERM for that.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal

from celery.apps.worker import Worker, install_cry_handler
from darkroom.catalogue.models import Model
from darkroom.ledger import queues
from darkroom.probes import ProbeServer
from darkroom.supervision import FAILED

from darkroom_worker.celery_app import WorkerApp, make_app
from darkroom_worker.child.memory import ChildMemory
from darkroom_worker.parent.pool import QueueGate
from darkroom_worker.parent.probes import respond
from darkroom_worker.parent.registration import Registration, WorkerIdentity
from darkroom_worker.parent.remote_control import replace_commands
from darkroom_worker.parent.supervisor import SUPERVISOR_TIMEOUTS, Supervisor
from darkroom_worker.parent.transport import message_dropped
from darkroom_worker.settings import WorkerSettings

SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class DrainingWorker(Worker):  # type: ignore[misc]  # Celery has no types
    """Celery's worker, whose shutdown signals start a drain."""

    app: WorkerApp

    def install_platform_tweaks(self, worker: object) -> None:
        """Celery's hook for signal handlers. SIGUSR1 still prints all stacks."""
        for number in SHUTDOWN_SIGNALS:
            signal.signal(number, lambda *_: self.app.supervisor.drain())
        install_cry_handler()


def run_worker(settings: WorkerSettings, models: tuple[Model, ...]) -> int:
    """Run until a signal, or until the supervisor fails, and return the exit status.

    A faulty worker keeps running and tests itself. Raises SettingError if the port of the probes is in use.
    """
    pod = platform.node()
    queue = queues.queue_name(settings.pool)
    identity = WorkerIdentity(
        name=f"{pod}-{os.getpid()}-{secrets.token_hex(4)}",
        pod=pod,
        pool=settings.pool,
        models=tuple(model.name for model in models),
    )
    memory = ChildMemory(identity.models)
    app = make_app(settings, models, identity.name, memory)
    app.gate = QueueGate(queue, memory)
    ledger = app.ledger(SUPERVISOR_TIMEOUTS)
    registration = Registration(identity, ledger)
    app.supervisor = Supervisor(
        registration,
        ledger,
        app.gate,
        memory,
        drain_grace_s=settings.drain_grace_s,
        interrupt_grace_s=settings.interrupt_grace_s,
    )
    message_dropped.connect(
        lambda reason, **_: registration.message_dropped(reason), weak=False, dispatch_uid="darkroom-dropped"
    )
    replace_commands(app.ledger(), app.supervisor.drain)
    worker = DrainingWorker(
        app=app,
        hostname=f"{settings.pool}@{identity.name}",
        exclude_queues=[queue],
        loglevel="WARNING",  # only for what billiard logs before logs are configured
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    app.gate.bind(worker.consumer)
    app.supervisor.bind(worker)
    if settings.probe_port is not None:
        probes = ProbeServer(
            lambda path: respond(path, app.supervisor),
            host=settings.host,
            port=settings.probe_port,
            variable="DARKROOM_PROBE_PORT",
        )
        probes.start()
    app.supervisor.start()
    try:
        worker.start()
    finally:
        app.supervisor.close()
    return FAILED if app.supervisor.has_failed else worker.exitcode or 0

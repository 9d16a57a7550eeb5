"""The worker's parent process: Celery's worker program, with a drain of our own on the signals that end it.

Celery's soft shutdown sleeps through its whole timeout inside the signal handler, though the job may end after a
second, and the event loop stands still meanwhile; its warm shutdown waits without a limit. So the signals go to the
watch, and Celery's warm shutdown comes when nothing runs. The children ignore SIGTERM, which a process manager may send
to the whole group: `__main__.py` sets REMAP_SIGTERM for that.
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
from darkroom_worker.parent.registration import SUPERVISOR_TIMEOUTS, Supervisor, WorkerIdentity
from darkroom_worker.parent.remote_control import replace_commands
from darkroom_worker.parent.transport import message_dropped
from darkroom_worker.settings import WorkerSettings

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class DrainingWorker(Worker):  # type: ignore[misc]  # Celery has no types
    """Celery's worker program, without its signal handlers."""

    app: WorkerApp

    def install_platform_tweaks(self, worker: object) -> None:
        """Celery's hook for signal handlers. SIGUSR1 goes on to show all stacks."""
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda *_: self.app.watch.drain())
        install_cry_handler()


def run_worker(settings: WorkerSettings, models: tuple[Model, ...]) -> int:
    """Run until a signal ends it, or the end of the watch; answers the exit status. A worker that is out as faulty goes
    on, and is probed.

    Raises SettingError where the port of the probes is taken.
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
    app.watch = Supervisor(
        identity,
        app.ledger(SUPERVISOR_TIMEOUTS),
        app.gate,
        memory,
        drain_grace_s=settings.drain_grace_s,
        interrupt_grace_s=settings.interrupt_grace_s,
    )
    message_dropped.connect(
        lambda reason, **_: app.watch.message_dropped(reason), weak=False, dispatch_uid="darkroom-dropped"
    )
    replace_commands(app.ledger(), app.watch.drain)
    program = DrainingWorker(
        app=app,
        hostname=f"{settings.pool}@{identity.name}",
        exclude_queues=[queue],
        loglevel="WARNING",  # only of what billiard says before logs are configured
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    app.gate.bind(program.consumer)
    app.watch.bind(program)
    if settings.probe_port is not None:
        probes = ProbeServer(
            lambda path: respond(path, app.watch),
            host=settings.host,
            port=settings.probe_port,
            variable="DARKROOM_PROBE_PORT",
        )
        probes.start()
    app.watch.start()
    try:
        program.start()
    finally:
        app.watch.close()
    return FAILED if app.watch.has_failed else program.exitcode or 0

"""The operator as a process: election, then kopf's watches, the control loop and the resync, until a signal.

While another process holds the Lease, this one waits and changes nothing. It exits, for Kubernetes to restart it, if
another process has acquired the Lease or kopf has failed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Coroutine, Iterable
from typing import Any, cast
from uuid import uuid4

import kopf
from darkroom.errors import DarkroomError
from darkroom.ledger.channels import Channels
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.logs import logger
from darkroom.supervision import vital

from darkroom_operator.control import ControlLoop
from darkroom_operator.handlers import Handlers, kopf_settings
from darkroom_operator.kubernetes.client import Cluster, connected
from darkroom_operator.kubernetes.election import Leadership
from darkroom_operator.kubernetes.resync import Resync
from darkroom_operator.kubernetes.state import ClusterState
from darkroom_operator.metrics import serving
from darkroom_operator.settings import OperatorSettings

STALL_S = 30.0
"""A loop without a completed round for so long hangs: a round has a timeout of 20 s."""

BACKLOG = "backlog "
"""The prefix of the ledger's message when a pool's backlog turns non-empty."""

CANCEL_AGAIN_S = 1.0

KOPF_SETTLES_S = 0.2
"""kopf sets its ready flag a moment before it installs its signal handlers."""

KOPF_STOP_TIMEOUT_S = 5.0
"""How long kopf may take to stop before it is cancelled."""

RETRY_S = 1.0

_log = logger(__name__)


class OperatorProcess:
    """The process. `run` returns its exit status."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._state = ClusterState()
        self._leadership: Leadership | None = None
        self._control: ControlLoop | None = None
        self._resync: Resync | None = None
        self._is_up = False

    async def run(self) -> int:
        """Run until a signal, and return 0, or until a failure that a restart may solve, and return 1."""
        settings = self._settings
        self._install_signal_handlers()
        redis = connect_async(settings.redis_url.get_secret_value())
        try:
            async with (
                connected(settings.watch_namespace) as cluster,
                serving(
                    self._state,
                    healthy=self._health,
                    ready=self._readiness,
                    host=settings.host,
                    port=settings.probe_port,
                ),
            ):
                ledger = AsyncLedger(redis, settings.namespace)
                return await self._run_elected(cluster, ledger, redis)
        finally:
            await redis.aclose()

    async def _run_elected(self, cluster: Cluster, ledger: AsyncLedger, redis: Any) -> int:
        identity = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        leadership = Leadership(cluster, identity=identity, lease_s=self._settings.election_lease_s)
        self._leadership = leadership
        ending = asyncio.Event()
        electing = vital(leadership.run(), name="election", may_end=lambda: ending.is_set() or leadership.lost.is_set())
        try:
            if not await self._unless_stopping(leadership.acquired.wait()):
                return 0
            return await self._lead(cluster, ledger, redis, leadership)
        finally:
            ending.set()
            await _ended([electing])
            await leadership.release()
            _log.info("stopped", identity=identity)

    async def _lead(self, cluster: Cluster, ledger: AsyncLedger, redis: Any, leadership: Leadership) -> int:
        state = self._state
        control = ControlLoop(
            cluster,
            ledger,
            state,
            leadership,
            tick_s=self._settings.reconcile_interval_s,
            replace_after_s=self._settings.replace_after_s,
            config_maps=self._settings.config_maps,
        )
        handlers = Handlers(state, control, leadership)
        resync = Resync(cluster, state, control, handlers)
        if not await self._unless_stopping(_first_resync(resync)):
            return 0
        self._control, self._resync = control, resync

        def on_message(_channel: str, payload: bytes) -> None:
            text = payload.decode()
            if text.startswith(BACKLOG):
                control.wake(text.removeprefix(BACKLOG))

        channels = Channels(redis, on_message=on_message, on_subscribed=lambda _channel: None)
        kopf_is_up, kopf_stop = asyncio.Event(), asyncio.Event()
        ending = asyncio.Event()
        beside = [
            vital(control.run(), name="control", may_end=ending.is_set),
            vital(control.reconcile_changes(), name="reconciliation", may_end=ending.is_set),
            vital(self._resync_periodically(resync), name="resync", may_end=ending.is_set),
            vital(channels.run(), name="channels", may_end=ending.is_set),
            asyncio.create_task(_listen(channels, ledger.keys.wake_channel), name="listen"),
            asyncio.create_task(self._reinstall_signal_handlers(kopf_is_up), name="signals"),
        ]
        watching = asyncio.create_task(
            kopf.operator(
                registry=handlers.registry(),
                settings=kopf_settings(),
                # Otherwise kopf reads the name of the process' user, and a numeric user in a container has none.
                identity=cast("Any", leadership.identity),  # kopf does not export the type, a `NewType` of `str`
                standalone=True,
                namespaces=[self._settings.watch_namespace],
                ready_flag=kopf_is_up,
                stop_flag=kopf_stop,
            ),
            name="kopf",
        )
        ends = [asyncio.create_task(end.wait(), name="end") for end in (leadership.lost, self._stopping)]
        try:
            await asyncio.wait([watching, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.set()
            # kopf waits for every task that was started while it ran, so the other tasks end first.
            await _ended([*beside, *ends])
            kopf_stop.set()
            await asyncio.wait([watching], timeout=KOPF_STOP_TIMEOUT_S)
            await _ended([watching])  # also needed if it was stopped before it was ready
        if not watching.cancelled() and watching.exception() is not None:
            _log.error("kopf_ended", exc_info=watching.exception())
            return 1
        return 1 if leadership.lost.is_set() else 0

    async def _reinstall_signal_handlers(self, kopf_is_up: asyncio.Event) -> None:
        """Replace kopf's signal handlers, so that the parts of the process stop in the right order."""
        await kopf_is_up.wait()
        await asyncio.sleep(KOPF_SETTLES_S)
        self._install_signal_handlers()
        self._is_up = True

    def _install_signal_handlers(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    async def _resync_periodically(self, resync: Resync) -> None:
        while True:
            await asyncio.sleep(self._settings.resync_s)
            if self._leadership is None or not self._leadership.held:
                continue
            try:
                await resync.read()
            except DarkroomError as error:
                _log.warning("resync_failed", error=error.detail)
            except Exception:  # the next resync may succeed
                _log.exception("resync_failed")

    async def _unless_stopping(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Whether the work completed before the process was to stop."""
        doing = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([doing, stopping], return_when=asyncio.FIRST_COMPLETED)
        done = doing.done() and not self._stopping.is_set()
        for task in (doing, stopping):
            task.cancel()
        await asyncio.wait([doing, stopping])
        return done

    def _health(self) -> tuple[int, dict[str, object]]:
        stalled = sorted(self._resync.stalled) if self._resync is not None else []
        if stalled:
            return 503, {"status": "deaf", "watches": stalled}
        if self._control is not None and time.monotonic() - self._control.last_round_at > STALL_S:
            return 503, {"status": "stalled"}
        return 200, {"status": "ok"}

    def _readiness(self) -> tuple[int, dict[str, object]]:
        if not self._is_up:
            return 503, {"status": "waiting for the Lease"}
        return 200, {"status": "ok"}


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks until they have ended: a library may swallow a cancellation during its cleanup."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


async def _first_resync(resync: Resync) -> None:
    while True:
        try:
            await resync.read(first=True)
        except DarkroomError as error:
            _log.warning("not_read_yet", error=error.detail)
            await asyncio.sleep(RETRY_S)
        else:
            return


async def _listen(channels: Channels, wake_channel: str) -> None:
    """Subscribe to the wake channel. While Redis is unavailable, the subscription follows later."""
    try:
        await channels.open([wake_channel])
    except DarkroomError as error:
        _log.warning("not_listening_yet", error=error.detail)

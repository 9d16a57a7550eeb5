"""The operator as a process: the election first, then kopf's watches, the loop and the resync, until a signal.

While another holds the Lease, this one waits and touches nothing. It ends, for Kubernetes to start it anew, where
another has taken the Lease or kopf has given up.
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
from darkroom_operator.kubernetes.world import ClusterState
from darkroom_operator.metrics import served
from darkroom_operator.settings import OperatorSettings

STALL_S = 30.0
"""A loop that has not gone round for so long hangs: a round ends within 20 s, whatever happens."""

BACKLOG = "backlog "
"""Begins what the ledger publishes when a pool's backlog is empty no more."""

CANCEL_AGAIN_S = 1.0

KOPF_SETTLES_S = 0.2
"""kopf says that it is up a moment before it takes the signals."""

KOPF_PATIENCE_S = 5.0
"""How long kopf may take to end; past that it is cancelled."""

RETRY_S = 1.0

_log = logger(__name__)


class OperatorProcess:
    """The whole process. `run` answers the exit status."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._world = ClusterState()
        self._leadership: Leadership | None = None
        self._control: ControlLoop | None = None
        self._resync: Resync | None = None
        self._is_up = False

    async def run(self) -> int:
        """Run until a signal (0), or until something that a new start cures (1)."""
        settings = self._settings
        self._take_signals()
        redis = connect_async(settings.redis_url.get_secret_value())
        try:
            async with (
                connected(settings.watch_namespace) as cluster,
                served(
                    self._world,
                    healthy=self._health,
                    ready=self._readiness,
                    host=settings.host,
                    port=settings.probe_port,
                ),
            ):
                ledger = AsyncLedger(redis, settings.namespace)
                return await self._take_part(cluster, ledger, redis)
        finally:
            await redis.aclose()

    async def _take_part(self, cluster: Cluster, ledger: AsyncLedger, redis: Any) -> int:
        identity = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        leadership = Leadership(cluster, identity=identity, lease_s=self._settings.election_lease_s)
        self._leadership = leadership
        ending = asyncio.Event()
        electing = vital(leadership.run(), name="election", may_end=lambda: ending.is_set() or leadership.lost.is_set())
        try:
            if not await self._first(leadership.acquired.wait()):
                return 0
            return await self._lead(cluster, ledger, redis, leadership)
        finally:
            ending.set()
            await _ended([electing])
            await leadership.release()
            _log.info("stopped", identity=identity)

    async def _lead(self, cluster: Cluster, ledger: AsyncLedger, redis: Any, leadership: Leadership) -> int:
        world = self._world
        control = ControlLoop(
            cluster,
            ledger,
            world,
            leadership,
            tick_s=self._settings.reconcile_interval_s,
            replace_after_s=self._settings.replace_after_s,
            config_maps=self._settings.config_maps,
        )
        handlers = Handlers(world, control, leadership)
        resync = Resync(cluster, world, control, handlers)
        if not await self._first(_until_read(resync)):
            return 0
        self._control, self._resync = control, resync

        def heard(_channel: str, payload: bytes) -> None:
            text = payload.decode()
            if text.startswith(BACKLOG):
                control.wake(text.removeprefix(BACKLOG))

        channels = Channels(redis, on_message=heard, on_subscribed=lambda _channel: None)
        kopf_is_up, kopf_stop = asyncio.Event(), asyncio.Event()
        ending = asyncio.Event()
        beside = [
            vital(control.run(), name="control", may_end=ending.is_set),
            vital(control.keep_in_force(), name="reconciliation", may_end=ending.is_set),
            vital(self._resync_for_ever(resync), name="resync", may_end=ending.is_set),
            vital(channels.run(), name="channels", may_end=ending.is_set),
            asyncio.create_task(_listen(channels, ledger.keys.wake_channel), name="listen"),
            asyncio.create_task(self._keep_signals(kopf_is_up), name="signals"),
        ]
        watching = asyncio.create_task(
            kopf.operator(
                registry=handlers.registry(),
                settings=kopf_settings(),
                # Without one kopf asks for the name of the process' user, and a numeric user in a container has none.
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
            # kopf waits for every task that was begun while it ran, so what runs beside it ends first.
            await _ended([*beside, *ends])
            kopf_stop.set()
            await asyncio.wait([watching], timeout=KOPF_PATIENCE_S)
            await _ended([watching])  # as it is where it was told to end before it was up
        if not watching.cancelled() and watching.exception() is not None:
            _log.error("kopf_ended", exc_info=watching.exception())
            return 1
        return 1 if leadership.lost.is_set() else 0

    async def _keep_signals(self, kopf_is_up: asyncio.Event) -> None:
        """kopf takes the signals when it starts; we take them back, to end in our own order."""
        await kopf_is_up.wait()
        await asyncio.sleep(KOPF_SETTLES_S)
        self._take_signals()
        self._is_up = True

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    async def _resync_for_ever(self, resync: Resync) -> None:
        while True:
            await asyncio.sleep(self._settings.resync_s)
            if self._leadership is None or not self._leadership.held:
                continue
            try:
                await resync.read()
            except DarkroomError as error:
                _log.warning("resync_failed", error=error.detail)
            except Exception:  # the next one may do better
                _log.exception("resync_failed")

    async def _first(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Whether it was done before the process was to stop."""
        doing = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([doing, stopping], return_when=asyncio.FIRST_COMPLETED)
        done = doing.done() and not self._stopping.is_set()
        for task in (doing, stopping):
            task.cancel()
        await asyncio.wait([doing, stopping])
        return done

    def _health(self) -> tuple[int, dict[str, object]]:
        deaf = sorted(self._resync.deaf) if self._resync is not None else []
        if deaf:
            return 503, {"status": "deaf", "watches": deaf}
        if self._control is not None and time.monotonic() - self._control.went_round > STALL_S:
            return 503, {"status": "stalled"}
        return 200, {"status": "ok"}

    def _readiness(self) -> tuple[int, dict[str, object]]:
        if not self._is_up:
            return 503, {"status": "waiting for the Lease"}
        return 200, {"status": "ok"}


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them until they have ended: a library may swallow a cancellation that comes while it cleans up."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


async def _until_read(resync: Resync) -> None:
    while True:
        try:
            await resync.read(first=True)
        except DarkroomError as error:
            _log.warning("not_read_yet", error=error.detail)
            await asyncio.sleep(RETRY_S)
        else:
            return


async def _listen(channels: Channels, wake_channel: str) -> None:
    """Hear of work. Where Redis is away, the channel opens when it is back."""
    try:
        await channels.open([wake_channel])
    except DarkroomError as error:
        _log.warning("not_listening_yet", error=error.detail)

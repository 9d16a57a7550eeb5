"""The courier: one asyncio process with eight loops and a subscription to Redis. Any number of them may run together.

The relay (`posting/relay.py`) posts jobs' events to the sink until they are applied. `posting/webhooks.py` posts them
to webhooks, and the notices (`posting/notices.py`) report subscriptions that were disabled. The upkeep (`upkeep.py`)
runs the ledger's timers, the archive (`archive.py`) writes finished jobs to the history, and retention (`retention.py`)
deletes them. `access.py` keeps the copy of tenants and keys in Redis, and `trail.py` stores the audit trail. A failure
of a loop is logged and the loop continues after a back-off, so that neither a bad job nor an unavailable Redis or
database ends the process. It ends on SIGTERM, after the posts in flight, or when a loop has ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
from darkroom.access.credentials import Credential
from darkroom.artifacts import ArtifactStore
from darkroom.backoff import Backoff
from darkroom.errors import DarkroomError
from darkroom.history.deletion import Deletion
from darkroom.history.lookup import Lookup
from darkroom.history.store import History
from darkroom.ledger.channels import Channels
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.logs import logger
from darkroom.supervision import vital
from darkroom.webhooks.client import GuardedClient

from darkroom_courier.access import AccessCopy
from darkroom_courier.archive import Archive
from darkroom_courier.health import Health, served
from darkroom_courier.metrics import CourierMetrics
from darkroom_courier.posting.notices import Notices
from darkroom_courier.posting.relay import Relay
from darkroom_courier.posting.sink import Sink
from darkroom_courier.posting.webhooks import WebhookPosts
from darkroom_courier.retention import Retention
from darkroom_courier.settings import CourierSettings
from darkroom_courier.trail import AuditTrail
from darkroom_courier.upkeep import Upkeep

ROUND_LIMIT_S = 20.0
"""The limit of one round of a loop: a Redis that accepts connections and does not answer is a failure too."""

LONGEST_PAUSE_S = 5.0
"""The longest pause of a loop that fails repeatedly: short, so that it continues soon after Redis is back."""

ROUND_TIMEOUT_S = 3.0
"""How long a round may take after SIGTERM, so that the items that it leased are posted and wait for no lease."""

FINISH_TIMEOUT_S = 10.0
"""How long posts in flight may take after SIGTERM. Kubernetes allows 30 s by default."""

_log = logger(__name__)


class Courier:
    """The whole process. `run` returns some time after `stop` was called."""

    def __init__(self, settings: CourierSettings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._health = Health(("relay", "webhooks", "notices", "upkeep", "archive", "retention", "access", "trail"))

    def stop(self) -> None:
        """Lease nothing more and finish the posts in flight."""
        self._stopping.set()

    async def run(self) -> None:
        """Raises SettingError where the database's driver is not installed."""
        settings = self._settings
        history = History(settings.database_url)
        redis = connect_async(settings.redis_url.get_secret_value())
        ledger = AsyncLedger(redis, settings.namespace)
        metrics = CourierMetrics(ledger)
        owner = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        limits = httpx.Limits(
            max_connections=settings.sink_concurrency, max_keepalive_connections=settings.sink_concurrency
        )
        try:
            async with (
                served(self._health, metrics, host=settings.host, port=settings.probe_port),
                httpx.AsyncClient(
                    limits=limits,
                    timeout=settings.sink_timeout_s,
                    follow_redirects=False,
                    trust_env=False,
                    headers={"user-agent": "darkroom-courier"},
                ) as client,
                GuardedClient(settings.webhook_allow, timeout_s=settings.delivery_timeout_s) as guarded,
            ):
                sink = Sink(client, settings)
                relay = Relay(ledger, sink, settings, owner=owner)
                webhooks = WebhookPosts(ledger, Lookup(ledger, history), guarded, metrics, settings, owner=owner)
                notices = Notices(ledger, sink, settings, owner=owner)
                upkeep = Upkeep(ledger, settings)
                archive = Archive(ledger, history, metrics, settings, owner=owner)
                retention = Retention(Deletion(ledger, history, ArtifactStore(settings.store)), settings)
                root = settings.root_key

                def on_file(fault: str | None) -> None:
                    metrics.tenants_file_read(is_valid=fault is None)
                    self._health.note("tenants_file", fault)

                access = AccessCopy(
                    ledger,
                    history,
                    root=None if root is None else Credential.parse(root.get_secret_value()),
                    file=settings.tenants_file,
                    on_file=on_file,
                )
                trail = AuditTrail(ledger, history)
                posting = (relay, webhooks, notices)
                wakes = {b"outbox": relay.wake, b"deliveries": webhooks.wake}

                def on_message(_channel: str, payload: bytes) -> None:
                    if payload in wakes:
                        wakes[payload]()

                def wake_all() -> None:
                    for each in posting:
                        each.wake()

                channels = Channels(redis, on_message=on_message, on_subscribed=lambda _channel: wake_all())
                loops = [
                    self._vital(self._loop("relay", relay.step), name="relay"),
                    self._vital(self._loop("webhooks", webhooks.step), name="webhooks"),
                    self._vital(self._loop("notices", notices.step), name="notices"),
                    self._vital(self._loop("upkeep", upkeep.step), name="upkeep"),
                    self._vital(self._loop("archive", archive.step), name="archive"),
                    self._vital(self._loop("retention", retention.step, needs_redis=False), name="retention"),
                    self._vital(self._loop("access", access.step), name="access"),
                    self._vital(self._loop("trail", trail.step), name="trail"),
                ]
                listening = self._vital(_listen(channels, ledger.keys.wake_channel), name="listen")
                _log.info("started", owner=owner, sink=settings.sink, namespace=settings.namespace)
                await self._stopping.wait()
                wake_all()
                await asyncio.wait(loops, timeout=ROUND_TIMEOUT_S)
                for task in (*loops, listening):
                    task.cancel()
                await asyncio.wait([*loops, listening])
                await asyncio.gather(*(each.finish(timeout_s=FINISH_TIMEOUT_S) for each in posting))
        finally:
            await history.aclose()
            await redis.aclose()
        _log.info("stopped", owner=owner)

    def _vital(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        return vital(work, name=name, may_end=self._stopping.is_set)

    async def _loop(self, name: str, step: Callable[[], Awaitable[bool]], *, needs_redis: bool = True) -> None:
        """Round after round. After a step that returns True the next one begins at once, otherwise after a pause.

        `needs_redis`: a round that did not fail has reached Redis.
        """
        backoff = Backoff(
            first_s=self._settings.poll_interval_s, longest_s=max(self._settings.poll_interval_s, LONGEST_PAUSE_S)
        )
        failures = 0
        while not self._stopping.is_set():
            pause_s = 0.0
            try:
                async with asyncio.timeout(ROUND_LIMIT_S):
                    more = await step()
                pause_s = 0.0 if more else self._settings.poll_interval_s
                failures = 0
            except DarkroomError as error:
                failures += 1
                _log.warning("round_failed", loop=name, error=error.detail)
            except TimeoutError:
                failures += 1
                _log.warning("round_failed", loop=name, error=f"took longer than {ROUND_LIMIT_S} s")
            except Exception:  # an unexpected failure must not end the loop; the next round may succeed
                failures += 1
                _log.exception("round_failed", loop=name)
            self._health.went_round(name, reached_redis=needs_redis and failures == 0)
            if failures:
                pause_s = backoff.after(failures)
            if pause_s:
                await self._pause(pause_s)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the courier is to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


async def _listen(channels: Channels, wake_channel: str) -> None:
    """Receive wakes from Redis. While it is unavailable the channel is opened as soon as it is back."""
    async with asyncio.TaskGroup() as group:
        group.create_task(channels.run(), name="channels")
        try:
            await channels.open([wake_channel])
        except DarkroomError as error:
            _log.warning("not_listening_yet", error=error.detail)

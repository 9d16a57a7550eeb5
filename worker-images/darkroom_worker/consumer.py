"""The parent's side of the queue broker, as Celery and kombu have it, with two of their habits changed.

Between two short jobs the parent's own work is what counts. What is taken, acknowledged and told stays the same; only
`celery_app.py` names these classes, to Celery.

- Celery tells what happens to a task, for Flower to see, in one message for each turn of its loop: three for every job.
  Here they are gathered.
- kombu makes a Redis client for each command, which takes longer than the command. Here one is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.worker.consumer import Consumer
from kombu.transport import redis as kombu_redis

TELL_EVENTS_EVERY_S = 0.25
"""How long what happens to tasks may wait to be told; as often as progress is. 24 together are told at once."""


class GatheringConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer, which tells what happens to tasks at most every TELL_EVENTS_EVERY_S."""

    _tell_at = 0.0

    def on_send_event_buffered(self) -> None:
        """An event waits to be told: that is put into the loop's calendar, unless it is in there."""
        now = time.monotonic()
        if self.hub is not None and now >= self._tell_at:
            # By the clock and not by a flag: a lost connection clears the calendar.
            self._tell_at = now + TELL_EVENTS_EVERY_S
            self.hub.call_later(TELL_EVENTS_EVERY_S, self._flush_events)

    def stop(self) -> None:
        """What is still to be told is told, before the connection goes."""
        self._flush_events()
        super().stop()


class Channel(kombu_redis.Channel):
    """kombu's channel, which keeps one client for its commands. A client may be used by several at once."""

    _kept: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The client that is given, or the one that is kept; a lost connection takes the pool that it was made for."""
        if client is None:
            if self._kept is None or self._kept.connection_pool is not self.pool:
                self._kept = self._create_client()  # type: ignore[no-untyped-call]
            client = self._kept
        yield client


class Transport(kombu_redis.Transport):
    """kombu's Redis transport, with that channel."""

    Channel = Channel

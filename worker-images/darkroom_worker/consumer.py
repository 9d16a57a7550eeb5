"""The parent's side of the queue broker, as Celery and kombu have it, with four of their habits changed.

Between two short jobs the parent's own work is what counts. What is consumed, acknowledged and emitted stays the same;
only `celery_app.py` names these classes, to Celery.

- Celery emits what happens to a task, for Flower, in one message for each turn of its loop: three for every job. Here
  they are gathered.
- kombu makes a Redis client for each command, which takes longer than the command. Here one is kept.
- A message that cannot be read ends Celery's event loop, and with it the worker. Here it is dropped, and the signal
  `message_dropped` is sent. Its content is neither logged nor kept: it may hold a prompt.
- When a connection is lost, kombu tries to put the messages that were not acknowledged back over that connection, and
  writes those that it cannot put back into a file in the temporary folder. Here neither is done: the ledger pushes a
  message again whose job was not claimed (`lua/sweep.lua`), and a running job does not need its message.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from celery.utils.dispatch import Signal
from celery.utils.log import get_logger
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer
from darkroom import queues
from darkroom.queues import Foreign
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

TELL_EVENTS_EVERY_S = 0.25
"""How long what happens to tasks may wait to be emitted; as often as progress is. 24 together are emitted at once."""

message_dropped = Signal(name="message_dropped", providing_args={"reason"})
"""Sent in the event loop's thread after a message was dropped; `reason` is a `Foreign`."""


LOST = tuple(
    kind
    for kind in (*kombu_redis.Transport.connection_errors, *kombu_redis.Transport.channel_errors)
    if kind is not KeyError
)
"""The errors after which kombu connects again. It counts KeyError among them, which many a message provokes."""


class GatheringConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer. It emits events at most every TELL_EVENTS_EVERY_S, and survives any message."""

    _tell_at = 0.0

    def on_send_event_buffered(self) -> None:
        """An event waits to be emitted: that is put into the loop's calendar, unless it is in there."""
        now = time.monotonic()
        if self.hub is not None and now >= self._tell_at:
            # By the clock and not by a flag: a lost connection clears the calendar.
            self._tell_at = now + TELL_EVENTS_EVERY_S
            self.hub.call_later(TELL_EVENTS_EVERY_S, self._flush_events)

    @property
    def asked_at(self) -> float | None:
        """When the pool's list was last asked for a message, by the monotonic clock. None: not yet on this connection.

        It is asked each second at least while the queue is consumed and no job runs.
        """
        return None if self.task_consumer is None else self.task_consumer.channel.asked_at

    def stop(self) -> None:
        """What is still to be emitted is emitted, before the connection goes."""
        self._flush_events()
        super().stop()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's handler of messages. Its exceptions end no worker: `foreign_message` checks few of the headers."""
        receive = super().create_task_handler(*args, **kwargs)

        def receive_or_drop(message: Any) -> None:
            try:
                receive(message)
            except LOST:
                raise
            except Exception:
                self._drop(message)

        return receive_or_drop

    def on_unknown_message(self, _body: object, message: Any) -> None:
        self._drop(message)

    def on_unknown_task(self, _body: object, message: Any, _error: BaseException) -> None:
        self._drop(message)

    def on_invalid_task(self, _body: object, message: Any, _error: BaseException) -> None:
        self._drop(message)

    def on_decode_error(self, message: Any, _error: BaseException) -> None:
        """Also for messages of the control channel."""
        self._drop(message)

    def _drop(self, message: Any) -> None:
        if not message.acknowledged:
            message.reject_log_error(get_logger(__name__), self.connection_errors)
        for request in [each for each in celery_state.reserved_requests if each._message is message]:
            celery_state.task_ready(request)  # else it counts as one that runs, and keeps its place in the pool
            self.controller._quick_release()
        message_dropped.send(sender=self, reason=Foreign.REFUSED)


class Channel(kombu_redis.Channel):
    """kombu's channel, which keeps one client for its commands. A client may be used by several at once."""

    do_restore = False

    _kept: Any = None

    @property
    def asked_at(self) -> float | None:
        """As for the consumer, which has one channel."""
        sent_at: float | None = self._brpop_sent_at
        return sent_at

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The client that is given, or the one that is kept; a lost connection takes the pool that it was made for."""
        if client is None:
            if self._kept is None or self._kept.connection_pool is not self.pool:
                self._kept = self._create_client()  # type: ignore[no-untyped-call]
            client = self._kept
        yield client

    def _brpop_read(self, **options: Any) -> Any:
        """Read a message from a pool's list."""
        return self._read(lambda: super(Channel, self)._brpop_read(**options))  # type: ignore[no-untyped-call]

    def _receive(self) -> Any:
        """Read messages of the control channel."""
        return self._read(super()._receive)

    def _handle_message(self, client: Any, reply: Any) -> dict[str, Any]:
        """Empty what kombu could not read: it would log its content, and a stack trace."""
        payload: dict[str, Any] = super()._handle_message(client, reply)  # type: ignore[no-untyped-call]
        if bytes_to_str(payload["type"]).endswith("message"):
            try:
                loads(bytes_to_str(payload["data"]))
            except Exception:
                message_dropped.send(sender=self, reason=Foreign.NOT_JSON)
                payload["data"] = None
        return payload

    def _read(self, read: Callable[[], Any]) -> Any:
        """What cannot be read as JSON raises here, also from the hooks by which kombu reads dates and the like."""
        try:
            return read()
        except (Empty, *LOST):
            raise
        except Exception:
            message_dropped.send(sender=self, reason=Foreign.NOT_JSON)
            return False


class Transport(kombu_redis.Transport):
    """kombu's Redis transport, with that channel. It delivers what can be read."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        judge = queues.foreign_message if queues.is_queue(queue) else queues.foreign_command
        reason = judge(message)
        if reason is not None:
            message_dropped.send(sender=self, reason=reason)
            return
        super()._deliver(message, queue)  # type: ignore[no-untyped-call]

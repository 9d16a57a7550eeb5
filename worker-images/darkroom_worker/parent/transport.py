"""The parent's side of the queue broker (Redis): Celery's consumer and kombu's transport, with four changes.

Between two short jobs the work of the parent itself limits the throughput. What is consumed, acknowledged and sent
stays the same; only `celery_app.py` names these classes, to Celery.

- Celery sends the events of a task, for Flower, in one message for each turn of its loop: three for every job. Here
  they are batched.
- kombu makes a Redis client for each command, which takes longer than the command. Here one client is kept.
- A message that cannot be decoded ends Celery's event loop, and with it the worker. Here it is dropped, and the signal
  `message_dropped` is sent. Its content is neither logged nor stored: it may contain a prompt.
- When a connection is lost, kombu tries to restore the unacknowledged messages over that connection, and writes those
  that it cannot restore to a file in the temporary folder. Here neither is done: the ledger pushes a message again
  whose job was not claimed (`lua/attempts/sweep.lua`), and a running job does not need its message.
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
from darkroom.ledger import queues
from darkroom.ledger.queues import Foreign
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

SEND_EVENTS_EVERY_S = 0.25
"""How long events of tasks are batched: the interval of progress entries. 24 events are sent at once."""

message_dropped = Signal(name="message_dropped", providing_args={"reason"})
"""Sent in the event loop's thread after a message was dropped. `reason` is a `Foreign`."""


CONNECTION_LOST = tuple(
    kind
    for kind in (*kombu_redis.Transport.connection_errors, *kombu_redis.Transport.channel_errors)
    if kind is not KeyError
)
"""The errors after which kombu reconnects. kombu includes KeyError, which an invalid message may raise."""


class BatchingConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer. It sends events at most every SEND_EVENTS_EVERY_S, and drops messages that raise."""

    _send_at = 0.0

    def on_send_event_buffered(self) -> None:
        """Schedule the sending of buffered events, unless it is scheduled."""
        now = time.monotonic()
        if self.hub is not None and now >= self._send_at:
            # By the clock and not by a flag: a lost connection clears the loop's timers.
            self._send_at = now + SEND_EVENTS_EVERY_S
            self.hub.call_later(SEND_EVENTS_EVERY_S, self._flush_events)

    @property
    def asked_at(self) -> float | None:
        """Time of the last request for a message, on the monotonic clock. None before the first on a connection.

        While the queue is consumed and no job runs, a request is sent at least each second.
        """
        return None if self.task_consumer is None else self.task_consumer.channel.asked_at

    def stop(self) -> None:
        """Send the buffered events before the connection is closed."""
        self._flush_events()
        super().stop()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's handler of messages. Its exceptions do not end the worker: `foreign_message` checks few of the
        headers.
        """
        receive = super().create_task_handler(*args, **kwargs)

        def receive_or_drop(message: Any) -> None:
            try:
                receive(message)
            except CONNECTION_LOST:
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
        """A message could not be decoded. Also called for messages of the control channel."""
        self._drop(message)

    def _drop(self, message: Any) -> None:
        if not message.acknowledged:
            message.reject_log_error(get_logger(__name__), self.connection_errors)
        for request in [each for each in celery_state.reserved_requests if each._message is message]:
            celery_state.task_ready(request)  # otherwise it counts as running and occupies the pool
            self.controller._quick_release()
        message_dropped.send(sender=self, reason=Foreign.REFUSED)


class Channel(kombu_redis.Channel):
    """kombu's channel, which keeps one client for its commands. Concurrent use of a client is safe."""

    do_restore = False

    _own_client: Any = None

    @property
    def asked_at(self) -> float | None:
        """Time of the last request for a message, on the monotonic clock."""
        sent_at: float | None = self._brpop_sent_at
        return sent_at

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The given client, or the channel's own, which is replaced together with the connection pool."""
        if client is None:
            if self._own_client is None or self._own_client.connection_pool is not self.pool:
                self._own_client = self._create_client()  # type: ignore[no-untyped-call]
            client = self._own_client
        yield client

    def _brpop_read(self, **options: Any) -> Any:
        """Read a message from a pool's list."""
        return self._read(lambda: super(Channel, self)._brpop_read(**options))  # type: ignore[no-untyped-call]

    def _receive(self) -> Any:
        """Read messages of the control channel."""
        return self._read(super()._receive)

    def _handle_message(self, client: Any, reply: Any) -> dict[str, Any]:
        """Empty a message that kombu cannot decode: it would log the content and a stack trace."""
        payload: dict[str, Any] = super()._handle_message(client, reply)  # type: ignore[no-untyped-call]
        if bytes_to_str(payload["type"]).endswith("message"):
            try:
                loads(bytes_to_str(payload["data"]))
            except Exception:
                message_dropped.send(sender=self, reason=Foreign.NOT_JSON)
                payload["data"] = None
        return payload

    def _read(self, read: Callable[[], Any]) -> Any:
        """Drop a message that is not JSON, or that kombu's hooks for dates and other types cannot decode."""
        try:
            return read()
        except (Empty, *CONNECTION_LOST):
            raise
        except Exception:
            message_dropped.send(sender=self, reason=Foreign.NOT_JSON)
            return False


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with that channel. It delivers valid messages only."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        reason_of = queues.foreign_message if queues.is_queue(queue) else queues.foreign_command
        reason = reason_of(message)
        if reason is not None:
            message_dropped.send(sender=self, reason=reason)
            return
        super()._deliver(message, queue)  # type: ignore[no-untyped-call]

"""Redis channels: the messages that the ledger's scripts publish.

The result function subscribes to new entries of job logs, the courier and the operator to notifications of work. A
process has one connection for all its channels. Redis keeps nothing for a subscriber that is away, so a subscriber must
read again what it follows each time that a channel is subscribed; then no data is lost, only time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from darkroom.backoff import Backoff
from darkroom.errors import LedgerUnavailable
from darkroom.logs import logger

SILENCE_S = 10.0
"""After so long without a message Redis is pinged; after as long again without an answer the connection is dead."""

SUBSCRIBE_TIMEOUT_S = 5.0
"""How long `open` waits for Redis to confirm. It does so within a millisecond, or it is unavailable."""

BACKOFF = Backoff(first_s=0.25, longest_s=0.5, jitter=0.25)
"""Before a lost connection is made anew: short, because clients wait for updates."""

CHANNELS_PER_COMMAND = 1_000
"""So that many thousands after an outage do not make one huge command."""

MESSAGES_PER_TURN = 32
"""Messages received before other tasks of this process run, so that a burst is passed on as it comes. With more of
them, several messages of a socket share a write; with fewer, other tasks wait less and small buffers suffice. Sending
to a thousand sockets takes a tenth less time with 32 than with 16."""

_NO_CHANNEL = ""
"""In place of a channel in a command that names none."""

_log = logger(__name__)


class Channels:
    """The channels that one process subscribes to. `run` must run in the background.

    `on_message` is called with the channel's name and the payload of each message, `on_subscribed` with the name of
    each channel when Redis confirms the subscription, and again when it does so after a lost connection. Both are
    called in the event loop and must not block.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[str], None],
    ) -> None:
        self._client: Any = client  # redis-py types its connections in part
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # all channels, each with the calls that wait for it
        self._open: set[str] = set()  # those that Redis has confirmed on the present connection
        self._connected = False
        self._failures = 0
        self._unsent: deque[tuple[str, str]] = deque()  # commands, each with its channel
        self._unanswered: Counter[str] = Counter()  # commands that Redis has not answered yet, by channel
        self._to_send = asyncio.Event()

    async def open(self, names: Iterable[str]) -> None:
        """Subscribe to these channels, and return once Redis has confirmed all of them.

        Raises LedgerUnavailable while Redis is unavailable. The subscription then takes effect when Redis is available
        again, until `close`.
        """
        loop = asyncio.get_running_loop()
        waits: list[asyncio.Future[None]] = []
        new: list[str] = []
        for name in names:
            if name in self._open:
                continue
            if name not in self._waiting:
                self._waiting[name] = []
                new.append(name)
            waits.append(loop.create_future())
            self._waiting[name].append(waits[-1])
        self._enqueue("SUBSCRIBE", new)
        if not waits:
            return
        _, late = await asyncio.wait(waits, timeout=SUBSCRIBE_TIMEOUT_S)
        if late:
            raise LedgerUnavailable("Redis is unavailable", retry_after=2)

    def close(self, names: Iterable[str]) -> None:
        """Unsubscribe from these channels."""
        known = [name for name in names if name in self._waiting]
        for name in known:
            del self._waiting[name]
            self._open.discard(name)
        self._enqueue("UNSUBSCRIBE", known)

    async def run(self) -> None:
        """Receive messages until cancelled. A lost connection is restored, with all channels."""
        while True:
            try:
                await self._connect()
            except (RedisError, OSError) as error:
                _log.warning("channels_lost", channels=len(self._waiting), error=str(error))
            except Exception:  # an error in a callback must not end the subscriptions
                _log.exception("channels_lost", channels=len(self._waiting))
            self._failures += 1
            await asyncio.sleep(BACKOFF.after(self._failures))

    async def _connect(self) -> NoReturn:
        """One connection, until sending or receiving ends for any reason: either alone is of no use."""
        connection = self._client.connection_pool.make_connection()
        try:
            await connection.connect()
            self._failures = 0
            self._unsent.clear()
            self._unanswered.clear()
            self._connected = True
            self._enqueue("SUBSCRIBE", self._waiting)
            tasks = [
                asyncio.create_task(self._send(connection), name="channels send"),
                asyncio.create_task(self._receive(connection), name="channels receive"),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            failures = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
            raise failures[0] if failures else RedisConnectionError("a task of the connection was cancelled")
        finally:
            self._connected = False
            self._open.clear()
            await connection.disconnect(nowait=True)

    def _enqueue(self, command: str, names: Iterable[str]) -> None:
        """Send a command soon. Without a connection there is no need: the next one begins with all channels."""
        if self._connected:
            for name in names:
                self._unsent.append((command, name))
                self._unanswered[name] += 1
            self._to_send.set()

    async def _send(self, connection: Any) -> NoReturn:
        """Send commands, in a task of its own: a caller that is cancelled must not break the connection of all."""
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent:
                command, name = self._unsent.popleft()
                names = [] if name == _NO_CHANNEL else [name]
                while self._unsent and self._unsent[0][0] == command and len(names) < CHANNELS_PER_COMMAND:
                    names.append(self._unsent.popleft()[1])
                await connection.send_command(command, *names, check_health=False)

    async def _receive(self, connection: Any) -> NoReturn:
        pinged, received = False, 0
        while True:
            reply = await connection.read_response(timeout=SILENCE_S, push_request=True)
            if reply is not None:
                pinged = False
                self._dispatch(reply)
                received += 1
                if received % MESSAGES_PER_TURN == 0:
                    await asyncio.sleep(0)
            elif pinged:
                raise RedisConnectionError(f"no answer within {SILENCE_S} s")
            else:
                pinged = True
                self._enqueue("PING", [_NO_CHANNEL])

    def _dispatch(self, reply: Any) -> None:
        """Handle a reply: a message, a confirmation, or the answer to a ping (which may not be a list)."""
        if not isinstance(reply, list):
            return
        kind, name = reply[0], reply[1].decode()
        if kind == b"message":
            if name in self._waiting:
                self._on_message(name, reply[2])
        elif kind in {b"subscribe", b"unsubscribe"}:
            self._unanswered[name] -= 1
            if self._unanswered[name] <= 0:
                del self._unanswered[name]
                if name in self._waiting:
                    self._confirm(name)

    def _confirm(self, name: str) -> None:
        self._open.add(name)
        waiting, self._waiting[name] = self._waiting[name], []
        for wait in waiting:
            if not wait.done():
                wait.set_result(None)
        self._on_subscribed(name)

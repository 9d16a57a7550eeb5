"""Channels of Redis: who listens to the ledger hears at once what it says.

The result function listens for new entries of job logs, the courier for work; the ledger's scripts publish both. A
process has one connection for all its channels. Redis keeps nothing for a listener that is away, so whoever listens
must read again what it follows each time a channel is `confirmed`; then nothing is lost but time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from darkroom.errors import LedgerUnavailable
from darkroom.logs import logger

SILENCE_S = 10.0
"""After so long without a word Redis is asked for one; after as long again without an answer the connection is dead."""

OPEN_PATIENCE_S = 5.0
"""How long `open` waits for Redis' word. It comes within a millisecond, or Redis is away."""

RECONNECT_S = 0.5
"""Pause before a lost connection is made anew: short, because people wait at the other end."""

MOST_NAMED = 1_000
"""Channels in one command, so that many thousands after an outage do not make one huge one."""

MOST_HEARD = 32
"""Messages heard before others in this process get their turn, so that a burst can be handed on as it comes. With more
of them a socket's messages share a write; with fewer, nobody waits long, and small buffers do. To a thousand sockets 32
take a tenth less time than 16."""

_NOBODY = ""
"""In place of a channel in a command that names none."""

_log = logger(__name__)


class Channels:
    """The channels that one process listens to. `run` is its heart and must run beside it.

    `heard` gets each message: the channel's name and the payload. `confirmed` gets the name of each channel as Redis
    confirms it, and again whenever it does so after a lost connection. Both are called in the event loop and must not
    wait.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        heard: Callable[[str, bytes], None],
        confirmed: Callable[[str], None],
    ) -> None:
        self._client: Any = client  # redis-py types its connections in part
        self._heard = heard
        self._confirmed = confirmed
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # all channels, and who waits for each
        self._open: set[str] = set()  # those that Redis has confirmed on the connection that there is
        self._connected = False
        self._unsaid: deque[tuple[str, str]] = deque()  # commands for it, each with its channel
        self._unanswered: Counter[str] = Counter()  # commands that Redis has not answered yet, by channel
        self._to_say = asyncio.Event()

    async def open(self, names: Iterable[str]) -> None:
        """Listen to these; returns once Redis does so for all of them. Raises LedgerUnavailable while Redis is away.

        Even then they are listened to, from the moment when Redis is back, until they are closed.
        """
        loop = asyncio.get_running_loop()
        waits: list[asyncio.Future[None]] = []
        fresh: list[str] = []
        for name in names:
            if name in self._open:
                continue
            if name not in self._waiting:
                self._waiting[name] = []
                fresh.append(name)
            waits.append(loop.create_future())
            self._waiting[name].append(waits[-1])
        self._say("SUBSCRIBE", fresh)
        if not waits:
            return
        _, late = await asyncio.wait(waits, timeout=OPEN_PATIENCE_S)
        if late:
            raise LedgerUnavailable("the queue broker does not answer", retry_after=2)

    def close(self, names: Iterable[str]) -> None:
        """Listen to these no longer."""
        known = [name for name in names if name in self._waiting]
        for name in known:
            del self._waiting[name]
            self._open.discard(name)
        self._say("UNSUBSCRIBE", known)

    async def run(self) -> None:
        """Listen until cancelled. A lost connection is made anew, with all channels."""
        while True:
            try:
                await self._converse()
            except (RedisError, OSError) as error:
                _log.warning("channels_lost", channels=len(self._waiting), error=str(error))
            except Exception:  # a listener's own failure must not make the process deaf
                _log.exception("channels_lost", channels=len(self._waiting))
            await asyncio.sleep(RECONNECT_S)

    async def _converse(self) -> NoReturn:
        """One connection, until speaking or listening ends for whatever reason: either alone is of no use."""
        connection = self._client.connection_pool.make_connection()
        try:
            await connection.connect()
            self._unsaid.clear()
            self._unanswered.clear()
            self._connected = True
            self._say("SUBSCRIBE", self._waiting)
            tasks = [
                asyncio.create_task(self._speak(connection), name="channels speak"),
                asyncio.create_task(self._listen(connection), name="channels listen"),
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

    def _say(self, command: str, names: Iterable[str]) -> None:
        """Put on the way. Without a connection there is no need: the next one begins with all channels."""
        if self._connected:
            for name in names:
                self._unsaid.append((command, name))
                self._unanswered[name] += 1
            self._to_say.set()

    async def _speak(self, connection: Any) -> NoReturn:
        """Its own task, so that nobody who is cancelled while he speaks breaks the connection of all."""
        while True:
            await self._to_say.wait()
            self._to_say.clear()
            while self._unsaid:
                command, name = self._unsaid.popleft()
                names = [] if name == _NOBODY else [name]
                while self._unsaid and self._unsaid[0][0] == command and len(names) < MOST_NAMED:
                    names.append(self._unsaid.popleft()[1])
                await connection.send_command(command, *names, check_health=False)

    async def _listen(self, connection: Any) -> NoReturn:
        asked, heard = False, 0
        while True:
            reply = await connection.read_response(timeout=SILENCE_S, push_request=True)
            if reply is not None:
                asked = False
                self._take(reply)
                heard += 1
                if heard % MOST_HEARD == 0:
                    await asyncio.sleep(0)
            elif asked:
                raise RedisConnectionError(f"no answer within {SILENCE_S} s")
            else:
                asked = True
                self._say("PING", [_NOBODY])

    def _take(self, reply: Any) -> None:
        """One reply: a message, a confirmation, or the answer to a ping (which may be no list)."""
        if not isinstance(reply, list):
            return
        kind, name = reply[0], reply[1].decode()
        if kind == b"message":
            if name in self._waiting:
                self._heard(name, reply[2])
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
        self._confirmed(name)

"""Channels of Redis: who listens to the ledger hears at once what it says.

The result function listens for new entries of job logs, the courier for work; the ledger's scripts publish both. A process
has one connection for all its channels. Redis keeps nothing for a listener that is away, so whoever listens must read again
what it follows each time a channel is `confirmed`; then nothing is lost but time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

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

_log = logger(__name__)


class Channels:
    """The channels that one process listens to. `run` is its heart and must run beside it.

    `heard` gets each message: the channel's name and the payload. `confirmed` gets the name of each channel as Redis confirms
    it, and again whenever it does so after a lost connection. Both are called in the event loop and must not wait.
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
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # all channels, and who waits for each to be confirmed
        self._unanswered: Counter[str] = Counter()  # commands about a channel that Redis has not answered yet
        self._connection: Any = None

    async def open(self, names: Iterable[str]) -> None:
        """Listen to these; returns once Redis does so for all of them. Raises LedgerUnavailable while Redis is away.

        Even then they are listened to, from the moment when Redis is back, until they are closed.
        """
        loop = asyncio.get_running_loop()
        names = list(names)
        waits: list[asyncio.Future[None]] = []
        for name in names:
            wait = loop.create_future()
            self._waiting.setdefault(name, []).append(wait)
            waits.append(wait)
        await self._send("SUBSCRIBE", names)
        _, late = await asyncio.wait(waits, timeout=OPEN_PATIENCE_S)
        if late:
            for wait in late:
                wait.cancel()
            raise LedgerUnavailable("the queue broker does not answer", retry_after=2)

    async def close(self, names: Iterable[str]) -> None:
        """Listen to these no longer."""
        names = list(names)
        for name in names:
            self._waiting.pop(name, None)
        await self._send("UNSUBSCRIBE", names)

    async def run(self) -> None:
        """Listen until cancelled. A lost connection is made anew, with all channels."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                _log.warning("channels_lost", channels=len(self._waiting), error=str(error))
            except Exception:  # a listener's own failure must not make the process deaf
                _log.exception("channels_lost", channels=len(self._waiting))
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        connection = self._client.connection_pool.make_connection()
        try:
            await connection.connect()
            self._connection = connection
            self._unanswered.clear()
            await self._send("SUBSCRIBE", list(self._waiting))
            asked = False
            while True:
                reply = await connection.read_response(timeout=SILENCE_S, push_request=True)
                if reply is not None:
                    asked = False
                    self._take(reply)
                elif asked:
                    raise RedisConnectionError(f"no answer within {SILENCE_S} s")
                else:
                    asked = True
                    await connection.send_command("PING", check_health=False)
        finally:
            self._connection = None
            await connection.disconnect(nowait=True)

    async def _send(self, command: str, names: list[str]) -> None:
        """Say it where there is a connection; a new one begins with all channels anyway. `_listen` sees what fails."""
        rest = iter(names)
        while some := list(islice(rest, MOST_NAMED)):
            connection = self._connection
            if connection is None or not connection.is_connected:
                return
            self._unanswered.update(some)
            try:
                await connection.send_command(command, *some, check_health=False)
            except (RedisError, OSError) as error:
                _log.warning("channels_not_told", command=command, channels=len(some), error=str(error))
                return

    def _take(self, reply: Any) -> None:
        """One reply: a message, a confirmation, or the answer to a ping (which is no list on RESP3)."""
        if not isinstance(reply, list):
            return
        kind, name = reply[0], reply[1].decode() if isinstance(reply[1], bytes) else ""
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
        waiting, self._waiting[name] = self._waiting[name], []
        for wait in waiting:
            if not wait.done():
                wait.set_result(None)
        self._confirmed(name)

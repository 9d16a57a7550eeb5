"""The ledger: the one authority on every job, in Redis. This module is its door.

All parts use it: submit accepts jobs, workers claim and finish them, the courier publishes and sweeps, readers look
them up. `calls/` builds each transition as a value, which one of the two classes here runs as one Lua script (`lua/`),
so it happens whole or not at all. `reads/` has the reads. `records.py` defines what they return and `keys.py` the names
of all keys; `connection.py` connects, `wire.py` sends. `batching.py` lets concurrent calls share a round trip,
`channels.py` subscribes to what the scripts publish, and `queues.py` builds the Celery messages. No other code reads or
writes a job's keys.

`AsyncLedger` is for the functions, the courier and the operator, `Ledger` for workers. Neither retries a refusal; both
repeat a call whose reply was lost, which is safe because every script is idempotent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from darkroom.errors import DarkroomError
from darkroom.ledger import scripts
from darkroom.ledger.calls import Call
from darkroom.ledger.connection import translated
from darkroom.ledger.keys import Keys
from darkroom.ledger.records import JobRecord, decode_job
from darkroom.ledger.wire import Command, SerialConnection, ask_each

T = TypeVar("T")


class Ledger:
    """The ledger for a worker: one call at a time, over one connection that it holds. `keys` names its keys."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._connection = SerialConnection(client)
        self.namespace = namespace
        self.keys = Keys(namespace)

    def run(self, call: Call[T]) -> T:
        """Run the call. Raises LedgerUnavailable while Redis is away; every call may be repeated unchanged."""
        command = _command(self.namespace, call)
        with translated():
            try:
                reply = self._connection.ask(command)
            except NoScriptError:
                self._connection.ask(("SCRIPT", "LOAD", scripts.texts()[call.script]))
                reply = self._connection.ask(command)
        return call.decode(reply)

    def job(self, job_id: str) -> JobRecord | None:
        """The record, of any tenant: a worker is one of darkroom's own parts."""
        return self.run(_read_job(job_id))


class AsyncLedger:
    """The ledger for an asyncio process. `keys` names its keys."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._redis: Any = client  # redis-py types every reply as a union of all replies
        self.namespace = namespace
        self.keys = Keys(namespace)

    async def run(self, call: Call[T]) -> T:
        """Run the call. Raises LedgerUnavailable while Redis is away; every call may be repeated unchanged."""
        with translated():
            try:
                reply = await self._redis.execute_command(*_command(self.namespace, call))
            except NoScriptError:
                await self._load()
                reply = await self._redis.execute_command(*_command(self.namespace, call))
        return call.decode(reply)

    async def run_each(self, calls: Sequence[Call[T]]) -> list[T | DarkroomError]:
        """Run the calls in one round trip; each has its own answer or failure. They are not one transaction."""
        replies = await self._send([_command(self.namespace, call) for call in calls])
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            await self._load()
            again = await self._send([_command(self.namespace, calls[index]) for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        answers: list[T | DarkroomError] = []
        for call, reply in zip(calls, replies, strict=True):
            try:
                with translated():
                    if isinstance(reply, RedisError):
                        raise reply
                answers.append(call.decode(reply))
            except DarkroomError as error:
                answers.append(error)
        return answers

    async def job(self, job_id: str, *, tenant: str | None) -> JobRecord | None:
        """The record, or None if there is none, or none of this tenant (None: of any, for darkroom's own parts)."""
        return (await self.jobs([job_id], tenant=tenant))[0]

    async def jobs(self, job_ids: Sequence[str], *, tenant: str | None) -> list[JobRecord | None]:
        """As `job`, for many in one round trip."""
        records: list[JobRecord | None] = []
        for answer in await self.run_each([_read_job(job_id) for job_id in job_ids]):
            if isinstance(answer, DarkroomError):
                raise answer
            records.append(None if answer is None or tenant not in {None, answer.tenant} else answer)
        return records

    async def ping(self) -> None:
        """Raises LedgerUnavailable unless Redis answers."""
        await self.ask("PING")

    async def ask(self, *command: str | int) -> Any:
        """Redis' reply to a command that changes nothing, for `reads/`: as RESP3 has it."""
        return (await self.ask_each([command]))[0]

    async def ask_each(self, commands: Sequence[Command]) -> list[Any]:
        """As `ask`, for many in one round trip. Raises the first error."""
        replies = await self._send(commands)
        for reply in replies:
            if isinstance(reply, RedisError):
                with translated():
                    raise reply
        return replies

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        with translated():
            return await ask_each(self._redis, commands)

    async def _load(self) -> None:
        with translated():
            for text in scripts.texts().values():
                await self._redis.script_load(text.decode())


def _command(namespace: str, call: Call[Any]) -> Command:
    return ("EVALSHA", scripts.digest(call.script), 1, namespace, *call.args)


def _read_job(job_id: str) -> Call[JobRecord | None]:
    return Call("read_job", ("job", job_id), decode_job)

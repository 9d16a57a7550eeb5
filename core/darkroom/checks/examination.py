"""The examination: reads what the doctor's checks need of Redis, the ledger, the workers and their queues.

It changes nothing, except that it sends canaries: messages that belong to no job, through the queue of a pool with idle
workers. The worker that claims one records its name (`lua/attempts/claim.lua`) and drops it. As many are sent at a time
as workers are awaited, because Redis serves the client that has waited longest: each goes to another consumer.
`doctor.py` has the checks.

Redis' CONFIG is not read: managed servers refuse it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import redis.asyncio
from redis.exceptions import NoPermissionError, RedisError

from darkroom.backoff import Backoff
from darkroom.checks.ledger_checks import Limits
from darkroom.checks.system import (
    ClockOffset,
    ForeignDrops,
    LedgerInfo,
    OldestJob,
    OverdueJob,
    PoolInfo,
    RedisInfo,
    ScriptCost,
    SystemInfo,
    WorkerInfo,
)
from darkroom.errors import DarkroomError, HistoryUnavailable
from darkroom.ledger import calls, queues, reads
from darkroom.ledger.calls import WORKER_TTL_MS, WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import translated
from darkroom.ledger.epochs import DataLoss, lost
from darkroom.ledger.keys import Keys
from darkroom.ledger.queues import CANARY
from darkroom.ledger.records import WorkerRecord

if TYPE_CHECKING:
    from darkroom.history.store import History

SCRIPT_COMMANDS = ("evalsha", "eval", "fcall")
"""Commands that run a script; darkroom uses `evalsha` only."""

BATCH_MAX = 100
"""Canaries that are in the queue of one pool at a time."""

BATCH_S = 1.0
"""The longest wait for one batch of canaries. One that a worker received just before it stopped is never claimed."""

POLL_S = 0.02
BACKOFF = Backoff(first_s=0.1, longest_s=1.0)
"""Pause between two batches, which doubles: other workers claim the canaries of the one that is awaited."""

LISTED = 100
"""Messages of a pool's list that are read, the next first; the list is short by design."""


async def examine(
    client: redis.asyncio.Redis, namespace: str, limits: Limits, *, history: History | None = None
) -> SystemInfo:
    """Read everything once, and the epoch of the ledger in `history`. Failures are part of the result.

    It takes `limits.canary_s` where a worker does not consume.
    """
    server: RedisInfo | None = None
    ledger: LedgerInfo | None = None
    failure: str | None = None
    try:
        with translated():
            info = await client.info("all")
        server = read_server(info, default_user_is_limited=await _default_user_is_limited(client, namespace))
    except (DarkroomError, RedisError) as error:
        failure = _reason(error)
    # Scripts cannot run on a cluster: the ledger would only repeat that.
    if server is None or not server.clustered:
        try:
            ledger = await Examination(client, namespace, limits, history).ledger()
        except (DarkroomError, RedisError) as error:
            failure = failure or _reason(error)
    return SystemInfo(server, ledger, failure)


async def _default_user_is_limited(client: redis.asyncio.Redis, namespace: str) -> bool:
    """Whether a connection without a user is accepted, and then refused a harmless command."""
    pool = client.connection_pool
    options = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name not in {"username", "password", "credential_provider"}
    }
    unnamed_pool = redis.asyncio.ConnectionPool(connection_class=pool.connection_class, **options)
    async with redis.asyncio.Redis.from_pool(unnamed_pool) as unnamed:
        try:
            await unnamed.exists(Keys(namespace).epoch)
        except NoPermissionError:
            return True
        except RedisError:
            return False  # refused, or no connection at all: `default` is off or needs a password
    return False


def read_server(info: Mapping[str, Any], *, default_user_is_limited: bool) -> RedisInfo:
    """The relevant part of the reply to INFO, and of the rights of the user `default`."""
    limit, limited_by = info["maxmemory"], "its maxmemory"
    if not limit:
        limit, limited_by = info.get("total_system_memory", 0), "the machine's memory"
    costs = []
    for command in SCRIPT_COMMANDS:
        if stats := info.get(f"cmdstat_{command}"):
            percentiles = info.get(f"latency_percentiles_usec_{command}")
            p99_ms = percentiles["p99"] / 1000 if percentiles else None
            costs.append(ScriptCost(command, stats["calls"], stats["usec_per_call"] / 1000, p99_ms))
    written = info.get("aof_last_write_status", "ok")
    return RedisInfo(
        version=tuple(int(part) for part in str(info["redis_version"]).split(".") if part.isdecimal()),
        clustered=bool(info.get("cluster_enabled", 0)),
        append_only=bool(info["aof_enabled"]),
        append_error=None if written == "ok" else f"the last write: {written}",
        eviction=info["maxmemory_policy"],
        default_user_is_limited=default_user_is_limited,
        memory_used=info["used_memory"],
        memory_limit=limit,
        memory_limited_by=limited_by,
        costs=tuple(costs),
    )


class Examination:
    """One reading of the ledger."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str, limits: Limits, history: History | None) -> None:
        self._redis: Any = client  # redis-py types every reply as a union of all replies
        self._ledger = AsyncLedger(client, namespace)
        self._keys = self._ledger.keys
        self._limits = limits
        self._history = history

    async def ledger(self) -> LedgerInfo:
        """Raises LedgerUnavailable, and RedisError where a command is refused."""
        names = await reads.pools(self._ledger)
        idle = await self._idle()
        batches = await asyncio.gather(*(self._silent(pool, idle.get(pool, set())) for pool in names))
        silent = {pool: found for pool, found in zip(names, batches, strict=True) if found[0]}
        # The pools are read last: a worker that is still idle now was idle while its jobs waited.
        workers = await self._workers(silent)
        pools = [await self._pool(pool) for pool in names]
        unapplied = await self._overdue(self._keys.outbox, "relay")
        unarchived = await self._overdue(self._keys.history, "history")
        unfinished_bytes = await reads.unfinished_bytes(self._ledger)
        clocks, set_back = await self._clocks()
        return LedgerInfo(
            pools=tuple(pools),
            workers=tuple(workers),
            unapplied=tuple(unapplied),
            unarchived=tuple(unarchived),
            loss=await self._loss(),
            unfinished_bytes=unfinished_bytes,
            clocks=clocks,
            set_back=set_back,
        )

    async def _loss(self) -> DataLoss | None:
        """The data that Redis lost: without SQL, by the ledger alone. SQL is read first, as couriers write it last."""
        outside = None
        if self._history is not None:
            with suppress(HistoryUnavailable):
                outside = await self._history.epoch(self._ledger.namespace)
        return lost(await reads.epoch(self._ledger), outside)

    async def _clocks(self) -> tuple[tuple[ClockOffset, ...], ClockOffset | None]:
        """This machine's clock, those that `accept` and `adjust_clock` recorded, and the set-back of Redis' own."""
        asked_ms = time.time_ns() // 1_000_000
        now = await reads.now(self._ledger)
        answered_ms = time.time_ns() // 1_000_000
        with translated():
            recorded = await self._redis.hgetall(self._keys.clock)

        def clock(field: bytes, part: str) -> list[ClockOffset]:
            if field not in recorded:
                return []
            ahead, at = map(int, recorded[field].split())
            return [ClockOffset(part, ahead / 1000, max(0, now - at) / 1000)]

        own = ClockOffset("this machine", ((asked_ms + answered_ms) // 2 - now) / 1000, 0)
        of_redis = [ClockOffset("Redis", -each.ahead_s, each.age_s) for each in clock(b"set_back", "Redis")]
        parts = (own, *clock(b"courier", "a courier"), *clock(b"function", "a function that accepts jobs"))
        return parts, of_redis[0] if of_redis else None

    # -- workers and canaries ------------------------------------------------------------------------------------------

    async def _idle(self) -> dict[str, set[str]]:
        """Idle workers by pool."""
        found: dict[str, set[str]] = {}
        now = await reads.now(self._ledger)
        for worker in await reads.workers(self._ledger):
            if _is_idle(worker, now):
                found.setdefault(worker.pool, set()).add(worker.name)
        return found

    async def _workers(self, silent: Mapping[str, tuple[set[str], int]]) -> list[WorkerInfo]:
        now = await reads.now(self._ledger)
        workers = []
        for record in await reads.workers(self._ledger):
            idle = _is_idle(record, now)
            names, canaries = silent.get(record.pool, (set(), 0))
            workers.append(
                WorkerInfo(
                    name=record.name,
                    pool=record.pool,
                    state=record.state,
                    seen_s=max(0, now - record.seen) / 1000,
                    idle=idle,
                    silent=idle and record.name in names,
                    canaries=canaries,
                )
            )
        return workers

    async def _silent(self, pool: str, idle: set[str]) -> tuple[set[str], int]:
        """The idle workers of a pool that claimed no canary in time, and the number of canaries."""
        silent, sent, pauses = set(idle), 0, BACKOFF.pauses()
        deadline = time.monotonic() + self._limits.canary_s
        while silent:
            size = min(len(silent), BATCH_MAX)
            answered = await self._send(pool, size, until=min(deadline, time.monotonic() + BATCH_S))
            silent -= answered
            sent += size
            if time.monotonic() > deadline:
                break
            if silent:
                await asyncio.sleep(next(pauses))
        return silent, sent

    async def _send(self, pool: str, size: int, *, until: float) -> set[str]:
        """Send so many canaries, and return the workers that claimed one. None remains in the queue."""
        ids = [f"{CANARY}{uuid4().hex}" for _ in range(size)]
        try:
            while True:
                answers = await self._canaries(pool, ids, withdraw=False)
                if None not in answers or time.monotonic() > until:
                    break
                await asyncio.sleep(POLL_S)
        finally:
            answers = await self._canaries(pool, ids, withdraw=True)
        return {worker for worker in answers if worker is not None}

    async def _canaries(self, pool: str, ids: Sequence[str], *, withdraw: bool) -> list[str | None]:
        answers: list[str | None] = []
        canaries = [calls.canary(canary_id, pool=pool, withdraw=withdraw) for canary_id in ids]
        for answer in await self._ledger.run_each(canaries):
            if isinstance(answer, DarkroomError):
                raise answer
            answers.append(answer)
        return answers

    # -- pools ---------------------------------------------------------------------------------------------------------

    async def _pool(self, pool: str) -> PoolInfo:
        """The pool at one moment."""
        keys = self._keys
        with translated():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.time()
            pipeline.hmget(keys.pool(pool), "announced", "reaped", "quiet_until", "foreign", "foreign_at")
            pipeline.hget(keys.pool(pool), "foreign_reason")
            pipeline.lrange(keys.queue(pool), -LISTED, -1)
            for of_pool in (keys.waiting, keys.dispatched, keys.due):
                pipeline.zcard(of_pool(pool))
            for of_pool in (keys.waiting, keys.dispatched):
                pipeline.zrange(of_pool(pool), 0, 0)
            for of_pool in (keys.due, keys.running):
                pipeline.zrange(of_pool(pool), 0, 0, withscores=True)
            (seconds, micros), about, reason, listed, *rest = await pipeline.execute()
        now = seconds * 1000 + micros // 1000
        announced, reaped, quiet_until, dropped, dropped_at = (int(value or 0) for value in about)
        waiting, dispatched, due, first, next_taken, overdue, leased = rest
        return PoolInfo(
            name=pool,
            announced_s=(now - announced) / 1000,
            courier_seen_s=(now - reaped) / 1000 if reaped else None,
            backlog=waiting + dispatched + due,
            pushed=await self._waiting(next_taken, "pushed", now),
            waiting=await self._waiting(first, "created", now),
            overdue=_since(overdue, now),
            lapsed=_since(leased, now) if quiet_until <= now else None,
            foreign=ForeignDrops(dropped, (now - dropped_at) / 1000, (reason or b"").decode()),
            foreign_listed=sum(queues.foreign(message) is not None for message in listed),
        )

    async def _waiting(self, first: Sequence[bytes], since: str, now: int) -> OldestJob | None:
        """The first job of a set whose scores are no times: its record has the time."""
        if not first:
            return None
        job_id = first[0].decode()
        at = await reads.job_time(self._ledger, job_id, since)
        return OldestJob(job_id, (now - at) / 1000) if at else None

    # -- pending events and archiving ----------------------------------------------------------------------------------

    async def _overdue(self, queue: str, kind: str) -> list[OverdueJob]:
        """The finished jobs in a queue of the outbox that finished too long ago; `kind` is the queue's name in
        `lua/outbox/lease_outbox.lua`.
        """
        now = await reads.now(self._ledger)
        found: list[OverdueJob] = []
        async for ids in reads.members(self._ledger, queue):
            leases = await reads.outbox_leases(self._ledger, ids, kind=kind)
            for job_id, lease in zip(ids, leases, strict=True):
                age_s = 0.0 if lease.finished is None else (now - lease.finished) / 1000
                if age_s > self._limits.unapplied_s:
                    found.append(OverdueJob(job_id, age_s, lease.leases, lease.refused))
        return found


def _is_idle(worker: WorkerRecord, now: int) -> bool:
    """Whether it is ready, has a recent heartbeat, and runs no job."""
    return worker.state == WorkerState.READY and worker.job is None and now - worker.seen < WORKER_TTL_MS


def _since(first: Sequence[tuple[bytes, float]], now: int) -> OldestJob | None:
    """The first job of a set that is ordered by time, and the seconds since then (negative: in the future)."""
    return OldestJob(first[0][0].decode(), (now - int(first[0][1])) / 1000) if first else None


def _reason(error: Exception) -> str:
    """The error of Redis, where there is one; it never contains a password."""
    cause = error.__cause__
    return f"Redis: {cause or error}"

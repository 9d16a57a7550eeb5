"""The ledger: the one truth about every job, in Redis.

All parts come here: submit to accept, workers to claim and finish, the courier to relay and sweep, readers to look. A
transition (`transitions.py`) runs as one Lua script (`lua/`), so it happens whole or not at all; reads are here. No
other code touches a job key.

`AsyncLedger` is for the functions and the courier, `Ledger` for workers. Neither retries a refusal; both repeat a call
whose reply was lost (`wire.py`), which is safe because every script is idempotent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.exceptions import (
    NoScriptError,
    RedisError,
)

from darkroom.errors import DarkroomError
from darkroom.jobs import State
from darkroom.ledger import scripts
from darkroom.ledger.calls import DUE_SOON_MS, Call, Reading, observe
from darkroom.ledger.connection import translated
from darkroom.ledger.epochs import LedgerEpoch
from darkroom.ledger.records import (
    NEWS_START,
    Demand,
    ForeignMessages,
    JobRecord,
    LetterPlace,
    LogEntry,
    Marks,
    Memory,
    NewsEntry,
    Outbox,
    Page,
    WorkerRecord,
    decode_delivery,
    decode_entry,
    decode_news,
    decode_subscription,
    decode_view,
    pairs,
)
from darkroom.ledger.wire import Command, Line, ask_each
from darkroom.webhooks.subscriptions import (
    Delivery,
    Subscription,
    is_delivery_id,
    target_of,
)

T = TypeVar("T")


OUTBOX_SAMPLE = 500
"""Entries at either end of a long outbox among which the oldest is looked for: the last due were put off most often."""

SCAN_SLICE = 200
"""Records that one round trip of a list reads at most."""

SCAN_LIMIT = 2_000
"""Records that one page looks at before it answers what it has, with a cursor to go on from."""


def _command(namespace: str, call: Call[Any]) -> Command:
    return ("EVALSHA", scripts.digest(call.script), 1, namespace, *call.args)


class Ledger:
    """Transitions from a worker's process, one at a time, over one connection that it keeps."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._line = Line(client)
        self.namespace = namespace

    def run(self, call: Call[T]) -> T:
        """Do it. Raises LedgerUnavailable while Redis is away; every call may be repeated as it is."""
        command = _command(self.namespace, call)
        with translated():
            try:
                reply = self._line.ask(command)
            except NoScriptError:
                self._line.ask(("SCRIPT", "LOAD", scripts.texts()[call.script]))
                reply = self._line.ask(command)
        return call.decode(reply)

    def job(self, job_id: str) -> JobRecord | None:
        """The record, of whatever tenant: a worker is one of darkroom's own parts."""
        return self.run(Call("read_job", ("job", job_id), decode_view))


class AsyncLedger:
    """Transitions and reads from an asyncio process."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._redis: Any = client  # redis-py types every reply as a union of all replies
        self.namespace = namespace

    async def run(self, call: Call[T]) -> T:
        """Do it. Raises LedgerUnavailable while Redis is away; every call may be repeated as it is."""
        with translated():
            try:
                reply = await self._redis.execute_command(*_command(self.namespace, call))
            except NoScriptError:
                await self._load()
                reply = await self._redis.execute_command(*_command(self.namespace, call))
        return call.decode(reply)

    async def run_each(self, calls: Sequence[Call[T]]) -> list[T | DarkroomError]:
        """Do them in one round trip; each has its own answer, or its own failure. They are not one transaction."""
        replies = await self._pipeline([_command(self.namespace, call) for call in calls])
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            await self._load()
            again = await self._pipeline([_command(self.namespace, calls[index]) for index in unknown])
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

    async def ping(self) -> None:
        """Raises LedgerUnavailable unless Redis answers."""
        with translated():
            await self._redis.ping()

    async def job(self, job_id: str, *, tenant: str | None) -> JobRecord | None:
        """The record, or None if there is none, or none of this tenant (None: of any, for darkroom's own parts)."""
        return (await self.jobs([job_id], tenant=tenant))[0]

    async def jobs(self, job_ids: Sequence[str], *, tenant: str | None) -> list[JobRecord | None]:
        """As `job`, for many in one round trip."""
        records: list[JobRecord | None] = []
        for answer in await self.run_each([Call("read_job", ("job", job_id), decode_view) for job_id in job_ids]):
            if isinstance(answer, DarkroomError):
                raise answer
            records.append(None if answer is None or tenant not in {None, answer.tenant} else answer)
        return records

    async def log(self, job_id: str, *, after: int = 0, limit: int | None = None) -> list[LogEntry]:
        """The job's log above `after`, in order; at most `limit` entries."""
        with translated():
            entries = await self._redis.xrange(f"{self.namespace}:log:{job_id}", min=f"{after + 1}-0", count=limit)
        return [decode_entry(job_id, entry_id, fields) for entry_id, fields in entries]

    async def entries(self, numbers: Mapping[str, int]) -> dict[str, LogEntry | None]:
        """The entry of that number in each job's log, in one round trip; None where the log has none."""
        replies = await self._pipeline(
            [("XRANGE", f"{self.namespace}:log:{job_id}", f"{seq}-0", f"{seq}-0") for job_id, seq in numbers.items()]
        )
        found: dict[str, LogEntry | None] = {}
        for job_id, reply in zip(numbers, replies, strict=True):
            with translated():
                if isinstance(reply, RedisError):
                    raise reply
            found[job_id] = decode_entry(job_id, *reply[0]) if reply else None
        return found

    async def news(self, tenant: str, *, after: str, limit: int) -> list[NewsEntry]:
        """What happened to the tenant's jobs since the place `after`, in order, but for progress.

        How a job ended is taken from its record.
        """
        with translated():
            raw = await self._redis.xrange(f"{self.namespace}:news:{tenant}", min=f"({after}", count=limit)
        found = [(place.decode(), decode_news(fields)) for place, fields in raw]
        ended = dict.fromkeys(entry.job_id for _, entry in found if entry.state.is_terminal)
        records = dict(zip(ended, await self.jobs(list(ended), tenant=tenant), strict=True))
        news: list[NewsEntry] = []
        for place, entry in found:
            if not entry.state.is_terminal:
                news.append(NewsEntry(place, entry, is_whole=True))
                continue
            record = records[entry.job_id]
            end = None if record is None else record.end
            whole = entry if end is None else replace(entry, data=end.data)
            news.append(NewsEntry(place, whole, is_whole=end is not None))
        return news

    async def news_head(self, tenant: str) -> str:
        """The place of the newest of the tenant's news; NEWS_START where there is none."""
        with translated():
            newest = await self._redis.xrevrange(f"{self.namespace}:news:{tenant}", count=1)
        return newest[0][0].decode() if newest else NEWS_START

    async def has_news(self, tenant: str, place: str) -> bool:
        """Whether the tenant's news still have the entry of that place."""
        with translated():
            return bool(await self._redis.xrange(f"{self.namespace}:news:{tenant}", min=place, max=place))

    async def logs(self, job_ids: Sequence[str]) -> list[list[LogEntry]]:
        """The whole log of each job, in one round trip; empty where it is no longer kept."""
        replies = await self._pipeline([("XRANGE", f"{self.namespace}:log:{job_id}", "-", "+") for job_id in job_ids])
        logs: list[list[LogEntry]] = []
        for job_id, reply in zip(job_ids, replies, strict=True):
            with translated():
                if isinstance(reply, RedisError):
                    raise reply
            logs.append([decode_entry(job_id, entry_id, fields) for entry_id, fields in reply])
        return logs

    async def heads(self, job_ids: Sequence[str]) -> list[LogEntry | None]:
        """The newest entry of each job's log, in one round trip."""
        replies = await self._pipeline(
            [("XREVRANGE", f"{self.namespace}:log:{job_id}", "+", "-", "COUNT", 1) for job_id in job_ids]
        )
        heads: list[LogEntry | None] = []
        for job_id, reply in zip(job_ids, replies, strict=True):
            with translated():
                if isinstance(reply, RedisError):
                    raise reply
            heads.append(decode_entry(job_id, *reply[0]) if reply else None)
        return heads

    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        after: str | None = None,
        state: State | None = None,
        model: str | None = None,
        user_id: str | None = None,
    ) -> Page:
        """A page of the tenant's jobs, newest first, below the job id `after` (keyset paging).

        A page that matches little ends after SCAN_LIMIT records, with a cursor to go on from.
        """
        found: list[JobRecord] = []
        looked_at = 0
        cursor = after
        whole = state is None and model is None and user_id is None
        while looked_at < SCAN_LIMIT:
            wanted = min(limit - len(found) + 1, SCAN_SLICE) if whole else SCAN_SLICE  # one more tells of a next page
            highest = f"({cursor}" if cursor else "+"
            with translated():
                raw = await self._redis.zrevrangebylex(
                    f"{self.namespace}:tenant:{tenant}", highest, "-", start=0, num=wanted
                )
            ids = [item.decode() for item in raw]
            records = await self.run_each([Call("read_job", ("job", job_id), decode_view) for job_id in ids])
            for job_id, record in zip(ids, records, strict=True):
                if isinstance(record, DarkroomError):
                    raise record
                cursor = job_id
                looked_at += 1
                if (
                    record is None
                    or (state is not None and record.state is not state)
                    or (model is not None and record.model != model)
                    or (user_id is not None and record.fields.get("user_id") != user_id)
                ):
                    continue
                found.append(record)
                if len(found) == limit:
                    more = len(ids) == wanted or job_id != ids[-1]
                    return Page(tuple(found), cursor if more else None)
            if len(ids) < wanted:
                return Page(tuple(found), None)
        return Page(tuple(found), cursor)

    async def dead_letters(self, tenant: str, *, limit: int, after: LetterPlace | None = None) -> list[LetterPlace]:
        """The tenant's dead letters, the last that ended first, behind `after` (keyset paging)."""
        return await self._places(f"dead:{tenant}", limit=limit, after=after)

    async def undelivered_places(
        self, tenant: str, *, limit: int, after: LetterPlace | None = None
    ) -> list[LetterPlace]:
        """The tenant's undelivered events, the last that failed first, behind `after` (keyset paging)."""
        return await self._places(f"undelivered-by-tenant:{tenant}", limit=limit, after=after)

    async def undelivered(self, event_ids: Sequence[str], *, fields: Sequence[str]) -> list[list[str | None]]:
        """These fields of each undelivered event, in one round trip; all None of one that is not there."""
        replies = await self._pipeline(
            [("HMGET", f"{self.namespace}:undelivered:{event_id}", *fields) for event_id in event_ids]
        )
        found: list[list[str | None]] = []
        for reply in replies:
            with translated():
                if isinstance(reply, RedisError):
                    raise reply
            found.append([None if value is None else value.decode() for value in reply])
        return found

    async def _places(self, name: str, *, limit: int, after: LetterPlace | None) -> list[LetterPlace]:
        """Those of the sorted set of that name, by time and then id, the newest first."""
        highest = f"{after.ended}" if after else "+inf"
        found: list[LetterPlace] = []
        start = 0
        while True:
            with translated():
                raw = await self._redis.zrevrangebyscore(
                    f"{self.namespace}:{name}", highest, "-inf", start=start, num=limit, withscores=True
                )
            places = [LetterPlace(int(score), member.decode()) for member, score in raw]
            # Only those of the same millisecond as `after` may stand before it.
            found += [place for place in places if after is None or place < after]
            if len(found) >= limit or len(raw) < limit:
                return found[:limit]
            start += limit

    async def is_dead_letter(self, job_id: str, *, tenant: str) -> bool:
        with translated():
            return await self._redis.zscore(f"{self.namespace}:dead:{tenant}", job_id) is not None

    async def untold(self, job_ids: Sequence[str]) -> list[list[LogEntry]]:
        """Of each job the starts that are still to be told, in order; its end is not among them."""
        replies = await self._pipeline([("HGET", f"{self.namespace}:job:{job_id}", "untold") for job_id in job_ids])
        starts: list[list[LogEntry]] = []
        for job_id, reply in zip(job_ids, _sound(replies), strict=True):
            wanted = {int(seq) for seq in reply.split()} if reply else set()
            starts.append([entry for entry in await self.log(job_id) if entry.seq in wanted] if wanted else [])
        return starts

    async def subscription(self, subscription_id: str, *, tenant: str | None) -> Subscription | None:
        """The subscription, or None if there is none, or none of this tenant (None: of any, for our own parts)."""
        (found,) = await self._subscriptions([subscription_id])
        return found if found is not None and tenant in {None, found.tenant} else None

    async def subscriptions(self, tenant: str) -> list[Subscription]:
        """All of the tenant's, the oldest first: there are at most `webhooks.MAX_SUBSCRIPTIONS`."""
        with translated():
            raw = await self._redis.zrange(f"{self.namespace}:subscriptions:{tenant}", 0, -1)
        return [found for found in await self._subscriptions([item.decode() for item in raw]) if found is not None]

    async def _subscriptions(self, ids: Sequence[str]) -> list[Subscription | None]:
        keys = [f"{self.namespace}:subscription:{each}" for each in ids]
        records = [pairs(reply) for reply in _sound(await self._pipeline([("HGETALL", key) for key in keys]))]
        targets = [target_of(raw["tenant"], raw["url"]) if raw else "" for raw in records]
        about = _sound(await self._pipeline([("HGETALL", f"{self.namespace}:target:{target}") for target in targets]))
        return [
            decode_subscription(raw, pairs(target)) if raw else None for raw, target in zip(records, about, strict=True)
        ]

    async def deliveries(self, job_id: str, *, tenant: str) -> list[Delivery]:
        """What was to be told of the job, in the order of its events, while Redis keeps it."""
        with translated():
            raw = await self._redis.zrange(f"{self.namespace}:deliveries-of:{job_id}", 0, -1)
        found = await self._deliveries([item.decode() for item in raw])
        return sorted((each for each in found if each.tenant == tenant), key=lambda each: (each.seq, each.recipient))

    async def delivery(self, delivery_id: str, *, job_id: str, tenant: str) -> Delivery | None:
        """One delivery of the job's, or None if there is none, or none of this tenant."""
        if not is_delivery_id(delivery_id, job_id=job_id):
            return None
        return next((each for each in await self._deliveries([delivery_id]) if each.tenant == tenant), None)

    async def _deliveries(self, ids: Sequence[str]) -> list[Delivery]:
        replies = _sound(await self._pipeline([("HGETALL", f"{self.namespace}:delivery:{each}") for each in ids]))
        records = [(each, pairs(reply)) for each, reply in zip(ids, replies, strict=True) if reply]
        dues = await self._pipeline(
            [("ZSCORE", f"{self.namespace}:deliveries:{raw['target']}", each) for each, raw in records]
        )
        return [
            decode_delivery(each, raw, None if due is None else int(float(due)))
            for (each, raw), due in zip(records, _sound(dues), strict=True)
        ]

    async def pools(self) -> list[str]:
        """The pools that were announced, in name order."""
        with translated():
            return sorted(name.decode() for name in await self._redis.smembers(f"{self.namespace}:pools"))

    async def pools_of(self, owner: str) -> list[str]:
        """The pools that this owner announced and that accept jobs, in name order."""
        names = await self.pools()
        replies = await self._pipeline(
            [("HMGET", f"{self.namespace}:pool:{name}", "owner", "models") for name in names]
        )
        return [
            name
            for name, (found, models) in zip(names, _sound(replies), strict=True)
            if found is not None and found.decode() == owner and models
        ]

    async def observe(self, pools: Sequence[str], *, soon_ms: int = DUE_SOON_MS) -> dict[str, Reading | DarkroomError]:
        """What there is to do in each pool and who is there to do it, in one round trip.

        Each reading is of one moment; in place of one that failed stands why. Raises LedgerUnavailable.
        """
        readings = await self.run_each([observe(pool, soon_ms=soon_ms) for pool in pools])
        return dict(zip(pools, readings, strict=True))

    async def foreign_messages(self, pools: Sequence[str]) -> dict[str, ForeignMessages]:
        """What was dropped in each pool."""
        fields = ("foreign", "foreign_at", "foreign_reason")
        replies = await self._pipeline([("HMGET", f"{self.namespace}:pool:{pool}", *fields) for pool in pools])
        found: dict[str, ForeignMessages] = {}
        for pool, reply in zip(pools, replies, strict=True):
            with translated():
                if isinstance(reply, RedisError):
                    raise reply
            count, last, reason = reply
            found[pool] = ForeignMessages(int(count or 0), int(last or 0), (reason or b"").decode())
        return found

    async def decisions(self, pool: str, *, limit: int | None = None) -> list[str]:
        """The pool's decision log, oldest entry first, each as `scaling.Entry.decode` takes it; the last `limit`."""
        with translated():
            entries = await self._redis.xrevrange(f"{self.namespace}:decisions:{pool}", count=limit)
        return [pairs(fields)["entry"] for _, fields in reversed(entries)]

    async def demand(self, pool: str) -> Demand:
        """What the pool has to do now."""
        replies = await self._pipeline(
            [("ZCARD", f"{self.namespace}:{kind}:{pool}") for kind in ("waiting", "dispatched", "running", "due")]
        )
        for reply in replies:
            with translated():
                if isinstance(reply, RedisError):
                    raise reply
        return Demand(*replies)

    async def epoch(self) -> LedgerEpoch:
        """How far it has come, and whether it lost data (`epochs.py`). Raises LedgerUnavailable."""
        with translated():
            fields = ("epoch", "beats", "at", "lost_from", "lost_to")
            return LedgerEpoch.decode(await self._redis.hmget(f"{self.namespace}:epoch", *fields))

    async def workers(self) -> list[WorkerRecord]:
        """The workers that gave a sign of life lately, in name order."""
        with translated():
            names = sorted(name.decode() for name in await self._redis.zrange(f"{self.namespace}:workers", 0, -1))
            busy = await self._redis.hgetall(f"{self.namespace}:busy")
        records = await self._pipeline([("HGETALL", f"{self.namespace}:worker:{name}") for name in names])
        workers: list[WorkerRecord] = []
        for name, record in zip(names, records, strict=True):
            with translated():
                if isinstance(record, RedisError):
                    raise record
            raw = pairs(record)
            if raw:
                job = busy.get(name.encode())
                workers.append(
                    WorkerRecord(
                        name, raw["pool"], raw["pod"], raw["state"], int(raw["seen"]), job.decode() if job else None
                    )
                )
        return workers

    async def outbox(self) -> Outbox:
        """What is still to be told. Its order is when it is due, so the oldest is looked for at both ends."""
        key = f"{self.namespace}:outbox"
        ends = [("ZRANGE", key, 0, OUTBOX_SAMPLE - 1), ("ZREVRANGE", key, 0, OUTBOX_SAMPLE - 1)]
        jobs, first, last = _sound(await self._pipeline([("ZCARD", key), *ends]))
        asked = [
            ("HMGET", f"{self.namespace}:job:{each.decode()}", "ended", "attempt_started") for each in {*first, *last}
        ]
        (seconds, micros), *times = _sound(await self._pipeline([("TIME",), *asked]))
        now = int(seconds) * 1000 + int(micros) // 1000
        return Outbox(jobs, max((now - int(ended or started or now) for ended, started in times), default=0))

    async def marks(self, job_ids: Sequence[str]) -> list[Marks | None]:
        """Those of each job, in one round trip; None of one whose record is gone."""
        replies = await self._pipeline(
            [("HMGET", f"{self.namespace}:job:{job_id}", "id", "applied", "dead") for job_id in job_ids]
        )
        return [
            Marks(None if applied is None else int(applied), is_dead=dead is not None) if found else None
            for found, applied, dead in _sound(replies)
        ]

    async def now(self) -> int:
        """The time by Redis' clock (ms): ages of what the ledger dated are computed with it, on whatever machine."""
        with translated():
            seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def memory(self) -> Memory:
        """What Redis uses of its memory."""
        with translated():
            info = await self._redis.info("memory")
        return Memory(info["used_memory"], info["maxmemory"])

    def live_channel(self, job_id: str) -> str:
        """Where each new log entry of the job is published; the payload is for `decode_live`."""
        return f"{self.namespace}:live:{job_id}"

    def news_channel(self, tenant: str) -> str:
        """Where nothing but a wake is published when the tenant has news."""
        return f"{self.namespace}:news:{tenant}"

    @property
    def wake_channel(self) -> str:
        """Where `outbox` and `backlog <pool>` are published when there is work for the courier or the operator."""
        return f"{self.namespace}:wake"

    async def _load(self) -> None:
        with translated():
            for text in scripts.texts().values():
                await self._redis.script_load(text.decode())

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        with translated():
            return await ask_each(self._redis, commands)


def _sound(replies: Sequence[Any]) -> Sequence[Any]:
    """The replies of a pipeline, none of which is an error; raises the first that is."""
    for reply in replies:
        if isinstance(reply, RedisError):
            with translated():
                raise reply
    return replies

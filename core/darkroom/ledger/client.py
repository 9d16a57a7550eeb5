"""The ledger: the one truth about every job, in Redis.

All parts come here: submit to accept, workers to claim and finish, the courier to relay and sweep, readers to look. A
transition (`transitions.py`) runs as one Lua script (`lua/`), so it happens whole or not at all; reads are here. No
other code touches a job key.

`AsyncLedger` is for the functions and the courier, `Ledger` for workers. Neither retries a refusal; both repeat a call
whose reply was lost (`wire.py`), which is safe because every script is idempotent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    InvalidResponse,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from darkroom import traces
from darkroom.errors import DarkroomError, LedgerUnavailable, MemoryHigh
from darkroom.jobs import JobEvent, State
from darkroom.ledger.address import RedisAddress
from darkroom.ledger.calls import DUE_SOON_MS, Call, Reading, observe
from darkroom.ledger.epochs import LedgerEpoch
from darkroom.ledger.wire import Command, Line, ask_each, heed_cancellations
from darkroom.webhooks.subscriptions import (
    Delivery,
    DeliveryState,
    Subscription,
    SubscriptionState,
    Try,
    Webhook,
    WebhookEvent,
    is_delivery_id,
    target_of,
)

T = TypeVar("T")

CONNECTIONS = 32
"""Connections of one process at most; a caller waits for a free one rather than being refused."""

SOCKET_TIMEOUT_S = 10.0
"""Longer than any script takes, shorter than a caller's patience."""

CONNECT_TIMEOUT_S = 3.0

RETRIES = 3
"""redis-py's own default of 10 would hold a caller for half a minute while Redis is away."""


@dataclass(frozen=True)
class JobRecord:
    """A job as the ledger has it. Times are milliseconds since the epoch; `run_timeout` is in seconds.

    `place` is the place in the queue, 1 being next, or None when it does not wait. `end_data` is the data of the
    terminal entry: the result of a completed job, the error of another. `is_whole` is False where the history alone
    still has the input, and `input` is empty (`Lookup.completed`).
    """

    id: str
    tenant: str
    model: str
    pool: str
    state: State
    input: Mapping[str, Any]
    fields: Mapping[str, Any]
    created: int
    started: int | None
    ended: int | None
    attempt: int
    counted: int
    max_attempts: int
    priority: int
    run_timeout: float
    start_deadline: int | None
    not_before: int | None
    worker: str | None
    progress: int
    step: int | None
    steps: int | None
    cancel_requested: int | None
    seq: int
    end_seq: int | None
    end_data: Mapping[str, Any] | None
    traceparent: str | None
    place: int | None
    is_whole: bool = True

    @property
    def about(self) -> dict[str, str]:
        """What a log line about the job says of it."""
        return {"job": self.id, "pool": self.pool, **traces.in_logs(self.traceparent)}

    @property
    def webhook(self) -> Webhook | None:
        """The address that the job named to be told of it."""
        return Webhook.of(self.fields)

    @property
    def retrying(self) -> bool:
        """Whether it waits for another attempt after one that counted."""
        return self.state is State.PENDING and self.counted > 0

    @property
    def end(self) -> LogEntry | None:
        """The terminal entry of its log, which the record outlives; None before the end."""
        if self.end_seq is None or self.ended is None:
            return None
        return LogEntry(self.id, self.end_seq, JobEvent(self.state), self.state, self.ended, self.end_data or {})


@dataclass(frozen=True)
class LogEntry:
    """One entry of a job's log: the `seq`-th thing that happened to it, at `at` (ms), and the state after it."""

    job_id: str
    seq: int
    event: JobEvent
    state: State
    at: int
    data: Mapping[str, Any]

    @property
    def event_id(self) -> str:
        """Identifies the event for ever, on every transport; a terminal one keeps its id over a rollback of Redis."""
        return f"{self.job_id}:end" if self.state.is_terminal else f"{self.job_id}:{self.seq}"


@dataclass(frozen=True)
class NewsEntry:
    """An entry of a tenant's news: the log entry, and its `place` there, by which a reader goes on.

    `is_whole` is False where the entry lacks its data, because the job's record is no longer kept.
    """

    place: str
    entry: LogEntry
    is_whole: bool


NEWS_START = "0-0"
"""The place before all news."""


@dataclass(frozen=True)
class Demand:
    """How much a pool has to do: jobs waiting, dispatched, running, and due later."""

    waiting: int
    dispatched: int
    running: int
    due: int

    @property
    def total(self) -> int:
        return self.waiting + self.dispatched + self.running + self.due


@dataclass(frozen=True)
class WorkerRecord:
    """A worker as it registered itself."""

    name: str
    pool: str
    pod: str
    state: str
    seen: int
    job: str | None


@dataclass(frozen=True)
class Page:
    """One page of a tenant's jobs, newest first. `after` asks for the next page; None when nothing is left."""

    jobs: tuple[JobRecord, ...]
    after: str | None


@dataclass(frozen=True, order=True)
class LetterPlace:
    """Where a dead letter or undelivered event is in its tenant's list: when it ended or failed (ms), then its id."""

    ended: int
    id: str


@dataclass(frozen=True)
class Memory:
    """Redis' memory in bytes; `limit` is 0 where none is set."""

    used: int
    limit: int

    @property
    def high(self) -> bool:
        """Above 80 %: what has been accepted must still find room to run and end."""
        return self.limit > 0 and self.used > 0.8 * self.limit


@dataclass(frozen=True)
class ForeignMessages:
    """How many messages that are no job's the workers of a pool dropped, ever; when (ms) and why the last of them."""

    count: int
    last: int
    reason: str


@dataclass(frozen=True)
class Outbox:
    """How many jobs something is still to be told of, and for how long (ms) the oldest of that has waited."""

    jobs: int
    age_ms: int


@dataclass(frozen=True)
class Marks:
    """Of a job that has ended: when its end was applied (ms, None: not yet), and whether it became a dead letter."""

    applied: int | None
    is_dead: bool


OUTBOX_SAMPLE = 500
"""Entries at either end of a long outbox among which the oldest is looked for: the last due were put off most often."""

SCAN_SLICE = 200
"""Records that one round trip of a list reads at most."""

SCAN_LIMIT = 2_000
"""Records that one page looks at before it answers what it has, with a cursor to go on from."""


@cache
def scripts() -> Mapping[str, bytes]:
    """The text of each script by its name, before it what it needs of the prelude."""
    folder = resources.files("darkroom.ledger") / "lua"
    texts = {
        entry.name.removesuffix(".lua"): entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith(".lua")
    }
    prelude = texts.pop("prelude")
    return {name: _needed(prelude, text) + text for name, text in texts.items()}


def _needed(prelude: bytes, script: bytes) -> bytes:
    """What a script uses of the prelude, and what that uses in turn. What is named in code counts as used.

    Redis makes each function anew in every call: making all of them took 10 µs, a tenth to a half of a call.
    """
    needed: list[bytes] = []
    words = _words(script)
    for part in reversed(re.split(rb"^(?=local )", prelude, flags=re.MULTILINE)):
        defined = _DEFINED.match(part)
        if defined is None or defined[1] in words:
            needed.append(part)
            words |= _words(part)
    return b"".join(reversed(needed))


def _words(text: bytes) -> set[bytes]:
    return set(re.findall(rb"\w+", _COMMENT.sub(b"", text)))


_DEFINED = re.compile(rb"local (?:function )?(\w+)")
_COMMENT = re.compile(rb"^ *--.*$", re.MULTILINE)


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(scripts()[script], usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Patience:
    """How long a call waits for Redis: for each reply (`timeout_s`), and how often it is then sent again."""

    timeout_s: float = SOCKET_TIMEOUT_S
    retries: int = RETRIES


def connect(url: str, patience: Patience = Patience()) -> redis.Redis:
    """A client for workers and tools. It waits for a connection rather than failing when many ask at once."""
    address = RedisAddress.parse(url).connection_options(redis)
    pool = redis.BlockingConnectionPool(max_connections=CONNECTIONS, **address, **_connection_options(Retry, patience))
    return redis.Redis.from_pool(pool)


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for the functions and the courier."""
    from redis.asyncio.retry import Retry as AsyncRetry

    address = RedisAddress.parse(url).connection_options(redis.asyncio)
    pool = redis.asyncio.BlockingConnectionPool(
        max_connections=CONNECTIONS, **address, **_connection_options(AsyncRetry, Patience())
    )
    heed_cancellations(pool)
    return redis.asyncio.Redis.from_pool(pool)


def _connection_options(retry: type[Any], patience: Patience) -> dict[str, Any]:
    return {
        "socket_timeout": patience.timeout_s,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_S, patience.timeout_s),
        "health_check_interval": 30,
        "retry": retry(ExponentialBackoff(cap=0.5, base=0.05), patience.retries),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
    }


_UNABLE = re.compile(r"\b(BUSY|MASTERDOWN|MISCONF|NOREPLICAS|READONLY)\b")
"""Redis is there and will not write now: a script that does not end, a full disk, a replica after a failover."""


@contextmanager
def translated() -> Iterator[None]:
    """Redis' failures as ours. redis-py takes the first word off an error that it has a class for; but 6.2 wraps what a
    command of a script answers in a text of its own, so that no class matches.
    """
    try:
        yield
    except ResponseError as error:
        if isinstance(error, OutOfMemoryError) or "-OOM" in str(error):
            raise MemoryHigh("the queue broker's memory is used up; nothing was stored", retry_after=10) from error
        if isinstance(error, MasterDownError | ReadOnlyError) or _UNABLE.search(str(error)):
            raise LedgerUnavailable("the queue broker cannot write now", retry_after=2) from error
        if isinstance(error, NoScriptError):  # it was loaded just now: Redis has restarted since
            raise LedgerUnavailable("the queue broker has restarted", retry_after=1) from error
        raise
    except (RedisConnectionError, RedisTimeoutError, InvalidResponse) as error:
        raise LedgerUnavailable("the queue broker does not answer", retry_after=2) from error


def _command(namespace: str, call: Call[Any]) -> Command:
    return ("EVALSHA", _sha(call.script), 1, namespace, *call.args)


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
                self._line.ask(("SCRIPT", "LOAD", scripts()[call.script]))
                reply = self._line.ask(command)
        return call.decode(reply)

    def job(self, job_id: str) -> JobRecord | None:
        """The record, of whatever tenant: a worker is one of darkroom's own parts."""
        return self.run(Call("view", ("job", job_id), _decode_view))


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
        for answer in await self.run_each([Call("view", ("job", job_id), _decode_view) for job_id in job_ids]):
            if isinstance(answer, DarkroomError):
                raise answer
            records.append(None if answer is None or tenant not in {None, answer.tenant} else answer)
        return records

    async def log(self, job_id: str, *, after: int = 0, limit: int | None = None) -> list[LogEntry]:
        """The job's log above `after`, in order; at most `limit` entries."""
        with translated():
            entries = await self._redis.xrange(f"{self.namespace}:log:{job_id}", min=f"{after + 1}-0", count=limit)
        return [_decode_entry(job_id, entry_id, fields) for entry_id, fields in entries]

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
            found[job_id] = _decode_entry(job_id, *reply[0]) if reply else None
        return found

    async def news(self, tenant: str, *, after: str, limit: int) -> list[NewsEntry]:
        """What happened to the tenant's jobs since the place `after`, in order, but for progress.

        How a job ended is taken from its record.
        """
        with translated():
            raw = await self._redis.xrange(f"{self.namespace}:news:{tenant}", min=f"({after}", count=limit)
        found = [(place.decode(), _decode_news(fields)) for place, fields in raw]
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
            logs.append([_decode_entry(job_id, entry_id, fields) for entry_id, fields in reply])
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
            heads.append(_decode_entry(job_id, *reply[0]) if reply else None)
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
            records = await self.run_each([Call("view", ("job", job_id), _decode_view) for job_id in ids])
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
        records = [_pairs(reply) for reply in _sound(await self._pipeline([("HGETALL", key) for key in keys]))]
        targets = [target_of(raw["tenant"], raw["url"]) if raw else "" for raw in records]
        about = _sound(await self._pipeline([("HGETALL", f"{self.namespace}:target:{target}") for target in targets]))
        return [
            _decode_subscription(raw, _pairs(target)) if raw else None
            for raw, target in zip(records, about, strict=True)
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
        records = [(each, _pairs(reply)) for each, reply in zip(ids, replies, strict=True) if reply]
        dues = await self._pipeline(
            [("ZSCORE", f"{self.namespace}:deliveries:{raw['target']}", each) for each, raw in records]
        )
        return [
            _decode_delivery(each, raw, None if due is None else int(float(due)))
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
        return [_pairs(fields)["entry"] for _, fields in reversed(entries)]

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
            raw = _pairs(record)
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
            for text in scripts().values():
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


def decode_live(job_id: str, payload: bytes) -> LogEntry:
    """A log entry as it was published."""
    seq, event, state, at, data = payload.decode().split("\n", 4)
    return LogEntry(job_id, int(seq), JobEvent(event), State(state), int(at), json.loads(data))


def _decode_entry(job_id: str, entry_id: bytes, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> LogEntry:
    raw = _pairs(fields)
    seq = int(entry_id.split(b"-")[0])
    return LogEntry(job_id, seq, JobEvent(raw["event"]), State(raw["state"]), int(raw["at"]), json.loads(raw["data"]))


def _decode_news(fields: Mapping[bytes, bytes]) -> LogEntry:
    job_id, seq, event, state, at = fields[b"entry"].decode().split(" ")
    return LogEntry(job_id, int(seq), JobEvent(event), State(state), int(at), {})


def _pairs(fields: Mapping[bytes, bytes] | Sequence[bytes]) -> dict[str, str]:
    """A hash or a stream entry as Redis answers it: a map, or names and values in turn."""
    pairs = fields.items() if isinstance(fields, Mapping) else zip(fields[::2], fields[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}


def _decode_view(reply: list[Any]) -> JobRecord | None:
    if not reply:
        return None
    raw = _pairs(reply[0])

    def number(name: str) -> int | None:
        return int(raw[name]) if name in raw else None

    return JobRecord(
        id=raw["id"],
        tenant=raw["tenant"],
        model=raw["model"],
        pool=raw["pool"],
        state=State(raw["state"]),
        input=json.loads(raw["input"]),
        fields=json.loads(raw["fields"]),
        created=int(raw["created"]),
        started=number("started"),
        ended=number("ended"),
        attempt=int(raw["attempt"]),
        counted=int(raw["counted"]),
        max_attempts=int(raw["max_attempts"]),
        priority=int(raw["priority"]),
        run_timeout=float(raw["run_timeout"]),
        start_deadline=number("start_deadline"),
        not_before=number("not_before"),
        worker=raw.get("worker"),
        progress=int(raw.get("progress", "0")),
        step=number("step"),
        steps=number("steps"),
        cancel_requested=number("cancel"),
        seq=int(raw["seq"]),
        end_seq=number("end_seq"),
        end_data=json.loads(raw["end_data"]) if "end_data" in raw else None,
        traceparent=raw.get("traceparent"),
        place=reply[1] or None,
        is_whole="input_archived" not in raw,
    )


def _decode_subscription(raw: Mapping[str, str], target: Mapping[str, str]) -> Subscription:
    return Subscription(
        id=raw["id"],
        tenant=raw["tenant"],
        url=raw["url"],
        events=frozenset(map(WebhookEvent, raw["events"].split())),
        models=tuple(raw["models"].split()),
        state=SubscriptionState(raw["state"]),
        reason=raw.get("reason"),
        created=int(raw["created"]),
        changed=int(raw["changed"]),
        generation=int(raw["generation"]),
        rotated=int(raw["rotated"]) if "rotated" in raw else None,
        failing_since=int(raw["failing_since"]) if "failing_since" in raw else None,
        validated=int(target["validated"]) if "validated" in target else None,
        allowed_rate=int(target["rate"]) if "rate" in target else None,
    )


def _decode_delivery(delivery_id: str, raw: Mapping[str, str], due: int | None) -> Delivery:
    numbers = sorted(int(name.removeprefix("try:")) for name in raw if name.startswith("try:"))
    return Delivery(
        id=delivery_id,
        job_id=raw["job"],
        seq=int(raw["seq"]),
        event=WebhookEvent(raw["event"]),
        recipient=raw["recipient"],
        tenant=raw["tenant"],
        url=raw["url"],
        state=DeliveryState(raw["state"]),
        reason=raw.get("reason"),
        created=int(raw["created"]),
        ended=int(raw["ended"]) if "ended" in raw else None,
        due=due,
        tried=int(raw["tried"]),
        tries=tuple(_decode_try(number, raw[f"try:{number}"]) for number in numbers),
    )


def _decode_try(number: int, text: str) -> Try:
    at, took_ms, status, error = text.split("\n", 3)
    return Try(number, int(at), int(took_ms), int(status) if status else None, error or None)

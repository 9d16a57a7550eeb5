"""Live: from the ledger's channels to everyone who follows a job.

One process has one `Live`: one connection to Redis for all that it follows, and one look into a log for all who follow
that job. A job's entries reach its followers only, in order, without gaps and without repeats: what a channel lost is
read again from the log, which is the truth. Nobody waits here for anybody else (`inbox.py`).

    record (whose is it?) → channel open → the newest entry of the log → what the channel says above it

Who has followed the job before says so with a cursor (`cursors.py`): then the log above it comes in place of the newest
entry. Where the log does not have what the cursor stands for, a `gap` says so, and the newest entry follows it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Protocol

import redis.asyncio
from darkroom.errors import DarkroomError, NotFound
from darkroom.ledger.channels import Channels
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord, LogEntry, decode_live
from darkroom.logs import logger
from darkroom.supervision import run_vital

from darkroom_functions.streams.cursors import Cursor
from darkroom_functions.streams.inbox import MESSAGE, PAGE, Inbox, Note, Told, TooSlow, note

LOOK_EVERY_S = 10.0
"""How often the newest entries of all followed jobs are read, in case a channel lost one: the longest that anybody
waits for a last message that was lost."""

LOOK_AGAIN_S = 1.0
"""How soon the next look is after one that failed."""

GATHER_S = 0.05
"""After a lost connection channels are confirmed one by one: so long they may gather for one look."""

MOST_LOOKED_AT = 500
"""Jobs whose newest entries are read in one round trip."""

_log = logger(__name__)


class Past(Protocol):
    """Finds a job that only the history has; None where there is none. Raises Gone for one that was deleted."""

    async def __call__(self, job_id: str, *, tenant: str) -> JobRecord | None: ...


@dataclass(frozen=True)
class Update:
    """An entry of a job's log, and the text that says it: encoded once for all followers."""

    entry: LogEntry
    text: str

    @property
    def kind(self) -> str:
        return MESSAGE

    @property
    def cursor(self) -> str:
        return self.entry.event_id.rpartition(":")[2]

    @cached_property
    def is_end(self) -> bool:
        """Of its job: nothing comes behind it."""
        return self.entry.state.is_terminal


class Gap(StrEnum):
    """Why a client is not told all that happened since its cursor."""

    LOG_GONE = "log-gone"  # it is kept for an hour after the job's end
    CURSOR_UNKNOWN = "cursor-unknown"  # the log has no such entry: Redis lost it, or it never was


@dataclass(frozen=True)
class Start:
    """How the following of a job begins: with `messages`; then it has been told the log up to entry `told` of the
    `head` that there is, the rest of which is read as it takes it.
    """

    messages: tuple[Told, ...]
    told: int
    head: int
    ended: bool


class Following(Inbox):
    """What one follower is told of each of its jobs: the newest entry, or those above a cursor, then all later ones."""

    def __init__(
        self,
        *,
        tenant: str,
        limit: int,
        read: Callable[[str, int], Awaitable[Sequence[Told]]],
        left: Callable[[str, Following], None],
    ) -> None:
        super().__init__(limit=limit)
        self.tenant = tenant
        self._read = read
        self._left = left
        self._living: dict[str, None] = {}  # the jobs whose end was not told
        self._told: dict[str, int] = {}  # the number of the last entry told, of those that have begun
        self._heads: dict[str, int] = {}  # the newest entry there is, of those whose log is being read
        self._early: list[Update] = []  # what came before the beginning

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The jobs whose end has not been told."""
        return tuple(self._living)

    @property
    def ended(self) -> bool:
        """Whether the end of every job has been told, and been taken."""
        return not (self._living or self._page or self._live)

    def follows(self, job_id: str) -> bool:
        """Whether the job's end has not been told."""
        return job_id in self._living

    def expect(self, job_ids: Iterable[str]) -> None:
        """`begin` will be called for these: what is offered before it waits for that."""
        self._living |= dict.fromkeys(job_ids)

    def begin(self, starts: Mapping[str, Start], *, greeting: Note | None = None) -> Collection[str]:
        """Tell how each job begins, and before it the greeting. Answers the jobs of which an entry is missing."""
        self._page += self._live  # one job's end may wait there, and the job begin again here
        self._live.clear()
        if len(self._page) > self._limit + 2 * PAGE:  # whoever goes on subscribing, and takes nothing
            self.fail(TooSlow(f"{len(self._page)} messages were waiting to be taken"))
        if greeting is not None:
            self._page.append(greeting)
        for job_id, start in starts.items():
            self._page.extend(start.messages)
            self._told[job_id] = start.told
            if start.ended:
                self._end(job_id)
            elif start.head > start.told:
                self._heads[job_id] = start.head
                self._behind = True
        early, self._early = self._early, []
        self._more.set()
        return {update.entry.job_id for update in early if not self.offer(update)}

    def offer(self, update: Update, *, of_log: bool = False) -> bool:
        """Tell it, unless it was told before; False when an entry before it is missing.

        `of_log` says that the log has none in between. A terminal entry is told whatever its number: after a rollback
        of Redis it may bear one that another entry had.
        """
        job_id, seq = update.entry.job_id, update.entry.seq
        told = self._told.get(job_id)
        if told is None:
            if job_id in self._living:
                self._early.append(update)
            return True
        if self._behind and job_id in self._heads:
            self._heads[job_id] = max(self._heads[job_id], seq)
            return True
        if seq > told + 1 and not of_log:
            return False
        if seq > told or update.is_end:
            self._mark(update)
            self.say(update)
        return True

    def leave(self, job_ids: Collection[str]) -> None:
        """Follow these no longer, those of them that it does; what still waits of them is not told."""
        gone = set(job_ids)
        for job_id in gone:
            self._end(job_id)
        self._page = deque(told for told in self._page if not _is_of(told, gone))
        self._live = deque(told for told in self._live if not _is_of(told, gone))

    def has_begun(self, job_id: str) -> bool:
        return job_id in self._told

    def told(self, job_id: str) -> int | None:
        """The number of the job's last entry that was told; None where nobody need read the log for it."""
        return None if job_id in self._heads else self._told.get(job_id)

    async def _read_on(self) -> None:
        """A page of the first log that is being read."""
        job_id = next(iter(self._heads))
        told = self._told[job_id]
        page = await self._read(job_id, told)
        if self._told.get(job_id) != told or job_id not in self._heads:
            return  # left meanwhile
        self._page.extend(page)
        for message in page:
            if isinstance(message, Update):
                self._mark(message)
            else:
                del self._heads[job_id]  # a gap, and what comes behind it is the newest
        if job_id in self._heads and self._told[job_id] >= self._heads[job_id]:
            del self._heads[job_id]
        self._behind = bool(self._heads)

    def _mark(self, update: Update) -> None:
        job_id = update.entry.job_id
        self._told[job_id] = update.entry.seq
        if update.is_end:
            self._end(job_id)

    def _end(self, job_id: str) -> None:
        if job_id in self._living:
            del self._living[job_id]
            self._told.pop(job_id, None)
            self._heads.pop(job_id, None)
            self._behind = bool(self._heads)
            self._left(job_id, self)


@dataclass(eq=False)
class _Job:
    """A job that is followed. `behind`: somebody misses an entry; `reading`: the log is being read."""

    id: str
    followers: dict[Following, None] = field(default_factory=dict)
    behind: bool = False
    reading: bool = False


class Live:
    """All that this process follows. `run` must run beside it; `encode` makes an entry's text."""

    def __init__(
        self,
        ledger: AsyncLedger,
        client: redis.asyncio.Redis,
        *,
        encode: Callable[[LogEntry], str],
        buffer: int,
        look_every_s: float = LOOK_EVERY_S,
        past: Past | None = None,
    ) -> None:
        """`past` finds jobs that only the history has; without it they count as unknown."""
        self._ledger = ledger
        self._past = past
        self._encode = encode
        self._buffer = buffer
        self._look_every_s = look_every_s
        self._channels = Channels(client, heard=self._heard, confirmed=self._confirmed)
        self._jobs: dict[str, _Job] = {}
        self._prefix = ledger.live_channel("")
        self._look_now = asyncio.Event()
        self._readers: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def follow(
        self, job_ids: Sequence[str], *, tenant: str, since: Mapping[str, Cursor] | None = None
    ) -> AsyncIterator[Following]:
        """Follow these jobs of a tenant while the block runs, those that `since` has a cursor of from there on.

        Raises NotFound naming those that the tenant has not, Gone for one that was deleted, LedgerUnavailable and
        HistoryUnavailable.
        """
        following = Following(tenant=tenant, limit=self._buffer, read=self._page, left=self._leave)
        try:
            await self.subscribe(following, job_ids, since=since or {})
            yield following
        finally:
            following.leave(following.job_ids)

    async def subscribe(
        self,
        following: Following,
        job_ids: Sequence[str],
        *,
        since: Mapping[str, Cursor],
        greeting: Note | None = None,
    ) -> None:
        """More jobs for one who follows already; those among them that it follows go on as they are.

        All of them, or none: raises what `follow` does. The greeting is told before the jobs.
        """
        fresh = [job_id for job_id in dict.fromkeys(job_ids) if not following.follows(job_id)]
        ends = await self._ends(fresh, following.tenant)
        following.expect(fresh)
        try:
            living = [job_id for job_id, end in ends.items() if end is None]
            for job_id in living:
                self._jobs.setdefault(job_id, _Job(job_id)).followers[following] = None
            await self._channels.open(self._ledger.live_channel(job_id) for job_id in living)
            starts = await self._starts(ends, {job_id: since[job_id] for job_id in fresh if job_id in since})
        except BaseException:
            following.leave(fresh)
            raise
        for job_id in following.begin(starts, greeting=greeting):
            if job_id in self._jobs:
                self._read(self._jobs[job_id])

    async def run(self) -> None:
        """Listen, and look every now and then whether a channel lost something; until cancelled.

        Where one of the two ends by itself, so does the process (`supervision.py`).
        """
        try:
            await run_vital({"channels": self._channels.run(), "look": self._look()})
        finally:
            for reader in self._readers:
                reader.cancel()

    async def _ends(self, job_ids: Sequence[str], tenant: str) -> dict[str, LogEntry | None]:
        """The terminal entry of each job that has one."""
        records = await self._ledger.jobs(job_ids, tenant=tenant)
        ends = {record.id: record.end for record in records if record is not None}
        missing = [job_id for job_id in job_ids if job_id not in ends]
        unknown: list[str] = []
        for job_id in missing:
            record = None if self._past is None else await self._past(job_id, tenant=tenant)
            if record is None:
                unknown.append(job_id)
            else:
                ends[job_id] = record.end
        if unknown:
            raise NotFound(f"there is no job {', '.join(unknown)}")
        return {job_id: ends[job_id] for job_id in job_ids}

    async def _starts(self, ends: Mapping[str, LogEntry | None], since: Mapping[str, Cursor]) -> dict[str, Start]:
        """How each job begins, given the terminal entries that there are."""
        living = [job_id for job_id, end in ends.items() if end is None]
        heads = {**ends, **dict(zip(living, await self._ledger.heads(living), strict=True))}
        numbers = {job_id: max(1, cursor.seq) for job_id, cursor in since.items() if cursor.seq is not None}
        known = await self._ledger.entries(numbers)
        starts: dict[str, Start] = {}
        for job_id, head in heads.items():
            newest = self._update(job_id, head)
            cursor = since.get(job_id)
            starts[job_id] = _snapshot(newest) if cursor is None else _resumed(newest, cursor, known.get(job_id))
        return starts

    async def _page(self, job_id: str, after: int) -> Sequence[Told]:
        """More of the log; where it has gone meanwhile, a gap and the newest entry."""
        entries = await self._ledger.log(job_id, after=after, limit=PAGE)
        if entries:
            return [self._update(job_id, entry) for entry in entries]
        (head,) = await self._ledger.heads([job_id])
        if head is None:
            (record,) = await self._ledger.jobs([job_id], tenant=None)
            head = None if record is None else record.end
        return [_gap(job_id, Gap.LOG_GONE), self._update(job_id, head)]

    def _leave(self, job_id: str, following: Following) -> None:
        """It follows the job no longer, if it did: one that has ended before is not among those here."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.followers.pop(following, None)
        if not job.followers:
            del self._jobs[job_id]
            self._channels.close([self._ledger.live_channel(job_id)])

    def _update(self, job_id: str, entry: LogEntry | None) -> Update:
        if entry is None:
            raise NotFound(f"there is no job {job_id}")
        return Update(entry, self._encode(entry))

    def _heard(self, channel: str, payload: bytes) -> None:
        job = self._jobs.get(channel.removeprefix(self._prefix))
        if job is not None:
            self._offer(job, decode_live(job.id, payload))

    def _confirmed(self, channel: str) -> None:
        """Mostly for the first time; after a lost connection, whatever was said in between is missing."""
        job = self._jobs.get(channel.removeprefix(self._prefix))
        if job is not None and any(following.has_begun(job.id) for following in job.followers):
            self._look_now.set()

    def _offer(self, job: _Job, entry: LogEntry, *, of_log: bool = False) -> None:
        """To all who follow the job. Where an entry before this one is missing, the log is read."""
        update = Update(entry, self._encode(entry))
        for following in tuple(job.followers):
            if not following.offer(update, of_log=of_log):
                self._read(job)

    def _read(self, job: _Job) -> None:
        job.behind = True
        if not job.reading:
            job.reading = True
            reader = asyncio.create_task(self._read_log(job), name=f"read log {job.id}")
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)

    async def _read_log(self, job: _Job) -> None:
        """Hand on what was missed, for as long as somebody misses something."""
        try:
            while job.behind:
                job.behind = False
                told = [number for following in job.followers if (number := following.told(job.id)) is not None]
                if not told:
                    return
                for entry in await self._ledger.log(job.id, after=min(told)):
                    self._offer(job, entry, of_log=True)
                    await asyncio.sleep(0)  # so that followers take what they are told, as they would have live
        except DarkroomError as error:
            _log.warning("log_not_read", job=job.id, error=error.detail)  # the next look finds it again
        finally:
            job.reading = False

    async def _look(self) -> None:
        pause_s = self._look_every_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_now.wait()
                await asyncio.sleep(GATHER_S)
            self._look_now.clear()
            try:
                await self._look_at(list(self._jobs))
                pause_s = self._look_every_s
            except DarkroomError as error:
                _log.warning("not_looked", jobs=len(self._jobs), error=error.detail)
                pause_s = min(LOOK_AGAIN_S, self._look_every_s)

    async def _look_at(self, job_ids: list[str]) -> None:
        """Offer the newest entry of each job: who misses one before it, or that one, gets them."""
        for first in range(0, len(job_ids), MOST_LOOKED_AT):
            some = job_ids[first : first + MOST_LOOKED_AT]
            for job_id, entry in zip(some, await self._ledger.heads(some), strict=True):
                job = self._jobs.get(job_id)
                if job is not None and entry is not None:
                    self._offer(job, entry)
                elif job is not None:
                    await self._look_for(job)

    async def _look_for(self, job: _Job) -> None:
        """A job without a log: it ended long ago, or a Redis that lost its last second never had it."""
        (record,) = await self._ledger.jobs([job.id], tenant=None)
        if record is not None and record.end is not None:
            self._offer(job, record.end, of_log=True)
        elif record is None:
            _log.error("job_vanished", job=job.id)
            for following in tuple(job.followers):
                following.fail(NotFound(f"there is no job {job.id} any more"))


def _snapshot(newest: Update, *before: Told) -> Start:
    entry = newest.entry
    return Start((*before, newest), told=entry.seq, head=entry.seq, ended=entry.state.is_terminal)


def _resumed(newest: Update, cursor: Cursor, known: LogEntry | None) -> Start:
    """How a job goes on behind a cursor. `known` is the log's entry of that number, of number 1 for 0."""
    head = newest.entry
    if cursor.seq is None:
        if head.state.is_terminal:
            return Start((), told=head.seq, head=head.seq, ended=True)
        return _snapshot(newest, _gap(head.job_id, Gap.CURSOR_UNKNOWN))
    if known is not None:
        told = cursor.seq - 1 if known.state.is_terminal else cursor.seq
        return Start((), told=told, head=head.seq, ended=False)
    if head.state.is_terminal and cursor.seq in (head.seq - 1, head.seq):
        return _snapshot(newest)  # the log has gone, and nothing is missing
    log_gone = head.state.is_terminal and cursor.seq < head.seq
    return _snapshot(newest, _gap(head.job_id, Gap.LOG_GONE if log_gone else Gap.CURSOR_UNKNOWN))


def _gap(job_id: str, reason: Gap) -> Note:
    return note("gap", job_id=job_id, reason=reason.value)


def _is_of(told: Told, job_ids: Collection[str]) -> bool:
    return isinstance(told, Update) and told.entry.job_id in job_ids

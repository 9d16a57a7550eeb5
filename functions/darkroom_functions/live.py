"""Live: from the ledger's channels to everyone who follows a job.

One process has one `Live`: one connection to Redis for all that it follows, and one look into a log for all who follow
that job. A job's entries reach its followers only, in order, without gaps and without repeats: what a channel lost is
read again from the log, which is the truth. Nobody waits here for anybody else; who takes too slowly is cut off.

    record (whose is it?) → channel open → newest entry of the log (the snapshot) → what the channel says above it
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import redis.asyncio
from darkroom.channels import Channels
from darkroom.errors import DarkroomError, NotFound, TemporaryError
from darkroom.ledger import AsyncLedger, LogEntry, decode_live
from darkroom.logs import logger

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


class TooSlow(TemporaryError):
    """A follower took its messages more slowly than they came."""

    slug, title = "too-slow", "Messages were not taken as fast as they came"


@dataclass(frozen=True)
class Update:
    """An entry of a job's log, and the text that says it: encoded once for all followers."""

    entry: LogEntry
    text: str


class Following:
    """What one follower is told of its jobs: a snapshot of each, then every later entry once, in order.

    At most `limit` texts wait for it beside the snapshot.
    """

    def __init__(self, job_ids: Sequence[str], *, limit: int) -> None:
        self.job_ids = tuple(dict.fromkeys(job_ids))
        self._limit = limit + len(self.job_ids)
        self._told: dict[str, int] = {}  # the number of the last entry told, by job
        self._living = set(self.job_ids)
        self._early: list[Update] = []  # what came before the snapshot
        self._texts: deque[str] = deque()
        self._more = asyncio.Event()
        self._failed: asyncio.Future[DarkroomError] = asyncio.get_running_loop().create_future()

    @property
    def ended(self) -> bool:
        """Whether the end of every job has been told, and been taken."""
        return not self._living and not self._texts

    async def next(self) -> str:
        """The next text, as soon as there is one."""
        while not self._texts:
            self._more.clear()
            await self._more.wait()
        return self._texts.popleft()

    async def failure(self) -> None:
        """Returns never; raises TooSlow, or what else ends the following, as soon as it does."""
        raise await self._failed

    def say(self, text: str) -> None:
        """Tell it something of another kind."""
        if len(self._texts) >= self._limit:
            self.fail(TooSlow(f"{self._limit} messages were waiting to be taken"))
            return
        self._texts.append(text)
        self._more.set()

    def fail(self, fault: DarkroomError) -> None:
        """It ends here: `failure` raises this."""
        if not self._failed.done():
            self._failed.set_result(fault)

    def begin(self, snapshot: Iterable[Update]) -> Collection[str]:
        """The state of each job, told before all else. Answers the jobs of which an entry is missing already."""
        for update in snapshot:
            self._tell(update)
        early, self._early = self._early, []
        return {update.entry.job_id for update in early if not self.offer(update)}

    def offer(self, update: Update, *, of_log: bool = False) -> bool:
        """Tell it, unless it was told before; False when an entry before it is missing.

        `of_log` says that the log has none in between. A terminal entry is told whatever its number: after a rollback
        of Redis it may bear one that another entry had.
        """
        entry = update.entry
        if entry.job_id not in self._living:
            return True
        told = self._told.get(entry.job_id)
        if told is None:
            self._early.append(update)
            return True
        if entry.seq > told + 1 and not of_log:
            return False
        if entry.seq > told or entry.state.is_terminal:
            self._tell(update)
        return True

    def told(self, job_id: str) -> int | None:
        """The number of the job's last entry that was told; None before the snapshot, and after the end."""
        return self._told.get(job_id) if job_id in self._living else None

    def _tell(self, update: Update) -> None:
        entry = update.entry
        self._told[entry.job_id] = entry.seq
        if entry.state.is_terminal:
            self._living.discard(entry.job_id)
        self.say(update.text)


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
        self, ledger: AsyncLedger, client: redis.asyncio.Redis, *, encode: Callable[[LogEntry], str], buffer: int
    ) -> None:
        self._ledger = ledger
        self._encode = encode
        self._buffer = buffer
        self._channels = Channels(client, heard=self._heard, confirmed=self._confirmed)
        self._jobs: dict[str, _Job] = {}
        self._prefix = ledger.live_channel("")
        self._look_now = asyncio.Event()
        self._readers: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def follow(self, job_ids: Sequence[str], *, tenant: str) -> AsyncIterator[Following]:
        """Follow these jobs of a tenant while the block runs.

        Raises NotFound naming those that the tenant has not, and LedgerUnavailable.
        """
        following = Following(job_ids, limit=self._buffer)
        ends = await self._ends(following.job_ids, tenant)
        living = [job_id for job_id, end in ends.items() if end is None]
        for job_id in living:
            self._jobs.setdefault(job_id, _Job(job_id)).followers[following] = None
        try:
            await self._channels.open(self._ledger.live_channel(job_id) for job_id in living)
            entries = ends | dict(zip(living, await self._ledger.heads(living), strict=True))
            for job_id in following.begin([self._update(job_id, entry) for job_id, entry in entries.items()]):
                self._read(self._jobs[job_id])
            yield following
        finally:
            for job_id in living:
                self._leave(job_id, following)

    async def run(self) -> None:
        """Listen, and look every now and then whether a channel lost something; until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._channels.run(), name="channels")
                group.create_task(self._look(), name="look")
        finally:
            for reader in self._readers:
                reader.cancel()

    async def _ends(self, job_ids: Sequence[str], tenant: str) -> dict[str, LogEntry | None]:
        """The terminal entry of each job that has one."""
        records = await self._ledger.jobs(job_ids, tenant=tenant)
        ends = {record.id: record.end for record in records if record is not None}
        if unknown := [job_id for job_id in job_ids if job_id not in ends]:
            raise NotFound(f"there is no job {', '.join(unknown)}")
        return ends

    def _leave(self, job_id: str, following: Following) -> None:
        job = self._jobs[job_id]
        del job.followers[following]
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
        if job is not None and any(following.told(job.id) is not None for following in job.followers):
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
        pause_s = LOOK_EVERY_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_now.wait()
                await asyncio.sleep(GATHER_S)
            self._look_now.clear()
            try:
                await self._look_at(list(self._jobs))
                pause_s = LOOK_EVERY_S
            except DarkroomError as error:
                _log.warning("not_looked", jobs=len(self._jobs), error=error.detail)
                pause_s = LOOK_AGAIN_S

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

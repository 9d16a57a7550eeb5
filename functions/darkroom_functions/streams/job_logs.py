"""Job logs as a source: each entry is published as it is written, and numbered by `seq`.

A client without a cursor begins with the newest entry, which is the present state of the job. With a cursor it receives
the entries above it instead; where the log does not have the entry of the cursor, a gap and then the newest entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from darkroom.errors import NotFound
from darkroom.jobs import UnknownValue
from darkroom.ledger import reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import JobRecord, LogEntry, decode_live

from darkroom_functions.streams.cursors import Cursor, Position
from darkroom_functions.streams.feed import PAGE, Start
from darkroom_functions.streams.messages import ControlMessage, GapReason, StreamMessage, Update, gap


class HistoryReader(Protocol):
    """Reads a job that only the history has; None where there is none. Raises Gone for one that was deleted."""

    async def __call__(self, job_id: str, *, tenant: str) -> JobRecord | None: ...


class JobLogs:
    """The logs of jobs, by job id. `encode` returns the text of an entry.

    `past` finds jobs that only the history has; without it they are unknown.
    """

    kind = "job"

    def __init__(
        self, ledger: AsyncLedger, *, encode: Callable[[LogEntry], str], past: HistoryReader | None = None
    ) -> None:
        self._ledger = ledger
        self._encode = encode
        self._past = past

    def channel(self, name: str) -> str:
        return self._ledger.keys.live_channel(name)

    def decode(self, name: str, payload: bytes) -> Update | None:
        """The entry; None where only the record shows whether its state, of a later version, is terminal (`read`)."""
        entry = decode_live(name, payload)
        return None if isinstance(entry.state, UnknownValue) else self._update(entry)

    async def ends(self, names: Collection[str], *, tenant: str) -> Mapping[str, Update]:
        """The terminal entries, from the records."""
        job_ids = list(names)
        records = dict(zip(job_ids, await self._ledger.jobs(job_ids, tenant=tenant), strict=True))
        if self._past is not None:
            for job_id in (name for name, record in records.items() if record is None):
                records[job_id] = await self._past(job_id, tenant=tenant)
        if unknown := [job_id for job_id, record in records.items() if record is None]:
            raise NotFound(f"there is no job {', '.join(unknown)}")
        return {
            job_id: self._update(record.end, is_end=True)
            for job_id, record in records.items()
            if record is not None and record.end is not None
        }

    async def starts(
        self, names: Collection[str], *, ends: Mapping[str, Update], since: Mapping[str, Cursor]
    ) -> Mapping[str, Start]:
        """The snapshot of each job without a cursor, or the position of its cursor in the log."""
        heads = await self._heads([name for name in names if name not in ends])
        positions = {name: since[name].position for name in names if name in since}
        numbers = {name: max(1, position[1]) for name, position in positions.items() if position is not None}
        known = await reads.log_entries(self._ledger, numbers)
        starts: dict[str, Start] = {}
        for name in names:
            if name not in ends and name not in heads:
                raise NotFound(f"there is no job {name}")
            newest = ends[name] if name in ends else self._update(heads[name])
            starts[name] = _resumed(newest, since[name], known.get(name)) if name in since else _snapshot(newest)
        return starts

    async def read(self, name: str, after: Position) -> Sequence[Update]:
        """The entries; of a log that is no longer kept, the terminal entry from the record."""
        entries = await reads.log(self._ledger, name, after=after[1], limit=PAGE)
        if entries and not isinstance(entries[-1].state, UnknownValue):
            return [self._update(entry) for entry in entries]
        record = await self._ledger.job(name, tenant=None)
        if entries:
            end_seq = None if record is None else record.end_seq
            return [self._update(entry, is_end=entry.seq == end_seq) for entry in entries]
        if record is None:
            raise NotFound(f"there is no job {name} any more")
        return [] if record.end is None else [self._update(record.end, is_end=True)]

    async def read_page(self, name: str, after: Position) -> Sequence[StreamMessage]:
        """As `read`. The numbers of a log have no gaps, so a first number that is too high shows that it has gone."""
        page = await self.read(name, after)
        is_whole = not page or page[0].position[1] <= after[1] + 1
        return page if is_whole else [_gap(name, GapReason.LOG_GONE), *page]

    async def newest(self, names: Sequence[str]) -> Mapping[str, Update]:
        """The newest entry of each log that is kept, without those that have to be read as in `decode`."""
        heads = await self._heads(names)
        return {name: self._update(entry) for name, entry in heads.items() if not isinstance(entry.state, UnknownValue)}

    async def _heads(self, names: Sequence[str]) -> Mapping[str, LogEntry]:
        heads = await reads.log_heads(self._ledger, names)
        return {name: entry for name, entry in zip(names, heads, strict=True) if entry is not None}

    def _update(self, entry: LogEntry, *, is_end: bool = False) -> Update:
        """`is_end`: the record shows that the entry is the terminal one, whatever its state."""
        cursor = entry.event_id.rpartition(":")[2]
        is_end = is_end or entry.state.is_terminal
        return Update(entry.job_id, (0, entry.seq), cursor, self._encode(entry), is_end=is_end)


def _snapshot(newest: Update, *before: ControlMessage) -> Start:
    return Start((*before, newest), position=newest.position, head=newest.position, ended=newest.is_end)


def _resumed(newest: Update, cursor: Cursor, known: LogEntry | None) -> Start:
    """How a job continues after a cursor. `known` is the log's entry of that number, of number 1 for 0."""
    head = newest.position
    if cursor.position is None:
        if newest.is_end:
            return Start((), position=head, head=head, ended=True)
        return _snapshot(newest, _gap(newest.source, GapReason.CURSOR_UNKNOWN))
    seq = cursor.position[1]
    if known is not None:
        last = seq - 1 if known.state.is_terminal else seq
        return Start((), position=(0, min(last, head[1] - 1) if newest.is_end else last), head=head)
    if newest.is_end and seq in (head[1] - 1, head[1]):
        return _snapshot(newest)  # the log has gone, but no entry is missing
    log_gone = newest.is_end and seq < head[1]
    return _snapshot(newest, _gap(newest.source, GapReason.LOG_GONE if log_gone else GapReason.CURSOR_UNKNOWN))


def _gap(job_id: str, reason: GapReason) -> ControlMessage:
    return gap(reason, job_id=job_id)

"""What the ledger stores, as values, and how Redis' replies are decoded into them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darkroom import traces
from darkroom.jobs import JobEvent, State
from darkroom.webhooks.subscriptions import (
    Delivery,
    DeliveryState,
    Subscription,
    SubscriptionState,
    Try,
    Webhook,
    WebhookEvent,
)


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
class StreamEntry:
    """An entry of a tenant's stream: the log entry, and its `position` there, at which a reader resumes.

    `is_whole` is False where the entry lacks its data, because the job's record is no longer stored.
    """

    position: str
    entry: LogEntry
    is_whole: bool


STREAM_START_ID = "0-0"
"""The position before all entries of a stream."""


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


def decode_live(job_id: str, payload: bytes) -> LogEntry:
    """A log entry as it was published."""
    seq, event, state, at, data = payload.decode().split("\n", 4)
    return LogEntry(job_id, int(seq), JobEvent(event), State(state), int(at), json.loads(data))


def decode_entry(job_id: str, entry_id: bytes, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> LogEntry:
    raw = pairs(fields)
    seq = int(entry_id.split(b"-")[0])
    return LogEntry(job_id, seq, JobEvent(raw["event"]), State(raw["state"]), int(raw["at"]), json.loads(raw["data"]))


def decode_stream_entry(fields: Mapping[bytes, bytes] | Sequence[bytes]) -> LogEntry:
    job_id, seq, event, state, at = pairs(fields)["entry"].split(" ")
    return LogEntry(job_id, int(seq), JobEvent(event), State(state), int(at), {})


def pairs(fields: Mapping[bytes, bytes] | Sequence[bytes]) -> dict[str, str]:
    """A hash or a stream entry as Redis answers it: a map, or names and values in turn."""
    pairs = fields.items() if isinstance(fields, Mapping) else zip(fields[::2], fields[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}


def decode_view(reply: list[Any]) -> JobRecord | None:
    if not reply:
        return None
    raw = pairs(reply[0])

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


def decode_subscription(raw: Mapping[str, str], target: Mapping[str, str]) -> Subscription:
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


def decode_delivery(delivery_id: str, raw: Mapping[str, str], due: int | None) -> Delivery:
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

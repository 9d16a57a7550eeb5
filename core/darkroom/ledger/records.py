"""The values that the ledger stores, the table of a job's fields, and the decoding of Redis' replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from darkroom import traces
from darkroom.jobs import JobEvent, State, UnknownValue, read_value
from darkroom.webhooks.subscriptions import (
    Delivery,
    DeliveryState,
    Subscription,
    SubscriptionState,
    Try,
    Webhook,
    WebhookEvent,
    read_events,
)


class FieldType(StrEnum):
    """The type of a field of the record: how Redis, SQL (`history/schema.py`) and views write its value."""

    ID = "id"
    TEXT = "text"
    STATE = "state"
    JSON = "json"
    INTEGER = "integer"
    SMALL = "small"
    """An integer of at most 16 bits."""
    DECIMAL = "decimal"
    TIME = "time"
    """Milliseconds since the epoch; RFC 3339 text in views."""


@dataclass(frozen=True)
class RecordField:
    """A field of a job's record. `name` and `is_optional` are filled in from its declaration in `JobRecord`.

    `meaning` is its description in the API. `redis` is its name in Redis' hash where it has another one there, and
    `in_redis` is False where it has none. `in_history`: whether the history has a column of its name. `views` are the
    members of the job's view that show it. `absent` is its value where the hash lacks it; `minimum` and `maximum` bound
    an integer.
    """

    type: FieldType
    meaning: str
    redis: str = ""
    in_redis: bool = True
    in_history: bool = True
    views: tuple[str, ...] = ()
    absent: int | None = None
    minimum: int = 0
    maximum: int | None = None
    name: str = ""
    is_optional: bool = False


_ID, _TEXT, _STATE, _JSON, _INTEGER, _SMALL, _DECIMAL, _TIME = FieldType


@dataclass(frozen=True)
class JobRecord:
    """A job as the ledger has it: the one table of its fields.

    The decoding of Redis' reply (`decode_job`), the history's columns and rows (`history/`), the job's view
    (`resources/views.py`) and its schema (`resources/schemas.py`) derive from it. A new field needs a line here, the
    script that sets it, and a migration where the history stores it. Times are milliseconds since the epoch.

    `is_whole` is False where only the history still has the input, and `input` is empty (`Lookup.completed`).
    """

    id: Annotated[str, RecordField(_ID, "The job's id.", views=("id", "job_id", "task_id", "celery_task_id"))]
    tenant: Annotated[str, RecordField(_TEXT, "The tenant that the job belongs to.")]
    key_id: Annotated[
        str | None,
        RecordField(_TEXT, "The credential that submitted the job: the id of an API key."),
    ]
    model: Annotated[str, RecordField(_TEXT, "The name of the model.", views=("model",))]
    pool: Annotated[str, RecordField(_TEXT, "The worker pool that runs the job.")]
    state: Annotated[State | UnknownValue, RecordField(_STATE, "The job's state.", views=("state", "status"))]
    input: Annotated[
        Mapping[str, Any],
        RecordField(_JSON, "The model's parameters, defaults and the drawn seed included.", views=("input",)),
    ]
    fields: Annotated[
        Mapping[str, Any], RecordField(_JSON, "Fields of the submission that concern no engine: user, webhook, event.")
    ]
    created: Annotated[int, RecordField(_TIME, "Time of the job's acceptance.", views=("created_at",))]
    started: Annotated[int | None, RecordField(_TIME, "Start of the first attempt.", views=("started_at",))]
    ended: Annotated[int | None, RecordField(_TIME, "Time of the terminal state.", views=("ended_at",))]
    attempt: Annotated[int, RecordField(_INTEGER, "Number of attempts that were started.", views=("attempt",))]
    counted: Annotated[int, RecordField(_INTEGER, "Number of attempts that count.", views=("attempts_counted",))]
    max_attempts: Annotated[
        int,
        RecordField(_INTEGER, "Limit of the attempts that count.", views=("max_attempts",), minimum=1),
    ]
    images: Annotated[
        int | None, RecordField(_INTEGER, "Number of images that the job requests.", in_history=False, minimum=1)
    ]
    gpu_ms: Annotated[int, RecordField(_INTEGER, "Duration of all its attempts in milliseconds.", absent=0)]
    priority: Annotated[
        int, RecordField(_SMALL, "Priority, from 0 (first) to 9 (last).", views=("priority",), maximum=9)
    ]
    run_timeout: Annotated[
        float, RecordField(_DECIMAL, "Longest duration of an attempt in seconds.", views=("run_timeout",))
    ]
    start_deadline: Annotated[
        int | None, RecordField(_TIME, "Time when the job expires unless it was started.", views=("start_deadline",))
    ]
    not_before: Annotated[
        int | None,
        RecordField(_TIME, "Earliest time of the next attempt.", views=("not_before",), in_history=False),
    ]
    held: Annotated[
        str | None,
        RecordField(
            _TEXT,
            "The owner of the running limit that the job waits for, `tenant` or `key`; null for a job that may start.",
            views=("held",),
            in_history=False,
        ),
    ]
    worker: Annotated[str | None, RecordField(_TEXT, "Name of the worker of the latest attempt.", views=("worker",))]
    progress: Annotated[int, RecordField(_SMALL, "Progress in percent.", views=("progress",), absent=0, maximum=100)]
    step: Annotated[int | None, RecordField(_INTEGER, "Number of the engine's steps done.", views=("step",))]
    steps: Annotated[int | None, RecordField(_INTEGER, "Number of the engine's steps in all.", views=("steps",))]
    cancel_requested: Annotated[
        int | None,
        RecordField(_TIME, "Time when the cancellation was requested.", redis="cancel", views=("cancel_requested_at",)),
    ]
    seq: Annotated[int, RecordField(_INTEGER, "Number of the newest entry of its log.")]
    end_seq: Annotated[int | None, RecordField(_INTEGER, "Number of the terminal entry of its log.")]
    end_data: Annotated[
        Mapping[str, Any] | None, RecordField(_JSON, "Data of the terminal entry: the result, or the error.")
    ]
    traceparent: Annotated[str | None, RecordField(_TEXT, "W3C trace context of the job.", views=("traceparent",))]
    place: Annotated[
        int | None,
        RecordField(
            _INTEGER,
            "Position in the queue, 1 being next.",
            views=("place",),
            in_redis=False,
            in_history=False,
            minimum=1,
        ),
    ]
    is_whole: bool = True

    @property
    def about(self) -> dict[str, str]:
        """Fields of a log line about the job."""
        return {"job": self.id, "pool": self.pool, **traces.in_logs(self.traceparent)}

    @property
    def webhook(self) -> Webhook | None:
        """The webhook that the job named for its own events."""
        return Webhook.of(self.fields)

    @property
    def end(self) -> LogEntry | None:
        """The terminal entry of its log, which the record outlives; None before the terminal state."""
        if self.end_seq is None or self.ended is None:
            return None
        event = read_value(JobEvent, self.state)
        return LogEntry(self.id, self.end_seq, event, self.state, self.ended, self.end_data or {})


def _declared() -> Iterator[RecordField]:
    for name, hint in get_type_hints(JobRecord, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, declared = get_args(hint)
            yield replace(declared, name=name, is_optional=type(None) in get_args(kind))


FIELDS = tuple(_declared())
"""The fields of the record, in the order of their declaration."""


@dataclass(frozen=True)
class LogEntry:
    """One entry of a job's log: its `seq`-th event, at `at` (ms), and the state after it."""

    job_id: str
    seq: int
    event: JobEvent | UnknownValue
    state: State | UnknownValue
    at: int
    data: Mapping[str, Any]

    @property
    def event_id(self) -> str:
        """The permanent id of the event on every transport; that of a terminal one survives a rollback of Redis."""
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
    """The registration of a worker."""

    name: str
    pool: str
    pod: str
    state: str
    seen: int
    job: str | None


@dataclass(frozen=True)
class Page:
    """One page of a tenant's jobs, newest first. `after` is the cursor of the next page; None for the last one."""

    jobs: tuple[JobRecord, ...]
    after: str | None


@dataclass(frozen=True)
class Memory:
    """Redis' memory in bytes; `limit` is 0 where none is set."""

    used: int
    limit: int

    @property
    def high(self) -> bool:
        """Whether more than 80 % is used: accepted jobs need memory to run and finish."""
        return self.limit > 0 and self.used > 0.8 * self.limit


@dataclass(frozen=True)
class ForeignMessages:
    """Number of foreign messages that a pool's workers dropped; time (ms) and reason of the last one."""

    count: int
    last: int
    reason: str


@dataclass(frozen=True)
class Outbox:
    """The number of jobs with pending events, and the age (ms) of the oldest of these events."""

    jobs: int
    age_ms: int


@dataclass(frozen=True)
class Marks:
    """Of a terminal job: the time when its end was applied (ms, None: not yet), and whether it became a dead letter."""

    applied: int | None
    is_dead: bool


def decode_live(job_id: str, payload: bytes) -> LogEntry:
    """A log entry as it was published."""
    seq, event, state, at, data = payload.decode().split("\n", 4)
    return LogEntry(job_id, int(seq), read_value(JobEvent, event), read_value(State, state), int(at), json.loads(data))


def decode_entry(job_id: str, entry_id: bytes, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> LogEntry:
    raw = pairs(fields)
    seq = int(entry_id.split(b"-")[0])
    return LogEntry(
        job_id,
        seq,
        read_value(JobEvent, raw["event"]),
        read_value(State, raw["state"]),
        int(raw["at"]),
        json.loads(raw["data"]),
    )


def decode_stream_entry(fields: Mapping[bytes, bytes] | Sequence[bytes]) -> LogEntry:
    job_id, seq, event, state, at, *_ = pairs(fields)["entry"].split(" ")  # a later version may append words
    return LogEntry(job_id, int(seq), read_value(JobEvent, event), read_value(State, state), int(at), {})


def pairs(fields: Mapping[bytes, bytes] | Sequence[bytes]) -> dict[str, str]:
    """A hash or a stream entry as Redis returns it: a map, or names and values in turn."""
    pairs = fields.items() if isinstance(fields, Mapping) else zip(fields[::2], fields[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}


def decode_job(reply: list[Any]) -> JobRecord | None:
    """The reply of `read_job`: the record's hash and the queue position (0: none); empty where there is no record.

    Fields of the hash that are not in the table are ignored: a later version's, and those that are the scripts' own.
    """
    if not reply:
        return None
    record, position = reply
    values: dict[str, Any] = {**_ABSENT, "place": position or None, "is_whole": True}
    for name, value in record.items() if isinstance(record, Mapping) else zip(record[::2], record[1::2], strict=True):
        if decoder := _DECODERS.get(name):
            field, decode = decoder
            values[field] = decode(value)
        elif name == b"input_archived":
            values["is_whole"] = False
    return JobRecord(**values)


_DECODE_TYPE: Mapping[FieldType, Callable[[bytes], Any]] = {
    FieldType.ID: bytes.decode,
    FieldType.TEXT: bytes.decode,
    FieldType.STATE: lambda value: read_value(State, value.decode()),
    FieldType.JSON: lambda value: json.loads(value.decode()),
    FieldType.INTEGER: int,
    FieldType.SMALL: int,
    FieldType.DECIMAL: float,
    FieldType.TIME: int,
}

_DECODERS = {
    (field.redis or field.name).encode(): (field.name, _DECODE_TYPE[field.type]) for field in FIELDS if field.in_redis
}
_ABSENT = {field.name: field.absent for field in FIELDS if field.is_optional or field.absent is not None}


def decode_subscription(raw: Mapping[str, str], target: Mapping[str, str]) -> Subscription:
    return Subscription(
        id=raw["id"],
        tenant=raw["tenant"],
        url=raw["url"],
        events=read_events(raw["events"].split()),
        models=tuple(raw["models"].split()),
        state=read_value(SubscriptionState, raw["state"]),
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
        event=read_value(WebhookEvent, raw["event"]),
        recipient=raw["recipient"],
        tenant=raw["tenant"],
        url=raw["url"],
        state=read_value(DeliveryState, raw["state"]),
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

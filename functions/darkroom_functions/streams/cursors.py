"""Cursors: the last entry that a client has, as the client states it when it connects again.

The cursor of a job is the part of an `event_id` after the colon: the number of the last entry that the client has, or
`end`. So `since=7`, `since=end` and the whole event id `since=<job>:7` are cursors of one job, and event ids separated
by commas those of several; the `Last-Event-ID` of an event stream is one too. A number never stands for the end of a
job: after a Redis that lost its last second, the end may bear a number that the client has from another entry.

The cursor of a tenant's stream is the id of an entry in it, which each message of the stream has.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from darkroom.catalogue.parameters import read_integer, shown
from darkroom.errors import FieldError, InvalidInput
from darkroom.jobs import JOB_ID_PATTERN

SINCE = "since"
"""The parameter of a query, and the member of a frame."""

END = "end"

_NUMBER = re.compile(r"[0-9]{1,15}")
"""Exact as a double, which is what numbers are in JavaScript."""

_ENTRY_ID = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")

OF_JOB_PATTERN = f"({JOB_ID_PATTERN}:)?({_NUMBER.pattern}|{END})"
OF_TENANT_PATTERN = f"(0|{_ENTRY_ID.pattern})"
"""What `of_job` and `of_tenant` accept, for the description."""

Position = tuple[int, int]
"""Where an entry stands: (0, `seq`) in the log of a job, (milliseconds, counter) in the stream of a tenant."""

STREAM_START: Position = (0, 0)
"""Before the first entry of a tenant's stream."""


@dataclass(frozen=True)
class Cursor:
    """The last entry that a client has; `position` is None for the terminal entry of a job."""

    position: Position | None


def of_job(text: str, job_id: str) -> Cursor:
    """The cursor of a single job. Raises InvalidInput."""
    cursor = _cursor(text.removeprefix(f"{job_id}:"))
    if cursor is None:
        _refuse(f'must be the number of an entry, "{END}", or an event_id of the job, not "{shown(text)}"')
    return cursor


def of_jobs(text: str, job_ids: Collection[str]) -> dict[str, Cursor]:
    """The cursors of some of these jobs: event ids separated by commas. Raises InvalidInput."""
    cursors: dict[str, Cursor] = {}
    for item in text.split(","):
        job_id, _, rest = item.rpartition(":")
        cursor = _cursor(rest)
        if cursor is None or job_id not in job_ids:
            _refuse(f'must be event ids of the jobs, separated by commas, not "{shown(item)}"')
        if job_id in cursors:
            _refuse(f"names {job_id} twice")
        cursors[job_id] = cursor
    return cursors


def of_frame(value: Any, job_ids: Collection[str]) -> dict[str, Cursor]:
    """The cursors in a frame: `{job: 7}`, `{job: "end"}` or `{job: event_id}`. Raises InvalidInput."""
    if not isinstance(value, dict):
        _refuse("must be an object with the cursor of each job under its id")
    cursors: dict[str, Cursor] = {}
    for job_id, item in value.items():
        if job_id not in job_ids:
            _refuse(f'names "{shown(job_id)}", which is not among job_ids')
        try:
            cursors[job_id] = of_job(item if isinstance(item, str) else str(read_integer(item)), job_id)
        except ValueError:
            _refuse(f"of {job_id} must be an integer or a string")
    return cursors


def of_tenant(text: str) -> Cursor:
    """The cursor of a tenant's stream; `0` is before the oldest entry that is kept. Raises InvalidInput."""
    if text == "0":
        return Cursor(STREAM_START)
    if not _ENTRY_ID.fullmatch(text):
        _refuse(f'must be the cursor of a message, or 0, not "{shown(text)}"')
    return Cursor(position_of(text))


def position_of(entry_id: str) -> Position:
    """The position of an entry of a tenant's stream, given its id in Redis."""
    milliseconds, _, counter = entry_id.partition("-")
    return int(milliseconds), int(counter)


def entry_id(position: Position) -> str:
    """The id in Redis of an entry of a tenant's stream."""
    return f"{position[0]}-{position[1]}"


def _cursor(text: str) -> Cursor | None:
    if text == END:
        return Cursor(None)
    return Cursor((0, int(text))) if _NUMBER.fullmatch(text) else None


def _refuse(detail: str) -> NoReturn:
    raise InvalidInput(f"{SINCE} {detail}", fields=[FieldError(SINCE, detail)])

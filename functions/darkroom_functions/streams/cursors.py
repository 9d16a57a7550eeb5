"""Cursors: how far a client has read, as it says so itself when it comes again.

The cursor of a job is what stands behind the colon of an `event_id`: the number of the last entry that the client has,
or `end`. So `since=7`, `since=end` and the whole event id `since=<job>:7` say it for one job, and event ids with commas
between them for several; an event stream's `Last-Event-ID` is one too. A number never stands for the end of a job:
after a Redis that lost its last second, the end may bear a number that the client knows from another entry.

The cursor of a tenant's news is the place of an entry there, as its message says.
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

_PLACE = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")

OF_JOB_PATTERN = f"({JOB_ID_PATTERN}:)?({_NUMBER.pattern}|{END})"
OF_NEWS_PATTERN = f"(0|{_PLACE.pattern})"
"""What `of_job` and `of_news` accept, for the description."""


@dataclass(frozen=True)
class Cursor:
    """The last entry of a job's log that a client has; `seq` is None for the terminal one, and 0 before the first."""

    seq: int | None


def of_job(text: str, job_id: str) -> Cursor:
    """The cursor of a single job. Raises InvalidInput."""
    cursor = _cursor(text.removeprefix(f"{job_id}:"))
    if cursor is None:
        _refuse(f'must be the number of an entry, "{END}", or an event_id of the job: "{shown(text)}" is none')
    return cursor


def of_jobs(text: str, job_ids: Collection[str]) -> dict[str, Cursor]:
    """The cursors of some of these jobs: event ids with commas between them. Raises InvalidInput."""
    cursors: dict[str, Cursor] = {}
    for item in text.split(","):
        job_id, _, rest = item.rpartition(":")
        cursor = _cursor(rest)
        if cursor is None or job_id not in job_ids:
            _refuse(f'must be event ids of the jobs, with commas between them: "{shown(item)}" is none')
        if job_id in cursors:
            _refuse(f"names {job_id} twice")
        cursors[job_id] = cursor
    return cursors


def of_frame(value: Any, job_ids: Collection[str]) -> dict[str, Cursor]:
    """The cursors in a frame: `{job: 7}`, `{job: "end"}` or `{job: event_id}`. Raises InvalidInput."""
    if not isinstance(value, dict):
        _refuse("must be an object: the cursor of a job, by its id")
    cursors: dict[str, Cursor] = {}
    for job_id, item in value.items():
        if job_id not in job_ids:
            _refuse(f'names "{shown(job_id)}", which is none of job_ids')
        try:
            cursors[job_id] = of_job(item if isinstance(item, str) else str(read_integer(item)), job_id)
        except ValueError:
            _refuse(f"of {job_id} must be an integer or a string")
    return cursors


def of_news(text: str) -> str:
    """The place in a tenant's news; `0` is the oldest that is kept. Raises InvalidInput."""
    if text == "0":
        return "0-0"
    if not _PLACE.fullmatch(text):
        _refuse(f'must be the cursor of a message, or 0: "{shown(text)}" is none')
    return text


def place_key(place: str) -> tuple[int, int]:
    """By which places are in order."""
    first, _, second = place.partition("-")
    return int(first), int(second)


def _cursor(text: str) -> Cursor | None:
    if text == END:
        return Cursor(None)
    return Cursor(int(text)) if _NUMBER.fullmatch(text) else None


def _refuse(detail: str) -> NoReturn:
    raise InvalidInput(f"{SINCE} {detail}", fields=[FieldError(SINCE, detail)])

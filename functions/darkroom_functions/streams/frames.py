"""Frames: the messages that clients send on a socket, and the job ids in them and in the query of a socket."""

from __future__ import annotations

from typing import Any, NoReturn

from darkroom.catalogue.parameters import shown
from darkroom.cloudevents import strict_json
from darkroom.errors import FieldError, InvalidInput
from darkroom.jobs import is_job_id

MAX_JOBS = 100
"""Jobs of one socket at a time. A guess: a page of pictures."""


def ids_of(text: str) -> list[str]:
    """The job ids of a query, separated by commas. Raises InvalidInput."""
    job_ids = text.split(",")
    if not text:
        refuse_ids("must name at least one job")
    if len(job_ids) > MAX_JOBS:
        refuse_ids(f"must name at most {MAX_JOBS} jobs, not {len(job_ids)}")
    for job_id in job_ids:
        if not is_job_id(job_id):
            refuse_ids(f"must be job ids separated by commas, not {job_id[:64]!a}")
    return job_ids


def refuse_ids(detail: str) -> NoReturn:
    """Raise InvalidInput for the job ids."""
    raise InvalidInput(f"job_ids {detail}", fields=[FieldError("job_ids", detail)])


class BadFrame(Exception):
    """Why a client's message is invalid."""


def parse(text: str | None) -> dict[str, Any]:
    """The object that a text message has; None stands for a binary message. Raises BadFrame."""
    if text is None:
        raise BadFrame("the message must be text, not binary")
    try:
        frame = strict_json.parse(text.encode())
    except strict_json.JsonError as error:
        raise BadFrame(f"the message {error}") from None
    if not isinstance(frame, dict):
        raise BadFrame('the message must be an object such as {"type": "ping"}')
    return frame


def ids_in(frame: dict[str, Any], members: set[str]) -> list[str]:
    """The `job_ids` of a frame that may have these members and no others, without repeats. Raises BadFrame."""
    if unknown := frame.keys() - members:
        raise BadFrame(f'"{shown(sorted(unknown)[0])}" is not a member of messages of this type')
    job_ids = frame.get("job_ids")
    if not isinstance(job_ids, list) or not 1 <= len(job_ids) <= MAX_JOBS:
        raise BadFrame(f"job_ids must be a list of 1 to {MAX_JOBS} job ids")
    for job_id in job_ids:
        if not isinstance(job_id, str) or not is_job_id(job_id):
            raise BadFrame(f"job_ids must be job ids, not {str(job_id)[:64]!a}")
    return list(dict.fromkeys(job_ids))

"""The messages that sockets and event streams send: updates, which are entries of a log, and control messages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import orjson

from darkroom_functions.streams.cursors import Position

MESSAGE = "message"
"""The kind of a message without a `type`; the default event type of an EventSource."""


class StreamMessage(Protocol):
    """A message. `kind` is its type; `cursor` resumes after it, None where the message does not move the cursor."""

    @property
    def text(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def cursor(self) -> str | None: ...


@dataclass(frozen=True)
class Update:
    """An entry of a log, encoded once for all clients. `is_end`: it is the terminal entry of its log."""

    source: str
    position: Position
    cursor: str
    text: str
    is_end: bool = False

    @property
    def kind(self) -> str:
        return MESSAGE


@dataclass(frozen=True)
class ControlMessage:
    """A message that is not an entry of a log."""

    kind: str
    text: str
    cursor: str | None = None


class GapReason(StrEnum):
    """Why the entries after a client's cursor cannot all be sent."""

    LOG_GONE = "log-gone"  # a job log is kept for an hour after the job's end, a tenant's stream has a maximum length
    CURSOR_UNKNOWN = "cursor-unknown"  # there is no such entry: Redis lost it, or it never existed


def control(kind: str, **members: object) -> ControlMessage:
    """The message `{"type": kind, …}`; a member `cursor` becomes the cursor of the message."""
    cursor = members.get("cursor")
    text = orjson.dumps({"type": kind, **members}).decode()
    return ControlMessage(kind, text, cursor if isinstance(cursor, str) else None)


def gap(reason: GapReason, **members: object) -> ControlMessage:
    """The message that entries are missing; `members` name the log."""
    return control("gap", **members, reason=reason.value)

"""The states of a job, its transitions, its events, its id, and the kinds of failure.

All parts share these types. Only the ledger changes a job (`ledger/client.py`, `ledger/lua/`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

RECORD_VERSION = 3
"""`v` of the records written today, and of their messages, which are stored in them.

Code finishes jobs of this version and of the one before. It leaves those of a later version to code that supports it
(`claim`, `mark_applied`). The version rises with each change that older code must not ignore: since 2 a job may name a
webhook, since 3 its message has no input, which a worker of version 2 would look for there.
"""

E = TypeVar("E", bound=StrEnum)


class UnknownValue(str):
    """A state, event or kind that a later version of darkroom wrote: equal to no member of the enum that it stands for.

    Readers show it as it is. Its type differs from the enum's, so code that distinguishes members has to handle it.
    """

    __slots__ = ()

    @property
    def value(self) -> str:
        """The text itself, as of a member of an enum."""
        return str(self)

    @property
    def is_terminal(self) -> bool:
        """Whether it is known to be a terminal state, which no unknown value is."""
        return False


def read_value(kind: type[E], text: str) -> E | UnknownValue:
    """Decode a stored value: the member of the enum, or an UnknownValue where a later version wrote it."""
    try:
        return kind(text)
    except ValueError:
        return UnknownValue(text)


class State(StrEnum):
    """The state of a job. The last four are terminal and never change again."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED})

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.FAILED}),
    State.RUNNING: frozenset({State.PENDING, State.COMPLETED, State.FAILED, State.CANCELLED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}
"""The one transition table. The tests hold the scripts in `ledger/lua/` to it."""


class ErrorKind(StrEnum):
    """The reason why an attempt, or a job, failed."""

    INVALID_INPUT = "invalid_input"
    TRANSIENT = "transient"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    WORKER_LOST = "worker_lost"
    WORKER_FAULT = "worker_fault"
    UNDELIVERABLE = "undeliverable"


class JobEvent(StrEnum):
    """The event of an entry of the job log; the CloudEvent type is `dev.darkroom.job.<this>`."""

    ACCEPTED = "accepted"
    STARTED = "started"
    PROGRESSED = "progressed"
    RELEASED = "released"
    RETRIED = "retried"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


JOB_ID_PATTERN = "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

_TENANT = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,62}")
_UUID7 = re.compile(JOB_ID_PATTERN + r"\Z")


def new_job_id(now_ms: int, random_bytes: bytes | None = None) -> str:
    """A UUID of version 7 (RFC 9562, section 5.7): 48 bits of `now_ms`, then 74 random bits.

    There is no counter: ids made in one millisecond are in no order, and two processes do not make the same id.
    """
    random_part = int.from_bytes(random_bytes or os.urandom(10), "big")
    value = (now_ms & (2**48 - 1)) << 80 | random_part
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of a job id: a UUIDv7 in lower case."""
    return _UUID7.match(text) is not None


def is_tenant(text: str) -> bool:
    """Whether `text` can name a tenant: one segment of a path in the object store that does not begin with a dot."""
    return _TENANT.fullmatch(text) is not None


def slot_of(job_id: str) -> int:
    """The slot of a job, 0 to 255: the last byte of its id. Today every slot is on one Redis."""
    return int(job_id[-2:], 16)


@dataclass(frozen=True)
class Artifact:
    """One published output file. `key` is its key in the object store, `sha256` the digest of its bytes."""

    key: str
    sha256: str
    media_type: str
    size: int
    width: int
    height: int

    def encode(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "sha256": self.sha256,
            "media_type": self.media_type,
            "size": self.size,
            "width": self.width,
            "height": self.height,
        }

    @classmethod
    def decode(cls, raw: Mapping[str, Any]) -> Artifact:
        return cls(
            key=raw["key"],
            sha256=raw["sha256"],
            media_type=raw["media_type"],
            size=raw["size"],
            width=raw["width"],
            height=raw["height"],
        )

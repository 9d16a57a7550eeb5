"""Entries of the audit trail: one operation of a caller, or a number of equal refusals.

An entry waits in the ledger as JSON text until the courier gives it its number and its hash (`store.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from darkroom.access.principals import Principal

OK = "ok"
"""The outcome of an operation that was done; any other outcome is the slug of its refusal (`errors.py`)."""

UNKNOWN = "unknown"
"""The outcome of an operation whose process ended before it: it may be done, or done in part."""

TRUNCATED = "trailTruncated"
"""The operation of an entry that the courier adds where the trail lacks entries that it had; see `store.py`."""

INTERNAL = "internal"
"""The kind of credential of an entry that a part of darkroom, or an operator's command, made without one."""

GENESIS = "0" * 64
"""The hash before the first entry."""

MAX_TEXT = 200
"""The longest text of a field, in characters: the end of a longer one is cut off. Ids and names are shorter."""


@dataclass(frozen=True)
class Entry:
    """One operation. `at` is in milliseconds since the epoch, by the clock of the process that received the request.

    `uid` identifies the entry: it is stored once. `kind` is how the caller proved itself (`CredentialKind`) and `actor`
    who it is. `operation` is the operation id of the OpenAPI document, `object` the id of what it concerned: the job,
    key, tenant, subscription or model. `status` is that of the HTTP response, 0 where there is none. `trace` is the
    trace id of the request, by which it is found in the logs. `count` is 1, but for refused submissions, of which equal
    ones of some seconds are one entry.
    """

    uid: str
    at: int
    tenant: str
    actor: str
    kind: str
    operation: str
    object: str = ""
    outcome: str = UNKNOWN
    status: int = 0
    trace: str = ""
    count: int = 1

    def encode(self) -> str:
        return _COMPACT(self.__dict__)  # asdict() takes longer than all else that a submission's entry needs

    @classmethod
    def decode(cls, text: str) -> Entry:
        """Raises ValueError for a text that is no entry. Members of a later version are ignored."""
        raw = json.loads(text)
        return cls(**{field.name: raw[field.name] for field in fields(cls) if field.name in raw})


@dataclass(frozen=True)
class Head:
    """The end of the chain: the number of its last entry, which counts from 1, and that entry's hash."""

    seq: int
    digest: str


EMPTY = Head(0, GENESIS)


@dataclass(frozen=True)
class Chained:
    """An entry with its number in the chain and its hash."""

    seq: int
    entry: Entry
    digest: str

    @classmethod
    def after(cls, head: Head, entry: Entry) -> Chained:
        """The entry as the next one of the chain."""
        seq = head.seq + 1
        return cls(seq, entry, digest_of(seq, entry, head.digest))

    @property
    def head(self) -> Head:
        """The chain's end, while this is its last entry."""
        return Head(self.seq, self.digest)


def digest_of(seq: int, entry: Entry, previous: str) -> str:
    """SHA-256 of the canonical form: JSON with sorted names, without blanks, in ASCII, of the entry's fields, its
    number `seq` and the hash `previous` of the entry before it.
    """
    form = {**entry.__dict__, "seq": seq, "previous": previous}
    return hashlib.sha256(_CANONICAL(form).encode()).hexdigest()


def entry_of(
    principal: Principal,
    *,
    uid: str,
    at: int,
    operation: str,
    object: str = "",
    outcome: str = UNKNOWN,
    status: int = 0,
    trace: str = "",
) -> Entry:
    """An entry about a caller. Texts are cut to what the trail stores."""
    return Entry(
        uid=uid,
        at=at,
        tenant=principal.tenant,
        actor=stored_text(principal.actor),
        kind=principal.kind.value,
        operation=operation,
        object=stored_text(object),
        outcome=outcome,
        status=status,
        trace=trace,
    )


def stored_text(text: str) -> str:
    """The text in the form that every database stores and every terminal shows."""
    if len(text) <= MAX_TEXT and text.isprintable():
        return text
    return "".join(each if each.isprintable() else "?" for each in text[:MAX_TEXT])


_COMPACT: Callable[[Mapping[str, Any]], str] = json.JSONEncoder(separators=(",", ":")).encode
_CANONICAL: Callable[[Mapping[str, Any]], str] = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode

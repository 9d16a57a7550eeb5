"""Undelivered events: CloudEvents that Knative could not deliver, stored until they are replayed or deleted.

A Broker that could not deliver an event sends it to the function of undelivered events, with the failure in extensions
of its own. This module splits these off (`split_failure`), builds the call that stores the event
(`lua/undelivered/store_undelivered.lua`), and reads it again. The event is stored as it was sent: a replay sends what
the Broker got from the event's source.

https://knative.dev/docs/eventing/event-delivery/#configuring-broker-event-delivery
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from darkroom.cloudevents import strict_json
from darkroom.cloudevents.event import Event
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Call
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.reads import ListPosition

KNATIVE = "knative"
"""Prefix of all extensions that Knative adds to an event in transit: the failure, its arrival, and how many more
Brokers it may pass (`knativebrokerttl`)."""

MAX_ANSWER_CHARS = 1024
"""Knative truncates a subscriber's response to this length, before it encodes it."""

_ID = re.compile("und_[0-9a-f]{32}")

ID_PATTERN = _ID.pattern
CURSOR_PATTERN = f"[0-9]{{1,15}}-{ID_PATTERN}"
"""The cursors that `parse_cursor` accepts, for the OpenAPI document."""
_HEAD = ("tenant", "attributes", "failure", "bytes", "first", "last", "replayed")


@dataclass(frozen=True)
class DeliveryFailure:
    """Why Knative gave up, as far as it reports: the last destination, and the status and text of its response."""

    destination: str | None
    code: int | None
    answer: str | None


@dataclass(frozen=True)
class Undelivered:
    """A stored event. Times are milliseconds since 1970; `size` is in bytes.

    `event` has no data where it was read without (`UndeliveredEvents.page`). `replayed` is when the sink accepted it
    after its last failure, None where it did not.
    """

    id: str
    tenant: str
    event: Event
    failure: DeliveryFailure
    size: int
    first: int
    last: int
    replayed: int | None


@dataclass(frozen=True)
class UndeliveredPage:
    """One page of a tenant's events, the last that failed first. `after` is the cursor of the next page, or None."""

    events: tuple[Undelivered, ...]
    after: str | None


class UndeliveredEvents:
    """Reads of a tenant's undelivered events. Each may raise LedgerUnavailable."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._ledger = ledger

    async def find(self, event_id: str, *, tenant: str) -> Undelivered | None:
        ((data, *head),) = await reads.undelivered(self._ledger, [event_id], fields=("data", *_HEAD))
        found = _decode(event_id, head, data=data)
        return found if found is not None and found.tenant == tenant else None

    async def page(self, tenant: str, *, limit: int, after: str | None = None) -> UndeliveredPage:
        """Up to `limit` of them, without their data, behind the cursor `after` of the page before. Raises ValueError
        for an invalid cursor.
        """
        behind = None if after is None else parse_cursor(after)
        positions = await reads.undelivered_positions(self._ledger, tenant, limit=limit + 1, after=behind)
        shown = positions[:limit]
        heads = await reads.undelivered(self._ledger, [position.id for position in shown], fields=_HEAD)
        found = [_decode(position.id, head, data=None) for position, head in zip(shown, heads, strict=True)]
        cursor = shown[-1].cursor if len(positions) > limit else None
        return UndeliveredPage(tuple(each for each in found if each is not None), cursor)


def is_undelivered_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def parse_cursor(cursor: str) -> ListPosition:
    """The position that a page's `after` encodes. Raises ValueError."""
    return ListPosition.parse(cursor, is_id=is_undelivered_id)


def id_of(event: Event, *, tenant: str) -> str:
    """A stable id of the event: `source` and `id` identify it within one tenant (CloudEvents 1.0.2, `id`)."""
    name = "\0".join((tenant, event.source, event.id))
    return f"und_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def split_failure(event: Event) -> tuple[Event, DeliveryFailure]:
    """The event as its source sent it, and why Knative gave up on it."""
    added = {name: value for name, value in event.extensions.items() if name.startswith(KNATIVE)}
    sent = replace(event, extensions={name: value for name, value in event.extensions.items() if name not in added})
    destination, code, answer = (
        str(added[name]) if name in added else None
        for name in ("knativeerrordest", "knativeerrorcode", "knativeerrordata")
    )
    number = int(code) if code and code.isascii() and code.isdecimal() and len(code) <= 3 else None  # noqa: PLR2004
    return sent, DeliveryFailure(destination or None, number, None if answer is None else _text_of(answer))


def store(event: Event, failure: DeliveryFailure, *, tenant: str, now: int | None = None) -> Call[int]:
    """Store it. The call returns how many others were removed to make room."""
    attributes = event.encode_structured()
    data = attributes.pop("data", None)
    return calls.store_undelivered(
        id_of(event, tenant=tenant),
        tenant=tenant,
        attributes=strict_json.encode(attributes).decode(),
        data=None if data is None else strict_json.encode(data).decode(),
        failure=json.dumps(
            {"destination": failure.destination, "code": failure.code, "answer": failure.answer}, ensure_ascii=False
        ),
        now=now,
    )


def _text_of(answer: str) -> str:
    """A subscriber's response: newer versions of Knative encode it in Base64, older ones do not."""
    try:
        text = base64.b64decode(answer, validate=True).decode()
    except ValueError:
        text = answer
    if not all(char.isprintable() or char.isspace() for char in text):
        text = answer
    return text[:MAX_ANSWER_CHARS]


def _decode(event_id: str, head: Sequence[str | None], *, data: str | None) -> Undelivered | None:
    tenant, attributes, failure, size, first, last, replayed = head
    if tenant is None or attributes is None or failure is None or size is None or first is None or last is None:
        return None
    members: dict[str, Any] = json.loads(attributes)
    if data is not None:
        members["data"] = json.loads(data)
    failed: Mapping[str, Any] = json.loads(failure)
    return Undelivered(
        id=event_id,
        tenant=tenant,
        event=Event.decode_structured(members),
        failure=DeliveryFailure(failed["destination"], failed["code"], failed["answer"]),
        size=int(size),
        first=int(first),
        last=int(last),
        replayed=None if replayed is None else int(replayed),
    )

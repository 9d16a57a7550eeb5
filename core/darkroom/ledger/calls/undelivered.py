"""Calls that store, replay and delete undelivered CloudEvents."""

from __future__ import annotations

from enum import StrEnum

from darkroom.ledger.calls.call import Call, make_call, word

MAX_UNDELIVERED = 10_000
"""Undelivered events of all tenants; beyond it the largest group loses its oldest (`store_undelivered.lua`)."""

MAX_UNDELIVERED_BYTES = 64 * 1024 * 1024
"""Bytes of all undelivered events: 6 KB each at the maximum number. The memory is needed for jobs."""


class Replayed(StrEnum):
    """The result of marking an undelivered event as replayed. `CHANGED`: it failed again, or is gone."""

    REPLAYED = "replayed"
    CHANGED = "changed"


def store_undelivered(
    event_id: str,
    *,
    tenant: str,
    attributes: str,
    data: str | None,
    failure: str,
    most: int = MAX_UNDELIVERED,
    most_bytes: int = MAX_UNDELIVERED_BYTES,
    now: int | None = None,
) -> Call[int]:
    """Store a CloudEvent that Knative could not deliver (`ledger/undelivered.py`). Returns how many others were removed
    to make room.
    """
    size = sum(len(text.encode()) for text in (attributes, data or "", failure))
    return make_call(
        "store_undelivered",
        int,
        event=event_id,
        tenant=tenant,
        attributes=attributes,
        data=data,
        failure=failure,
        bytes=size,
        most=most,
        most_bytes=most_bytes,
        now=now,
    )


def mark_replayed(event_id: str, *, last: int, now: int | None = None) -> Call[Replayed]:
    """Record that the sink accepted the undelivered event, as it was stored at `last` (ms)."""
    return make_call("mark_replayed", word(Replayed), event=event_id, last=last, now=now)


def delete_undelivered(event_id: str, *, tenant: str, now: int | None = None) -> Call[str]:
    """Delete the undelivered event."""
    return make_call("delete_undelivered", bytes.decode, event=event_id, tenant=tenant, now=now)

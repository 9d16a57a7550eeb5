"""Calls that store, replay and discard undelivered CloudEvents."""

from __future__ import annotations

from enum import StrEnum

from darkroom.ledger.calls.call import Call, make_call, word

MAX_UNDELIVERED = 10_000
"""CloudEvents that Knative gave up on, of all tenants; beyond it the largest group loses its oldest
(`store_undelivered.lua`).
"""

MAX_UNDELIVERED_BYTES = 64 * 1024 * 1024
"""And so many bytes of them: 6 KB each, where there are as many as there may be. Memory is for jobs."""


class Replayed(StrEnum):
    """What the ledger says to an undelivered event that the sink took. `CHANGED`: it failed again, or is gone."""

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
    """Keep a CloudEvent that Knative gave up on, which `undelivered.py` names and takes apart. Returns how many others
    had to go to make room.
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
    """The sink took the undelivered event, as it was kept at `last` (ms)."""
    return make_call("mark_replayed", word(Replayed), event=event_id, last=last, now=now)


def delete_undelivered(event_id: str, *, tenant: str, now: int | None = None) -> Call[str]:
    """The undelivered event is kept no longer."""
    return make_call("delete_undelivered", bytes.decode, event=event_id, tenant=tenant, now=now)

"""Fields of a webhook in a request: the receiver's address and the events. Jobs and subscriptions both have them.

A reader raises ValueError with the reason, worded to follow the field's name. The guard decides which addresses are
allowed (`darkroom/webhooks/guard.py`); it resolves the name again for each post.
"""

from __future__ import annotations

from darkroom.errors import InvalidInput
from darkroom.webhooks import guard
from darkroom.webhooks.guard import Allow
from darkroom.webhooks.subscriptions import WebhookEvent

_EVENTS = {event.value: event for event in WebhookEvent}


def read_url(value: object, *, allow: Allow) -> str:
    """The address that events are posted to."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string with a URL")
    try:
        guard.check_url(value, allow)
    except InvalidInput as error:
        raise ValueError(error.fields[0].detail) from None
    return value


def read_events(value: object) -> frozenset[WebhookEvent]:
    """The events to deliver, at least one."""
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name in _EVENTS for name in value):
        raise ValueError(f"must be a list of at least one of {', '.join(_EVENTS)}")
    if len(set(value)) < len(value):
        raise ValueError("must name each event once")
    return frozenset(_EVENTS[name] for name in value)

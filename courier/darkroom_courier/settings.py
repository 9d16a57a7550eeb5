"""What the courier is told by its environment.

`K_SINK` and `K_CE_OVERRIDES` are Knative's names: a SinkBinding injects them
(https://knative.dev/docs/eventing/custom-event-source/sinkbinding/).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from darkroom.cloudevents.event import Event
from darkroom.errors import InvalidEvent
from darkroom.ledger.calls import (
    DELIVERY_LEASE_MS,
    HISTORY_LEASE_MS,
    LEASE_MS,
    REAP_GAP_MS,
    RELAY_LEASE_MS,
    SWEEP_AGE_MS,
)
from darkroom.settings import HistorySettings, LedgerSettings, LinkSettings, SinkUrl, StoreSettings, WebhookSettings
from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

OWN_EXTENSIONS = frozenset({"sequence", "tenant", "traceparent"})
"""What result and the Triggers read: no override may put another value there."""


def _extensions(value: object) -> object:
    """The extensions in SinkBinding's JSON, `{"extensions": {"name": "value"}}`; blank where it has none to add."""
    if not isinstance(value, str):
        return value
    try:
        overrides = json.loads(value or "{}")
        extensions = overrides.get("extensions") or {}
        Event(id="any", source="any", type="any", extensions=extensions)  # its constructor knows the rules
    except InvalidEvent as error:
        raise ValueError(f"names extensions that no CloudEvent can have: {error.detail}") from None
    except (AttributeError, json.JSONDecodeError):
        raise ValueError('is not JSON such as {"extensions": {"name": "value"}}') from None
    if taken := OWN_EXTENSIONS & set(extensions):
        raise ValueError(f"names extensions that are darkroom's own: {', '.join(sorted(taken))}")
    return extensions


SCHEDULE_S = (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Standard Webhooks' pauses before each attempt, in seconds ("Deliverability and reliability")."""


def _pauses(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


class CourierSettings(LedgerSettings, LinkSettings, HistorySettings, StoreSettings, WebhookSettings):
    """The courier's settings. Times are in seconds; the ledger's own defaults stand where a test sets none."""

    sink: SinkUrl = Field(validation_alias="K_SINK")
    """Where terminal events are posted: an http or https address, used as it is."""

    overrides: Annotated[Mapping[str, str], NoDecode, BeforeValidator(_extensions)] = Field(
        default_factory=dict, validation_alias="K_CE_OVERRIDES"
    )
    """Extensions that every event gets in addition."""

    posts: int = Field(default=32, ge=1, le=1000)
    """Events that are on their way to the sink at one time. 32 at 20 ms each are 1,600 a second."""

    post_timeout_s: float = Field(default=10, gt=0, le=60)
    """How long one post may take. Less than `relay_lease_s`, or it is posted again before it is over."""

    relay_lease_s: float = Field(default=RELAY_LEASE_MS / 1000, gt=0)
    """An event that is accepted but not applied is posted again after this, then after twice that, and so on."""

    deliveries: int = Field(default=256, ge=1, le=2000)
    """Webhooks that are posted to at one time."""

    deliveries_per_target: int = Field(default=16, ge=1, le=1000)
    """Of these to one target, which is a tenant's receivers at one origin. Far fewer than `deliveries`: each receiver
    that hangs holds so many, until it is found out.
    """

    # A guess: twenty a second are more than the jobs of one person make.
    delivery_rate: int = Field(default=1200, ge=1, le=6_000_000)
    """Posts a minute to a target whose receiver granted no other rate (`WebHook-Allowed-Rate`): one tenant can have no
    more posted to an origin that did not agree to it.
    """

    delivery_timeout_s: float = Field(default=20, gt=0, le=50)
    """How long a webhook may take to answer: Standard Webhooks has 15 to 30. With the question for consent before it, a
    try must end within `delivery_lease_s`.
    """

    delivery_lease_s: float = Field(default=DELIVERY_LEASE_MS / 1000, gt=0)
    """A delivery that a courier took and did not settle is tried again after this. More than a try may take."""

    delivery_schedule_s: Annotated[
        tuple[Annotated[float, Field(ge=0, le=7 * 24 * 3600)], ...], NoDecode, BeforeValidator(_pauses)
    ] = Field(default=SCHEDULE_S, min_length=1, max_length=50)
    """Pauses before each attempt, in seconds, separated by commas, the first one included."""

    tick_s: float = Field(default=1, gt=0, le=10)
    """Pause between two looks for lapsed leases, lost messages, due retries, passed deadlines, and the outbox."""

    lease_s: float = Field(default=LEASE_MS / 1000, gt=0)
    """The workers' lease: after an outage nothing is reaped for as long."""

    reap_gap_s: float = Field(default=REAP_GAP_MS / 1000, gt=0)
    """A longer gap between two looks counts as an outage. Well above `tick_s`."""

    sweep_age_s: float = Field(default=SWEEP_AGE_MS / 1000, gt=0)
    """A message that was pushed longer ago and is in no list was taken and never claimed."""

    history_lease_s: float = Field(default=HISTORY_LEASE_MS / 1000, gt=0)
    """An ended job that a courier took for the history, and did not archive, is taken again after this."""

    retention_days: int | None = Field(default=None, ge=1, le=36_500)
    """Jobs that ended so many days ago are deleted, with their artifacts; without it they are kept for ever."""

    retention_every_s: float = Field(default=3600, gt=0)
    """Pause between two looks for jobs whose time is over, and for deletions that stopped half-way."""

    orphan_age_s: float = Field(default=3600, ge=0)
    """An artifact that no job publishes, as of an attempt that was cancelled while it stored its pictures, is removed
    when it is older than this. The whole store is looked through for them once in 24 of the looks above.
    """

    host: str = "127.0.0.1"
    """Where the probes are answered; in a pod `0.0.0.0`."""

    health_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of `/healthz`, `/readyz` and `/metrics`; without one there are none."""

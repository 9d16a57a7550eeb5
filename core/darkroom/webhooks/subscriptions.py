"""Subscriptions: the addresses that receive events of jobs, and the deliveries to them.

A job may name one address (`Webhook`), and a tenant may register others for all of its jobs (`Subscription`). When an
event of a job is applied (`lua/outbox/mark_applied.lua`), the ledger stores one `Delivery` for each address that
subscribes to such events. The courier posts it (`darkroom_courier/posting/webhooks.py`), repeatedly by a schedule, and
each `Try` is stored. The functions `submit` and `jobs` accept addresses and show deliveries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from darkroom.jobs import JOB_ID_PATTERN, UnknownValue, is_job_id, new_job_id, read_value

SUBSCRIPTION_PREFIX = "sub_"

MAX_SUBSCRIPTIONS = 100
"""The most subscriptions of one tenant: `lua/outbox/mark_applied.lua` reads all of them for each event."""

MAX_PER_TARGET = 10
"""The most subscriptions of one tenant to one origin: each event of a job is posted there as often."""

FAILING_LIMIT_MS = 5 * 24 * 3600 * 1000
"""A subscription none of whose deliveries succeeded for so long is disabled: Standard Webhooks' "several days"."""

PER_JOB = "job"
"""The recipient of deliveries to the address that the job itself names."""

DEFAULT_PORTS = {"http": 80, "https": 443}

DELIVERY_ID_PATTERN = rf"{JOB_ID_PATTERN}\.[1-9][0-9]{{0,15}}\.(job|sub_{JOB_ID_PATTERN})"
"""The pattern of a delivery's id, for the OpenAPI description."""

_DELIVERY_ID = re.compile(r"(?P<job>[0-9a-f-]{36})\.(?P<seq>[1-9][0-9]{0,15})\.(?P<recipient>job|sub_[0-9a-f-]{36})\Z")


class WebhookEvent(StrEnum):
    """The events that an address may subscribe to. The names are those of the job log's entries."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL_EVENTS = frozenset(WebhookEvent) - {WebhookEvent.STARTED}

DEFAULT_EVENTS = TERMINAL_EVENTS
"""The events that an address receives unless it names others."""


class SubscriptionState(StrEnum):
    """`DISABLED`: by its owner, or because it failed for too long. `ENDED`: its receiver answered 410 (Gone)."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    ENDED = "ended"


class DeliveryState(StrEnum):
    """`OPEN`: due now or later, or being posted. The others are final until a client requests another delivery."""

    OPEN = "open"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True)
class Webhook:
    """The address that a job names, and the events that it receives. The address was checked (`guard.py`)."""

    url: str
    events: frozenset[WebhookEvent | UnknownValue] = DEFAULT_EVENTS

    def encode(self) -> dict[str, Any]:
        """The fields of a job that stand for the webhook, named as in a submission."""
        return {"webhook": self.url, "webhook_events_filter": [event.value for event in in_order(self.events)]}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Webhook | None:
        """The inverse of `encode`: the webhook in a job's fields, None if there is none."""
        if "webhook" not in fields:
            return None
        return cls(fields["webhook"], read_events(fields["webhook_events_filter"]))


@dataclass(frozen=True)
class Subscription:
    """An address that a tenant registered for events of its jobs, of all `models` where none is named.

    Times are milliseconds since the epoch. `changed`: the time of the last change of the state. `generation` counts its
    secrets, from 1; the previous one was replaced at `rotated`. `failing_since`: no delivery has succeeded since then.
    `validated`: when its receiver last granted permission (CloudEvents' HTTP webhooks, section 4), and `allowed_rate`
    the rate that it granted, in requests a minute; None: no limit is known.
    """

    id: str
    tenant: str
    url: str
    events: frozenset[WebhookEvent | UnknownValue]
    models: tuple[str, ...]
    state: SubscriptionState | UnknownValue
    reason: str | None
    created: int
    changed: int
    generation: int
    rotated: int | None
    failing_since: int | None
    validated: int | None
    allowed_rate: int | None

    @property
    def target(self) -> str:
        return target_of(self.tenant, self.url)


@dataclass(frozen=True)
class Try:
    """One attempt to deliver an event: at `at` (ms since the epoch), for `took_ms`. `status` is None without a
    response; `error` is None if the receiver accepted the event.
    """

    number: int
    at: int
    took_ms: int
    status: int | None
    error: str | None


@dataclass(frozen=True)
class Delivery:
    """One event for one address, and the attempts to deliver it.

    `recipient` is `PER_JOB` or the id of a subscription, which receives the events of one job in order. `due`: the time
    of the next attempt (ms since the epoch); None unless it is open. `reason`: why it was given up. `tries` are the
    latest attempts; `tried` counts all of them.
    """

    id: str
    job_id: str
    seq: int
    event: WebhookEvent | UnknownValue
    recipient: str
    tenant: str
    url: str
    state: DeliveryState | UnknownValue
    reason: str | None
    created: int
    ended: int | None
    due: int | None
    tried: int
    tries: tuple[Try, ...]


@dataclass(frozen=True)
class LeasedDelivery:
    """A delivery that is leased to one courier. `token` proves the lease.

    `number` counts all attempts from 1, this one included; `attempt` those since a client last requested the delivery,
    by which the schedule goes. `generation` and `rotated` are those of the subscription's secret (0 for a job's own
    webhook). `is_permitted`: the receiver granted permission within the last day.
    """

    id: str
    job_id: str
    seq: int
    event: WebhookEvent | UnknownValue
    recipient: str
    tenant: str
    url: str
    target: str
    number: int
    attempt: int
    generation: int
    rotated: int | None
    is_permitted: bool
    token: str


def new_subscription_id(now_ms: int) -> str:
    """`sub_` and a UUIDv7: ids sort by their time of creation."""
    return SUBSCRIPTION_PREFIX + new_job_id(now_ms)


def is_subscription_id(text: str) -> bool:
    return text.startswith(SUBSCRIPTION_PREFIX) and is_job_id(text.removeprefix(SUBSCRIPTION_PREFIX))


def is_delivery_id(text: str, *, job_id: str) -> bool:
    """Whether `text` has the form of a delivery id of this job: `<job>.<seq>.<recipient>`."""
    match = _DELIVERY_ID.match(text)
    return match is not None and match["job"] == job_id


def target_of(tenant: str, url: str) -> str:
    """The deliveries that share limits: one tenant's to one origin (RFC 6454), as `tenant@https://host:port`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    with suppress(ValueError):
        host = str(ip_address(host))  # an IPv6 address has many spellings
    port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    return f"{tenant}@{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def read_events(words: Iterable[str]) -> frozenset[WebhookEvent | UnknownValue]:
    """The stored events of a webhook."""
    return frozenset(read_value(WebhookEvent, word) for word in words)


def in_order(events: Iterable[WebhookEvent | UnknownValue]) -> list[WebhookEvent | UnknownValue]:
    """The events in the order of a job's life; behind them those that are unknown here, by name."""
    given = set(events)
    return [*(event for event in WebhookEvent if event in given), *sorted(given.difference(WebhookEvent))]

"""Webhooks: addresses of callers that are told how jobs go, and what was tried to tell them.

A job may name one (`Webhook`), and a tenant may register others for all of its jobs (`Subscription`). When an event of
a job is applied (`lua/outbox/mark_applied.lua`), the ledger stores one `Delivery` for each address that asked for such
events; the courier posts it (`darkroom_courier/deliveries.py`), again and again by a schedule, and each `Try` is kept.
The functions submit and jobs take addresses in and show what became of them.
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

from darkroom.jobs import JOB_ID_PATTERN, JobEvent, is_job_id, new_job_id

SUBSCRIPTION_PREFIX = "sub_"

MAX_SUBSCRIPTIONS = 100
"""Subscriptions of one tenant: `lua/outbox/mark_applied.lua` looks at all of them for each event."""

MAX_PER_TARGET = 10
"""Of these to one origin: each event of a job is posted there as often."""

FAILING_LIMIT_MS = 5 * 24 * 3600 * 1000
"""A subscription none of whose deliveries came through for so long is disabled: Standard Webhooks' "several days"."""

PER_JOB = "job"
"""The recipient of deliveries to the address that the job itself named."""

DEFAULT_PORTS = {"http": 80, "https": 443}

DELIVERY_ID_PATTERN = rf"{JOB_ID_PATTERN}\.[1-9][0-9]{{0,15}}\.(job|sub_{JOB_ID_PATTERN})"
"""Of a delivery's id, for the description."""

_DELIVERY_ID = re.compile(r"(?P<job>[0-9a-f-]{36})\.(?P<seq>[1-9][0-9]{0,15})\.(?P<recipient>job|sub_[0-9a-f-]{36})\Z")


class WebhookEvent(StrEnum):
    """What an address may ask to be told. The names are those of the job log's entries."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def of_log(self) -> JobEvent:
        return JobEvent(self.value)


DEFAULT_EVENTS = frozenset(WebhookEvent) - {WebhookEvent.STARTED}
"""The ends of a job: what is told to whoever does not say what he wants to be told."""


class SubscriptionState(StrEnum):
    """`DISABLED`: by its owner, or after failing for too long. `ENDED`: its receiver answered 410, Gone."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    ENDED = "ended"


class DeliveryState(StrEnum):
    """`OPEN`: due now or later, or on its way. The others are ends, until somebody asks to deliver it anew."""

    OPEN = "open"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True)
class Webhook:
    """The address that a job names, and what it is to be told. The address was checked (`guard.py`)."""

    url: str
    events: frozenset[WebhookEvent] = DEFAULT_EVENTS

    def encode(self) -> dict[str, Any]:
        """As the fields of a job are shown and kept, in the words of a submission."""
        return {"webhook": self.url, "webhook_events_filter": [event.value for event in in_order(self.events)]}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Webhook | None:
        """The counterpart of `encode`: the webhook among a job's fields, where there is one."""
        if "webhook" not in fields:
            return None
        return cls(fields["webhook"], frozenset(map(WebhookEvent, fields["webhook_events_filter"])))


@dataclass(frozen=True)
class Subscription:
    """An address that a tenant registered for events of its jobs, of all `models` where none is named.

    Times are milliseconds since the epoch. `changed`: since when its state is this one. `generation` counts the secrets
    that it had, from 1; the one before was replaced at `rotated`. `failing_since`: none of its deliveries came through
    since then. `validated`: when its receiver was last asked for its consent (CloudEvents' HTTP webhooks, section 4),
    and `allowed_rate` what it granted, in requests a minute; None: no limit is known.
    """

    id: str
    tenant: str
    url: str
    events: frozenset[WebhookEvent]
    models: tuple[str, ...]
    state: SubscriptionState
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
    """One attempt to hand an event over: at `at` (ms), for `took_ms`. `status` is None where there was no answer;
    `error` is None where it was taken.
    """

    number: int
    at: int
    took_ms: int
    status: int | None
    error: str | None


@dataclass(frozen=True)
class Delivery:
    """One event that is to be told to one address, and what was tried.

    `recipient` is `PER_JOB` or the id of a subscription, which gets the events of one job in order. `due`: when it is
    tried again (ms); None unless it is open.
    `reason`: why it was given up. `tries` are the last ones; `tried` counts all.
    """

    id: str
    job_id: str
    seq: int
    event: WebhookEvent
    recipient: str
    tenant: str
    url: str
    state: DeliveryState
    reason: str | None
    created: int
    ended: int | None
    due: int | None
    tried: int
    tries: tuple[Try, ...]


@dataclass(frozen=True)
class LeasedDelivery:
    """A delivery as a courier gets it to post: it is leased to nobody else. `token` proves that.

    `number` counts all tries from 1, this one included; `attempt` those since it was last asked to be delivered, which
    is what its schedule goes by. `generation` and `rotated` are those of the subscription's secret (0 for a job's own
    webhook). `is_permitted`: the receiver was asked lately for its consent.
    """

    id: str
    job_id: str
    seq: int
    event: WebhookEvent
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
    """`sub_` and a UUIDv7: ids sort by the time they were made."""
    return SUBSCRIPTION_PREFIX + new_job_id(now_ms)


def is_subscription_id(text: str) -> bool:
    return text.startswith(SUBSCRIPTION_PREFIX) and is_job_id(text.removeprefix(SUBSCRIPTION_PREFIX))


def is_delivery_id(text: str, *, job_id: str) -> bool:
    """Whether `text` is written as the ids of this job's deliveries are: `<job>.<seq>.<recipient>`."""
    match = _DELIVERY_ID.match(text)
    return match is not None and match["job"] == job_id


def target_of(tenant: str, url: str) -> str:
    """Whose deliveries share a pace: those of one tenant to one origin (RFC 6454), as `tenant@https://host:port`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    with suppress(ValueError):
        host = str(ip_address(host))  # an IPv6 address has many spellings
    port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    return f"{tenant}@{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def in_order(events: Iterable[WebhookEvent]) -> list[WebhookEvent]:
    """As a job lives through them."""
    wanted = set(events)
    return [event for event in WebhookEvent if event in wanted]

"""The settings of the courier.

`K_SINK` and `K_CE_OVERRIDES` are Knative's names: a SinkBinding injects them
(https://knative.dev/docs/eventing/custom-event-source/sinkbinding/).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from darkroom.access.credentials import Credential
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.proofs import KEY_ID, PROOF
from darkroom.errors import InvalidEvent
from darkroom.ledger.calls import (
    AGEING_MS,
    DELIVERY_LEASE_MS,
    ENDED_BYTES,
    HISTORY_LEASE_MS,
    LEASE_MS,
    REAP_GAP_MS,
    RECORD_TTL_MS,
    RELAY_LEASE_MS,
    SWEEP_AGE_MS,
)
from darkroom.settings import (
    HistorySettings,
    LedgerSettings,
    LinkSettings,
    ProofSettings,
    Renamed,
    Settings,
    SinkSettings,
    SinkUrl,
    StoreSettings,
    WebhookSettings,
)
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

OWN_EXTENSIONS = frozenset({"sequence", "tenant", "traceparent", KEY_ID, PROOF})
"""Extensions that `result` and the Triggers read: an override must not replace them."""


def _extensions(value: object) -> object:
    """The extensions in SinkBinding's JSON, `{"extensions": {"name": "value"}}`, which may be empty."""
    if not isinstance(value, str):
        return value
    try:
        overrides = json.loads(value or "{}")
        extensions = overrides.get("extensions") or {}
        Event(id="any", source="any", type="any", extensions=extensions)  # its constructor checks them
    except InvalidEvent as error:
        raise ValueError(f"names extensions that no CloudEvent can have: {error.detail}") from None
    except (AttributeError, json.JSONDecodeError):
        raise ValueError('is not JSON such as {"extensions": {"name": "value"}}') from None
    if taken := OWN_EXTENSIONS & set(extensions):
        raise ValueError(f"names extensions that darkroom sets itself: {', '.join(sorted(taken))}")
    return extensions


SCHEDULE_S = (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Standard Webhooks' pauses before each attempt, in seconds ("Deliverability and reliability")."""


def _pauses(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


def _root_key(value: SecretStr) -> SecretStr:
    if Credential.parse(value.get_secret_value()) is None:
        raise ValueError("is not a key: `darkroom keys generate` makes one")
    return value


class LedgerTimes(Settings):
    """Times of the ledger, in seconds. Tests shorten them; they are no part of the documented settings."""

    attempt_lease_s: Annotated[float, Renamed("DARKROOM_LEASE_S")] = Field(default=LEASE_MS / 1000, gt=0)
    """The lease of a worker's attempt: after an outage of Redis no attempt is reaped for as long."""

    reap_gap_s: float = Field(default=REAP_GAP_MS / 1000, gt=0)
    """A longer gap between two rounds of the upkeep counts as an outage. Well above `poll_interval_s`."""

    sweep_age_s: float = Field(default=SWEEP_AGE_MS / 1000, gt=0)
    """The age from which a message that is in no list counts as lost."""

    relay_lease_s: float = Field(default=RELAY_LEASE_MS / 1000, gt=0)
    """An event that the sink accepted and that is not applied is posted again after this, then after twice that, and
    so on.
    """

    delivery_lease_s: float = Field(default=DELIVERY_LEASE_MS / 1000, gt=0)
    """A delivery that was leased and not recorded is due again after this. More than an attempt may take."""

    history_lease_s: float = Field(default=HISTORY_LEASE_MS / 1000, gt=0)
    """A finished job that was leased for the history and not archived is due again after this."""


class CourierSettings(
    LedgerSettings,
    LinkSettings,
    HistorySettings,
    StoreSettings,
    WebhookSettings,
    ProofSettings,
    SinkSettings,
    LedgerTimes,
):
    """The courier's settings. Times are in seconds."""

    sink: SinkUrl = Field(validation_alias="K_SINK")
    """The http or https address that events are posted to, used unchanged."""

    overrides: Annotated[Mapping[str, str], NoDecode, BeforeValidator(_extensions)] = Field(
        default_factory=dict, validation_alias="K_CE_OVERRIDES"
    )
    """Extensions that are added to every event."""

    sink_concurrency: Annotated[int, Renamed("DARKROOM_POSTS")] = Field(default=32, ge=1, le=1000)
    """The most posts to the sink at one time. 32 posts of 20 ms each are 1,600 a second."""

    sink_timeout_s: Annotated[float, Renamed("DARKROOM_POST_TIMEOUT_S")] = Field(default=10, gt=0, le=60)
    """The timeout of one post to the sink, in seconds. Keep it below 30, after which the event is posted again."""

    delivery_concurrency: Annotated[int, Renamed("DARKROOM_DELIVERIES")] = Field(default=256, ge=1, le=2000)
    """The most posts to webhooks at one time."""

    delivery_concurrency_per_target: Annotated[int, Renamed("DARKROOM_DELIVERIES_PER_TARGET")] = Field(
        default=16, ge=1, le=1000
    )
    """The most posts to webhooks of one target at one time; a target is a tenant's receivers at one origin. Keep it far
    below the limit of all posts to webhooks: a receiver that does not answer uses so many until it is limited to one.
    """

    # A guess: twenty a second are more than the jobs of one person cause.
    delivery_rate: int = Field(default=1200, ge=1, le=6_000_000)
    """The most posts a minute to a target whose receiver granted no other rate (`WebHook-Allowed-Rate`). It limits how
    many posts a tenant can direct at an origin that did not agree to them.
    """

    delivery_timeout_s: float = Field(default=20, gt=0, le=50)
    """The timeout of one post to a webhook, in seconds. Standard Webhooks recommends 15 to 30."""

    delivery_schedule_s: Annotated[
        tuple[Annotated[float, Field(ge=0, le=7 * 24 * 3600)], ...], NoDecode, BeforeValidator(_pauses)
    ] = Field(default=SCHEDULE_S, min_length=1, max_length=50)
    """The pause before each attempt to deliver, the first one included, in seconds, separated by commas."""

    poll_interval_s: Annotated[float, Renamed("DARKROOM_TICK_S")] = Field(default=1, gt=0, le=10)
    """The pause between two rounds of the courier's loops, in seconds: expired leases, lost messages, due retries,
    start deadlines and, where no message from Redis arrived earlier, events and deliveries.
    """

    ageing_s: float = Field(default=AGEING_MS / 1000, ge=1, le=30 * 24 * 3600)
    """How long a job waits in one priority class before it moves up one, in seconds. A job of priority 9 is in the most
    urgent class after nine times this.
    """

    ledger_retention_s: float = Field(default=RECORD_TTL_MS / 1000, ge=60, le=30 * 24 * 3600)
    """How long Redis keeps a finished job once the history has it and its event is applied, in seconds. Applies to jobs
    that finish later; the history keeps all jobs.
    """

    ledger_ended_bytes: int = Field(default=ENDED_BYTES, ge=1024 * 1024, le=2**40)
    """The most bytes of Redis that such jobs use; beyond it those that finished first leave Redis early."""

    root_key: Annotated[SecretStr, AfterValidator(_root_key)] | None = None
    """The API key of administrators, which creates all others. Secret. A new value replaces the key."""

    tenants_file: Path | None = None
    """A YAML file of tenants and their keys, which is applied at start and whenever it changes. What it names can be
    changed in it alone; what leaves it is disabled. Without it tenants and keys are managed by operations alone.
    """

    retention_days: int | None = Field(default=None, ge=1, le=36_500)
    """Jobs are deleted with their artifacts so many days after they finished; without a value they are never deleted.
    """

    retention_interval_s: Annotated[float, Renamed("DARKROOM_RETENTION_EVERY_S")] = Field(default=3600, gt=0)
    """The pause between two searches for jobs to delete and for incomplete deletions, in seconds."""

    orphan_age_s: float = Field(default=3600, ge=0)
    """The age in seconds from which an artifact is deleted that no job publishes, such as one of an attempt that was
    cancelled while it stored its images. The whole store is searched once in 24 of the intervals above.
    """

    host: str = "127.0.0.1"
    """The address where probes and metrics are served; in a pod `0.0.0.0`."""

    probe_port: Annotated[int | None, Renamed("DARKROOM_HEALTH_PORT")] = Field(default=None, ge=1, le=65535)
    """The port of `/healthz`, `/readyz` and `/metrics`; without a value they are not served."""

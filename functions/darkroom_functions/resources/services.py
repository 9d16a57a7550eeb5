"""Services that the handlers use; a function's `lifespan` makes them and stores them at `app.state.services`."""

from __future__ import annotations

from dataclasses import dataclass

from darkroom.access.administration import Administration
from darkroom.artifacts import ArtifactStore
from darkroom.catalogue.models import Catalogue
from darkroom.cloudevents.proofs import Proofs
from darkroom.history.deletion import Deletion
from darkroom.history.lookup import Lookup
from darkroom.history.usage import UsageReports
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.dead_letters import DeadLetters
from darkroom.ledger.undelivered import UndeliveredEvents
from darkroom.links import Links
from darkroom.trail.store import TrailStore
from darkroom.webhooks.signatures import Signer

from darkroom_functions.resources.broker import Broker
from darkroom_functions.settings import JobsSettings, SubmitSettings, UndeliveredSettings
from darkroom_functions.streams.wait import JobWaits
from darkroom_functions.submission.intake import Intake


@dataclass(frozen=True)
class SubmitServices:
    """Those of `submit`."""

    ledger: AsyncLedger
    intake: Intake
    waiting: JobWaits
    catalogue: Catalogue
    links: Links
    proofs: Proofs
    broker: Broker
    settings: SubmitSettings


@dataclass(frozen=True)
class JobsServices:
    """Those of `jobs`; `models` and `description` are documents that do not change while the process lives."""

    ledger: AsyncLedger
    lookup: Lookup
    dead_letters: DeadLetters
    deletion: Deletion
    intake: Intake
    waiting: JobWaits
    catalogue: Catalogue
    store: ArtifactStore
    links: Links
    signer: Signer
    administration: Administration
    trail: TrailStore
    usage: UsageReports
    settings: JobsSettings
    models: bytes
    description: bytes


@dataclass(frozen=True)
class UndeliveredServices:
    """Those of `undelivered`."""

    ledger: AsyncLedger
    events: UndeliveredEvents
    proofs: Proofs
    broker: Broker
    settings: UndeliveredSettings

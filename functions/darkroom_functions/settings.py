"""Settings of the functions and of the process that serves them; the groups they share with other parts are in core."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from darkroom.catalogue.models import Catalogue
from darkroom.errors import SettingError
from darkroom.ledger.calls import BACKLOG_BYTES, BACKLOG_LIMIT
from darkroom.settings import (
    PREFIX,
    GuardSettings,
    HistorySettings,
    LedgerSettings,
    LinkSettings,
    ModelSettings,
    Settings,
    SinkUrl,
    StoreSettings,
    WebhookSettings,
    WebUrl,
    listed,
)
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from darkroom_functions.http.bodies import MAX_BODY_BYTES

DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[.]?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@,\s]+")


def _host(value: str) -> str:
    name = value.lower().removeprefix("[").removesuffix("]").removesuffix(".")
    if _HOST.fullmatch(name) is None:
        raise ValueError(f"{value!r} is not a host such as images.example.org, .example.org or 192.0.2.7")
    return name


def _origin(value: str) -> str:
    if _ORIGIN.fullmatch(value.lower()) is None:
        raise ValueError(f"{value!r} is not an origin such as https://app.example.org, without a path")
    return origin_of(value)


def origin_of(url: str) -> str:
    """The origin of a URL as browsers write it: in lower case, without a default port (RFC 6454, section 6.2)."""
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc.removesuffix(f':{DEFAULT_PORTS.get(parts.scheme)}')}"


class BodySettings(Settings):
    """What functions that read bodies need."""

    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1024, le=64 * 1024 * 1024)
    """The largest body that is read, in bytes. A large one is held in memory whole, and parsing it holds up others."""


class IntakeSettings(Settings):
    """What functions that take jobs in need."""

    backlog_limit: int = Field(default=BACKLOG_LIMIT, ge=1, le=10_000_000)
    """Jobs that may wait in one pool; beyond it a submission is refused with 429."""

    backlog_bytes: int = Field(default=BACKLOG_BYTES, ge=1024 * 1024, le=1024**4)
    """Bytes of Redis that unfinished jobs of all pools may take; beyond it a submission is refused with 429. The
    default is half of the `maxmemory` that is shipped."""


class WaitSettings(Settings):
    """What functions need whose requests may wait for a job's end."""

    max_wait_s: int = Field(default=55, ge=0, le=570)
    """The longest that a request may wait, in seconds; 0: none does. nginx and most load balancers give up at 60 s."""


class SubmitSettings(
    LedgerSettings, ModelSettings, LinkSettings, GuardSettings, IntakeSettings, WaitSettings, BodySettings
):
    """What submit needs."""


class JobsSettings(
    LedgerSettings,
    HistorySettings,
    ModelSettings,
    StoreSettings,
    LinkSettings,
    WebhookSettings,
    IntakeSettings,
    WaitSettings,
    BodySettings,
):
    """What jobs needs."""


class ResultSettings(LedgerSettings, HistorySettings, LinkSettings, BodySettings):
    """What result needs."""

    socket_buffer: int = Field(default=256, ge=1, le=100_000)
    """Messages that may wait for one socket or event stream; a client that takes them more slowly than they come is cut
    off."""

    socket_grace_s: float = Field(default=5, ge=0, le=300)
    """How long a socket stays open after its last job has ended, in seconds."""

    socket_idle_s: float = Field(default=60, ge=1, le=3600)
    """How long a socket whose client subscribes as it goes stays open while it follows no job and its client says
    nothing, in seconds."""

    socket_life_s: float = Field(default=570, ge=1, le=86_400)
    """How long a socket or an event stream lives at most, in seconds; clients connect again and go on. Knative ends a
    request at the revision's timeout, 600 s at most, in mid-message."""

    look_every_s: float = Field(default=10, ge=0.1, le=60)
    """How often what is followed is compared with the log, in seconds: the longest that anybody waits for a message
    that Redis' pub/sub lost."""


class UndeliveredSettings(LedgerSettings, BodySettings):
    """Settings of the function `undelivered`."""

    sink: SinkUrl | None = Field(default=None, validation_alias="K_SINK")
    """Where undelivered events are posted again: the Broker that gave up on them. Without it nothing is replayed."""

    replay_timeout_s: float = Field(default=10, gt=0, le=60)
    """How long the sink may take to answer, in seconds."""


class ServeSettings(Settings):
    """Where a process listens, and for whom."""

    public_url: WebUrl | None = None
    """The address that callers use for us; links to artifacts begin with it."""

    max_connections: int = Field(default=4000, ge=1, le=100_000)
    """Connections that a process has at one time, sockets included. When one more comes, the one that has awaited a
    request for the longest is closed; when none does, the new one is refused (503)."""

    allowed_hosts: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(listed)] = ()
    """Hosts that requests may name beside loopback's and that of the public address, separated by commas: names, all
    names below one (`.example.org`), addresses. A request for another host is refused (421) where the functions listen
    on loopback, and anywhere once this is set."""

    allowed_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(listed)
    ] = ()
    """Origins of web pages that may submit, cancel and read (CORS), separated by commas: `https://app.example.org`.
    Pages of other origins are refused (403) where they change something or open a socket."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address to listen on. In a container: 0.0.0.0."""

    port: int = Field(default=8080, ge=1, le=65535, validation_alias="PORT")
    """The port to listen on. Knative sets it, under a name without our prefix."""


def catalogue_of(settings: ModelSettings) -> Catalogue:
    """The models there are. Raises SettingError that names the variable, the file and the key."""
    try:
        return Catalogue.load(settings.models)
    except SettingError as error:
        raise SettingError(f"{PREFIX}MODELS: {error.detail}") from error

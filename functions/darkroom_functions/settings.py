"""The settings of the functions and of the process that serves them. Groups shared with other parts are in core."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated
from urllib.parse import urlsplit

from darkroom.access.tokens.addresses import issuer_fault
from darkroom.access.tokens.claims import TokenRules
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
    ProofSettings,
    Renamed,
    Settings,
    SinkSettings,
    StoreSettings,
    WebhookSettings,
    WebUrl,
    listed,
)
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from darkroom_functions.http.bodies import MAX_BODY_BYTES

LOOPBACK_NAME = "localhost"

DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[.]?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@,\s]+")


def is_loopback(host: str) -> bool:
    """Whether the host is a loopback address, `localhost` or a name below it (RFC 6761, section 6.3)."""
    if host == LOOPBACK_NAME or host.endswith(f".{LOOPBACK_NAME}"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


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


def _network(value: object) -> object:
    try:
        return ip_network(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{value!r} is not a network such as 10.0.0.0/8 or an address") from None


class AuthMode(StrEnum):
    """`KEYS`: every request needs a credential. `NONE`: none does; for one machine."""

    KEYS = "keys"
    NONE = "none"


class AuthSettings(Settings):
    """Whether requests need a credential."""

    auth: AuthMode = AuthMode.KEYS
    """`keys`: every request needs an API key. `none`: every request belongs to the tenant `default` and may do
    everything; the functions then listen on loopback only."""


class TokenSettings(AuthSettings):
    """JWT bearer tokens of an OpenID Connect issuer."""

    oidc_issuer: str | None = None
    """The issuer of JWT bearer tokens, exactly as in their claim `iss`: `https://login.example.org/realms/studio`. Its
    keys are read from `/.well-known/openid-configuration` below it. Without it no token is accepted. http is possible
    for loopback only."""

    oidc_audience: Annotated[str | None, Field(min_length=1, max_length=500)] = Field(
        default=None, validate_default=True
    )
    """The audience that tokens must name in their claim `aud`: that of darkroom at the issuer. Required with an issuer.
    """

    oidc_tenant_claim: str = Field(default="tenant", min_length=1, max_length=200)
    """The claim of tokens that has the name of the tenant; members of objects are separated by dots:
    `organization.name`."""

    oidc_scope_claim: str = Field(default="scope", min_length=1, max_length=200)
    """The claim of tokens that has the scopes, as words or as a list: `scope`, `realm_access.roles`."""

    oidc_scope_prefix: str = Field(default="darkroom:", max_length=100, pattern=r"^\S*$")
    """The prefix of darkroom's scopes in that claim: `darkroom:submit`. Empty for scopes without a prefix; then every
    word `admin` there, such as a role of the issuer itself, is the scope `admin`."""

    oidc_clock_skew_s: float = Field(default=60, ge=0, le=600)
    """How far the issuer's clock may differ, in seconds: for the claims `exp`, `nbf` and `iat`."""

    @field_validator("oidc_issuer")
    @classmethod
    def _is_issuer(cls, issuer: str | None, info: ValidationInfo) -> str | None:
        if issuer is None:
            return None
        if fault := issuer_fault(issuer):
            raise ValueError(fault)
        if info.data.get("auth") is AuthMode.NONE:
            raise ValueError("needs DARKROOM_AUTH=keys: without it no credential is verified")
        return issuer

    @field_validator("oidc_audience")
    @classmethod
    def _belongs_to_issuer(cls, audience: str | None, info: ValidationInfo) -> str | None:
        if "oidc_issuer" in info.data and (audience is None) is not (info.data["oidc_issuer"] is None):
            raise ValueError("must be set together with DARKROOM_OIDC_ISSUER")
        return audience

    @property
    def token_rules(self) -> TokenRules | None:
        """What tokens must contain; None where none is accepted."""
        if self.oidc_issuer is None or self.oidc_audience is None:
            return None
        return TokenRules(
            issuer=self.oidc_issuer,
            audience=self.oidc_audience,
            tenant_claim=self.oidc_tenant_claim,
            scope_claim=self.oidc_scope_claim,
            scope_prefix=self.oidc_scope_prefix,
            skew_s=self.oidc_clock_skew_s,
        )


class AccessSettings(LedgerSettings, TokenSettings):
    """What the verification of credentials needs."""


class BodySettings(Settings):
    """The limits of request bodies."""

    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1024, le=64 * 1024 * 1024)
    """The largest request body, in bytes. A body is held in memory, and parsing a large one delays other requests."""


class FairBy(StrEnum):
    """`TENANT`: each tenant's jobs run in the order of their arrival. `USER`: the users of a tenant take turns."""

    TENANT = "tenant"
    USER = "user"


class IntakeSettings(Settings):
    """The limits of the backlog, and its order."""

    backlog_limit: int = Field(default=BACKLOG_LIMIT, ge=1, le=10_000_000)
    """The most jobs that may wait in one pool. Further submissions are rejected with 429."""

    backlog_bytes: int = Field(default=BACKLOG_BYTES, ge=1024 * 1024, le=1024**4)
    """The most bytes of Redis that unfinished jobs of all pools may use. Further submissions are rejected with 429. The
    default is half of the `maxmemory` in the manifests."""

    fair_by: FairBy = FairBy.TENANT
    """The order of the jobs of one tenant. `tenant`: in the order of their arrival. `user`: the users of the tenant, by
    the `user_id` of their jobs, take turns. Tenants share each pool by their weights in either case."""


class WaitSettings(Settings):
    """The limit of requests that wait for a result."""

    max_wait_s: int = Field(default=55, ge=0, le=570)
    """The longest that a request may wait for a result, in seconds; with 0 none waits. The timeout of nginx and most
    load balancers is 60 s."""


class SubmitSettings(
    LedgerSettings,
    ModelSettings,
    LinkSettings,
    GuardSettings,
    ProofSettings,
    SinkSettings,
    IntakeSettings,
    WaitSettings,
    BodySettings,
):
    """The settings of the function `submit`."""


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
    """The settings of the function `jobs`."""


class ResultSettings(LedgerSettings, HistorySettings, LinkSettings, ProofSettings, BodySettings):
    """The settings of the function `result`."""

    socket_buffer: int = Field(default=256, ge=1, le=100_000)
    """The most messages that may wait for one socket or event stream. A client that reads too slowly is disconnected.
    """

    socket_grace_s: float = Field(default=5, ge=0, le=300)
    """How long a socket stays open after its last job has finished, in seconds."""

    socket_idle_s: float = Field(default=60, ge=1, le=3600)
    """How long a socket stays open that follows no job and whose client sends nothing, in seconds."""

    socket_life_s: float = Field(default=570, ge=1, le=86_400)
    """The longest life of a socket or an event stream, in seconds; clients reconnect and resume. Keep it below the
    timeout of the Knative revision, 600 s at most, at which Knative cuts the connection."""

    stream_check_interval_s: Annotated[float, Renamed("DARKROOM_LOOK_EVERY_S")] = Field(default=10, ge=0.1, le=60)
    """The pause between two readings of the logs that clients follow, in seconds: the longest delay of a message that
    Redis' pub/sub lost."""


class UndeliveredSettings(LedgerSettings, ProofSettings, SinkSettings, BodySettings):
    """The settings of the function `undelivered`."""

    foreign_events: bool = False
    """Whether undeliverable events without a proof of darkroom are stored too, for the tenant `default`: everything
    that reaches the Broker can then fill the store."""

    replay_timeout_s: float = Field(default=10, gt=0, le=60)
    """The timeout of the sink when an undelivered event is replayed, in seconds."""


class ServeSettings(AuthSettings):
    """The server: where it listens, and which requests it accepts."""

    public_url: WebUrl | None = None
    """The address that clients use for darkroom; links to artifacts begin with it."""

    max_connections: int = Field(default=4000, ge=1, le=100_000)
    """The most connections of a process, sockets included. For one more, the connection that has been idle for the
    longest is closed; where none is idle, the new one is rejected with 503."""

    allowed_hosts: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(listed)] = ()
    """Hosts that requests may name in addition to loopback and the host of the public address, separated by commas:
    names, all names below a domain (`.example.org`), addresses. A request for another host is rejected with 421
    without keys (`DARKROOM_AUTH=none`), and with keys once this is set."""

    allowed_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(listed)
    ] = ()
    """Origins of web pages that may submit, cancel and read (CORS), separated by commas: `https://app.example.org`.
    Requests from other origins are rejected with 403 without keys; with keys, if they have a session's cookie and
    change something or open a socket."""

    internal_peers: Annotated[
        tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...], NoDecode, BeforeValidator(listed)
    ] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
    """Networks whose requests get `/metrics` and probes unless a proxy has forwarded them, separated by commas. In a
    cluster it is every network, since Knative's proxy stands before each function."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address to listen on. In a container: 0.0.0.0."""

    @field_validator("host")
    @classmethod
    def _no_open_door(cls, host: str, info: ValidationInfo) -> str:
        if info.data.get("auth") is AuthMode.NONE and not is_loopback(host):
            raise ValueError("without keys (DARKROOM_AUTH=none) it must be a loopback address, such as 127.0.0.1")
        return host

    port: int = Field(default=8080, ge=1, le=65535, validation_alias="PORT")
    """The port to listen on. Knative sets it, as a variable without the prefix."""


def catalogue_of(settings: ModelSettings) -> Catalogue:
    """The catalogue of models. Raises SettingError that names the variable, the file and the key."""
    try:
        return Catalogue.load(settings.models)
    except SettingError as error:
        raise SettingError(f"{PREFIX}MODELS: {error.detail}") from error

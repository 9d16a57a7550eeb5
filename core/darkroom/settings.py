"""Settings: read once from the environment, by the entry point of each part, into a frozen object.

Each part has a class of its own, beside its code, composed of the groups here; `load` reads it. An invalid value ends
the part with one line that names the variable and the value. A setting that was renamed is also read under its former
name (`Renamed`) for one version, with a warning.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from darkroom.cloudevents.attributes import uri_reference_fault
from darkroom.errors import SettingError
from darkroom.ledger.address import RedisAddress
from darkroom.logs import logger
from darkroom.webhooks.guard import NOTHING, Allow

S = TypeVar("S", bound="Settings")

PREFIX = "DARKROOM_"

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
"""The drivers of the supported databases. Addresses often name none, such as those that CloudNativePG generates."""

_log = logger(__name__)


def _redis_url(value: SecretStr) -> SecretStr:
    try:
        address = RedisAddress.parse(value.get_secret_value())
    except ValueError as error:
        raise ValueError(f"is not a Redis address such as redis://host:6379/0: {error}") from None
    if missing := address.missing_files():
        raise ValueError(f"the option {missing[0]} names a file or folder that is not there")
    return value


def _database_url(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    try:
        parts = urlsplit(text)
    except ValueError:  # the message of the error may contain the password
        parts = urlsplit("")
    is_file = parts.scheme.startswith("sqlite")
    if parts.scheme not in DRIVERS or not parts.path.strip("/") or (is_file and (parts.netloc or ":memory:" in text)):
        raise ValueError("is not a database such as sqlite+aiosqlite:////folder/file or postgresql+asyncpg://host/name")
    return SecretStr(DRIVERS[parts.scheme] + text[len(parts.scheme) :])


def _web_url(value: str) -> str:
    parts = urlsplit(value)
    fault = uri_reference_fault(value)  # it is the source of darkroom's events
    good = parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment
    if fault or not good or not _has_good_port(parts):
        raise ValueError("is not an address such as https://host/path")
    return value.rstrip("/")


def _sink(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("is not an address such as http://broker-ingress.knative-eventing/default/default")
    return value


def _has_good_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def listed(value: object) -> object:
    """The items of a text, separated by commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _allowed(value: object) -> object:
    parts = listed(value)
    return Allow.parse(parts) if isinstance(parts, list) else parts


def _folders(value: object) -> object:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


WebUrl = Annotated[str, AfterValidator(_web_url)]
"""An http or https address, stored without a trailing slash."""

SinkUrl = Annotated[str, AfterValidator(_sink)]
"""The http or https address that events are posted to, used unchanged. A SinkBinding injects it as K_SINK."""

RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
"""The address of a Redis with its database number. Secret: it may contain a password."""

DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
"""The address of a SQL database with its driver. Secret: it may contain a password."""

Namespace = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""The prefix of all keys and channels in Redis: database numbers do not separate channels."""


@dataclass(frozen=True)
class Renamed:
    """Marks a setting that was renamed: `Annotated[int, Renamed("DARKROOM_OLD_NAME")]`.

    The former variable is read where the current one is not set, for one version, and `load` logs a warning.
    """

    former: str


class Settings(BaseSettings):
    """The base of all settings. Variables begin with DARKROOM_, are read once, and do not change."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=False
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, and after it the former names of renamed settings."""
        return init_settings, env_settings, _FormerNames(settings_cls)


class _FormerNames(PydanticBaseSettingsSource):
    """The values of variables with former names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        former = former_name(field)
        return None if former is None else os.environ.get(former), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class LedgerSettings(Settings):
    """The ledger's address."""

    redis_url: RedisUrl
    """The address of Redis. Secret."""

    namespace: Namespace = "darkroom"
    """The prefix of all keys and channels in Redis."""


class HistorySettings(Settings):
    """The history's address."""

    database_url: DatabaseUrl
    """The SQL database of finished jobs: `sqlite+aiosqlite:////folder/file` or `postgresql+asyncpg://user@host/name`."""


class ModelSettings(Settings):
    """The catalogue of models."""

    models: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders of model files, separated as in PATH, read after the built-in ones."""


class StoreSettings(Settings):
    """The store of artifacts."""

    store: str = Field(pattern=r"^(file:///|s3://)")
    """The object store: `file:///folder` or `s3://bucket/prefix` (credentials in AWS' own variables)."""


class LinkSettings(Settings):
    """The links that clients use."""

    public_url: WebUrl
    """The address that clients use for darkroom; links to artifacts begin with it."""

    link_key: SecretStr = Field(min_length=32)
    """The key that signs links to artifacts: at least 32 characters, the same for all parts. Secret."""

    link_ttl_s: int = Field(default=24 * 3600, ge=60, le=7 * 24 * 3600)
    """The lifetime of a link to an artifact, in seconds. A link is valid for at least nine tenths of it."""


class GuardSettings(Settings):
    """The addresses that webhooks may name."""

    webhook_allow: Annotated[Allow, NoDecode, BeforeValidator(_allowed)] = NOTHING
    """Receivers that may have internal addresses, use http and any port, separated by commas: host names
    (`receiver.default.svc`), all names below a domain (`.example.internal`), either with a port (`localhost:9000`),
    addresses and networks (`10.0.0.0/8`).
    """


class WebhookSettings(GuardSettings):
    """The signing keys of webhooks, and the addresses that webhooks may name."""

    webhook_keys: Annotated[
        tuple[Annotated[SecretStr, Field(min_length=32)], ...],
        NoDecode,
        BeforeValidator(listed),
        Field(min_length=1, max_length=4),
    ]
    """Signing keys of at least 32 characters, separated by commas, the newest first. All of them sign, so that a new
    one can be added before the old one is removed. The same for all parts. Secret.
    """


class ProofSettings(Settings):
    """The keys that prove darkroom's events to its own parts."""

    proof_keys: Annotated[
        tuple[Annotated[SecretStr, Field(min_length=32)], ...],
        NoDecode,
        BeforeValidator(listed),
        Field(min_length=1, max_length=4),
    ]
    """Keys of at least 32 characters that prove darkroom's events, separated by commas, the newest first: it proves,
    and all of them are accepted, so that a new one can be added before the old one is removed. The same for all parts.
    Secret.
    """


class SinkSettings(Settings):
    """How events are posted to the sink."""

    sink: SinkUrl | None = Field(default=None, validation_alias="K_SINK")
    """The Broker that events are posted to."""

    sink_token_file: Path | None = None
    """The file with the token that is sent to the sink, in clusters where Knative's OIDC authentication is on; it is
    read for each post."""


def load(kind: type[S]) -> S:
    """The settings of one part from the environment.

    Logs `setting_renamed` for each variable that is set under its former name. Raises SettingError that names each
    invalid variable and its value.
    """
    for name, field in kind.model_fields.items():
        if (former := former_name(field)) is not None and former in os.environ:
            _log.warning("setting_renamed", variable=former, use=PREFIX + name.upper())
    try:
        return kind()
    except ValidationError as error:
        raise SettingError("; ".join(_fault(kind, fault) for fault in error.errors())) from None


def former_name(field: FieldInfo) -> str | None:
    """The variable that a renamed setting had before; None for all others."""
    return next((each.former for each in field.metadata if isinstance(each, Renamed)), None)


def _fault(kind: type[Settings], fault: ErrorDetails) -> str:
    name = str(fault["loc"][0]) if fault["loc"] else ""
    named_whole = {field.validation_alias for field in kind.model_fields.values()}  # as Knative's K_SINK is
    variable = name if name in named_whole else PREFIX + name.upper()
    former = former_name(kind.model_fields[name]) if name in kind.model_fields else None
    if former is not None and former in os.environ and variable not in os.environ:
        variable = former
    reason = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{variable} is not set"
    secret = name in kind.model_fields and "Secret" in str(kind.model_fields[name].annotation)
    shown = "(hidden)" if secret else repr(os.environ.get(variable, fault["input"]))
    return f"{variable}={shown}: {reason}"

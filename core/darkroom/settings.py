"""Settings: read once, by the entry point of each part, from the environment, into a frozen object.

Each part has its own class beside its code, made of the groups here; `load` reads it. A value that cannot be used ends
the part with one line that names the variable and the value.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from darkroom.cloudevents.attributes import uri_reference_fault
from darkroom.errors import SettingError
from darkroom.ledger.address import RedisAddress
from darkroom.webhooks.guard import NOTHING, Allow

S = TypeVar("S", bound="Settings")

PREFIX = "DARKROOM_"

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
"""How the databases that we know are reached. Who hands out an address often names no driver, as CloudNativePG does."""


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
    except ValueError:  # its text may show the password
        parts = urlsplit("")
    is_file = parts.scheme.startswith("sqlite")
    if parts.scheme not in DRIVERS or not parts.path.strip("/") or (is_file and (parts.netloc or ":memory:" in text)):
        raise ValueError("is not a database such as sqlite+aiosqlite:////folder/file or postgresql+asyncpg://host/name")
    return SecretStr(DRIVERS[parts.scheme] + text[len(parts.scheme) :])


def _web_url(value: str) -> str:
    parts = urlsplit(value)
    fault = uri_reference_fault(value)  # it is the source of our events
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
    """The parts of a text that separates them by commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _allowed(value: object) -> object:
    parts = listed(value)
    return Allow.parse(parts) if isinstance(parts, list) else parts


def _folders(value: object) -> object:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


WebUrl = Annotated[str, AfterValidator(_web_url)]
"""An http or https address, kept without a slash at its end."""

SinkUrl = Annotated[str, AfterValidator(_sink)]
"""Where events are posted: an http or https address, used as it is. A SinkBinding injects it as K_SINK."""

RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
"""Where a Redis is, database number included. Secret: it may hold a password."""

DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
"""Where a SQL database is, with the driver that reaches it. Secret: it may hold a password."""

Namespace = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""Begins every key and channel of ours: Redis' channels are not kept apart by database numbers."""


class Settings(BaseSettings):
    """Base of all settings: variables begin with DARKROOM_, are read once, and do not change."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=False
    )


class LedgerSettings(Settings):
    """What a part needs to reach the ledger."""

    redis_url: RedisUrl
    """Where Redis is."""

    namespace: Namespace = "darkroom"
    """Begins every key and channel of ours."""


class HistorySettings(Settings):
    """What a part needs to reach the history."""

    database_url: DatabaseUrl
    """The SQL database of ended jobs: `sqlite+aiosqlite:////folder/file` or `postgresql+asyncpg://user@host/name`."""


class ModelSettings(Settings):
    """Which models there are."""

    models: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders of model files, separated as in PATH, read after the shipped ones."""


class StoreSettings(Settings):
    """Where artifacts are."""

    store: str = Field(pattern=r"^(file:///|s3://)")
    """The object store: `file:///folder` or `s3://bucket/prefix` (credentials by AWS' own variables)."""


class LinkSettings(Settings):
    """How callers reach what they are told of."""

    public_url: WebUrl
    """The address that callers use for us; links to artifacts begin with it."""

    link_key: SecretStr = Field(min_length=32)
    """Signs the links to artifacts; at least 32 characters, the same for all parts. Secret."""

    link_ttl_s: int = Field(default=24 * 3600, ge=60, le=7 * 24 * 3600)
    """How long a link to an artifact can be used, in seconds. Nine tenths of that are certain."""


class GuardSettings(Settings):
    """Where callers may have darkroom send to."""

    webhook_allow: Annotated[Allow, NoDecode, BeforeValidator(_allowed)] = NOTHING
    """Receivers that may be inside, by http and at any port, separated by commas: names (`receiver.default.svc`), all
    names below one (`.example.internal`), either with a port (`localhost:9000`), addresses and networks (`10.0.0.0/8`).
    """


class WebhookSettings(GuardSettings):
    """How webhooks are signed, and where they may go."""

    webhook_keys: Annotated[
        tuple[Annotated[SecretStr, Field(min_length=32)], ...],
        NoDecode,
        BeforeValidator(listed),
        Field(min_length=1, max_length=4),
    ]
    """Secrets of at least 32 characters, separated by commas, the newest first; all of them sign, so that a new one can
    be set before the old one goes. The same for all parts. Secret.
    """


def load(kind: type[S]) -> S:
    """The settings of one part from the environment. Raises SettingError naming each bad variable and its value."""
    try:
        return kind()
    except ValidationError as error:
        raise SettingError("; ".join(_fault(kind, fault) for fault in error.errors())) from None


def _fault(kind: type[Settings], fault: ErrorDetails) -> str:
    name = str(fault["loc"][0]) if fault["loc"] else ""
    named_whole = {field.validation_alias for field in kind.model_fields.values()}  # as Knative's K_SINK is
    variable = name if name in named_whole else PREFIX + name.upper()
    reason = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{variable} is not set"
    secret = name in kind.model_fields and "Secret" in str(kind.model_fields[name].annotation)
    shown = "(hidden)" if secret else repr(os.environ.get(variable, fault["input"]))
    return f"{variable}={shown}: {reason}"

"""Tenants and keys as SQL stores them and Redis publishes them, without any secret."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from darkroom.access.credentials import ID_PATTERN, is_same
from darkroom.access.limits import UNLIMITED, Limits
from darkroom.access.principals import Scope

TENANT_PATTERN = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
"""The pattern of a tenant's name, a DNS label (RFC 1123): it is part of keys in Redis and of paths in the store."""

MAX_SECRETS = 2
"""The most secrets of a key that are valid at the same time: the current one, and the one before it."""

DEFAULT_OVERLAP_S = 24 * 3600
"""How long the previous secret stays valid after a rotation, in seconds."""

MAX_NAME = 100
"""The longest name of a key, in characters."""

_TENANT = re.compile(TENANT_PATTERN + r"\Z")


def is_tenant_name(text: str) -> bool:
    """Whether the text has the form of a tenant's name."""
    return _TENANT.match(text) is not None


def _tenant_name(value: str) -> str:
    if not is_tenant_name(value):
        raise ValueError(f"{value!r} is not a name of 1 to 63 lower-case letters, digits and hyphens")
    return value


def _known_scopes(value: object) -> object:
    """Without those of a later version, which permit nothing here."""
    known = {scope.value for scope in Scope}
    return [each for each in value if each in known] if isinstance(value, list) else value


TenantName = Annotated[str, AfterValidator(_tenant_name)]

Milliseconds = Annotated[int, Field(ge=0)]
"""Milliseconds since the epoch."""

_STORED = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)  # a later version may store more


class Tenant(BaseModel):
    """A tenant: the owner of jobs, subscriptions and keys."""

    model_config = _STORED

    name: TenantName
    disabled: bool = False
    """Whether its credentials are refused. Its running jobs finish, and its waiting jobs do not start."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Its share of each pool, relative to other tenants with waiting jobs."""

    limits: Limits = UNLIMITED
    created: Milliseconds = 0
    created_by: str = ""
    disabled_at: Milliseconds = 0
    """When it was last disabled. Sessions and tickets of before that time stay refused when it is enabled again."""

    managed_by: str | None = None
    """The declaration that defines it; None for a tenant that was created by an operation."""


class KeySecret(BaseModel):
    """A secret of a key, as its SHA-256."""

    model_config = _STORED

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: Milliseconds
    expires: Milliseconds | None = None


class ApiKey(BaseModel):
    """A key without its secrets' text."""

    model_config = _STORED

    id: Annotated[str, Field(pattern=rf"^{ID_PATTERN}$")]
    tenant: TenantName
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    scopes: Annotated[frozenset[Scope], BeforeValidator(_known_scopes)]
    models: tuple[str, ...] = ()
    """The models that it may submit to; all where none is named."""

    limits: Limits = UNLIMITED
    created: Milliseconds = 0
    created_by: str = ""
    expires: Milliseconds | None = None
    disabled: bool = False
    disabled_at: Milliseconds = 0
    """As `Tenant.disabled_at`."""

    last_used: Milliseconds | None = None
    """When it was last used, to the minute."""

    secrets: Annotated[tuple[KeySecret, ...], Field(min_length=1, max_length=MAX_SECRETS)]
    """The newest first."""

    managed_by: str | None = None
    """As `Tenant.managed_by`."""

    def accepts(self, digest: str, *, now: int) -> bool:
        """Whether the SHA-256 is that of one of its secrets, and that secret has not expired. All are compared."""
        matches = [is_same(secret.digest, digest) and not _is_past(secret.expires, now) for secret in self.secrets]
        return any(matches)

    def is_expired(self, now: int) -> bool:
        """Whether the whole key has expired."""
        return _is_past(self.expires, now)

    def rotated(self, digest: str, *, now: int, overlap_s: int) -> ApiKey:
        """The key with a new secret. The current one stays valid for `overlap_s`; an earlier one is removed."""
        until = now + overlap_s * 1000
        current = self.secrets[0]
        expires = until if current.expires is None else min(until, current.expires)
        kept = [current.model_copy(update={"expires": expires})] if overlap_s else []
        return self.model_copy(update={"secrets": (KeySecret(digest=digest, created=now), *kept)})


def _is_past(time: int | None, now: int) -> bool:
    return time is not None and time <= now

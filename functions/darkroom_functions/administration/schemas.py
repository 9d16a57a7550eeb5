"""Bodies of the operations on tenants and keys: what requests may contain, and what responses have."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeVar

from darkroom.access.credentials import ID_PATTERN, TEXT_PATTERN
from darkroom.access.limits import Limits
from darkroom.access.principals import Scope, in_order
from darkroom.access.records import DEFAULT_OVERLAP_S, MAX_NAME, TENANT_PATTERN, ApiKey, Tenant
from darkroom.errors import FieldError, InvalidInput
from darkroom.times import iso, to_ms
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from starlette.requests import Request
from typing_extensions import TypedDict

from darkroom_functions.http.bodies import json_object, read_body
from darkroom_functions.resources.schemas import Time

B = TypeVar("B")

MAX_OVERLAP_S = 30 * 24 * 3600

_CLOSED = ConfigDict(extra="forbid", strict=True)


def _time(value: str) -> str:
    to_ms(value)  # raises ValueError
    return value


TenantText = Annotated[str, Field(pattern=f"^{TENANT_PATTERN}$")]
KeyId = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
KeyText = Annotated[str, Field(pattern=f"^{TEXT_PATTERN}$", description="The key. It is shown once.")]
KeyName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, description="The purpose of the key.")]
ScopeName = Literal["submit", "read", "cancel", "manage", "admin"]
Scopes = Annotated[list[ScopeName], Field(min_length=1, description="The scopes that the key grants.")]
Models = Annotated[list[str], Field(description="The models that it may submit to; all where none is named.")]
Weight = Annotated[float, Field(gt=0, le=1000, description="The share of each pool, relative to other tenants.")]
SentTime = Annotated[str, AfterValidator(_time), Field(json_schema_extra={"format": "date-time"})]


class SentLimits(Limits):
    """Limits in a request. What is absent or null has no limit."""

    model_config = ConfigDict(extra="forbid")


@with_config(_CLOSED)
class TenantRequestBody(TypedDict):
    """A new tenant."""

    name: TenantText
    weight: NotRequired[Weight]
    limits: NotRequired[SentLimits]


@with_config(_CLOSED)
class TenantChangeBody(TypedDict, total=False):
    """The fields to change. A field that is absent keeps its value; `limits` are replaced as a whole."""

    disabled: bool
    weight: Weight
    limits: SentLimits


class TenantBody(TypedDict):
    """A tenant: the owner of jobs, subscriptions and keys."""

    name: TenantText
    disabled: Annotated[bool, Field(description="Whether its credentials are refused. Running jobs finish.")]
    weight: Weight
    limits: Limits
    created_at: Time
    created_by: Annotated[str, Field(description="The key, or the part of darkroom, that created it.")]
    managed_by: Annotated[str | None, Field(description="The declaration that defines it, if there is one.")]


class TenantsBody(TypedDict):
    """All tenants, by name."""

    tenants: list[TenantBody]


@with_config(_CLOSED)
class KeyRequestBody(TypedDict):
    """A new key of a tenant."""

    tenant: TenantText
    name: KeyName
    scopes: Scopes
    models: NotRequired[Models]
    limits: NotRequired[SentLimits]
    expires_at: NotRequired[SentTime | None]


@with_config(_CLOSED)
class KeyChangeBody(TypedDict, total=False):
    """The fields to change. A field that is absent keeps its value; `limits` are replaced as a whole."""

    name: KeyName
    scopes: Scopes
    models: Models
    limits: SentLimits
    expires_at: SentTime | None
    disabled: bool


@with_config(_CLOSED)
class KeyRotationBody(TypedDict, total=False):
    """How long the previous secret stays valid."""

    overlap_s: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_OVERLAP_S,
            json_schema_extra={"default": DEFAULT_OVERLAP_S},
            description="The overlap in seconds.",
        ),
    ]


class KeyBody(TypedDict):
    """A key without its secret."""

    id: KeyId
    tenant: TenantText
    name: KeyName
    scopes: Scopes
    models: Models
    limits: Limits
    created_at: Time
    created_by: Annotated[str, Field(description="The key, or the part of darkroom, that created it.")]
    expires_at: Time | None
    disabled: Annotated[bool, Field(description="Whether requests with the key are refused.")]
    last_used_at: Annotated[Time | None, Field(description="The time of the last request with it, to the minute.")]
    secrets: Annotated[int, Field(ge=1, description="The number of valid secrets: two during a rotation.")]
    managed_by: Annotated[str | None, Field(description="The declaration that defines it, if there is one.")]


class NewKeyBody(KeyBody):
    """A key with its secret."""

    key: KeyText


class KeysBody(TypedDict):
    """Keys by tenant and id."""

    keys: list[KeyBody]


async def read(request: Request, kind: type[B], *, may_be_empty: bool = False) -> B:
    """The body of a request. Raises InvalidInput that names every invalid field."""
    body = await read_body(request, limit=request.app.state.services.settings.max_body_bytes)
    sent = json_object(request, body, may_be_empty=may_be_empty)
    try:
        found: B = TypeAdapter(kind).validate_python(sent)
    except ValidationError as error:
        faults = [
            FieldError(".".join(map(str, fault["loc"])) or "body", _in_words(fault, kind))
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidInput("; ".join(f"{fault.field}: {fault.detail}" for fault in faults[:3]), fields=faults) from None
    return found


def _in_words(fault: ErrorDetails, kind: type[Any]) -> str:
    """The fault of a field, with the values that would be valid."""
    *path, name = fault["loc"] or ("",)
    if fault["type"] == "extra_forbidden":
        known = SentLimits.model_fields if path == ["limits"] else kind.__annotations__
        return f"is not a field: use {', '.join(known)}"
    if fault["type"] == "string_pattern_mismatch" and name in ("name", "tenant"):
        return "must be 1 to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends"
    message = str(fault["msg"])
    return (
        message.removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("Field required", "is required")
    )


def tenant_view(tenant: Tenant) -> TenantBody:
    return {
        "name": tenant.name,
        "disabled": tenant.disabled,
        "weight": tenant.weight,
        "limits": _limits(tenant.limits),
        "created_at": iso(tenant.created),
        "created_by": tenant.created_by,
        "managed_by": tenant.managed_by,
    }


def key_view(key: ApiKey, *, now: int) -> KeyBody:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "scopes": [scope.value for scope in in_order(key.scopes)],
        "models": list(key.models),
        "limits": _limits(key.limits),
        "created_at": iso(key.created),
        "created_by": key.created_by,
        "expires_at": None if key.expires is None else iso(key.expires),
        "disabled": key.disabled,
        "last_used_at": None if key.last_used is None else iso(key.last_used),
        "secrets": sum(secret.expires is None or secret.expires > now for secret in key.secrets),
        "managed_by": key.managed_by,
    }


def scopes_of(names: list[ScopeName]) -> frozenset[Scope]:
    return frozenset(map(Scope, names))


def _limits(limits: Limits) -> Any:
    return limits.model_dump(mode="json", exclude_none=True)

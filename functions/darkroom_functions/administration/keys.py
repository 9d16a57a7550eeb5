"""Keys: created, changed, rotated and deleted by callers with the scope `admin`.

The secret of a key is in the response that creates it and nowhere else.
"""

from __future__ import annotations

import time
from typing import Any

from darkroom.access.credentials import ID_PATTERN, is_key_id
from darkroom.access.limits import UNLIMITED
from darkroom.access.principals import Scope
from darkroom.access.records import DEFAULT_OVERLAP_S, TENANT_PATTERN, ApiKey
from darkroom.catalogue.parameters import shown
from darkroom.errors import FieldError, HistoryUnavailable, InvalidInput, ManagedByDeclaration, NotFound
from darkroom.times import to_ms
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.administration.schemas import (
    KeyBody,
    KeyChangeBody,
    KeyRequestBody,
    KeyRotationBody,
    KeysBody,
    NewKeyBody,
    key_view,
    read,
    scopes_of,
)
from darkroom_functions.administration.tenants import REFUSED_BODY
from darkroom_functions.http.access import principal_of
from darkroom_functions.http.openapi import header, in_path, in_query, json_body, json_response
from darkroom_functions.http.responses import NOT_STORED, answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute
from darkroom_functions.resources.services import JobsServices

KEYS = "/api/v1/keys"

_NO_STORE = {"Cache-Control": NOT_STORED}


async def list_keys(request: Request) -> Response:
    """`GET /api/v1/keys?tenant=`."""
    services: JobsServices = request.app.state.services
    faults = [
        FieldError(shown(name), "is not a parameter: use tenant") for name in request.query_params if name != "tenant"
    ]
    if faults:
        raise InvalidInput("; ".join(f"{fault.field} {fault.detail}" for fault in faults), fields=faults)
    found = await services.administration.store.keys(tenant=request.query_params.get("tenant"))
    return answer(KeysBody(keys=[key_view(key, now=_now()) for key in found]))


async def create_key(request: Request) -> Response:
    """`POST /api/v1/keys`."""
    services: JobsServices = request.app.state.services
    sent = await read(request, KeyRequestBody)
    expires = sent.get("expires_at")
    _check_models(sent.get("models", []), services)
    key, credential = await services.administration.create_key(
        tenant=sent["tenant"],
        name=sent["name"],
        scopes=scopes_of(sent["scopes"]),
        models=tuple(sent.get("models", ())),
        limits=sent.get("limits", UNLIMITED),
        expires=None if expires is None else to_ms(expires),
        actor=principal_of(request).actor,
    )
    view: NewKeyBody = {**key_view(key, now=_now()), "key": credential.text}
    return answer(view, status=201, headers={**_NO_STORE, "Location": f"{KEYS}/{key.id}"})


async def read_key(request: Request) -> Response:
    """`GET /api/v1/keys/{id}`."""
    services: JobsServices = request.app.state.services
    key_id = _id_of(request)
    key = await services.administration.store.key(key_id)
    if key is None:
        raise NotFound(f"there is no key {key_id}")
    return answer(key_view(key, now=_now()))


async def change_key(request: Request) -> Response:
    """`PATCH /api/v1/keys/{id}`."""
    services: JobsServices = request.app.state.services
    key_id, sent = _id_of(request), await read(request, KeyChangeBody)
    _check_models(sent.get("models", []), services)
    fields: dict[str, Any] = {name: value for name, value in sent.items() if name != "expires_at"}
    if "scopes" in sent:
        fields["scopes"] = scopes_of(sent["scopes"])
    if "models" in sent:
        fields["models"] = tuple(sent["models"])
    if "expires_at" in sent:
        fields["expires"] = None if sent["expires_at"] is None else to_ms(sent["expires_at"])

    def change(key: ApiKey) -> ApiKey:
        return key.model_copy(update=fields)

    changed = await services.administration.change_key(key_id, change, actor=principal_of(request).actor)
    return answer(key_view(changed, now=_now()))


async def rotate_key(request: Request) -> Response:
    """`POST /api/v1/keys/{id}/rotate`."""
    services: JobsServices = request.app.state.services
    key_id, sent = _id_of(request), await read(request, KeyRotationBody, may_be_empty=True)
    key, credential = await services.administration.rotate_key(
        key_id, overlap_s=sent.get("overlap_s", DEFAULT_OVERLAP_S), actor=principal_of(request).actor
    )
    view: NewKeyBody = {**key_view(key, now=_now()), "key": credential.text}
    return answer(view, headers=_NO_STORE)


async def delete_key(request: Request) -> Response:
    """`DELETE /api/v1/keys/{id}`."""
    services: JobsServices = request.app.state.services
    await services.administration.delete_key(_id_of(request), actor=principal_of(request).actor)
    return Response(status_code=204)


def _check_models(models: list[str], services: JobsServices) -> None:
    unknown = [name for name in models if name not in services.catalogue.models]
    if unknown:
        known = ", ".join(sorted(services.catalogue.models))
        fault = FieldError("models", f"{shown(unknown[0])} is not a model: use {known}, or none for all")
        raise InvalidInput(f"{fault.field}: {fault.detail}", fields=[fault])


def _id_of(request: Request) -> str:
    key_id: str = request.path_params["id"]
    if not is_key_id(key_id):
        raise NotFound(f'"{shown(key_id)}" is not the id of a key')
    return key_id


def _now() -> int:
    return time.time_ns() // 1_000_000


_BY_ID = in_path("id", {"type": "string", "pattern": f"^{ID_PATTERN}$"}, "The id of the key.")
_NOT_STORED = {"Cache-Control": header({"const": NOT_STORED}, "No cache stores a secret.")}

ROUTES = [
    ApiRoute(
        "GET",
        KEYS,
        list_keys,
        scope=Scope.ADMIN,
        operation="listKeys",
        summary="List the keys",
        parameters=[
            in_query("tenant", {"type": "string", "pattern": f"^{TENANT_PATTERN}$"}, "Only keys of this tenant.")
        ],
        responses={"200": json_response(KeysBody, "The keys by tenant and id.")},
        refusals=(InvalidInput, HistoryUnavailable),
    ),
    ApiRoute(
        "POST",
        KEYS,
        create_key,
        scope=Scope.ADMIN,
        operation="createKey",
        summary="Create a key; the response is the only one that shows it",
        request=json_body(KeyRequestBody, required=True),
        responses={
            "201": json_response(
                NewKeyBody,
                "The key is created.",
                {**_NOT_STORED, "Location": header({"type": "string"}, "The path of the key.")},
            )
        },
        refusals=(*REFUSED_BODY, NotFound, HistoryUnavailable),
    ),
    ApiRoute(
        "GET",
        KEYS + "/{id}",
        read_key,
        scope=Scope.ADMIN,
        operation="readKey",
        summary="Read a key without its secret",
        parameters=[_BY_ID],
        responses={"200": json_response(KeyBody, "The key without its secret.")},
        refusals=(NotFound, HistoryUnavailable),
    ),
    ApiRoute(
        "PATCH",
        KEYS + "/{id}",
        change_key,
        scope=Scope.ADMIN,
        operation="changeKey",
        summary="Change, disable or enable a key",
        parameters=[_BY_ID],
        request=json_body(KeyChangeBody, required=True),
        responses={"200": json_response(KeyBody, "The key after the change.")},
        refusals=(*REFUSED_BODY, NotFound, ManagedByDeclaration, HistoryUnavailable),
    ),
    ApiRoute(
        "POST",
        KEYS + "/{id}/rotate",
        rotate_key,
        scope=Scope.ADMIN,
        operation="rotateKey",
        summary="Give a key a new secret; the previous one stays valid for a time",
        parameters=[_BY_ID],
        request=json_body(KeyRotationBody),
        responses={"200": json_response(NewKeyBody, "The key with its new secret.", _NOT_STORED)},
        refusals=(*REFUSED_BODY, NotFound, ManagedByDeclaration, HistoryUnavailable),
    ),
    ApiRoute(
        "DELETE",
        KEYS + "/{id}",
        delete_key,
        scope=Scope.ADMIN,
        operation="deleteKey",
        summary="Delete a key",
        parameters=[_BY_ID],
        responses={"204": ApiResponse("The key is deleted.")},
        refusals=(NotFound, ManagedByDeclaration, HistoryUnavailable),
    ),
]

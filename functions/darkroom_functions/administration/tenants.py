"""Tenants: created, changed and deleted by callers with the scope `admin`."""

from __future__ import annotations

import re

from darkroom.access.limits import UNLIMITED
from darkroom.access.principals import Scope
from darkroom.access.records import TENANT_PATTERN, Tenant
from darkroom.catalogue.parameters import shown
from darkroom.errors import (
    BodyTooLarge,
    HistoryUnavailable,
    InvalidInput,
    MalformedRequest,
    ManagedByDeclaration,
    NameTaken,
    NotFound,
    TenantInUse,
    UnsupportedMediaType,
)
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.administration.schemas import (
    TenantBody,
    TenantChangeBody,
    TenantRequestBody,
    TenantsBody,
    read,
    tenant_view,
)
from darkroom_functions.http.access import principal_of
from darkroom_functions.http.openapi import header, in_path, json_body, json_response
from darkroom_functions.http.responses import answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute
from darkroom_functions.resources.services import JobsServices

TENANTS = "/api/v1/tenants"

REFUSED_BODY = (MalformedRequest, BodyTooLarge, UnsupportedMediaType, InvalidInput)


async def list_tenants(request: Request) -> Response:
    """`GET /api/v1/tenants`."""
    services: JobsServices = request.app.state.services
    tenants = await services.administration.store.all_tenants()
    return answer(TenantsBody(tenants=[tenant_view(tenant) for tenant in tenants]))


async def create_tenant(request: Request) -> Response:
    """`POST /api/v1/tenants`."""
    services: JobsServices = request.app.state.services
    sent = await read(request, TenantRequestBody)
    tenant = Tenant(name=sent["name"], weight=sent.get("weight", 1.0), limits=sent.get("limits", UNLIMITED))
    created = await services.administration.create_tenant(tenant, actor=principal_of(request).actor)
    return answer(tenant_view(created), status=201, headers={"Location": f"{TENANTS}/{created.name}"})


async def read_tenant(request: Request) -> Response:
    """`GET /api/v1/tenants/{name}`."""
    services: JobsServices = request.app.state.services
    name = _name_of(request)
    tenant = await services.administration.store.tenant(name)
    if tenant is None:
        raise NotFound(f"there is no tenant {name}")
    return answer(tenant_view(tenant))


async def change_tenant(request: Request) -> Response:
    """`PATCH /api/v1/tenants/{name}`."""
    services: JobsServices = request.app.state.services
    name, sent = _name_of(request), await read(request, TenantChangeBody)
    changed = await services.administration.change_tenant(
        name, lambda tenant: tenant.model_copy(update=dict(sent)), actor=principal_of(request).actor
    )
    return answer(tenant_view(changed))


async def delete_tenant(request: Request) -> Response:
    """`DELETE /api/v1/tenants/{name}`."""
    services: JobsServices = request.app.state.services
    await services.administration.delete_tenant(_name_of(request), actor=principal_of(request).actor)
    return Response(status_code=204)


def _name_of(request: Request) -> str:
    name: str = request.path_params["name"]
    if re.fullmatch(TENANT_PATTERN, name) is None:
        raise NotFound(f'"{shown(name)}" is not the name of a tenant')
    return name


_BY_NAME = in_path("name", {"type": "string", "pattern": f"^{TENANT_PATTERN}$"}, "The name of the tenant.")

ROUTES = [
    ApiRoute(
        "GET",
        TENANTS,
        list_tenants,
        scope=Scope.ADMIN,
        operation="listTenants",
        summary="List the tenants",
        responses={"200": json_response(TenantsBody, "All tenants, by name.")},
        refusals=(HistoryUnavailable,),
    ),
    ApiRoute(
        "POST",
        TENANTS,
        create_tenant,
        scope=Scope.ADMIN,
        operation="createTenant",
        summary="Create a tenant",
        request=json_body(TenantRequestBody, required=True),
        responses={
            "201": json_response(
                TenantBody,
                "The tenant is created.",
                {"Location": header({"type": "string"}, "The path of the tenant.")},
            )
        },
        refusals=(*REFUSED_BODY, NameTaken, HistoryUnavailable),
    ),
    ApiRoute(
        "GET",
        TENANTS + "/{name}",
        read_tenant,
        scope=Scope.ADMIN,
        operation="readTenant",
        summary="Read a tenant",
        parameters=[_BY_NAME],
        responses={"200": json_response(TenantBody, "The tenant with its limits.")},
        refusals=(NotFound, HistoryUnavailable),
    ),
    ApiRoute(
        "PATCH",
        TENANTS + "/{name}",
        change_tenant,
        scope=Scope.ADMIN,
        operation="changeTenant",
        summary="Change, disable or enable a tenant",
        parameters=[_BY_NAME],
        request=json_body(TenantChangeBody, required=True),
        responses={"200": json_response(TenantBody, "The tenant after the change.")},
        refusals=(*REFUSED_BODY, NotFound, ManagedByDeclaration, HistoryUnavailable),
    ),
    ApiRoute(
        "DELETE",
        TENANTS + "/{name}",
        delete_tenant,
        scope=Scope.ADMIN,
        operation="deleteTenant",
        summary="Delete a tenant that has no keys",
        parameters=[_BY_NAME],
        responses={"204": ApiResponse("The tenant is deleted.")},
        refusals=(NotFound, TenantInUse, ManagedByDeclaration, HistoryUnavailable),
    ),
]

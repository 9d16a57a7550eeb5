"""Deliveries of a job's events to webhooks: listed, read and repeated.

A delivery belongs to its job, and so to the job's tenant. The ledger stores it as long as the job, or until its end if
that is later.
"""

from __future__ import annotations

from bisect import bisect_right

from darkroom import logs
from darkroom.access.principals import Scope
from darkroom.catalogue.parameters import shown
from darkroom.errors import InvalidInput, NotEnabled, NotFound
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Redelivered
from darkroom.webhooks.subscriptions import Delivery
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.access import tenant_of
from darkroom_functions.http.openapi import in_path, json_response
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.responses import answer
from darkroom_functions.http.routes import ApiRoute, checked_id
from darkroom_functions.resources import listing, views
from darkroom_functions.resources.jobs import BY_ID, NO_JOB, UNAVAILABLE
from darkroom_functions.resources.schemas import DeliveriesBody, DeliveryBody
from darkroom_functions.resources.services import JobsServices

_log = logs.logger(__name__)


async def list_deliveries(request: Request) -> Response:
    """`GET …/{id}/deliveries`. All are read for a page: a recipient has two at most, apart from repeated starts."""
    services: JobsServices = request.app.state.services
    job_id = await _job_of(request, services)
    query = listing.read_deliveries(request.query_params.multi_items())
    async with ledger_timeout():
        found = await reads.deliveries(services.ledger, job_id, tenant=tenant_of(request))
    keys = [(each.seq, each.recipient) for each in found]
    begin = 0 if query.after is None else bisect_right(keys, _key_of(query.after))
    page = found[begin : begin + query.limit]
    more = begin + query.limit < len(found)
    return answer(DeliveriesBody(deliveries=list(map(views.delivery, page)), next=page[-1].id if more else None))


async def read_delivery(request: Request) -> Response:
    """`GET …/{id}/deliveries/{delivery}`."""
    services: JobsServices = request.app.state.services
    job_id = await _job_of(request, services)
    async with ledger_timeout():
        delivery = await _find(request.path_params["delivery"], job_id, tenant_of(request), services)
    return answer(views.delivery(delivery))


async def redeliver(request: Request) -> Response:
    """`POST …/{id}/deliveries/{delivery}/redeliver`. A repeat makes the delivery due again."""
    services: JobsServices = request.app.state.services
    job_id, tenant = await _job_of(request, services), tenant_of(request)
    delivery_id = request.path_params["delivery"]
    async with ledger_timeout():
        delivery = await _find(delivery_id, job_id, tenant, services)
        done = await services.ledger.run(calls.redeliver(delivery.id, job_id=job_id, tenant=tenant))
        if done is Redelivered.NOT_ENABLED:
            raise NotEnabled(f"subscription {delivery.recipient} is not enabled, or does not exist any more")
        delivery = await _find(delivery_id, job_id, tenant, services)
    _log.info("redelivery", delivery=delivery.id, job=job_id, tenant=tenant, outcome=done.value)
    return answer(views.delivery(delivery), status=202)


async def _job_of(request: Request, services: JobsServices) -> str:
    """The id of the job in the path. Raises NotFound and Gone."""
    job_id = checked_id(request.path_params["id"])
    async with ledger_timeout():
        await services.lookup.job(job_id, tenant=tenant_of(request))
    return job_id


async def _find(delivery_id: str, job_id: str, tenant: str, services: JobsServices) -> Delivery:
    found = await reads.delivery(services.ledger, delivery_id, job_id=job_id, tenant=tenant)
    if found is None:
        raise NotFound(f'job {job_id} has no delivery "{shown(delivery_id)}"')
    return found


def _key_of(delivery_id: str) -> tuple[int, str]:
    _, seq, recipient = delivery_id.split(".")
    return int(seq), recipient


_BY_DELIVERY = in_path("delivery", listing.DELIVERY_ID, "The id of the delivery.")

ROUTES = [
    ApiRoute(
        "GET",
        routes.JOBS + "{id}/deliveries",
        list_deliveries,
        scope=Scope.READ,
        operation="listDeliveries",
        summary="List the deliveries of a job's events, oldest first",
        parameters=[BY_ID, *listing.described(listing.DELIVERY_PARAMETERS)],
        responses={"200": json_response(DeliveriesBody, "A page of deliveries.")},
        refusals=(*NO_JOB, InvalidInput, *UNAVAILABLE),
    ),
    ApiRoute(
        "GET",
        routes.JOBS + "{id}/deliveries/{delivery}",
        read_delivery,
        scope=Scope.READ,
        operation="readDelivery",
        summary="Read a delivery with its attempts",
        parameters=[BY_ID, _BY_DELIVERY],
        responses={"200": json_response(DeliveryBody, "The delivery with its attempts.")},
        refusals=(*NO_JOB, *UNAVAILABLE),
    ),
    ApiRoute(
        "POST",
        routes.JOBS + "{id}/deliveries/{delivery}/redeliver",
        redeliver,
        scope=Scope.MANAGE,
        operation="redeliver",
        summary="Post the event of a delivery again, now and by the whole schedule",
        parameters=[BY_ID, _BY_DELIVERY],
        responses={"202": json_response(DeliveryBody, "The delivery is due, or is being posted now.")},
        refusals=(*NO_JOB, NotEnabled, *UNAVAILABLE),
    ),
]

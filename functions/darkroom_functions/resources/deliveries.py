"""The deliveries of a job over HTTP: what was posted to which webhook, how that went, and once more. `jobs.py` hands
their requests on.

A delivery belongs to its job, and so to the job's tenant. The ledger keeps it as long as the job, or until it ended if
that is later.
"""

from __future__ import annotations

from bisect import bisect_right

from darkroom import logs
from darkroom.catalogue.parameters import shown
from darkroom.errors import NotEnabled, NotFound
from darkroom.history.lookup import Lookup
from darkroom.ledger import calls
from darkroom.ledger.calls import Redelivered
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.subscriptions import Delivery
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http.probes import patience
from darkroom_functions.http.responses import answer
from darkroom_functions.http.routes import Found, checked_id
from darkroom_functions.resources import listing, views
from darkroom_functions.tenants import tenant_of

OPERATIONS = frozenset({"listDeliveries", "readDelivery", "redeliver"})
"""Those of `paths.OPERATIONS` that are carried out here."""

_log = logs.logger(__name__)


class Deliveries:
    """What can be done with them."""

    def __init__(self, ledger: AsyncLedger, lookup: Lookup) -> None:
        self._ledger = ledger
        self._lookup = lookup

    async def answer(self, request: Request, found: Found) -> Response:
        """One of `OPERATIONS`. Raises NotFound and Gone for the job, NotFound for the delivery."""
        job_id = checked_id(found.parts["id"])
        async with patience():
            await self._lookup.job(job_id, tenant=tenant_of(request))
        match found.operation.name:
            case "listDeliveries":
                return await self._list(request, job_id)
            case "readDelivery":
                async with patience():
                    delivery = await self._known(found.parts["delivery"], job_id=job_id, tenant=tenant_of(request))
                return answer(views.delivery(delivery))
        return await self._redeliver(request, job_id, found.parts["delivery"])

    async def _list(self, request: Request, job_id: str) -> Response:
        """All of them are read for a page: there are two for each recipient at most, but for repeated starts."""
        asked = listing.read_deliveries(request.query_params.multi_items())
        async with patience():
            found = await self._ledger.deliveries(job_id, tenant=tenant_of(request))
        places = [(each.seq, each.recipient) for each in found]
        begin = 0 if asked.after is None else bisect_right(places, _place_of(asked.after))
        page = found[begin : begin + asked.limit]
        more = begin + asked.limit < len(found)
        return answer({"deliveries": [views.delivery(each) for each in page], "next": page[-1].id if more else None})

    async def _redeliver(self, request: Request, job_id: str, delivery_id: str) -> Response:
        """May be repeated: it is due at once then, as it was."""
        tenant = tenant_of(request)
        async with patience():
            delivery = await self._known(delivery_id, job_id=job_id, tenant=tenant)
            done = await self._ledger.run(calls.redeliver(delivery.id, job_id=job_id, tenant=tenant))
            if done is Redelivered.NOT_ENABLED:
                raise NotEnabled(f"subscription {delivery.recipient} is not enabled, or is there no more")
            delivery = await self._known(delivery_id, job_id=job_id, tenant=tenant)
        _log.info("redelivery", delivery=delivery.id, job=job_id, tenant=tenant, outcome=done.value)
        return answer(views.delivery(delivery), status=202)

    async def _known(self, delivery_id: str, *, job_id: str, tenant: str) -> Delivery:
        found = await self._ledger.delivery(delivery_id, job_id=job_id, tenant=tenant)
        if found is None:
            raise NotFound(f'job {job_id} has no delivery "{shown(delivery_id)}"')
        return found


def _place_of(delivery_id: str) -> tuple[int, str]:
    _, seq, recipient = delivery_id.split(".")
    return int(seq), recipient

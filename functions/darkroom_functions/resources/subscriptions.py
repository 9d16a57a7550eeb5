"""The subscriptions of a tenant over HTTP, and what verifies posts to webhooks. `jobs.py` hands their requests on.

A subscription is an address that is told of all jobs of the tenant, or of those of some models; the webhook of one job
is a field of its request (`submission.py`). The courier posts; `deliveries.py` shows what came of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from darkroom import logs
from darkroom.catalogue.models import Catalogue
from darkroom.catalogue.parameters import MAX_FAULTS, read_integer, shown
from darkroom.errors import FieldError, InvalidInput, NotFound, TooManySubscriptions
from darkroom.ledger import calls
from darkroom.ledger.calls import Subscribed
from darkroom.ledger.client import AsyncLedger
from darkroom.webhooks.guard import Allow
from darkroom.webhooks.signatures import GENERATION_OVERLAP_MS, Signer, subscription_recipients, tenant_recipient
from darkroom.webhooks.subscriptions import (
    DEFAULT_EVENTS,
    MAX_PER_TARGET,
    MAX_SUBSCRIPTIONS,
    Subscription,
    SubscriptionState,
    is_subscription_id,
    new_subscription_id,
)
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.bodies import json_object, read_body
from darkroom_functions.http.probes import patience
from darkroom_functions.http.responses import NOT_STORED, answer
from darkroom_functions.http.routes import Found
from darkroom_functions.resources import views
from darkroom_functions.settings import JobsSettings
from darkroom_functions.submission import webhooks
from darkroom_functions.tenants import tenant_of

OPERATIONS = frozenset(
    {
        *("listSubscriptions", "createSubscription", "readSubscription", "changeSubscription", "deleteSubscription"),
        *("readSubscriptionSecret", "rotateSubscriptionSecret", "readWebhookSecret", "readWebhookKeys"),
    }
)
"""Those of `paths.OPERATIONS` that are carried out here."""

CHOSEN_STATES = (SubscriptionState.ENABLED, SubscriptionState.DISABLED)
"""What an owner may say of a subscription; that it ended, its receiver says."""

NO_STORE = {"Cache-Control": NOT_STORED}
"""Goes with each answer that holds a secret: unlike other documents it has no `ETag`, and no cache keeps it."""

NOT_A_GENERATION = "must be the `generation` of the secret that is to be replaced"

_log = logs.logger(__name__)


class Subscriptions:
    """What can be done with them."""

    def __init__(self, ledger: AsyncLedger, catalogue: Catalogue, settings: JobsSettings) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._settings = settings
        self._signer = Signer.of(settings)

    async def answer(self, request: Request, found: Found) -> Response:
        """One of `OPERATIONS`."""
        match found.operation.name:
            case "listSubscriptions":
                return await self._list(request)
            case "createSubscription":
                return await self._create(request)
            case "readSubscription":
                return answer(views.subscription(await self._find(request, found)))
            case "changeSubscription":
                return await self._change(request, found)
            case "deleteSubscription":
                return await self._delete(request, found)
            case "readSubscriptionSecret":
                return self._told(await self._find(request, found))
            case "rotateSubscriptionSecret":
                return await self._rotate(request, found)
            case "readWebhookSecret":
                secret = self._signer.secret(tenant_recipient(tenant_of(request)))
                return answer(views.secret(secret), headers=NO_STORE)
        return answer(self._signer.key_set())

    async def _list(self, request: Request) -> Response:
        async with patience():
            subscriptions = await self._ledger.subscriptions(tenant_of(request))
        return answer({"subscriptions": [views.subscription(each) for each in subscriptions]})

    async def _create(self, request: Request) -> Response:
        tenant, said = tenant_of(request), await self._read(request, CREATION, required=["url"])
        subscription_id = new_subscription_id(time.time_ns() // 1_000_000)
        async with patience():
            done = await self._ledger.run(
                calls.subscribe(
                    subscription_id,
                    tenant=tenant,
                    url=said["url"],
                    events=said.get("events", DEFAULT_EVENTS),
                    models=said.get("models", ()),
                    create=True,
                )
            )
            if done is Subscribed.FULL:
                raise TooManySubscriptions(f"there are {MAX_SUBSCRIPTIONS} subscriptions, and there may be no more")
            if done is Subscribed.TARGET_FULL:
                raise _target_full()
            made = await self._known(subscription_id, tenant)
        _log.info("subscribed", subscription=subscription_id, tenant=tenant)
        headers = {"Location": f"{routes.SUBSCRIPTIONS}/{subscription_id}"}
        return answer(views.subscription(made), status=201, headers=headers)

    async def _change(self, request: Request, found: Found) -> Response:
        """What the body does not say stays as it is, also what others change at this moment."""
        subscription_id, tenant = checked_id(found.parts["id"]), tenant_of(request)
        said = await self._read(request, CHANGE)
        state = said.get("state")
        async with patience():
            done = await self._ledger.run(
                calls.subscribe(
                    subscription_id,
                    tenant=tenant,
                    url=said.get("url"),
                    events=said.get("events"),
                    models=said.get("models"),
                    enabled=None if state is None else state is SubscriptionState.ENABLED,
                )
            )
            if done is Subscribed.UNKNOWN:
                raise _no_subscription(subscription_id)
            if done is Subscribed.TARGET_FULL:
                raise _target_full()
            after = await self._known(subscription_id, tenant)
        _log.info("subscription_changed", subscription=subscription_id, tenant=tenant, said=sorted(said))
        return answer(views.subscription(after))

    async def _delete(self, request: Request, found: Found) -> Response:
        tenant, subscription_id = tenant_of(request), checked_id(found.parts["id"])
        async with patience():
            if not await self._ledger.run(calls.unsubscribe(subscription_id, tenant=tenant)):
                raise _no_subscription(subscription_id)
        _log.info("unsubscribed", subscription=subscription_id, tenant=tenant)
        return Response(status_code=204)

    async def _rotate(self, request: Request, found: Found) -> Response:
        """A body that says which secret is to be replaced makes it repeatable: a repeat finds that it was."""
        tenant, said = tenant_of(request), await self._read(request, ROTATION, may_be_empty=True)
        before = await self._find(request, found)
        generation = said.get("generation", before.generation)
        if generation > before.generation:
            fault = FieldError("generation", NOT_A_GENERATION)
            raise InvalidInput(f"{fault.field} {fault.detail}", fields=[fault])
        async with patience():
            await self._ledger.run(calls.rotate_secret(before.id, tenant=tenant, generation=generation))
            after = await self._known(before.id, tenant)
        _log.info("secret_rotated", subscription=before.id, tenant=tenant, generation=after.generation)
        return self._told(after)

    def _told(self, subscription: Subscription) -> Response:
        """Its secrets."""
        rotated = subscription.rotated
        now = time.time_ns() // 1_000_000
        recipients = subscription_recipients(subscription.id, subscription.generation, rotated=rotated, now=now)
        secret, *before = map(self._signer.secret, recipients)
        view = views.secret(
            secret,
            generation=subscription.generation,
            previous=before[0] if before else None,
            until=rotated + GENERATION_OVERLAP_MS if before and rotated is not None else None,
        )
        return answer(view, headers=NO_STORE)

    async def _read(
        self,
        request: Request,
        readers: Mapping[str, Reader],
        *,
        required: Collection[str] = (),
        may_be_empty: bool = False,
    ) -> dict[str, Any]:
        """What a body says, by field; what it leaves out, or says null of, is not there. Raises InvalidInput."""
        body = await read_body(request, limit=self._settings.max_body_bytes)
        sent = json_object(request, body, may_be_empty=may_be_empty)
        rules = Rules(self._catalogue, self._settings.webhook_allow)
        said: dict[str, Any] = {}
        faults = [
            FieldError(shown(name), f"is no field here; there are {', '.join(readers)}")
            for name in sent
            if name not in readers
        ]
        faults += [FieldError(name, "is missing") for name in required if sent.get(name) is None]
        for name, reader in readers.items():
            if sent.get(name) is not None:
                try:
                    said[name] = reader(sent[name], rules)
                except ValueError as error:
                    faults.append(FieldError(name, str(error)))
        if faults:
            named = faults[:MAX_FAULTS]
            raise InvalidInput("; ".join(f"{fault.field} {fault.detail}" for fault in named[:3]), fields=named)
        return said

    async def _find(self, request: Request, found: Found) -> Subscription:
        """The subscription that the path names. Raises NotFound."""
        subscription_id = checked_id(found.parts["id"])
        async with patience():
            return await self._known(subscription_id, tenant_of(request))

    async def _known(self, subscription_id: str, tenant: str) -> Subscription:
        subscription = await self._ledger.subscription(subscription_id, tenant=tenant)
        if subscription is None:
            raise _no_subscription(subscription_id)
        return subscription


@dataclass(frozen=True)
class Rules:
    """What the fields of a body are held against."""

    catalogue: Catalogue
    allow: Allow


Reader = Callable[[object, Rules], object]


def checked_id(text: str) -> str:
    """The part of a path that is to be a subscription's id. Raises NotFound for what cannot be one."""
    if not is_subscription_id(text):
        raise NotFound(f'"{shown(text)}" is not the id of a subscription')
    return text


def _target_full() -> TooManySubscriptions:
    detail = f"its origin has {MAX_PER_TARGET} subscriptions, and may have no more"
    return TooManySubscriptions(f"url: {detail}", fields=[FieldError("url", detail)])


def _no_subscription(subscription_id: str) -> NotFound:
    return NotFound(f"there is no subscription {subscription_id}")


def _read_url(value: object, rules: Rules) -> object:
    return webhooks.read_url(value, allow=rules.allow)


def _read_events(value: object, _rules: Rules) -> object:
    return webhooks.read_events(value)


def _read_models(value: object, rules: Rules) -> object:
    known = rules.catalogue.models
    if not isinstance(value, list) or not all(isinstance(name, str) and name in known for name in value):
        raise ValueError(f"must be a list of models, some of {', '.join(sorted(known))}, or none for all")
    return tuple(dict.fromkeys(value))


def _read_state(value: object, _rules: Rules) -> object:
    if value not in CHOSEN_STATES:
        raise ValueError(f"must be {' or '.join(CHOSEN_STATES)}")
    return SubscriptionState(str(value))


def _read_generation(value: object, _rules: Rules) -> object:
    try:
        generation = read_integer(value)
    except ValueError:
        generation = 0
    if generation < 1:
        raise ValueError(NOT_A_GENERATION)
    return generation


CREATION: Mapping[str, Reader] = {"url": _read_url, "events": _read_events, "models": _read_models}
CHANGE: Mapping[str, Reader] = {**CREATION, "state": _read_state}
ROTATION: Mapping[str, Reader] = {"generation": _read_generation}
"""The fields of each body, with what reads them: it raises ValueError with the reason, worded to follow the name."""

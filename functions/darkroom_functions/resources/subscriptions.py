"""Subscriptions of a tenant to job events, and the secrets and keys that verify deliveries.

A subscription is an address that receives the events of all jobs of the tenant, or of those of some models; the webhook
of a single job is a field of its request (`submission/reading.py`). The courier posts the events; `deliveries.py` shows
the outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from darkroom import logs
from darkroom.access.principals import Scope
from darkroom.catalogue.models import Catalogue
from darkroom.catalogue.parameters import MAX_FAULTS, read_integer, shown
from darkroom.cloudevents.event import SPEC_VERSION, TYPE_PREFIX
from darkroom.cloudevents.http import STRUCTURED_TYPE
from darkroom.errors import (
    BodyTooLarge,
    FieldError,
    InvalidInput,
    LedgerUnavailable,
    MalformedRequest,
    NotFound,
    TooManySubscriptions,
    UnsupportedMediaType,
)
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Subscribed
from darkroom.webhooks.guard import Allow
from darkroom.webhooks.signatures import GENERATION_OVERLAP_MS, subscription_recipients, tenant_recipient
from darkroom.webhooks.subscriptions import (
    DEFAULT_EVENTS,
    MAX_PER_TARGET,
    MAX_SUBSCRIPTIONS,
    Subscription,
    SubscriptionState,
    WebhookEvent,
    is_subscription_id,
    new_subscription_id,
)
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.access import Open, tenant_of
from darkroom_functions.http.bodies import json_object, read_body
from darkroom_functions.http.openapi import header, in_header, in_path, json_body, json_response
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.responses import NOT_STORED, answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute, Schema
from darkroom_functions.http.trail import Audit
from darkroom_functions.resources import listing, views
from darkroom_functions.resources.schemas import (
    SUBSCRIPTION_ID_PATTERN,
    RotationRequestBody,
    SecretBody,
    SubscriptionBody,
    SubscriptionChangeBody,
    SubscriptionRequestBody,
    SubscriptionsBody,
    WebhookKeysBody,
)
from darkroom_functions.resources.services import JobsServices
from darkroom_functions.submission import webhooks

OWNER_STATES = (SubscriptionState.ENABLED, SubscriptionState.DISABLED)
"""The states that an owner may set. The receiver ends a subscription."""

NO_STORE = {"Cache-Control": NOT_STORED}
"""The header of each response with a secret: unlike other documents it has no `ETag`, and no cache stores it."""

NOT_A_GENERATION = "must be the `generation` of the secret to replace"

_log = logs.logger(__name__)


async def list_subscriptions(request: Request) -> Response:
    """`GET /api/v1/subscriptions`."""
    services: JobsServices = request.app.state.services
    async with ledger_timeout():
        subscriptions = await reads.subscriptions(services.ledger, tenant_of(request))
    return answer(SubscriptionsBody(subscriptions=list(map(views.subscription, subscriptions))))


async def create_subscription(request: Request) -> Response:
    """`POST /api/v1/subscriptions`."""
    services: JobsServices = request.app.state.services
    tenant, fields = tenant_of(request), await _read(request, CREATION, required=["url"])
    subscription_id = new_subscription_id(time.time_ns() // 1_000_000)
    async with ledger_timeout():
        done = await services.ledger.run(
            calls.subscribe(
                subscription_id,
                tenant=tenant,
                url=fields["url"],
                events=fields.get("events", DEFAULT_EVENTS),
                models=fields.get("models", ()),
                create=True,
            )
        )
        if done is Subscribed.FULL:
            raise TooManySubscriptions(f"there are {MAX_SUBSCRIPTIONS} subscriptions, the maximum of a tenant")
        if done is Subscribed.TARGET_FULL:
            raise _target_full()
        created = await _known(subscription_id, tenant, services)
    _log.info("subscribed", subscription=subscription_id, tenant=tenant)
    headers = {"Location": f"{routes.SUBSCRIPTIONS}/{subscription_id}"}
    return answer(views.subscription(created), status=201, headers=headers)


async def read_subscription(request: Request) -> Response:
    """`GET /api/v1/subscriptions/{id}`."""
    return answer(views.subscription(await _find(request)))


async def change_subscription(request: Request) -> Response:
    """`PATCH /api/v1/subscriptions/{id}`. Fields that the body leaves out keep their values, also under concurrent
    changes.
    """
    services: JobsServices = request.app.state.services
    subscription_id, tenant = checked_id(request.path_params["id"]), tenant_of(request)
    fields = await _read(request, CHANGE)
    state = fields.get("state")
    async with ledger_timeout():
        done = await services.ledger.run(
            calls.subscribe(
                subscription_id,
                tenant=tenant,
                url=fields.get("url"),
                events=fields.get("events"),
                models=fields.get("models"),
                enabled=None if state is None else state is SubscriptionState.ENABLED,
            )
        )
        if done is Subscribed.UNKNOWN:
            raise _no_subscription(subscription_id)
        if done is Subscribed.TARGET_FULL:
            raise _target_full()
        after = await _known(subscription_id, tenant, services)
    _log.info("subscription_changed", subscription=subscription_id, tenant=tenant, said=sorted(fields))
    return answer(views.subscription(after))


async def delete_subscription(request: Request) -> Response:
    """`DELETE /api/v1/subscriptions/{id}`."""
    services: JobsServices = request.app.state.services
    tenant, subscription_id = tenant_of(request), checked_id(request.path_params["id"])
    async with ledger_timeout():
        if not await services.ledger.run(calls.unsubscribe(subscription_id, tenant=tenant)):
            raise _no_subscription(subscription_id)
    _log.info("unsubscribed", subscription=subscription_id, tenant=tenant)
    return Response(status_code=204)


async def read_subscription_secret(request: Request) -> Response:
    """`GET /api/v1/subscriptions/{id}/secret`."""
    return _secrets_of(await _find(request), request.app.state.services)


async def rotate_subscription_secret(request: Request) -> Response:
    """`POST /api/v1/subscriptions/{id}/rotate-secret`. With a `generation` a repeat rotates nothing."""
    services: JobsServices = request.app.state.services
    tenant, fields = tenant_of(request), await _read(request, ROTATION, may_be_empty=True)
    before = await _find(request)
    generation = fields.get("generation", before.generation)
    if generation > before.generation:
        fault = FieldError("generation", NOT_A_GENERATION)
        raise InvalidInput(f"{fault.field} {fault.detail}", fields=[fault])
    async with ledger_timeout():
        await services.ledger.run(calls.rotate_secret(before.id, tenant=tenant, generation=generation))
        after = await _known(before.id, tenant, services)
    _log.info("secret_rotated", subscription=before.id, tenant=tenant, generation=after.generation)
    return _secrets_of(after, services)


async def read_webhook_secret(request: Request) -> Response:
    """`GET /api/v1/webhook-secret`: the secret of webhooks of single jobs."""
    services: JobsServices = request.app.state.services
    return answer(views.secret(services.signer.secret(tenant_recipient(tenant_of(request)))), headers=NO_STORE)


async def read_webhook_keys(request: Request) -> Response:
    """`GET /.well-known/webhook-keys`."""
    services: JobsServices = request.app.state.services
    return answer(services.signer.key_set())


def _secrets_of(subscription: Subscription, services: JobsServices) -> Response:
    rotated = subscription.rotated
    now = time.time_ns() // 1_000_000
    recipients = subscription_recipients(subscription.id, subscription.generation, rotated=rotated, now=now)
    secret, *before = map(services.signer.secret, recipients)
    view = views.secret(
        secret,
        generation=subscription.generation,
        previous=before[0] if before else None,
        until=rotated + GENERATION_OVERLAP_MS if before and rotated is not None else None,
    )
    return answer(view, headers=NO_STORE)


async def _read(
    request: Request,
    readers: Mapping[str, Reader],
    *,
    required: Collection[str] = (),
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """The fields of a body, without those that are null. Raises InvalidInput."""
    services: JobsServices = request.app.state.services
    body = await read_body(request, limit=services.settings.max_body_bytes)
    sent = json_object(request, body, may_be_empty=may_be_empty)
    rules = SubscriptionRules(services.catalogue, services.settings.webhook_allow)
    fields: dict[str, Any] = {}
    faults = [
        FieldError(shown(name), f"is not a field of this request: use {', '.join(readers)}")
        for name in sent
        if name not in readers
    ]
    faults += [FieldError(name, "is missing") for name in required if sent.get(name) is None]
    for name, reader in readers.items():
        if sent.get(name) is not None:
            try:
                fields[name] = reader(sent[name], rules)
            except ValueError as error:
                faults.append(FieldError(name, str(error)))
    if faults:
        named = faults[:MAX_FAULTS]
        raise InvalidInput("; ".join(f"{fault.field} {fault.detail}" for fault in named[:3]), fields=named)
    return fields


async def _find(request: Request) -> Subscription:
    """The subscription in the path. Raises NotFound."""
    subscription_id = checked_id(request.path_params["id"])
    async with ledger_timeout():
        return await _known(subscription_id, tenant_of(request), request.app.state.services)


async def _known(subscription_id: str, tenant: str, services: JobsServices) -> Subscription:
    subscription = await reads.subscription(services.ledger, subscription_id, tenant=tenant)
    if subscription is None:
        raise _no_subscription(subscription_id)
    return subscription


@dataclass(frozen=True)
class SubscriptionRules:
    """What the fields of a body are validated against."""

    catalogue: Catalogue
    allow: Allow


Reader = Callable[[object, SubscriptionRules], object]


def checked_id(text: str) -> str:
    """The part of a path that must be a subscription's id. Raises NotFound for what cannot be one."""
    if not is_subscription_id(text):
        raise NotFound(f'"{shown(text)}" is not the id of a subscription')
    return text


def _target_full() -> TooManySubscriptions:
    detail = f"its origin has {MAX_PER_TARGET} subscriptions, the maximum"
    return TooManySubscriptions(f"url: {detail}", fields=[FieldError("url", detail)])


def _no_subscription(subscription_id: str) -> NotFound:
    return NotFound(f"there is no subscription {subscription_id}")


def _read_url(value: object, rules: SubscriptionRules) -> object:
    return webhooks.read_url(value, allow=rules.allow)


def _read_events(value: object, _rules: SubscriptionRules) -> object:
    return webhooks.read_events(value)


def _read_models(value: object, rules: SubscriptionRules) -> object:
    known = rules.catalogue.models
    if not isinstance(value, list) or not all(isinstance(name, str) and name in known for name in value):
        raise ValueError(f"must be a list of models, some of {', '.join(sorted(known))}, or none for all")
    return tuple(dict.fromkeys(value))


def _read_state(value: object, _rules: SubscriptionRules) -> object:
    if value not in OWNER_STATES:
        raise ValueError(f"must be {' or '.join(OWNER_STATES)}")
    return SubscriptionState(str(value))


def _read_generation(value: object, _rules: SubscriptionRules) -> object:
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
"""The fields of each body with their readers. A reader raises ValueError with the reason, worded to follow the name."""


_BY_SUBSCRIPTION = in_path("id", {"type": "string", "pattern": SUBSCRIPTION_ID_PATTERN}, "The id of the subscription.")
_NOT_STORED: dict[str, Schema] = {"Cache-Control": header({"const": NOT_STORED}, "No cache stores a secret.")}
_REFUSED_BODY = (MalformedRequest, BodyTooLarge, UnsupportedMediaType, InvalidInput)

ROUTES = [
    ApiRoute(
        "GET",
        routes.SUBSCRIPTIONS,
        list_subscriptions,
        scope=Scope.MANAGE,
        operation="listSubscriptions",
        summary="List the subscriptions",
        responses={"200": json_response(SubscriptionsBody, "All subscriptions of the tenant.")},
        refusals=(LedgerUnavailable,),
    ),
    ApiRoute(
        "POST",
        routes.SUBSCRIPTIONS,
        create_subscription,
        scope=Scope.MANAGE,
        operation="createSubscription",
        summary="Subscribe a webhook to the events of all jobs, or of some models' jobs",
        request=json_body(SubscriptionRequestBody, required=True),
        responses={
            "201": json_response(
                SubscriptionBody,
                "The subscription is created.",
                {"Location": header({"type": "string"}, "The path of the subscription.")},
            )
        },
        refusals=(*_REFUSED_BODY, TooManySubscriptions, LedgerUnavailable),
    ),
    ApiRoute(
        "GET",
        routes.SUBSCRIPTIONS + "/{id}",
        read_subscription,
        scope=Scope.MANAGE,
        operation="readSubscription",
        summary="Read a subscription",
        parameters=[_BY_SUBSCRIPTION],
        responses={"200": json_response(SubscriptionBody, "The subscription.")},
        refusals=(NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "PATCH",
        routes.SUBSCRIPTIONS + "/{id}",
        change_subscription,
        scope=Scope.MANAGE,
        operation="changeSubscription",
        summary="Change a subscription; `enabled` also restarts one that was disabled or has ended",
        parameters=[_BY_SUBSCRIPTION],
        request=json_body(SubscriptionChangeBody, required=True),
        responses={"200": json_response(SubscriptionBody, "The subscription after the change.")},
        refusals=(*_REFUSED_BODY, NotFound, TooManySubscriptions, LedgerUnavailable),
    ),
    ApiRoute(
        "DELETE",
        routes.SUBSCRIPTIONS + "/{id}",
        delete_subscription,
        scope=Scope.MANAGE,
        operation="deleteSubscription",
        summary="Delete a subscription",
        parameters=[_BY_SUBSCRIPTION],
        responses={"204": ApiResponse("The subscription is deleted, with its open deliveries.")},
        refusals=(NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "GET",
        routes.SUBSCRIPTIONS + "/{id}/secret",
        read_subscription_secret,
        scope=Scope.MANAGE,
        audit=Audit.OPERATION,
        operation="readSubscriptionSecret",
        summary="Read the secret that verifies the deliveries of a subscription",
        parameters=[_BY_SUBSCRIPTION],
        responses={"200": json_response(SecretBody, "The current secret, and the previous one.", _NOT_STORED)},
        refusals=(NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "POST",
        routes.SUBSCRIPTIONS + "/{id}/rotate-secret",
        rotate_subscription_secret,
        scope=Scope.MANAGE,
        operation="rotateSubscriptionSecret",
        summary="Replace the secret of a subscription; the previous one also signs for a day",
        parameters=[_BY_SUBSCRIPTION],
        request=json_body(RotationRequestBody),
        responses={"200": json_response(SecretBody, "The new secret, and the previous one.", _NOT_STORED)},
        refusals=(*_REFUSED_BODY, NotFound, LedgerUnavailable),
    ),
    ApiRoute(
        "GET",
        "/api/v1/webhook-secret",
        read_webhook_secret,
        scope=Scope.MANAGE,
        audit=Audit.OPERATION,
        operation="readWebhookSecret",
        summary="Read the secret that verifies the deliveries to webhooks of single jobs",
        responses={"200": json_response(SecretBody, "The secret of the tenant.", _NOT_STORED)},
    ),
    ApiRoute(
        "GET",
        routes.WEBHOOK_KEYS,
        read_webhook_keys,
        scope=Open.PUBLIC,
        operation="readWebhookKeys",
        summary="Read the public keys that verify deliveries; they are the same for all tenants",
        responses={"200": json_response(WebhookKeysBody, "The public keys.")},
    ),
]

JOB_EVENT: Schema = {
    "operationId": "jobEvent",
    "summary": "A job event as a CloudEvent, signed according to Standard Webhooks",
    "parameters": [
        in_header("webhook-id", {"type": "string"}, "The id of the event, the same for each attempt and transport."),
        in_header("webhook-timestamp", {"type": "string"}, "The time of this attempt, in seconds since 1970."),
        in_header("webhook-signature", {"type": "string"}, "Signatures `v1` and `v1a`, separated by spaces."),
    ],
    "requestBody": {
        "content": {
            STRUCTURED_TYPE: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "specversion": {"const": SPEC_VERSION},
                        "id": {"type": "string"},
                        "source": {"type": "string"},
                        "type": {"enum": [TYPE_PREFIX + event.value for event in WebhookEvent]},
                        "subject": listing.JOB_ID,
                        "time": {"type": "string", "format": "date-time"},
                        "sequence": {"type": "string"},
                        "tenant": {"type": "string"},
                        "data": {"type": "object"},
                    },
                    "required": ["specversion", "id", "source", "type", "subject", "time", "sequence", "data"],
                }
            }
        }
    },
    "responses": {
        "2XX": {"description": "The receiver accepted the event."},
        "410": {"description": "The receiver requests no more events: the subscription ends."},
        "default": {"description": "The event is posted again, for about three days; `Retry-After` is honoured."},
    },
}
"""The webhook of the OpenAPI document."""

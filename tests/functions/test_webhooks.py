"""Webhooks over HTTP: subscriptions, their secrets, and the state of deliveries. No courier runs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from darkroom import times
from darkroom.ledger import calls
from darkroom.ledger.calls import Applied, DeliveryOutcome
from darkroom.webhooks import signatures
from darkroom.webhooks.signatures import Signer
from darkroom.webhooks.subscriptions import (
    MAX_PER_TARGET,
    MAX_SUBSCRIPTIONS,
    LeasedDelivery,
    Webhook,
    WebhookEvent,
    new_subscription_id,
    target_of,
)
from pydantic import SecretStr
from standardwebhooks import Webhook as StandardWebhook
from standardwebhooks import WebhookVerificationError

from tests.functions.api import JOBS, Api, faults, slug
from tests.parts import WEBHOOK_KEY
from tests.waiting import eventually

SUBSCRIPTIONS = "/api/v1/subscriptions"
KEYS = "/.well-known/webhook-keys"
URL = "https://client.example/hook"
NOBODYS_JOB = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
NOBODYS_ID = f"sub_{NOBODYS_JOB}"
STRANGER = "stranger"
SIGNER = Signer([SecretStr(WEBHOOK_KEY)])


@pytest.fixture(autouse=True)
def none_left(api: Api) -> Iterator[None]:
    """Delete all subscriptions after each test, since the tests of this file share a ledger."""
    yield
    for subscription in api.get(SUBSCRIPTIONS).json()["subscriptions"]:
        assert api.request("DELETE", f"{SUBSCRIPTIONS}/{subscription['id']}").status_code == 204


def subscribe(api: Api, **more: object) -> dict[str, Any]:
    response = api.post(SUBSCRIPTIONS, json={"url": URL, **more})
    assert response.status_code == 201, response.text
    view: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{SUBSCRIPTIONS}/{view['id']}"
    return view


def shown(api: Api, subscription_id: str) -> dict[str, Any]:
    response = api.get(f"{SUBSCRIPTIONS}/{subscription_id}")
    assert response.status_code == 200, response.text
    view: dict[str, Any] = response.json()
    return view


def changed(api: Api, subscription_id: str, **what: object) -> dict[str, Any]:
    response = api.request("PATCH", f"{SUBSCRIPTIONS}/{subscription_id}", json=what)
    assert response.status_code == 200, response.text
    view: dict[str, Any] = response.json()
    assert view == shown(api, subscription_id)
    return view


def secret_of(api: Api, subscription_id: str) -> dict[str, Any]:
    response = api.get(f"{SUBSCRIPTIONS}/{subscription_id}/secret")
    assert response.headers["cache-control"] == "no-store"
    secret: dict[str, Any] = response.json()
    return secret


def rotate(api: Api, subscription_id: str, **body: object) -> dict[str, Any]:
    response = api.post(f"{SUBSCRIPTIONS}/{subscription_id}/rotate-secret", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    secret: dict[str, Any] = response.json()
    assert secret == secret_of(api, subscription_id)
    return secret


def stranger_subscription(api: Api) -> str:
    subscription_id = new_subscription_id(time.time_ns() // 1_000_000)
    events = frozenset({WebhookEvent.COMPLETED})
    api.jobs.run(calls.subscribe(subscription_id, tenant=STRANGER, url=URL, events=events, create=True))
    return subscription_id


# -- subscriptions -----------------------------------------------------------------------------------------------------


def test_a_subscription_receives_every_terminal_event_by_default(api: Api) -> None:
    view = subscribe(api)
    assert view == {
        "id": view["id"],
        "url": URL,
        "events": ["completed", "failed", "cancelled", "expired"],
        "models": [],
        "state": "enabled",
        "reason": None,
        "created_at": view["created_at"],
        "changed_at": view["created_at"],
        "failing_since": None,
        "allowed_rate": None,
    }
    other = subscribe(api, events=["failed", "started"], models=["sd"])
    assert (other["events"], other["models"]) == (["started", "failed"], ["sd"])
    assert shown(api, other["id"]) == other
    assert api.get(SUBSCRIPTIONS).json() == {"subscriptions": [view, other]}


def test_null_is_as_good_as_absent(api: Api) -> None:
    view = subscribe(api, events=None, models=None)
    assert (len(view["events"]), view["models"]) == (4, [])
    assert changed(api, view["id"], url=None, events=None, models=None, state=None) == view


def test_a_change_leaves_alone_what_it_does_not_name(api: Api) -> None:
    view = subscribe(api, events=["failed"], models=["sd"])
    moved = changed(api, view["id"], url=URL + "/2")
    assert moved == view | {"url": URL + "/2"}
    assert changed(api, view["id"], models=[], events=["completed"]) == moved | {"models": [], "events": ["completed"]}


def test_a_subscription_can_be_disabled_and_enabled_again(api: Api) -> None:
    view = subscribe(api)
    disabled = changed(api, view["id"], state="disabled")
    assert (disabled["state"], disabled["reason"]) == ("disabled", "disabled by its owner")
    assert deliveries(api, ended(api)) == []
    enabled = changed(api, view["id"], state="enabled")
    assert (enabled["state"], enabled["reason"]) == ("enabled", None)
    assert len(deliveries(api, ended(api))) == 1


def test_a_change_of_another_kind_does_not_enable_it(api: Api) -> None:
    view = subscribe(api)
    disabled = changed(api, view["id"], state="disabled")
    moved = changed(api, view["id"], url=URL + "/2", events=["started"])
    assert moved == disabled | {"url": URL + "/2", "events": ["started"]}
    job_id = api.jobs.submit()
    api.jobs.start(job_id)
    assert api.jobs.outbox().count(job_id) == 0
    changed(api, view["id"], state="enabled")
    job_id = api.jobs.submit()
    api.jobs.start(job_id)
    assert api.jobs.outbox().count(job_id) == 1


def test_a_subscription_that_its_receiver_ended_can_be_enabled_again(api: Api) -> None:
    subscription_id = subscribe(api)["id"]
    job_id = ended(api)
    delivery = taken(api, f"{job_id}.{api.jobs.end_seq(job_id)}.{subscription_id}")
    api.jobs.run(calls.record_attempt(delivery, outcome=DeliveryOutcome.GONE, status=410, error="status 410"))
    view = shown(api, subscription_id)
    assert (view["state"], view["reason"]) == ("ended", "its receiver answered 410")
    assert changed(api, subscription_id, models=["sd"])["state"] == "ended"
    assert changed(api, subscription_id, state="enabled")["reason"] is None


def test_a_deleted_subscription_is_gone(api: Api) -> None:
    path = f"{SUBSCRIPTIONS}/{subscribe(api)['id']}"
    assert api.request("DELETE", path).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        more: dict[str, Any] = {"json": {"events": ["failed"]}} if method == "PATCH" else {}
        assert api.request(method, path, **more).status_code == 404
    assert api.get(SUBSCRIPTIONS).json() == {"subscriptions": []}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["url"]),
        ({"url": None}, ["url"]),
        ({"url": 7}, ["url"]),
        ({"url": "client.example"}, ["url"]),
        ({"url": "http://client.example/"}, ["url"]),
        ({"url": "https://10.0.0.1/"}, ["url"]),
        ({"url": "https://[::ffff:169.254.169.254]/"}, ["url"]),
        ({"url": "https://me:secret@client.example/"}, ["url"]),
        ({"url": URL, "events": []}, ["events"]),
        ({"url": URL, "events": ["accepted"]}, ["events"]),
        ({"url": URL, "events": ["failed", "failed"]}, ["events"]),
        ({"url": URL, "models": ["none-such"]}, ["models"]),
        ({"url": URL, "models": "sd"}, ["models"]),
        ({"url": URL, "models": [{}]}, ["models"]),
        ({"url": URL, "state": "enabled"}, ["state"]),
        ({"url": URL, "colour": "red"}, ["colour"]),
        ({"events": ["x"], "models": 7}, ["url", "events", "models"]),
    ],
    ids=json.dumps,
)
def test_what_cannot_be_taken_is_refused_by_name(api: Api, body: object, fields: list[str]) -> None:
    response = api.post(SUBSCRIPTIONS, json=body)
    assert (response.status_code, slug(response)) == (422, "invalid-input")
    assert faults(response) == fields


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"url": "https://127.0.0.1/"}, ["url"]),
        ({"state": "ended"}, ["state"]),
        ({"state": True}, ["state"]),
        ({"id": NOBODYS_ID, "tenant": "mine"}, ["id", "tenant"]),
    ],
    ids=json.dumps,
)
def test_a_change_that_cannot_be_made_is_refused_by_name_and_changes_nothing(
    api: Api, body: object, fields: list[str]
) -> None:
    view = subscribe(api)
    response = api.request("PATCH", f"{SUBSCRIPTIONS}/{view['id']}", json=body)
    assert (response.status_code, slug(response)) == (422, "invalid-input")
    assert faults(response) == fields
    assert shown(api, view["id"]) == view


def test_the_subscriptions_of_a_tenant_are_limited(api: Api) -> None:
    for number in range(MAX_SUBSCRIPTIONS):
        subscribe(api, url=f"https://r{number}.example.com/")
    response = api.post(SUBSCRIPTIONS, json={"url": URL})
    assert (response.status_code, slug(response)) == (409, "too-many-subscriptions")
    assert len(api.get(SUBSCRIPTIONS).json()["subscriptions"]) == MAX_SUBSCRIPTIONS


def test_the_subscriptions_to_an_origin_are_limited(api: Api) -> None:
    for number in range(MAX_PER_TARGET):
        subscribe(api, url=f"https://one.example.com/{number}")
    elsewhere = subscribe(api, url="https://another.example.com/")
    created = api.post(SUBSCRIPTIONS, json={"url": "https://one.example.com:443/more"})
    changed = api.request("PATCH", f"{SUBSCRIPTIONS}/{elsewhere['id']}", json={"url": "https://one.example.com/more"})
    for response in (created, changed):
        assert (response.status_code, slug(response)) == (409, "too-many-subscriptions")
        assert [fault["field"] for fault in response.json()["errors"]] == ["url"]
    assert shown(api, elsewhere["id"])["url"] == "https://another.example.com/"


PARTS = (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/secret"), ("POST", "/rotate-secret"))


@pytest.mark.parametrize("subscription_id", [NOBODYS_ID, NOBODYS_JOB, "123", "sub_"])
@pytest.mark.parametrize(("method", "path"), PARTS)
def test_an_unknown_id_is_404(api: Api, method: str, path: str, subscription_id: str) -> None:
    more: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": {}}
    response = api.request(method, f"{SUBSCRIPTIONS}/{subscription_id}{path}", **more)
    assert (response.status_code, slug(response)) == (404, "not-found")


def test_a_subscription_of_another_tenant_is_not_there(api: Api) -> None:
    subscription_id = stranger_subscription(api)
    for method, path in PARTS:
        more: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": {}}
        assert api.request(method, f"{SUBSCRIPTIONS}/{subscription_id}{path}", **more).status_code == 404
    assert api.get(SUBSCRIPTIONS).json() == {"subscriptions": []}
    assert api.jobs.run(calls.rotate_secret(subscription_id, tenant=STRANGER, generation=1)) == 2


# -- what verifies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Post:
    """The post that the courier would send."""

    headers: Mapping[str, str]
    body: bytes = b'{"specversion":"1.0"}'


def post_to(*recipients: str) -> Post:
    timestamp = int(time.time())
    return Post(SIGNER.headers(message_id="x:end", timestamp_s=timestamp, body=Post.body, recipients=recipients))


def verifies(secret: str, post: Post) -> bool:
    try:
        StandardWebhook(secret).verify(post.body, dict(post.headers))
    except WebhookVerificationError:
        return False
    return True


def test_the_secret_of_a_subscription_verifies_what_is_posted_to_it_and_nothing_else(api: Api) -> None:
    mine, other = subscribe(api), subscribe(api)
    secret = secret_of(api, mine["id"])
    assert (secret["generation"], secret["previous"], secret["previous_until"]) == (1, None, None)
    assert verifies(secret["secret"], post_to(signatures.subscription_recipient(mine["id"], 1)))
    assert not verifies(secret["secret"], post_to(signatures.subscription_recipient(other["id"], 1)))
    assert not verifies(secret["secret"], post_to(signatures.tenant_recipient("default")))


def test_the_secret_of_single_jobs_webhooks_is_the_tenants(api: Api) -> None:
    response = api.get("/api/v1/webhook-secret")
    assert response.headers["cache-control"] == "no-store"
    secret = response.json()["secret"]
    assert verifies(secret, post_to(signatures.tenant_recipient("default")))
    assert not verifies(secret, post_to(signatures.tenant_recipient(STRANGER)))


def test_after_a_rotation_the_secret_before_is_shown_as_long_as_it_signs(api: Api) -> None:
    subscription_id = subscribe(api)["id"]
    first = secret_of(api, subscription_id)
    second = rotate(api, subscription_id)
    assert second["secret"] != first["secret"]
    assert (second["generation"], second["previous"]) == (2, first["secret"])
    until = times.to_ms(second["previous_until"])
    assert abs(until - (time.time() * 1000 + signatures.GENERATION_OVERLAP_MS)) < 60_000
    key = f"{api.jobs.namespace}:subscription:{subscription_id}"
    api.jobs.redis.hset(key, "rotated", int(time.time() * 1000) - signatures.GENERATION_OVERLAP_MS)
    assert secret_of(api, subscription_id) == second | {"previous": None, "previous_until": None}


def test_a_rotation_that_names_the_secret_may_be_repeated(api: Api) -> None:
    subscription_id = subscribe(api)["id"]
    once = rotate(api, subscription_id, generation=1)
    assert rotate(api, subscription_id, generation=1) == once
    assert rotate(api, subscription_id, generation=2)["generation"] == 3
    assert rotate(api, subscription_id)["generation"] == 4


@pytest.mark.parametrize(
    "body", [{"generation": 0}, {"generation": 2}, {"generation": "1"}, {"generation": True}, {"secret": "mine"}]
)
def test_a_rotation_that_cannot_be_read_replaces_nothing(api: Api, body: dict[str, object]) -> None:
    subscription_id = subscribe(api)["id"]
    response = api.post(f"{SUBSCRIPTIONS}/{subscription_id}/rotate-secret", json=body)
    assert (response.status_code, faults(response)) == (422, list(body))
    assert secret_of(api, subscription_id)["generation"] == 1


def test_a_rotation_needs_no_body(api: Api) -> None:
    path = f"{SUBSCRIPTIONS}/{subscribe(api)['id']}/rotate-secret"
    assert api.post(path).json()["generation"] == 2


def test_the_published_keys_verify_every_post(api: Api) -> None:
    (key,) = api.get(KEYS).json()["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    post = post_to(signatures.tenant_recipient(STRANGER))
    (signature,) = [
        text.removeprefix("v1a,") for text in post.headers["webhook-signature"].split() if text.startswith("v1a,")
    ]
    signed = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}.".encode() + post.body
    public.verify(base64.b64decode(signature), signed)  # raises where it does not


def test_no_secret_is_in_other_responses(api: Api) -> None:
    subscription_id = subscribe(api)["id"]
    job_id = ended(api)
    texts = [
        api.get(path).text
        for path in (SUBSCRIPTIONS, f"{SUBSCRIPTIONS}/{subscription_id}", KEYS, f"{JOBS}{job_id}/deliveries")
    ]
    texts.append(api.functions.log.read_text())
    assert "whsec_" not in "".join(texts)
    assert WEBHOOK_KEY not in "".join(texts)


# -- deliveries --------------------------------------------------------------------------------------------------------


def ended(api: Api, **more: Any) -> str:
    """A completed job whose terminal event is applied."""
    job_id = api.jobs.completed(**more)
    assert api.jobs.run(calls.mark_applied(job_id, seq=api.jobs.end_seq(job_id))) is Applied.APPLIED
    return job_id


def deliveries(api: Api, job_id: str, **query: Any) -> list[dict[str, Any]]:
    response = api.get(f"{JOBS}{job_id}/deliveries", params=query)
    assert response.status_code == 200, response.text
    views: list[dict[str, Any]] = response.json()["deliveries"]
    return views


def taken(api: Api, delivery_id: str, *, tenant: str = "default") -> LeasedDelivery:
    """The delivery, leased as by a courier. The receiver has consented, so all its deliveries are leased together."""
    api.jobs.run(calls.set_rate_limit(target_of(tenant, URL), rate=None))
    seen: dict[str, LeasedDelivery] = {}

    def is_taken() -> bool:
        call = f"{time.time_ns()}"
        found = api.jobs.run(calls.lease_deliveries(owner="test", call=call, limit=100, per_target=1000))
        seen.update({each.id: each for each in found})
        return delivery_id in seen

    eventually(is_taken, what=f"{delivery_id} to be due")
    return seen[delivery_id]


def test_a_job_without_receivers_has_no_deliveries(api: Api) -> None:
    for job_id in (api.submit(), ended(api), api.submit({"webhook": URL})):
        assert api.get(f"{JOBS}{job_id}/deliveries").json() == {"deliveries": [], "next": None}


def test_a_delivery_is_shown_with_each_attempt(api: Api) -> None:
    job_id = ended(api, webhook=Webhook(URL))
    (view,) = deliveries(api, job_id)
    seq = api.jobs.end_seq(job_id)
    assert view == {
        "id": f"{job_id}.{seq}.job",
        "job_id": job_id,
        "event": "completed",
        "event_id": f"{job_id}:end",
        "sequence": seq,
        "subscription": None,
        "url": URL,
        "state": "open",
        "reason": None,
        "created_at": view["created_at"],
        "ended_at": None,
        "due_at": view["created_at"],
        "tried": 0,
        "tries": [],
    }
    first = calls.record_attempt(
        taken(api, view["id"]), outcome=DeliveryOutcome.FAILED, took_ms=12, status=500, error="status 500", again_ms=0
    )
    api.jobs.run(first)
    api.jobs.run(
        calls.record_attempt(taken(api, view["id"]), outcome=DeliveryOutcome.DELIVERED, took_ms=34, status=204)
    )
    response = api.get(f"{JOBS}{job_id}/deliveries/{view['id']}")
    after = response.json()
    assert deliveries(api, job_id) == [after]
    assert (after["state"], after["tried"], after["due_at"]) == ("delivered", 2, None)
    assert after["ended_at"] >= view["created_at"]
    tries = [(each["number"], each["status"], each["error"], each["took_ms"]) for each in after["tries"]]
    assert tries == [(1, 500, "status 500", 12), (2, 204, None, 34)]


def test_each_recipient_and_each_event_is_a_delivery_of_its_own(api: Api) -> None:
    everything = subscribe(api, events=["started", "completed"])["id"]
    ends = subscribe(api, models=["sd"])["id"]
    subscribe(api, events=["failed"])
    subscribe(api, models=["flux"])
    job_id = api.jobs.submit(webhook=Webhook(URL))
    api.jobs.start(job_id)
    assert api.jobs.run(calls.mark_applied(job_id, seq=2)) is Applied.APPLIED
    api.jobs.complete(job_id)
    assert api.jobs.run(calls.mark_applied(job_id, seq=3)) is Applied.APPLIED
    found = [(each["event"], each["event_id"], each["subscription"]) for each in deliveries(api, job_id)]
    assert found == [
        ("started", f"{job_id}:2", everything),
        ("completed", f"{job_id}:end", None),
        ("completed", f"{job_id}:end", everything),
        ("completed", f"{job_id}:end", ends),
    ]


def test_the_list_has_every_delivery_page_by_page(api: Api) -> None:
    for _ in range(4):
        subscribe(api)
    job_id = ended(api, webhook=Webhook(URL))
    whole = deliveries(api, job_id)
    pages, after = [], None
    while True:
        page = api.get(f"{JOBS}{job_id}/deliveries", params={"limit": 2} | ({"after": after} if after else {})).json()
        pages.append(page["deliveries"])
        after = page["next"]
        if after is None:
            break
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [each for page in pages for each in page] == whole


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", ["limit"]),
        ("after=1", ["after"]),
        ("after=..", ["after"]),
        ("state=open", ["state"]),
        ("limit=x&after=y", ["limit", "after"]),
    ],
)
def test_a_query_that_cannot_be_taken_is_refused_by_name(api: Api, query: str, fields: list[str]) -> None:
    response = api.get(f"{JOBS}{ended(api)}/deliveries?{query}")
    assert (response.status_code, faults(response)) == (422, fields)


def test_a_finished_delivery_is_due_again_on_request(api: Api) -> None:
    job_id = ended(api, webhook=Webhook(URL))
    (view,) = deliveries(api, job_id)
    gone = calls.record_attempt(taken(api, view["id"]), outcome=DeliveryOutcome.GONE, status=410, error="status 410")
    api.jobs.run(gone)
    (given_up,) = deliveries(api, job_id)
    assert given_up["state"] == "given_up"
    path = f"{JOBS}{job_id}/deliveries/{view['id']}/redeliver"
    for _ in range(2):
        response = api.post(path)
        assert response.status_code == 202, response.text
        assert (response.json()["state"], response.json()["reason"]) == ("open", None)
    again = taken(api, view["id"])
    assert (again.number, again.attempt) == (2, 1)
    assert api.post(path).status_code == 202  # it is being posted just now
    api.jobs.run(calls.record_attempt(again, outcome=DeliveryOutcome.DELIVERED, status=200))
    assert [each["number"] for each in deliveries(api, job_id)[0]["tries"]] == [1, 2]


@pytest.mark.parametrize("how", ["disabled", "deleted"])
def test_nothing_is_redelivered_to_a_subscription_that_is_not_enabled(api: Api, how: str) -> None:
    subscription_id = subscribe(api)["id"]
    job_id = ended(api)
    (view,) = deliveries(api, job_id)
    if how == "deleted":
        api.request("DELETE", f"{SUBSCRIPTIONS}/{subscription_id}")
    else:
        changed(api, subscription_id, state="disabled")
    response = api.post(f"{JOBS}{job_id}/deliveries/{view['id']}/redeliver")
    assert (response.status_code, slug(response)) == (409, "not-enabled")


def each_answer(api: Api, job_id: str, delivery_id: str) -> list[httpx.Response]:
    path = f"{JOBS}{job_id}/deliveries"
    return [api.get(path), api.get(f"{path}/{delivery_id}"), api.post(f"{path}/{delivery_id}/redeliver")]


@pytest.mark.parametrize("job_id", [NOBODYS_JOB, "123"], ids=["unknown", "no id"])
def test_deliveries_of_an_unknown_job_are_404(api: Api, job_id: str) -> None:
    for response in each_answer(api, job_id, f"{job_id}.1.job"):
        assert (response.status_code, slug(response)) == (404, "not-found")


def test_an_unknown_delivery_is_404(api: Api) -> None:
    job_id, other = ended(api, webhook=Webhook(URL)), ended(api, webhook=Webhook(URL))
    for delivery_id in (f"{job_id}.99.job", f"{job_id}.3.{NOBODYS_ID}", "123", deliveries(api, other)[0]["id"]):
        for response in each_answer(api, job_id, delivery_id)[1:]:
            assert (response.status_code, slug(response)) == (404, "not-found")


def test_deliveries_of_another_tenants_job_are_not_there(api: Api) -> None:
    subscription_id = stranger_subscription(api)
    job_id = ended(api, tenant=STRANGER)
    delivery_id = f"{job_id}.{api.jobs.end_seq(job_id)}.{subscription_id}"
    assert taken(api, delivery_id, tenant=STRANGER).tenant == STRANGER
    for response in each_answer(api, job_id, delivery_id):
        assert (response.status_code, slug(response)) == (404, "not-found")


def test_deliveries_of_a_deleted_job_are_gone(api: Api) -> None:
    job_id = ended(api, webhook=Webhook(URL))
    (view,) = deliveries(api, job_id)
    assert api.request("DELETE", JOBS + job_id).status_code == 204
    for response in each_answer(api, job_id, view["id"]):
        assert (response.status_code, slug(response)) == (410, "gone")

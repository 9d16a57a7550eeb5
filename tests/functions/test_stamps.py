"""Job requests that pass a Broker: their caller is proven, and no other request is accepted."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.access.principals import Scope
from darkroom.access.records import Tenant
from darkroom.cloudevents import http
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import parse_http
from darkroom.cloudevents.proofs import KEY_ID, PROOF, Proofs
from darkroom_functions.http import routes
from pydantic import SecretStr

from tests.conftest import RedisServers
from tests.courier.sink import Answer, Sink
from tests.functions.administration import administering
from tests.functions.api import EVENT_TYPE, JOBS, Api, binary, serving, slug
from tests.parts import PROOFS
from tests.redis_server import RedisKind
from tests.waiting import eventually

TENANTS = ("studio", "agency")


@dataclass
class Brokered:
    """A process that requires keys, with a sink in place of the Broker, and keys by name."""

    api: Api
    broker: Sink
    keys: dict[str, tuple[str, str]]
    redis_url: str

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name][1]}"}

    def publish(self, event_id: str, *, key: str = "studio", **attributes: str) -> Event:
        """Send a request to the ingress; returns what the Broker received."""
        before = len(self.broker.events)
        response = self.api.post(
            routes.JOB_REQUESTS, headers=binary(event_id, **attributes) | self.headers(key), json={"model": "sd"}
        )
        assert (response.status_code, response.content) == (202, b"")
        return self.broker.events[before]

    def deliver(self, event: Event, *, structured: bool = False, headers: dict[str, str] | None = None) -> Any:
        """Deliver an event as the Broker does: without a credential, but with what Knative adds."""
        extended = replace(event, extensions={**event.extensions, "knativearrivaltime": "2026-11-20T15:00:01Z"})
        own, body = http.encode_structured(extended) if structured else extended.encode_binary()
        url = self.api.functions.url
        return httpx.post(url, headers=own | (headers or {}), content=body, trust_env=False, timeout=60)

    def jobs_of(self, key: str) -> list[str]:
        return [job["id"] for job in self.api.get(JOBS, headers=self.headers(key)).json()["jobs"]]

    def change(self, name: str, **changes: Any) -> None:
        async def change() -> None:
            async with administering(self.redis_url, self.api) as administration:
                await administration.change_key(
                    self.keys[name][0], lambda key: key.model_copy(update=changes), actor="tests"
                )

        asyncio.run(change())


@pytest.fixture(scope="module")
def brokered(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokered]:
    redis_url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    folder = tmp_path_factory.mktemp("functions")
    with (
        Sink().running() as sink,
        serving(redis_url, namespace, folder, DARKROOM_AUTH="keys", K_SINK=sink.url) as api,
    ):
        yield Brokered(api, sink, asyncio.run(_keys(redis_url, api)), redis_url)


async def _keys(redis_url: str, api: Api) -> dict[str, tuple[str, str]]:
    """By name: the id and the text of a key."""
    keys = {}
    async with administering(redis_url, api) as administration:
        for tenant in TENANTS:
            await administration.create_tenant(Tenant(name=tenant), actor="tests")
        for name, tenant, scopes in (
            ("studio", "studio", frozenset(Scope)),
            ("agency", "agency", frozenset(Scope)),
            ("revoked", "studio", frozenset(Scope)),
            ("narrowed", "studio", frozenset(Scope)),
        ):
            key, credential = await administration.create_key(tenant=tenant, name=name, scopes=scopes, actor="tests")
            keys[name] = (key.id, credential.text)
    return keys


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
def test_a_request_through_the_broker_is_a_job_of_its_sender(brokered: Brokered, structured: bool) -> None:
    sent = brokered.publish(f"a-{structured}", key="studio")
    assert (sent.type, sent.extensions["tenant"]) == (EVENT_TYPE, "studio")
    assert sent.extensions[KEY_ID] == brokered.keys["studio"][0]
    assert brokered.keys["studio"][1] not in str(sent.encode_structured())

    answers = [brokered.deliver(sent, structured=structured) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 200]
    job_id = answers[0].json()["id"]
    assert job_id in brokered.jobs_of("studio")
    assert job_id not in brokered.jobs_of("agency")
    (reply,) = parse_http(answers[0].headers, answers[0].content).events
    assert isinstance(reply, Event)
    PROOFS.check(reply)


def test_a_stamp_of_the_sender_is_replaced(brokered: Brokered) -> None:
    forged = {"tenant": "agency", KEY_ID: brokered.keys["agency"][0], PROOF: "A" * 43}
    sent = brokered.publish("b", key="studio", **forged)
    assert (sent.extensions["tenant"], sent.extensions[KEY_ID]) == ("studio", brokered.keys["studio"][0])


def _of_agency(event: Event, brokered: Brokered) -> Event:
    return replace(event, extensions={**event.extensions, "tenant": "agency"})


REFUSED: dict[str, Callable[[Event, Brokered], Event]] = {
    "without a stamp": lambda event, _: replace(event, extensions={}),
    "with an invented proof": lambda event, _: replace(event, extensions={**event.extensions, PROOF: "A" * 43}),
    "of another tenant": _of_agency,
    "of another key": lambda event, all_: replace(
        event, extensions={**event.extensions, KEY_ID: all_.keys["agency"][0]}
    ),
    "with other data": lambda event, _: replace(event, data={"model": "sd", "prompt": "another"}),
    "with another id": lambda event, _: replace(event, id="another"),
    "of foreign secrets": lambda event, _: Proofs((SecretStr("x" * 32),)).prove(event),
    "of no key": lambda event, _: PROOFS.prove(replace(event, extensions={"tenant": "studio"})),
    "of an unknown key": lambda event, _: PROOFS.prove(
        replace(event, extensions={"tenant": "studio", KEY_ID: "0123456789ab"})
    ),
    "of a key of another tenant": lambda event, all_: PROOFS.prove(_of_agency(event, all_)),
}


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
@pytest.mark.parametrize("forgery", REFUSED)
def test_an_event_without_a_right_stamp_is_refused_and_nothing_starts(
    brokered: Brokered, forgery: str, structured: bool
) -> None:
    event = REFUSED[forgery](brokered.publish(f"{forgery} {structured}"), brokered)
    before = [brokered.jobs_of(key) for key in TENANTS]

    response = brokered.deliver(event, structured=structured)

    assert (response.status_code, slug(response)) == (401, "credential-refused")
    assert [brokered.jobs_of(key) for key in TENANTS] == before


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/cloudevents+json"}, b"{"),
        ({"content-type": "application/cloudevents+json"}, b"{}"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]"),
        ({f"ce-{PROOF}": "x"}, b""),
        ({f"ce-{PROOF}": "x", "content-type": "application/cloudevents-batch+json"}, b'[{"id": "1"}]'),
        ({f"ce-{PROOF}": "x", "content-type": "application/cloudevents-batch+json"}, b"[]"),
        ({}, b""),
    ],
)
def test_a_caller_without_a_credential_learns_nothing_about_the_event(
    brokered: Brokered, headers: dict[str, str], body: bytes
) -> None:
    response = httpx.post(brokered.api.functions.url, headers=headers, content=body, trust_env=False)
    assert (response.status_code, slug(response)) == (401, "credential-refused")


def test_with_a_credential_the_stamp_of_the_event_does_not_matter(brokered: Brokered) -> None:
    sent = brokered.publish("c", key="studio")
    response = brokered.deliver(sent, headers=brokered.headers("agency"))
    assert response.status_code == 202
    assert response.json()["id"] in brokered.jobs_of("agency")


def test_what_a_key_may_do_is_decided_when_its_request_arrives(brokered: Brokered) -> None:
    revoked, narrowed = (brokered.publish(name, key=name) for name in ("revoked", "narrowed"))
    brokered.change("revoked", disabled=True)
    brokered.change("narrowed", scopes=frozenset({Scope.READ}))

    eventually(lambda: brokered.deliver(revoked).status_code == 401, what="the key to be refused")
    eventually(lambda: brokered.deliver(narrowed).status_code == 403, what="the scope to be missing")


@pytest.mark.parametrize("answer", [Answer(422), Answer(503)], ids=["refuses", "is away"])
def test_a_broker_that_does_not_accept_is_503(brokered: Brokered, answer: Answer) -> None:
    brokered.broker.behave = lambda _event: answer
    try:
        response = brokered.api.post(
            routes.JOB_REQUESTS, headers=binary("d") | brokered.headers("studio"), json={"model": "sd"}
        )
    finally:
        brokered.broker.behave = lambda _event: Answer()
    assert (response.status_code, slug(response)) == (503, "sink-unavailable")


def test_an_invalid_request_does_not_reach_the_broker(brokered: Brokered) -> None:
    before = len(brokered.broker.events)
    for headers, data in ((binary("e", type="x"), {}), (binary("f"), {"model": "sd", "steps": "many"})):
        response = brokered.api.post(routes.JOB_REQUESTS, headers=headers | brokered.headers("studio"), json=data)
        assert response.status_code == 422
    assert len(brokered.broker.events) == before


def test_without_a_broker_there_is_no_ingress(redis_url: str, namespace: str, tmp_path: Path) -> None:
    with serving(redis_url, namespace, tmp_path) as api:
        response = api.post(routes.JOB_REQUESTS, headers=binary("g"), json={"model": "sd"})
        assert (response.status_code, slug(response)) == (503, "sink-unavailable")
        assert "K_SINK" in response.json()["detail"]

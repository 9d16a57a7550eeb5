"""The OpenAPI document matches the API: every operation, status, response and accepted request."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from darkroom.access.credentials import Credential
from darkroom.access.declarations.reconciliation import apply
from darkroom.access.declarations.tenants_file import parse
from darkroom.access.principals import Scope
from darkroom.access.records import Tenant
from darkroom.catalogue.models import Catalogue
from darkroom.cloudevents.event import Event
from darkroom.ledger import calls
from darkroom.links import Links
from darkroom_functions import api as api_routes
from darkroom_functions.http import routes
from darkroom_functions.http.access import Open
from darkroom_functions.http.credentials.cookies import PLAIN_NAME
from darkroom_functions.http.routes import ApiRoute
from darkroom_functions.resources import listing, schemas
from darkroom_functions.submission import reading
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import SecretStr

from tests.courier.sink import Sink
from tests.functions.accounts import REFUSALS, Accounts
from tests.functions.administration import administering
from tests.functions.api import EVENT_TYPE, JOBS, Api, binary, send, serving, slug, structured
from tests.functions.stream_clients import DEADLINE_S, fill_tenant_stream, replaying
from tests.parts import LINK_KEY, PROOFS, PUBLIC_URL
from tests.redis_server import RedisServer

LETTERS = routes.DEAD_LETTERS
SUBSCRIPTIONS = routes.SUBSCRIPTIONS
RECEIVER = "https://client.example/"

BODIES = frozenset(
    name.removesuffix("Body")
    for name, each in vars(schemas).items()
    if name.endswith("Body") and isinstance(each, type)
)

UNKNOWN_JOB = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
DECLARED = Credential.generate()
"""A key that a declaration defines."""

UNKNOWN = f"/und_{0:032x}"

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_the_document_is_served_as_it_was_generated(api: Api) -> None:
    made = api_routes.document(Catalogue.load(), public_url=PUBLIC_URL)
    assert api.get("/openapi.json").json() == json.loads(json.dumps(made))
    assert made["servers"] == [{"url": PUBLIC_URL}]


def test_every_operation_is_described_under_its_path_and_method(api: Api) -> None:
    described = {
        (operation["operationId"], method.upper(), template)
        for template, methods in api.contract.document["paths"].items()
        for method, operation in methods.items()
    }
    assert described == {(route.operation, route.method, route.template) for route in api_routes.ALL if route.operation}


def test_every_field_and_every_query_parameter_is_described(api: Api) -> None:
    document = api.contract.document
    for form in document["components"]["schemas"]["JobRequest"]["anyOf"]:
        assert {*reading.FIELDS, "model", "input"} <= form["properties"].keys()
    described = [parameter["name"] for parameter in document["paths"][JOBS]["get"]["parameters"]]
    assert described == list(listing.PARAMETERS)
    described = [parameter["name"] for parameter in document["paths"][LETTERS]["get"]["parameters"]]
    assert described == list(listing.LETTER_PARAMETERS)
    of_job, *described = [
        parameter["name"] for parameter in document["paths"][JOBS + "{id}/deliveries"]["get"]["parameters"]
    ]
    assert (of_job, described) == ("id", list(listing.DELIVERY_PARAMETERS))
    for path, parameters in (
        (routes.UNDELIVERED, listing.UNDELIVERED_PARAMETERS),
        ("/api/v1/audit", listing.TRAIL_PARAMETERS),
        ("/api/v1/usage", listing.USAGE_PARAMETERS),
    ):
        assert [parameter["name"] for parameter in document["paths"][path]["get"]["parameters"]] == list(parameters)


@pytest.mark.parametrize("route", [route for route in api_routes.ALL if route.operation], ids=lambda route: route.label)
def test_a_route_describes_the_parameters_of_its_path(route: ApiRoute) -> None:
    described = [parameter["name"] for parameter in route.parameters if parameter["in"] == "path"]
    assert described == re.findall(r"{(\w+)}", route.template)
    assert route.responses


PRONOUNS = ("it", "its", "they", "their", "this", "that", "these", "those", "what", "who", "whom", "whose", "he", "she")
SHORTEST_DESCRIPTION = 12


def test_every_description_names_its_subject() -> None:
    """It has at least 12 characters, and does not begin with a pronoun."""
    document = api_routes.document(Catalogue.load(), public_url=PUBLIC_URL)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    parameters = [parameter for operation in operations for parameter in operation["parameters"]]
    responses = [response for operation in operations for response in operation["responses"].values()]
    headers = [header for response in responses for header in response.get("headers", {}).values()]
    assert all(operation["summary"] for operation in operations)
    assert all(item["description"] for item in (*parameters, *responses, *headers))
    assert all(
        schema.get("description") for name, schema in document["components"]["schemas"].items() if name in BODIES
    )
    poor = [
        text
        for text in texts(document)
        if len(text) < SHORTEST_DESCRIPTION or text.split()[0].strip(".,:;'").lower() in PRONOUNS
    ]
    assert poor == []


def texts(value: object) -> list[str]:
    """Every description and summary within `value`."""
    if isinstance(value, Mapping):
        own = [value[key] for key in ("description", "summary") if isinstance(value.get(key), str)]
        return own + [found for item in value.values() for found in texts(item)]
    return [found for item in value for found in texts(item)] if isinstance(value, list) else []


def test_every_schema_is_valid_and_every_reference_resolves(api: Api) -> None:
    document = api.contract.document
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas


def test_a_method_that_a_path_lacks_is_refused_as_described(api: Api) -> None:
    """The client validates each refusal against every operation of the path."""
    for template, operations in api.contract.document["paths"].items():
        path = template.replace("{model}", "flux").replace("{id}", UNKNOWN_JOB).replace("{delivery}", "1")
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - {name.upper() for name in operations}:
            response = api.request(method, path.replace("{key}", "x"))
            assert response.status_code == 405, (method, path)
            assert response.headers["allow"].split(", ")[0] in {name.upper() for name in operations}


ONE_EVENT_ID = f"{UNKNOWN_JOB}:12"


@pytest.mark.parametrize(
    ("template", "name", "good", "bad"),
    [
        (JOBS, "Idempotency-Key", ["k", "a b", "~" * 255], ["x" * 256, "a\tb", "é"]),
        (JOBS, "user_id", ["anna", "é" * 200], ["", "x" * 201, "a\x00b", "a\x85b"]),
        (JOBS, "model", ["flux", "retired-1"], ["", "FLUX", "a" * 42, "a\x00"]),
        (JOBS, "after", [UNKNOWN_JOB], ["", "1", UNKNOWN_JOB.upper()]),
        (JOBS, "limit", ["1", "100"], ["0", "101", "x", "1.5"]),
        (f"{JOBS}{{id}}/events", "since", ["7", "end", ONE_EVENT_ID], ["", "-1", "end7", "9" * 16]),
        (f"{JOBS}{{id}}/events", "Last-Event-ID", ["7", "end", ONE_EVENT_ID, ""], ["-1", "7,8", "9" * 16]),
        (routes.TENANT_EVENTS, "since", ["0", "1-0"], ["1", "end", "1-", "9" * 16 + "-0"]),
        (LETTERS, "after", [f"1-{UNKNOWN_JOB}"], ["", UNKNOWN_JOB, "1-1"]),
        ("/api/v1/audit", "after", ["1", "9" * 18], ["", "0", "-1", "1.5", "9" * 19]),
        ("/api/v1/audit", "tenant", ["studio", "a"], ["", "Studio", "a" * 64]),
        ("/api/v1/usage", "from", ["2026-11-30"], ["", "2026-11", "30.11.2026", "2026-11-30T00:00:00Z"]),
        ("/api/v1/usage", "group_by", ["day", "tenant,key,model,day"], ["", "days", "day,", "day;key"]),
        (routes.UNDELIVERED, "after", [f"1-{UNKNOWN[1:]}"], ["", UNKNOWN[1:]]),
    ],
)
def test_the_schema_of_a_parameter_accepts_what_the_api_accepts(
    api: Api, template: str, name: str, good: list[str], bad: list[str]
) -> None:
    """By HEAD, so that a stream is answered at once; the key is sent with a submission."""
    is_key = name == "Idempotency-Key"
    (described,) = (
        parameter
        for parameter in api.contract.document["paths"][template]["post" if is_key else "get"]["parameters"]
        if parameter["name"] == name
    )
    path = template.replace("{id}", api.jobs.submit())
    for value in (*good, *bad):
        is_number = described["schema"].get("type") == "integer" and value.isdecimal()
        is_described = Draft202012Validator(described["schema"]).is_valid(int(value) if is_number else value)
        sent = value.replace(UNKNOWN_JOB, path.split("/")[-2]) if "events" in path and ":" in value else value
        if described["in"] == "header":
            headers = {name.encode(): sent.encode()}
            response = api.client.request("POST" if is_key else "HEAD", path, headers=headers, json={})
        else:
            response = api.client.head(path, params={name: sent})
        is_taken = response.status_code != 422
        assert (is_described, is_taken) == (value in good,) * 2, (value, response.status_code)


def references(value: object) -> list[str]:
    """Every `$ref` within `value`."""
    if isinstance(value, Mapping):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for item in value.values() for found in references(item)]
    return [found for item in value for found in references(item)] if isinstance(value, list) else []


def test_every_status_that_is_described_is_returned(own_redis: RedisServer, namespace: str, tmp_path: Path) -> None:
    """The client validates each response against its operation and status; here all of them are provoked."""
    with (
        Sink().running() as sink,
        serving(
            own_redis.url,
            namespace,
            tmp_path,
            DARKROOM_BACKLOG_LIMIT="10",
            K_SINK=sink.url,
            DARKROOM_FOREIGN_EVENTS="true",
        ) as api,
    ):
        provoke_submit(api)
        provoke_jobs(api)
        provoke_administration(api)
        own_redis.stop()
        link = provoke_outage(api)
        own_redis.start()
        folder = next(path for path in api.store.rglob("*.png"))
        folder.unlink()
        folder.symlink_to(folder)
        api.get(link)
        missing = api.contract.promised() - api.contract.seen - refused_callers(own_redis, namespace, tmp_path)
    assert {(name, status) for name, status in missing if status != "default"} == set()
    assert ("readJob", "default") not in missing


SUBMITTING = ("submitEvents", "submitJob", "submitToModel", "redriveDeadLetter")
"""The operations that submit a job."""


def test_every_429_of_a_submission_is_returned(redis_url: str, namespace: str, tmp_path: Path) -> None:
    """The client validates each response against its operation, and with it the type of the problem."""
    with serving(redis_url, namespace, tmp_path, DARKROOM_AUTH="keys", DARKROOM_BACKLOG_LIMIT="20") as api:
        accounts = Accounts(redis_url, api)
        returned: dict[str, set[str]] = {operation: set() for operation in SUBMITTING}
        for problem, limits in REFUSALS.items():
            header = accounts.create()
            letter = dead_letter(api, api.submit({"model": "sd"}, headers=header))
            limited = accounts.add(api.jobs.record(letter).tenant, limits=limits)
            assert api.post("/sd", headers=limited).status_code == 202
            for response, operation in zip(submissions(api, letter, limited), SUBMITTING, strict=True):
                assert (response.status_code, slug(response)) == (429, problem)
                returned[operation].add(response.json()["type"])
        while (response := api.post("/sd", headers=header)).status_code != 429:
            pass
        for response, operation in zip(submissions(api, letter, header), SUBMITTING, strict=True):
            returned[operation].add(response.json()["type"])
        for methods in api.contract.document["paths"].values():
            for operation in methods.values():
                if operation["operationId"] in SUBMITTING:
                    (content,) = operation["responses"]["429"]["content"].values()
                    described = content["schema"]["allOf"][1]["properties"]["type"]["enum"]
                    assert returned[operation["operationId"]] == set(described)


def submissions(api: Api, letter: str, headers: dict[str, str]) -> list[httpx.Response]:
    """A response of each of `SUBMITTING`."""
    return [
        api.post("/", headers=binary(secrets.token_hex(8)) | headers, json={"model": "sd"}),
        api.post(JOBS, headers=headers, json={"model": "sd"}),
        api.post("/sd", headers=headers),
        api.post(f"{LETTERS}/{letter}/redrive", headers=headers),
    ]


def refused_callers(redis: RedisServer, namespace: str, folder: Path) -> set[tuple[str, str]]:
    """Provoke every response to a caller without the right credential, of functions that require one.

    Before any key is published it is unknown whether a key is valid.
    """
    scoped = [route for route in api_routes.ALL if route.scope not in {Open.PUBLIC, Open.INTERNAL}]
    unknown = {"Authorization": f"Bearer {Credential.generate().text}"}
    own = folder / "keys"
    own.mkdir()
    with serving(redis.url, f"{namespace}-keys", own, DARKROOM_AUTH="keys") as api:
        for route in scoped:
            send(api, route, headers=unknown, job_id=UNKNOWN_JOB, tenant="studio")
            send(api, route, headers={}, job_id=UNKNOWN_JOB, tenant="studio")
        weak, reader = asyncio.run(keys_of_studio(redis.url, api))
        for route in scoped:
            send(api, route, headers={"Authorization": f"Bearer {weak}"}, job_id=UNKNOWN_JOB, tenant="studio")
        provoke_sessions(api, reader)
        redis.stop()
        api.request("DELETE", "/api/v1/session", headers={"Cookie": f"{PLAIN_NAME}=any"})
        return api.contract.seen


async def keys_of_studio(redis_url: str, api: Api) -> list[str]:
    """A key without scopes, and one that reads."""
    async with administering(redis_url, api) as administration:
        await administration.create_tenant(Tenant(name="studio"), actor="tests")
        return [
            (await administration.create_key(tenant="studio", name="any", scopes=scopes, actor="tests"))[1].text
            for scopes in (frozenset[Scope](), frozenset({Scope.READ}))
        ]


def provoke_sessions(api: Api, key: str) -> None:
    """Provoke every response about tickets and sessions to the owner of a key."""
    owner = {"Authorization": f"Bearer {key}"}
    for method in ("POST", "GET", "DELETE"):
        api.request(method, "/api/v1/session", headers=owner)
    while api.post("/api/v1/tickets", headers=owner).status_code != 429:
        pass


def provoke_administration(api: Api) -> None:
    """Provoke every response about tenants and keys to callers who may ask."""
    tenants, keys = "/api/v1/tenants", "/api/v1/keys"
    for _ in range(2):
        api.post(tenants, json={"name": "studio"})
    made = {"tenant": "studio", "name": "backend", "scopes": ["submit"]}
    key = f"{keys}/{api.post(keys, json=made).json()['id']}"
    api.post(keys, json={**made, "tenant": "unknown"})
    api.post(f"{key}/rotate", json={})
    for method, path in (
        ("POST", tenants),
        ("PATCH", f"{tenants}/studio"),
        ("POST", keys),
        ("PATCH", key),
        ("POST", f"{key}/rotate"),
    ):
        for body in refused_bodies():
            api.request(method, path, **body)
    api.get(keys, params={"owner": "studio"})
    api.request("DELETE", f"{tenants}/studio")
    asyncio.run(declare_tenant(api))
    declared = f"{keys}/{DECLARED.key_id}"
    for path in (f"{tenants}/declared", declared):
        api.request("PATCH", path, json={"disabled": True})
        api.request("DELETE", path)
    api.post(f"{declared}/rotate", json={})
    for path in ("/api/v1/audit", "/api/v1/usage"):
        for query in ({}, {"limit": "many"}, {"format": "csv"}):
            api.get(path, params=query)
        api.get(path, headers={"if-none-match": "*"})
    for path in (tenants, keys):
        for _ in range(2):
            api.get(path)
            api.get(path, headers={"if-none-match": "*"})
    for path in (key, f"{tenants}/studio"):
        api.get(path, headers={"if-none-match": "*"})
        for _ in range(2):  # deleted when it is asked for again
            api.get(path)
            api.request("PATCH", path, json={"disabled": True})
            api.request("DELETE", path)
    api.post(f"{key}/rotate", json={})


async def declare_tenant(api: Api) -> None:
    """A tenant with a key, as a file of tenants declares them."""
    text = f'id: "{DECLARED.key_id}", digests: ["{DECLARED.digest}"]'
    file = f"tenants: [{{name: declared, keys: [{{name: any, scopes: [read], {text}}}]}}]"
    async with administering(api.functions.environment["DARKROOM_REDIS_URL"], api) as administration:
        await apply(parse(file, name="tenants.yaml", read_secret=None), administration)


def provoke_submit(api: Api) -> None:
    """Provoke every response to a submission except that of an outage."""
    as_json = {"content-type": "application/json"}
    too_large = b" " * (2 * 1024 * 1024 + 1)
    for path in (JOBS, "/flux"):
        key = {"Idempotency-Key": path}
        for body in ({}, {}, {"prompt": "another"}, {"model": "nope"}, {"colour": "red"}):
            api.post(path, json=body, headers=key)
        api.post(path, content=b"{", headers=as_json)
        api.post(path, content=b"{}", headers={"content-type": "text/plain"})
        api.post(path, content=too_large, headers=as_json)
    api.post("/nope")
    for _ in range(2):
        api.post("/", headers=binary("one"), json={})
    api.post("/", headers=binary("one"), json={"prompt": "another"})
    api.post("/", headers=binary("two"), content=too_large)
    provoke_publish(api, too_large)
    batch: list[object] = [structured("three"), structured("three", type="x")]
    for events in (batch, batch[1:], []):
        api.post("/", content=json.dumps(events), headers={"content-type": "application/cloudevents-batch+json"})
    while api.post("/flux").status_code != 429:
        pass
    api.post(JOBS, json={})
    api.post("/", headers=binary("four"), json={})


def provoke_publish(api: Api, too_large: bytes) -> None:
    """Provoke every response to a request through the Broker, but that without one."""
    api.post(routes.JOB_REQUESTS, headers=binary("five"), json={"prompt": "a lighthouse"})
    api.post(routes.JOB_REQUESTS, headers=binary("six", type="x"), json={})
    api.post(routes.JOB_REQUESTS, headers=binary("seven"), content=b"{")
    api.post(routes.JOB_REQUESTS, headers=binary("eight"), content=too_large)


def provoke_jobs(api: Api) -> None:
    """Provoke every response about jobs except those of an outage."""
    living, *_, job_id = (job["id"] for job in api.get(JOBS).json()["jobs"])
    api.get(JOBS + job_id, params={"wait": "soon"})
    api.request("DELETE", JOBS + living)
    for wanted in (job_id, "123", job_id):  # cancelled and deleted when it is asked for again
        api.get(f"/tasks/{wanted}")
        api.get(JOBS + wanted)
        api.post(f"{JOBS}{wanted}/cancel")
        api.request("DELETE", JOBS + wanted)
    api.get(JOBS, params={"state": "x"})
    provoke_streams(api)
    provoke_dead_letters(api)
    provoke_undelivered(api)
    provoke_subscriptions(api)
    provoke_deliveries(api)
    provoke_artifacts(api)
    for path in documents(api):
        for headers in ({}, {"if-none-match": "*"}):
            api.get(path, headers=headers)
    broken = api.get(JOBS).json()["jobs"][0]["id"]
    key = f"{api.jobs.namespace}:job:{broken}"
    created = api.jobs.redis.hget(key, "created")
    api.jobs.redis.hset(key, "created", "long ago")
    assert api.get(JOBS + broken).status_code == 500
    api.jobs.redis.hset(key, "created", created)


def documents(api: Api) -> list[str]:
    """A path of each operation that reads a document with an ETag."""
    job_id = api.jobs.completed()
    api.client.post(SUBSCRIPTIONS, json={"url": RECEIVER})
    api.jobs.run(calls.mark_applied(job_id, seq=api.jobs.end_seq(job_id)))
    subscription = api.get(SUBSCRIPTIONS).json()["subscriptions"][0]["id"]
    delivery = api.get(f"{JOBS}{job_id}/deliveries").json()["deliveries"][0]["id"]
    letter = dead_letter(api, api.jobs.submit())
    headers, body = PROOFS.prove(Event(id="kept", source="/tests", type=EVENT_TYPE, data={})).encode_binary()
    api.client.post(routes.UNDELIVERED_SINK, headers=headers, content=body)
    undelivered = api.get(routes.UNDELIVERED).json()["undelivered_events"][0]["id"]
    return [
        *(f"/tasks/{job_id}", JOBS, JOBS + job_id, "/api/v1/models", "/openapi.json", routes.WEBHOOK_KEYS),
        *(SUBSCRIPTIONS, f"{SUBSCRIPTIONS}/{subscription}"),
        *(f"{JOBS}{job_id}/deliveries", f"{JOBS}{job_id}/deliveries/{delivery}"),
        *(LETTERS, f"{LETTERS}/{letter}", routes.UNDELIVERED, f"{routes.UNDELIVERED}/{undelivered}"),
    ]


def dead_letter(api: Api, job_id: str) -> str:
    """Use up the attempts of the job; returns its id."""
    for number in range(3):
        api.jobs.start(job_id, token=f"{number}")
        error = {"kind": "transient", "message": "hiccup"}
        api.jobs.run(calls.retry(job_id, token=f"{number}", error=error, delay_ms=0))
    return job_id


def provoke_artifacts(api: Api) -> None:
    """Provoke every response about a picture except those of an outage."""
    job_id = api.jobs.completed()
    key = f"default/{job_id}/1/0-{'0' * 64}.png"
    link = Links("", SecretStr(LINK_KEY), ttl_s=600).to(key, now_s=time.time())
    api.get(f"/artifacts/{key}")
    api.get(link)
    (api.store / key).parent.mkdir(parents=True)
    (api.store / key).write_bytes(b"a picture")
    for headers in ({}, {"if-none-match": "*"}, {"if-match": '"x"'}, {"range": "bytes=2-3"}, {"range": "bytes=99-"}):
        api.get(link, headers=headers)
    api.request("DELETE", JOBS + job_id)
    api.get(link)


def provoke_streams(api: Api) -> None:
    """Provoke every response of event streams except those of an outage."""
    stream = f"{JOBS}{api.jobs.completed()}/events"
    api.get(stream)
    for cursor in ("end", "soon"):
        api.get(stream, headers={"last-event-id": cursor})
    api.request("DELETE", stream.removesuffix("/events"))
    api.get(stream)
    api.get(f"{JOBS}123/events")
    api.request("HEAD", routes.TENANT_EVENTS)
    api.get(routes.TENANT_EVENTS, params={"since": "soon"})
    fill_tenant_stream(api.jobs)
    asyncio.run(provoke_refused_replay(api))


async def provoke_refused_replay(api: Api) -> None:
    """Request a replay, beside many others, until it is refused."""

    def ask() -> bool:
        with api.client.stream("GET", routes.TENANT_EVENTS, params={"since": "0"}) as response:
            if response.status_code == 200:
                return False
            response.read()
            api.contract.check(response)
            return True

    async with asyncio.timeout(DEADLINE_S), replaying(api.functions):
        while not await asyncio.to_thread(ask):
            pass


def provoke_dead_letters(api: Api) -> None:
    """Provoke every response about dead letters except those of an outage, beginning with a full backlog."""
    letters = []
    for _ in range(2):
        job_id = next(job["id"] for job in api.get(JOBS, params={"state": "pending"}).json()["jobs"])
        letters.append(dead_letter(api, job_id))
    first, second = letters
    api.get(LETTERS)
    api.get(LETTERS, params={"limit": "0"})
    as_json = {"content-type": "application/json"}
    redrive = f"{LETTERS}/{first}/redrive"
    api.post(redrive, content=b"{", headers=as_json)
    api.post(redrive, content=b"{}", headers={"content-type": "text/plain"})
    api.post(redrive, content=b" " * (2 * 1024 * 1024 + 1), headers=as_json)
    api.post(redrive, json={"colour": "red"})
    for _ in range(2):
        api.post(redrive)
    api.get(f"{LETTERS}/{second}")
    while api.post("/flux").status_code != 429:
        pass
    api.post(f"{LETTERS}/{second}/redrive")
    for _ in range(2):
        api.request("DELETE", f"{LETTERS}/{second}")
    for method, path in (("GET", ""), ("POST", "/redrive"), ("DELETE", "")):
        api.request(method, f"{LETTERS}/123{path}")
    api.request("DELETE", LETTERS)


def provoke_undelivered(api: Api) -> None:
    """Provoke every response about undelivered events except those of an outage."""
    api.client.post(routes.UNDELIVERED_SINK, headers=binary("undelivered"))
    event_id = api.get(routes.UNDELIVERED).json()["undelivered_events"][0]["id"]
    api.get(routes.UNDELIVERED, params={"limit": "0"})
    for wanted in (event_id, "123"):
        for method, path in (("GET", ""), ("POST", "/replay"), ("DELETE", "")):
            api.request(method, f"{routes.UNDELIVERED}/{wanted}{path}")


def provoke_subscriptions(api: Api) -> None:
    """Provoke every response about subscriptions, secrets and keys except those of an outage."""
    while (made := api.post(SUBSCRIPTIONS, json={"url": RECEIVER})).is_success:
        newest = made.headers["location"]
    elsewhere = api.post(SUBSCRIPTIONS, json={"url": "https://elsewhere.example.com/"}).headers["location"]
    api.request("PATCH", elsewhere, json={"url": RECEIVER})
    for path, method in ((SUBSCRIPTIONS, "POST"), (newest, "PATCH"), (newest + "/rotate-secret", "POST")):
        for body in refused_bodies():
            api.request(method, path, **body)
    api.get(SUBSCRIPTIONS)
    for path in (newest, newest, SUBSCRIPTIONS + "/123"):  # deleted when it is asked for again
        for method, below in (
            ("GET", ""),
            ("PATCH", ""),
            ("GET", "/secret"),
            ("POST", "/rotate-secret"),
            ("DELETE", ""),
        ):
            api.request(method, path + below, **({"json": {}} if method in ("PATCH", "POST") else {}))
    api.get("/api/v1/webhook-secret")
    api.get(routes.WEBHOOK_KEYS)


def refused_bodies() -> list[dict[str, Any]]:
    """Requests that are refused for each fault of a body."""
    as_json = {"content-type": "application/json"}
    return [
        {"content": b"{", "headers": as_json},
        {"content": b"{}", "headers": {"content-type": "text/plain"}},
        {"content": b" " * (2 * 1024 * 1024 + 1), "headers": as_json},
        {"json": {"colour": "red"}},
    ]


def provoke_deliveries(api: Api) -> None:
    """Provoke every response about deliveries except those of an outage; subscriptions exist already."""
    job_id = api.jobs.completed()
    api.jobs.run(calls.mark_applied(job_id, seq=api.jobs.end_seq(job_id)))
    deliveries = f"{JOBS}{job_id}/deliveries"
    (delivery, *_) = api.get(deliveries).json()["deliveries"]
    api.get(deliveries, params={"limit": "0"})
    api.post(f"{deliveries}/{delivery['id']}/redeliver")
    api.request("DELETE", f"{SUBSCRIPTIONS}/{delivery['subscription']}")
    for _ in range(2):  # the job is deleted when it is asked for again
        for path in (f"/{delivery['id']}", "/123"):
            api.get(deliveries + path)
            api.post(f"{deliveries}{path}/redeliver")
        api.get(deliveries)
        api.request("DELETE", JOBS + job_id)
    api.get(f"{JOBS}123/deliveries")


def provoke_outage(api: Api) -> str:
    """Provoke every response of an outage, and those of artifacts, which need no Redis. Returns an artifact's link."""
    api.post(JOBS, json={})
    api.post("/flux")
    api.post("/", headers=binary("five"), json={})
    job_id = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
    for path in (f"/tasks/{job_id}", JOBS + job_id, JOBS, f"{JOBS}{job_id}/events", routes.TENANT_EVENTS):
        api.get(path)
    api.post(f"{JOBS}{job_id}/cancel")
    api.request("DELETE", JOBS + job_id)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/" + job_id), ("DELETE", "/" + job_id)):
        api.request(method, LETTERS + path)
    api.post(f"{LETTERS}/{job_id}/redrive")
    for method, path in (("GET", ""), ("GET", UNKNOWN), ("DELETE", UNKNOWN), ("POST", UNKNOWN + "/replay")):
        api.request(method, routes.UNDELIVERED + path)
    api.get(SUBSCRIPTIONS)
    api.post(SUBSCRIPTIONS, json={"url": RECEIVER})
    subscription = f"{SUBSCRIPTIONS}/sub_{job_id}"
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/secret"), ("POST", "/rotate-secret")):
        api.request(method, subscription + path, **({"json": {}} if method in ("PATCH", "POST") else {}))
    for method, path in (("GET", ""), ("GET", "/1"), ("POST", "/1/redeliver")):
        api.request(method, f"{JOBS}{job_id}/deliveries{path}")
    sha256 = "0" * 64
    key = f"default/{job_id}/1/0-{sha256}.png"
    link = Links("", SecretStr(LINK_KEY), ttl_s=600).to(key, now_s=time.time())
    assert api.get(link).status_code == 503, "whether it was deleted is not known"
    (api.store / key).parent.mkdir(parents=True)
    (api.store / key).write_bytes(b"a picture")
    assert api.get(link).status_code == 200
    return link


# Whatever is sent

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
LIKELY: Mapping[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["flux", "sd", "nope"]),
    "prompt": st.text(max_size=30),
    "negative_prompt": st.text(max_size=10),
    "width": st.integers(0, 160).map(lambda number: number * 16),
    "height": st.integers(0, 160).map(lambda number: number * 16),
    "size": st.sampled_from(["832x1216", "64x64", "9x9", "size"]),
    "steps": st.integers(-1, 60),
    "guidance": st.floats(-1, 25) | st.integers(-1, 25),
    "seed": st.integers(-1, 2**54),
    "images": st.integers(0, 5),
    "enable_base64_output": st.booleans(),
    "user_id": st.text(max_size=10),
    "job_type": st.sampled_from(["image", "video"]),
    "priority": st.integers(-1, 10),
    "run_timeout": st.floats(0, 700) | st.integers(0, 700),
    "start_deadline": st.sampled_from(["2999-01-01T00:00:00Z", "soon"]) | st.integers(-1, 10**8),
    "webhook": st.sampled_from([None, RECEIVER, "https://10.0.0.1/", "client.example"]),
    "webhook_events_filter": st.lists(st.sampled_from(["started", "failed", "accepted"]), max_size=3),
}
ASCII = st.text(st.characters(codec="ascii"), max_size=40)


def requests() -> st.SearchStrategy[dict[str, Any]]:
    """Bodies that are often valid, mostly nearly valid, and sometimes not at all."""
    mixed = {name: st.one_of(*[values] * 9, JUNK) for name, values in LIKELY.items()}
    likely = st.sets(st.sampled_from(sorted(LIKELY)), max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: mixed[name] for name in sorted(names)})
    )
    strange = st.dictionaries(st.text(max_size=10), JUNK, max_size=2)
    flat = st.builds(lambda one, other: one | other, likely, st.one_of(*[st.just({})] * 9, strange))
    nested = st.builds(lambda inside, outside: outside | {"input": inside}, flat, st.one_of(st.just({}), flat))
    return flat | nested


@EXAMPLES
@given(requests())
def test_the_schema_of_a_submission_accepts_what_the_api_accepts(api: Api, body: dict[str, Any]) -> None:
    for path, schema in ((JOBS, "JobRequest"), ("/sd", "ModelRequest")):
        response = api.post(path, json=body)
        assert response.status_code in (202, 404, 422), response.text
        if response.status_code == 202:
            assert api.contract.is_valid(body, schema)
        elif response.status_code == 422:
            assert response.json()["errors"]
    event = api.post("/", headers=binary(str(time.time_ns())), json=body)
    assert (event.status_code == 202) == (api.post(JOBS, json=body).status_code == 202)


@EXAMPLES
@given(st.dictionaries(st.sampled_from(["specversion", "id", "source", "type", "time", "data", "x"]), JUNK))
def test_an_event_of_random_members_is_refused_as_described(api: Api, members: dict[str, Any]) -> None:
    event = structured(str(time.time_ns())) | members
    response = api.post(
        "/", content=json.dumps(event), headers={"content-type": "application/cloudevents+json; charset=utf-8"}
    )
    assert response.status_code in (202, 422)


@EXAMPLES
@given(st.binary(max_size=200), st.sampled_from(["/", "/flux", JOBS]), ASCII)
def test_bytes_are_refused_as_described(api: Api, content: bytes, path: str, content_type: str) -> None:
    headers = {"content-type": content_type.strip()} if content_type.isprintable() else {}
    response = api.post(path, content=content, headers=headers)
    assert response.status_code in (202, 400, 415, 422)


@EXAMPLES
@example("GET", ["\n", ""])
@given(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]),
    st.lists(st.text(max_size=12) | st.sampled_from(["api", "v1", "generation-jobs", "tasks", "artifacts", "flux"])),
)
def test_any_path_is_answered_as_described(api: Api, method: str, segments: list[str]) -> None:
    path = quote("/".join(segments), errors="surrogatepass")
    response = api.client.request(method, f"{api.functions.url}/{path}")
    assert response.is_success or response.status_code in (400, 403, 404, 405, 422), response.text


# Adding a model


def test_a_models_file_is_all_that_a_model_needs(redis_url: str, namespace: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "poster.toml").write_text(
        'extends = "sd"\nname = "poster"\ntitle = "Posters"\n[parameters.ink]\ntype = "string"\n'
        'description = "The colour of the ink."\nchoices = ["black", "blue"]\n'
    )
    with serving(redis_url, namespace, tmp_path, DARKROOM_MODELS=str(folder)) as api:
        assert api.job(api.post("/poster", json={"ink": "blue"}).json()["id"])["input"]["ink"] == "blue"
        assert api.post("/poster", json={"ink": "red"}).status_code == 422
        assert api.contract.is_valid({"model": "poster", "ink": "blue"}, "JobRequest")
        assert not api.contract.is_valid({"model": "poster", "ink": "red"}, "JobRequest")
        assert "poster" in [model["name"] for model in api.get("/api/v1/models").json()["models"]]
        assert api.get("/poster").status_code == 405

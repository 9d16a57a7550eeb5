"""The audit trail: every operation that changes something or shows a secret is recorded, done or refused."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator

import httpx
import pytest
from darkroom.access.principals import Scope
from darkroom.ledger import calls
from darkroom.ledger.keys import Keys
from darkroom.trail.entries import Entry
from darkroom_functions import api as routes
from darkroom_functions.http.access import Open
from darkroom_functions.http.routes import ApiRoute
from darkroom_functions.http.trail import Audit

from tests.conftest import RedisServers
from tests.functions.api import JOBS, serving, slug
from tests.functions.test_access import OWNER, Access, issue_keys
from tests.redis_server import RedisKind
from tests.waiting import eventually

UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}
SECRETS = {"readSubscriptionSecret", "readWebhookSecret"}
"""The operations that show a secret and change nothing."""

OPERATIONS = [
    route
    for route in routes.ALL
    if route.operation and isinstance(route.scope, Scope) and (route.method in UNSAFE or route.operation in SECRETS)
]


@pytest.fixture(scope="module")
def access(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    redis_url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    with serving(redis_url, namespace, tmp_path_factory.mktemp("functions"), DARKROOM_AUTH="keys") as api:
        access = Access(api, asyncio.run(issue_keys(redis_url, api)))
        access.job_id = api.submit(headers=access.header("submit"))
        yield access


@pytest.fixture(autouse=True)
def _clean(access: Access) -> None:
    entries(access)


def entries(access: Access) -> list[Entry]:
    """The entries since the last call."""
    jobs = access.api.jobs
    found = jobs.run(calls.collect_audit(limit=1000)).entries
    jobs.run(calls.drop_audit(found, seq=1, digest="d"))
    return [Entry.decode(each) for each in found]


def actor_of(access: Access, name: str) -> str:
    return access.keys[name].split("_")[1]


def test_every_operation_that_may_change_something_is_audited() -> None:
    """Internal routes, which darkroom's own parts call, aside."""
    unsafe = [route for route in routes.ALL if route.method in UNSAFE and route.scope is not Open.INTERNAL]
    assert [route.label for route in unsafe if route.audit is Audit.NOTHING] == []
    assert {route.operation for route in routes.ALL if route.method == "GET" and route.audit is not Audit.NOTHING} == (
        SECRETS
    )
    assert len(OPERATIONS) > 20


@pytest.mark.parametrize("route", OPERATIONS, ids=lambda route: route.operation)
def test_an_operation_is_recorded(route: ApiRoute, access: Access) -> None:
    assert isinstance(route.scope, Scope)
    headers = access.header(route.scope.value) | {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}

    response = access.send(route, headers)

    recorded = _recorded(access, route, response)
    assert recorded.tenant == OWNER
    assert recorded.actor == actor_of(access, route.scope.value)
    assert recorded.kind == "key"
    assert recorded.operation == route.operation
    assert recorded.count == 1
    if response.is_success:
        assert (recorded.outcome, recorded.status) == ("ok", response.status_code)
    else:
        assert (recorded.outcome, recorded.status) == (slug(response), response.status_code)
    if "{id}" in route.template:
        assert recorded.object.startswith(str(response.request.url.path).removeprefix(route.template.split("{")[0])[:8])
    if route.audit is Audit.OPERATION:
        assert recorded.trace == "a" * 32


def _recorded(access: Access, route: ApiRoute, response: httpx.Response) -> Entry:
    """The one entry; the refusal of a submission is recorded some seconds later."""
    found: list[Entry] = []

    def has_been() -> bool:
        found.extend(entries(access))
        return bool(found)

    eventually(has_been, what=f"the entry of {route.operation}, which returned {response.status_code}")
    (recorded,) = found
    return recorded


@pytest.mark.parametrize("route", OPERATIONS, ids=lambda route: route.operation)
def test_an_operation_that_the_credential_does_not_permit_is_recorded(route: ApiRoute, access: Access) -> None:
    assert isinstance(route.scope, Scope)
    name = f"not {route.scope.value}"

    response = access.send(route, access.header(name))

    assert response.status_code == 403
    (recorded,) = entries(access)
    assert (recorded.operation, recorded.outcome, recorded.status) == (route.operation, "scope-missing", 403)
    assert (recorded.tenant, recorded.actor) == (OWNER, actor_of(access, name))


def test_a_request_without_a_valid_credential_has_no_entry(access: Access) -> None:
    for name in (None, "expired", "disabled"):
        headers = {} if name is None else access.header(name)
        assert access.api.post(f"{JOBS}{access.job_id}/cancel", headers=headers).status_code == 401
    assert entries(access) == []


def test_a_read_has_no_entry(access: Access) -> None:
    assert access.api.get(JOBS, headers=access.header("read")).status_code == 200
    assert access.api.get(JOBS, headers=access.header("not read")).status_code == 403
    assert entries(access) == []


def test_a_submission_is_recorded_with_its_job_and_a_repeat_is_not(access: Access) -> None:
    headers = access.header("submit") | {"Idempotency-Key": secrets.token_hex(4)}
    job_id = access.api.submit(headers=headers)
    repeated = access.api.post(JOBS, json={}, headers=headers)
    assert (repeated.status_code, repeated.json()["id"]) == (200, job_id)

    (recorded,) = entries(access)
    assert (recorded.operation, recorded.object, recorded.outcome) == ("submitJob", job_id, "ok")
    assert len(recorded.trace) == 32


def test_what_a_request_creates_is_the_object(access: Access) -> None:
    body = {"tenant": OWNER, "name": "for a test", "scopes": ["read"]}
    made = access.api.post("/api/v1/keys", json=body, headers=access.header("admin")).json()

    (recorded,) = entries(access)
    assert (recorded.operation, recorded.object) == ("createKey", made["id"])
    assert made["key"] not in recorded.encode()
    assert made["key"].rpartition("_")[2] not in recorded.encode()


def test_equal_refusals_of_submissions_are_one_entry_with_their_number(access: Access) -> None:
    for _ in range(7):
        bad = {"model": "flux", "input": {"prompt": "x", "width": -1}}
        assert access.api.post(JOBS, json=bad, headers=access.header("submit")).status_code == 422
    for model in ("nothing", "x" * 1000):
        bad = {"model": model, "input": {"prompt": "x"}}
        assert access.api.post(JOBS, json=bad, headers=access.header("submit")).status_code == 404
    found: list[Entry] = []

    def total() -> int:
        found.extend(entries(access))
        return sum(each.count for each in found)

    eventually(lambda: total() >= 9, what="the entries of nine refusals")
    counts: dict[tuple[str, str, int], int] = {}
    for each in found:
        key = (each.outcome, each.object, each.status)
        counts[key] = counts.get(key, 0) + each.count
    assert counts == {("invalid-input", "flux", 422): 7, ("unknown-model", "", 404): 2}


def test_each_refused_event_of_a_batch_is_counted(access: Access) -> None:
    event = {"specversion": "1.0", "source": "/tests", "type": "dev.darkroom.job.requested", "data": {"prompt": "x"}}
    batch = [
        event | {"id": secrets.token_hex(4)},
        event | {"id": "1", "data": {"prompt": "x", "model": "sd", "width": -1}},
        event | {"id": "2", "data": {"prompt": "x", "model": "sd", "width": -2}},
        {"id": "3"},
    ]
    headers = access.header("submit") | {"Content-Type": "application/cloudevents-batch+json"}
    assert access.api.post("/", content=json.dumps(batch), headers=headers).status_code == 202
    found: list[Entry] = []

    def all_there() -> bool:
        found.extend(entries(access))
        return sum(each.count for each in found) >= 4

    eventually(all_there, what="the entries of four events")
    assert {(each.outcome, each.object if each.status > 400 else "", each.count) for each in found} == {
        ("ok", "", 1),
        ("invalid-input", "sd", 2),
        ("invalid-event", "", 1),
    }


def test_a_full_trail_refuses_every_operation_and_nothing_is_done(access: Access) -> None:
    jobs = access.api.jobs
    job_id = access.api.submit(headers=access.header("submit"))
    keys = Keys(jobs.namespace)
    jobs.redis.zadd(keys.audit, {f"entry {number}": number for number in range(100_000)})
    try:
        before = access.contents()
        for path, scope in ((f"{JOBS}{job_id}/cancel", "cancel"), (JOBS, "submit"), (f"{JOBS}{job_id}/cancel", "read")):
            response = access.api.post(path, json={"prompt": "x"}, headers=access.header(scope))
            assert (response.status_code, slug(response)) == (503, "audit-full"), path
            assert int(response.headers["retry-after"]) > 0
        assert access.contents() == before
    finally:
        jobs.redis.delete(keys.audit)

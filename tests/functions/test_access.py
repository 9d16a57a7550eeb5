"""Who may do what: every operation and every socket, with every kind of credential.

Nothing but a right credential changes anything, and the objects of other tenants do not exist.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.access.credentials import Credential
from darkroom.access.principals import Scope
from darkroom.access.records import Tenant
from darkroom_functions import api as routes
from darkroom_functions.http.access import Open
from darkroom_functions.http.routes import ApiRoute, SocketRoute
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conftest import RedisServers
from tests.functions.administration import administering
from tests.functions.api import JOBS, Api, send, serving, slug
from tests.redis_server import RedisKind

SCOPED = [route for route in routes.ALL if isinstance(route.scope, Scope)]
SOCKETS = [route for each in routes.ROUTES.values() for route in each if isinstance(route, SocketRoute)]


OWNER, OTHER = "studio", "agency"

STATES = {
    "no credential": None,
    "malformed": "Bearer dk_nothing",
    "unknown": f"Bearer {Credential.generate().text}",
    "wrong scope": "no scope of it",
    "expired": "expired",
    "disabled": "disabled",
    "disabled tenant": "disabled tenant",
}
"""Credentials that permit nothing, by the reason; the last four are keys of the fixture."""


@dataclass
class Access:
    """A process of functions that requires keys, and keys of two tenants by name."""

    api: Api
    keys: dict[str, str]
    job_id: str = ""

    def header(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"}

    def contents(self) -> dict[bytes, bytes | None]:
        """Everything that Redis has under the prefix, but for the audit trail and the uses of keys and sessions."""
        redis, namespace = self.api.jobs.redis, self.api.jobs.namespace
        keys = sorted(redis.scan_iter(f"{namespace}:*", count=1000))
        counters, others = f"{namespace}:counters".encode(), ("audit", "key-uses", "grant:", "grants-of:")
        prefixes = tuple(f"{namespace}:{other}".encode() for other in others)
        found = {key: redis.dump(key) for key in keys if key != counters and not key.startswith(prefixes)}
        return found | {key: value for key, value in redis.hgetall(counters).items() if key != b"audited"}

    def send(self, route: ApiRoute, headers: dict[str, str], *, method: str | None = None) -> httpx.Response:
        """A request to a route, about objects of the owner."""
        return send(self.api, route, headers=headers, job_id=self.job_id, tenant=OWNER, method=method)


@pytest.fixture(scope="module")
def access(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    redis_url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    folder = tmp_path_factory.mktemp("functions")
    with serving(redis_url, namespace, folder, DARKROOM_AUTH="keys") as api:
        access = Access(api, asyncio.run(issue_keys(redis_url, api)))
        access.job_id = api.submit(headers=access.header("submit"))
        yield access


async def issue_keys(redis_url: str, api: Api) -> dict[str, str]:
    """Keys with one scope each, one with all of another tenant, and those that are out of use."""
    keys: dict[str, str] = {}

    async def create(name: str, tenant: str, scopes: frozenset[Scope], **more: Any) -> str:
        key, credential = await administration.create_key(
            tenant=tenant, name=name, scopes=scopes, actor="tests", **more
        )
        keys[name] = credential.text
        return key.id

    async with administering(redis_url, api) as administration:
        for tenant in (OWNER, OTHER, "closed"):
            await administration.create_tenant(Tenant(name=tenant), actor="tests")
        for scope in Scope:
            await create(scope.value, OWNER, frozenset({scope}))
            await create(f"not {scope.value}", OWNER, frozenset(Scope) - {scope})
        await create("all", OWNER, frozenset(Scope))
        await create("other", OTHER, frozenset(Scope) - {Scope.ADMIN})
        await create("expired", OWNER, frozenset(Scope), expires=1)
        disabled = await create("disabled", OWNER, frozenset(Scope))
        await administration.change_key(disabled, lambda key: key.model_copy(update={"disabled": True}), actor="tests")
        await create("disabled tenant", "closed", frozenset(Scope))
        await administration.change_tenant(
            "closed", lambda tenant: tenant.model_copy(update={"disabled": True}), actor="tests"
        )
    return keys


def _credential(access: Access, state: str, scope: Scope) -> dict[str, str]:
    if state == "wrong scope":
        return access.header(f"not {scope.value}")
    text = STATES[state]
    if text is None:
        return {}
    return {"Authorization": text} if text.startswith("Bearer") else access.header(state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("route", SCOPED, ids=lambda route: route.operation)
def test_an_operation_refuses_every_other_credential_and_changes_nothing(
    route: ApiRoute, state: str, access: Access
) -> None:
    assert isinstance(route.scope, Scope)
    before = access.contents()

    response = access.send(route, _credential(access, state, route.scope))

    if state == "wrong scope":
        assert (response.status_code, slug(response)) == (403, "scope-missing")
        assert f'scope="{route.scope.value}"' in response.headers["www-authenticate"]
    else:
        assert (response.status_code, slug(response)) == (401, "credential-refused")
        assert response.headers["www-authenticate"].startswith('Bearer realm="darkroom"')
        assert ('error="invalid_token"' in response.headers["www-authenticate"]) == (state != "no credential")
    assert access.contents() == before


@pytest.mark.parametrize(
    "route",
    [route for route in SCOPED if "{id}" in route.template and route.scope is not Scope.ADMIN],
    ids=lambda route: route.operation,
)
def test_objects_of_another_tenant_do_not_exist(route: ApiRoute, access: Access) -> None:
    before = access.contents()

    response = access.send(route, access.header("other"))

    assert response.status_code == 404
    assert access.contents() == before


@pytest.mark.parametrize("state", [*STATES, "other tenant", "right"])
def test_an_artifact_without_a_link_needs_a_credential(state: str, access: Access) -> None:
    path = f"/artifacts/{OWNER}/{access.job_id}/1/0-{'1' * 64}.png"
    stored = access.api.store / path.removeprefix("/artifacts/")
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(b"picture")
    names = {"other tenant": "other", "right": "read"}
    headers = access.header(names[state]) if state in names else _credential(access, state, Scope.READ)

    response = access.api.client.get(path, headers=headers)

    status = {"wrong scope": 403, "other tenant": 404, "right": 200}.get(state, 401)
    assert response.status_code == status
    assert (response.content == b"picture") == (state == "right")


@pytest.mark.parametrize("route", SCOPED, ids=lambda route: route.operation)
def test_the_right_scope_alone_is_enough(route: ApiRoute, access: Access) -> None:
    assert isinstance(route.scope, Scope)

    is_stream = route.template.endswith("/events") and route.method == "GET"
    response = access.send(route, access.header(route.scope.value), method="HEAD" if is_stream else None)

    assert response.status_code not in {401, 403}, response.text


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("route", SOCKETS, ids=lambda route: route.path)
def test_a_socket_refuses_every_other_credential(route: SocketRoute, state: str, access: Access) -> None:
    assert isinstance(route.scope, Scope)

    with connect(_socket_url(route, access), additional_headers=_credential(access, state, route.scope)) as socket:
        refused = json.loads(socket.recv())
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()

    slug, code = ("scope-missing", 4403) if state == "wrong scope" else ("credential-refused", 4401)
    assert (refused["type"], refused["code"]) == ("error", slug)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


@pytest.mark.parametrize("route", SOCKETS, ids=lambda route: route.path)
def test_a_socket_shows_the_tenants_own_jobs_alone(route: SocketRoute, access: Access) -> None:
    is_stream = route.path == "/ws/events"
    access.job_id = access.api.submit(headers=access.header("submit"))
    url = _socket_url(route, access) + ("&since=0" if is_stream else "")
    with connect(url, additional_headers=access.header("read")) as socket:
        while access.job_id not in str(socket.recv(timeout=60)):
            pass
    with connect(url, additional_headers=access.header("other")) as socket:
        if is_stream:  # the other tenant has no job
            with pytest.raises(TimeoutError):
                socket.recv(timeout=1)
        else:
            refused = json.loads(socket.recv(timeout=60))
            assert (refused["type"], refused["code"]) == ("error", "not-found")


def _socket_url(route: SocketRoute, access: Access) -> str:
    path = route.path.replace("{job_id}", access.job_id)
    return f"{access.api.functions.ws_url}{path}?job_ids={access.job_id}"


@pytest.mark.parametrize("scheme", ["Bearer {}", "bearer  {}", "Token {}", "Key {}", "KEY {}"])
def test_a_key_has_three_schemes(scheme: str, access: Access) -> None:
    headers = {"Authorization": scheme.format(access.keys["read"])}

    assert access.api.get(JOBS + access.job_id, headers=headers).status_code == 200


def test_a_key_may_be_the_password_of_basic(access: Access) -> None:
    for user in ("", "anyone", "dk_"):
        pair = base64.b64encode(f"{user}:{access.keys['read']}".encode()).decode()
        response = access.api.get(JOBS + access.job_id, headers={"Authorization": f"Basic {pair}"})
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        pytest.param([("Authorization", "Bearer {}"), ("Authorization", "Bearer {}")], "", 400, id="two headers"),
        pytest.param([("Authorization", "Bearer {}")], "?key={}", 400, id="in the query too"),
        pytest.param([], "?key={}", 400, id="in the query"),
        pytest.param([], "?token={}&limit=1", 400, id="in another parameter"),
        pytest.param([("Authorization", "Digest {}")], "", 401, id="another scheme"),
        pytest.param([("Authorization", "{}")], "", 401, id="no scheme"),
        pytest.param([("Authorization", "Bearer")], "", 401, id="no key"),
        pytest.param([("Authorization", "Bearer {} {}")], "", 401, id="two keys"),
        pytest.param([("Authorization", "Basic {}")], "", 401, id="not base64"),
        pytest.param([("Authorization", "Basic Og==")], "", 401, id="an empty password"),
        pytest.param([("Authorization", "")], "", 401, id="empty"),
    ],
)
def test_a_key_in_a_wrong_place_is_refused_and_not_repeated(
    headers: list[tuple[str, str]], query: str, status: int, access: Access
) -> None:
    key = access.keys["read"]
    response = access.api.get(
        JOBS + access.job_id + query.format(key), headers=[(name, text.format(key, key)) for name, text in headers]
    )

    assert response.status_code == status
    assert key not in response.text


def test_public_routes_need_no_credential(access: Access) -> None:
    for path in ("/openapi.json", "/api/v1/models", "/.well-known/webhook-keys"):
        assert access.api.get(path).status_code == 200


def test_the_secret_of_a_key_is_stored_nowhere(access: Access, tmp_path: Path) -> None:
    everything = b"".join(value or b"" for value in access.contents().values())
    database = Path(access.api.functions.environment["DARKROOM_DATABASE_URL"].partition("///")[2])
    everything += b"".join(path.read_bytes() for path in database.parent.glob(database.name + "*"))
    everything += access.api.functions.log.read_bytes()
    for key in access.keys.values():
        assert key.encode() not in everything
        assert key.rpartition("_")[2].encode() not in everything


def test_every_route_declares_who_may_call_it() -> None:
    for each in routes.ROUTES.values():
        for route in each:
            assert isinstance(route, ApiRoute | SocketRoute)
            assert isinstance(route.scope, Scope | Open)
    assert len(SCOPED) > 30
    assert len(SOCKETS) == 3

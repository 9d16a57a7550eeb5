"""JWT bearer tokens at the doors of a process of functions, with an issuer on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.access.credentials import Credential
from darkroom.access.principals import Scope
from darkroom.access.records import Tenant
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.conftest import RedisServers
from tests.functions.administration import administering
from tests.functions.api import JOBS, Api, serving, slug
from tests.functions.test_settings import serve, variables
from tests.oidc_issuer import AUDIENCE, Issuer, serving_issuer
from tests.ports import free_port
from tests.redis_server import RedisKind
from tests.waiting import eventually


@dataclass
class Doors:
    """A process of functions that accepts the tokens of `issuer`, and a key of the tenant studio."""

    api: Api
    issuer: Issuer
    key: str

    def bearer(self, token: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {token or self.issuer.token()}"}


async def _studio(redis_url: str, api: Api) -> str:
    """The tenant studio with a key, and the tenant closed, which is disabled."""
    async with administering(redis_url, api) as administration:
        for tenant in (Tenant(name="studio"), Tenant(name="closed", disabled=True)):
            await administration.create_tenant(tenant, actor="tests")
        _, credential = await administration.create_key(
            tenant="studio", name="backend", scopes=frozenset({Scope.READ}), actor="tests"
        )
        return credential.text


@pytest.fixture(scope="module")
def doors(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    redis_url, folder = redis_servers(RedisKind.EMBEDDED).url, tmp_path_factory.mktemp("tokens")
    with serving_issuer() as issuer:
        settings: dict[str, Any] = {"DARKROOM_OIDC_ISSUER": issuer.url, "DARKROOM_OIDC_AUDIENCE": AUDIENCE}
        with serving(redis_url, f"t-{time.time_ns()}", folder, DARKROOM_AUTH="keys", **settings) as api:
            yield Doors(api, issuer, asyncio.run(_studio(redis_url, api)))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Token", "Key"])
def test_a_token_submits_and_reads_for_its_tenant(scheme: str, doors: Doors) -> None:
    job_id = doors.api.submit(headers={"Authorization": f"{scheme} {doors.issuer.token()}"})

    assert doors.api.get(JOBS + job_id, headers=doors.bearer(doors.key)).status_code == 200
    other = doors.api.get(JOBS + job_id, headers=doors.bearer(doors.issuer.token(tenant="agency")))
    assert (other.status_code, slug(other)) == (401, "credential-refused")


def test_the_scopes_of_a_token_limit_what_it_may_do(doors: Doors) -> None:
    token = doors.issuer.token(scope="darkroom:read admin darkroom:everything")
    refused = doors.api.post(JOBS, json={}, headers=doors.bearer(token))

    assert (refused.status_code, slug(refused)) == (403, "scope-missing")
    assert doors.api.get("/api/v1/keys", headers=doors.bearer(token)).status_code == 403
    assert doors.api.get(JOBS, headers=doors.bearer(token)).status_code == 200


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"aud": "another"}, "audience"),
        ({"exp": 1}, "has expired"),
        ({"tenant": "closed"}, "the tenant closed is disabled"),
        ({"tenant": None}, "names no tenant"),
    ],
)
def test_a_refused_token_is_explained_and_not_repeated(claims: dict[str, Any], said: str, doors: Doors) -> None:
    token = doors.issuer.token(**claims)

    response = doors.api.get(JOBS, headers=doors.bearer(token))

    assert (response.status_code, slug(response)) == (401, "credential-refused")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    assert said in response.json()["detail"]
    log = doors.api.functions.log.read_text()
    for part in token.split("."):
        assert part not in response.text
        assert part not in log


def test_two_credentials_are_refused(doors: Doors) -> None:
    token = doors.issuer.token()
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {doors.key}")]

    response = doors.api.get(JOBS, headers=headers)

    assert (response.status_code, slug(response)) == (400, "malformed-request")


@pytest.mark.parametrize("name", ["access_token", "token", "limit"])
def test_a_token_in_the_url_is_refused_beside_a_right_credential_too(name: str, doors: Doors) -> None:
    token = doors.issuer.token()

    response = doors.api.get(f"{JOBS}?{name}={token}", headers=doors.bearer(token))

    assert (response.status_code, slug(response)) == (400, "malformed-request")
    assert token not in response.text


def test_a_socket_ends_when_its_token_expires(doors: Doors) -> None:
    """The skew of 60 s is part of a token's life."""
    token = doors.issuer.token(exp=time.time() - 60 + 3)
    url = f"{doors.api.functions.ws_url}/ws/events"
    messages: list[dict[str, object]] = []

    def read(socket: ClientConnection) -> None:
        while True:
            messages.append(json.loads(socket.recv(timeout=60)))

    with connect(url, additional_headers=doors.bearer(token)) as socket, pytest.raises(ConnectionClosed) as closed:
        read(socket)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401
    assert (messages[-1]["code"], messages[-1]["detail"]) == ("credential-refused", "the credential has expired")


def test_an_event_stream_ends_when_its_token_expires(doors: Doors) -> None:
    headers = doors.bearer(doors.issuer.token(exp=time.time() - 60 + 3))
    with doors.api.client.stream("GET", "/api/v1/events", headers=headers) as response:
        assert response.status_code == 200
        response.read()  # it ends
    assert doors.api.get("/api/v1/events", headers=headers).status_code == 401


def test_while_the_issuer_is_down_keys_work_and_tokens_wait(redis_url: str, namespace: str, tmp_path: Path) -> None:
    """At start the process is healthy without the issuer, and accepts its tokens once it is there."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings: dict[str, Any] = {"DARKROOM_OIDC_ISSUER": url, "DARKROOM_OIDC_AUDIENCE": AUDIENCE}
    with serving(redis_url, namespace, tmp_path, DARKROOM_AUTH="keys", **settings) as api:
        key = asyncio.run(_studio(redis_url, api))
        with serving_issuer() as other:
            token = other.token(iss=url)
        response = api.get(JOBS, headers={"Authorization": f"Bearer {token}"})
        assert (response.status_code, slug(response)) == (503, "access-unavailable")
        assert url in response.json()["detail"]
        assert int(response.headers["retry-after"]) >= 1
        assert api.get(JOBS, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert api.client.get("/readyz").status_code == 200
        with serving_issuer(port) as issuer:
            token = issuer.token()
            eventually(
                lambda: api.get(JOBS, headers={"Authorization": f"Bearer {token}"}).status_code == 200,
                what="the issuer's keys, read in the background",
            )
        assert api.get(JOBS, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_without_an_issuer_a_token_is_refused(redis_url: str, namespace: str, tmp_path: Path) -> None:
    with serving(redis_url, namespace, tmp_path, DARKROOM_AUTH="keys") as api, serving_issuer() as issuer:
        response = api.get(JOBS, headers={"Authorization": f"Bearer {issuer.token()}"})

    assert (response.status_code, slug(response)) == (401, "credential-refused")
    assert "DARKROOM_OIDC_ISSUER" in response.json()["detail"]


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({"DARKROOM_OIDC_ISSUER": "http://login.example.org"}, "DARKROOM_OIDC_ISSUER='http://login.example.org'"),
        ({"DARKROOM_OIDC_ISSUER": "login"}, "DARKROOM_OIDC_ISSUER='login'"),
        ({"DARKROOM_OIDC_ISSUER": "https://login.example.org"}, "DARKROOM_OIDC_AUDIENCE"),
        ({"DARKROOM_OIDC_AUDIENCE": "darkroom"}, "DARKROOM_OIDC_AUDIENCE='darkroom'"),
        ({"DARKROOM_OIDC_CLOCK_SKEW_S": "-1"}, "DARKROOM_OIDC_CLOCK_SKEW_S='-1'"),
        ({"DARKROOM_OIDC_CLOCK_SKEW_S": "nan"}, "DARKROOM_OIDC_CLOCK_SKEW_S='nan'"),
        ({"DARKROOM_OIDC_TENANT_CLAIM": ""}, "DARKROOM_OIDC_TENANT_CLAIM=''"),
        ({"DARKROOM_OIDC_SCOPE_PREFIX": "a b"}, "DARKROOM_OIDC_SCOPE_PREFIX='a b'"),
        (
            {
                "DARKROOM_AUTH": "none",
                "DARKROOM_OIDC_ISSUER": "https://login.example.org",
                "DARKROOM_OIDC_AUDIENCE": "darkroom",
            },
            "DARKROOM_OIDC_ISSUER='https://login.example.org': needs DARKROOM_AUTH=keys",
        ),
    ],
)
def test_settings_that_do_not_fit_end_the_process(given: dict[str, str], variable: str, tmp_path: Path) -> None:
    ended = serve("all", environment=variables(tmp_path) | {"DARKROOM_AUTH": "keys"} | given)

    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert variable in line


def test_a_key_is_no_token(doors: Doors) -> None:
    response = httpx.get(
        doors.api.functions.url + JOBS, headers=doors.bearer(Credential.generate().text), trust_env=False
    )
    assert response.json()["detail"] == "the key is not valid"

"""Requests that name a foreign host, and web pages of foreign origins: refused, over HTTP and on sockets."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from darkroom.errors import SettingError
from darkroom.settings import load
from darkroom_functions.api import ALL
from darkroom_functions.http.origins import Policy
from darkroom_functions.settings import ServeSettings
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.conftest import RedisServers
from tests.functions.api import JOBS, TIMEOUT_S, Api, binary, serving, slug
from tests.parts import PUBLIC_URL
from tests.redis_server import RedisKind

EVIL = "https://evil.example"
PUBLIC_HOST = PUBLIC_URL.removeprefix("http://")
FOREIGN_HOSTS = ["evil.example", "127.0.0.1.evil.example", "192.168.1.5", "localhost.evil.example:8000", "[fe80::1]"]
OWN_HOSTS = ["localhost", "LOCALHOST:9", "a.localhost", "localhost.", "127.1.2.3", "[::1]:8000", PUBLIC_HOST]


@pytest.fixture(scope="module")
def listed(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Functions with an allow-list of hosts and one of origins."""
    with serving(
        redis_servers(RedisKind.EMBEDDED).url,
        f"t-{secrets.token_hex(8)}",
        tmp_path_factory.mktemp("listed"),
        DARKROOM_ALLOWED_HOSTS=".images.example, one.example",
        DARKROOM_ALLOWED_ORIGINS="https://App.example:443",
    ) as api:
        yield api


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/openapi.json", JOBS, "/api/v1/events", "/artifacts/a"])
def test_a_foreign_host_is_refused_on_loopback(api: Api, host: str, path: str) -> None:
    refused = api.client.get(path, headers={"Host": host})
    assert (refused.status_code, slug(refused)) == (421, "misdirected-request")


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_a_name_of_loopback_and_the_public_host_are_served(api: Api, host: str) -> None:
    assert api.client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://evil.example/healthz", "localhost", 421),
        ("HTTP://evil.example:80/healthz?x", "localhost", 421),
        ("http://localhost:8000/healthz", "evil.example", 200),
        ("http://a@localhost/healthz", "localhost", 400),
    ],
)
def test_a_target_with_a_host_counts_instead_of_the_header(api: Api, target: str, host: str, status: int) -> None:
    """RFC 9112, section 3.2.2."""
    with socket.create_connection(("127.0.0.1", api.functions.port), timeout=TIMEOUT_S) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        with client.makefile("rb") as answer:
            assert int(answer.readline().split()[1]) == status


def test_the_host_that_a_proxy_was_asked_for_counts_too(api: Api) -> None:
    for forwarded, status in (("localhost:8000", 200), ("evil.example", 421), ("localhost, evil.example", 421)):
        assert api.client.get("/healthz", headers={"X-Forwarded-Host": forwarded}).status_code == status, forwarded


def test_the_allow_list_of_hosts_is_served(listed: Api) -> None:
    for host, status in {
        "one.example": 200,
        "a.images.example:8": 200,
        "images.example": 421,
        "two.example": 421,
    }.items():
        assert listed.client.get("/healthz", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("host", "served"),
    [("10.1.2.3:8080", True), ("localhost", True), ("submit.darkroom", True), ("evil.example", False)],
)
def test_in_a_cluster_the_allow_list_decides_of_names_and_addresses_pass(host: str, served: bool) -> None:
    """kubelet and Prometheus ask a pod by its address, the queue-proxy by localhost."""
    given = {"host": "0.0.0.0", "allowed_hosts": "submit.darkroom"}
    assert Policy.of(ServeSettings.model_validate(given)).serves(host) is served
    assert Policy.of(ServeSettings.model_validate({"host": "0.0.0.0"})).serves(host)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("allowed_hosts", value) for value in ("http://a.example", "a.example:80", "*", "a b")),
        *(("allowed_origins", value) for value in ("*", "null", "app.example", "https://app.example/", "https://a@b")),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DARKROOM_{name.upper()}", value)
    with pytest.raises(SettingError, match=f"DARKROOM_{name.upper()}="):
        load(ServeSettings)


FOREIGN_PAGES: dict[str, dict[str, str]] = {
    "foreign": {"Origin": EVIL},
    "hidden": {"Origin": "null"},
    "another port": {"Origin": "http://localhost:3000"},
    "similar": {"Origin": "https://app.example.evil.example"},
    "two": {"Origin": "http://localhost", "origin": EVIL},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "image": {"Sec-Fetch-Site": "cross-site", "Referer": EVIL + "/page"},
    "broken referer": {"Sec-Fetch-Site": "cross-site", "Referer": "http://[::1"},
    "frame": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
}
"""Headers of a page of another origin, as browsers send them for each kind of request."""


def contents(api: Api) -> dict[bytes, bytes | None]:
    """Everything that Redis has under the prefix."""
    found = sorted(api.jobs.redis.scan_iter(f"{api.jobs.namespace}:*", count=1000))
    return {key: api.jobs.redis.dump(key) for key in found}


@pytest.mark.parametrize("page", FOREIGN_PAGES)
def test_without_keys_every_door_is_closed_to_pages_of_foreign_origins(api: Api, page: str) -> None:
    job_id = api.submit()
    before = contents(api)
    doors = [(route.method, route.template.replace("{id}", job_id).replace("{model}", "flux")) for route in ALL]
    for method, path in [*doors, ("GET", "/healthz"), ("GET", "/metrics"), ("POST", "/nowhere"), ("HEAD", JOBS)]:
        headers = {**FOREIGN_PAGES[page], "Content-Type": "text/plain"}
        refused = api.client.request(method, path, headers=headers, content="{}" if method != "GET" else None)
        assert refused.status_code == 403, path
        assert method == "HEAD" or slug(refused) == "foreign-origin"
        assert "access-control-allow-origin" not in refused.headers
    assert contents(api) == before


def test_a_link_from_a_foreign_page_is_followed(api: Api) -> None:
    """The browser shows what it leads to, and the page with the link cannot read that."""
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert api.client.get("/openapi.json", headers=link).status_code == 200
    assert api.client.post("/flux", headers=link).status_code == 403


@pytest.mark.parametrize("host", FOREIGN_HOSTS[:2])
def test_without_keys_every_door_is_closed_to_names_that_lead_here(api: Api, host: str) -> None:
    """DNS rebinding: to the browser, the page and darkroom are of the same origin."""
    before = contents(api)
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for route in ALL:
        refused = api.client.request(route.method, route.template, headers=headers)
        assert (refused.status_code, slug(refused)) == (421, "misdirected-request"), route.label
    assert contents(api) == before


@pytest.mark.parametrize("path", ["/ws/events?since=0", "/ws/jobs/any", "/ws/jobs?job_ids=any"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": EVIL}, 403), ({"Origin": "null"}, 403), ({"Host": "evil.example"}, 421)],
    ids=["origin", "null", "host"],
)
async def test_a_socket_of_a_foreign_page_is_refused(api: Api, path: str, headers: dict[str, str], status: int) -> None:
    url = api.functions.ws_url + path
    if "Host" in headers:
        url = url.replace("127.0.0.1", headers["Host"])
    origin: Any = headers.get("Origin")
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, proxy=None, origin=origin, host="127.0.0.1", port=api.functions.port):
            pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body or b"")["status"] == status


async def test_our_own_origin_and_clients_that_send_none_are_served(api: Api) -> None:
    own = api.functions.url
    job_id = api.submit(headers={"Origin": own, "Sec-Fetch-Site": "same-origin"})
    assert api.client.post("/flux", headers={"Origin": PUBLIC_URL}).status_code == 202
    forwarded = {"Origin": "http://localhost:8000", "X-Forwarded-Host": "localhost:8000"}
    assert api.client.post("/flux", headers=forwarded).status_code == 202
    event = api.client.post("/", headers=binary(secrets.token_hex(8)), content='{"prompt": "x"}')
    assert event.status_code == 202, event.text
    for origin in (own, None):
        async with connect(f"{api.functions.ws_url}/ws/jobs/{job_id}", proxy=None, origin=origin) as ws:  # type: ignore[arg-type]
            assert json.loads(await ws.recv())["status"] == "pending"


def test_an_allowed_origin_gets_a_preflight_and_may_read(listed: Api) -> None:
    origin = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,idempotency-key"}
    preflight = listed.client.options("/flux", headers=origin | asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-credentials"] == "true"
    allowed = preflight.headers["access-control-allow-headers"].lower().split(", ")
    assert {*asked["Access-Control-Request-Headers"].split(","), "authorization", "last-event-id"} <= {*allowed}
    answered = listed.client.post("/flux", headers=origin, json={"prompt": "x"})
    assert answered.status_code == 202
    assert answered.headers["access-control-allow-origin"] == "https://app.example"
    exposed = answered.headers["access-control-expose-headers"].split(", ")
    assert {"Location", "ETag", "Retry-After", "RateLimit", "RateLimit-Policy"} <= {*exposed}
    assert "Origin" in listed.client.get("/openapi.json").headers["vary"]
    failed = listed.client.get(JOBS + "unknown", headers=origin)
    assert (failed.status_code, failed.headers["access-control-allow-origin"]) == (404, "https://app.example")


@pytest.mark.parametrize(
    ("origin", "method", "headers", "status"),
    [
        (EVIL, "POST", "content-type", 403),
        ("null", "GET", "authorization", 403),
        ("https://app.example", "TRACE", "content-type", 400),
        ("https://app.example", "POST", "x-anything", 400),
    ],
    ids=["foreign", "hidden", "another method", "another header"],
)
def test_a_preflight_of_anything_else_is_refused(
    listed: Api, origin: str, method: str, headers: str, status: int
) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    refused = listed.client.options("/flux", headers=asked)
    assert refused.status_code == status
    allowed = origin if status == 400 else None
    assert refused.headers.get("access-control-allow-origin") == allowed
    assert "Origin" in refused.headers["vary"]


def test_by_default_no_origin_is_allowed(api: Api) -> None:
    own = {"Origin": PUBLIC_URL, "Access-Control-Request-Method": "POST"}
    assert api.client.options("/flux", headers=own).status_code == 405
    served = api.client.get("/openapi.json", headers={"Origin": PUBLIC_URL})
    assert served.status_code == 200
    assert not [name for name in served.headers if name.startswith("access-control")]

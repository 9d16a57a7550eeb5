"""Tickets and sessions as credentials: every operation and every socket, and how browsers are held to their own origin.

Those of keys themselves are in `test_access.py`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from darkroom.access.principals import Scope
from darkroom.access.records import Tenant
from darkroom_functions.api import ALL
from darkroom_functions.http.access import Open
from darkroom_functions.http.credentials.cookies import PLAIN_NAME, SECURE_NAME
from darkroom_functions.http.responses import EVENT_REFUSED
from darkroom_functions.http.routes import ApiRoute, SocketRoute
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.conftest import RedisServers
from tests.functions.administration import administering
from tests.functions.api import JOBS, Api, serving, slug
from tests.functions.test_access import OTHER, OWNER, SCOPED, SOCKETS, Access
from tests.functions.test_jobs import PICTURE
from tests.redis_server import RedisKind
from tests.waiting import eventually

SESSION, TICKETS = "/api/v1/session", "/api/v1/tickets"
EVIL = "https://evil.example"

ENDS_WITHIN_S = 25.0
"""An open connection ends within 10 s of its credential, on a machine that is not busy."""

BY_TICKET = [route for route in ALL if route.takes_ticket]


class Browser(Access):
    """The same process, and sessions by the name of their key."""

    redis_url: str
    sessions: dict[str, str]

    def cookie(self, name: str) -> dict[str, str]:
        return {"Cookie": f"{PLAIN_NAME}={self.sessions[name]}"}

    def open_session(self, name: str) -> str:
        response = self.api.post(SESSION, headers=self.header(name))
        assert response.status_code == 201
        text = cookies(response)[PLAIN_NAME].value
        self.sessions[name] = text
        return text

    def ticket(self, headers: dict[str, str]) -> str:
        response = self.api.post(TICKETS, headers=headers)
        assert response.status_code == 201
        text: str = response.json()["ticket"]
        return text

    def with_ticket(self, route: ApiRoute, ticket: str) -> httpx.Response:
        """A request to a route with a ticket. That for a stream ends with the headers."""
        path = route.template.replace("{id}", self.job_id).replace("{key}", f"{OWNER}/unknown.png")
        method = "HEAD" if route.takes_ticket else route.method
        return self.api.client.request(method, path, params={"ticket": ticket})

    async def change_key(self, name: str, **fields: Any) -> None:
        async with administering(self.redis_url, self.api) as administration:
            (key,) = [key for key in await administration.store.keys() if key.name == name]
            await administration.change_key(key.id, lambda key: key.model_copy(update=fields), actor="tests")

    async def change_tenant(self, name: str, **fields: Any) -> None:
        async with administering(self.redis_url, self.api) as administration:
            await administration.change_tenant(name, lambda tenant: tenant.model_copy(update=fields), actor="tests")

    async def create(self, name: str, tenant: str, scopes: frozenset[Scope], **more: Any) -> None:
        async with administering(self.redis_url, self.api) as administration:
            if await administration.store.tenant(tenant) is None:
                await administration.create_tenant(Tenant(name=tenant), actor="tests")
            _, credential = await administration.create_key(
                tenant=tenant, name=name, scopes=scopes, actor="tests", **more
            )
            self.keys[name] = credential.text


def cookies(response: httpx.Response) -> SimpleCookie:
    found = SimpleCookie()
    for value in response.headers.get_list("set-cookie"):
        found.load(value)
    return found


STATES = ("unknown", "logged out", "wrong scope", "disabled", "disabled tenant")
"""Sessions that permit nothing."""


@pytest.fixture(scope="module")
def browser(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    redis_url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    with serving(redis_url, namespace, tmp_path_factory.mktemp("functions"), DARKROOM_AUTH="keys") as api:
        api.client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # the tests send their own
        browser = Browser(api, {})
        browser.redis_url, browser.sessions = redis_url, {}
        asyncio.run(_prepare(browser))
        yield browser


async def _prepare(browser: Browser) -> None:
    for scope in Scope:
        await browser.create(scope.value, OWNER, frozenset({scope}))
        await browser.create(f"not {scope.value}", OWNER, frozenset(Scope) - {scope})
    await browser.create("other", OTHER, frozenset(Scope) - {Scope.ADMIN})
    await browser.create("disabled", OWNER, frozenset(Scope))
    await browser.create("disabled tenant", "closed", frozenset(Scope))
    await browser.create("logged out", OWNER, frozenset(Scope))
    for name in browser.keys:
        browser.open_session(name)
    browser.sessions["unknown"] = "ds_" + "A" * 43
    assert browser.api.request("DELETE", SESSION, headers=browser.cookie("logged out")).status_code == 204
    await browser.change_key("disabled", disabled=True)
    await browser.change_tenant("closed", disabled=True)
    browser.job_id = browser.api.submit(headers=browser.header("submit"))


# -- sessions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("route", SCOPED, ids=lambda route: route.operation)
def test_an_operation_refuses_every_other_session_and_changes_nothing(
    route: ApiRoute, state: str, browser: Browser
) -> None:
    assert isinstance(route.scope, Scope)
    before = browser.contents()

    response = browser.send(route, browser.cookie(f"not {route.scope.value}" if state == "wrong scope" else state))

    refused = (403, "scope-missing") if state == "wrong scope" else (401, "credential-refused")
    assert (response.status_code, slug(response)) == refused
    assert browser.contents() == before


@pytest.mark.parametrize("route", SCOPED, ids=lambda route: route.operation)
def test_a_session_with_the_right_scope_is_enough(route: ApiRoute, browser: Browser) -> None:
    assert isinstance(route.scope, Scope)
    is_stream = route.takes_ticket
    own = {"Origin": browser.api.functions.url, "Sec-Fetch-Site": "same-origin"}

    response = browser.send(route, browser.cookie(route.scope.value) | own, method="HEAD" if is_stream else None)

    assert response.status_code not in {401, 403}, response.text


@pytest.mark.parametrize(
    "foreign",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Referer": "http://localhost:3000/"},
    ],
    ids=lambda headers: "-".join(headers.values()),
)
def test_a_session_changes_nothing_for_a_page_of_a_foreign_origin(foreign: dict[str, str], browser: Browser) -> None:
    before = browser.contents()
    for route in ALL:
        if route.method == "GET" or route.scope is Open.INTERNAL:
            continue
        headers = browser.cookie("manage") | foreign
        refused = browser.api.client.request(route.method, route.template, headers=headers, json={})
        assert (refused.status_code, slug(refused)) == (403, "foreign-origin"), route.label
    assert browser.contents() == before
    assert browser.api.get(SESSION, headers=browser.cookie("manage")).status_code == 200


def test_a_header_is_no_business_of_the_origin_and_counts_instead_of_the_cookie(browser: Browser) -> None:
    """A page must know the key to send it. The password of Basic is stored by browsers, which send it by themselves."""
    headers = browser.header("read") | browser.cookie("other") | {"Origin": EVIL}
    assert browser.api.get(JOBS + browser.job_id, headers=headers).status_code == 200
    assert browser.api.get(SESSION, headers=headers).json()["credential"] == "key"
    assert browser.api.post(TICKETS, headers=headers).status_code == 201
    wrong = {"Authorization": "Bearer dk_wrong"} | browser.cookie("read")
    assert browser.api.get(JOBS + browser.job_id, headers=wrong).status_code == 401
    basic = httpx.BasicAuth("any", browser.keys["read"])
    refused = browser.api.client.post(TICKETS, auth=basic, headers={"Origin": EVIL})
    assert (refused.status_code, slug(refused)) == (403, "foreign-origin")
    assert browser.api.client.post(TICKETS, auth=basic).status_code == 201


@pytest.mark.parametrize(
    ("headers", "name", "secure"),
    [
        ({}, PLAIN_NAME, False),
        ({"Host": "localhost:8000"}, PLAIN_NAME, False),
        ({"Host": "images.example"}, SECURE_NAME, True),
        ({"X-Forwarded-Host": "images.example"}, SECURE_NAME, True),
        ({"X-Forwarded-Proto": "https"}, SECURE_NAME, True),
    ],
    ids=["loopback", "localhost", "another host", "behind a proxy", "https"],
)
def test_the_cookie_is_for_this_host_and_no_script(
    headers: dict[str, str], name: str, secure: bool, browser: Browser
) -> None:
    response = browser.api.client.post(SESSION, headers=browser.header("read") | headers)

    assert response.status_code == 201
    (cookie,) = cookies(response).values()
    assert (cookie.key, bool(cookie["secure"])) == (name, secure)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["domain"]) == (True, "strict", "/", "")
    assert 0 < int(cookie["max-age"]) <= 12 * 3600
    assert response.headers["cache-control"] == "no-store"
    assert cookie.value not in response.text
    other = SECURE_NAME if name == PLAIN_NAME else PLAIN_NAME
    for sent, status in ((name, 200), (other, 401)):
        asked = browser.api.client.get(SESSION, headers=headers | {"Cookie": f"{sent}={cookie.value}"})
        assert asked.status_code == status


def test_a_session_reports_who_is_logged_in_and_no_secret(browser: Browser) -> None:
    browser.open_session("read")
    view = browser.api.get(SESSION, headers=browser.cookie("read")).json()

    assert view["tenant"] == OWNER
    assert view["actor"] in browser.keys["read"]
    assert (view["credential"], view["scopes"], view["models"]) == ("session", ["read"], [])
    assert browser.keys["read"] not in json.dumps(view)
    assert browser.api.get(SESSION).status_code == 401


def test_a_session_is_opened_by_a_key_alone_and_replaces_that_of_the_cookie(browser: Browser) -> None:
    first = browser.open_session("read")
    again = browser.api.post(SESSION, headers=browser.cookie("read"))
    assert (again.status_code, "set-cookie" in again.headers) == (401, False)

    second = browser.api.post(SESSION, headers=browser.header("read") | {"Cookie": f"{PLAIN_NAME}={first}"})

    assert second.status_code == 201
    assert browser.api.get(SESSION, headers={"Cookie": f"{PLAIN_NAME}={first}"}).status_code == 401
    browser.open_session("read")


def test_logging_out_ends_the_session_and_deletes_the_cookie(browser: Browser) -> None:
    browser.open_session("read")
    for _ in range(2):
        response = browser.api.request("DELETE", SESSION, headers=browser.cookie("read"))
        assert response.status_code == 204
        assert cookies(response)[PLAIN_NAME]["max-age"] == "0"
        assert browser.api.get(SESSION, headers=browser.cookie("read")).status_code == 401
    browser.open_session("read")


# -- tickets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [*SCOPED, *BY_TICKET[-1:]], ids=lambda route: route.operation)
def test_a_ticket_is_accepted_in_the_url_of_what_browsers_send_without_headers(
    route: ApiRoute, browser: Browser
) -> None:
    ticket, before = browser.ticket(browser.header("read")), browser.contents()

    first, second = browser.with_ticket(route, ticket), browser.with_ticket(route, ticket)

    if route.takes_ticket:
        assert first.status_code in {200, 204, 404}
        assert second.status_code == 401
    else:
        assert {first.status_code, second.status_code} == {EVENT_REFUSED if route.takes_events else 400}
        assert browser.api.client.head("/api/v1/events", params={"ticket": ticket}).status_code == 200
    assert browser.contents() == before


def test_the_operations_that_take_a_ticket_are_streams_and_artifacts() -> None:
    assert {route.operation for route in BY_TICKET} == {"followJob", "followTenant", "readArtifact"}


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("ticket={0}&ticket={0}", False, 400),
        ("ticket={0}", True, 400),
        ("ticket=", False, 401),
        ("ticket=dt_unknown", False, 401),
        ("Ticket={0}", False, 401),
    ],
    ids=["two", "with a header", "empty", "unknown", "another name"],
)
def test_a_ticket_is_sent_alone_and_once(query: str, headers: bool, status: int, browser: Browser) -> None:
    ticket = browser.ticket(browser.header("read"))
    path = "/api/v1/events?" + query.format(ticket)
    response = browser.api.client.head(path, headers=browser.header("read") if headers else {})
    assert response.status_code == status
    assert browser.api.client.head("/api/v1/events", params={"ticket": ticket}).status_code == 200


def test_a_ticket_neither_submits_nor_issues_another(browser: Browser) -> None:
    ticket = browser.ticket(browser.header("read"))
    for method, path in (("POST", TICKETS), ("POST", SESSION), ("GET", SESSION), ("POST", "/flux")):
        refused = browser.api.client.request(method, path, params={"ticket": ticket})
        assert refused.status_code in {400, 401}, path
        refused = browser.api.client.request(method, path, headers={"Authorization": f"Bearer {ticket}"})
        assert refused.status_code == 401, path


def test_a_session_gets_tickets(browser: Browser) -> None:
    ticket = browser.ticket(browser.cookie("read"))
    assert browser.api.client.head("/api/v1/events", params={"ticket": ticket}).status_code == 200


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_an_artifact_is_read_by_its_tenant_with_each_credential(browser: Browser) -> None:
    key = f"{OWNER}/{browser.job_id}/1/0-{'1' * 64}.png"
    path = browser.api.store / key
    path.parent.mkdir(parents=True)
    path.write_bytes(PICTURE)
    url = f"/artifacts/{key}"

    assert browser.api.get(url).status_code == 401
    for headers in (browser.header("read"), browser.cookie("read")):
        assert browser.api.get(url, headers=headers).content == PICTURE
    by_ticket = browser.api.get(url, params={"ticket": browser.ticket(browser.header("read"))})
    assert by_ticket.content == PICTURE
    for headers in (browser.header("other"), browser.cookie("other")):
        assert browser.api.get(url, headers=headers).status_code == 404
    other = browser.api.get(url, params={"ticket": browser.ticket(browser.header("other"))})
    assert other.status_code == 404
    assert browser.api.get(url, headers=browser.header("submit")).status_code == 403


# -- sockets -----------------------------------------------------------------------------------------------------------


def socket_url(route: SocketRoute, browser: Browser, ticket: str | None = None) -> str:
    path = route.path.replace("{job_id}", browser.job_id)
    query = {"/ws/jobs": {"job_ids": browser.job_id}, "/ws/events": {"since": "0"}}.get(route.path, {})
    if ticket is not None:
        query["ticket"] = ticket
    return f"{browser.api.functions.ws_url}{path}?{urlencode(query)}"


def first_message(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(socket.recv(timeout=60))
    return message


def closed_with(socket: ClientConnection, *, within_s: float = 60) -> tuple[str, int]:
    """The code of the last message, and that of the close."""
    last, deadline = "", time.monotonic() + within_s
    with suppress(ConnectionClosed):
        while True:
            last = str(json.loads(socket.recv(timeout=deadline - time.monotonic())).get("code"))
    assert socket.close_code is not None
    return last, socket.close_code


@pytest.mark.parametrize("route", SOCKETS, ids=lambda route: route.path)
def test_a_socket_takes_a_ticket_once(route: SocketRoute, browser: Browser) -> None:
    url = socket_url(route, browser, browser.ticket(browser.header("read")))
    with connect(url) as socket:
        assert first_message(socket).get("type") != "error"
    with connect(url) as socket:
        assert closed_with(socket) == ("credential-refused", 4401)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("route", SOCKETS, ids=lambda route: route.path)
def test_a_socket_refuses_every_other_session(route: SocketRoute, state: str, browser: Browser) -> None:
    headers = browser.cookie("not read" if state == "wrong scope" else state)
    with connect(socket_url(route, browser), additional_headers=headers) as socket:
        expected = ("scope-missing", 4403) if state == "wrong scope" else ("credential-refused", 4401)
        assert closed_with(socket) == expected


@pytest.mark.parametrize("route", SOCKETS, ids=lambda route: route.path)
def test_a_socket_takes_a_session_for_pages_of_its_own_origin_alone(route: SocketRoute, browser: Browser) -> None:
    url, session = socket_url(route, browser), browser.cookie("read")
    own: Any = browser.api.functions.url
    foreign: Any = EVIL
    with connect(url, additional_headers=session, origin=own) as socket:
        assert first_message(socket).get("type") != "error"
    with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=session, origin=foreign):
        pass
    assert refused.value.response.status_code == 403
    with connect(socket_url(route, browser, browser.ticket(browser.header("read"))), origin=foreign) as socket:
        assert first_message(socket).get("type") != "error"  # a page must know a ticket


@pytest.mark.parametrize("query", ["key={}", "ticket={0}&ticket={0}"])
def test_a_socket_says_what_is_wrong_with_its_url(query: str, browser: Browser) -> None:
    with connect(f"{browser.api.functions.ws_url}/ws/events?{query.format(browser.keys['read'])}") as socket:
        assert closed_with(socket) == ("malformed-request", 4400)


# -- open connections --------------------------------------------------------------------------------------------------


def test_an_open_socket_ends_when_its_credential_expires(browser: Browser) -> None:
    expires = int(time.time() * 1000) + 8_000
    asyncio.run(browser.create(f"short {expires}", OWNER, frozenset({Scope.READ}), expires=expires))
    headers = browser.header(f"short {expires}")
    urls = [socket_url(SOCKETS[2], browser), socket_url(SOCKETS[2], browser, browser.ticket(headers))]
    with connect(urls[0], additional_headers=headers) as by_key, connect(urls[1]) as by_ticket:
        for socket in (by_key, by_ticket):
            assert closed_with(socket, within_s=ENDS_WITHIN_S) == ("credential-refused", 4401)
    assert time.time() * 1000 >= expires


@pytest.mark.parametrize("reason", ["key disabled", "tenant disabled", "logged out", "scope lost"])
def test_an_open_connection_ends_when_its_credential_does(reason: str, browser: Browser) -> None:
    name = tenant = reason.replace(" ", "-")
    asyncio.run(browser.create(name, tenant, frozenset({Scope.READ})))
    browser.open_session(name)
    ticket = browser.ticket(browser.header(name))
    url = browser.api.functions.ws_url + "/ws/events?since=0"
    stream_url = browser.api.functions.url + "/api/v1/events?since=0"
    with (
        connect(url, additional_headers=browser.cookie(name)) as by_session,
        connect(url, additional_headers=browser.header(name)) as by_key,
        connect(f"{url}&ticket={ticket}") as by_ticket,
        httpx.stream("GET", stream_url, headers=browser.cookie(name), timeout=ENDS_WITHIN_S) as stream,
    ):
        assert stream.status_code == 200
        ended = [by_session, by_key, by_ticket]
        match reason:
            case "key disabled":
                asyncio.run(browser.change_key(name, disabled=True))
            case "tenant disabled":
                asyncio.run(browser.change_tenant(tenant, disabled=True))
            case "scope lost":
                asyncio.run(browser.change_key(name, scopes=frozenset({Scope.SUBMIT})))
            case _:
                browser.api.request("DELETE", SESSION, headers=browser.cookie(name))
                ended = [by_session]
        expected = ("scope-missing", 4403) if reason == "scope lost" else ("credential-refused", 4401)
        for socket in ended:
            assert closed_with(socket, within_s=ENDS_WITHIN_S) == expected
        events = stream.read().decode()
        assert events.rstrip().splitlines()[-2] == "event: error"
        assert f'"code":"{expected[0]}"' in events


def test_a_session_of_a_key_that_was_disabled_stays_ended_when_it_is_enabled_again(browser: Browser) -> None:
    asyncio.run(browser.create("back", OWNER, frozenset({Scope.READ})))
    browser.open_session("back")
    asyncio.run(browser.change_key("back", disabled=True))
    eventually(lambda: browser.api.get(SESSION, headers=browser.header("back")).status_code == 401, what="the refusal")
    asyncio.run(browser.change_key("back", disabled=False))
    eventually(lambda: browser.api.get(SESSION, headers=browser.header("back")).status_code == 200, what="the return")

    assert browser.api.get(SESSION, headers=browser.cookie("back")).status_code == 401


def test_no_ticket_and_no_session_is_stored_or_logged(browser: Browser) -> None:
    ticket = browser.ticket(browser.header("read"))
    with connect(socket_url(SOCKETS[0], browser, ticket)):
        pass
    redis, namespace = browser.api.jobs.redis, browser.api.jobs.namespace
    everything = b"".join(key + (redis.dump(key) or b"") for key in redis.scan_iter(f"{namespace}:*", count=1000))
    everything += browser.api.functions.log.read_bytes()
    for text in (ticket, *browser.sessions.values()):
        assert text.encode() not in everything


# -- without keys ------------------------------------------------------------------------------------------------------


def test_without_keys_a_page_works_unchanged(api: Api) -> None:
    view = api.get(SESSION).json()
    assert (view["tenant"], view["credential"]) == ("default", "none")
    opened = api.post(SESSION)
    assert (opened.status_code, "set-cookie" in opened.headers) == (201, False)
    assert api.request("DELETE", SESSION).status_code == 204
    ticket = api.post(TICKETS).json()["ticket"]
    assert api.client.head("/api/v1/events", params={"ticket": ticket}).status_code == 200
    assert api.client.get(JOBS, params={"ticket": ticket}).status_code == 400

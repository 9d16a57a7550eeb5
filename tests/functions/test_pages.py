"""Pages of other origins in a real browser: without keys they can do nothing here, unless their origin is allowed."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
from darkroom.access.principals import DEFAULT_TENANT, Scope
from darkroom.access.records import Tenant

from tests.conftest import RedisServers
from tests.functions.administration import administering
from tests.functions.api import JOBS, Api, serving
from tests.functions.browser import Page, page_server, visit
from tests.functions.test_jobs import finished
from tests.parts import PUBLIC_URL
from tests.redis_server import RedisKind
from tests.waiting import eventually


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page whose origin is on the allow-list of `listed`."""
    with page_server() as page:
        yield page


@pytest.fixture(scope="module")
def listed(page: Page, redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(
        redis_servers(RedisKind.EMBEDDED).url,
        f"t-{secrets.token_hex(8)}",
        tmp_path_factory.mktemp("listed"),
        DARKROOM_ALLOWED_ORIGINS=page.url,
    ) as api:
        yield api


PAGE = Template("""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body><script>
const base = "$base", sockets = new URL(base || "/", location).href.replace("http", "ws").replace(/\\/$$/, "");
const outcome = {};
const attempt = async (name, act) => {
  try { outcome[name] = await act() } catch (error) { outcome[name] = "refused" }
};
const first = (source) => new Promise((done, fail) => {
  source.onmessage = () => done("read");
  source.onerror = fail;
});
const make = (name, members) => document.body.appendChild(Object.assign(document.createElement(name), members));
const shown = () => new Promise((done, fail) =>
  make("img", {onload: () => done("read"), onerror: fail, src: base + "$artifact"}));
const sent = (number) => new Promise((done) => {
  const frame = make("iframe", {name: "frame" + number});
  frame.onload = () => done("sent");
  make("form", {method: "POST", action: base + "/flux", target: frame.name}).submit();
});
(async () => {
  await attempt("submit", async () => (await fetch(base + "/flux", {method: "POST", body: '{"prompt": "x"}',
      headers: {"Content-Type": "application/json", "Idempotency-Key": "$key"}})).headers.get("location") && "read");
  await attempt("simple", async () => (await fetch(base + "/flux", {method: "POST"})).status);
  await attempt("text", async () => (await fetch(base + "/flux", {method: "POST", body: '{"prompt": "x"}'})).status);
  await attempt("blind", async () =>
      (await fetch(base + "/flux", {method: "POST", mode: "no-cors", credentials: "include"})).type);
  await attempt("event", async () =>
      (await fetch(base + "/events", {method: "POST", mode: "no-cors", body: "{}"})).type);
  await attempt("form", () => sent(1));
  await attempt("cancel", async () => (await fetch(base + "$job/cancel", {method: "POST"})).status);
  await attempt("list", async () => (await (await fetch(base + "$list")).json()).jobs && "read");
  await attempt("artifact", async () => (await (await fetch(base + "$artifact")).arrayBuffer()).byteLength);
  await attempt("image", shown);
  await attempt("socket", () => first(new WebSocket(sockets + "/ws/events?since=0")));
  await attempt("job's socket", () => first(new WebSocket(sockets + "/ws/jobs/$id")));
  await attempt("stream", () => first(new EventSource(base + "/api/v1/events?since=0")));
  await attempt("job's stream", () => first(new EventSource(base + "$job/events?since=0")));
  await fetch("/outcome", {method: "POST", body: JSON.stringify(outcome)});
})();
</script>""")

REFUSED = (
    *("submit", "simple", "text", "cancel", "list", "artifact", "image"),
    *("socket", "job's socket", "stream", "job's stream"),
)
"""What a page learns the outcome of. It learns nothing about "blind", "event" and "form"."""

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A picture of one pixel."""

LOGIN_HOST = "darkroom.localhost"

REBOUND = "rebound.example"
"""A name that the browser takes for this machine, as one does whose DNS server answers so."""


LOGIN = Template("""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body><script>
const outcome = {};
const attempt = async (name, act) => {
  try { outcome[name] = await act() } catch (error) { outcome[name] = "refused" }
};
const first = (source) => new Promise((done, fail) => {
  source.onmessage = () => done("read");
  source.onerror = fail;
});
const status = async (method, path, more) => (await fetch(path, {method, ...more})).status;
const key = {headers: {Authorization: "Bearer $key"}};
const sockets = location.origin.replace("http", "ws");
const shown = () => new Promise((done, fail) => document.body.appendChild(
  Object.assign(document.createElement("img"), {onload: () => done("read"), onerror: fail, src: "$artifact"})));
const ticket = async () => "ticket=" + (await (await fetch("/api/v1/tickets", {method: "POST", ...key})).json()).ticket;
(async () => {
  await attempt("before", () => status("GET", "/api/v1/session"));
  await attempt("by ticket", async () => first(new WebSocket(sockets + "/ws/events?since=0&" + await ticket())));
  await attempt("stream by ticket", async () => first(new EventSource("/api/v1/events?since=0&" + await ticket())));
  await attempt("login", () => status("POST", "/api/v1/session", key));
  await attempt("script", () => document.cookie);
  await attempt("submit", () => status("POST", "/flux"));
  await attempt("socket", () => first(new WebSocket(sockets + "/ws/events?since=0")));
  await attempt("stream", () => first(new EventSource("/api/v1/events?since=0")));
  await attempt("image", shown);
  if (location.hash) await new Promise((done) => Object.assign(document.body.appendChild(
    document.createElement("iframe")), {src: location.hash.slice(1), onload: () => setTimeout(done, 3000)}));
  await attempt("still", () => status("GET", "/api/v1/session"));
  await attempt("logout", () => status("DELETE", "/api/v1/session"));
  await attempt("after", () => status("GET", "/api/v1/session"));
  await fetch("/outcome", {method: "POST", body: JSON.stringify(outcome)});
})();
</script>""")
"""A page that logs in, with a foreign one in a frame meanwhile (the fragment of its URL)."""


def visited(
    page: Page, api: Api, folder: Path, *options: str, base: str | None = None, url: str | None = None
) -> dict[str, Any]:
    """The outcome of the requests that a page makes to these functions."""
    job = finished(api, PNG)
    page.html = PAGE.substitute(
        base=api.functions.url if base is None else base,
        key=secrets.token_hex(8),
        list=JOBS,
        job=JOBS + job["id"],
        id=job["id"],
        artifact=job["artifacts"][0]["url"].removeprefix(PUBLIC_URL),
    )
    return visit(page, url or page.url, folder, *options)


def count(api: Api) -> int:
    return len(api.get(JOBS, params={"limit": 100}).json()["jobs"])


def test_a_page_of_a_foreign_origin_can_do_nothing_in_a_browser(api: Api, page: Page, tmp_path: Path) -> None:
    before = count(api)

    outcome = visited(page, api, tmp_path)

    assert outcome == {**dict.fromkeys(REFUSED, "refused"), "blind": "opaque", "event": "opaque", "form": "sent"}
    assert count(api) == before + 1  # the test's own


def test_a_page_whose_name_was_made_to_lead_here_can_do_nothing_in_a_browser(
    api: Api, page: Page, tmp_path: Path
) -> None:
    """DNS rebinding: the page may read all responses, since they are of its own origin to the browser."""
    before = count(api)
    page.forward_to = api.functions.port
    rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"

    outcome = visited(page, api, tmp_path, rules, base="", url=f"http://{REBOUND}:{page.port}/")

    page.forward_to = None
    assert [outcome.pop(name) for name in ("simple", "text", "cancel")] == [421] * 3
    assert [outcome.pop(name) for name in ("blind", "event", "form")] == ["basic", "basic", "sent"]
    assert outcome.pop("artifact") < 500  # the problem, which is no picture
    assert {name: result for name, result in outcome.items() if result not in {"refused", None}} == {}
    assert count(api) == before + 1


def test_a_page_of_an_allowed_origin_can_do_everything_in_a_browser(listed: Api, page: Page, tmp_path: Path) -> None:
    before = count(listed)

    outcome = visited(page, listed, tmp_path)

    assert outcome == {
        **dict.fromkeys(REFUSED, "read"),
        "simple": 202,
        "text": 415,
        "blind": "opaque",
        "event": "opaque",
        "form": "sent",
        "cancel": 200,
        "artifact": len(PNG),
    }
    assert count(listed) == before + 5  # the test's own, "submit", "simple", "blind" and "form"


def test_a_page_logs_in_with_a_key_and_a_foreign_one_gets_nothing_from_its_session(
    redis_servers: RedisServers, page: Page, tmp_path: Path
) -> None:
    redis_url = redis_servers(RedisKind.EMBEDDED).url
    with (
        serving(redis_url, f"t-{secrets.token_hex(8)}", tmp_path, DARKROOM_AUTH="keys") as api,
        page_server() as own,
    ):
        key = asyncio.run(key_of_default(redis_url, api))
        job = finished(api, PNG, headers={"Authorization": f"Bearer {key}"})
        own.forward_to = api.functions.port
        own.html = LOGIN.substitute(key=key, artifact=job["artifacts"][0]["url"].removeprefix(PUBLIC_URL).split("?")[0])
        page.html = PAGE.substitute(
            base=f"http://{LOGIN_HOST}:{own.port}",
            key=secrets.token_hex(8),
            list=JOBS,
            job=JOBS + job["id"],
            id=job["id"],
            artifact="/artifacts/unknown",
        )
        page.outcome = {}

        # Another port is another origin, but the same site: the browser sends the cookie.
        foreign_url = f"http://{LOGIN_HOST}:{page.port}"
        outcome = visit(own, f"http://{LOGIN_HOST}:{own.port}/#{foreign_url}", tmp_path)

        assert outcome == {
            "before": 401,
            "by ticket": "read",
            "stream by ticket": "read",
            "login": 201,
            "script": "",
            "submit": 202,
            "socket": "read",
            "stream": "read",
            "image": "read",
            "still": 200,
            "logout": 204,
            "after": 401,
        }
        foreign = eventually(lambda: page.outcome, what="the outcome of the foreign page")
        assert foreign == {**dict.fromkeys(REFUSED, "refused"), "blind": "opaque", "event": "opaque", "form": "sent"}
        own_jobs = api.get(JOBS, headers={"Authorization": f"Bearer {key}"}).json()["jobs"]
        assert len(own_jobs) == 2


async def key_of_default(redis_url: str, api: Api) -> str:
    async with administering(redis_url, api) as administration:
        await administration.create_tenant(Tenant(name=DEFAULT_TENANT), actor="tests")
        _, credential = await administration.create_key(
            tenant=DEFAULT_TENANT, name="page", scopes=frozenset(Scope), actor="tests"
        )
    return credential.text

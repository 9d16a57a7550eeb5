"""Requests that name a foreign host, and web pages of foreign origins: refused, over HTTP and on sockets."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from typing import Any

import pytest
from darkroom.errors import SettingError
from darkroom.settings import load
from darkroom_functions.http.origins import Policy
from darkroom_functions.settings import ServeSettings
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.conftest import RedisServers
from tests.functions.api import JOBS, TIMEOUT_S, Api, binary, serving, slug
from tests.functions.test_jobs import PICTURE, finished
from tests.parts import PUBLIC_URL
from tests.redis_server import RedisKind
from tests.waiting import eventually

EVIL = "https://evil.example"
PUBLIC_HOST = PUBLIC_URL.removeprefix("http://")
PAGE_HOST = "page.localhost"
"""A name of loopback to every browser, and another site than 127.0.0.1."""

FOREIGN_HOSTS = ["evil.example", "127.0.0.1.evil.example", "192.168.1.5", "localhost.evil.example:8000", "[fe80::1]"]
OWN_HOSTS = ["localhost", "LOCALHOST:9", "a.localhost", "localhost.", "127.1.2.3", "[::1]:8000", PUBLIC_HOST]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page whose origin is on the allow-list of `listed`."""
    with page_server() as page:
        yield page


@pytest.fixture(scope="module")
def listed(page: Page, redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Functions with an allow-list of hosts and one of origins."""
    with serving(
        redis_servers(RedisKind.EMBEDDED).url,
        f"t-{secrets.token_hex(8)}",
        tmp_path_factory.mktemp("listed"),
        DARKROOM_ALLOWED_HOSTS=".images.example, one.example",
        DARKROOM_ALLOWED_ORIGINS=f"https://App.example:443,{page.url}",
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


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "https://app.example.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=lambda headers: "-".join(headers.values()),
)
def test_a_page_of_a_foreign_origin_changes_nothing(api: Api, headers: dict[str, str]) -> None:
    job_id = api.submit()
    requests = [
        ("POST", "/flux"),
        ("POST", JOBS),
        ("POST", "/"),
        ("POST", "/events"),
        ("POST", f"{JOBS}{job_id}/cancel"),
        ("DELETE", JOBS + job_id),
        ("PATCH", "/api/v1/subscriptions/any"),
        ("POST", "/nowhere"),
    ]
    for method, path in requests:
        refused = api.client.request(method, path, headers={**headers, "Content-Type": "text/plain"}, content="{}")
        assert (refused.status_code, slug(refused)) == (403, "foreign-origin"), path
    assert api.job(job_id)["state"] == "pending"
    asked = api.client.get(JOBS + job_id, headers=headers)
    assert asked.status_code == 200
    assert "access-control-allow-origin" not in asked.headers


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
    assert preflight.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    answered = listed.client.post("/flux", headers=origin, json={"prompt": "x"})
    assert answered.status_code == 202
    assert answered.headers["access-control-allow-origin"] == "https://app.example"
    assert "Origin" in listed.client.get("/openapi.json").headers["vary"]
    foreign = {"Origin": EVIL}
    refused = listed.client.options("/flux", headers=foreign | asked)
    assert (refused.status_code, slug(refused)) == (403, "foreign-origin")
    assert "access-control-allow-origin" not in listed.client.get("/openapi.json", headers=foreign).headers


# A page in a browser


PAGE = Template("""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script>
const base = "$base", sockets = base.replace("http", "ws"), outcome = {};
const attempt = async (name, act) => {
  try { outcome[name] = await act() } catch (error) { outcome[name] = "refused" }
};
const first = (source) => new Promise((done, fail) => {
  source.onmessage = () => done("read");
  source.onerror = fail;
});
(async () => {
  await attempt("submit", async () => (await fetch(base + "/flux", {method: "POST", body: '{"prompt": "x"}',
      headers: {"Content-Type": "application/json", "Idempotency-Key": "$key"}})).headers.get("location") && "read");
  await attempt("simple", async () => (await fetch(base + "/flux", {method: "POST"})).status);
  await attempt("blind", async () => (await fetch(base + "/flux", {method: "POST", mode: "no-cors"})).type);
  await attempt("list", async () => (await (await fetch(base + "$list")).json()).jobs && "read");
  await attempt("artifact", async () => (await (await fetch(base + "$artifact")).arrayBuffer()).byteLength);
  await attempt("socket", () => first(new WebSocket(sockets + "/ws/events?since=0")));
  await attempt("stream", () => first(new EventSource(base + "/api/v1/events?since=0")));
  await fetch("/outcome", {method: "POST", body: JSON.stringify(outcome)});
})();
</script>""")


class Page:
    """The server of a page of another origin; `outcome` is what the page reports."""

    def __init__(self) -> None:
        self.html = ""
        self.outcome: dict[str, Any] = {}
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(page.html.encode())

            def do_POST(self) -> None:
                page.outcome = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._answer(b"")

            def _answer(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{PAGE_HOST}:{self.server.server_port}"


@contextmanager
def page_server() -> Iterator[Page]:
    page = Page()
    thread = threading.Thread(target=page.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield page
    page.server.shutdown()
    page.server.server_close()
    thread.join()


def visited(page: Page, api: Api, folder: Path) -> dict[str, Any]:
    """The requests that a page can make to these functions in a real browser."""
    chromium = shutil.which("chromium")
    if chromium is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed")
    assert chromium, "chromium is not installed"
    link = finished(api, PICTURE)["artifacts"][0]["url"].removeprefix(PUBLIC_URL)
    page.outcome = {}
    page.html = PAGE.substitute(base=api.functions.url, key=secrets.token_hex(8), list=JOBS, artifact=link)
    with (folder / "chromium.log").open("wb") as log:
        browser = subprocess.Popen(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *(f"--user-data-dir={folder / 'profile'}", "--no-proxy-server", "--remote-debugging-port=0", page.url),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return eventually(lambda: page.outcome, what=f"the page's outcome; the browser's log is in {folder}")
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


def test_a_page_of_a_foreign_origin_can_do_nothing_in_a_browser(api: Api, page: Page, tmp_path: Path) -> None:
    before = len(api.get(JOBS, params={"limit": 100}).json()["jobs"])
    outcome = visited(page, api, tmp_path)
    assert outcome.pop("blind") == "opaque"  # whatever the answer was
    assert outcome == dict.fromkeys(("submit", "simple", "list", "artifact", "socket", "stream"), "refused")
    assert len(api.get(JOBS, params={"limit": 100}).json()["jobs"]) == before + 1  # the test's own


def test_a_page_of_an_allowed_origin_can_do_everything_in_a_browser(listed: Api, page: Page, tmp_path: Path) -> None:
    outcome = visited(page, listed, tmp_path)
    assert outcome == {
        **dict.fromkeys(("submit", "list", "socket", "stream"), "read"),
        "simple": 202,
        "blind": "opaque",
        "artifact": len(PICTURE),
    }

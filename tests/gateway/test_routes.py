"""One address for all functions: each request reaches the function that `darkroom_functions.api` names,
unchanged.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.jobs import new_job_id
from darkroom_functions import api
from darkroom_functions.http import bodies, responses, routes, semantics
from darkroom_functions.http.routes import ApiRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from tests.functions.api import slug
from tests.gateway.conftest import ALLOWED_ORIGIN, Front, Staged
from tests.gateway.running import FUNCTIONS, Gateway, StandIn, running, serving, spoken
from tests.ports import free_port
from tests.waiting import eventually

PARTS = {
    "id": "019aa000-0000-7000-8000-000000000000",
    "model": "flux",
    "delivery": "1.2.3",
    "key": "a/b/1/0-c.png",
    "name": "studio",
}

ODD = [
    ("GET", "/flux"),
    ("POST", "/unknown"),
    ("PUT", "/flux"),
    ("POST", "/a/b"),
    ("GET", "/"),
    ("GET", "/api/v1/generation-jobs"),
    ("POST", "/api/v1/generation-jobs"),
    ("GET", "/api/v1/undelivered-events/x/y"),
    ("GET", "/api/v1/undelivered-eventsx"),
    ("DELETE", "/api/v1/events/x"),
    ("GET", "/a//b"),
    ("POST", "/flux//"),
    ("GET", "/artifacts/a%2Fb/..%2f/c?expires=1&signature=%41"),
]
"""Paths at the edges of the table, and unknown ones."""

ONLY_ON_THE_INSIDE = tuple(
    path + slash for path in ("/events", "/events/undelivered", "/metrics") for slash in ("", "/")
)


def filled(template: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda name: PARTS[name[1]], template)


@pytest.fixture(scope="module")
def client(staged: Staged) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=staged.gateway.url, trust_env=False, timeout=60) as client:
        yield client


def problem(response: httpx.Response) -> dict[str, Any]:
    """The members of a problem of the gateway: in the functions' form, with the request's id."""
    assert response.headers["content-type"] == responses.PROBLEM_TYPE
    assert response.headers["x-request-id"]
    members: dict[str, Any] = response.json()
    assert members["status"] == response.status_code
    assert {"type", "title", "status", "detail"} <= members.keys()
    return members


@pytest.mark.parametrize(
    ("function", "route"),
    [
        pytest.param(function, route, id=route.operation)
        for function, listed in api.ROUTES.items()
        for route in listed
        if isinstance(route, ApiRoute) and route.operation
    ],
)
def test_each_operation_reaches_its_function(function: str, route: ApiRoute, client: httpx.Client) -> None:
    """With a slash at the end of its path and without one."""
    path = filled(route.template)
    other = path[:-1] if path.endswith("/") else path + "/"
    for form in (path, other) if path != "/" else (path,):
        said = client.request(route.method, form).json()
        assert (said["function"], said["method"], said["path"]) == (function, route.method, form)


@pytest.mark.parametrize(("method", "path"), ODD)
def test_a_request_of_no_route_reaches_the_function_that_serves_it_on_one_port(
    method: str, path: str, client: httpx.Client
) -> None:
    said = client.request(method, path).json()
    decoded = httpx.URL(f"http://x{path}").path
    assert said["function"] == api.function_of({"type": "http", "method": method, "path": semantics.canonical(decoded)})
    assert said["path"] == path


def test_a_head_request_is_forwarded_as_one(client: httpx.Client) -> None:
    response = client.head("/api/v1/models")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 0


def test_a_function_gets_its_own_host_name_and_the_address_of_the_client(staged: Staged, client: httpx.Client) -> None:
    """Knative distinguishes its services by the host name."""
    for path, name in (("/flux", "SUBMIT"), ("/", "SUBMIT"), ("/x/y", "JOBS")):
        sent = {"X-Forwarded-For": "192.0.2.1", "X-Tenant": "anna", "traceparent": "00-x", "Idempotency-Key": "k"}
        said = client.post(path, headers=sent, content=b'{"prompt": "x"}').json()
        headers = said["headers"]
        assert headers["host"] == staged.functions[name].place
        assert headers["x-forwarded-for"] == "192.0.2.1, 127.0.0.1"
        assert (headers["x-tenant"], headers["traceparent"], headers["idempotency-key"]) == ("anna", "00-x", "k")
        assert said["body"] == '{"prompt": "x"}'


def test_a_chunked_refusal_is_returned_complete(client: httpx.Client) -> None:
    """As from behind a proxy; the functions themselves send a Content-Length."""
    response = client.post("/sync/chunked", content=b"{}", headers={"X-Request-Id": "mine-2", "Prefer": "wait=1"})
    assert (response.status_code, response.headers["content-type"]) == (422, responses.PROBLEM_TYPE)
    assert (response.json()["path"], response.json()["body"]) == ("/chunked", "{}")
    headers = response.json()["headers"]
    assert (headers["x-request-id"], headers["x-forwarded-for"]) == ("mine-2", "127.0.0.1")
    assert "prefer" not in headers


def test_a_request_id_is_created_or_kept_returned_and_logged(staged: Staged, client: httpx.Client) -> None:
    kept = client.get("/api/v1/models", headers={"X-Request-Id": "mine-1"})
    assert kept.json()["headers"]["x-request-id"] == kept.headers["x-request-id"] == "mine-1"
    made = client.get("/api/v1/models?signature=hidden")
    assert made.json()["headers"]["x-request-id"] == made.headers["x-request-id"]
    strange = client.get("/api/v1/models", headers={"X-Request-Id": "x" * 129})
    for response in (made, strange):
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    line = staged.gateway.request_logged(made.headers["x-request-id"])
    assert (line["method"], line["path"], line["status"]) == ("GET", "/api/v1/models", 200)
    assert (line["function"], line["address"], line["part"]) == ("jobs", "127.0.0.1", "gateway")
    assert "hidden" not in staged.gateway.log.read_text()


@pytest.mark.parametrize("path", ONLY_ON_THE_INSIDE)
def test_an_internal_path_is_not_found(path: str, client: httpx.Client) -> None:
    for method in ("GET", "POST"):
        assert problem(client.request(method, path))["type"].endswith("/not-found")


def test_without_an_address_of_undelivered_its_paths_are_not_found(staged: Staged, tmp_path: Path) -> None:
    places = {name: each.place for name, each in staged.functions.items() if name != "UNDELIVERED"}
    with running(tmp_path / "gateway", places) as gateway:
        for path in (routes.UNDELIVERED, f"{routes.UNDELIVERED}/1/replay"):
            assert problem(httpx.get(gateway.url + path, trust_env=False))["status"] == 404


def test_the_former_name_of_an_address_is_read_with_a_warning(staged: Staged, tmp_path: Path) -> None:
    places = {name: each.place for name, each in staged.functions.items()}
    places["DEAD_LETTER"] = places.pop("UNDELIVERED")
    with running(tmp_path / "gateway", places) as gateway:
        assert httpx.get(gateway.url + routes.UNDELIVERED, trust_env=False).json()["function"] == "undelivered"
    (line,) = gateway.lines("setting_renamed")
    assert line["level"] == "warning"
    assert line["message"] == "DARKROOM_GATEWAY_DEAD_LETTER is deprecated: use DARKROOM_GATEWAY_UNDELIVERED"


def test_a_body_may_be_as_large_as_the_functions_accept(client: httpx.Client) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        for _ in range(size // 1024):
            yield b"x" * 1024

    limit = bodies.MAX_BODY_BYTES
    assert len(client.post("/flux", content=b"x" * limit).json()["body"]) == limit
    refused = [
        client.post(path, content=content)
        for path in ("/flux", "/sync/flux")
        for content in (b"x" * (limit + 1), chunks(limit + 1024))
    ]
    for response in refused:
        assert response.status_code == 413
        assert problem(response)["type"].endswith("/body-too-large")
        assert str(limit) in problem(response)["detail"]


@pytest.mark.parametrize(
    ("request_text", "status", "name"),
    [
        ("TRACE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405, "method-not-allowed"),
        ("GET /\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "malformed-request"),
        ("GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400, "malformed-request"),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 400, "malformed-request"),
        (f"GET / HTTP/1.1\r\nHost: localhost\r\nX: {'x' * 40_000}\r\n\r\n", 400, "malformed-request"),
        (f"GET /{'x' * 40_000} HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "request-line-too-long"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "malformed-request"),
    ],
    ids=["TRACE", "control character", "version", "no host", "large header", "long line", "encoding"],
)
def test_a_refusal_of_nginx_is_a_problem_too(request_text: str, status: int, name: str, staged: Staged) -> None:
    head, _, body = spoken(staged.gateway.port, request_text.encode()).decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert f"\r\nContent-Type: {responses.PROBLEM_TYPE}\r\n" in head
    members = json.loads(body)
    assert members["status"] == status
    assert members["type"].endswith(f"/{name}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/events"),
        ("TRACE", "/"),
        ("GET", f"/{'x' * 40_000}"),
        ("GET", "/sync/flux"),
        ("POST", "/sync/a/b"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    ],
    ids=lambda value: value[:20],
)
def test_responses_of_the_gateway_itself_are_not_cached_or_sniffed(
    method: str, path: str, client: httpx.Client
) -> None:
    are_headers_of_own(client.request(method, path))


def are_headers_of_own(response: httpx.Response) -> None:
    """Whether the headers that each response of a function has are present once."""
    assert response.headers.get_list("cache-control") == ["no-store"]
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]


def test_the_cache_headers_of_a_function_are_unchanged(front: Front) -> None:
    job = front.client.post("/flux", json={}).headers["location"]
    for path, rule in (
        (job, "private, no-cache"),
        (f"{job}x", "no-store"),
        (routes.TENANT_EVENTS, "no-store, no-transform"),
    ):
        response = front.client.head(path)
        assert response.headers.get_list("cache-control") == [rule]
        assert response.headers.get_list("x-content-type-options") == ["nosniff"]


def test_an_unavailable_or_silent_function_is_a_problem_with_retry_after(tmp_path: Path) -> None:
    with socket.socket() as full, socket.socket() as queued:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        silent = full.getsockname()
        queued.connect(silent)  # no process accepts: the next connection gets no response
        away = f"127.0.0.1:{free_port()}"
        places = {"SUBMIT": f"127.0.0.1:{silent[1]}", "JOBS": away, "RESULT": away}
        with running(tmp_path / "gateway", places) as gateway, httpx.Client(trust_env=False, timeout=60) as client:
            for path in ("/api/v1/models", "/ws/jobs/x", "/api/v1/events"):
                response = client.get(gateway.url + path)
                assert response.headers["retry-after"] == "1"
                are_headers_of_own(response)
                assert (problem(response)["status"], problem(response)["type"][-14:]) == (502, "/function-away")
            with ThreadPoolExecutor() as both:  # each takes the 5 s that a connection may
                late = list(both.map(lambda path: client.post(gateway.url + path), ("/flux", "/sync/flux")))
            for response in late:
                assert response.headers["retry-after"] == "1"
                are_headers_of_own(response)
                assert (problem(response)["status"], problem(response)["type"][-14:]) == (504, "/function-late")


def test_the_number_of_open_requests_is_limited(staged: Staged, tmp_path: Path) -> None:
    submit = staged.functions["SUBMIT"]
    submit.released.clear()
    places = {name: each.place for name, each in staged.functions.items()}
    limits = {"DARKROOM_GATEWAY_CONNECTIONS": "3", "DARKROOM_GATEWAY_CONNECTIONS_PER_ADDRESS": "2"}
    trusted = {"DARKROOM_GATEWAY_PROXIES": "127.0.0.0/8"}
    answered: list[int] = []

    def hold(gateway: Gateway, address: str) -> threading.Thread:
        def ask() -> None:
            headers = {"X-Forwarded-For": address}
            with httpx.Client(trust_env=False, timeout=60) as client:
                answered.append(client.post(f"{gateway.url}/hold", headers=headers).status_code)

        before = submit.held
        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: submit.held > before, what="the function to hold one more request")
        return thread

    def refused(gateway: Gateway, address: str) -> bool:
        response = httpx.get(f"{gateway.url}/api/v1/models", headers={"X-Forwarded-For": address}, trust_env=False)
        if response.status_code == 200:
            return False
        assert (problem(response)["status"], response.headers["retry-after"]) == (503, "1")
        return slug(response) == "too-many-connections"

    with running(tmp_path / "gateway", places, **limits, **trusted) as gateway:
        held = [hold(gateway, "192.0.2.1"), hold(gateway, "192.0.2.1")]
        assert refused(gateway, "192.0.2.1")  # as many as one address may have
        assert not refused(gateway, "192.0.2.2")
        held.append(hold(gateway, "192.0.2.2"))
        assert refused(gateway, "192.0.2.3")  # as many as there may be in all
        submit.released.set()
        for thread in held:
            thread.join(60)
        assert answered == [200, 200, 200]
        assert not refused(gateway, "192.0.2.1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_request_in_progress_is_answered_before_shutdown(
    number: signal.Signals, tmp_path: Path, staged: Staged
) -> None:
    submit = staged.functions["SUBMIT"]
    submit.released.clear()
    places = {name: each.place for name, each in staged.functions.items()}
    answered: list[int] = []
    with running(tmp_path / "gateway", places) as gateway:

        def ask() -> None:
            answered.append(httpx.post(f"{gateway.url}/hold", trust_env=False, timeout=60).status_code)

        before = submit.held
        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: submit.held > before, what="the function to hold the request")
        gateway.signal(number)
        eventually(lambda: _refuses(gateway), what="no more connections to be taken")
        assert gateway.process.poll() is None
        submit.released.set()
        thread.join(60)
        assert answered == [200]
        assert gateway.wait() == 0
        assert gateway.request_logged(gateway.lines("request")[-1]["request_id"])["status"] == 200


def _refuses(gateway: Gateway) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10):
            return False
    except OSError:
        return True


def test_an_address_that_sends_too_fast_is_refused_and_others_are_not(staged: Staged, tmp_path: Path) -> None:
    places = {name: each.place for name, each in staged.functions.items()}
    limits = {"DARKROOM_GATEWAY_RATE": "5", "DARKROOM_GATEWAY_PROXIES": "127.0.0.0/8"}
    with (
        running(tmp_path / "gateway", places, **limits) as gateway,
        httpx.Client(base_url=gateway.url, trust_env=False, timeout=60) as client,
    ):
        fast, slow = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        paths_of_all = ("/api/v1/models", "/sync/flux", "/api/v1/events")
        refused = eventually(
            lambda: [each for path in paths_of_all if (each := client.get(path, headers=fast)).status_code == 429],
            what="a refusal: fifteen requests are taken at once, and five a second",
        )
        for response in refused:
            assert (problem(response)["status"], response.headers["retry-after"]) == (429, "1")
            are_headers_of_own(response)
            assert slug(response) == "too-many-requests"
        assert client.get("/api/v1/models", headers=slow).status_code == 200


AWAY = (503, {"Retry-After": "1"})
KEY = {"Idempotency-Key": "any"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "failures"),
    [
        ("GET", "/api/v1/models", {}, [AWAY, (504, {})]),
        ("GET", "/artifacts/a", {}, [(0, {})]),
        ("HEAD", "/api/v1/generation-jobs/", {}, [(502, {})]),
        ("POST", "/", {"Ce-Id": "1"}, [(503, {}), (0, {})]),
        ("POST", "/flux", KEY, [(0, {}), AWAY]),
        ("POST", "/api/v1/generation-jobs/", KEY, [(503, {}), (503, {}), (503, {})]),
        ("POST", "/sync/chunked", KEY, [(0, {}), (504, {})]),
        ("POST", "/chunked", {**KEY, "Prefer": "wait=1"}, [AWAY]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_request_that_may_be_repeated_is_repeated_when_its_function_fails(
    method: str, path: str, headers: dict[str, str], failures: list[tuple[int, dict[str, str]]], staged: Staged
) -> None:
    """With its body; the client receives only the last response."""
    name = "JOBS" if method != "POST" else "SUBMIT"
    function = staged.functions[name]
    function.failures[:] = failures
    asked = function.asked
    content = None if method != "POST" else b"x" * 100_000
    with httpx.Client(base_url=staged.gateway.url, trust_env=False, timeout=60) as client:
        response = client.request(method, path, headers=headers, content=content)
    assert function.asked == asked + len(failures) + 1
    assert response.status_code == (422 if path.endswith("/chunked") else 200), response.text
    assert method == "HEAD" or response.json()["body"] == ("" if content is None else content.decode())


@pytest.mark.parametrize(
    ("method", "path", "headers", "failure"),
    [
        ("POST", "/flux", {}, AWAY),
        ("POST", "/sync/flux", {}, AWAY),
        ("POST", "/flux", {"Idempotency-Key": ""}, AWAY),
        ("POST", "/api/v1/generation-jobs/x/cancel", KEY, AWAY),
        ("DELETE", "/api/v1/generation-jobs/x", {}, AWAY),
        ("GET", "/api/v1/events", {}, AWAY),
        ("GET", "/api/v1/models", {}, (500, {})),
        ("GET", "/api/v1/models", {}, (429, {"Retry-After": "7"})),
        ("POST", "/flux", KEY, (429, {"Retry-After": "7"})),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_other_requests_are_not_repeated(
    method: str, path: str, headers: dict[str, str], failure: tuple[int, dict[str, str]], staged: Staged
) -> None:
    functions = staged.functions.values()
    for each in functions:
        each.failures[:] = [failure]
    asked = sum(each.asked for each in functions)
    with httpx.Client(base_url=staged.gateway.url, trust_env=False, timeout=60) as client:
        response = client.request(method, path, headers=headers)
    for each in functions:
        each.failures.clear()
    assert sum(each.asked for each in functions) == asked + 1
    assert (response.status_code, response.headers.get("retry-after")) == (failure[0], failure[1].get("Retry-After"))
    assert response.text == "fail"


@pytest.mark.parametrize("retry_after", ["1", "30"], ids=["for-a-while", "too-long"])
def test_the_response_of_a_function_that_keeps_failing_is_returned(
    retry_after: str, staged: Staged, tmp_path: Path
) -> None:
    """At once if it requests a longer pause than the gateway's limit."""
    places = {name: each.place for name, each in staged.functions.items()}
    jobs = staged.functions["JOBS"]
    jobs.failures[:] = [(503, {"Retry-After": retry_after})] * 20
    asked = jobs.asked
    with running(tmp_path / "gateway", places, DARKROOM_GATEWAY_RETRY_S="2") as gateway:
        response = httpx.get(f"{gateway.url}/api/v1/models", trust_env=False, timeout=60)
    jobs.failures.clear()
    assert (response.status_code, response.text, response.headers["retry-after"]) == (503, "fail", retry_after)
    assert jobs.asked - asked == (2 if retry_after == "30" else 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DARKROOM_GATEWAY_SUBMIT", ""),
        ("DARKROOM_GATEWAY_JOBS", "http://jobs"),
        ("DARKROOM_GATEWAY_WAIT_S", "5 minutes"),
        ("DARKROOM_GATEWAY_LOOK_UP_S", "0"),
        ("DARKROOM_GATEWAY_CANCEL", "perhaps"),
        ("DARKROOM_GATEWAY_PROXIES", "10.0.0.0/8,all"),
        ("DARKROOM_GATEWAY_CONNECTIONS_PER_ADDRESS", "2000"),
        ("DARKROOM_GATEWAY_RATE", "many"),
        ("DARKROOM_GATEWAY_RETRY_S", "-1"),
    ],
)
def test_an_invalid_setting_is_one_line_and_status_2(name: str, value: str, tmp_path: Path) -> None:
    places = {f"DARKROOM_GATEWAY_{each}": "127.0.0.1:1" for each in ("SUBMIT", "JOBS", "RESULT")}
    gateway = Gateway(tmp_path, {**places, name: value})
    gateway.launch()
    assert gateway.wait() == 2
    (line,) = gateway.lines("bad_setting")
    assert name in line["message"]


def test_names_are_resolved_again_and_requests_in_progress_are_answered(tmp_path: Path) -> None:
    """By a resolver of the test; without an answer of it, the last addresses stay."""
    known, asked, resolver = (tmp_path / name for name in ("known", "asked", "getent"))
    resolver.write_text(f'#!/bin/sh\necho "$2" >>{asked}\ncat {known}\n')
    resolver.chmod(0o755)
    known.write_text("127.0.0.1 STREAM\n")

    def look_ups() -> int:
        return asked.read_text().count("undelivered")

    old = StandIn("old")
    new = StandIn("new", address="127.0.0.2", port=old.server.server_port)
    names = {name: f"{name.lower().replace('_', '-')}.test:{old.server.server_port}" for name in FUNCTIONS}
    more = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "DARKROOM_GATEWAY_LOOK_UP_S": "1"}
    with (
        serving(old, new),
        running(tmp_path / "gateway", names, **more) as gateway,
        ThreadPoolExecutor() as pool,
        httpx.Client(base_url=gateway.url, trust_env=False, timeout=60) as client,
    ):

        def function() -> str:
            found: str = client.get("/api/v1/models").json()["function"]
            return found

        assert function() == "old"
        held = pool.submit(httpx.post, f"{gateway.url}/hold", trust_env=False, timeout=60)
        eventually(lambda: old.held, what="the function to hold the request")
        known.write_text("127.0.0.2 STREAM\n127.0.0.3 STREAM\n")
        eventually(lambda: function() == "new", what="the new address to be asked")
        old.released.set()
        assert (held.result().status_code, held.result().json()["function"]) == (200, "old")

        for answer in ("127.0.0.3 STREAM\n127.0.0.2 STREAM\n", ""):
            known.write_text(answer)
            before = look_ups()
            eventually(lambda before=before: look_ups() >= before + 2, what="the names to be looked up")  # type: ignore[misc]
            assert function() == "new"
        assert len(gateway.lines("new_addresses")) == 1
        assert gateway.stop() == 0


def test_a_port_in_use_is_reported_and_stops_the_gateway(staged: Staged, tmp_path: Path) -> None:
    places = {f"DARKROOM_GATEWAY_{name}": each.place for name, each in staged.functions.items()}
    gateway = Gateway(tmp_path, {**places, "DARKROOM_GATEWAY_PORT": str(staged.gateway.port)})
    gateway.launch()
    assert gateway.wait() == 1
    assert any("Address already in use" in line["message"] for line in gateway.lines("nginx"))


def test_a_socket_and_an_event_stream_send_each_update_at_once(front: Front) -> None:
    from websockets.sync.client import connect

    job_id = front.api.jobs.submit()
    events = front.client.stream("GET", f"{routes.JOBS}{job_id}/events")
    with connect(f"{front.gateway.ws_url}/ws/jobs/{job_id}", proxy=None) as follower, events as stream:
        assert json.loads(follower.recv(timeout=60))["status"] == "pending"
        lines = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
        assert next(lines)["status"] == "pending"
        follower.send('{"type": "ping"}')
        assert json.loads(follower.recv(timeout=60)) == {"type": "pong"}
        front.api.jobs.start(job_id)
        assert json.loads(follower.recv(timeout=60))["status"] == next(lines)["status"] == "started"
        front.api.jobs.complete(job_id)
        assert json.loads(follower.recv(timeout=60))["status"] == next(lines)["status"] == "completed"


def test_a_socket_that_the_function_refuses_is_refused(front: Front) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with pytest.raises(InvalidStatus) as refused:
        connect(f"{front.gateway.ws_url}/ws/nothing/{new_job_id(0)}", proxy=None)
    assert refused.value.response.status_code == 404
    assert b"problems/not-found" in bytes(refused.value.response.body or b"")


@pytest.mark.parametrize("path", ["/flux", "/sync/flux", "/api/v1/generation-jobs/"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null", "Prefer": "wait=1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
    ids=["host", "origin", "null", "site"],
)
def test_a_foreign_host_and_a_foreign_page_are_refused(
    path: str, headers: dict[str, str], status: int, front: Front
) -> None:
    """By the functions, to which the gateway forwards the requested host."""
    assert front.client.post(path, headers=headers, json={}).status_code == status


async def test_a_socket_of_a_foreign_page_is_refused(front: Front) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{front.gateway.ws_url}/ws/events", proxy=None, origin=Origin("https://evil.example")):
            pass
    assert refused.value.response.status_code == 403
    async with connect(f"{front.gateway.ws_url}/ws/events", proxy=None, origin=Origin(front.gateway.url)) as ws:
        assert json.loads(await ws.recv())["type"] == "begin"


@pytest.mark.parametrize("path", ["/flux", "/sync/flux", "/api/v1/generation-jobs/"])
def test_a_page_of_an_allowed_origin_may_submit(path: str, front: Front) -> None:
    page = {"Origin": ALLOWED_ORIGIN}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = front.client.options(path, headers=page | asked)
    assert preflight.status_code == 200, preflight.text
    assert preflight.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
    answered = front.client.post(
        path, headers=page | {"Prefer": "wait=0"}, json={"model": "flux"} if "api" in path else {}
    )
    assert answered.status_code == 202
    assert answered.headers.get_list("access-control-allow-origin") == [ALLOWED_ORIGIN]

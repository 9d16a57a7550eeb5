"""Metrics of the functions, and the requests that do not get them."""

from __future__ import annotations

from pathlib import Path

import pytest
from darkroom_functions.http.inside import FORWARDED
from darkroom_functions.http.metrics import NO_ROUTE
from websockets.sync.client import connect

from tests.functions.api import JOBS, Api, serving, slug
from tests.served_metrics import ask
from tests.waiting import eventually

COUNT = "darkroom_http_request_seconds_count"
UNKNOWN_JOB = "0198f000-0000-7000-8000-000000000000"


def test_requests_are_counted_by_function_route_and_status(api: Api) -> None:
    before = ask(api.functions.port)
    job_id = api.post("/flux", json={"prompt": "a lighthouse"}).json()["id"]
    api.job(job_id)
    api.client.head(JOBS + job_id)
    assert api.get(JOBS + UNKNOWN_JOB).status_code == 404
    after = ask(api.functions.port)

    def more(function: str, route: str, status: str) -> float:
        labels = {"function": function, "route": route, "status": status}
        return after.value(COUNT, **labels) - before.value(COUNT, **labels)

    assert more("submit", "POST /{model}", "202") == 1
    assert more("jobs", f"GET {JOBS}{{id}}", "200") == 2
    assert more("jobs", f"GET {JOBS}{{id}}", "404") == 1


def test_the_number_of_series_is_limited_for_any_requests(api: Api) -> None:
    for number in range(20):
        assert api.client.put(f"/nowhere/{number}").status_code == 404
        assert api.client.get(f"/nowhere-{number}").status_code in (404, 405)
    said = ask(api.functions.port)
    routes = {dict(labels)["route"] for name, labels in said.values if name == COUNT}
    assert said.value(COUNT, route=NO_ROUTE) >= 40
    assert not any("nowhere" in route for route in routes)


def test_probes_and_metrics_are_not_counted(api: Api) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert api.client.get(path).status_code == 200
    said = ask(api.functions.port)
    assert not any(dict(labels).get("route", "").endswith(("z", "metrics")) for _, labels in said.values)


def test_open_sockets_are_counted(api: Api) -> None:
    job_id = api.submit()
    with connect(f"{api.functions.ws_url}/ws/jobs/{job_id}") as socket:
        socket.recv(timeout=60)
        assert ask(api.functions.port).value("darkroom_sockets_open", function="result") == 1
    eventually(
        lambda: ask(api.functions.port).value("darkroom_sockets_open", function="result") == 0, what="it is closed"
    )


def test_a_waiting_request_is_open(api: Api) -> None:
    job_id = api.submit()
    with api.client.stream("GET", f"{JOBS}{job_id}/events") as answer:
        lines = answer.iter_lines()  # kept: without it the connection is closed
        next(lines)
        assert ask(api.functions.port).value("darkroom_http_requests_open", function="result") == 1
    eventually(
        lambda: ask(api.functions.port).value("darkroom_http_requests_open", function="result") == 0, what="it is over"
    )


@pytest.mark.parametrize("header", FORWARDED)
def test_a_request_through_a_proxy_gets_404(api: Api, header: str) -> None:
    """Knative's queue-proxy, its ingress and our gateway add this header to each request; a caller cannot remove it."""
    answer = api.client.get("/metrics", headers={header: "192.0.2.7"})
    assert answer.status_code == 404
    assert slug(answer) == "not-found"


def test_a_single_function_serves_its_own_metrics(redis_url: str, namespace: str, tmp_path: Path) -> None:
    with serving(redis_url, namespace, tmp_path, name="jobs") as jobs:
        jobs.get("/api/v1/models")
        said = ask(jobs.functions.port)
        functions = {dict(labels)["function"] for _, labels in said.values}
        assert functions == {"jobs"}
        assert said.value(COUNT, route="GET /api/v1/models", status="200") == 1
        assert jobs.client.get("/metrics", headers={"x-forwarded-for": "192.0.2.7"}).status_code == 404

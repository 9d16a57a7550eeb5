"""Internal doors: each refuses requests from outside, and works for those who need it inside."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.proofs import PROOF
from darkroom_functions import api as routes
from darkroom_functions.http.access import Open
from darkroom_functions.http.inside import FORWARDED, is_hidden
from darkroom_functions.http.metrics import PROBE_PATHS
from darkroom_functions.http.routes import ApiRoute
from starlette.datastructures import Headers

from tests.conftest import RedisServers
from tests.functions.api import serving, slug
from tests.parts import PROOFS, Functions
from tests.redis_server import RedisKind

INTERNAL = [
    (function, route)
    for function, each in routes.ROUTES.items()
    for route in each
    if isinstance(route, ApiRoute) and route.scope is Open.INTERNAL
]

OUTSIDE = {"Host": "darkroom.example.org", "X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}
"""A caller of the public address, as Knative's ingress and queue-proxy pass it on."""

INSIDE: dict[str, dict[str, str]] = {
    "kubelet": {"User-Agent": "kube-probe/1.31", "K-Kubelet-Probe": "queue"},
    "queue-proxy": {"User-Agent": "kube-probe/0", "K-Network-Probe": "queue"},
    "Prometheus": {"User-Agent": "Prometheus/3.0", "X-Prometheus-Scrape-Timeout-Seconds": "10"},
}
"""Who requests a pod's own port."""


@dataclass
class Deployed:
    """The functions as in a cluster: each in a process of its own, on every address, with keys."""

    functions: dict[str, Functions]
    everything: Callable[[], dict[bytes, bytes | None]]


@pytest.fixture(scope="module")
def deployed(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    redis_url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    folder = tmp_path_factory.mktemp("functions")
    settings = {"DARKROOM_AUTH": "keys", "DARKROOM_HOST": "0.0.0.0", "DARKROOM_INTERNAL_PEERS": "0.0.0.0/0,::/0"}
    with serving(redis_url, namespace, folder, **settings) as api:  # type: ignore[arg-type]
        names = {function for function, _ in INTERNAL}
        started = {
            name: Functions(name, environment=api.functions.environment, log=folder / f"{name}.log") for name in names
        }
        for function in started.values():
            function.start()

        def everything() -> dict[bytes, bytes | None]:
            redis = api.jobs.redis
            return {key: redis.dump(key) for key in sorted(redis.scan_iter(f"{namespace}:*", count=1000))}

        yield Deployed(started, everything)
        for function in started.values():
            assert function.stop() == 0


def event(**extensions: str) -> Event:
    """An event that both sinks take: of a job that does not exist."""
    return Event(
        id="1:end",
        source="http://darkroom.test",
        type="dev.darkroom.job.completed",
        subject="0198f000-0000-7000-8000-000000000000",
        extensions={"sequence": "00000000000000000001", "tenant": "studio", **extensions},
        data={"status": "completed"},
    )


def post(function: Functions, path: str, posted: Event, headers: dict[str, str]) -> httpx.Response:
    own, body = posted.encode_binary()
    return httpx.post(function.url + path, headers=own | headers, content=body, trust_env=False)


def test_there_are_internal_routes() -> None:
    assert {f"{function} {route.path}" for function, route in INTERNAL} == {
        *("result /", "result /events", "undelivered /", "undelivered /events/undelivered")
    }


@pytest.mark.parametrize("headers", [OUTSIDE, {}], ids=["forwarded", "direct"])
@pytest.mark.parametrize(
    "posted", [event(), event(**{PROOF: "A" * 43}), replace(PROOFS.prove(event()), data={})], ids=["no", "wrong", "old"]
)
@pytest.mark.parametrize(("name", "route"), INTERNAL, ids=lambda value: getattr(value, "path", value))
def test_an_event_without_a_right_proof_is_refused_and_changes_nothing(
    name: str, route: ApiRoute, posted: Event, headers: dict[str, str], deployed: Deployed
) -> None:
    before = deployed.everything()

    response = post(deployed.functions[name], route.path, posted, headers)

    assert (response.status_code, slug(response)) == (403, "proof-refused")
    assert deployed.everything() == before


@pytest.mark.parametrize(("name", "route"), INTERNAL, ids=lambda value: getattr(value, "path", value))
def test_a_proven_event_is_taken_however_it_was_forwarded(name: str, route: ApiRoute, deployed: Deployed) -> None:
    """Knative forwards its own deliveries too, with the same headers as those of callers."""
    inner = {**OUTSIDE, "Host": f"{name}.darkroom.svc.cluster.local"}

    assert post(deployed.functions[name], route.path, PROOFS.prove(event()), inner).status_code == 204


@pytest.mark.parametrize("header", FORWARDED)
@pytest.mark.parametrize("path", [path + slash for path in PROBE_PATHS for slash in ("", "/")])
def test_probes_and_metrics_do_not_answer_forwarded_requests(path: str, header: str, deployed: Deployed) -> None:
    for function in deployed.functions.values():
        for method in ("GET", "HEAD", "POST"):
            response = httpx.request(method, function.url + path, headers={header: "198.51.100.7"}, trust_env=False)
            assert response.status_code == 404


@pytest.mark.parametrize("caller", INSIDE)
@pytest.mark.parametrize("path", PROBE_PATHS)
def test_probes_and_metrics_answer_within_a_cluster(path: str, caller: str, deployed: Deployed) -> None:
    for function in deployed.functions.values():
        host = {"Host": f"10.42.0.7:{function.port}"}  # the pod's own address
        response = httpx.get(function.url + path, headers=INSIDE[caller] | host, trust_env=False)
        assert response.status_code == 200


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def test_on_one_machine_only_loopback_gets_probes_and_metrics(redis_url: str, namespace: str, tmp_path: Path) -> None:
    with serving(redis_url, namespace, tmp_path, DARKROOM_AUTH="keys", DARKROOM_HOST="0.0.0.0") as api:
        outer = f"http://{own_address()}:{api.functions.port}"
        assert httpx.get(f"{outer}/openapi.json", trust_env=False).status_code == 200
        for path in PROBE_PATHS:
            assert httpx.get(outer + path, trust_env=False).status_code == 404
            assert httpx.get(api.functions.url + path, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("peer", "networks", "is_inner"),
    [
        ("127.0.0.1", "127.0.0.0/8", True),
        ("::1", "127.0.0.0/8", False),
        ("::ffff:127.0.0.1", "127.0.0.0/8", True),
        ("10.42.0.9", "10.42.0.0/16", True),
        ("10.43.0.9", "10.42.0.0/16", False),
        ("2001:db8::1", "::/0", True),
        ("", "0.0.0.0/0", False),
    ],
)
def test_a_peer_is_an_inner_one_by_its_network(peer: str, networks: str, is_inner: bool) -> None:
    scope = {"path": "/metrics", "client": (peer, 1234)}

    assert is_hidden(scope, Headers(), [ip_network(networks)]) is not is_inner


def test_a_unix_socket_is_no_inner_peer() -> None:
    assert is_hidden({"path": "/metrics", "client": None}, Headers(), [ip_network("0.0.0.0/0")])


def test_the_gateway_serves_no_internal_path(repository: Path) -> None:
    """`tests/gateway/test_routes.py` requests them; this finds one that is missing there."""
    template = (repository / "functions" / "gateway" / "nginx.conf.template").read_text()
    closed = [re.compile(pattern) for pattern in re.findall(r"location ~ (\S+) \{ return 404; \}", template)]
    for path in {route.path for _, route in INTERNAL if route.path != "/"} | {"/metrics"}:
        assert any(pattern.fullmatch(path) for pattern in closed), path

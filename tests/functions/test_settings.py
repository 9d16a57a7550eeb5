"""The functions' settings and the process that serves them: defaults, bad values, signals, readiness."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import httpx
import pytest
from darkroom.settings import Settings
from darkroom.webhooks.guard import NOTHING
from darkroom_functions import assembly
from darkroom_functions.settings import AuthMode, FairBy, JobsSettings, ServeSettings, SubmitSettings
from starlette.applications import Starlette

from tests.functions.api import TIMEOUT_S, slug
from tests.parts import Functions, environment, hooked
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.waiting import eventually

NOWHERE = "redis://127.0.0.1:1/0"


def variables(folder: Path, **more: str) -> dict[str, str]:
    """The required variables of a process, with an unreachable Redis."""
    return environment(NOWHERE, "darkroom", DARKROOM_STORE=f"file://{folder}", **more)


def serve(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a process that exits by itself."""
    command = [sys.executable, "-m", "darkroom_functions.serve", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (
            SubmitSettings,
            {
                "backlog_limit": 10_000,
                "backlog_bytes": 256 * 1024 * 1024,
                "fair_by": FairBy.TENANT,
                "link_ttl_s": 86_400,
                "max_body_bytes": 2_097_152,
                "max_wait_s": 55,
                "models": (),
                "namespace": "darkroom",
                "sink": None,
                "sink_token_file": None,
                "webhook_allow": NOTHING,
            },
        ),
        (
            JobsSettings,
            {
                "backlog_limit": 10_000,
                "backlog_bytes": 256 * 1024 * 1024,
                "fair_by": FairBy.TENANT,
                "link_ttl_s": 86_400,
                "max_body_bytes": 2_097_152,
                "max_wait_s": 55,
                "models": (),
                "namespace": "darkroom",
                "webhook_allow": NOTHING,
            },
        ),
        (
            ServeSettings,
            {
                "host": "127.0.0.1",
                "port": 8080,
                "public_url": None,
                "max_connections": 4000,
                "allowed_hosts": (),
                "allowed_origins": (),
                "auth": AuthMode.KEYS,
                "internal_peers": (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
            },
        ),
    ],
)
def test_the_defaults_are_these(kind: type[Settings], defaults: Mapping[str, object]) -> None:
    stated = {name: field.default for name, field in kind.model_fields.items() if not field.is_required()}
    assert stated == defaults
    assert all(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("submit", "DARKROOM_REDIS_URL", "http://127.0.0.1:6379"),
        ("submit", "DARKROOM_NAMESPACE", ""),
        ("submit", "DARKROOM_NAMESPACE", "Dark Room"),
        ("submit", "DARKROOM_PUBLIC_URL", "darkroom.example"),
        ("submit", "DARKROOM_PUBLIC_URL", "http://darkroom.example/a b"),
        ("submit", "DARKROOM_BACKLOG_LIMIT", "0"),
        ("submit", "DARKROOM_BACKLOG_BYTES", "1000"),
        ("submit", "DARKROOM_MAX_BODY_BYTES", "2 MB"),
        ("submit", "DARKROOM_MAX_WAIT_S", "ten minutes"),
        ("submit", "DARKROOM_MODELS", "/nowhere/at/all"),
        ("jobs", "DARKROOM_STORE", "/just/a/path"),
        ("jobs", "DARKROOM_LINK_KEY", "too short"),
        ("jobs", "DARKROOM_LINK_TTL_S", "forever"),
        ("jobs", "DARKROOM_WEBHOOK_KEYS", "too short"),
        ("jobs", "DARKROOM_WEBHOOK_KEYS", " , ,"),
        ("submit", "DARKROOM_WEBHOOK_ALLOW", "10.0.0.0/33"),
        ("result", "DARKROOM_PROOF_KEYS", "too short"),
        ("undelivered", "DARKROOM_PROOF_KEYS", " , ,"),
        ("submit", "DARKROOM_INTERNAL_PEERS", "10.0.0.0/33"),
        ("submit", "DARKROOM_AUTH", "off"),
        ("submit", "PORT", "80800"),
        ("submit", "DARKROOM_HOST", ""),
    ],
)
def test_a_bad_setting_ends_the_process_with_one_line_that_names_it(
    tmp_path: Path, name: str, variable: str, value: str
) -> None:
    """The value of a secret is not shown."""
    ended = serve(name, environment=variables(tmp_path) | {variable: value})
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert ended.stdout == ""
    secret = variable in ("DARKROOM_REDIS_URL", "DARKROOM_LINK_KEY", "DARKROOM_WEBHOOK_KEYS", "DARKROOM_PROOF_KEYS")
    assert (value in line) is not secret or value == ""
    assert variable in line


def test_every_missing_setting_is_named(tmp_path: Path) -> None:
    given = variables(tmp_path)
    ended = serve("all", environment={name: given[name] for name in ("PATH", "PYTHONPATH")})
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert "DARKROOM_REDIS_URL is not set" in line
    assert "DARKROOM_PUBLIC_URL is not set" in line


@pytest.mark.parametrize("arguments", [(), ("nope",), ("submit", "jobs")])
def test_without_a_valid_argument_the_process_lists_what_it_serves(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = serve(*arguments, environment=variables(tmp_path))
    assert ended.returncode == 2
    assert "submit|jobs|result|undelivered|all" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_with_status_0(
    redis_url: str, namespace: str, tmp_path: Path, number: signal.Signals
) -> None:
    functions = Functions(
        "all",
        environment=environment(redis_url, namespace, DARKROOM_STORE=f"file://{tmp_path}"),
        log=tmp_path / "log",
    )
    functions.start()
    functions.signal(number)
    assert functions.wait() == 0
    assert "Traceback" not in functions.log.read_text()


def test_a_single_function_serves_only_its_own_routes(redis_url: str, namespace: str, tmp_path: Path) -> None:
    given = environment(redis_url, namespace, DARKROOM_STORE=f"file://{tmp_path}")
    for name, path, method in (("submit", "/openapi.json", "GET"), ("jobs", "/flux", "POST")):
        functions = Functions(name, environment=given, log=tmp_path / name)
        functions.start()
        try:
            response = httpx.request(method, functions.url + path, trust_env=False, timeout=TIMEOUT_S)
        finally:
            functions.stop()
        assert response.status_code == 404
        assert slug(response) == "not-found"


@pytest.mark.parametrize("name", ["submit", "jobs", "result", "undelivered", "all"])
def test_a_process_is_healthy_at_once_and_ready_once_redis_was_reachable(
    own_redis: RedisServer, namespace: str, tmp_path: Path, name: str
) -> None:
    own_redis.stop()
    given = environment(own_redis.url, namespace, DARKROOM_STORE=f"file://{tmp_path}")
    functions = Functions(name, environment=given, log=tmp_path / "log")
    super(Functions, functions).start()
    with httpx.Client(base_url=functions.url, trust_env=False, timeout=TIMEOUT_S) as client:
        try:
            eventually(lambda: _is_healthy(client), what="health")
            unready = client.get("/readyz")
            assert unready.status_code == 503
            assert int(unready.headers["retry-after"]) >= 1
            assert slug(unready) == "ledger-unavailable"
            own_redis.start()
            eventually(lambda: client.get("/readyz").is_success, what="readiness")
            own_redis.stop()
            assert client.get("/readyz").is_success
            assert client.request("HEAD", "/healthz").status_code == 200
        finally:
            functions.stop()


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "0", "images.example.org", "::ffff:192.0.2.7"])
def test_without_keys_the_functions_listen_on_loopback_only(host: str, tmp_path: Path) -> None:
    done = serve("all", environment=variables(tmp_path, DARKROOM_HOST=host, DARKROOM_AUTH="none"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"DARKROOM_HOST='{host}': ")
    assert "loopback" in done.stderr


def test_a_name_of_loopback_that_leads_elsewhere_is_refused_without_keys(tmp_path: Path) -> None:
    code = "import socket; socket.getaddrinfo = lambda *_, **__: [(2, 1, 6, '', ('192.0.2.7', 80))]\n"
    given = hooked(variables(tmp_path, DARKROOM_HOST="a.localhost", DARKROOM_AUTH="none"), tmp_path, code)
    done = serve("all", environment=given)
    assert (done.returncode, "and is 192.0.2.7" in done.stderr) == (2, True)


SERVERS = {
    "uvicorn": ["uvicorn", "--factory", "darkroom_functions.assembly:together", "--host", "0.0.0.0", "--port"],
    "uvicorn, one function": ["uvicorn", "--factory", "tests.functions.test_settings:submit", "--port"],
    "gunicorn": [
        *("gunicorn", "-k", "uvicorn_worker.UvicornWorker", "darkroom_functions.assembly:together()"),
        *("--bind", "0.0.0.0:0", "--workers"),
    ],
}
"""Commands of other servers; the last argument is a number."""


def submit() -> Starlette:
    """An application for another server."""
    return assembly.alone("submit")


@pytest.mark.parametrize("server", SERVERS)
def test_without_keys_no_other_server_starts(server: str, tmp_path: Path, repository: Path) -> None:
    """It would listen where its own options say, without the checks of hosts and origins."""
    given = variables(tmp_path, DARKROOM_AUTH="none")
    given["PYTHONPATH"] += f":{repository}"
    number = "1" if server == "gunicorn" else str(free_port())
    command = [sys.executable, "-m", *SERVERS[server], number]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 3
    assert "DARKROOM_AUTH='none': only `python -m darkroom_functions.serve`" in done.stdout + done.stderr

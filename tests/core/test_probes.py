"""The server of probes and metrics: responses, limits, and a port that is taken."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import httpx
import pytest
from darkroom import probes
from darkroom.errors import SettingError
from darkroom.probes import ProbeResponse, ProbeServer
from structlog.testing import capture_logs

from tests.ports import free_port

VARIABLE = "DARKROOM_PROBE_PORT"


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=30)


def echo(path: str) -> ProbeResponse:
    return ProbeResponse.of_json(503 if path == "/down" else 200, {"path": path})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_response_has_the_status_the_type_and_the_body_for_its_path(host: str) -> None:
    port = free_port()
    server = ProbeServer(echo, host=host, port=port, variable=VARIABLE)
    server.start()
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    up, down = get(f"{base}/up?verbose=1"), get(f"{base}/down")
    server.close()
    assert (up.status_code, up.json(), up.headers["content-type"]) == (200, {"path": "/up"}, "application/json")
    assert (down.status_code, down.json()) == (503, {"path": "/down"})
    assert "server" not in up.headers, "a response does not show the version of Python"


@pytest.mark.parametrize(
    ("error", "logged"),
    [(BrokenPipeError("the client is gone"), []), (ValueError("a fault"), ["probe_failed"])],
    ids=["client-is-gone", "fault"],
)
def test_a_failed_response_is_logged_unless_the_client_is_gone(
    error: Exception, logged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def respond(_path: str) -> ProbeResponse:
        raise error

    port = free_port()
    server = ProbeServer(respond, host="127.0.0.1", port=port, variable=VARIABLE)
    server.start()
    with capture_logs() as lines, pytest.raises(httpx.RemoteProtocolError):
        get(f"http://127.0.0.1:{port}/up")
    server.close()
    assert [line["event"] for line in lines] == logged
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_is_refused_in_the_name_of_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"{VARIABLE}='{port}': cannot listen on 127.0.0.1:{port}: "):
            ProbeServer(echo, host="127.0.0.1", port=port, variable=VARIABLE)


async def test_a_response_is_made_in_the_event_loop() -> None:
    port, loop = free_port(), asyncio.get_running_loop()

    async def respond(path: str) -> ProbeResponse:
        assert asyncio.get_running_loop() is loop
        return echo(path)

    async with probes.served(respond, host="127.0.0.1", port=port, variable=VARIABLE):
        response = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/up")
    assert response.json() == {"path": "/up"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_a_response_that_takes_too_long_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "REQUEST_TIMEOUT_S", 0.1)
    port = free_port()

    cancelled = asyncio.Event()

    async def respond(_path: str) -> ProbeResponse:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with probes.served(respond, host="127.0.0.1", port=port, variable=VARIABLE):
        response = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/up")
        async with asyncio.timeout(30):
            await cancelled.wait()
    assert (response.status_code, response.json()) == (503, {"status": "busy"})


def test_a_client_that_sends_nothing_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(probes._Handler, "timeout", 0.5)
    server = ProbeServer(echo, host="127.0.0.1", port=port, variable=VARIABLE)
    server.start()
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as silent:
        assert get(f"http://127.0.0.1:{port}/up").status_code == 200
        assert silent.recv(1) == b"", "the server closes the connection of a client that sends nothing"
    server.close()

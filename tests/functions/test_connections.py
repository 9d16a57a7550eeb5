"""Clients that send and do not read, or send too much: what is kept for them has an end, and they are told so."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlencode

import pytest
from darkroom_functions import connections
from darkroom_functions.serve import Server
from darkroom_functions.settings import ServeSettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.exceptions import InvalidStatus

from tests.functions.listeners import socket as socket_of
from tests.functions.listeners import told_to_the_end
from tests.parts import Functions, environment
from tests.ports import free_port
from tests.redis_server import RedisServer

DEADLINE_S = 60
MUCH = 32 * 1024 * 1024
"""Far more than the kernel keeps for a client that does not read."""

PING = b"\x89\xfd\0\0\0\0" + bytes(125)
FIRST_FRAGMENT, EMPTY_FRAGMENT = b"\x01\x80\0\0\0\0", b"\x00\x80\0\0\0\0"


@pytest.fixture
def result(own_redis: RedisServer, tmp_path: Path) -> Iterator[Functions]:
    function = Functions("result", environment=environment(own_redis.url, "own"), log=tmp_path / "result.log")
    function.start()
    yield function
    function.stop()


@asynccontextmanager
async def served(answer: bytes) -> AsyncIterator[int]:
    """Answers this at `/`, and closes; tells the port."""

    async def whole(_request: Request) -> Response:
        return Response(answer, headers={"Connection": "close"})

    app = Starlette(routes=[Route("/", whole)])
    app.state.closing = asyncio.Event()
    settings = ServeSettings.model_validate({"PORT": free_port()})
    server = Server(app, settings)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    yield settings.port
    server.should_exit = True
    await running


def connected(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(DEADLINE_S)
    client.connect(("127.0.0.1", port))
    return client


def on_a_socket(function: Functions) -> socket.socket:
    client = connected(function.port)
    client.sendall(
        b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b"101" in client.recv(64)
    return client


async def test_a_connection_that_closes_is_cut_where_its_client_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 1)
    async with served(bytes(MUCH)) as port:
        with closing(connected(port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                while _is_alive(port, client):
                    await asyncio.sleep(0.1)


async def test_a_connection_that_closes_is_not_cut_while_its_client_takes_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 1)
    async with served(bytes(MUCH)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        taken = 0
        while chunk := await reader.read(1024 * 1024):
            taken += len(chunk)
            await asyncio.sleep(0.05)
        writer.close()
    assert taken > MUCH


@pytest.mark.parametrize(
    ("first", "flood"),
    [(b"", PING * 500), (FIRST_FRAGMENT, EMPTY_FRAGMENT * 10_000)],
    ids=["pings", "fragments"],
)
def test_a_flood_of_frames_ends_the_connection(result: Functions, first: bytes, flood: bytes) -> None:
    with closing(on_a_socket(result)) as client:
        client.sendall(first)
        with pytest.raises(ConnectionError):
            client.sendall(flood * (MUCH // len(flood)))


async def test_a_request_may_name_a_hundred_jobs_with_their_cursors_percent_encoded(result: Functions) -> None:
    job_ids = [f"01980000-0000-7000-8000-{number:012}" for number in range(100)]
    query = urlencode({"job_ids": ",".join(job_ids), "since": ",".join(f"{job_id}:{10**15 - 1}" for job_id in job_ids)})
    async with socket_of(result, f"/ws/jobs?{query}") as ws:
        _, code = await told_to_the_end(ws)
    assert code == 4404


async def test_a_request_that_is_too_long_is_answered(result: Functions) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with socket_of(result, f"/ws/jobs?job_ids={'a' * 17_000}"):
            pass
    assert refused.value.response.status_code == 414


def _is_alive(port: int, client: socket.socket) -> bool:
    """Whether the server has its end of the client's connection: the kernel tells."""
    ends = f"{_address(port)} {_address(client.getsockname()[1])} "
    return any(ends in line and line.split()[3] == "01" for line in Path("/proc/net/tcp").read_text().splitlines())


def _address(port: int) -> str:
    return f"0100007F:{port:04X}"

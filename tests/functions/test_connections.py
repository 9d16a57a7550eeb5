"""Clients that send and do not read, send too much, or too slowly: what is buffered for them has a limit."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from darkroom_functions.http import connections
from darkroom_functions.serve import Server
from darkroom_functions.settings import ServeSettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.exceptions import InvalidStatus

from tests.databases import migrated
from tests.functions.stream_clients import all_messages
from tests.functions.stream_clients import socket as socket_of
from tests.parts import Functions, environment, hooked
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.waiting import eventually

DEADLINE_S = 60
MUCH = 32 * 1024 * 1024
"""Far more than the kernel buffers for a client that does not read."""

PING = b"\x89\xfd\0\0\0\0" + bytes(125)
FIRST_FRAGMENT, EMPTY_FRAGMENT = b"\x01\x80\0\0\0\0", b"\x00\x80\0\0\0\0"


@pytest.fixture
def result(own_redis: RedisServer, tmp_path: Path) -> Iterator[Functions]:
    settings = environment(own_redis.url, "own")
    migrated(settings["DARKROOM_DATABASE_URL"])
    function = Functions("result", environment=settings, log=tmp_path / "result.log")
    function.start()
    yield function
    function.stop()


@asynccontextmanager
async def served(answer: bytes = b"", *, holds_s: float = 0, **settings: object) -> AsyncIterator[tuple[int, Server]]:
    """Serve `/`: it returns the body, or sends `answer` and closes, after `holds_s`. Yields the port and the server."""

    async def whole(request: Request) -> Response:
        body = await request.body()
        await asyncio.sleep(holds_s)
        return Response(answer, headers={"Connection": "close"}) if answer else Response(body)

    app = Starlette(routes=[Route("/", whole, methods=["GET", "POST"])])
    app.state.closing = asyncio.Event()
    given = ServeSettings.model_validate({"PORT": free_port(), **settings})
    server = Server(app, given)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    yield given.port, server
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


async def test_a_closing_connection_is_aborted_if_its_client_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 1)
    async with served(bytes(MUCH)) as (port, _):
        with closing(connected(port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                while _is_alive(port, client):
                    await asyncio.sleep(0.1)


async def test_a_closing_connection_is_not_aborted_while_its_client_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 1)
    async with served(bytes(MUCH)) as (port, _):
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
        _, code = await all_messages(ws)
    assert code == 4404


async def test_a_request_that_is_too_long_is_answered(result: Functions) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with socket_of(result, f"/ws/jobs?job_ids={'a' * 17_000}"):
            pass
    assert refused.value.response.status_code == 414


# Requests that are too large, or come too slowly

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SHORT_S = 1.0
"""The timeouts in these tests; what must not time out lasts longer."""


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADERS_S", "BODY_S", "ANSWERED_S", "LINGER_S"):
        monkeypatch.setattr(connections, name, SHORT_S)


async def answered(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """The status of the response and its problem, after which the connection is closed."""
    async with asyncio.timeout(DEADLINE_S):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == int(head.split(b" ")[1])
    return problem["status"], problem


async def flooded(port: int, first: bytes, more: bytes, *, times: int) -> tuple[int, dict[str, Any]]:
    """The response to a client that sends everything before it reads, as most do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    with suppress(ConnectionError):
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(times):
                writer.write(more)
                await writer.drain()
    found = await answered(reader)
    writer.close()
    return found


@pytest.mark.parametrize(
    ("first", "more", "status"),
    [
        (HEAD + b"X: ", b"x" * 65_536, 431),
        (HEAD, b"X: y\r\n" * 8_192, 431),
        (b"GET /?", b"x" * 65_536, 414),
        (CHUNKED + b"0\r\nX: ", b"x" * 65_536, 431),
        (CHUNKED + b"0\r\n", b"X: y\r\n" * 8_192, 431),
        (CHUNKED + b"1;", b"x" * 65_536, 431),
    ],
    ids=["header", "headers", "target", "trailer", "trailers", "chunk-extension"],
)
async def test_a_flood_of_headers_is_refused_as_it_arrives(first: bytes, more: bytes, status: int) -> None:
    async with served() as (port, server):
        found, _ = await flooded(port, first, more, times=64)
        assert found == status
        async with asyncio.timeout(DEADLINE_S):
            while server.server_state.connections:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("count", "size", "status"), [(50, 1_000, 200), (70, 1_000, 431), (1, 70_000, 431)], ids=["fits", "many", "large"]
)
async def test_headers_that_arrive_at_once_have_the_same_limit(count: int, size: int, status: int) -> None:
    async with served() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        headers = b"".join(b"X-%d: %b\r\n" % (number, b"x" * size) for number in range(count))
        writer.write(HEAD + headers + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            assert int((await reader.read()).split(b" ")[1]) == status
        writer.close()


@pytest.mark.parametrize("start", [b"HELO darkroom", b"CONNECT localhost:443 HTTP/1.1"])
async def test_a_request_that_is_not_http_is_a_problem(start: bytes) -> None:
    async with served() as (port, _):
        assert (await flooded(port, start + b"\r\nHost: localhost\r\n\r\n", b"", times=0))[0] == 400


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (HEAD, b"X: y\r\n"),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED, b""),
        (HEAD + b"Content-Length: 0\r\n\r\n" + HEAD, b"X: y\r\n"),
    ],
    ids=["headers", "body", "chunks", "nothing", "second-request"],
)
async def test_half_a_request_that_never_ends_is_refused_in_time(first: bytes, drop: bytes) -> None:
    """Also if its bytes keep arriving, more slowly than over any real connection."""
    async with served() as (port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)
        if first.count(HEAD) == 2:
            await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            while not reader._buffer:  # type: ignore[attr-defined]
                writer.write(drop)
                await asyncio.sleep(0.1)
        status, problem = await answered(reader)
        assert (status, problem["type"].rsplit("/", 1)[-1]) == (408, "request-timeout")
        assert server.server_state.refused == {"request-timeout": 1}
        writer.close()


@pytest.mark.usefixtures("short_times")
async def test_a_connection_without_a_request_is_closed_without_an_answer() -> None:
    async with served() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.usefixtures("short_times")
async def test_no_timeout_applies_to_a_slow_response_a_slow_body_or_the_pause_between_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "BODY_BYTES_PER_S", 1)
    async with served(holds_s=1.5 * SHORT_S) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for parts in (30, 1):
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (20 * parts))
            for _ in range(parts):
                writer.write(b"x" * 20)
                await asyncio.sleep(1.5 * SHORT_S / 30)
            async with asyncio.timeout(DEADLINE_S):
                assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(20 * parts) == b"x" * 20 * parts
            await asyncio.sleep(1.5 * SHORT_S)
        writer.close()


async def test_the_connection_of_a_client_that_reads_nothing_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNTAKEN_S", SHORT_S)
    async with served() as (port, _):
        with closing(connected(port)) as client:
            client.setblocking(False)
            client.send(HEAD + b"Content-Length: 4000000\r\n\r\n")
            client.setblocking(True)
            await asyncio.to_thread(client.sendall, b"x" * 4_000_000)
            async with asyncio.timeout(DEADLINE_S):
                while _is_alive(port, client):
                    await asyncio.sleep(0.1)


async def test_idle_connections_make_room_for_new_ones() -> None:
    """Both without a request and with half a request; never one whose request is being answered."""
    async with served(max_connections=20) as (port, server):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        for _, writer in idle[::2]:
            writer.write(HEAD)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                assert b" 200 " in await reader.read()
            writer.close()
        assert len(server.server_state.connections) <= 20
        assert server.server_state.refused["too-many-connections"] >= 40
        for _, writer in idle:
            writer.close()


async def test_a_connection_above_the_limit_is_refused_while_all_others_are_in_use() -> None:
    async with served(holds_s=2, max_connections=3) as (port, _):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in held:
            writer.write(HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.5)  # they are being answered
        assert (await flooded(port, HEAD, b"", times=0))[0] == 503
        for reader, writer in held:
            async with asyncio.timeout(DEADLINE_S):
                assert b" 200 " in await reader.read()
            writer.close()


@pytest.mark.parametrize("first_read", [0, 90_000], ids=["whole", "its end"])
async def test_a_large_body_in_one_read_does_not_count_against_the_limits_of_the_next_request(first_read: int) -> None:
    """A client with an early response sends the rest of its body, immediately followed by its next request."""
    content = bytes(100_000)
    first = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + content
    async with served() as (port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if first_read:
            writer.write(first[:first_read])
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
            (connection,) = server.server_state.connections
            assert isinstance(connection, connections.Http)
            while connection._body_bytes < first_read - 1_000:
                await asyncio.sleep(0.01)
        second = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
        split = len(second) if first_read else 20
        writer.write(first[first_read:] + second[:split])
        assert await answer_on(reader) == (200, content)
        writer.write(second[split:] + b"more")
        assert await answer_on(reader) == (200, b"more")
        writer.close()


async def test_a_refusal_is_not_sent_as_the_response_to_the_previous_request() -> None:
    async with served(holds_s=1) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        chunked = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + chunked)
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        writer.close()


async def answer_on(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(DEADLINE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
        return int(head.split()[1]), await reader.readexactly(int(length))


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (320, 320))
"""


def test_idle_connections_beyond_the_files_of_a_process_reset_no_others_and_are_logged(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """The process may open 320 files, and 400 clients connect."""
    settings = hooked(environment(own_redis.url, "own"), tmp_path, FEW_FILES)
    migrated(settings["DARKROOM_DATABASE_URL"])
    function = Functions("result", environment=settings, log=tmp_path / "result.log")
    function.start()
    try:
        with ExitStack() as idle:
            for _ in range(400):
                idle.enter_context(closing(connected(function.port)))
            assert httpx.get(f"{function.url}/healthz", timeout=DEADLINE_S).status_code == 200
            refused = eventually(lambda: function.said("connections_refused"), what="the count of refused connections")
            assert refused[0]["too-many-connections"] >= 1
    finally:
        function.stop()


def _is_alive(port: int, client: socket.socket) -> bool:
    """Whether the server's end of the connection is open, as the kernel reports."""
    ends = f"{_address(port)} {_address(client.getsockname()[1])} "
    return any(ends in line and line.split()[3] == "01" for line in Path("/proc/net/tcp").read_text().splitlines())


def _address(port: int) -> str:
    return f"0100007F:{port:04X}"

"""Conversion of manifests for Kubernetes 1.20: rules in CEL are removed and policy/v1 is renamed, nothing else.

The manifests use features of Kubernetes 1.31. `older` converts a manifest. `Conversion` stands
between the operator, which runs as it is shipped, and the API server, and converts requests and responses.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.operator.cel_rules import CEL
from tests.ports import free_port

NEW, OLD = "policy/v1", "policy/v1beta1"
NEW_PATH, OLD_PATH = b"/apis/policy/v1/", b"/apis/policy/v1beta1/"

HEAD_LIMIT = 256 * 1024
PIECE = 64 * 1024


def older(value: Any) -> Any:
    """The manifest as Kubernetes 1.20 accepts it."""
    if isinstance(value, dict):
        return {name: older(member) for name, member in value.items() if name != CEL}
    if isinstance(value, list):
        return [older(member) for member in value]
    return OLD if value == NEW else value


def newer(value: Any) -> Any:
    """The response as a current server returns it."""
    if isinstance(value, dict):
        return {name: newer(member) for name, member in value.items()}
    if isinstance(value, list):
        return [newer(member) for member in value]
    return NEW if value == OLD else value


class Conversion:
    """A proxy in front of an API server, in a thread of its own."""

    def __init__(self, port_behind: int, certificates: str) -> None:
        self.port = free_port()
        self._behind = port_behind
        self._tls = ssl.create_default_context(cafile=certificates)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="down-conversion", daemon=True)
        self._open = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._conversations: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        if not self._open.wait(30):
            raise RuntimeError("the conversion does not listen")

    def stop(self) -> None:
        self._stop()
        self._thread.join(30)

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stopping.set)
        server = await asyncio.start_server(self._begin, "127.0.0.1", self.port, limit=HEAD_LIMIT)
        self._open.set()
        await stopping.wait()
        server.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations)
        await asyncio.sleep(0)  # for the transports to close

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.create_task(self._converse(reader, writer))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, with a connection of its own to the API server."""
        behind: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if behind is None:
                    behind = await asyncio.open_connection("127.0.0.1", self._behind, ssl=self._tls, limit=HEAD_LIMIT)
                await self._exchange(head, reader, writer, behind)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side went away: so does the other
        finally:
            for side in (writer, behind[1] if behind else None):
                if side is not None:
                    side.transport.abort()

    async def _exchange(
        self,
        head: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        behind: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        there, to_there = behind
        line, _, rest = head.partition(b"\r\n")
        converts = NEW_PATH in line
        headers = _headers(rest)
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        if converts:
            line = line.replace(NEW_PATH, OLD_PATH)
            rest = _without(rest, b"accept-encoding")  # a long answer would come compressed
            body = json.dumps(older(json.loads(body))).encode() if body else body
        to_there.write(_joined(line, rest, body if b"content-length" in headers else None) + body)
        await to_there.drain()

        answer = await there.readuntil(b"\r\n\r\n")
        line, _, rest = answer.partition(b"\r\n")
        headers = _headers(rest)
        if converts:
            content = await _whole(there, headers)
            content = json.dumps(newer(json.loads(content))).encode() if content else content
            writer.write(_joined(line, rest, content) + content)
        elif b"chunked" in headers.get(b"transfer-encoding", b""):
            writer.write(answer)
            await writer.drain()
            async for piece in _chunks(there):
                writer.write(piece)
                await writer.drain()
        else:
            writer.write(answer)
            left = int(headers.get(b"content-length", b"0"))
            while left:
                piece = await there.read(min(left, PIECE))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                writer.write(piece)
                left -= len(piece)
        await writer.drain()


def _headers(rest: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in rest.split(b"\r\n") if line)
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def _joined(line: bytes, rest: bytes, body: bytes | None) -> bytes:
    """The head, with the length of `body` if there is one."""
    if body is None:
        return line + b"\r\n" + rest
    kept = _without(rest, b"content-length", b"transfer-encoding").rstrip(b"\r\n")
    return b"\r\n".join([line, kept, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n"


def _without(rest: bytes, *names: bytes) -> bytes:
    """The headers without these."""
    kept = [one for one in rest.split(b"\r\n") if one and one.partition(b":")[0].strip().lower() not in names]
    return b"\r\n".join(kept) + b"\r\n\r\n"


async def _whole(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    if b"chunked" not in headers.get(b"transfer-encoding", b""):
        return await reader.readexactly(int(headers.get(b"content-length", b"0")))
    pieces = [piece async for piece in _chunks(reader)]
    return b"".join(piece.partition(b"\r\n")[2][:-2] for piece in pieces)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Chunks as on the wire, including sizes and the last empty one."""
    while True:
        size = await reader.readuntil(b"\r\n")
        length = int(size.split(b";")[0], 16)
        yield size + await reader.readexactly(length + 2)
        if length == 0:
            return

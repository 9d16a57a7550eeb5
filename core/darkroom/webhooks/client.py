"""The way out to the receivers of others: every connection goes to an address that the guard has checked.

The courier posts webhooks through it. It resolves a name itself, holds every answer to the guard's rules, refuses all
of them if one breaks them, and connects to an address that was checked, so that a name which changes its meaning in
between changes nothing. TLS is still verified against the name. There are no redirects and no proxy, whatever the
environment says, and neither a receiver that never ends its answer nor one that sends gigabytes gets more than its
share. The status decides what a receiver answered: a body that breaks off, or does not end, changes nothing.

It stands on httpcore, which is httpx without what must not happen here: redirects, proxies, cookies, decompression.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpcore

from darkroom.errors import TemporaryError
from darkroom.webhooks.guard import Allow, Destination, IpAddress, check_address, check_url

ANSWER_MAX_BYTES = 4 * 1024
"""So much of an answer is kept; the rest is not read, and costs the connection."""

BODY_LIMIT_S = 1.0
"""How long the body is read once the status is known. A guess: it is there at once, or nothing depends on it."""

ATTEMPTS = 4
"""Addresses of one name that are tried, each for its part of the time."""

KEPT_FOR_S = 5.0
"""How long a connection is kept for the next post: a guess, for receivers of many events."""

POOLS = 128
"""httpcore looks at all connections of a pool for each request: with hundreds of them that took most of the time."""

RESOLVER_THREADS = 64
"""Names that are looked up at one time: a look-up of the system's takes a thread, and cannot be ended early."""

_SUCCESS = range(200, 300)

_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, OSError)
"""What ends an exchange early. OSError: a fault that TLS finds after its handshake is ssl.SSLError, and httpcore hands
it on as it is."""

_CLOSED = "Server disconnected"
"""How httpcore's message begins where a connection was closed before the answer began."""

Trace = Callable[[str, Any], Awaitable[None]]

Resolve = Callable[[str, int], Awaitable[Sequence[IpAddress]]]
"""The addresses of a name, for a port. Raises OSError where there are none."""


class Unanswered(TemporaryError):
    """The receiver gave no answer that can be read, or not in time. The message holds nothing that it sent."""

    slug, title = "unanswered", "The receiver did not answer"


@dataclass(frozen=True)
class ReceiverResponse:
    """What a receiver answered. Header names are in lower case; of the body the first `answer_bytes` are here."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        return self.status in _SUCCESS


class GuardedClient:
    """Sends requests to addresses that callers gave. One per process, closed at its end (`async with`).

    `timeout_s` bounds each request as a whole, from the look-up of the name to the last byte that is read; the body has
    `BODY_LIMIT_S` of it. `tls` and `resolve` stand in for the system's trust store and resolver in tests.
    """

    def __init__(
        self,
        allow: Allow,
        *,
        timeout_s: float,
        answer_bytes: int = ANSWER_MAX_BYTES,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._allow = allow
        self._timeout_s = timeout_s
        self._answer_bytes = answer_bytes
        self._resolver = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")
        tls = tls or httpcore.default_ssl_context()
        network = _CheckedNetwork(allow, resolve or self._resolve)
        self._pools = [
            httpcore.AsyncConnectionPool(
                ssl_context=tls,
                max_connections=None,  # who sends decides how many at once
                keepalive_expiry=KEPT_FOR_S,
                network_backend=network,
            )
            for _ in range(POOLS)
        ]

    async def __aenter__(self) -> GuardedClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    async def send(self, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"") -> ReceiverResponse:
        """Send one request and read the answer, whatever its status; a redirect is an answer like any other.

        Raises InvalidInput where the guard refuses the URL or what its name leads to now, Unanswered where no status
        and headers came: the name is not known, the connection or its TLS failed, the time was over.
        """
        to = check_url(url, self._allow, field="the receiver's address")
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                return await self._exchange(method, to, headers, body, limit=limit)
        except (TimeoutError, httpcore.TimeoutException):
            raise Unanswered(f"no answer within {self._timeout_s:g} s") from None
        except _BROKEN as error:
            raise Unanswered(f"no answer: {_description(error)}") from None

    async def _exchange(
        self, method: str, to: Destination, headers: Mapping[str, str], body: bytes, *, limit: asyncio.Timeout
    ) -> ReceiverResponse:
        """Over a connection that was kept or a new one. A kept one that turns out to be closed is no sign of a fault in
        the receiver: the next is tried, and a new one at last.
        """
        is_new = False

        async def traced(event: str, _: Any) -> None:
            nonlocal is_new
            is_new = is_new or event == "connection.connect_tcp.started"

        while True:
            try:
                return await self._exchange_once(method, to, headers, body, limit=limit, traced=traced)
            except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError):
                if is_new:
                    raise

    async def _exchange_once(
        self,
        method: str,
        to: Destination,
        headers: Mapping[str, str],
        body: bytes,
        *,
        limit: asyncio.Timeout,
        traced: Trace,
    ) -> ReceiverResponse:
        pool = self._pools[hash((to.host, to.port)) % POOLS]
        # Put together of what the guard has read: nobody reads the URL a second time, and in another way.
        url = httpcore.URL(scheme=to.scheme, host=to.host, port=to.port, target=to.target)
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)
        async with pool.stream(
            method,
            url,
            headers=[*headers.items(), ("host", to.authority)],
            content=body,
            extensions={"timeout": limits, "trace": traced},
        ) as answer:
            ends = min(asyncio.get_running_loop().time() + BODY_LIMIT_S, limit.when() or 0)
            limit.reschedule(None)  # the receiver has answered
            read = await self._beginning(answer, ends=ends)
        names: dict[str, str] = {}
        for name, value in answer.headers:
            names.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        return ReceiverResponse(answer.status, names, read)

    async def _beginning(self, answer: httpcore.Response, *, ends: float) -> bytes:
        """As much of the body as there is at `ends` (the loop's time), `answer_bytes` at most."""
        read = bytearray()
        with suppress(TimeoutError, httpcore.TimeoutException, *_BROKEN):
            async with asyncio.timeout_at(ends):
                async for chunk in answer.aiter_stream():
                    read += chunk
                    if len(read) > self._answer_bytes:
                        break
        return bytes(read[: self._answer_bytes])

    async def _resolve(self, host: str, port: int) -> Sequence[IpAddress]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._resolver, _look_up, host, port)
        return list(dict.fromkeys(found))


def _description(error: Exception) -> str:
    """What went wrong. A fault in the answer itself is named without its text, which quotes what the receiver sent."""
    if isinstance(error, httpcore.RemoteProtocolError):
        return "the connection was closed" if str(error).startswith(_CLOSED) else "the answer is not valid HTTP/1.1"
    return str(error) or type(error).__name__


def _look_up(host: str, port: int) -> list[IpAddress]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [ipaddress.ip_address(address[0]) for _, _, _, _, address in found]


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only. Below it nobody knows the name; above it, TLS knows nothing else."""

    def __init__(self, allow: Allow, resolve: Resolve) -> None:
        self._allow = allow
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._addresses(host, port)
        for address in addresses:
            check_address(host, port, address, self._allow)
        tried = addresses[:ATTEMPTS]
        for place, address in enumerate(tried, start=1):
            try:
                stream = await self._network.connect_tcp(
                    str(address),
                    port,
                    timeout=None if timeout is None else timeout / len(tried),
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if place == len(tried):
                    raise
            else:
                return _Stream(stream)
        raise httpcore.ConnectError("the name has no address")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> Sequence[IpAddress]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            return await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("the name is not known") from None


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that is closed when its TLS handshake is ended early.

    httpcore closes it for errors alone, and a cancelled handshake, as with a receiver that says nothing, would leave it
    open for good (httpcore 1.0, `AnyIOStream.start_tls`).
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))
        except asyncio.CancelledError:
            await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

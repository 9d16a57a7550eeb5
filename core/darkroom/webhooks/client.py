"""The HTTP client for receivers of callers: it connects only to addresses that the guard has checked.

The courier posts webhooks through it. It resolves a name itself, checks all addresses with the guard, fails if one of
them is not allowed, and connects to a checked address, so that a name that resolves differently a moment later makes no
difference (DNS rebinding). TLS is still verified against the name. It follows no redirects and uses no proxy of the
environment. A response is limited in time and size; a body that is truncated or does not end does not change the
status.

It uses httpcore, which is httpx without redirects, proxies, cookies and decompression.
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
"""So much of a body is returned; a longer one is not read further, and its connection is closed."""

BODY_LIMIT_S = 1.0
"""How long the body is read after the status. A guess: a body that matters arrives at once."""

ATTEMPTS = 4
"""The most addresses of one name that are tried, each for an equal part of the timeout."""

KEPT_FOR_S = 5.0
"""How long an idle connection is kept open: a guess, for receivers of many events."""

POOLS = 128
"""httpcore iterates over all connections of a pool for each request: with hundreds of them that took most of the time.
"""

RESOLVER_THREADS = 64
"""The most names that are resolved at one time: the system's resolver needs a thread and cannot be cancelled."""

_SUCCESS = range(200, 300)

_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, OSError)
"""Failures of an exchange. OSError: httpcore passes on a failure of TLS after the handshake, ssl.SSLError, unchanged.
"""

_CLOSED = "Server disconnected"
"""The beginning of httpcore's message for a connection that was closed before the response began."""

Trace = Callable[[str, Any], Awaitable[None]]

Resolve = Callable[[str, int], Awaitable[Sequence[IpAddress]]]
"""Resolves a name, for a port. Raises OSError if it has no addresses."""


class Unanswered(TemporaryError):
    """The receiver sent no valid response, or not in time. The message contains nothing that it sent."""

    slug, title = "unanswered", "The receiver did not answer"


@dataclass(frozen=True)
class ReceiverResponse:
    """The response of a receiver. Header names are in lower case; `body` has the first `answer_bytes` of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        return self.status in _SUCCESS


class GuardedClient:
    """Sends requests to addresses of callers. One per process, closed at its end (`async with`).

    `timeout_s` bounds each request as a whole, from resolving the name to the last byte that is read; the body has
    `BODY_LIMIT_S` of it. `tls` and `resolve` replace the system's trust store and resolver in tests.
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
                max_connections=None,  # the caller limits the requests at one time
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
        """Send one request and return the response, whatever its status; a redirect is not followed.

        Raises InvalidInput if the guard rejects the URL or an address of its name, and Unanswered without a response:
        the name does not resolve, the connection or its TLS failed, or the timeout expired.
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
        """Use an idle connection or a new one. An idle one that turns out to be closed is no failure of the receiver:
        the next one is tried, and finally a new one.
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
        # Composed of the parts that the guard has parsed: a second parser could read the URL differently.
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
            limit.reschedule(None)  # the receiver has responded
            read = await self._beginning(answer, ends=ends)
        names: dict[str, str] = {}
        for name, value in answer.headers:
            names.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        return ReceiverResponse(answer.status, names, read)

    async def _beginning(self, answer: httpcore.Response, *, ends: float) -> bytes:
        """The part of the body that has arrived by `ends` (the loop's time), `answer_bytes` at most."""
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
    """The failure. For an invalid response it leaves out httpcore's text, which quotes what the receiver sent."""
    if isinstance(error, httpcore.RemoteProtocolError):
        return "the connection was closed" if str(error).startswith(_CLOSED) else "the answer is not valid HTTP/1.1"
    return str(error) or type(error).__name__


def _look_up(host: str, port: int) -> list[IpAddress]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [ipaddress.ip_address(address[0]) for _, _, _, _, address in found]


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only. TLS above it verifies the name."""

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
    """A connection that is closed when its TLS handshake is cancelled.

    httpcore closes it for errors alone: a cancelled handshake, as with a receiver that sends nothing, would leave it
    open (httpcore 1.0, `AnyIOStream.start_tls`).
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

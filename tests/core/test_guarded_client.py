"""The client of receivers: it connects to checked addresses only, with TLS to the name, within its limits."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from darkroom.errors import InvalidInput
from darkroom.webhooks.client import ANSWER_MAX_BYTES, GuardedClient, Resolve, Unanswered
from darkroom.webhooks.guard import NOTHING, Allow

from tests.receivers import (
    DEADLINE_S,
    NAME,
    PORT,
    Names,
    Receiver,
    Trust,
    answering,
    own_address,
    receiving,
    silent,
)

URL = f"https://{NAME}:{PORT}/hook?a=b"
PUBLIC = ipaddress.ip_address("93.184.216.34")
METADATA = ipaddress.ip_address("169.254.169.254")


@pytest.fixture(scope="module")
def trust() -> Trust:
    return Trust()


@asynccontextmanager
async def client_of(
    allow: Allow, *, trust: Trust | None = None, resolve: Resolve | None = None, timeout_s: float = DEADLINE_S
) -> AsyncIterator[GuardedClient]:
    tls = trust.client if trust else None
    async with GuardedClient(allow, timeout_s=timeout_s, tls=tls, resolve=resolve) as client:
        yield client


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


# What is sent, and what comes back


async def test_a_request_arrives_unchanged_and_its_response_is_returned() -> None:
    answer = answering(b"HTTP/1.1 429 Slow\r\nRetry-After: 5\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 4\r\n\r\nwait")
    async with receiving(answer) as receiver, client_of(receiver.allow) as client:
        url = f"http://{receiver.address}:{PORT}/hook?a=b"
        answered = await client.send("POST", url, headers={"Webhook-Id": "one"}, body=b'{"a": 1}')
    assert (answered.status, answered.body, answered.is_success) == (429, b"wait", False)
    assert answered.headers == {"retry-after": "5", "x-a": "1", "content-length": "4"}
    head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
    first, *headers = head.splitlines()
    assert first == b"POST /hook?a=b HTTP/1.1"
    assert sorted(header.lower() for header in headers) == [
        b"content-length: 8",
        f"host: {receiver.address}:{PORT}".encode(),
        b"webhook-id: one",
    ]
    assert body == b'{"a": 1}'


async def test_a_connection_is_reused() -> None:
    async with receiving() as receiver, client_of(receiver.allow) as client:
        for _ in range(3):
            answered = await client.send("POST", f"http://{receiver.address}:{PORT}/", headers={}, body=b"x")
            assert (answered.status, answered.is_success) == (204, True)
    assert (len(receiver.requests), receiver.connections) == (3, 1)


async def test_an_idle_connection_that_the_receiver_closed_is_no_failure() -> None:
    """Receivers may close idle connections at any time, also while a request is in flight."""
    taken: list[int] = []

    async def answer(writer: asyncio.StreamWriter) -> None:
        taken.append(1)
        if len(taken) in {2, 4}:
            writer.transport.abort()
        else:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with receiving(answer) as receiver, client_of(receiver.allow) as client:
        for _ in range(3):
            answered = await client.send("POST", f"http://{receiver.address}:{PORT}/", headers={}, body=b"x")
            assert answered.status == 204
    assert (len(receiver.requests), receiver.connections) == (5, 3)


# Names and addresses


async def test_a_name_is_reached_at_its_address_with_tls_to_the_name(trust: Trust) -> None:
    async with receiving(tls=trust.server(NAME)) as receiver:
        names = Names([[receiver.ip]])
        async with client_of(receiver.allow, trust=trust, resolve=names) as client:
            answered = await client.send("POST", URL, headers={}, body=b"x")
    assert answered.status == 204
    assert f"host: {NAME}:{PORT}".encode() in receiver.requests[0].lower()
    assert names.asked == 1


async def test_a_certificate_for_another_name_is_rejected(trust: Trust) -> None:
    """Not even one for the connected address counts: the caller named the name."""
    async with receiving(tls=trust.server("other.example.com")) as receiver:
        receiving_at_address = receiving(tls=trust.server(receiver.address))
        async with receiving_at_address as other:
            for wrong in (receiver, other):
                resolve = Names([[wrong.ip]])
                async with client_of(wrong.allow, trust=trust, resolve=resolve) as client:
                    with pytest.raises(Unanswered, match="certificate verify failed"):
                        await client.send("POST", URL, headers={}, body=b"secret")
                assert wrong.requests == []


async def test_an_untrusted_certificate_is_rejected(trust: Trust) -> None:
    async with receiving(tls=Trust().server(NAME)) as receiver:
        resolve = Names([[receiver.ip]])
        async with client_of(receiver.allow, trust=trust, resolve=resolve) as client:
            with pytest.raises(Unanswered, match="certificate verify failed"):
                await client.send("POST", URL, headers={}, body=b"secret")
        async with client_of(receiver.allow, resolve=resolve) as client:  # nor with the trust store of the system
            with pytest.raises(Unanswered, match="certificate verify failed"):
                await client.send("POST", URL, headers={}, body=b"secret")
    assert receiver.requests == []


async def test_a_name_is_resolved_and_checked_for_each_connection(trust: Trust) -> None:
    """DNS rebinding: the second answer is an internal address."""
    context = trust.server(NAME)
    close = answering(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    async with receiving(close, tls=context) as outside, receiving(tls=context) as inside:
        names = Names([[outside.ip], [inside.ip]])
        async with client_of(outside.allow, trust=trust, resolve=names) as client:
            assert (await client.send("POST", URL, headers={}, body=b"1")).status == 204
            with pytest.raises(InvalidInput):
                await client.send("POST", URL, headers={}, body=b"2")
    assert names.asked == 2
    assert (outside.connections, inside.connections) == (1, 0)


async def test_a_connection_resolves_its_name_once(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second lookup after the check would connect to the internal server."""
    context = trust.server(NAME)
    async with receiving(tls=context) as outside, receiving(tls=context) as inside:
        answers = iter([outside.address])
        look_up = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *args: Any, **more: Any) -> Any:
            if host in {NAME, NAME.encode()}:
                host = next(answers, inside.address)
            return look_up(host, port, *args, **more)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with client_of(outside.allow, trust=trust) as client:
            assert (await client.send("POST", URL, headers={}, body=b"1")).status == 204
    assert (outside.connections, inside.connections) == (1, 0)


@pytest.mark.parametrize("place", [0, 1, 5])
async def test_a_name_with_one_forbidden_address_is_rejected(trust: Trust, place: int) -> None:
    async with receiving(tls=trust.server(NAME)) as receiver:
        addresses = [receiver.ip] * 5
        addresses.insert(place, METADATA)
        async with client_of(receiver.allow, trust=trust, resolve=Names([addresses])) as client:
            with pytest.raises(InvalidInput):
                await client.send("POST", URL, headers={}, body=b"x")
    assert receiver.connections == 0


async def test_the_next_address_is_tried_if_one_does_not_answer(trust: Trust) -> None:
    async with receiving(tls=trust.server(NAME)) as receiver:
        absent = ipaddress.ip_address(own_address())
        allow = Allow.parse(["127.0.0.0/8"])
        async with client_of(allow, trust=trust, resolve=Names([[absent, receiver.ip]])) as client:
            assert (await client.send("POST", URL, headers={}, body=b"x")).status == 204


async def test_the_number_of_tried_addresses_is_limited() -> None:
    """Otherwise a name with hundreds of silent addresses would block a post for hundreds of timeouts."""
    absent = [ipaddress.ip_address(f"127.{own_address().split('.', 1)[1]}") for _ in range(30)]
    async with receiving() as receiver:
        allow = Allow.parse(["127.0.0.0/8"])
        async with client_of(allow, resolve=Names([[*absent, receiver.ip]])) as client:
            with pytest.raises(Unanswered):
                await client.send("POST", URL, headers={}, body=b"x")
    assert receiver.connections == 0


async def test_a_name_that_does_not_resolve_may_resolve_later() -> None:
    async with client_of(NOTHING, resolve=Names([[]])) as client:
        with pytest.raises(Unanswered, match="the name is not known"):
            await client.send("POST", URL, headers={}, body=b"x")


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/", "https://localhost/", "https://0x7f.1/", "http://example.com/", "https://a@b.com/"]
)
async def test_a_rejected_url_is_not_resolved(url: str) -> None:
    names = Names([[PUBLIC]])
    async with client_of(NOTHING, resolve=names) as client:
        with pytest.raises(InvalidInput, match="the receiver's address must"):
            await client.send("POST", url, headers={}, body=b"x")
    assert names.asked == 0


async def test_localhost_is_rejected_unless_it_is_allowed() -> None:
    async with receiving() as receiver:
        async with client_of(Allow.parse([NAME])) as client:
            with pytest.raises(InvalidInput):
                await client.send("POST", f"http://localhost:{PORT}/", headers={}, body=b"x")
        assert receiver.connections == 0


# Ways around


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["http://169.254.169.254/latest/meta-data/", "http://{other}/", "/elsewhere"])
async def test_a_redirect_is_returned_and_not_followed(status: int, to: str) -> None:
    async with receiving() as other:
        location = to.format(other=f"{other.address}:{PORT}")
        answer = answering(f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
        async with receiving(answer) as receiver, client_of(Allow.parse(["127.0.0.0/8"])) as client:
            answered = await client.send("POST", f"http://{receiver.address}:{PORT}/", headers={}, body=b"x")
    assert (answered.status, answered.headers["location"], answered.is_success) == (status, location, False)
    assert (len(receiver.requests), other.connections) == (1, 0)


async def test_a_proxy_of_the_environment_is_not_used(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as plain, receiving(tls=trust.server(NAME)) as secure:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.address}:{PORT}")
            monkeypatch.setenv(name.upper(), f"http://{proxy.address}:{PORT}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        allow = Allow.parse(["127.0.0.0/8"])
        async with client_of(allow, trust=trust, resolve=Names([[secure.ip]])) as client:
            for url in (URL, f"http://{plain.address}:{PORT}/"):
                assert (await client.send("POST", url, headers={}, body=b"x")).status == 204
    assert (proxy.connections, plain.connections, secure.connections) == (0, 1, 1)


async def test_cookies_of_receivers_are_not_stored() -> None:
    answer = answering(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
    async with receiving(answer) as receiver, client_of(receiver.allow) as client:
        for _ in range(2):
            await client.send("POST", f"http://{receiver.address}:{PORT}/", headers={}, body=b"x")
    assert b"cookie" not in receiver.requests[1].lower()


# Receivers that want more than their share


async def _endless(writer: asyncio.StreamWriter, head: bytes, again: bytes, *, pause_s: float = 0) -> None:
    writer.write(head)
    while True:
        writer.write(again)
        await writer.drain()
        await asyncio.sleep(pause_s)


async def sent(receiver: Receiver, *, timeout_s: float = DEADLINE_S, allow: Allow | None = None) -> Any:
    async with client_of(allow or receiver.allow, timeout_s=timeout_s) as client:
        answered = await client.send("POST", f"http://{receiver.address}:{PORT}/", headers={}, body=b"x")
        await until(lambda: receiver.open == 0)
        return answered


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 0x1000 + b"\r\n"),
        (b"HTTP/1.1 500 Oh\r\nConnection: close\r\n\r\n", b"x" * 65536),
    ],
    ids=["huge", "endless", "until-closed"],
)
async def test_a_long_body_is_truncated_and_its_connection_closed(head: bytes, again: bytes) -> None:
    async with receiving(lambda writer: _endless(writer, head, again)) as receiver:
        answered = await sent(receiver)
    assert answered.body == b"x" * ANSWER_MAX_BYTES
    assert receiver.connections == 1


async def test_a_compressed_body_stays_compressed() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    async with receiving(answering(head.encode() + bomb)) as receiver:
        answered = await sent(receiver)
    assert answered.body == bomb[:ANSWER_MAX_BYTES]


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x"),
    ],
    ids=["length", "chunks", "until-closed"],
)
@pytest.mark.parametrize("timeout_s", [DEADLINE_S, 0.5], ids=["limit-of-the-body", "limit-of-the-request"])
async def test_a_body_that_never_ends_does_not_change_the_status(head: bytes, again: bytes, timeout_s: float) -> None:
    async with receiving(lambda writer: _endless(writer, head, again, pause_s=0.05)) as receiver:
        answered = await sent(receiver, timeout_s=timeout_s)
    assert (answered.status, answered.body[:3]) == (200, b"xxx")
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\nno chunk\r\n",
    ],
    ids=["length", "chunks", "malformed"],
)
async def test_a_truncated_body_does_not_change_the_status(raw: bytes) -> None:
    """Neither over a new connection nor over an idle one, whose request is repeated after other failures."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(whole if len(receiver.requests) == 1 else raw)
        await writer.drain()
        if len(receiver.requests) > 1:
            writer.close()

    async with receiving(answer) as receiver, client_of(receiver.allow) as client:
        for expected in (b"ok", b"xxx"):
            answered = await client.send("POST", f"http://{receiver.address}:{PORT}/", headers={}, body=b"x")
            assert (answered.status, answered.body) == (200, expected)
    assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"HTTP/1.1 ", b"2"),
    ],
    ids=["headers", "informational", "status"],
)
async def test_a_head_that_never_ends_is_no_response(head: bytes, again: bytes) -> None:
    """Each byte arrives in time, but not all of them together."""
    async with receiving(lambda writer: _endless(writer, head, again, pause_s=0.05)) as receiver:
        with pytest.raises(Unanswered, match=r"no answer within 0\.5 s"):
            await sent(receiver, timeout_s=0.5)
        await until(lambda: receiver.open == 0)


@pytest.mark.parametrize(
    ("head", "again"),
    [(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 1000), (b"HTTP/1.1 200 ", b"O" * 65536)],
    ids=["headers", "status"],
)
async def test_a_huge_head_is_no_response(head: bytes, again: bytes) -> None:
    async with receiving(lambda writer: _endless(writer, head, again)) as receiver:
        with pytest.raises(Unanswered, match="no answer: "):
            await sent(receiver)
        await until(lambda: receiver.open == 0)


@pytest.mark.parametrize(
    "raw", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_invalid_http_is_no_response(raw: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    async with receiving(answer) as receiver:
        with pytest.raises(Unanswered, match="no answer: ") as unanswered:
            await sent(receiver)
    assert len(receiver.requests) == 1
    # It contains nothing that the receiver sent.
    closed, invalid = "no answer: the connection was closed", "no answer: the answer is not valid HTTP/1.1"
    assert unanswered.value.detail in ({closed, invalid} if raw else {closed})


async def test_invalid_tls_after_the_handshake_is_no_response(trust: Trust) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        beneath_tls: asyncio.WriteTransport = writer.transport._ssl_protocol._transport  # type: ignore[attr-defined]
        beneath_tls.write(b"\x17\x03\x03\x00\x20" + b"x" * 32)

    async with receiving(answer, tls=trust.server(NAME)) as receiver:
        resolve = Names([[receiver.ip]])
        async with client_of(receiver.allow, trust=trust, resolve=resolve) as client:
            with pytest.raises(Unanswered, match="no answer: "):
                await client.send("POST", URL, headers={}, body=b"x")
            await until(lambda: receiver.open == 0)


async def test_a_receiver_that_requires_a_client_certificate_gives_no_response(trust: Trust) -> None:
    """The client has none. With TLS 1.3 the receiver reports that after the request."""
    async with receiving(tls=trust.server_that_asks(NAME)) as receiver:
        resolve = Names([[receiver.ip]])
        async with client_of(receiver.allow, trust=trust, resolve=resolve) as client:
            with pytest.raises(Unanswered, match="no answer: "):
                await client.send("POST", URL, headers={}, body=b"x")
    assert receiver.requests == []


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_silent_receiver_times_out_and_its_connection_is_closed(scheme: str) -> None:
    """With https the handshake never ends."""
    async with silent() as receiver, client_of(receiver.allow, timeout_s=0.5) as client:
        with pytest.raises(Unanswered, match=r"no answer within 0\.5 s"):
            await client.send("POST", f"{scheme}://{receiver.address}:{PORT}/", headers={}, body=b"x" * 10_000_000)
        assert receiver.connections == 1
        await until(lambda: receiver.open == 0)


async def test_a_request_that_is_cancelled_in_its_handshake_leaves_no_connection() -> None:
    async with silent() as receiver, client_of(receiver.allow) as client:
        sending = asyncio.create_task(client.send("POST", f"https://{receiver.address}:{PORT}/", headers={}, body=b"x"))
        await until(lambda: receiver.open == 1)
        sending.cancel()
        await asyncio.wait([sending])
        await until(lambda: receiver.open == 0)


async def test_a_refused_connection_is_no_response() -> None:
    address = own_address()
    async with client_of(Allow.parse([address])) as client:
        with pytest.raises(Unanswered, match="no answer: "):
            await client.send("POST", f"http://{address}:{PORT}/", headers={}, body=b"x")


async def test_a_lookup_that_never_ends_times_out() -> None:
    async def never(host: str, port: int) -> Any:
        await asyncio.Event().wait()

    async with client_of(NOTHING, resolve=never, timeout_s=0.2) as client:
        with pytest.raises(Unanswered, match=r"no answer within 0\.2 s"):
            await client.send("POST", URL, headers={}, body=b"x")


async def test_silent_receivers_do_not_delay_others() -> None:
    async with silent() as slow, receiving() as quick, client_of(Allow.parse(["127.0.0.0/8"])) as client:
        waiting = [
            asyncio.create_task(client.send("POST", f"http://{slow.address}:{PORT}/", headers={}, body=b"x"))
            for _ in range(200)
        ]
        await until(lambda: slow.connections == 200)
        answers = [
            await client.send("POST", f"http://{quick.address}:{PORT}/", headers={}, body=b"x") for _ in range(5)
        ]
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert [answer.status for answer in answers] == [204] * 5

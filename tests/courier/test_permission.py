"""The request for permission: CloudEvents' HTTP 1.1 Web Hooks, section 4."""

from __future__ import annotations

import pytest
from darkroom.errors import InvalidInput
from darkroom.webhooks.client import GuardedClient, Unanswered
from darkroom.webhooks.guard import NOTHING
from darkroom_courier.posting.permission import Permission, ask_permission

from tests.receivers import PORT, Answer, answering, receiving, silent

ORIGIN = "darkroom.example.com"
ASKED_RATE = 600
DEADLINE_S = 60


def answering_options(*headers: str, status: str = "200 OK") -> Answer:
    return answering("\r\n".join([f"HTTP/1.1 {status}", "Content-Length: 0", *headers, "", ""]).encode())


async def asked(answer: Answer) -> tuple[Permission, bytes]:
    """The permission of a receiver with this response, and the request that it got."""
    async with receiving(answer) as receiver, GuardedClient(receiver.allow, timeout_s=DEADLINE_S) as client:
        url = f"http://{receiver.address}:{PORT}/hook?a=b"
        permission = await ask_permission(client, url, origin=ORIGIN, per_minute=ASKED_RATE)
        (request,) = receiver.requests
        return permission, request


async def test_the_request_names_the_origin_and_the_rate() -> None:
    _, request = await asked(answering_options())
    first, *headers = request.decode().lower().split("\r\n")
    assert first == "options /hook?a=b http/1.1"
    assert f"webhook-request-origin: {ORIGIN}" in headers
    assert f"webhook-request-rate: {ASKED_RATE}" in headers


@pytest.mark.parametrize(
    ("headers", "permission"),
    [
        (
            [f"WebHook-Allowed-Origin: {ORIGIN}", "WebHook-Allowed-Rate: 100"],
            Permission(is_granted=True, per_minute=100),
        ),
        (
            [f"WEBHOOK-ALLOWED-ORIGIN: {ORIGIN.upper()}", "webhook-allowed-rate:  7 "],
            Permission(is_granted=True, per_minute=7),
        ),
        (["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 100"], Permission(is_granted=True, per_minute=100)),
        (["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: *"], Permission(is_granted=True, per_minute=ASKED_RATE)),
        (["WebHook-Allowed-Origin: *"], Permission(is_granted=True, per_minute=ASKED_RATE)),
        (
            ["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: plenty"],
            Permission(is_granted=True, per_minute=ASKED_RATE),
        ),
        (["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 0"], Permission(is_granted=True, per_minute=ASKED_RATE)),
        (["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: -1"], Permission(is_granted=True, per_minute=ASKED_RATE)),
        (
            ["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: " + "9" * 500],
            Permission(is_granted=True, per_minute=ASKED_RATE),
        ),
        (["WebHook-Allowed-Origin: other.example.com", "WebHook-Allowed-Rate: 5"], Permission(is_granted=False)),
        (["WebHook-Allowed-Origin: example.com"], Permission(is_granted=False)),
        ([], Permission(is_granted=True)),
        (["WebHook-Allowed-Rate: 5"], Permission(is_granted=True)),
        (["Allow: GET, POST, OPTIONS", "Access-Control-Allow-Origin: *"], Permission(is_granted=True)),
    ],
    ids=str,
)
async def test_a_response_grants_a_permission(headers: list[str], permission: Permission) -> None:
    assert (await asked(answering_options(*headers)))[0] == permission


@pytest.mark.parametrize("status", ["204 No Content", "405 Method Not Allowed", "404 Not Found", "500 Oh", "302 Found"])
async def test_the_status_does_not_matter(status: str) -> None:
    """Receivers that do not implement the handshake answer anything, and others may use any status."""
    location = "Location: http://169.254.169.254/"
    assert (await asked(answering_options(location, status=status)))[0] == Permission(is_granted=True)
    granted = answering_options(location, f"WebHook-Allowed-Origin: {ORIGIN}", "WebHook-Allowed-Rate: 3", status=status)
    assert (await asked(granted))[0] == Permission(is_granted=True, per_minute=3)


async def test_the_permission_is_unknown_without_a_response() -> None:
    async with silent() as receiver, GuardedClient(receiver.allow, timeout_s=0.2) as client:
        with pytest.raises(Unanswered):
            await ask_permission(client, f"http://{receiver.address}:{PORT}/", origin=ORIGIN, per_minute=ASKED_RATE)


async def test_a_rejected_address_is_not_asked() -> None:
    async with receiving() as receiver, GuardedClient(NOTHING, timeout_s=DEADLINE_S) as client:
        with pytest.raises(InvalidInput):
            await ask_permission(client, f"https://{receiver.address}:{PORT}/", origin=ORIGIN, per_minute=ASKED_RATE)
    assert receiver.connections == 0

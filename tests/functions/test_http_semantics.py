"""HTTP semantics (RFC 9110) of all functions: caching, conditions, ranges, compression, `Host`, slashes, and 410."""

from __future__ import annotations

import asyncio
import gzip
import socket
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from darkroom_functions import api as api_routes
from darkroom_functions.http import routes
from darkroom_functions.http.semantics import Selected, select
from starlette.datastructures import Headers
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.functions.api import JOBS, PROBLEM, TIMEOUT_S, Api, binary, slug
from tests.functions.test_jobs import PICTURE, fetch, finished
from tests.functions.test_openapi import RECEIVER, SUBSCRIPTIONS, UNKNOWN, UNKNOWN_JOB, documents
from tests.parts import PUBLIC_URL

BYTES = bytes(range(256)) * 64
"""An artifact whose bytes are their positions."""


# Documents


def test_a_document_is_not_sent_again_to_a_client_that_has_it(api: Api) -> None:
    for path in documents(api):
        first = api.get(path)
        tag = first.headers["etag"]
        assert tag.startswith('W/"'), path
        for method in ("GET", "HEAD"):
            again = api.request(method, path, headers={"if-none-match": f'"x", {tag}'})
            assert (again.status_code, again.content) == (304, b""), path
            assert (again.headers["etag"], again.headers["cache-control"]) == (tag, "private, no-cache")
        assert api.get(path, headers={"if-none-match": '"x"'}).content == first.content


def test_a_job_that_changed_is_sent_again(api: Api) -> None:
    job_id = api.submit()
    tag = api.get(JOBS + job_id).headers["etag"]
    api.jobs.start(job_id)
    changed = api.get(JOBS + job_id, headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["state"]) == (200, "running")
    assert changed.headers["etag"] != tag


def test_each_response_has_cache_headers_and_is_not_sniffed(api: Api) -> None:
    job = finished(api, PICTURE)
    picture = job["output_paths"][0].removeprefix(PUBLIC_URL)
    subscription = api.post(SUBSCRIPTIONS, json={"url": RECEIVER}).headers["location"]
    kept, not_kept = "private, no-cache", "no-store"
    for method, path, more, rule in (
        ("GET", JOBS + job["id"], {}, kept),
        ("GET", picture, {}, kept),
        ("GET", picture, {"headers": {"range": "bytes=0-3"}}, kept),
        ("GET", picture, {"headers": {"range": "bytes=99999999-"}}, not_kept),
        ("GET", picture[:-1] + "x", {}, not_kept),
        ("GET", JOBS + UNKNOWN_JOB, {}, not_kept),
        ("PUT", JOBS, {}, not_kept),
        ("POST", JOBS, {"json": {}}, not_kept),
        ("POST", JOBS, {"json": {"colour": "red"}}, not_kept),
        ("POST", "/", {"headers": binary("kept?"), "json": {}}, not_kept),
        ("POST", f"{JOBS}{job['id']}/cancel", {}, not_kept),
        ("GET", f"{subscription}/secret", {}, not_kept),
        ("GET", "/api/v1/webhook-secret", {}, not_kept),
        ("DELETE", JOBS + job["id"], {}, not_kept),
        ("GET", "/healthz", {}, not_kept),
        ("GET", "/nothing/here", {}, not_kept),
        ("HEAD", routes.TENANT_EVENTS, {}, "no-store, no-transform"),
    ):
        answer = api.client.request(method, path, **more)
        assert answer.headers.get_list("cache-control") == [rule], (method, path, answer.status_code)
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], (method, path)
        assert "etag" not in answer.headers or rule == kept


# Compression


def test_json_is_compressed_for_a_client_that_accepts_gzip(api: Api) -> None:
    job_id = api.submit({"prompt": "a lighthouse at dusk " * 100})
    plain = raw(api, JOBS + job_id, "identity")
    packed = raw(api, JOBS + job_id, "br, gzip")
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(packed.content) == plain.content
    assert len(packed.content) < len(plain.content) / 2
    assert packed.headers["etag"] == plain.headers["etag"]
    for accepted in ("gzip;q=0", "identity", "br", "gzip;q=0, *", ""):
        assert "content-encoding" not in raw(api, JOBS + job_id, accepted).headers, accepted
    refusal = raw(api, "/nothing/" + "x" * 2000, "gzip")
    assert (refusal.status_code, refusal.headers["content-encoding"]) == (404, "gzip")


def test_pictures_and_event_streams_are_not_compressed(api: Api) -> None:
    job = finished(api, BYTES)
    picture = raw(api, job["output_paths"][0].removeprefix(PUBLIC_URL), "gzip")
    assert picture.content == BYTES
    stream = raw(api, f"{JOBS}{job['id']}/events", "gzip")
    assert stream.content.startswith(b"retry:")
    for answer in (picture, stream):
        assert "content-encoding" not in answer.headers


def raw(api: Api, path: str, accepted: str) -> httpx.Response:
    """The response as it was sent, not decoded."""
    with api.client.stream("GET", path, headers={"accept-encoding": accepted}) as response:
        content = b"".join(response.iter_raw())
    headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
    seen = httpx.Response(response.status_code, headers=headers, content=content)
    if "content-encoding" in response.headers:
        seen.headers["content-encoding"] = response.headers["content-encoding"]
    return seen


# Pictures


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, (0, 10)),
        ("bytes=100-", 206, (100, len(BYTES))),
        ("bytes=-5", 206, (len(BYTES) - 5, len(BYTES))),
        ("bytes=0-999999", 206, (0, len(BYTES))),
        ("bytes=-999999", 206, (0, len(BYTES))),
        (f"bytes={len(BYTES)}-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=0-1,5-6", 200, (0, len(BYTES))),
        ("bytes=9-2", 200, (0, len(BYTES))),
        ("bytes=x", 200, (0, len(BYTES))),
        ("pixels=0-9", 200, (0, len(BYTES))),
    ],
)
def test_a_part_of_a_picture_can_be_fetched(
    picture: tuple[Api, str], wanted: str, status: int, part: tuple[int, int] | None
) -> None:
    api, link = picture
    response = fetch(api, link, headers={"range": wanted})
    assert response.status_code == status
    if part is None:
        assert response.headers["content-range"] == f"bytes */{len(BYTES)}"
        return
    start, end = part
    assert response.content == BYTES[start:end]
    assert response.headers["content-length"] == str(end - start)
    said = f"bytes {start}-{end - 1}/{len(BYTES)}" if status == 206 else None
    assert response.headers.get("content-range") == said
    head = fetch(api, link, method="HEAD", headers={"range": wanted})
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BYTES)))


@pytest.fixture(scope="module")
def picture(api: Api) -> tuple[Api, str]:
    link: str = finished(api, BYTES)["output_paths"][0]
    return api, link


def test_the_conditions_of_a_request_for_a_picture_hold_over_http(picture: tuple[Api, str]) -> None:
    api, link = picture
    whole = fetch(api, link)
    tag, modified = whole.headers["etag"], whole.headers["last-modified"]
    ancient = "Sun, 06 Nov 1994 08:49:37 GMT"
    for headers, status in (
        ({"if-none-match": tag}, 304),
        ({"if-modified-since": modified}, 304),
        ({"if-modified-since": ancient}, 200),
        ({"if-none-match": '"x"', "if-modified-since": modified}, 200),
        ({"if-match": tag}, 200),
        ({"if-match": '"x"'}, 412),
        ({"if-unmodified-since": ancient}, 412),
        ({"range": "bytes=0-3", "if-range": tag}, 206),
        ({"range": "bytes=0-3", "if-range": modified}, 206),
        ({"range": "bytes=0-3", "if-range": '"x"'}, 200),
        ({"range": "bytes=0-3", "if-none-match": tag}, 304),
    ):
        assert fetch(api, link, headers=headers).status_code == status, headers


MODIFIED = datetime(2026, 11, 20, 8, 30, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "selected"),
    [
        ({"if-match": 'W/"tag"'}, (412, 0, 0)),
        ({"if-match": "*"}, (200, 0, 10)),
        ({"if-match": '"a", "tag"', "if-none-match": 'W/"tag"'}, (304, 0, 0)),
        ({"if-unmodified-since": "Fri, 20 Nov 2026 08:30:00 GMT"}, (200, 0, 10)),
        ({"if-unmodified-since": "Fri, 20 Nov 2026 08:29:59 GMT"}, (412, 0, 0)),
        ({"if-modified-since": "Fri, 20 Nov 2026 08:30:00 GMT"}, (304, 0, 0)),
        ({"if-modified-since": "yesterday"}, (200, 0, 10)),
        ({"range": "bytes=2-4", "if-range": 'W/"tag"'}, (200, 0, 10)),
        ({"range": "BYTES=2-4"}, (206, 2, 5)),
        ({"range": "bytes=9-9"}, (206, 9, 10)),
        ({"range": "bytes=-"}, (200, 0, 10)),
    ],
    ids=str,
)
def test_conditions_select_as_rfc_9110_orders_them(headers: dict[str, str], selected: tuple[Any, int, int]) -> None:
    assert select(Headers(headers), tag="tag", modified=MODIFIED, size=10) == Selected(*selected)


# A job that was deleted


async def test_every_path_of_a_deleted_job_is_410(api: Api) -> None:
    """Also that of its picture, for any cached copy. A socket is closed with 4410, and a subscription is refused."""
    job = finished(api, PICTURE)
    job_id, link, other = job["id"], job["output_paths"][0], api.submit()
    tag = fetch(api, link).headers["etag"]
    assert fetch(api, link, headers={"if-none-match": tag}).status_code == 304
    assert api.request("DELETE", JOBS + job_id).status_code == 204
    for method, path in (
        ("GET", f"/tasks/{job_id}"),
        ("GET", JOBS + job_id),
        ("GET", f"{JOBS}{job_id}?wait=1"),
        ("GET", f"{JOBS}{job_id}/events"),
        ("GET", f"{JOBS}{job_id}/events?since=end"),
        ("GET", f"{JOBS}{job_id}/deliveries"),
        ("GET", f"{JOBS}{job_id}/deliveries/{job_id}.1.job"),
        ("POST", f"{JOBS}{job_id}/deliveries/{job_id}.1.job/redeliver"),
        ("POST", f"{JOBS}{job_id}/cancel"),
    ):
        gone = api.request(method, path)
        assert (gone.status_code, slug(gone), gone.json()["state"]) == (410, "gone", "completed"), path
    for conditions in ({}, {"if-none-match": tag}, {"if-none-match": "*"}, {"range": "bytes=0-3"}):
        assert fetch(api, link, headers=conditions).status_code == 410
    for path in (f"/ws/jobs/{job_id}", f"/ws/jobs?job_ids={other},{job_id}"):
        async with connect(api.functions.ws_url + path, proxy=None) as ws, asyncio.timeout(TIMEOUT_S):
            assert '"gone"' in str(await ws.recv())
            await ws.wait_closed()
            assert ws.close_code == 4410


# Host


@pytest.mark.parametrize(
    ("request_line", "hosts", "status"),
    [
        ("GET /healthz HTTP/1.1", [], 400),
        ("GET /healthz HTTP/1.0", [], 200),
        ("GET /healthz HTTP/1.1", ["127.0.0.1"], 200),
        ("GET /healthz HTTP/1.1", ["127.0.0.1", "127.0.0.1"], 400),
        ("GET /healthz HTTP/1.1", ["a b"], 400),
        ("GET /healthz HTTP/1.1", ["user@127.0.0.1"], 400),
        ("GET /ws/events HTTP/1.1", [], 400),
    ],
)
def test_a_request_without_one_valid_host_is_refused(
    api: Api, request_line: str, hosts: list[str], status: int
) -> None:
    upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    connection = f"Connection: Upgrade\r\n{upgrade}" if "/ws/" in request_line else "Connection: close\r\n"
    with socket.create_connection(("127.0.0.1", api.functions.port), timeout=TIMEOUT_S) as client:
        client.sendall(f"{request_line}\r\n{lines}{connection}\r\n".encode())
        with client.makefile("rb") as answer:
            assert int(answer.readline().split()[1]) == status
            if status == 400:
                headers = iter(answer.readline, b"\r\n")
                assert any(PROBLEM.encode() in line for line in headers)


# Slashes


def test_a_slash_at_the_end_of_a_path_changes_nothing(api: Api) -> None:
    job_id = api.jobs.completed()
    parts = {"id": job_id, "name": "nope", "model": "nope", "delivery": f"{job_id}.1.job", "key": "a/b/1/0-c.png"}
    requests = [(each.method, each.template.format(**parts)) for each in api_routes.ALL if each.template != "/"]
    requests += [("POST", routes.SINK), ("POST", routes.UNDELIVERED_SINK), ("GET", "/healthz"), ("GET", "/readyz")]
    requests += [("PUT", JOBS), ("GET", f"{routes.UNDELIVERED}{UNKNOWN}"), ("GET", "/nothing/here")]
    for method, path in requests:
        asked = "HEAD" if path == routes.TENANT_EVENTS else method  # a GET is answered for as long as it stays
        form = path.rstrip("/")
        one, other = (api.client.request(asked, each) for each in (form, form + "/"))
        assert one.status_code == other.status_code, (method, path)
        if method != "DELETE" and one.is_error:
            assert one.json() == other.json(), (method, path)
    twice = api.client.get(f"{JOBS}{job_id}//")
    assert twice.status_code == 404


async def test_a_socket_opens_with_a_slash_at_its_end_and_an_unknown_path_is_denied_with_a_problem(api: Api) -> None:
    job_id = api.jobs.completed()
    for path in (f"/ws/jobs/{job_id}/", f"/ws/jobs/?job_ids={job_id}", "/ws/events/"):
        async with connect(api.functions.ws_url + path, proxy=None):
            pass
    for path in ("/ws/nope", "/ws", f"{JOBS}{job_id}", "/"):
        with pytest.raises(InvalidStatus) as denied:
            async with connect(api.functions.ws_url + path, proxy=None):
                pass
        response = denied.value.response
        assert (response.status_code, response.headers["content-type"]) == (404, PROBLEM), path
        assert b'"not-found"' in bytes(response.body or b"") or b"problems/not-found" in bytes(response.body or b"")


# Charsets


@pytest.mark.parametrize("charset", ["us-ascii", "US-ASCII", "ascii", "utf8", "UTF-8", '"utf-8"'])
def test_json_in_a_part_of_utf_8_is_accepted(api: Api, charset: str) -> None:
    sent = {"content-type": f"application/json; charset={charset}"}
    assert api.post(JOBS, content=b"{}", headers=sent).status_code == 202
    assert api.post("/", content=b"{}", headers=binary(f"in {charset}") | sent).status_code == 202
    sent = {"content-type": f"application/cloudevents-batch+json; charset={charset}"}
    assert api.post("/", content=b"[]", headers=sent).status_code == 200


def test_json_in_another_charset_is_refused(api: Api) -> None:
    for charset in ("iso-8859-1", "utf-16"):
        refused = api.post(JOBS, content=b"{}", headers={"content-type": f"application/json; charset={charset}"})
        assert refused.status_code == 415

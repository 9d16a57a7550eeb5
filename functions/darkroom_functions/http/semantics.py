"""HTTP semantics (RFC 9110) of every request and every response, whichever function handles it.

`Edge` is the outermost application of a process (`serve.py`), `Validators` wraps each route of GET (`routes.py`).

- A request of HTTP/1.1 without exactly one valid `Host` is refused (RFC 9112, section 3.2).
- A path may end in a slash: both forms are one path.
- JSON is compressed for clients that accept gzip. Event streams and artifacts never are.
- **Caching** is decided here alone. A response is `no-store`, with three exceptions. A JSON document that a GET reads
  has a weak `ETag` and is `private, no-cache`: a private cache may store it and revalidates each use (304); secrets are
  not stored. An artifact is the same with its SHA-256 as a strong `ETag`, and 304 only while it exists (`select`), so
  that a deletion takes effect at once. An event stream is `no-store, no-transform` (`sse.py`).
- Browsers must not sniff another media type than the declared one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

from darkroom.errors import FieldError, MalformedRequest
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header, parse_date, parse_etags

from darkroom_functions.http.responses import CSV_TYPE, DEFAULT_HEADERS, JSON_TYPE, problem

REVALIDATED = "private, no-cache"
"""The `Cache-Control` of what a private cache may store and must revalidate before each use."""

COMPRESSION_LEVEL = 6
"""zlib's own default. A list of 100 jobs (158 kB) becomes 23 kB in 1.8 ms; level 9 takes 2.3 ms for as much."""

COMPRESSED_BYTES = 1024
"""The smallest body that is compressed: a shorter one fits into one packet anyway."""

TAG_BYTES = 16

_HOST = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[\w.~!$&'()*+,;=%-]*)(:[0-9]*)?", re.ASCII)  # RFC 3986, section 3.2.2

_RANGE = re.compile(r"bytes=[ \t]*(?P<first>[0-9]*)-(?P<last>[0-9]*)[ \t]*", re.ASCII | re.IGNORECASE)
"""One range of bytes. A request for several gets the whole, as RFC 9110, section 14.2 allows."""


@dataclass(frozen=True)
class Selected:
    """The response to a request for stored bytes: its status, and the bytes from `start` to before `end`."""

    status: HTTPStatus
    start: int
    end: int


def select(headers: Headers, *, tag: str, modified: datetime, size: int) -> Selected:
    """What a GET's conditions and range select, in the order of RFC 9110, section 13.2.2.

    `tag` is the opaque part of a strong ETag. 412 and 416 are refusals; 206 and 200 have a body.
    """
    modified = modified.replace(microsecond=0)  # dates in headers have seconds
    if_match, if_none_match = _joined(headers, "if-match"), _joined(headers, "if-none-match")
    unmodified_since = parse_date(headers.get("if-unmodified-since"))
    modified_since = parse_date(headers.get("if-modified-since"))
    if if_match is not None:
        fails = not parse_etags(if_match).contains(tag)
    else:
        fails = unmodified_since is not None and modified > unmodified_since
    if fails:
        return Selected(HTTPStatus.PRECONDITION_FAILED, 0, 0)
    if if_none_match is not None:
        is_known = parse_etags(if_none_match).contains_weak(tag)
    else:
        is_known = modified_since is not None and modified <= modified_since
    if is_known:
        return Selected(HTTPStatus.NOT_MODIFIED, 0, 0)
    whole = Selected(HTTPStatus.OK, 0, size)
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or not (match["first"] or match["last"]) or not _is_current(headers, tag, modified):
        return whole
    if not match["first"]:
        start, end = max(size - int(match["last"]), 0), size
    else:
        start, end = int(match["first"]), min(int(match["last"] or size) + 1, size)
        if match["last"] and int(match["last"]) < start:
            return whole  # an invalid range counts as none
    if start >= size:
        return Selected(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, 0)
    return Selected(HTTPStatus.PARTIAL_CONTENT, start, end)


def _is_current(headers: Headers, tag: str, modified: datetime) -> bool:
    """`If-Range`: whether the client has a part of these bytes. A weak tag never matches."""
    if_range = headers.get("if-range")
    if if_range is None:
        return True
    date = parse_date(if_range)
    return date == modified if date is not None else if_range.strip() == f'"{tag}"'


def _joined(headers: Headers, name: str) -> str | None:
    """The value of a list header, which may be sent several times."""
    values = headers.getlist(name)
    return ", ".join(values) if values else None


class Edge:
    """The outermost application of a process: refuses invalid hosts, normalises paths, compresses, and completes
    headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._compressing = GZipMiddleware(app, minimum_size=COMPRESSED_BYTES, compresslevel=COMPRESSION_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._plain(scope, receive, send)
            return

        async def completing(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in DEFAULT_HEADERS.items():
                    headers.setdefault(name, value)
                if "etag" in headers and "accept-encoding" not in headers.get("vary", "").lower():
                    headers.add_vary_header("Accept-Encoding")
            await send(message)

        headers = Headers(scope=scope)
        fault = host_fault(headers.getlist("host"), http_version=scope.get("http_version", "1.1"))
        if fault is not None:
            refusal = MalformedRequest(f"Host {fault}", fields=[FieldError("host", fault)])
            await problem(refusal)(scope, receive, completing)
            return
        app = self._compressing if _accepts_gzip(headers) else self._plain
        await app({**scope, "path": canonical(scope["path"])}, receive, completing)


def canonical(path: str) -> str:
    """The form of a path without a slash at its end: both forms are one path."""
    return path[:-1] if path.endswith("/") and path != "/" and not path.endswith("//") else path


def host_fault(hosts: Sequence[str], *, http_version: str) -> str | None:
    """The fault of the `Host` headers of a request, worded to follow the name; None for valid ones."""
    if not hosts and http_version == "1.1":
        return "must be sent with a request of HTTP/1.1"
    if len(hosts) > 1:
        return "must be sent once"
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        return "must be a host name or an address, with or without a port"
    return None


def host_of(authority: str) -> str:
    """The host of `host:port` in lower case, without the brackets of an IPv6 address and the dot of a complete name."""
    host, colon, port = authority.lower().rpartition(":")
    if not colon or not (port.isdecimal() or not port) or (":" in host and not host.endswith("]")):
        host = authority.lower()
    return host.removeprefix("[").removesuffix("]").removesuffix(".")


def _accepts_gzip(headers: Headers) -> bool:
    accepted = _joined(headers, "accept-encoding")
    return accepted is not None and parse_accept_header(accepted, Accept).quality("gzip") > 0


class Validators:
    """Adds an `ETag` to a document (JSON, CSV), and responds 304 to a client that has it. Wraps each route of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if_none_match = _joined(Headers(scope=scope), "if-none-match")
        start: Message | None = None

        async def validating(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_document(message):
                start = message  # held back until the body is complete
                return
            if start is not None:
                body: bytes = message.get("body", b"")
                if not message.get("more_body", False) and _validate(start, body, if_none_match):
                    message = {**message, "body": b""}
                await send(start)
                start = None
            await send(message)

        await self._app(scope, receive, validating)


def _is_document(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    is_document = headers.get("content-type") in {JSON_TYPE, CSV_TYPE}
    return start["status"] == HTTPStatus.OK and is_document and "cache-control" not in headers


def _validate(start: Message, body: bytes, if_none_match: str | None) -> bool:
    """Complete the headers of a document. Returns whether the client has it, and the response is 304."""
    tag = hashlib.blake2b(body, digest_size=TAG_BYTES).hexdigest()
    headers = MutableHeaders(scope=start)
    headers["ETag"] = f'W/"{tag}"'  # weak: the same for each content encoding
    headers["Cache-Control"] = REVALIDATED
    if if_none_match is None or not parse_etags(if_none_match).contains_weak(tag):
        return False
    start["status"] = int(HTTPStatus.NOT_MODIFIED)
    del headers["content-length"], headers["content-type"]
    return True

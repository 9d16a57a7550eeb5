"""Allowed hosts and origins: the host names that a process serves, and the web pages that may use it.

Every connection is checked here before it reaches a function (`serve.py`). A browser sends requests to any address that
a page names, loopback included, and adds what it has stored for that address. Without authentication
(`DARKROOM_AUTH=none`) a page of any site could therefore submit and read jobs:

- `Host` names another host: 421. A page whose name is made to resolve to this address (DNS rebinding) sends that
  name. Only loopback names, the host of `DARKROOM_PUBLIC_URL` and `DARKROOM_ALLOWED_HOSTS` are served.
- `Origin` is foreign: 403, whatever the request. Clients other than browsers send none. Where a browser sends none, as
  for an image, `Sec-Fetch-Site` decides, and if that is foreign too, the origin in `Referer`. To follow a link to an
  address here is no request of the page that has the link.

With authentication a page has to send a credential that it knows. Only what a browser adds by itself is checked: a
request with the cookie of a session, or with the password of `Basic`, that is not safe or opens a socket must have an
origin that is not foreign. Hosts are checked if `DARKROOM_ALLOWED_HOSTS` is set, since a Knative Service has several
names; an IP address passes where the process does not listen on loopback, since kubelet and Prometheus use it.

A page may read a response if its origin is in `DARKROOM_ALLOWED_ORIGINS` (CORS), and send what the API uses. A
preflight needs no credential; that of a foreign origin is rejected.

Probes and metrics answer inner requests only (`inside.py`): 404 for others.

A reverse proxy that replaces `Host`, as the gateway does, passes the original on in `X-Forwarded-Host`: both count.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from darkroom.catalogue.parameters import shown
from darkroom.errors import DarkroomError, ForeignOrigin, MisdirectedRequest, NotFound
from darkroom.logs import logger
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom_functions.http.credentials import cookies
from darkroom_functions.http.inside import Networks, is_hidden
from darkroom_functions.http.responses import problem
from darkroom_functions.http.semantics import host_of
from darkroom_functions.settings import DEFAULT_PORTS, AuthMode, ServeSettings, is_loopback, origin_of

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Safe methods (RFC 9110, section 9.2.1)."""

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST")
"""The methods of the API."""

REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "Prefer", "Last-Event-ID", "traceparent"),
    *("If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Range"),
    *(f"ce-{name}" for name in ("id", "source", "specversion", "type", "subject", "time", "dataschema")),
)
"""The headers that a page of an allowed origin may send, beside those that any page may."""

RESPONSE_HEADERS = (
    *("Accept-Ranges", "Allow", "Content-Range", "ETag", "Location", "Preference-Applied"),
    *("RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
)
"""The headers that a page of an allowed origin may read, beside those that any page may."""

OWN_SITES = frozenset({"same-origin", "none"})
"""`Sec-Fetch-Site` of a request by a page of the same origin, or by the browser's user."""

NO_ORIGIN = "null"
"""The origin of a page that hides its own (RFC 6454, section 7.3)."""

_log = logger(__name__)


@dataclass(frozen=True)
class Policy:
    """The hosts and origins that are served.

    `hosts` are names in lower case, and with a leading dot all names below one; they are checked if `checks_hosts`.
    `origins` are those of other sites whose pages may use this process, `own_origins` its public ones. `is_open`: no
    request needs a credential, so that each is checked.
    `peers` are the networks of inner requests.
    """

    hosts: frozenset[str]
    checks_hosts: bool
    on_loopback: bool
    origins: frozenset[str]
    own_origins: frozenset[str]
    is_open: bool
    peers: Networks

    @classmethod
    def of(cls, settings: ServeSettings) -> Policy:
        on_loopback = is_loopback(settings.host)
        public = settings.public_url
        public_host = (urlsplit(public).hostname or "") if public else ""
        return cls(
            hosts=frozenset(filter(None, (*settings.allowed_hosts, public_host))),
            checks_hosts=settings.auth is AuthMode.NONE or bool(settings.allowed_hosts),
            on_loopback=on_loopback,
            origins=frozenset(settings.allowed_origins),
            own_origins=frozenset({origin_of(public)} if public else ()),
            is_open=settings.auth is AuthMode.NONE,
            peers=settings.internal_peers,
        )

    def serves(self, authority: str) -> bool:
        """Whether this `Host` is served."""
        host = host_of(authority)
        return not self.checks_hosts or (
            is_loopback(host)
            or (_is_address(host) and not self.on_loopback)
            or host in self.hosts
            or any(name.startswith(".") and host.endswith(name) for name in self.hosts)
        )

    def trusts(self, origin: str, authorities: Collection[str]) -> bool:
        """Whether a page of `origin` may use this process, which was addressed by these `authorities` (`Host`)."""
        scheme, _, authority = origin.lower().partition("://")
        if f"{scheme}://{authority}" in self.origins | self.own_origins:
            return True
        return scheme in DEFAULT_PORTS and authority in {_without_default(each, scheme) for each in authorities}


class Front:
    """Applies the checks of a policy before the application."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy
        self._cors = CORSMiddleware(
            app,
            allow_origins=policy.origins | policy.own_origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            allow_credentials=True,  # a page of a sibling host may use its user's session; no other gets the cookie
            allow_private_network=True,
            expose_headers=RESPONSE_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        fault = self._fault(scope, headers)
        if fault is not None:
            _log.info("foreign_request", path=scope["path"], problem=fault.slug, detail=fault.detail)
            await problem(fault)(scope, receive, self._varying(send))
        elif not self._policy.origins or scope["type"] != "http":
            await self._app(scope, receive, send)
        elif "origin" in headers and self._cors.is_allowed_origin(headers["origin"]):
            await self._cors(scope, receive, send)
        else:
            await self._app(scope, receive, self._varying(send))

    def _varying(self, send: Send) -> Send:
        """Declare that the response differs by origin, where any origin is allowed."""

        async def varying(message: Message) -> None:
            if message["type"] == "http.response.start" and self._policy.origins:
                MutableHeaders(scope=message).add_vary_header("Origin")
            await send(message)

        return varying

    def _fault(self, scope: Scope, headers: Headers) -> DarkroomError | None:
        authorities = [*headers.getlist("host"), *_elements(headers.getlist("x-forwarded-host"))]
        for authority in authorities:
            if not self._policy.serves(authority):
                return MisdirectedRequest(f'no host "{shown(authority)}" is served here: see DARKROOM_ALLOWED_HOSTS')
        if is_hidden(scope, headers, self._policy.peers):
            return NotFound(f"there is nothing at {scope['path']}")
        if not self._is_checked(scope, headers):
            return None
        origins = headers.getlist("origin") or _origins_of_site(headers)
        for origin in origins:
            if not self._policy.trusts(origin, authorities):
                return ForeignOrigin(
                    f'pages of the origin "{shown(origin)}" may not do this here: see DARKROOM_ALLOWED_ORIGINS'
                )
        return None

    def _is_checked(self, scope: Scope, headers: Headers) -> bool:
        """Whether the request's origin matters."""
        if scope["type"] == "http" and "access-control-request-method" in headers:
            return True  # a preflight
        if self._policy.is_open:
            return not _follows_link(scope, headers)
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return False
        return _is_ambient(headers)


def _is_ambient(headers: Headers) -> bool:
    """Whether a browser adds the credential by itself: the cookie of a session, or the password that it has stored.

    A header that a page sets counts instead of a cookie, and a browser asks before it sends such a header (CORS).
    """
    schemes = [value.strip().partition(" ")[0].lower() for value in headers.getlist("authorization")]
    return "basic" in schemes or (not schemes and cookies.has_session(headers))


def _follows_link(scope: Scope, headers: Headers) -> bool:
    """Whether the browser goes to another page, which the page with the link cannot read (Fetch Metadata)."""
    return (
        scope["type"] == "http"
        and scope["method"] in SAFE_METHODS
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and "origin" not in headers
    )


def _origins_of_site(headers: Headers) -> list[str]:
    """The origin of a request without `Origin`: none where a page of the same origin or no page sends it."""
    if headers.get("sec-fetch-site", "none") in OWN_SITES:
        return []
    try:
        return [origin_of(headers["referer"])]
    except (KeyError, ValueError):
        return [NO_ORIGIN]


def _elements(values: Sequence[str]) -> list[str]:
    return [element.strip() for element in ",".join(values).split(",") if element.strip()]


def _without_default(authority: str, scheme: str) -> str:
    return authority.lower().removesuffix(f":{DEFAULT_PORTS[scheme]}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

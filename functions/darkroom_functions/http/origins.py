"""Allowed hosts and origins: the host names that a process serves, and the web pages that may use it.

Every connection is checked here before it reaches a function (`serve.py`). A browser sends requests to any address that
a page names, loopback included, so a page of any site could otherwise submit and read jobs:

- `Host` names another host: 421. A page whose name is made to resolve to this address (DNS rebinding) sends that
  name. Where the process listens on loopback, only loopback names, the host of `DARKROOM_PUBLIC_URL` and
  `DARKROOM_ALLOWED_HOSTS` are served. Elsewhere hosts are checked only if `DARKROOM_ALLOWED_HOSTS` is set, since a
  Knative Service has several names; an IP address always passes there, since kubelet and Prometheus use it and a
  rebound page never does.
- `Origin` is foreign, and the request is a socket, a CORS preflight or is not safe: 403. Clients other than browsers
  send no `Origin`. Where a browser sends none, `Sec-Fetch-Site` decides.
- A safe request of a foreign origin gets its response, without the CORS headers that let the page read it. Those of
  `DARKROOM_ALLOWED_ORIGINS` get them.

A reverse proxy that replaces `Host`, as the gateway does, passes the original on in `X-Forwarded-Host`: both count.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from darkroom.catalogue.parameters import shown
from darkroom.errors import DarkroomError, ForeignOrigin, MisdirectedRequest
from darkroom.logs import logger
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from darkroom_functions.http.responses import problem
from darkroom_functions.settings import DEFAULT_PORTS, AuthMode, ServeSettings, is_loopback, origin_of

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Safe methods (RFC 9110, section 9.2.1)."""

OWN_SITES = frozenset({"same-origin", "none"})
"""`Sec-Fetch-Site` of a request by a page of the same origin, or by the browser's user."""

_log = logger(__name__)


@dataclass(frozen=True)
class Policy:
    """The hosts and origins that are served.

    `hosts` are names in lower case, and with a leading dot all names below one; they are checked if `checks_hosts`.
    `origins` are those of other sites whose pages may use this process, `own_origins` its public ones.
    """

    hosts: frozenset[str]
    checks_hosts: bool
    on_loopback: bool
    origins: frozenset[str]
    own_origins: frozenset[str]

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
        )

    def serves(self, authority: str) -> bool:
        """Whether this `Host` is served."""
        host = _host_of(authority)
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
            allow_methods=("*",),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("*",),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        fault = self._fault(scope, Headers(scope=scope))
        if fault is not None:
            _log.info("foreign_request", path=scope["path"], problem=fault.slug, detail=fault.detail)
            await problem(fault)(scope, receive, send)
        elif self._policy.origins and scope["type"] == "http":
            await self._cors(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fault(self, scope: Scope, headers: Headers) -> DarkroomError | None:
        authorities = [*headers.getlist("host"), *_elements(headers.getlist("x-forwarded-host"))]
        for authority in authorities:
            if not self._policy.serves(authority):
                return MisdirectedRequest(f'no host "{shown(authority)}" is served here: see DARKROOM_ALLOWED_HOSTS')
        is_preflight = scope["type"] == "http" and "access-control-request-method" in headers
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS and not is_preflight:
            return None
        origins = headers.getlist("origin")
        for origin in origins:
            if not self._policy.trusts(origin, authorities):
                return ForeignOrigin(
                    f'pages of the origin "{shown(origin)}" may not do this here: see DARKROOM_ALLOWED_ORIGINS'
                )
        if not origins and headers.get("sec-fetch-site", "none") not in OWN_SITES:
            return ForeignOrigin("pages of other sites may not do this here: see DARKROOM_ALLOWED_ORIGINS")
        return None


def _elements(values: Sequence[str]) -> list[str]:
    return [element.strip() for element in ",".join(values).split(",") if element.strip()]


def _host_of(authority: str) -> str:
    """The host of `host:port`, without the brackets of an IPv6 address and the dot of a complete name."""
    host, colon, port = authority.lower().rpartition(":")
    if not colon or not (port.isdecimal() or not port) or (":" in host and not host.endswith("]")):
        host = authority.lower()
    return host.removeprefix("[").removesuffix("]").removesuffix(".")


def _without_default(authority: str, scheme: str) -> str:
    return authority.lower().removesuffix(f":{DEFAULT_PORTS[scheme]}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

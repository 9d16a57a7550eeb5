"""The cookie of a session (RFC 6265bis).

It is `HttpOnly`, `SameSite=Strict` and `Secure`, and its name has the prefix `__Host-`, with which browsers accept it
from this host alone. Over plain http on loopback, where not every browser stores such a cookie, it is neither `Secure`
nor prefixed, and only there is that name accepted.

A browser sends the cookie by itself, whichever page makes it do so. `origins.py` therefore checks the origin of each
request that has one.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import Response

from darkroom_functions.http.semantics import host_of
from darkroom_functions.settings import is_loopback

SECURE_NAME = "__Host-darkroom-session"
PLAIN_NAME = "darkroom-session"
NAMES = (SECURE_NAME, PLAIN_NAME)


def has_session(headers: Headers) -> bool:
    """Whether a request has the cookie of a session, valid or not, under either name."""
    return any(name in cookies for cookies in _cookies(headers) for name in NAMES)


def session_of(connection: HTTPConnection) -> str | None:
    """The text of the session in a request's cookie, None where it has none."""
    name = _name_for(connection)
    return next((cookies[name] for cookies in _cookies(connection.headers) if cookies.get(name)), None)


def set_session(response: Response, connection: HTTPConnection, text: str, *, max_age_s: int) -> None:
    """Store a session in the browser for so many seconds."""
    name = _name_for(connection)
    is_secure = name == SECURE_NAME
    response.set_cookie(name, text, max_age=max_age_s, path="/", secure=is_secure, httponly=True, samesite="strict")


def clear_session(response: Response, connection: HTTPConnection) -> None:
    """Delete the session from the browser."""
    set_session(response, connection, "", max_age_s=0)


def _name_for(connection: HTTPConnection) -> str:
    """The name of the cookie on the address that a request names."""
    headers = connection.headers
    hosts = [*headers.getlist("host"), *headers.getlist("x-forwarded-host")]
    is_plain = connection.scope.get("scheme") in {"http", "ws"} and all(is_loopback(host_of(host)) for host in hosts)
    return PLAIN_NAME if is_plain else SECURE_NAME


def _cookies(headers: Headers) -> list[dict[str, str]]:
    return [cookie_parser(value) for value in headers.getlist("cookie")]

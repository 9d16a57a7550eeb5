"""Access: who sends a request, and whether that is permitted.

Each route declares the scope that it needs (`routes.py`). Before its handler runs, `authorize` verifies the credential
of the connection, and the handler finds the caller with `principal_of`.

A credential is sent in the header `Authorization`: `Bearer <key>`, `Token <key>` and `Key <key>` are equal, and in
`Basic` it is the password. It is never part of a URL, which proxies log. A text of three parts with dots between them
is a JWT bearer token of the configured issuer (`darkroom.access.tokens`), every other one a key.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum

from darkroom.access.credentials import TEXT_PATTERN, Credential
from darkroom.access.principals import EVERYONE, Principal, Scope
from darkroom.access.tokens.issuer import IssuerKeys, issuer_client
from darkroom.access.tokens.verification import TokenVerifier
from darkroom.access.verification import KeyVerifier
from darkroom.errors import CredentialRefused, MalformedRequest, ScopeMissing
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.supervision import vital
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from darkroom_functions.settings import AccessSettings, AuthMode

SCHEMES = frozenset({"bearer", "token", "key"})
"""The authentication schemes whose parameter is the credential, in lower case (RFC 9110, section 11.1)."""

TOKEN_DOTS = 2
"""The dots of a JWT with a signature (RFC 7515, section 3.1). A key has none."""

PRINCIPAL = "darkroom.principal"
"""Where the principal is in the ASGI scope."""

_SECRET = re.compile(TEXT_PATTERN.encode() + rb"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}")
"""A key or a JWT, whose header and claims begin with `{"` in base64url."""


class Open(StrEnum):
    """Routes without a scope. `PUBLIC`: anyone may read it. `INTERNAL`: for darkroom's own parts, which prove
    themselves otherwise. `LINK`: the signature of the link is the credential.
    """

    PUBLIC = "public"
    INTERNAL = "internal"
    LINK = "link"


Needed = Scope | Open
"""What a route declares."""


class Access:
    """The verification of one process. Without a verifier authentication is off, and all callers are `EVERYONE`.

    Without `tokens` no issuer is configured, and JWTs are refused.
    """

    def __init__(self, verifier: KeyVerifier | None, tokens: TokenVerifier | None = None) -> None:
        self._verifier = verifier
        self._tokens = tokens

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """The principal of a connection.

        Raises CredentialRefused, MalformedRequest for a credential in the wrong place, AccessUnavailable and
        LedgerUnavailable.
        """
        if _SECRET.search(connection.scope.get("query_string", b"")) is not None:
            raise MalformedRequest(
                "a credential must not be part of a URL, which proxies and browsers store: replace this one"
            )
        if self._verifier is None:
            return EVERYONE
        text = presented(connection.headers)
        if text is None:
            raise CredentialRefused("the request has no credential", error=None)
        if text.count(".") == TOKEN_DOTS:
            if self._tokens is None:
                raise CredentialRefused("JWTs are not accepted: no issuer is configured (DARKROOM_OIDC_ISSUER)")
            return await self._tokens.verify(text)
        credential = Credential.parse(text)
        if credential is None:
            raise CredentialRefused("the key is not valid")
        return await self._verifier.verify(credential)


@asynccontextmanager
async def running(settings: AccessSettings) -> AsyncIterator[Access]:
    """The verification of a process, with a connection of its own to Redis."""
    if settings.auth is AuthMode.NONE:
        yield Access(None)
        return
    ending = asyncio.Event()
    async with AsyncExitStack() as stack:
        client = connect_async(settings.redis_url.get_secret_value())
        stack.push_async_callback(client.aclose)
        verifier = KeyVerifier(AsyncLedger(client, settings.namespace), client)
        background = [vital(verifier.run(), name="follow keys", may_end=ending.is_set)]
        tokens = None
        if (rules := settings.token_rules) is not None:
            issuer = IssuerKeys(rules.issuer, await stack.enter_async_context(issuer_client()))
            background.append(vital(issuer.run(), name="read the issuer's keys", may_end=ending.is_set))
            tokens = TokenVerifier(rules, issuer, verifier)
        try:
            yield Access(verifier, tokens)
        finally:
            ending.set()
            for task in background:
                task.cancel()
            await asyncio.wait(background)


async def authorize(connection: HTTPConnection, scope: Needed) -> None:
    """Verify the caller of a route that needs `scope`. Raises what `Access.authenticate` raises, and ScopeMissing."""
    if isinstance(scope, Open):
        return
    access: Access = connection.app.state.access
    principal = await access.authenticate(connection)
    if not principal.may(scope):
        raise ScopeMissing(f"the credential {principal.actor} lacks the scope {scope.value}", scope=scope.value)
    connection.scope[PRINCIPAL] = principal


def principal_of(connection: HTTPConnection) -> Principal:
    """The caller of an authorized request."""
    principal: Principal = connection.scope[PRINCIPAL]
    return principal


def tenant_of(connection: HTTPConnection) -> str:
    """The tenant of the caller. Every job has a tenant, and every read is limited to one."""
    return principal_of(connection).tenant


def presented(headers: Headers) -> str | None:
    """The credential of a request, None where it has none. Raises MalformedRequest and CredentialRefused."""
    values: Sequence[str] = headers.getlist("authorization")
    if not values:
        return None
    if len(values) > 1:
        raise MalformedRequest("the request has more than one header Authorization")
    scheme, _, parameter = values[0].strip().partition(" ")
    parameter = parameter.strip()
    if scheme.lower() in SCHEMES and parameter:
        return parameter
    if scheme.lower() == "basic":
        return _password(parameter)
    raise CredentialRefused("Authorization must be Bearer, Token or Key with a key, or Basic with it as the password")


def _password(parameter: str) -> str:
    """The password of `Basic` (RFC 7617)."""
    try:
        user_and_password = base64.b64decode(parameter, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        user_and_password = ""
    _, colon, password = user_and_password.partition(":")
    if not colon:
        raise CredentialRefused("the credential of Basic is not base64 of a name, a colon and a password")
    return password

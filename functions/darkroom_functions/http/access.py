"""Access: who sends a request, and whether that is permitted.

Each route declares the scope that it needs (`routes.py`). Before its handler runs, `authorize` verifies the credential
of the connection, and the handler finds the caller with `principal_of`.

A credential is sent in the header `Authorization`: `Bearer <key>`, `Token <key>` and `Key <key>` are equal, and in
`Basic` it is the password. It is never part of a URL, which proxies log. A text of three parts with dots between them
is a JWT bearer token of the configured issuer (`darkroom.access.tokens`), every other one a key.

Browsers send the cookie of a session (`cookies.py`), and in the URL of a socket, an event stream or an artifact a
single-use ticket. A header counts before a cookie; a request with a ticket must have no header.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from enum import StrEnum

from darkroom.access.credentials import TEXT_PATTERN, Credential
from darkroom.access.grants import Grants, Issued, unneeded_ticket
from darkroom.access.principals import EVERYONE, CredentialKind, Principal, Scope
from darkroom.access.tokens.issuer import IssuerKeys, issuer_client
from darkroom.access.tokens.verification import TokenVerifier
from darkroom.access.verification import KeyVerifier
from darkroom.errors import CredentialRefused, MalformedRequest, ScopeMissing
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.supervision import vital
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from darkroom_functions.http.credentials import cookies
from darkroom_functions.http.credentials.watches import End, Watches
from darkroom_functions.settings import AccessSettings, AuthMode

SCHEMES = frozenset({"bearer", "token", "key"})
"""The authentication schemes whose parameter is the credential, in lower case (RFC 9110, section 11.1)."""

TOKEN_DOTS = 2
"""The dots of a JWT with a signature (RFC 7515, section 3.1). A key has none."""

PRINCIPAL = "darkroom.principal"
"""Where the principal is in the ASGI scope."""

TICKET = "ticket"
"""The query parameter of a ticket."""

_SECRET = re.compile(TEXT_PATTERN.encode() + rb"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}")
"""A key or a JWT, whose header and claims begin with `{"` in base64url."""


class Open(StrEnum):
    """Routes without a scope. `PUBLIC`: anyone may read it. `CALLER`: any valid credential will do. `INTERNAL`: for
    darkroom's own parts, which prove themselves otherwise. `LINK`: the signature of the link is the credential.
    """

    PUBLIC = "public"
    CALLER = "caller"
    INTERNAL = "internal"
    LINK = "link"


Needed = Scope | Open
"""What a route declares."""


class Access:
    """The verification of one process. Without a verifier authentication is off, and all callers are `EVERYONE`.

    Without `tokens` no issuer is configured, and JWTs are refused.
    """

    def __init__(
        self, verifier: KeyVerifier | None = None, grants: Grants | None = None, tokens: TokenVerifier | None = None
    ) -> None:
        self._verifier = verifier
        self._grants = grants
        self._tokens = tokens
        self._watches = None if grants is None else Watches(grants.current)

    async def run(self) -> None:
        """Check open connections until cancelled."""
        if self._watches is not None:
            await self._watches.run()

    async def authenticate(self, connection: HTTPConnection, *, takes_ticket: bool = False) -> Principal:
        """The principal of a connection.

        Raises CredentialRefused, MalformedRequest for a credential in the wrong place, AccessUnavailable and
        LedgerUnavailable.
        """
        if _SECRET.search(connection.scope.get("query_string", b"")) is not None:
            raise MalformedRequest(
                "a credential must not be part of a URL, which proxies and browsers store: replace this one"
            )
        ticket = ticket_of(connection, takes_ticket=takes_ticket)
        if self._grants is None:
            return EVERYONE
        text = presented(connection.headers)
        if ticket is not None and text is not None:
            raise MalformedRequest("the request has a ticket and the header Authorization: send one of them")
        if ticket is not None:
            return await self._grants.redeem_ticket(ticket)
        if text is not None:
            return await self._of_header(text)
        session = cookies.session_of(connection)
        if session is not None:
            return await self._grants.use_session(session)
        raise CredentialRefused("the request has no credential", error=None)

    async def _of_header(self, text: str) -> Principal:
        if text.count(".") == TOKEN_DOTS:
            if self._tokens is None:
                raise CredentialRefused("JWTs are not accepted: no issuer is configured (DARKROOM_OIDC_ISSUER)")
            return await self._tokens.verify(text)
        credential = Credential.parse(text)
        if credential is None or self._verifier is None:
            raise CredentialRefused("the key is not valid")
        return await self._verifier.verify(credential)

    async def holder(self, key_id: str) -> Principal:
        """The principal of a key that a proven event names (`submission/stamps.py`). Raises as `authenticate` does."""
        if self._verifier is None:
            return EVERYONE
        return await self._verifier.holder(key_id)

    async def issue_ticket(self, principal: Principal) -> Issued:
        """A ticket for the principal; any text is one where authentication is off. Raises TooManyTickets."""
        if self._grants is None:
            return unneeded_ticket()
        return await self._grants.issue_ticket(principal)

    async def open_session(self, principal: Principal) -> Issued | None:
        """A session for the principal; None where authentication is off. Raises CredentialRefused for a principal of
        another session, which would never end.
        """
        if self._grants is None:
            return None
        if principal.kind is CredentialKind.SESSION:
            raise CredentialRefused("a session is opened with a key or a token, not with another session")
        return await self._grants.open_session(principal)

    async def end_session(self, text: str) -> None:
        """Log out."""
        if self._grants is not None:
            await self._grants.end_session(text)

    def watching(self, connection: HTTPConnection, scope: Scope, end: End) -> AbstractContextManager[None]:
        """Call `end` once the credential of an authorized connection is no longer valid."""
        if self._watches is None:
            return nullcontext()
        return self._watches.watching(principal_of(connection), scope, end)


@asynccontextmanager
async def running(settings: AccessSettings) -> AsyncIterator[Access]:
    """The verification of a process, with a connection of its own to Redis."""
    if settings.auth is AuthMode.NONE:
        yield Access()
        return
    ending = asyncio.Event()
    async with AsyncExitStack() as stack:
        client = connect_async(settings.redis_url.get_secret_value())
        stack.push_async_callback(client.aclose)
        ledger = AsyncLedger(client, settings.namespace)
        verifier = KeyVerifier(ledger, client)
        background = [vital(verifier.run(), name="follow keys", may_end=ending.is_set)]
        tokens = None
        if (rules := settings.token_rules) is not None:
            issuer = IssuerKeys(rules.issuer, await stack.enter_async_context(issuer_client()))
            background.append(vital(issuer.run(), name="read the issuer's keys", may_end=ending.is_set))
            tokens = TokenVerifier(rules, issuer, verifier)
        access = Access(verifier, Grants(ledger, verifier), tokens)
        background.append(vital(access.run(), name="check open connections", may_end=ending.is_set))
        try:
            yield access
        finally:
            ending.set()
            for task in background:
                task.cancel()
            await asyncio.wait(background)


async def authorize(
    connection: HTTPConnection, scope: Needed, *, takes_ticket: bool = False, may_be_unknown: bool = False
) -> None:
    """Verify the caller of a route that needs `scope`. Raises what `Access.authenticate` raises, and ScopeMissing.

    `may_be_unknown`: a request without any credential passes, and its handler finds the caller otherwise.
    """
    if isinstance(scope, Open) and scope is not Open.CALLER:
        return
    try:
        principal = await access_of(connection).authenticate(connection, takes_ticket=takes_ticket)
    except CredentialRefused as error:
        if may_be_unknown and error.error is None:
            return
        raise
    connection.scope[PRINCIPAL] = principal
    if isinstance(scope, Scope) and not principal.may(scope):
        raise ScopeMissing(f"the credential {principal.actor} lacks the scope {scope.value}", scope=scope.value)


def access_of(connection: HTTPConnection) -> Access:
    """The verification of the process."""
    access: Access = connection.app.state.access
    return access


def is_known(connection: HTTPConnection) -> bool:
    """Whether the request had a credential, or needs none."""
    return PRINCIPAL in connection.scope


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


def ticket_of(connection: HTTPConnection, *, takes_ticket: bool) -> str | None:
    """The ticket in a URL, None where it has none. Raises MalformedRequest where no ticket is accepted."""
    tickets = connection.query_params.getlist(TICKET)
    if tickets and not takes_ticket:
        raise MalformedRequest("a ticket is accepted in the URL of a socket, an event stream or an artifact only")
    if len(tickets) > 1:
        raise MalformedRequest("the URL has more than one ticket")
    return tickets[0] if tickets else None


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

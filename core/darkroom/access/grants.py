"""Tickets and sessions: what a browser uses in place of a key or a token.

A page cannot add a header to a socket or an event stream. It sends a ticket in their URL instead, which opens one
connection and only reads, or the cookie of a session. Only the SHA-256 of either is stored. Each use verifies the key
or the tenant behind it as well, so that neither outlives the credential that it was exchanged for.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, ValidationError

from darkroom.access.credentials import digest_of
from darkroom.access.limits import UNLIMITED, Limits
from darkroom.access.principals import CredentialKind, Principal, Scope
from darkroom.access.records import ApiKey, Tenant
from darkroom.access.verification import KeyVerifier
from darkroom.errors import CredentialRefused, TooManyTickets
from darkroom.ledger.calls import GrantKind, end_session, issue_grant, redeem_ticket, use_session
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger

TICKET_S = 60
"""How long a ticket is valid, in seconds."""

TICKET_SCOPES = frozenset({Scope.READ})
"""The most that a ticket permits: what sockets, event streams and artifacts need."""

MAX_TICKETS = 300
"""The most unused tickets of a credential: five connections a second."""

SESSION_IDLE_S = 3600
"""How long a session lasts without a request, in seconds."""

SESSION_LIFE_S = 12 * 3600
"""How long a session lasts at most, in seconds: a working day."""

SESSION_STEP_S = 60
"""How exact the time without a request is, in seconds: a session that is used is written once a minute."""

MAX_SESSIONS = 100
"""The most sessions of a credential. One more ends the session that would expire first."""

TICKET_PREFIX, SESSION_PREFIX = "dt_", "ds_"

SECRET_BYTES = 32

_MS = 1000

_log = logger(__name__)


class _Grant(BaseModel):
    """What is stored of the credential behind a ticket or a session.

    `secret` is the SHA-256 of a key's secret; `created` is in milliseconds and `expires` in seconds since the epoch.
    The scopes, models and limits of a key are those that it has when the grant is used, within `scopes`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    tenant: str
    actor: str
    secret: str = ""
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ()
    limits: Limits = UNLIMITED
    created: int
    expires: float | None = None


@dataclass(frozen=True)
class Issued:
    """A new ticket or session. `expires` is in seconds since the epoch."""

    text: str = field(repr=False)
    expires: float


def unneeded_ticket() -> Issued:
    """A ticket where authentication is off: it has the form of one, and nothing is stored."""
    return Issued(_generate(TICKET_PREFIX), time.time() + TICKET_S)


class Grants:
    """Issues and verifies tickets and sessions. Every method may raise LedgerUnavailable."""

    def __init__(self, ledger: AsyncLedger, verifier: KeyVerifier) -> None:
        self._ledger = ledger
        self._verifier = verifier

    async def issue_ticket(self, principal: Principal) -> Issued:
        """A ticket that reads on behalf of the principal. Raises TooManyTickets."""
        now = time.time()
        ticket = Issued(_generate(TICKET_PREFIX), _soonest(now + TICKET_S, principal.expires))
        grant = _grant_of(principal, principal.scopes & TICKET_SCOPES, now=now)
        ttl_ms = max(1, int((ticket.expires - now) * _MS))
        next_at = await self._issue(GrantKind.TICKET, ticket, grant, ttl_ms=ttl_ms, life_ms=ttl_ms, most=MAX_TICKETS)
        if next_at is not None:
            wait_s = max(1, -(-(next_at - int(now * _MS)) // _MS))
            raise TooManyTickets(f"the credential has {MAX_TICKETS} unused tickets", retry_after=wait_s)
        return ticket

    async def redeem_ticket(self, text: str) -> Principal:
        """The principal of a ticket, which is used up. Raises CredentialRefused and AccessUnavailable."""
        content = await self._ledger.run(redeem_ticket(digest_of(text), by=secrets.token_hex(8)))
        grant = None if content is None else _decode(content)
        if grant is None:
            raise CredentialRefused("the ticket is not valid: it was used, or it has expired")
        return await self._principal(grant, CredentialKind.TICKET)

    async def open_session(self, principal: Principal) -> Issued:
        """A session on behalf of the principal, with its scopes."""
        now = time.time()
        session = Issued(_generate(SESSION_PREFIX), _soonest(now + SESSION_LIFE_S, principal.expires))
        life_ms = max(1, int((session.expires - now) * _MS))
        ttl_ms = min(life_ms, SESSION_IDLE_S * _MS)
        grant = _grant_of(principal, principal.scopes, now=now)
        await self._issue(GrantKind.SESSION, session, grant, ttl_ms=ttl_ms, life_ms=life_ms, most=MAX_SESSIONS)
        _log.info("session_opened", tenant=principal.tenant, actor=principal.actor)
        return session

    async def use_session(self, text: str) -> Principal:
        """The principal of a session, which is extended. Raises CredentialRefused and AccessUnavailable."""
        return await self._of_session(digest_of(text), idle_ms=SESSION_IDLE_S * _MS)

    async def end_session(self, text: str) -> None:
        """Log out."""
        await self._ledger.run(end_session(digest_of(text)))

    async def current(self, principal: Principal) -> Principal:
        """The principal of an open connection as it is now. Raises CredentialRefused and AccessUnavailable."""
        if principal.expires is not None and principal.expires <= time.time():
            raise CredentialRefused("the credential has expired")
        if principal.session:
            return await self._of_session(principal.session)
        scopes = principal.scopes
        return await self._principal(_grant_of(principal, scopes, now=time.time()), principal.kind)

    async def _issue(
        self, kind: GrantKind, issued: Issued, grant: _Grant, *, ttl_ms: int, life_ms: int, most: int
    ) -> int | None:
        owner = hashlib.sha256(f"{grant.tenant}\n{bool(grant.secret)}\n{grant.actor}".encode()).hexdigest()
        content = grant.model_dump_json(exclude_defaults=True)
        return await self._ledger.run(
            issue_grant(
                kind,
                digest_of(issued.text),
                owner=owner[:32],
                content=content,
                ttl_ms=ttl_ms,
                life_ms=life_ms,
                most=most,
            )
        )

    async def _of_session(self, digest: str, *, idle_ms: int | None = None) -> Principal:
        found = await self._ledger.run(use_session(digest, idle_ms=idle_ms, step_ms=SESSION_STEP_S * _MS))
        grant = None if found is None else _decode(found[0])
        if found is None or grant is None:
            raise CredentialRefused("the session has ended")
        principal = await self._principal(grant, CredentialKind.SESSION)
        return replace(principal, session=digest, expires=_soonest(found[1] / _MS, principal.expires))

    async def _principal(self, grant: _Grant, kind: CredentialKind) -> Principal:
        """On whose behalf a grant acts now."""
        if grant.secret:
            principal = await self._verifier.of_secret(grant.actor, grant.secret)
            published = await self._verifier.published(grant.actor)
            _refuse_earlier(grant, published.key, published.tenant)
            return replace(principal, kind=kind, scopes=principal.scopes & grant.scopes)
        tenant = await self._verifier.tenant(grant.tenant)
        _refuse_earlier(grant, tenant)
        return Principal(
            tenant=grant.tenant,
            actor=grant.actor,
            kind=kind,
            scopes=grant.scopes,
            models=grant.models,
            limits=grant.limits,
            tenant_limits=tenant.limits,
            weight=tenant.weight,
            expires=grant.expires,
        )


def _grant_of(principal: Principal, scopes: frozenset[Scope], *, now: float) -> _Grant:
    return _Grant(
        tenant=principal.tenant,
        actor=principal.actor,
        secret=principal.secret,
        scopes=scopes,
        models=principal.models,
        limits=principal.limits,
        created=int(now * _MS),
        expires=principal.expires,
    )


def _refuse_earlier(grant: _Grant, *records: ApiKey | Tenant | None) -> None:
    """Raises CredentialRefused where the key or the tenant was disabled since, even if it is enabled again."""
    if any(record is not None and grant.created < record.disabled_at for record in records):
        raise CredentialRefused("the key or the tenant was disabled since this was issued")


def _decode(content: bytes) -> _Grant | None:
    """The grant. One that this version cannot read counts as missing."""
    try:
        return _Grant.model_validate_json(content)
    except ValidationError as error:
        _log.error("grant_unreadable", fields=[fault["loc"] for fault in error.errors()])
        return None


def _generate(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(SECRET_BYTES)


def _soonest(time_s: float, expires: float | None) -> float:
    return time_s if expires is None else min(time_s, expires)

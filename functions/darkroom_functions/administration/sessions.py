"""Tickets and sessions, for browsers: a key or a token is exchanged for what a browser sends by itself.

The text of a ticket is in the response that creates it, that of a session in its cookie, and neither is anywhere else.
"""

from __future__ import annotations

import time
from typing import Annotated

from darkroom.access.grants import MAX_SESSIONS, MAX_TICKETS, SESSION_IDLE_S, SESSION_LIFE_S, TICKET_S, TICKET_SCOPES
from darkroom.access.principals import CredentialKind, Principal, Scope, in_order
from darkroom.errors import LedgerUnavailable, TooManyTickets
from darkroom.times import iso
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from darkroom_functions.administration.schemas import ScopeName, TenantText
from darkroom_functions.http.access import Open, access_of, principal_of
from darkroom_functions.http.credentials import cookies
from darkroom_functions.http.openapi import header, json_response
from darkroom_functions.http.responses import NOT_STORED, answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute
from darkroom_functions.resources.schemas import Time

TICKETS = "/api/v1/tickets"
SESSION = "/api/v1/session"

_NO_STORE = {"Cache-Control": NOT_STORED}


class TicketBody(TypedDict):
    """A ticket for the URL of one socket, event stream or artifact."""

    ticket: Annotated[str, Field(description="The ticket. It is shown once.")]
    expires_at: Time
    scopes: Annotated[list[ScopeName], Field(description="The scopes that the ticket grants.")]


class SessionBody(TypedDict):
    """The caller of a request."""

    tenant: TenantText
    actor: Annotated[str, Field(description="The id of the key, or the subject of the token, that was presented.")]
    credential: Annotated[CredentialKind, Field(description="The kind of the credential; `none`: none is needed.")]
    scopes: Annotated[list[ScopeName], Field(description="The scopes that it grants.")]
    models: Annotated[list[str], Field(description="The models that it may submit to; all where none is named.")]
    expires_at: Annotated[Time | None, Field(description="The end of the session, or of the credential.")]


async def create_ticket(request: Request) -> Response:
    """`POST /api/v1/tickets`."""
    principal = principal_of(request)
    issued = await access_of(request).issue_ticket(principal)
    body: TicketBody = {
        "ticket": issued.text,
        "expires_at": _time(issued.expires),
        "scopes": [scope.value for scope in in_order(principal.scopes & TICKET_SCOPES)],
    }
    return answer(body, status=201, headers=_NO_STORE)


async def open_session(request: Request) -> Response:
    """`POST /api/v1/session`. The session of a cookie that comes with the request ends."""
    access, principal = access_of(request), principal_of(request)
    issued = await access.open_session(principal)
    if (former := cookies.session_of(request)) is not None:
        await access.end_session(former)
    response = answer(_view(principal, principal.expires if issued is None else issued.expires), status=201)
    response.headers.update(_NO_STORE)
    if issued is not None:
        cookies.set_session(response, request, issued.text, max_age_s=max(1, int(issued.expires - time.time())))
    return response


async def read_session(request: Request) -> Response:
    """`GET /api/v1/session`."""
    principal = principal_of(request)
    return answer(_view(principal, principal.expires), headers=_NO_STORE)


async def end_session(request: Request) -> Response:
    """`DELETE /api/v1/session`. Without a session, or with one that has ended, there is nothing to do."""
    if (text := cookies.session_of(request)) is not None:
        await access_of(request).end_session(text)
    response = Response(status_code=204)
    cookies.clear_session(response, request)
    return response


def _view(principal: Principal, expires: float | None) -> SessionBody:
    return {
        "tenant": principal.tenant,
        "actor": principal.actor,
        "credential": principal.kind,
        "scopes": [scope.value for scope in in_order(principal.scopes)],
        "models": list(principal.models),
        "expires_at": None if expires is None else _time(expires),
    }


def _time(seconds: float) -> str:
    return iso(int(seconds * 1000))


_NOT_STORED = {"Cache-Control": header({"const": NOT_STORED}, "No cache stores a credential or its owner.")}
_COOKIE = header({"type": "string"}, "The session: `HttpOnly`, `SameSite=Strict`, `Secure`, for this host.")

ROUTES = [
    ApiRoute(
        "POST",
        TICKETS,
        create_ticket,
        scope=Scope.READ,
        operation="createTicket",
        summary=(
            f"Create a ticket: it opens one socket or event stream, or reads one artifact, within {TICKET_S} s. A "
            f"credential has at most {MAX_TICKETS} unused ones"
        ),
        responses={"201": json_response(TicketBody, "The ticket; the only response that shows it.", _NOT_STORED)},
        refusals=(TooManyTickets, LedgerUnavailable),
    ),
    ApiRoute(
        "POST",
        SESSION,
        open_session,
        scope=Open.CALLER,
        operation="openSession",
        summary=(
            f"Exchange a key or a token for the cookie of a session, which ends after {SESSION_IDLE_S // 3600} h "
            f"without a request, after {SESSION_LIFE_S // 3600} h, or with the credential. A credential has at most "
            f"{MAX_SESSIONS} sessions: one more ends another"
        ),
        responses={
            "201": json_response(SessionBody, "The session is open.", {**_NOT_STORED, "Set-Cookie": _COOKIE}),
        },
        refusals=(LedgerUnavailable,),
    ),
    ApiRoute(
        "GET",
        SESSION,
        read_session,
        scope=Open.CALLER,
        operation="readSession",
        summary="Read on whose behalf the caller acts",
        responses={"200": json_response(SessionBody, "The tenant, the scopes and the end.", _NOT_STORED)},
        refusals=(LedgerUnavailable,),
    ),
    ApiRoute(
        "DELETE",
        SESSION,
        end_session,
        scope=Open.PUBLIC,
        operation="endSession",
        summary="Log out: end the session of the cookie, if there is one",
        responses={"204": ApiResponse("There is no session any more.", headers={"Set-Cookie": _COOKIE})},
        refusals=(LedgerUnavailable,),
    ),
]

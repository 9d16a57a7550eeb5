"""Principals: on whose behalf a request runs, and what it may do.

The functions authenticate each connection (`darkroom_functions/http/access.py`) and pass a `Principal` to the handler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from darkroom.access.limits import UNLIMITED, Limits

DEFAULT_TENANT = "default"
"""The tenant of all requests where authentication is off (`DARKROOM_AUTH=none`), and of the root key."""


class Scope(StrEnum):
    """What a credential permits. Each operation needs exactly one scope; no scope includes another.

    `READ`: jobs, results, events. `MANAGE`: webhooks and their secrets, dead letters, undelivered events, deletion of
    jobs. `ADMIN`: tenants, keys, usage and the audit trail of every tenant.
    """

    SUBMIT = "submit"
    READ = "read"
    CANCEL = "cancel"
    MANAGE = "manage"
    ADMIN = "admin"


TENANT_SCOPES = frozenset(Scope) - {Scope.ADMIN}
"""The scopes that act on the credential's own tenant."""


class CredentialKind(StrEnum):
    """How a caller proved who it is. `NONE`: authentication is off."""

    KEY = "key"
    TOKEN = "token"
    TICKET = "ticket"
    SESSION = "session"
    NONE = "none"


@dataclass(frozen=True)
class Principal:
    """An authenticated caller.

    `actor` names it in logs and in the audit trail: a key's id, the subject of a token. `models` are those it may use,
    all where none is named. `limits` are those of the credential; `tenant_limits` and `weight` those of its tenant.
    `expires` is in seconds since the epoch; a connection that stays open ends then. `secret` is the SHA-256 of the
    key's secret behind it, `session` that of the session: the proof must stay valid while a connection is open.
    """

    tenant: str
    actor: str
    kind: CredentialKind
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ()
    limits: Limits = UNLIMITED
    tenant_limits: Limits = UNLIMITED
    weight: float = 1.0
    expires: float | None = None
    secret: str = field(default="", repr=False)
    session: str = field(default="", repr=False)

    def may(self, scope: Scope) -> bool:
        """Whether the scope is granted."""
        return scope in self.scopes

    @property
    def key_id(self) -> str | None:
        """Which of the tenant's credentials is charged for its jobs; None where authentication is off."""
        return None if self.kind is CredentialKind.NONE else self.actor

    def may_use(self, model: str) -> bool:
        """Whether jobs of the model may be submitted."""
        return not self.models or model in self.models


def in_order(scopes: frozenset[Scope]) -> Sequence[Scope]:
    """The scopes in the order of their definition."""
    return [scope for scope in Scope if scope in scopes]


EVERYONE = Principal(DEFAULT_TENANT, "anonymous", CredentialKind.NONE, frozenset(Scope))
"""The principal of all requests where authentication is off."""

"""Claims of a token: whether they hold now, and on whose behalf the token speaks.

The signature has been verified before (`verification.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darkroom.access.principals import Scope
from darkroom.access.records import is_tenant_name
from darkroom.errors import CredentialRefused

LAST_TIME = 253_402_300_799
"""The last second of the year 9999. A later time is a fault of the issuer."""

_SUBJECT = re.compile(r"[\x21-\x7e]{1,255}")
"""OpenID Connect Core 1.0, section 2: `sub` has at most 255 ASCII characters. Blanks are refused too: the subject is
part of log lines and of the audit trail."""


@dataclass(frozen=True)
class TokenRules:
    """What a token must contain.

    `tenant_claim` and `scope_claim` are paths with dots (`realm_access.roles`), or whole names that may contain dots
    themselves. Only scopes that begin with `scope_prefix` count, without it. `skew_s` is how far the issuer's clock may
    differ.
    """

    issuer: str
    audience: str
    tenant_claim: str
    scope_claim: str
    scope_prefix: str
    skew_s: float


@dataclass(frozen=True)
class Verified:
    """A token's meaning. `expires` is the time from which it is refused, in seconds since the epoch."""

    tenant: str
    subject: str
    scopes: frozenset[Scope]
    expires: float


def verified(claims: Mapping[str, Any], rules: TokenRules, *, now: float) -> Verified:
    """The meaning of a token's claims (RFC 7519, section 4.1; RFC 9068, section 4).

    Raises CredentialRefused. Its detail names the claim and contains no value of it.
    """
    if claims.get("iss") != rules.issuer:
        raise CredentialRefused("the token is of another issuer: its claim iss is not the configured issuer")
    if not _is_for(claims.get("aud"), rules.audience):
        raise CredentialRefused("the token is for another audience: its claim aud does not contain the configured one")
    if "cnf" in claims:  # RFC 9449, section 7.2; RFC 8705, section 3
        raise CredentialRefused("the token is bound to a proof of possession (claim cnf), which is not supported")
    expires = _time(claims, "exp")
    if expires is None:
        raise CredentialRefused("the token has no claim exp")
    if expires + rules.skew_s <= now:
        raise CredentialRefused("the token has expired")
    not_before, issued = _time(claims, "nbf"), _time(claims, "iat")
    if not_before is not None and not_before - rules.skew_s > now:
        raise CredentialRefused("the token is not valid yet: its claim nbf is in the future")
    if issued is not None and issued - rules.skew_s > now:
        raise CredentialRefused("the token is not valid yet: its claim iat is in the future")
    return Verified(
        tenant=_tenant(claims, rules.tenant_claim),
        subject=_subject(claims),
        scopes=scopes_of(find(claims, rules.scope_claim), prefix=rules.scope_prefix),
        expires=expires + rules.skew_s,
    )


def find(claims: Mapping[str, Any], path: str) -> object:
    """The claim at a path, None where there is none. The longest name that exists comes first: names that are URLs
    contain dots.
    """
    if path in claims:
        return claims[path]
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        member = claims.get(".".join(parts[:length]))
        if isinstance(member, Mapping):
            return find(member, ".".join(parts[length:]))
    return None


def scopes_of(value: object, *, prefix: str) -> frozenset[Scope]:
    """The scopes of a claim: words with blanks between them (RFC 8693, section 4.2), or a list of words.

    Only a scope behind the prefix counts.
    """
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    known = {prefix + scope.value: scope for scope in Scope}
    return frozenset(known[word] for word in words if isinstance(word, str) and word in known)


def _is_for(audiences: object, audience: str) -> bool:
    return audience in (audiences if isinstance(audiences, list) else [audiences])


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate. Raises CredentialRefused for anything else: NaN compares as if it never expired."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 <= value <= LAST_TIME):
        raise CredentialRefused(f"the token's claim {name} is not a time in seconds")
    return math.floor(value) if isinstance(value, int) else value


def _tenant(claims: Mapping[str, Any], path: str) -> str:
    """A text, or a list of one text. A token that names several tenants speaks for none of them."""
    value = find(claims, path)
    if value is None:
        raise CredentialRefused(f"the token names no tenant: it has no claim {path}")
    name = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(name, str) or not is_tenant_name(name):
        raise CredentialRefused(f"the token's claim {path} is not the name of one tenant")
    return name


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub")
    if not isinstance(subject, str) or _SUBJECT.fullmatch(subject) is None:
        raise CredentialRefused("the token's claim sub is not a text of 1 to 255 visible ASCII characters")
    return subject

"""Verification of JWT bearer tokens (RFC 7519, RFC 8725), in one process.

A text of three parts reaches `TokenVerifier.verify` (`darkroom_functions/http/access.py`). Its signature is verified
with a key of the configured issuer (`issuer.py`), then its claims (`claims.py`); its tenant must exist and be enabled.
A verified token is remembered until it expires or the issuer's keys change; the state of its tenant is at most as old
as for keys (`access/verification.py`). No error contains a part of the token.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from darkroom.access.principals import CredentialKind, Principal
from darkroom.access.tokens.claims import TokenRules, Verified, verified
from darkroom.access.tokens.issuer import IssuerKey, IssuerKeys, PublicKey
from darkroom.access.verification import KeyVerifier
from darkroom.errors import CredentialRefused

MAX_TOKEN = 16 * 1024
"""The longest token, in characters. A guess: those with many groups have a few thousand."""

MAX_CACHED = 10_000
"""The most verified tokens that a process remembers; the oldest are forgotten first."""

TYPES = frozenset({"JWT", "AT+JWT"})
"""The accepted values of the header `typ`, in upper case (RFC 9068, section 2.1): others are no access tokens."""

_RSA = dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), (RSAKey, None))
_EC = {"ES256": (ECKey, "P-256"), "ES384": (ECKey, "P-384"), "ES512": (ECKey, "P-521")}
_OKP = {"Ed25519": (OKPKey, "Ed25519"), "EdDSA": (OKPKey, "Ed25519")}

ALGORITHMS: dict[str, tuple[type[PublicKey], str | None]] = {**_RSA, **_EC, **_OKP}
"""The accepted algorithms, all asymmetric, with the type and the curve of their keys (RFC 8725, section 3.1)."""


class _Registry(jws.JWSRegistry):
    """The accepted algorithms. joserfc itself warns at each use of EdDSA, which Ed25519 replaces (RFC 9864)."""

    max_header_length = 4096

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


_REGISTRY = _Registry(strict_check_header=False)


@dataclass(frozen=True)
class _Cached:
    verified: Verified
    generation: int


class TokenVerifier:
    """Verifies tokens. `tenants` has the copy of tenants, `clock` is in seconds since the epoch."""

    def __init__(
        self, rules: TokenRules, keys: IssuerKeys, tenants: KeyVerifier, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._rules = rules
        self._keys = keys
        self._tenants = tenants
        self._clock = clock
        self._cached: dict[bytes, _Cached] = {}

    async def verify(self, token: str) -> Principal:
        """The principal of a token.

        Raises CredentialRefused, AccessUnavailable where the issuer's keys or the tenants are not known, and
        LedgerUnavailable.
        """
        found = await self._verified(token)
        tenant = await self._tenants.tenant(found.tenant)
        return Principal(
            tenant=found.tenant,
            actor=found.subject,
            kind=CredentialKind.TOKEN,
            scopes=found.scopes,
            tenant_limits=tenant.limits,
            weight=tenant.weight,
            expires=found.expires,
        )

    async def _verified(self, token: str) -> Verified:
        if len(token) > MAX_TOKEN:
            raise CredentialRefused(f"the token is longer than {MAX_TOKEN} characters")
        digest = hashlib.sha256(token.encode()).digest()
        await self._keys.usable()  # a token is not valid for longer than the keys that it was verified with
        cached = self._cached.get(digest)
        if cached is not None and cached.generation == self._keys.generation:
            if self._clock() >= cached.verified.expires:
                raise CredentialRefused("the token has expired")
            return cached.verified
        claims = await self._claims(token)
        generation = self._keys.generation
        found = verified(claims, self._rules, now=self._clock())
        self._cached.pop(digest, None)
        self._cached[digest] = _Cached(found, generation)
        while len(self._cached) > MAX_CACHED:
            del self._cached[next(iter(self._cached))]
        return found

    async def _claims(self, token: str) -> dict[str, object]:
        """The claims of a token whose signature is right."""
        try:
            header = jws.extract_compact(token.encode(), registry=_REGISTRY).headers()
        except (JoseError, ValueError, TypeError, RecursionError):
            raise CredentialRefused("the token is not a signed JWT (RFC 7519)") from None
        algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            accepted = ", ".join(ALGORITHMS)
            raise CredentialRefused(f"the algorithm of the token (header alg) is none of {accepted}")
        if not isinstance(kind, str) or kind.upper().removeprefix("APPLICATION/") not in TYPES:
            raise CredentialRefused("the token (header typ) is not an access token")
        if key_id is not None and not isinstance(key_id, str):
            raise CredentialRefused("the key id of the token (header kid) is not a text")
        keys = await self._keys.usable() if key_id is None else await self._keys.of_id(key_id)
        fitting = _fitting(keys, algorithm)
        if not fitting:
            raise CredentialRefused("the token is signed with a key that the issuer does not publish")
        for each in fitting:
            try:
                return dict(jwt.decode(token, each.key, registry=_REGISTRY).claims)
            except (JoseError, ValueError, TypeError, RecursionError):
                continue
        raise CredentialRefused("the signature of the token is not valid")


def _fitting(keys: Sequence[IssuerKey], algorithm: str) -> list[IssuerKey]:
    """The keys that the algorithm may use."""
    kind, curve = ALGORITHMS[algorithm]
    return [
        each
        for each in keys
        if isinstance(each.key, kind)
        and (curve is None or each.key.curve_name == curve)  # type: ignore[union-attr]
        and each.algorithm in {None, algorithm, *(("EdDSA", "Ed25519") if kind is OKPKey else ())}
    ]

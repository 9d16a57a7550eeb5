"""The issuer's public keys: discovery (OpenID Connect Discovery 1.0, section 4) and its JWK Set (RFC 7517), cached.

`run` reads them again before they are out of date, so that requests do not wait for the issuer. A token with an unknown
key id causes one more reading, at most every `PAUSE_S`: issuers publish a new key before or when they first use it.
While the issuer is unavailable the last keys are used, for `STALE_S` beyond their time; then no token is accepted.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from darkroom.access.tokens.addresses import address_fault
from darkroom.backoff import Backoff
from darkroom.errors import AccessUnavailable
from darkroom.logs import logger

DISCOVERY = "/.well-known/openid-configuration"

FRESH_S = 600.0
"""How long keys are used before they are read again, where the response has no `Cache-Control: max-age`."""

LEAST_FRESH_S = 60.0
"""A shorter `max-age` counts as this: each process reads the keys."""

MOST_FRESH_S = 3600.0
"""A longer `max-age` counts as this: a key that the issuer withdrew must not be valid for a day."""

STALE_S = 3600.0
"""How long beyond that keys are used while the issuer is unavailable. A guess: its restart is shorter, and a key that
it withdrew meanwhile stays valid as long."""

PAUSE_S = 10.0
"""The shortest time between two readings that tokens cause, so that invalid tokens do not burden the issuer."""

TIMEOUT_S = 5.0
"""The limit of one reading, both requests included."""

MAX_BYTES = 256 * 1024
"""The largest body that is read. A JWK Set has about 2 kB for each key with a certificate."""

MAX_KEYS = 100

MIN_RSA_BITS = 2048
"""RFC 7518, section 3.3."""

RETRY_AFTER_S = 5

_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?(\d{1,9})\b", re.IGNORECASE)

PublicKey = RSAKey | ECKey | OKPKey

_log = logger(__name__)


class _Unreadable(Exception):
    """The issuer's keys could not be read; the message has the reason."""


@dataclass(frozen=True)
class IssuerKey:
    """A public key that verifies signatures. `algorithm` is the only one that it may be used with, if the issuer
    names one.
    """

    key_id: str | None
    algorithm: str | None
    key: PublicKey


@dataclass(frozen=True)
class _Read:
    keys: tuple[IssuerKey, ...]
    at: float
    fresh_s: float

    def is_usable(self, now: float) -> bool:
        return now < self.at + self.fresh_s + STALE_S


class IssuerKeys:
    """The keys of one issuer, in one process. `run` must run in the background.

    `clock` is in seconds, of any origin. `generation` changes when the keys do.
    """

    def __init__(self, issuer: str, client: httpx.AsyncClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.issuer = issuer
        self.generation = 0
        self._client = client
        self._clock = clock
        self._read: _Read | None = None
        self._fault: str | None = "they have not been read yet"
        self._attempted = -PAUSE_S
        self._reading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Read the keys, again and again, until cancelled."""
        backoff, failures = Backoff(first_s=1.0, longest_s=60.0), 0
        while True:
            await self._refresh()
            failures = failures + 1 if self._fault is not None else 0
            await asyncio.sleep(backoff.after(failures) if failures else self._due_in())

    async def usable(self) -> Sequence[IssuerKey]:
        """The current keys. Raises AccessUnavailable where they are not known or too old."""
        if self._read is None or not self._read.is_usable(self._clock()):
            await self._refresh_on_demand()
        if self._read is None or not self._read.is_usable(self._clock()):
            raise self._unavailable()
        return self._read.keys

    async def of_id(self, key_id: str) -> Sequence[IssuerKey]:
        """The keys with an id: several only where an issuer repeats it; none where it has no such key.

        Raises AccessUnavailable where that is not known.
        """
        found = _with_id(await self.usable(), key_id)
        if not found and await self._refresh_on_demand():
            found = _with_id(await self.usable(), key_id)
        if not found and self._fault is not None:
            raise self._unavailable()
        return found

    def _due_in(self) -> float:
        if self._read is None:
            return LEAST_FRESH_S
        return max(self._read.at + self._read.fresh_s - self._clock(), 1.0)

    def _unavailable(self) -> AccessUnavailable:
        detail = f"the keys of the issuer {self.issuer} are not available: {self._fault or 'they are too old'}"
        return AccessUnavailable(detail, retry_after=RETRY_AFTER_S)

    async def _refresh_on_demand(self) -> bool:
        """Read the keys unless they were read a moment ago. Whether they were read now."""
        if self._reading is None and self._clock() - self._attempted < PAUSE_S:
            return False
        await self._refresh()
        return True

    async def _refresh(self) -> None:
        """Read the keys. Concurrent calls share one reading, which a caller that is cancelled does not end."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read_once())
            self._reading.add_done_callback(self._has_read)
        await asyncio.shield(self._reading)

    def _has_read(self, _task: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read_once(self) -> None:
        self._attempted = now = self._clock()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                keys, fresh_s = await self._fetch()
        except (_Unreadable, TimeoutError) as error:
            fault = str(error) or f"the issuer did not respond within {TIMEOUT_S:g} s"
            if fault != self._fault:
                _log.warning("issuer_unavailable", issuer=self.issuer, error=fault)
            self._fault = fault
            return
        if self._read is None or _identities(keys) != _identities(self._read.keys):
            self.generation += 1
            _log.info("issuer_keys_read", issuer=self.issuer, keys=len(keys), fresh_s=fresh_s)
        self._read, self._fault = _Read(keys, now, fresh_s), None

    async def _fetch(self) -> tuple[tuple[IssuerKey, ...], float]:
        document, _ = await self._get(self.issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != self.issuer:  # OpenID Connect Discovery 1.0, section 4.3
            raise _Unreadable("the discovery document is of another issuer")
        address = document.get("jwks_uri")
        if not isinstance(address, str) or (fault := address_fault(address)) is not None:
            reason = "is missing" if not isinstance(address, str) else fault
            raise _Unreadable(f"jwks_uri of the discovery document {reason}")
        if urlsplit(self.issuer).scheme == "https" and urlsplit(address).scheme != "https":
            raise _Unreadable("jwks_uri of the discovery document is not https")
        key_set, headers = await self._get(address)
        keys = keys_of(key_set)
        if not keys:
            raise _Unreadable("the key set has no key that verifies signatures")
        return keys, fresh_for(headers.get("cache-control", ""))

    async def _get(self, url: str) -> tuple[Mapping[str, Any], httpx.Headers]:
        """A JSON object. Raises _Unreadable, without what was received."""
        what = "the discovery document" if url.endswith(DISCOVERY) else "the key set"
        # Without compression: the limit then holds for what is held in memory too.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            async with self._client.stream("GET", url, headers=headers, follow_redirects=False) as response:
                if response.status_code != httpx.codes.OK:
                    redirects = ", which redirects are not followed for" if response.is_redirect else ""
                    raise _Unreadable(f"the issuer answered {response.status_code} for {what}{redirects}")
                if "content-encoding" in response.headers:
                    raise _Unreadable(f"{what} is compressed")
                body = b""
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_BYTES:
                        raise _Unreadable(f"{what} is larger than {MAX_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Unreadable(f"the issuer did not answer for {what}: {type(error).__name__}") from error
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise _Unreadable(f"{what} is not a JSON object")
        return content, response.headers


def issuer_client() -> httpx.AsyncClient:
    """The client for `IssuerKeys`. It uses no proxy of the environment, and the system's trusted certificates
    (`SSL_CERT_FILE` names others), as the clients of webhooks do.
    """
    return httpx.AsyncClient(
        verify=ssl.create_default_context(),
        timeout=TIMEOUT_S,
        follow_redirects=False,
        trust_env=False,
        headers={"user-agent": "darkroom"},
        limits=httpx.Limits(max_connections=4, max_keepalive_connections=0),
    )


def fresh_for(cache_control: str) -> float:
    """How long keys may be used before they are read again, in seconds."""
    found = _MAX_AGE.search(cache_control)
    return FRESH_S if found is None else min(max(float(found[1]), LEAST_FRESH_S), MOST_FRESH_S)


def keys_of(key_set: Mapping[str, Any]) -> tuple[IssuerKey, ...]:
    """The keys of a JWK Set that verify signatures. Others are skipped: keys for encryption, of unknown or symmetric
    types, and keys that are too short (RFC 7517, section 5).
    """
    entries = key_set.get("keys")
    found = [_key(entry) for entry in entries[:MAX_KEYS]] if isinstance(entries, list) else []
    return tuple(key for key in found if key is not None)


def _key(entry: object) -> IssuerKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if "key_ops" in entry and "verify" not in (entry["key_ops"] if isinstance(entry["key_ops"], list) else []):
        return None
    if entry.get("kty") not in ("RSA", "EC", "OKP") or "d" in entry:  # a private key is no longer a secret
        return None
    public = {name: value for name, value in entry.items() if name in {"kty", "crv", "n", "e", "x", "y"}}
    try:
        key = JWKRegistry.import_key(public)
        too_short = isinstance(key, RSAKey) and key.raw_value.key_size < MIN_RSA_BITS
    except (JoseError, ValueError, TypeError):
        return None
    if too_short or not isinstance(key, RSAKey | ECKey | OKPKey):
        return None
    key_id, algorithm = entry.get("kid"), entry.get("alg")
    return IssuerKey(
        key_id if isinstance(key_id, str) else None, algorithm if isinstance(algorithm, str) else None, key
    )


def _with_id(keys: Sequence[IssuerKey], key_id: str) -> Sequence[IssuerKey]:
    return [key for key in keys if key.key_id == key_id]


def _identities(keys: Sequence[IssuerKey]) -> object:
    return [(key.key_id, key.algorithm, key.key.thumbprint()) for key in keys]

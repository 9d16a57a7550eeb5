"""Signatures of webhooks: the headers of each post, and the secrets and public keys that verify them.

The scheme is Standard Webhooks 1.0, whose libraries verify the posts: an HMAC (`v1`) with a secret that receiver and
darkroom share, and an Ed25519 signature (`v1a`) with a key whose public half is published. Nothing is stored: each
secret is derived from the configured keys and the name of its recipient.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

The holder of a recipient's secret can create `v1` signatures for that recipient alone. A `v1a` signature proves only
that darkroom sent the event to some receiver. A receiver that verifies only `v1a` must check the event's `tenant` and
`subject` as well, since another tenant may forward an event that it received.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from darkroom.settings import WebhookSettings

SECRET_PREFIX = "whsec_"
PUBLIC_KEY_PREFIX = "whpk_"
"""The prefixes of secrets and public keys (Standard Webhooks, "Signature scheme")."""

SECRET_BYTES = 32
"""The length of a derived secret, and of an Ed25519 seed. The specification requires 24 to 64 for secrets."""

GENERATION_OVERLAP_MS = 24 * 3600 * 1000
"""A subscription's former secret signs for so long after a rotation: a day to configure the new one in a receiver."""

_SALT = b"dev.darkroom.webhooks"
"""Separates the secrets that are derived here from all others that are derived from the same keys."""


def tenant_recipient(tenant: str) -> str:
    """The recipient for the webhooks that a tenant's jobs name themselves: all of them share one secret."""
    return f"tenant:{tenant}"


def subscription_recipient(subscription_id: str, generation: int) -> str:
    """The recipient for a subscription's webhooks. `generation` counts its secrets, from 1."""
    return f"{subscription_id}:{generation}"


def subscription_recipients(subscription_id: str, generation: int, *, rotated: int | None, now: int) -> tuple[str, ...]:
    """The recipients whose secrets sign for a subscription at `now`, the newest first.

    `rotated` is when this generation began, None if its secret was never rotated; both times in milliseconds since the
    epoch. The previous generation signs as well for `GENERATION_OVERLAP_MS`.
    """
    newest = subscription_recipient(subscription_id, generation)
    if rotated is None or generation <= 1 or now >= rotated + GENERATION_OVERLAP_MS:
        return (newest,)
    return newest, subscription_recipient(subscription_id, generation - 1)


class Signer:
    """Signs posts, and derives secrets and public keys. One per process; `keys` are the configured ones, the newest
    first. All of them sign, so that receivers can change to the newest key later.
    """

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        if not keys:
            raise ValueError("a signer needs a key")
        self._keys = tuple(_Key.of(key.get_secret_value().encode()) for key in keys)

    @classmethod
    def of(cls, settings: WebhookSettings) -> Signer:
        return cls(settings.webhook_keys)

    def headers(self, *, message_id: str, timestamp_s: int, body: bytes, recipients: Sequence[str]) -> dict[str, str]:
        """The three headers of one attempt.

        `message_id` is the event's id, the same for every attempt: receivers recognise repeats by it. `timestamp_s` is
        the time of this attempt, in seconds since the epoch: receivers reject it five minutes later. `body` must be
        sent unchanged. `recipients` are those whose secrets sign, one (`tenant_recipient`) or more
        (`subscription_recipients`).

        Raises ValueError for an id that contains a full stop, which separates the signed fields.
        """
        if "." in message_id or not message_id:
            raise ValueError(f"{message_id!r} cannot be signed as the id of a message")
        signed = b".".join([message_id.encode(), str(timestamp_s).encode(), body])
        signatures = [f"v1,{_base64(key.mac(recipient, signed))}" for recipient in recipients for key in self._keys]
        signatures += [f"v1a,{_base64(key.private.sign(signed))}" for key in self._keys]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": " ".join(signatures),
        }

    def secret(self, recipient: str) -> str:
        """The recipient's secret under the newest key, `whsec_…`, as Standard Webhooks libraries expect it."""
        return SECRET_PREFIX + _base64(self._keys[0].secret(recipient))

    def key_set(self) -> dict[str, list[dict[str, str]]]:
        """The public keys, the newest first: a JSON Web Key Set (RFC 7517, RFC 8037), each also as `whpk_…`."""
        return {"keys": [key.public() for key in self._keys]}


@dataclass(frozen=True, repr=False)
class _Key:
    """One of the configured keys, and the Ed25519 key derived from it."""

    material: bytes
    private: Ed25519PrivateKey

    @classmethod
    def of(cls, material: bytes) -> _Key:
        return cls(material, Ed25519PrivateKey.from_private_bytes(_derived(material, b"ed25519")))

    def secret(self, recipient: str) -> bytes:
        return _derived(self.material, b"secret:" + recipient.encode())

    def mac(self, recipient: str, signed: bytes) -> bytes:
        return hmac.digest(self.secret(recipient), signed, hashlib.sha256)

    def public(self) -> dict[str, str]:
        raw = self.private.public_key().public_bytes_raw()
        x = _base64url(raw)
        # RFC 7638: the digest of these members, in this order and without spaces, is the key's name.
        thumbprint = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": x,
            "kid": _base64url(thumbprint),
            "alg": "EdDSA",
            "use": "sig",
            "whpk": PUBLIC_KEY_PREFIX + _base64(raw),
        }


def _derived(material: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=_SALT, info=info).derive(material)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

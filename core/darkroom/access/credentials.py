"""The text of an API key: `dk_<id>_<secret><checksum>`.

The id is public and names the key in lists, logs and the audit trail. The secret has 190 random bits. It is shown
once, and only its SHA-256 is stored: a fast hash is enough for a secret that cannot be guessed.
The checksum lets a secret scanner recognise a key without asking this service, as those of GitHub do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

PREFIX = "dk_"

ID_LENGTH = 12
SECRET_LENGTH = 32
CHECKSUM_LENGTH = 6

ID_ALPHABET = string.digits + string.ascii_lowercase
SECRET_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase

ID_PATTERN = rf"[0-9a-z]{{{ID_LENGTH}}}"
"""The pattern of a key's id, for the OpenAPI description."""

TEXT_PATTERN = rf"{PREFIX}{ID_PATTERN}_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
"""The pattern of a whole key, for secret scanners."""

_PAIRS = [high + low for high in SECRET_ALPHABET for low in SECRET_ALPHABET]
"""Numbers below 62 * 62 in base 62: every request with a key computes a checksum."""

_ID = re.compile(ID_PATTERN + r"\Z")
_TEXT = re.compile(
    rf"{PREFIX}(?P<id>{ID_PATTERN})_[0-9A-Za-z]{{{SECRET_LENGTH}}}(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_LENGTH}}})\Z"
)


@dataclass(frozen=True)
class Credential:
    """A key as a client presents it. `text` does not appear in its representation."""

    key_id: str
    text: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Credential | None:
        """The credential of a text that has the form of a key and the right checksum, else None."""
        found = _TEXT.match(text)
        if found is None or found["checksum"] != _checksum(text[:-CHECKSUM_LENGTH]):
            return None
        return cls(found["id"], text)

    @classmethod
    def generate(cls, key_id: str | None = None) -> Credential:
        """A credential with a new secret, for a new key or for `key_id`."""
        body = f"{PREFIX}{key_id or _random(ID_ALPHABET, ID_LENGTH)}_{_random(SECRET_ALPHABET, SECRET_LENGTH)}"
        return cls(body[len(PREFIX) :][:ID_LENGTH], body + _checksum(body))

    @property
    def digest(self) -> str:
        """The SHA-256 of the text, in hexadecimal: what is stored."""
        return digest_of(self.text)


def digest_of(secret: str) -> str:
    """The SHA-256 of a random secret, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_same(digest: str, other: str) -> bool:
    """Whether two digests are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(digest, other)


def is_key_id(text: str) -> bool:
    """Whether the text has the form of a key's id."""
    return _ID.match(text) is not None


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _checksum(body: str) -> str:
    """CRC-32 of everything before it, in base 62 with leading zeros."""
    number, low = divmod(zlib.crc32(body.encode()), len(_PAIRS))
    high, middle = divmod(number, len(_PAIRS))
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]

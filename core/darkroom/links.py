"""Links to artifacts: absolute, signed and temporary.

The parts that send results to callers (jobs, result, courier) write them; the jobs function checks them before it reads
the object store. A link grants access by itself, like a presigned URL of S3: the caller needs no other credentials.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from pydantic import SecretStr

from darkroom.errors import LinkRefused
from darkroom.settings import LinkSettings

PATH = "/artifacts/"
"""Where the jobs function serves artifacts; the key follows."""

SIGNATURE = "signature"
"""The query parameter of a link's signature."""


@dataclass(frozen=True)
class Links:
    """Writes and checks links. `ttl_s` is the longest lifetime of a link, in seconds.

    Links that are written within a tenth of that time are equal, so that the view of a job does not change and clients
    can cache it (`ETag`).
    """

    public_url: str
    key: SecretStr
    ttl_s: int

    @classmethod
    def of(cls, settings: LinkSettings) -> Links:
        return cls(settings.public_url, settings.link_key, settings.link_ttl_s)

    def to(self, artifact_key: str, *, now_s: float) -> str:
        """The address of an artifact, valid for at least nine tenths of `ttl_s` from `now_s` (seconds since 1970)."""
        step = max(1, self.ttl_s // 10)
        expires = int(now_s) // step * step + self.ttl_s
        query = urlencode({"expires": expires, SIGNATURE: self._signature(artifact_key, str(expires))})
        return f"{self.public_url}{PATH}{quote(artifact_key)}?{query}"

    def check(self, artifact_key: str, query: Mapping[str, str], *, now_s: float) -> None:
        """Raises LinkRefused unless `query` has a signature for this key that has not expired."""
        expires, signature = query.get("expires", ""), query.get(SIGNATURE, "")
        if not hmac.compare_digest(self._signature(artifact_key, expires).encode(), signature.encode()):
            raise LinkRefused("the signature does not match this link")
        if now_s > int(expires):
            raise LinkRefused("the link has expired; read the job again to get a new one")

    def _signature(self, artifact_key: str, expires: str) -> str:
        text = f"{artifact_key}\n{expires}".encode()
        return hmac.new(self.key.get_secret_value().encode(), text, hashlib.sha256).hexdigest()

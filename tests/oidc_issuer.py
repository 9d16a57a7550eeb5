"""An OpenID Connect issuer on loopback, as darkroom sees one: its discovery document, its keys, and tokens of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeyParameters, OKPKey, RSAKey

AUDIENCE = "darkroom"


@dataclass
class Issuer:
    """`keys` are those that it publishes, `responses` replace its answers by path, `requests` are the paths so far."""

    url: str
    keys: list[Key] = field(default_factory=list)
    responses: dict[str, tuple[int, Mapping[str, str], bytes]] = field(default_factory=dict)
    cache_control: str = "max-age=300"
    requests: list[str] = field(default_factory=list)

    DISCOVERY = "/.well-known/openid-configuration"
    KEYS = "/keys"

    @property
    def readings(self) -> int:
        """How often its keys were requested."""
        return self.requests.count(self.KEYS)

    def rotate(self, kind: str = "RSA") -> Key:
        """A new key, which it publishes from now on in place of all others."""
        self.keys = [new_key(kind, f"key-{len(self.requests)}-{kind}")]
        return self.keys[0]

    def claims(self, **more: Any) -> dict[str, Any]:
        """Claims of a valid token. A claim with the value None is left out."""
        now = time.time()
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "anna",
            "tenant": "studio",
            "scope": "openid darkroom:submit darkroom:read",
            "exp": now + 300,
            "iat": now,
            **more,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, key: Key | None = None, header: Mapping[str, Any] | None = None, **more: Any) -> str:
        """A token with these claims, signed with `key`, or with the first one that it publishes."""
        key = key or self.keys[0]
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519"}.get(key.key_type, "HS256")
        full = {"alg": algorithm, "kid": key.kid, **(header or {})}
        kept = {name: value for name, value in full.items() if value is not None}
        return jwt.encode(kept, self.claims(**more), key, algorithms=[kept["alg"]])

    def answer(self, path: str) -> tuple[int, Mapping[str, str], bytes]:
        self.requests.append(path)
        if path in self.responses:
            return self.responses[path]
        if path == self.DISCOVERY:
            return 200, {}, json.dumps({"issuer": self.url, "jwks_uri": self.url + self.KEYS}).encode()
        if path == self.KEYS:
            keys = [key.as_dict(private=False) for key in self.keys]
            return 200, {"Cache-Control": self.cache_control}, json.dumps({"keys": keys}).encode()
        return 404, {}, b""


def new_key(kind: str, key_id: str | None) -> Key:
    parameters: KeyParameters = {"use": "sig"} if key_id is None else {"kid": key_id, "use": "sig"}
    match kind:
        case "RSA":
            return RSAKey.generate_key(2048, parameters)
        case "EC":
            return ECKey.generate_key("P-256", parameters)
        case "OKP":
            return OKPKey.generate_key("Ed25519", parameters)
    raise AssertionError(kind)


@contextmanager
def serving_issuer(port: int = 0, *, path: str = "") -> Iterator[Issuer]:
    """An issuer with one RSA key; `path` is that of its address. It is down again after the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = issuer.answer(self.path.removeprefix(path))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:  # the client reads no more
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}{path}")
    issuer.rotate()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

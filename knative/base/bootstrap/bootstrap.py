"""Makes the Secrets that are not there yet, each with random values; the pods that need them wait until they are.

It asks the API server to create them, and "there is one already" is as good as done: so it may do nothing but create
Secrets, and reads none. Arguments are the names of what is wanted, of `SECRETS`. Python's own library suffices.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ALREADY_EXISTS = 409
PATIENCE_S = 30

REDIS_USERS = ("functions", "courier", "operator", "worker", "flower")
"""One for each part, so that one can be shut out without the others, and Redis' log tells who did what."""

OF_CELERY = frozenset({"worker", "flower"})
"""Celery subscribes by patterns, and Redis allows a pattern only where the user names it as Celery writes it: so these
two hear every channel. What they may read and write is held as for the others."""

REDIS_OWN_USERS = (
    "user default off resetpass ~* &* +@all",
    "user probe on nopass resetkeys resetchannels -@all +ping",
)
"""Redis loads its append-only file as `default`. From 7.0 on it refuses each transaction and script in the file that
this user may not run, and starts without them (redis#14541): so `default` may run everything, and no client can log in
as it. `probe` is the user of the pod's probes, which thus need no password.
"""

REDIS_RIGHTS = "+@all -@admin -@dangerous +info"
"""No part configures Redis, empties it or looks at other connections. INFO is for `accept`, which asks for memory."""


def redis_secret(environment: Mapping[str, str]) -> dict[str, str]:
    """The file of Redis' users, and for each of them the address with its password."""
    prefix, database = environment["DARKROOM_NAMESPACE"], environment["REDIS_DATABASE"]
    passwords = {user: secrets.token_hex(32) for user in REDIS_USERS}
    lines = list(REDIS_OWN_USERS)
    for user, password in passwords.items():
        digest = hashlib.sha256(password.encode()).hexdigest()
        # Every script is told the bare prefix as its key.
        keys = f"resetkeys ~{prefix} ~{prefix}:*"
        channels = "allchannels" if user in OF_CELERY else f"resetchannels &{prefix}:*"
        lines.append(f"user {user} on #{digest} {keys} {channels} -@all {REDIS_RIGHTS}")
    urls = {user: f"redis://{user}:{password}@redis:6379/{database}" for user, password in passwords.items()}
    return {"users.acl": "\n".join(lines) + "\n", **urls}


def keys_secret(_environment: Mapping[str, str]) -> dict[str, str]:
    """What signs the links to artifacts, and the webhooks."""
    return {"link-key": secrets.token_hex(32), "webhook-keys": secrets.token_hex(32)}


def flower_secret(_environment: Mapping[str, str]) -> dict[str, str]:
    return {"basic-auth": f"admin:{secrets.token_hex(16)}"}


def database_secret(_environment: Mapping[str, str]) -> dict[str, str]:
    """For the PostgreSQL of `components/postgresql`."""
    password = secrets.token_hex(32)
    return {"password": password, "url": f"postgresql+asyncpg://darkroom:{password}@postgresql:5432/darkroom"}


def s3_secret(_environment: Mapping[str, str]) -> dict[str, str]:
    """For the store of `components/in-cluster-s3`."""
    return {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(32)}


SECRETS: Mapping[str, Callable[[Mapping[str, str]], dict[str, str]]] = {
    "darkroom-redis": redis_secret,
    "darkroom-keys": keys_secret,
    "darkroom-flower": flower_secret,
    "darkroom-database": database_secret,
    "darkroom-s3": s3_secret,
}


def main(names: list[str]) -> int:
    """Make each that is not there; answers the exit status."""
    if not names or set(names) - set(SECRETS):
        sys.stderr.write(f"usage: python bootstrap.py NAME...; names are {', '.join(SECRETS)}\n")
        return 2
    account = Path(os.environ.get("SERVICE_ACCOUNT", ACCOUNT))
    for name in names:
        made = create(name, SECRETS[name](os.environ), account=account)
        sys.stdout.write(f"{name}: {'made' if made else 'was there, and stays as it is'}\n")
    return 0


def create(name: str, data: Mapping[str, str], *, account: Path) -> bool:
    """Whether it was made; otherwise there is one already. Raises urllib's errors."""
    namespace = (account / "namespace").read_text().strip()
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    labels = {"app.kubernetes.io/part-of": "darkroom"}
    metadata = {"name": name, "labels": labels}
    request = urllib.request.Request(
        f"https://{host}:{port}/api/v1/namespaces/{namespace}/secrets",
        data=json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}).encode(),
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    try:
        with opener.open(request, timeout=PATIENCE_S):
            return True
    except urllib.error.HTTPError as error:
        if error.code == ALREADY_EXISTS:
            return False
        raise


if __name__ == "__main__":
    # The kernel drops SIGTERM for process 1 unless the process handles it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))

"""Create the Secrets that do not exist yet, with random values. Pods that need them wait until they exist.

The API server answers 409 for a Secret that exists, which is a success: the program needs only the right to create
Secrets, and reads none. The arguments are names of `SECRETS`. Only `darkroom-root` needs more than the standard
library.
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
TIMEOUT_S = 30

REDIS_USERS = ("functions", "courier", "operator", "worker", "flower", "admin")
"""One user for each part, so that each can be disabled on its own, and Redis' log names the part. `admin` is for
administrators: `darkroom doctor` and `darkroom audit` read every key of the environment.
"""

REDIS_OWN_USERS = (
    "user default off resetpass ~* &* +@all",
    "user probe on nopass resetkeys resetchannels -@all +ping",
)
"""Redis loads its append-only file as `default`. From 7.0 on it rejects each transaction and script in the file that
this user may not run, and starts without them (redis#14541): so `default` may run everything, and no client can log in
as it. `probe` is the user of the pod's probes, which therefore need no password.
"""

_JOBS = (
    *("job:*", "log:*", "news:*", "pool:*", "limits:*", "waiting:*", "dispatched:*", "slots:*", "celery:pool.*"),
    *("never", "due:*", "running:*", "dead:*", "outbox", "history", "deadlines", "counters"),
    *("share:*", "virtual:*", "running-limits:*", "ageing:*", "held:*", "by-user:*", "admitted:*", "excess:*"),
    *("running-of:*", "limited-pools:*"),
)
"""The keys of a job's transitions: its record, its log, and the sets that a job can be in. A terminal transition
dispatches the next job, so every part that finishes jobs needs all of them, including the message lists. Redis compares
a key with one pattern after another: the most used ones come first.
"""

_WORKERS = ("worker:*", "workers", "workers-of:*", "busy")

_WEBHOOKS = (
    *("subscription:*", "subscriptions:*", "starters:*", "delivery:*", "deliveries-of:*", "deliveries:*", "leased:*"),
    *("target:*", "targets", "notices"),
)

_CELERY = ("celery:_kombu.binding*", "celery:*.pidbox*", "celery:celeryev.*")
"""The keys of Celery's remote control and events: bindings and replies, no messages of jobs."""

_ACCESS = ("access", "key-uses")
"""The copy of tenants and keys, and when keys were used."""

REDIS_KEYS = {
    "functions": (
        *(*_JOBS, *_WEBHOOKS, *_ACCESS, "grant:*", "grants-of:*"),
        *("tenant:*", "retired", "ended", "idem:*", "pools", "undelivered*", "log-draft", "clock", "audit*"),
    ),
    "courier": (
        *(*_JOBS, *_WORKERS, *_WEBHOOKS, *_ACCESS),
        *("tenant:*", "retired", "ended", "taken:*", "pools", "epoch", "clock", "audit*"),
    ),
    "operator": (*_JOBS, *_WORKERS, "decisions:*", "pools"),
    "worker": (*_JOBS, *_WORKERS, *_CELERY, "canary:*", "starters:*"),
    "flower": (*_CELERY, "celery:pool.*"),
    "admin": ("*",),
}
"""The keys of each user, without the prefix. A worker reads the records of all jobs, since it may claim any of them; it
reads no subscription, no delivery, no list of a tenant's jobs, and no key of a tenant.
`tests/knative/test_redis_users.py` compares this table with the scripts that each part runs.
"""

_PUBLISHED = ("live:*", "news:*", "wake")
"""The channels to which scripts publish."""

_ACCESS_CHANGED = "access-changed"
"""The channel of changed keys."""

_REMOTE_CONTROL = ("/{database}.celery.pidbox", "/{database}.celeryev/*", "/{database}.celeryev/worker.*")
"""Celery subscribes by patterns, and Redis allows a pattern only if the user has exactly the same one."""

REDIS_CHANNELS = {
    "functions": (*_PUBLISHED, _ACCESS_CHANGED),
    "courier": (*_PUBLISHED, _ACCESS_CHANGED),
    "operator": _PUBLISHED,
    "worker": (*_PUBLISHED, *(f"celery:{channel}" for channel in _REMOTE_CONTROL)),
    "flower": tuple(f"celery:{channel}" for channel in _REMOTE_CONTROL),
    "admin": ("*",),
}

_CLIENT = "+@connection +select +@transaction -@admin -@dangerous"

_SCRIPTS = "+evalsha +script|load +time"
"""Scripts by their hash only. Each part that runs scripts loads them itself: after a restart of Redis no part waits for
another one, which may have another version and other scripts. A script has only the rights of its caller: Redis checks
each command and key in it.
"""

_DATA = (
    "+@hash +@list +@set +@sortedset +@stream +@string +exists +del +copy +rename +pexpire +persist -@admin -@dangerous"
)
"""Commands on keys, without those that list keys (SCAN, KEYS). The keys of the user limit the data."""

_PUBSUB = "+publish +subscribe +unsubscribe"

_KOMBU = (
    "+brpop +rpop +lpush +llen +sadd +srem +smembers +zadd +zrem +zrange +exists +del +pexpire +publish +psubscribe "
    "+punsubscribe"
)

REDIS_COMMANDS = {
    "functions": f"{_CLIENT} {_DATA} {_SCRIPTS} {_PUBSUB} +info",
    "courier": f"{_CLIENT} {_DATA} {_SCRIPTS} {_PUBSUB} +info",
    "operator": f"{_CLIENT} {_DATA} {_SCRIPTS} {_PUBSUB}",
    "worker": (
        f"{_CLIENT} {_KOMBU} {_SCRIPTS} +script|exists +hget +hmget +hgetall +hset +hdel +hincrby +hstrlen +lrem +lpop "
        "+lindex +linsert +rpush +scard +zcard +zcount +zrank +zscore +zrangebyscore +zrevrange +zrevrangebyscore "
        "+zremrangebyscore +xadd"
    ),
    "flower": f"{_CLIENT} {_KOMBU}",
    "admin": "+@all -@admin -@dangerous +info",
}
"""No part may configure or flush Redis or list connections. INFO is for `accept`, which reads the used memory."""


def redis_rights(user: str, *places: tuple[str, str]) -> str:
    """The rights of the user, for each of `places`: a prefix of keys and channels, and a database."""
    keys = [key for prefix, _ in places for key in (prefix, *(f"{prefix}:{key}" for key in REDIS_KEYS[user]))]
    channels = [
        f"{prefix}:{channel.format(database=database)}"
        for prefix, database in places
        for channel in REDIS_CHANNELS[user]
    ]
    # Every script has the prefix alone as its key.
    named = [*(f"~{key}" for key in keys), *(f"&{channel}" for channel in channels)]
    return f"resetkeys resetchannels {' '.join(named)} -@all {REDIS_COMMANDS[user]}"


def redis_secret(environment: Mapping[str, str]) -> dict[str, str]:
    """The file of Redis' users, and the address of each user with its password."""
    prefix, database = environment["DARKROOM_NAMESPACE"], environment["REDIS_DATABASE"]
    passwords = {user: secrets.token_hex(32) for user in REDIS_USERS}
    lines = list(REDIS_OWN_USERS)
    for user, password in passwords.items():
        digest = hashlib.sha256(password.encode()).hexdigest()
        lines.append(f"user {user} on #{digest} {redis_rights(user, (prefix, database))}")
    urls = {user: f"redis://{user}:{password}@redis:6379/{database}" for user, password in passwords.items()}
    return {"users.acl": "\n".join(lines) + "\n", **urls}


def keys_secret(_environment: Mapping[str, str]) -> dict[str, str]:
    """The keys that sign the links to artifacts and the webhooks."""
    return {"link-key": secrets.token_hex(32), "webhook-keys": secrets.token_hex(32)}


def proof_secret(_environment: Mapping[str, str]) -> dict[str, str]:
    """The key that proves darkroom's events to its own parts."""
    return {"proof-keys": secrets.token_hex(32)}


def root_secret(_environment: Mapping[str, str]) -> dict[str, str]:
    """The API key of administrators, which creates all others."""
    from darkroom.access.credentials import Credential  # the other Secrets need no package

    return {"root-key": Credential.generate().text}


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
    "darkroom-proof": proof_secret,
    "darkroom-root": root_secret,
    "darkroom-flower": flower_secret,
    "darkroom-database": database_secret,
    "darkroom-s3": s3_secret,
}


def main(names: list[str]) -> int:
    """Create each Secret that does not exist, and return the exit status."""
    if not names or set(names) - set(SECRETS):
        sys.stderr.write(f"usage: python bootstrap.py NAME...; names are {', '.join(SECRETS)}\n")
        return 2
    account = Path(os.environ.get("SERVICE_ACCOUNT", ACCOUNT))
    for name in names:
        made = create(name, SECRETS[name](os.environ), account=account)
        sys.stdout.write(f"{name}: {'created' if made else 'exists, unchanged'}\n")
    return 0


def create(name: str, data: Mapping[str, str], *, account: Path) -> bool:
    """Create a Secret. Returns whether it was created; otherwise it exists already. Raises urllib's errors."""
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
        with opener.open(request, timeout=TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        if error.code == ALREADY_EXISTS:
            return False
        raise


if __name__ == "__main__":
    # The kernel drops SIGTERM for process 1 unless the process handles it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))

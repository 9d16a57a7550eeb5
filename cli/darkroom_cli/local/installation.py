"""The darkroom that an operator's command looks at: not over HTTP, but in Redis, the object store and the history.

The environment names them, as for any part. Where it names no Redis, it is the one of the `darkroom up` that runs with
the data folder, and its store and history with it. Both kinds are never mixed: the pictures of one darkroom say nothing
about the jobs of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from darkroom.errors import SettingError
from darkroom.ledger.calls import BACKLOG_BYTES, BACKLOG_LIMIT
from darkroom.settings import DatabaseUrl, Namespace, RedisUrl, Settings, load
from pydantic import Field, SecretStr

from darkroom_cli.client import Unreachable
from darkroom_cli.local import redis_server
from darkroom_cli.local.data_folder import DataFolder
from darkroom_cli.local.run_record import RunRecord
from darkroom_cli.local.up import REDIS
from darkroom_cli.local.welcome import short


class OperatorSettings(Settings):
    """What the environment says to the commands for operators."""

    home: Path = Path(".darkroom")
    """The data folder of a `darkroom up`."""

    redis_url: RedisUrl | None = None
    """Where Redis is."""

    namespace: Namespace = "darkroom"
    """Begins every key and channel of ours."""

    store: str | None = Field(default=None, pattern=r"^(file:///|s3://)")
    """The object store, where it is to be looked at."""

    database_url: DatabaseUrl | None = None
    """The database of ended jobs, where it is to be looked at."""

    backlog_limit: int = Field(default=BACKLOG_LIMIT, ge=1)
    """What submit was told: jobs that may wait in one pool."""

    backlog_bytes: int = Field(default=BACKLOG_BYTES, ge=1)
    """The same: bytes that unfinished jobs may take."""


@dataclass(frozen=True)
class Installation:
    """Where everything of one darkroom is; without a store or a history these are not looked at."""

    redis_url: str
    namespace: str
    store: str | None
    history: SecretStr | None
    backlog_limit: int
    backlog_bytes: int


def find(data: Path | None) -> Installation:
    """The one that the environment names, else that of the data folder. Raises SettingError, Unreachable."""
    settings = load(OperatorSettings)
    if settings.redis_url is not None:
        return Installation(
            redis_url=settings.redis_url.get_secret_value(),
            namespace=settings.namespace,
            store=settings.store,
            history=settings.database_url,
            backlog_limit=settings.backlog_limit,
            backlog_bytes=settings.backlog_bytes,
        )
    folder = DataFolder((data or settings.home).absolute())
    return Installation(
        redis_url=_running_redis(folder),
        namespace=settings.namespace,
        store=folder.store.as_uri(),
        history=settings.database_url or SecretStr(folder.database_url),
        backlog_limit=settings.backlog_limit,
        backlog_bytes=settings.backlog_bytes,
    )


def _running_redis(folder: DataFolder) -> str:
    """The address of the Redis that `up` runs there."""
    try:
        record = RunRecord.read(folder.record)
    except ValueError as error:
        raise SettingError(str(error)) from error
    is_running = record is not None and any(each.name == REDIS and each.is_alive for each in record.processes)
    url = redis_server.address(folder.redis) if is_running else None
    if url is None:
        raise Unreachable(f"`darkroom up` runs no Redis with {short(folder.path)}, and DARKROOM_REDIS_URL names none")
    return url

"""The darkroom installation that the commands for operators read: its Redis, object store and history.

The environment names them, as for any part. If it names no Redis, they are those of the `darkroom up` that runs with
the data folder. The two are never mixed: the artifacts of one installation have no relation to the jobs of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from darkroom.errors import SettingError
from darkroom.ledger.calls import BACKLOG_BYTES, BACKLOG_LIMIT
from darkroom.settings import DatabaseUrl, Namespace, RedisUrl, Settings, load
from pydantic import Field, SecretStr

from darkroom_cli.local import redis_server
from darkroom_cli.local.data_folder import DataFolder
from darkroom_cli.local.run_record import RunRecord
from darkroom_cli.local.stack import REDIS
from darkroom_cli.local.welcome import short
from darkroom_cli.problems import Unreachable


class InstallationSettings(Settings):
    """Settings of the commands for operators."""

    home: Path = Path(".darkroom")
    """The data folder of a `darkroom up`."""

    redis_url: RedisUrl | None = None
    """The address of Redis."""

    namespace: Namespace = "darkroom"
    """The prefix of every Redis key and channel."""

    store: str | None = Field(default=None, pattern=r"^(file:///|s3://)")
    """The object store; unset: artifacts are not read."""

    database_url: DatabaseUrl | None = None
    """The database of the history; unset: the history is not read."""

    backlog_limit: int = Field(default=BACKLOG_LIMIT, ge=1)
    """The function submit's setting: jobs that may wait in one pool."""

    backlog_bytes: int = Field(default=BACKLOG_BYTES, ge=1)
    """The function submit's setting: bytes that unfinished jobs may use."""


@dataclass(frozen=True)
class Installation:
    """The addresses of one installation. Without a store or a history these are not read."""

    redis_url: str
    namespace: str
    store: str | None
    history: SecretStr | None
    backlog_limit: int
    backlog_bytes: int


def find(data: Path | None) -> Installation:
    """The installation that the environment names, else that of the data folder. Raises SettingError, Unreachable."""
    settings = load(InstallationSettings)
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
    """The address of the Redis that `up` runs with this data folder."""
    try:
        record = RunRecord.read(folder.record)
    except ValueError as error:
        raise SettingError(str(error)) from error
    is_running = record is not None and any(each.name == REDIS and each.is_alive for each in record.processes)
    url = redis_server.address(folder.redis) if is_running else None
    if url is None:
        raise Unreachable(f"no `darkroom up` runs a Redis with {short(folder.path)}, and DARKROOM_REDIS_URL is not set")
    return url

"""The environments dev, demo and test on one machine: their settings, for `darkroom env NAME …`.

An environment is a database of one Redis and a prefix for all keys. The prefix also separates channels, which databases
do not. Settings come from the process' own environment, then `env/.env.NAME`, then `env/.env`, then the defaults;
`env/.env.example` lists them. They are set in this process' environment, which child processes inherit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from darkroom.errors import SettingError
from darkroom.ledger.address import RedisAddress
from darkroom.settings import ModelSettings, Namespace, RedisUrl, load
from dotenv import dotenv_values
from pydantic import SecretStr

from darkroom_cli.local.data_folder import DataFolder

FILES = ("env/.env", "env/.env.{name}")
"""Relative to the current folder. The last file that sets a variable wins."""

PRODUCTION = ("prod", "production")

LEDGER_USERS = ("functions", "courier", "worker", "flower", "operator")
"""The users of `env/redis.conf.example`: one for each part, and `operator` for these commands."""


@dataclass(frozen=True)
class NamedEnvironment:
    """The values that distinguish an environment. The ports are different, so that all can run at the same time."""

    name: str
    database: int
    api_port: int
    flower_port: int

    @property
    def namespace(self) -> str:
        """The prefix of every key and channel of the environment."""
        return f"darkroom-{self.name}"


ENVIRONMENTS = {
    each.name: each
    for each in (
        NamedEnvironment("dev", database=4, api_port=8001, flower_port=5555),
        NamedEnvironment("demo", database=2, api_port=8002, flower_port=5556),
        NamedEnvironment("test", database=3, api_port=8003, flower_port=5557),
    )
}


class EnvironmentSettings(ModelSettings):
    """The settings of the commands; the parts read all others."""

    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379")
    """The address of Redis, without a database number, which belongs to the environment."""

    redis_password: SecretStr | None = None
    """The password of Redis' users, the same as in env/redis.conf. Empty if Redis requires none. Secret."""

    namespace: Namespace | None = None
    """Must not be set: it belongs to the environment."""

    home: Path = Path(".darkroom")
    """The data folder, which contains a folder for each environment."""


@dataclass(frozen=True)
class ActiveEnvironment:
    """The environment whose variables this process has."""

    environment: NamedEnvironment
    settings: EnvironmentSettings

    @property
    def folder(self) -> DataFolder:
        """The folder of the environment's pictures, history and logs."""
        return DataFolder((self.settings.home / self.environment.name).absolute())

    def redis_url(self, user: str) -> str:
        """Redis' address with the environment's database, for one of LEDGER_USERS."""
        password = self.settings.redis_password
        return self._address.at(
            database=self.environment.database,
            username=user if password else None,
            password=password.get_secret_value() if password else None,
        ).url

    @property
    def where(self) -> str:
        """The database in Redis, as text."""
        return f"database {self.environment.database} of {self._address.host}:{self._address.port}"

    @property
    def _address(self) -> RedisAddress:
        return RedisAddress.parse(self.settings.redis_url.get_secret_value())


def activate(name: str) -> ActiveEnvironment:
    """Set the environment's variables in this process. Raises SettingError."""
    if name in PRODUCTION:
        raise SettingError(f"{name} is refused: these commands are for {_names()} and never access production")
    if name not in ENVIRONMENTS:
        raise SettingError(f"unknown environment {name!r}; the environments are {_names()}")
    os.environ.update(read_files(name, own=os.environ))
    settings = load(EnvironmentSettings)
    active = ActiveEnvironment(ENVIRONMENTS[name], settings)
    _refuse_another(active)
    for variable in ("DARKROOM_REDIS_PASSWORD", "DARKROOM_REDIS_URL"):
        os.environ.pop(variable, None)
    os.environ["DARKROOM_NAMESPACE"] = active.environment.namespace
    return active


def read_files(name: str, *, own: Mapping[str, str], folder: Path = Path()) -> dict[str, str]:
    """The variables of the files that `own` does not have. An empty value is ignored. Raises SettingError."""
    found: dict[str, str] = {}
    for file in FILES:
        path = folder / file.format(name=name)
        # Verbatim: a `$` in a password is not a reference.
        for variable, value in dotenv_values(path, interpolate=False).items():
            if value is None:
                raise SettingError(f"{path}: {variable} has no value: a line is NAME=value")
            if value:
                found[variable] = value
    return {variable: value for variable, value in found.items() if variable not in own}


def check_redis(active: ActiveEnvironment) -> None:
    """Raises Unreachable or SettingError, with advice, if Redis is unavailable or refuses the login."""
    from darkroom_cli.local import redis_server
    from darkroom_cli.problems import Unreachable

    url = active.redis_url("operator")
    try:
        found = redis_server.find(url)
    except SettingError as error:
        raise SettingError(
            f"{active.where}: {error.detail.removeprefix('DARKROOM_REDIS_URL=(hidden): ')}. The password in env/.env "
            "(DARKROOM_REDIS_PASSWORD) and that in env/redis.conf must be the same"
        ) from error
    if found is None:
        raise Unreachable(f"no Redis answers at {active.where}; {_how_to_get_one()}")
    if not found.serves:
        raise Unreachable(f"Redis at {active.where} is still loading its data ({found.progress}): try again soon")


def _refuse_another(active: ActiveEnvironment) -> None:
    """Refuse settings that name the database or the prefix of another environment."""
    environment, settings = active.environment, active.settings
    address = RedisAddress.parse(settings.redis_url.get_secret_value())
    if address.socket is not None:
        raise SettingError("DARKROOM_REDIS_URL=(hidden): these commands support redis:// and rediss:// only")
    if address.database not in {None, environment.database}:
        raise SettingError(
            f"DARKROOM_REDIS_URL=(hidden): the database of {environment.name} is {environment.database}, not "
            f"{address.database}"
        )
    if settings.namespace not in {None, environment.namespace}:
        raise SettingError(
            f"DARKROOM_NAMESPACE={settings.namespace!r}: {environment.name} has the prefix {environment.namespace!r}"
        )


def _how_to_get_one() -> str:
    from darkroom_cli.local import redis_server

    advice = "start one: `redis-server env/redis.conf` (see env/redis.conf.example)"
    try:
        return f"{advice}. A server is installed here: {redis_server.find_server()}"
    except SettingError:
        return f"{advice}. `apt-get install redis-server`, `brew install redis` or a container provides a server"


def _names() -> str:
    return ", ".join(ENVIRONMENTS)

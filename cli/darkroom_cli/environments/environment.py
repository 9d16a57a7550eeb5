"""dev, demo and test on one machine: what `darkroom env NAME …` finds out before it starts or shows anything.

An environment is a database of one Redis and a prefix for all keys. The prefix covers channels too, which databases do
not keep apart. Settings come from the process' own environment, then `env/.env.NAME`, then `env/.env`, then the
defaults; `env/.env.example` lists them. They are put into this process' environment, where what is started finds them.
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
"""Relative to where the command is typed; the last that sets a variable counts."""

PRODUCTION = ("prod", "production")

LEDGER_USERS = ("functions", "courier", "worker", "flower", "operator")
"""The users of `env/redis.conf.example`: one for each part, and `operator` for who looks on and tidies up."""


@dataclass(frozen=True)
class NamedEnvironment:
    """What makes an environment another than the next; the ports let all of them run side by side."""

    name: str
    database: int
    api_port: int
    flower_port: int

    @property
    def namespace(self) -> str:
        """Begins every key and channel of it."""
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
class Entered:
    """An environment whose variables are those of this process."""

    environment: NamedEnvironment
    settings: EnvironmentSettings

    @property
    def folder(self) -> DataFolder:
        """Where the pictures, the history and the logs of this environment are."""
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
        """Its place in Redis, for people."""
        return f"database {self.environment.database} of {self._address.host}:{self._address.port}"

    @property
    def _address(self) -> RedisAddress:
        return RedisAddress.parse(self.settings.redis_url.get_secret_value())


def enter(name: str) -> Entered:
    """Take the environment's variables into this process'. Raises SettingError."""
    if name in PRODUCTION:
        raise SettingError(f"{name} is refused: these commands are for {_names()}, and nothing here touches production")
    if name not in ENVIRONMENTS:
        raise SettingError(f"there is no environment {name!r}; there are {_names()}")
    os.environ.update(read_files(name, own=os.environ))
    settings = load(EnvironmentSettings)
    entered = Entered(ENVIRONMENTS[name], settings)
    _refuse_another(entered)
    for variable in ("DARKROOM_REDIS_PASSWORD", "DARKROOM_REDIS_URL"):
        os.environ.pop(variable, None)
    os.environ["DARKROOM_NAMESPACE"] = entered.environment.namespace
    return entered


def read_files(name: str, *, own: Mapping[str, str], folder: Path = Path()) -> dict[str, str]:
    """What the files set and `own` does not. An empty value in a file sets nothing. Raises SettingError."""
    found: dict[str, str] = {}
    for file in FILES:
        path = folder / file.format(name=name)
        # As it is written: a `$` in a password is no reference.
        for variable, value in dotenv_values(path, interpolate=False).items():
            if value is None:
                raise SettingError(f"{path}: {variable} has no value: a line is NAME=value")
            if value:
                found[variable] = value
    return {variable: value for variable, value in found.items() if variable not in own}


def check_redis(entered: Entered) -> None:
    """Raises Unreachable or SettingError, saying what to do, where Redis is not there or refuses us."""
    from darkroom_cli.client import Unreachable
    from darkroom_cli.local import redis_server

    url = entered.redis_url("operator")
    try:
        found = redis_server.find(url)
    except SettingError as error:
        raise SettingError(
            f"{entered.where}: {error.detail.removeprefix('DARKROOM_REDIS_URL=(hidden): ')}. The password in env/.env "
            "(DARKROOM_REDIS_PASSWORD) and that in env/redis.conf must be the same"
        ) from error
    if found is None:
        raise Unreachable(f"no Redis answers at {entered.where}; {_how_to_get_one()}")
    if not found.serves:
        raise Unreachable(f"Redis at {entered.where} is still reading its data ({found.progress}): try again soon")


def _refuse_another(entered: Entered) -> None:
    """What is said of the place in Redis is the environment's, or it would be another environment's data."""
    environment, settings = entered.environment, entered.settings
    address = RedisAddress.parse(settings.redis_url.get_secret_value())
    if address.socket is not None:
        raise SettingError("DARKROOM_REDIS_URL=(hidden): these commands reach Redis by redis:// or rediss:// only")
    if address.database not in {None, environment.database}:
        raise SettingError(
            f"DARKROOM_REDIS_URL=(hidden): {environment.name} is database {environment.database}, and another is named"
        )
    if settings.namespace not in {None, environment.namespace}:
        raise SettingError(
            f"DARKROOM_NAMESPACE={settings.namespace!r}: {environment.name} is the prefix {environment.namespace!r}"
        )


def _how_to_get_one() -> str:
    from darkroom_cli.local import redis_server

    advice = "start one: `redis-server env/redis.conf` (env/redis.conf.example says what to put into it)"
    try:
        return f"{advice}. There is a server here: {redis_server.find_server()}"
    except SettingError:
        return f"{advice}. `apt-get install redis-server`, `brew install redis` or a container brings a server"


def _names() -> str:
    return ", ".join(ENVIRONMENTS)

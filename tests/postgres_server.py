"""A real PostgreSQL for tests: a cluster in a folder of its own, on a free loopback port, ended by its own pid.

PostgreSQL refuses to run as root: then it runs as the user `postgres`, or `nobody`. `conftest.py` hands out databases.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.ports import free_port

START_DEADLINE_S = 60
STOP_DEADLINE_S = 60
POLL_S = 0.05

USER = "darkroom"


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs, which Debian keeps off the PATH; None without PostgreSQL."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    return found[-1].parent if found else None


class PostgresServer:
    """One server. After `stop`, `start` restarts it on the same port with the same data; `remove` deletes it."""

    def __init__(self, folder_of_programs: Path | None) -> None:
        """Raises RuntimeError if this machine has no PostgreSQL."""
        if folder_of_programs is None:
            raise RuntimeError("there is no PostgreSQL on this machine")
        self._programs = folder_of_programs
        self._folder = Path(tempfile.mkdtemp(prefix="darkroom-postgres-"))
        self._owner = _owner()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if self._owner:
            shutil.chown(self._folder, **self._owner)
        self._run("initdb", "--username", USER, "--auth", "trust", "--encoding", "UTF8", "--no-sync", str(self._data))

    def start(self) -> None:
        """Start, and return once it accepts connections; raises RuntimeError with its log if it does not."""
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",  # a killed process loses nothing by it, only a machine without power
        }
        arguments = [text for name, value in options.items() for text in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **self._identity,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"PostgreSQL does not serve port {self.port}:\n{self._log.read_text()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop it without waiting for its clients; does nothing if it is not running."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t_{secrets.token_hex(6)}"
        self._run("createdb", *self._address, name)
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{name}"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "postgres.log"

    @property
    def _address(self) -> tuple[str, ...]:
        return ("--host", "127.0.0.1", "--port", str(self.port), "--username", USER)

    @property
    def _identity(self) -> dict[str, Any]:
        return {**self._owner, "extra_groups": []} if self._owner else {}

    def _serves(self) -> bool:
        command = [str(self._programs / "pg_isready"), "--quiet", *self._address]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            **self._identity,
        )


def _owner() -> dict[str, Any]:
    """User and group of the server, if they are not those of this process."""
    if os.getuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid}

"""Redis with the configuration and users of its manifest, in a folder and on a port of the test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.knative.rendering import Object, find, main_container
from tests.ports import free_port
from tests.redis_server import RedisKind, needed_binary
from tests.waiting import eventually

STOP_DEADLINE_S = 30
PROBE_DEADLINE_S = 30

HOST = "@redis:6379/"
"""Host and port of the addresses in the Secret."""


class ShippedRedis:
    """Redis as its manifest starts it. `users` is the Secret with addresses that lead here, and `port`, its port.

    `more_users` are lines for the file of users. After `stop` (or `stop(signal.SIGKILL)`), `start` brings it back on
    the same port with the same data.
    """

    def __init__(
        self,
        binary: Path,
        objects: Sequence[Object],
        secret: Mapping[str, str],
        folder: Path,
        *,
        more_users: Sequence[str] = (),
    ) -> None:
        self._container = main_container(find(objects, "StatefulSet", "redis"))
        program, config = self._container["command"]
        assert program == "redis-server"
        assert config in {mount["mountPath"] for mount in self._container["volumeMounts"]}
        (folder / "data").mkdir()
        (folder / "users.acl").write_text(secret["users.acl"] + "".join(f"{line}\n" for line in more_users))
        text = find(objects, "ConfigMap", "redis")["data"]["redis.conf"]
        for there, here in {"dir /data": f"dir {folder}/data", "/etc/redis/users": str(folder)}.items():
            assert there in text
            text = text.replace(there, here)
        (folder / "redis.conf").write_text(text)
        self.port = free_port()
        self.log = folder / "redis.log"
        self._command = [str(binary), str(folder / "redis.conf"), "--port", str(self.port), "--bind", "127.0.0.1"]
        self.users = {
            "port": str(self.port),
            **{name: value.replace(HOST, f"@127.0.0.1:{self.port}/") for name, value in secret.items()},
        }

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        eventually(self._is_ready, what="Redis passes its readiness probe")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)
        self._process.wait(STOP_DEADLINE_S)

    def _is_ready(self) -> bool:
        """Whether the command of the readiness probe succeeds, with a real redis-cli."""
        if self._process.poll() is not None:
            raise AssertionError(self.log.read_text())
        cli = needed_binary(RedisKind.EMBEDDED).parent
        probe = self._container["readinessProbe"]["exec"]["command"]
        command = [part.replace("redis-cli", f"redis-cli -p {self.port}") for part in probe]
        path = f"{cli}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(command, env={"PATH": path}, check=False, timeout=PROBE_DEADLINE_S).returncode == 0


@contextmanager
def running(
    binary: Path, objects: Sequence[Object], secret: Mapping[str, str], folder: Path, *, more_users: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """Answers the Secret with addresses that lead to it; `port` is its port."""
    server = ShippedRedis(binary, objects, secret, folder, more_users=more_users)
    server.start()
    try:
        yield server.users
    finally:
        server.stop()

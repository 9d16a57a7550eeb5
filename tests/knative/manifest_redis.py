"""Redis as its manifest starts it: the same configuration and users, in a folder and on a port of a test's own."""

from __future__ import annotations

import os
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
"""What addresses in the Secret say of where it is."""


@contextmanager
def running(
    binary: Path, objects: Sequence[Object], secret: Mapping[str, str], folder: Path
) -> Iterator[dict[str, str]]:
    """Answers the Secret with addresses that lead to it; `port` is its port."""
    container = main_container(find(objects, "StatefulSet", "redis"))
    program, config = container["command"]
    assert program == "redis-server"
    assert config in {mount["mountPath"] for mount in container["volumeMounts"]}
    (folder / "data").mkdir()
    (folder / "users.acl").write_text(secret["users.acl"])
    text = find(objects, "ConfigMap", "redis")["data"]["redis.conf"]
    for there, here in {"dir /data": f"dir {folder}/data", "/etc/redis/users": str(folder)}.items():
        assert there in text
        text = text.replace(there, here)
    (folder / "redis.conf").write_text(text)
    port = free_port()
    log = folder / "redis.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, folder / "redis.conf", "--port", str(port), "--bind", "127.0.0.1"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: _is_ready(container, port, process, log), what="Redis passes its readiness probe")
        yield {
            "port": str(port),
            **{name: value.replace(HOST, f"@127.0.0.1:{port}/") for name, value in secret.items()},
        }
    finally:
        process.terminate()
        process.wait(STOP_DEADLINE_S)


def _is_ready(container: Object, port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether the readiness probe's own command passes, with a real redis-cli."""
    if process.poll() is not None:
        raise AssertionError(log.read_text())
    cli = needed_binary(RedisKind.EMBEDDED).parent
    command = [
        part.replace("redis-cli", f"redis-cli -p {port}") for part in container["readinessProbe"]["exec"]["command"]
    ]
    path = f"{cli}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, env={"PATH": path}, check=False, timeout=PROBE_DEADLINE_S).returncode == 0

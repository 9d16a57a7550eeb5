"""Redis as its manifest starts it: the same configuration and users, in a folder and on a port of a test's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.knative.rendering import Object, find, main_container
from tests.ports import free_port
from tests.waiting import eventually

STOP_DEADLINE_S = 30

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
        eventually(lambda: _answers(port, process, log), what="Redis answers PING, as its probe asks")
        yield {
            "port": str(port),
            **{name: value.replace(HOST, f"@127.0.0.1:{port}/") for name, value in secret.items()},
        }
    finally:
        process.terminate()
        process.wait(STOP_DEADLINE_S)


def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise AssertionError(log.read_text())
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False

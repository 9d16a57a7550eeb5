"""A Redis with TLS only, at an address without TLS options: all parts work and send nothing in plain text."""

from __future__ import annotations

import base64
from contextlib import ExitStack
from pathlib import Path

import httpx
from darkroom.jobs import State
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect, connect_async

from tests.darkroom_command import darkroom
from tests.parts import Functions, Part
from tests.ports import free_port
from tests.tls_redis import PASSWORD, Recorder, TlsRedis
from tests.waiting import eventually
from tests.worker.running_worker import POOL, Testbed, WorkerProcess

NAMESPACE = "darkroom-test"
DATABASE = 3
"""Database and prefix of the environment `test`, which `darkroom env` reads."""

TLS_HANDSHAKE = b"\x16\x03"
"""The first bytes of a TLS connection: a record that holds a handshake, of version 3.x (RFC 8446, section 5.1)."""


async def test_every_part_works_over_tls_and_nothing_is_sent_in_plain_text(repository: Path, tmp_path: Path) -> None:
    server = TlsRedis(tmp_path)
    recorder = Recorder(server.port)
    with ExitStack() as stack:
        server.start()
        stack.callback(server.stop)
        url = f"{server.at(stack.enter_context(recorder.running()))}?db={DATABASE}"
        trust = {"SSL_CERT_FILE": str(server.authority)}
        async with connect_async(f"{server.at(server.port)}/{DATABASE}?ssl_ca_certs={server.authority}") as client:
            house = Testbed(AsyncLedger(client, NAMESPACE), redis_url=url, namespace=NAMESPACE, folder=tmp_path)
            settings = house.environment() | trust
            worker = WorkerProcess(settings, tmp_path / "worker.log")
            stack.callback(worker.kill)
            functions = Functions("all", environment=settings, log=tmp_path / "functions.log")
            functions.start()
            stack.callback(functions.stop)
            courier = Part(
                "darkroom_courier", environment=settings | {"K_SINK": f"{functions.url}/events"}, log=tmp_path / "c.log"
            )
            courier.start()
            stack.callback(courier.stop)

            job_id = await house.submit()
            assert (await house.ended(job_id)).state is State.COMPLETED

            async def marks() -> object:
                return await client.hmget(f"{NAMESPACE}:job:{job_id}", "applied", "archived")

            async def is_done() -> bool | None:
                return None if None in await marks() else True  # type: ignore[operator]

            await house.until(is_done, "the courier had its end applied, and archived it")

        flower_port = free_port()
        flower = Part(
            "celery",
            *("--app=darkroom_flower", "flower", f"--port={flower_port}", "--address=127.0.0.1"),
            environment=settings
            | {
                "FLOWER_BASIC_AUTH": "a:b",
                "PYTHONPATH": f"{settings['PYTHONPATH']}:{repository / 'knative' / 'base' / 'flower'}",
            },
            log=tmp_path / "flower.log",
        )
        flower.start()
        stack.callback(flower.stop)
        eventually(
            lambda: (
                _asked_flower(flower_port, "queues/length")
                == {"active_queues": [{"name": f"pool.{POOL}", "messages": 0}]}
            ),
            what="Flower knows the worker's queue and its length",
        )

        here = {"DARKROOM_REDIS_URL": url, "DARKROOM_NAMESPACE": NAMESPACE, **trust}
        doctor = darkroom(["doctor"], folder=tmp_path, **here)
        assert "fine: redis-reachable" in doctor.stdout, doctor.stdout
        audit = darkroom(["audit"], folder=tmp_path, **here)
        assert audit.returncode == 0, audit.stdout + audit.stderr
        keys = darkroom(["env", "test", "keys"], folder=tmp_path, **here)
        assert f"{NAMESPACE}:job:{job_id}" in keys.stdout, keys.stderr
        other = darkroom(["env", "dev", "keys"], folder=tmp_path, **trust, DARKROOM_REDIS_URL=url)
        assert other.returncode == 2
        assert "the database of dev is 4, not" in other.stderr

        with connect(server.url) as client:
            assert list(client.info("keyspace")) == [f"db{DATABASE}"]
    sent = [bytes(each) for each in recorder.sent if each]
    assert all(each.startswith(TLS_HANDSHAKE) for each in sent)
    assert not any(PASSWORD.encode() in each for each in sent)


def _asked_flower(port: int, path: str) -> object:
    login = base64.b64encode(b"a:b").decode()
    try:
        answer = httpx.get(
            f"http://127.0.0.1:{port}/api/{path}",
            headers={"Authorization": f"Basic {login}"},
            trust_env=False,
            timeout=30,
        )
    except httpx.TransportError:
        return None
    return answer.json() if answer.is_success else None

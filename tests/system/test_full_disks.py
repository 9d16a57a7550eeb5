"""A full disk for logs does not affect jobs; a process exits when one of its background tasks or threads ends."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from darkroom.jobs import State
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.supervision import FAILED

from tests.parts import Functions, Part, environment, hooked
from tests.ports import free_port
from tests.waiting import eventually
from tests.worker.running_worker import MODEL, Testbed, WorkerProcess


def full(folder: Path, name: str) -> Path:
    """A log on a full disk."""
    folder.mkdir(exist_ok=True)
    log = folder / name
    log.symlink_to("/dev/full")
    return log


async def test_jobs_complete_while_no_part_can_write_its_log(redis_url: str, namespace: str, tmp_path: Path) -> None:
    client = connect_async(redis_url)
    house = Testbed(AsyncLedger(client, namespace), redis_url=redis_url, namespace=namespace, folder=tmp_path)
    variables, disk = house.environment(), tmp_path / "disk"
    functions = Functions("all", environment=variables, log=full(disk, "functions"))
    sink = {"K_SINK": f"{functions.url}/events"}
    courier = Part("darkroom_courier", environment=variables | sink, log=full(disk, "courier"))
    worker: WorkerProcess | None = None
    try:
        functions.start()
        courier.start()
        worker = WorkerProcess(variables, full(disk, "worker"))
        earlier = await house.submit()
        assert (await house.ended(earlier)).state is State.COMPLETED
        async with httpx.AsyncClient(base_url=functions.url, trust_env=False, timeout=60) as caller:
            for _ in range(3):
                answer = await caller.post(f"/{MODEL}", json={"prompt": "a lighthouse"})
                assert answer.status_code == 202, answer.text
                assert (await house.ended(answer.json()["id"])).state is State.COMPLETED
                refused = await caller.post(f"/{MODEL}", json={"prompt": 7})
                assert refused.status_code == 422, refused.text

        async def is_settled() -> bool | None:
            looked = await client.hmget(f"{namespace}:job:{earlier}", "applied", "archived")
            return all(looked) or None

        await house.until(is_settled, "its end is applied and archived")
    finally:
        for part in (worker, courier, functions):
            if part is not None:
                assert part.stop() in {0, None}
        await client.aclose()


CHANNELS_END = """
import asyncio
from darkroom.ledger.channels import Channels

async def run(self):
    await asyncio.sleep(1)
    raise RuntimeError

Channels.run = run
"""
CHANNELS_CANCELLED = """
import asyncio
from darkroom.ledger.channels import Channels

async def run(self):
    await asyncio.sleep(1)
    asyncio.current_task().cancel()
    await asyncio.sleep(1)

Channels.run = run
"""
SUPERVISOR_ENDS = """
from darkroom_worker.parent.supervisor import Supervisor

def wait(self, timeout_s):
    raise SystemExit

Supervisor._wait = wait
"""


@pytest.mark.parametrize(
    ("module", "arguments", "hook", "ended"),
    [
        pytest.param("darkroom_functions.serve", ["result"], CHANNELS_END, "follow jobs", id="functions"),
        pytest.param("darkroom_functions.serve", ["submit"], CHANNELS_CANCELLED, "job channels", id="cancelled"),
        pytest.param("darkroom_courier", [], CHANNELS_END, "listen", id="courier"),
        pytest.param("darkroom_worker", [], SUPERVISOR_ENDS, "supervisor", id="worker"),
    ],
)
def test_a_process_exits_with_a_log_line_when_a_background_task_ends(
    module: str, arguments: list[str], hook: str, ended: str, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    variables = environment(
        redis_url, namespace, K_SINK="http://127.0.0.1:1/events", DARKROOM_POOL="sd", PORT=str(free_port())
    )
    part = Part(module, *arguments, environment=hooked(variables, tmp_path, hook), log=tmp_path / "log")
    part.start()
    try:
        eventually(lambda: not part.is_running, what="the process ends by itself")
    finally:
        status = part.stop()
    assert status == FAILED, part.log.read_text()
    lines = [json.loads(line) for line in part.log.read_text().splitlines() if line.startswith("{")]
    critical = [line for line in lines if line["level"] == "critical"]
    assert ended in {line.get("task") or line.get("thread") for line in critical}

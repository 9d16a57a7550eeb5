"""The environment dev as docs/environments.md has it: Redis with a user for each part, the parts, Flower, `redis-*`."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from darkroom.jobs import JobEvent
from darkroom.ledger import reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry

from tests.darkroom_command import command, environment
from tests.make.targets import ROOT, make
from tests.ports import free_port
from tests.redis_server import RedisKind, needed_binary
from tests.waiting import eventually
from tests.worker.running_worker import MODEL_FILE

NAMESPACE = "darkroom-dev"
DATABASE = 4

START_LIMIT_S = 300
"""Making the stand-ins and importing torch takes 15 s on two idle cores."""

STOP_LIMIT_S = 60

MAX_TASKS = 2
"""Flower's limit of stored tasks."""

LONG = {"steps": 3000, "seconds": 300}
"""A job that does not finish unless it is cancelled."""

ENDS = {JobEvent.COMPLETED, JobEvent.FAILED, JobEvent.CANCELLED, JobEvent.EXPIRED}


class Dev:
    """The environment in its own folder, with copies of the examples as documented."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis_port, self.api_port, self.flower_port = free_port(), free_port(), free_port()
        (folder / "env").mkdir()
        for name in (".env.example", "redis.conf.example"):
            (folder / "env" / name).write_text((ROOT / "env" / name).read_text())
        text = (ROOT / "docs" / "environments.md").read_text()
        (lines,) = re.findall(r"^```sh\n(random.*?)^```", text, re.DOTALL | re.MULTILINE)
        subprocess.run(["sh", "-e", "-c", lines], cwd=folder, check=True)
        (folder / "models").mkdir()
        model = MODEL_FILE.replace('pool = "quick"', 'pool = "local"').replace("timeout_s = 60", "timeout_s = 600")
        (folder / "models" / "quick.toml").write_text(model)
        (folder / "env" / ".env.dev").write_text(
            f"DARKROOM_REDIS_URL=redis://127.0.0.1:{self.redis_port}\nDARKROOM_MODELS=models\nFLOWER_MAX_TASKS={MAX_TASKS}\n"
        )
        (folder / "knative").symlink_to(ROOT / "knative")
        name, _, password = self.setting("FLOWER_BASIC_AUTH").partition(":")
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.api_port}", trust_env=False, timeout=60)
        self.flower = httpx.Client(
            base_url=f"http://127.0.0.1:{self.flower_port}", auth=(name, password), trust_env=False, timeout=60
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []

    def setting(self, name: str) -> str:
        (value,) = re.findall(rf"^{name}=(.+)$", (self.folder / "env" / ".env").read_text(), re.MULTILINE)
        return str(value)

    def redis_url(self, user: str) -> str:
        password = self.setting("DARKROOM_REDIS_PASSWORD")
        return f"redis://{user}:{password}@127.0.0.1:{self.redis_port}/{DATABASE}"

    def start(self) -> None:
        """Start all parts, in any order: each waits for its dependencies."""
        binary = needed_binary(RedisKind.EMBEDDED)
        self._start("redis", [str(binary), "env/redis.conf", "--port", str(self.redis_port)])
        eventually(self._redis_answers, what="Redis answers")
        self._start("api", command("env", "dev", "api", "--port", str(self.api_port)))
        self._start("worker", command("env", "dev", "worker"))
        self._start("flower", command("env", "dev", "flower", "--port", str(self.flower_port)))
        eventually(lambda: self._is_up(self.api, "/readyz"), what="the API is ready", deadline_s=START_LIMIT_S)
        eventually(lambda: self._is_up(self.flower, "/healthcheck"), what="Flower is up", deadline_s=START_LIMIT_S)
        eventually(lambda: self.workers, what="Flower knows the worker", deadline_s=START_LIMIT_S)

    def stop(self) -> None:
        """Stop all parts in reverse order, since Redis is needed to the end."""
        self.api.close()
        self.flower.close()
        for process in reversed(self._processes):
            process.terminate()
            process.wait(STOP_LIMIT_S)

    @property
    def workers(self) -> dict[str, Any]:
        """The workers whose queue Flower shows."""
        answer = self.flower.get("/api/workers", params={"refresh": 1})
        known: dict[str, Any] = answer.json() if answer.is_success else {}
        return {name: worker for name, worker in known.items() if worker.get("active_queues")}

    def make(self, target: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run `make TARGET` in the folder; `setup`, the installation, counts as made."""
        return make("--old-file=setup", target, *arguments, folder=self.folder, given=given)

    def submit(self, **parameters: Any) -> str:
        answer = self.api.post("/quick", json={"input": {"prompt": "a lighthouse", **parameters}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def shown(self, job_id: str) -> str | None:
        """The task's state in Flower; None for an unknown task."""
        answer = self.flower.get(f"/api/task/info/{job_id}")
        return str(answer.json()["state"]) if answer.is_success else None

    def runs(self, job_id: str) -> bool:
        view = self.api.get(f"/api/v1/generation-jobs/{job_id}").raise_for_status().json()
        return bool(view["state"] == "running")

    def ended(self, job_id: str) -> str:
        """The terminal state of the job."""

        def state() -> str | None:
            view = self.api.get(f"/api/v1/generation-jobs/{job_id}", params={"wait": 20}).raise_for_status().json()
            return str(view["state"]) if view["state"] not in {"pending", "running"} else None

        return eventually(state, what=f"the end of {job_id}") or ""

    def log_of(self, job_id: str) -> list[LogEntry]:
        async def read() -> list[LogEntry]:
            async with connect_async(self.redis_url("operator")) as client:
                return await reads.log(AsyncLedger(client, NAMESPACE), job_id)

        return asyncio.run(read())

    def _start(self, name: str, arguments: list[str]) -> None:
        self.logs.append(self.folder / f"{name}.log")
        with self.logs[-1].open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    arguments,
                    cwd=self.folder,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def _redis_answers(self) -> bool:
        try:
            with redis.Redis(port=self.redis_port, username="probe", password="any") as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def _is_up(self, client: httpx.Client, path: str) -> bool:
        for process, log in zip(self._processes, self.logs, strict=True):
            assert process.poll() is None, log.read_text()
        try:
            return client.get(path).is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    running = Dev(tmp_path_factory.mktemp("dev"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_a_job_completes_with_each_part_as_its_own_redis_user(dev: Dev) -> None:
    job_id = dev.submit()
    assert dev.ended(job_id) == "completed"
    with redis.Redis.from_url(dev.redis_url("operator")) as client:
        record = f"{NAMESPACE}:job:{job_id}"
        eventually(
            lambda: client.hexists(record, "applied") and client.hexists(record, "archived"),
            what="the courier had its end applied, and archived it",
        )
    logs = [*dev.logs, *(dev.folder / ".darkroom" / "dev" / "logs").iterdir()]
    assert [log.name for log in logs if "NOPERM" in log.read_text()] == []


def test_all_keys_and_channels_have_the_prefix(dev: Dev) -> None:
    """Databases do not separate channels; the prefix does."""
    with redis.Redis.from_url(dev.redis_url("operator")) as client:
        assert client.dbsize() > 0
        names = [*client.scan_iter(), *client.pubsub_channels()]
    assert [name for name in names if not name.startswith(f"{NAMESPACE}:".encode())] == []


def test_flower_requires_its_password(dev: Dev) -> None:
    url = f"http://127.0.0.1:{dev.flower_port}/api/workers"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, auth=("admin", "admin"), trust_env=False).status_code == 401


def test_flower_shows_workers_and_finished_and_queued_tasks_and_revokes_one(dev: Dev) -> None:
    def is_shown() -> bool:
        """Flower enables events shortly after a worker has started, so another job may be needed."""
        job_id = dev.submit()
        dev.ended(job_id)
        return dev.shown(job_id) == "SUCCESS"

    eventually(is_shown, what="Flower shows a finished task")
    (worker,) = dev.workers
    assert worker.startswith("local@")

    running = dev.submit(**LONG)
    waiting = dev.submit()
    eventually(lambda: _queued(dev) == {"pool.local": 1}, what="Flower shows the task that is queued")
    assert dev.flower.post(f"/api/task/revoke/{running}", params={"terminate": "true"}).is_success

    assert dev.ended(running) == "cancelled"
    assert dev.ended(waiting) == "completed"
    eventually(lambda: dev.shown(running) == "REVOKED", what="Flower shows that it was revoked")
    assert dev.api.get(f"/tasks/{running}").json()["status"] == "REVOKED"
    refused = dev.submit(failure="invalid_input")
    assert dev.ended(refused) == "failed"
    eventually(lambda: dev.shown(refused) == "FAILURE", what="Flower shows that it failed")
    assert dev.api.get(f"/tasks/{refused}").json()["status"] == "FAILURE"
    assert [entry.event for entry in dev.log_of(running) if entry.event in ENDS] == [JobEvent.CANCELLED]
    tasks = dev.flower.get("/api/tasks").raise_for_status().json()
    assert 0 < len(tasks) <= MAX_TASKS


def _queued(dev: Dev) -> dict[str, int]:
    answer = dev.flower.get("/api/queues/length").raise_for_status().json()
    return {queue["name"]: queue["messages"] for queue in answer["active_queues"]}


def test_keys_and_info_show_the_keys(dev: Dev) -> None:
    job_id = dev.submit()
    dev.ended(job_id)
    keys = dev.make("redis-keys-dev")
    assert keys.returncode == 0, keys.stderr
    assert f"{NAMESPACE}:job:{job_id}" in keys.stdout.splitlines()
    assert len(keys.stdout.splitlines()) == len(set(keys.stdout.splitlines()))
    info = dev.make("redis-info-dev")
    assert info.returncode == 0, info.stderr
    assert re.search(rf"^keys of {NAMESPACE}: [1-9]\d*$", info.stdout, re.MULTILINE)
    assert re.search(r"^memory of the server: \S+ MiB of 512 MiB$", info.stdout, re.MULTILINE)


def test_a_flush_asks_and_deletes_only_this_environments_keys_while_parts_continue(dev: Dev) -> None:
    job_id = dev.submit()
    dev.ended(job_id)
    with redis.Redis.from_url(dev.redis_url("operator")) as client:
        own, foreign = f"{NAMESPACE}:job:{job_id}", "darkroom-demo:job:another"
        client.set(foreign, "any")
        epoch = f"{NAMESPACE}:epoch"
        eventually(lambda: client.hget(epoch, "beats"), what="the courier counts")
        for answer in ("", "demo\n", "yes\n"):
            refused = dev.make("redis-flush-dev", given=answer)
            assert refused.returncode == 2
            assert "no keys were deleted" in refused.stderr
            assert client.exists(own) == 1

        done = dev.make("redis-flush-dev", given="dev\n")
        assert done.returncode == 0, done.stderr
        assert (client.exists(own), client.exists(foreign)) == (0, 1)
        assert client.hget(epoch, "epoch") == b"1"  # an intended deletion is not a loss

    assert dev.ended(dev.submit()) == "completed"
    running = dev.submit(**LONG)
    eventually(lambda: dev.runs(running), what="a job runs")
    assert dev.make("redis-flush-dev", "ARGS=--yes").returncode == 0
    assert dev.ended(dev.submit()) == "completed"

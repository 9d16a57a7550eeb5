"""A real worker process for tests (`python -m darkroom_worker`), and what a test needs to give it jobs and look on.

The model that it serves is `quick`: an engine that does what a job's parameters say. Where a test asks for it, loading
that engine waits until a file is there (`hold_load`), so that "while it loads" is a state and no matter of timing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from darkroom import transitions
from darkroom.artifacts import ArtifactStore
from darkroom.errors import DarkroomError
from darkroom.jobs import JobEvent, State, new_job_id
from darkroom.ledger import AsyncLedger, JobRecord, LogEntry, WorkerRecord
from darkroom.transitions import Accepted, Submission, WorkerState

T = TypeVar("T")

POOL = "quick"
MODEL = "quick"
TENANT = "default"
DEADLINE_S = 60
POLL_S = 0.05

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = (REPOSITORY / "core", REPOSITORY / "worker-images")

MODEL_FILE = """
name = "quick"
title = "Quick"
description = "An engine without a model, for tests."
engine = "instant"
pipeline = "Instant"
source = "none"
dtype = "float32"
pool = "quick"
run_timeout_s = 60
load_timeout_s = 60

[parameters.prompt]
type = "string"
description = "Without effect."
default = "a test"

[parameters.steps]
type = "integer"
description = "How many steps a run has."
default = 1
minimum = 1

[parameters.seconds]
type = "number"
description = "How long a run takes."
default = 0
minimum = 0

[parameters.images]
type = "integer"
description = "How many pictures it makes."
default = 1
minimum = 1

[parameters.failure]
type = "string"
description = "How it fails, if it is to."

[parameters.seed]
type = "integer"
description = "The colour."
minimum = 0
"""

# Python imports a module of this name by itself, in the worker's child as in its parent.
HOLDING_HOOK = """
import os, time
from pathlib import Path
from darkroom_worker.engines.instant import InstantEngine

def load(self):
    held = Path(os.environ["TEST_HOLD_LOAD"])
    (held / f"loading-{os.getpid()}").touch()
    while not (held / "go").exists():
        time.sleep(0.02)

InstantEngine.load = load
"""


class House:
    """Where the workers of a test work: a ledger, a model folder, a store."""

    def __init__(self, *, redis_url: str, namespace: str, folder: Path, ledger: AsyncLedger) -> None:
        self.redis_url, self.namespace, self.folder, self.ledger = redis_url, namespace, folder, ledger
        self.models = folder / "models"
        self.models.mkdir()
        (self.models / "quick.toml").write_text(MODEL_FILE)
        self.store_folder = folder / "store"
        self.store = ArtifactStore(self.store_folder.as_uri())
        self._workers: list[WorkerProcess] = []

    def worker(self, *, hold_load: Path | None = None, **settings: str) -> WorkerProcess:
        """Start a worker. `settings` are variables without their prefix, in small letters."""
        path = [str(root) for root in ROOTS]
        environment = os.environ | {
            "DARKROOM_REDIS_URL": self.redis_url,
            "DARKROOM_NAMESPACE": self.namespace,
            "DARKROOM_MODELS": str(self.models),
            "DARKROOM_STORE": self.store_folder.as_uri(),
            "DARKROOM_POOL": POOL,
        }
        if hold_load is not None:
            hold_load.mkdir()
            (hold_load / "sitecustomize.py").write_text(HOLDING_HOOK)
            path.insert(0, str(hold_load))
            environment["TEST_HOLD_LOAD"] = str(hold_load)
        environment["PYTHONPATH"] = os.pathsep.join(path)
        environment |= {f"DARKROOM_{name.upper()}": value for name, value in settings.items()}
        worker = WorkerProcess(environment, self.folder / f"worker-{len(self._workers)}.log")
        self._workers.append(worker)
        return worker

    def stop(self) -> None:
        """End what the test left running."""
        for worker in self._workers:
            worker.kill()

    async def ready_worker(self, **settings: str) -> WorkerProcess:
        """A worker that takes jobs."""
        worker = self.worker(**settings)
        await self.registered(worker, WorkerState.READY)
        return worker

    async def submit(self, *, run_timeout: float = 60, max_attempts: int = 3, **given: Any) -> str:
        """Have a job accepted, with parameters `given` as if submit had validated them. Answers its id."""
        job_id = new_job_id(time.time_ns() // 1_000_000)
        model = given.pop("model", MODEL)
        parameters = {"prompt": "a test", "steps": 1, "seconds": 0, "images": 1, "seed": 7} | given
        event = {
            "specversion": "1.0",
            "id": job_id,
            "source": "/tests",
            "type": "dev.darkroom.job.requested",
            "data": {"model": model, "input": parameters},
        }
        await self.ledger.run(transitions.announce(POOL, models=[MODEL]))
        answer = await self.ledger.run(
            transitions.accept(
                Submission(
                    job_id=job_id,
                    tenant=TENANT,
                    model=model,
                    pool=POOL,
                    input=parameters,
                    fields={},
                    event=event,
                    run_timeout=run_timeout,
                    max_attempts=max_attempts,
                ),
                backlog_limit=100,
            )
        )
        if isinstance(answer, DarkroomError):
            raise answer
        assert isinstance(answer, Accepted)
        return job_id

    async def job(self, job_id: str) -> JobRecord:
        record = await self.ledger.job(job_id, tenant=None)
        assert record is not None
        return record

    async def ended(self, job_id: str) -> JobRecord:
        """The job's record once it is terminal."""
        return await self.in_state(job_id, lambda record: record.state.is_terminal, "the job ends")

    async def running(self, job_id: str, *, attempt: int = 1) -> JobRecord:
        """The job's record once that attempt runs and has done a step or two."""

        def runs(record: JobRecord) -> bool:
            return record.state is State.RUNNING and record.attempt == attempt and (record.step or 0) > 0

        return await self.in_state(job_id, runs, f"attempt {attempt} runs")

    async def in_state(self, job_id: str, holds: Callable[[JobRecord], bool], what: str) -> JobRecord:
        async def found() -> JobRecord | None:
            record = await self.job(job_id)
            return record if holds(record) else None

        return await self.until(found, what)

    async def entries(self, job_id: str, event: JobEvent) -> list[LogEntry]:
        """The entries of the job's log that tell of such an event."""
        return [entry for entry in await self.ledger.log(job_id) if entry.event is event]

    async def registration(self, worker: WorkerProcess) -> WorkerRecord | None:
        """What the worker says it is, None when it says nothing."""
        found = [record for record in await self.ledger.workers() if f"-{worker.pid}-" in record.name]
        return found[0] if found else None

    async def logged(self, worker: WorkerProcess, event: str) -> list[dict[str, Any]]:
        """What the worker logged under that name, waited for."""

        async def found() -> list[dict[str, Any]] | None:
            return worker.logged(event) or None

        return await self.until(found, f"the worker logs {event!r}")

    async def registered(self, worker: WorkerProcess, state: WorkerState) -> WorkerRecord:
        """The worker's registration once it is in that state."""

        async def found() -> WorkerRecord | None:
            record = await self.registration(worker)
            return record if record is not None and record.state == state else None

        return await self.until(found, f"the worker is {state}")

    async def until(self, condition: Callable[[], Awaitable[T | None]], what: str) -> T:
        """The condition's answer once it is there. A test that waits in vain says for what."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            answer = await condition()
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                logs = "\n".join(worker.log.read_text() for worker in self._workers)
                raise AssertionError(f"not within {DEADLINE_S} s: {what}\n{logs}")
            await asyncio.sleep(POLL_S)


class WorkerProcess:
    """One `python -m darkroom_worker`."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "darkroom_worker"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would; its child goes with it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(DEADLINE_S)

    def exit_status(self) -> int:
        """Its exit status, waited for."""
        return self._process.wait(DEADLINE_S)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def children(self) -> list[int]:
        """The processes that run jobs: one, or none while it is replaced."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in found if b"spawn_main" in _command_line(int(pid))]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What it logged under that name."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

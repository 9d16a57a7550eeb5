"""A real worker process for tests (`python -m darkroom_worker`), and what a test needs to give it jobs and look on.

The model that it serves is `quick`: an engine that does what a job's parameters say. Where a test asks for it, loading
that engine waits until a file is there (`hold_load`), so that "while it loads" is a state and no matter of timing, or
ends its process.
"""

from __future__ import annotations

import asyncio
import secrets
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

from tests.parts import Part, environment, hooked
from tests.waiting import DEADLINE_S

T = TypeVar("T")

POOL = "quick"
MODEL = "quick"
TENANT = "default"
POLL_S = 0.05

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
    parent = os.getppid()
    if (held / "die").exists():
        os.kill(os.getpid(), 9)
    while not (held / "go").exists():
        if os.getppid() != parent:  # the test killed it: nobody would end this process
            os._exit(1)
        time.sleep(0.02)

InstantEngine.load = load
"""


# As above. What a job does to its engine stands in its prompt; the device is broken, and no process can be started,
# while a file is there.
BREAKING_HOOK = """
import os
from pathlib import Path
from billiard import popen_spawn_posix
from darkroom_worker.engines.instant import InstantEngine

run = InstantEngine.run

def breaking(self, parameters, **more):
    if parameters["prompt"] == "kill":
        os.kill(os.getpid(), 9)
    if parameters["prompt"] == "fail" or Path(os.environ["TEST_BROKEN"]).exists():
        raise RuntimeError("broken")
    return run(self, parameters, **more)

spawn = popen_spawn_posix.spawnv_passfds

def refusing(*arguments):
    if Path(os.environ["TEST_REFUSED"]).exists():
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return spawn(*arguments)

InstantEngine.run = breaking
popen_spawn_posix.spawnv_passfds = refusing
"""

# As above. What the pool is handed for its child is lost while a file is there; a stalled worker is found soon.
LOSING_HOOK = """
import os
from pathlib import Path
from celery.concurrency.asynpool import AsynPool
from darkroom_worker import registration

create_write_handlers = AsynPool._create_write_handlers

def losing(self, *arguments, **more):
    create_write_handlers(self, *arguments, **more)
    put = self._quick_put
    self._quick_put = lambda task: None if Path(os.environ["TEST_LOSING"]).exists() else put(task)

AsynPool._create_write_handlers = losing
registration.STALLED_AFTER_S = 3.0
"""


class Place:
    """Where workers are started: a Redis, a model folder, a store. It may be opened again while they run."""

    def __init__(self, *, redis_url: str, namespace: str, folder: Path) -> None:
        self.redis_url, self.namespace, self.folder = redis_url, namespace, folder
        self.models = folder / "models"
        self.models.mkdir(exist_ok=True)
        (self.models / "quick.toml").write_text(MODEL_FILE)
        self.store_folder = folder / "store"
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self._workers: list[WorkerProcess] = []

    def environment(self) -> dict[str, str]:
        """What a worker here is told."""
        return environment(
            self.redis_url,
            self.namespace,
            DARKROOM_MODELS=str(self.models),
            DARKROOM_STORE=self.store_folder.as_uri(),
            DARKROOM_POOL=POOL,
            TMPDIR=str(self.temporary),
        )

    @property
    def broken(self) -> Path:
        """While this file is there, the device of a worker that was started as breakable fails each run."""
        return self.folder / "broken"

    @property
    def refused(self) -> Path:
        """While this file is there, such a worker cannot start a process."""
        return self.folder / "refused"

    @property
    def losing(self) -> Path:
        """While this file is there, such a worker hands its child no message."""
        return self.folder / "losing"

    def worker(
        self, hold_load: Path | None = None, *, breakable: bool = False, loses: bool = False, **settings: str
    ) -> WorkerProcess:
        """Start a worker. `settings` are variables without their prefix, in small letters."""
        variables = self.environment() | {f"DARKROOM_{name.upper()}": value for name, value in settings.items()}
        if hold_load is not None:
            hold_load.mkdir()
            variables = hooked(variables, hold_load, HOLDING_HOOK)
            variables["TEST_HOLD_LOAD"] = str(hold_load)
        if breakable:
            folder = self.folder / "breaking"
            folder.mkdir()
            variables = hooked(variables, folder, BREAKING_HOOK)
            variables |= {"TEST_BROKEN": str(self.broken), "TEST_REFUSED": str(self.refused)}
        if loses:
            folder = self.folder / "loses"
            folder.mkdir()
            variables = hooked(variables, folder, LOSING_HOOK) | {"TEST_LOSING": str(self.losing)}
        worker = WorkerProcess(variables, self.folder / f"worker-{secrets.token_hex(4)}.log")
        self._workers.append(worker)
        return worker

    def stop(self) -> None:
        """End the workers that were started here."""
        for worker in self._workers:
            worker.kill()


class House(Place):
    """A place, and what a test does there: give jobs, look on, wait."""

    def __init__(self, ledger: AsyncLedger, *, redis_url: str, namespace: str, folder: Path) -> None:
        super().__init__(redis_url=redis_url, namespace=namespace, folder=folder)
        self.ledger = ledger
        self.store = ArtifactStore(self.store_folder.as_uri())

    async def ready_worker(self, *, breakable: bool = False, loses: bool = False, **settings: str) -> WorkerProcess:
        """A worker that takes jobs."""
        worker = self.worker(None, breakable=breakable, loses=loses, **settings)
        await self.registered(worker, WorkerState.READY)
        return worker

    async def submit(
        self, *, run_timeout: float = 60, max_attempts: int = 3, traceparent: str | None = None, **given: Any
    ) -> str:
        """Have a job accepted, with parameters `given` as if submit had validated them. Answers its id."""
        job_id = new_job_id(time.time_ns() // 1_000_000)
        model = given.pop("model", MODEL)
        parameters = {"prompt": "a test", "steps": 1, "seconds": 0, "images": 1, "seed": 7} | given
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
                    run_timeout=run_timeout,
                    max_attempts=max_attempts,
                    traceparent=traceparent,
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

    async def said(self, worker: WorkerProcess, event: str, *, times: int = 1, **fields: str) -> list[dict[str, Any]]:
        """What the worker logged under that name with these fields, once it did so often."""

        async def found() -> list[dict[str, Any]] | None:
            lines = [line for line in worker.said(event) if fields.items() <= line.items()]
            return lines if len(lines) >= times else None

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
                logs = "\n".join(log.read_text() for log in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"not within {DEADLINE_S} s: {what}\n{logs}")
            await asyncio.sleep(POLL_S)


class WorkerProcess(Part):
    """One `python -m darkroom_worker`."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        super().__init__("darkroom_worker", environment=environment, log=log)
        self.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End it as a power cut would; its child goes with it."""
        if self.is_running:
            self.process.kill()
        self.wait()

    def children(self) -> list[int]:
        """The processes that run jobs: one, or none while it is replaced."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in found if b"spawn_main" in _command_line(int(pid))]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

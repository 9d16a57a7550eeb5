"""A chaos run: injects the faults of a plan (`plan.py`) while jobs are submitted.

The parts are real processes as in `darkroom up`, with two couriers as in a cluster. `observer.py` records what clients
receive meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from darkroom.access.credentials import Credential
from darkroom.jobs import new_job_id
from darkroom.ledger import calls, queues
from darkroom.ledger.keys import Keys
from darkroom_cli.local import redis_server
from darkroom_cli.local.processes import Process

from darkroom_loadtest.chaos.faulty_worker import LEASE_VARIABLE
from darkroom_loadtest.chaos.fleet import WorkerFleet
from darkroom_loadtest.chaos.observer import Observer
from darkroom_loadtest.chaos.plan import ChaosPlan, OutageKind
from darkroom_loadtest.chaos.protections import VARIABLE, Protection
from darkroom_loadtest.measurement.rig import NAMESPACE, BenchmarkFailed, Rig

POOL = "instant"
PATH = "/instant"
COURIERS = 2

SHORT_S = 0.02
LONG_S = 1.5
LONG_EVERY = 10
"""The duration of jobs, and how often one is longer, so that some jobs are running in every outage of Redis."""

STEPS = 2

POLL_S = 0.05
"""Pause between two polls of the processes. It affects no figure: workers record the times of faults."""

RECONNECT_S = 6.0
"""No fault is injected for this long after Redis is back: parts reconnect within five seconds."""

STALE_S = 3.0
"""Time for a resumed worker to make calls that must be refused."""


def foreign_messages() -> list[bytes]:
    """Bytes that are not JSON, JSON that is not a task, and a call of an unknown task."""
    call = queues.build_message(job_id=new_job_id(time.time_ns() // 1_000_000), pool=POOL, traceparent=None)
    unknown = f"{call.head}foreign{call.tail}".replace(queues.TASK_NAME, "unknown.task")
    return [b"\xff\x00junk", b'"x"', unknown.encode()]


class Storm:
    """One chaos run on one rig, optionally without one protection."""

    def __init__(self, rig: Rig, plan: ChaosPlan, *, without: Protection | None) -> None:
        self._rig, self._plan, self._without = rig, plan, without
        self._is_outage = False
        self._faults_from = 0.0
        self._over = asyncio.Event()
        self._began = 0.0
        self.outages_ms: list[int] = []
        self.killed: list[str] = []
        self.harmful: set[str] = set()
        self._sink_port = redis_server.free_port()
        rig.ledger.run(calls.announce_pool(POOL, models=[POOL]))
        key = Credential.generate()
        functions = rig.serve("functions", "darkroom_functions.serve", "all", own={"DARKROOM_AUTH": "keys"})
        self._functions = functions.process
        self.observer = Observer(
            functions.url,
            path=PATH,
            socket_jobs=plan.socket_jobs,
            key=key,
        )
        own = {
            VARIABLE: without or "",
            "K_SINK": f"http://127.0.0.1:{self._sink_port}/",
            "DARKROOM_ROOT_KEY": key.text,
        }
        self._couriers = [
            rig.start(f"courier-{number}", "darkroom_loadtest.chaos.faulty_courier", own={**own, **dict(plan.courier)})
            for number in range(1, COURIERS + 1)
        ]
        worker = {
            "DARKROOM_POOL": POOL,
            "REMAP_SIGTERM": "SIGQUIT",  # as the worker's program sets it; billiard reads it at import
            VARIABLE: without or "",
            LEASE_VARIABLE: str(round(1000 * plan.lease_s)),
        }
        self.fleet = WorkerFleet(
            rig,
            "darkroom_loadtest.chaos.faulty_worker",
            size=plan.workers,
            own=worker,
            stop_s=plan.stop_s,
            folder=rig.folder,
            is_held=lambda job: plan.outlasts and job not in self.observer.applied,
        )
        self.fleet.fill()

    async def run(self) -> None:
        """Run from the first job to the last end, or to the timeout. Raises BenchmarkFailed."""
        await self.observer.serve_sink(self._sink_port)
        limit_s = self._plan.limit_s + self._plan.settle_s
        try:
            async with asyncio.timeout(limit_s):
                await self._run()
        except TimeoutError:
            raise BenchmarkFailed(f"the chaos run did not finish within {limit_s} s") from None
        except BaseExceptionGroup as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None

    async def _run(self) -> None:
        await self.observer.await_key()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._keep_running())
            submitting = group.create_task(self._submit())
            await self._await_first_end()
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as faults:
                for work in (
                    self._inject_faults(),
                    self._make_outages(),
                    self._fail_sink(),
                    self._push_foreign(),
                    self._harm(),
                ):
                    faults.create_task(work)
                faults.create_task(self._kill_functions())
                faults.create_task(self._kill_couriers())
            self._over.set()
            await submitting
            self.observer.follow_rest()
            await self._settle()
            watching.cancel()

    def end(self) -> None:
        """Kill all processes."""
        self.fleet.end()
        for process in (*self._couriers, self._functions):
            self._kill(process)

    @property
    def counters(self) -> dict[bytes, bytes]:
        """The ledger's counters, such as reaped jobs and refused stale calls."""
        counted: dict[bytes, bytes] = self._rig.redis.hgetall(Keys(NAMESPACE).counters)
        return counted

    async def _await_first_end(self) -> None:
        """Wait until the first job is applied: then all parts are running."""
        while not self.observer.applied:  # noqa: ASYNC110 - once, before the run
            await asyncio.sleep(POLL_S)

    async def _settle(self) -> None:
        deadline = time.monotonic() + self._plan.settle_s
        while not self.observer.has_seen_all and time.monotonic() < deadline:  # noqa: ASYNC110 - with a deadline
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(STALE_S)

    async def _submit(self) -> None:
        """Submit jobs at a constant rate."""
        async with asyncio.TaskGroup() as group:
            count = 0
            while count < self._plan.jobs or not self._over.is_set():
                seconds = LONG_S if count % LONG_EVERY == 0 else SHORT_S
                group.create_task(self.observer.submit({"seconds": seconds, "steps": STEPS}))
                count += 1
                await asyncio.sleep(1 / self._plan.per_s)

    async def _keep_running(self) -> None:
        while True:
            if unexpected := self.fleet.poll(time.time_ns() // 1_000_000):
                raise BenchmarkFailed(f"a worker exited without an injected fault:\n{unexpected[0]}")
            await asyncio.sleep(POLL_S)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._began + at_s - time.monotonic()))

    async def _inject_faults(self) -> None:
        for order in self._plan.faults:
            await asyncio.sleep(self._plan.every_s)
            while self._is_outage or time.monotonic() < self._faults_from or not self.fleet.order(order):  # noqa: ASYNC110 - processes emit no events
                await asyncio.sleep(POLL_S)
        while not self.fleet.is_settled:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL_S)

    async def _make_outages(self) -> None:
        """Run the outages in sequence. No fault is injected meanwhile.

        After a fault during an outage of the store the job runs again only when the store is back, which no goal
        covers; and on a full disk no fault can be logged.
        """
        for outage in self._plan.outages:
            await self._until(outage.at_s)
            self._is_outage = True
            while not outage.loss.is_of_redis and not self.fleet.is_settled:  # noqa: ASYNC110 - as above
                await asyncio.sleep(POLL_S)
            self.outages_ms.append(time.time_ns() // 1_000_000)
            with self._without_part(outage.loss):
                await asyncio.sleep(outage.for_s)
            if outage.loss.is_of_redis:
                self._faults_from = time.monotonic() + RECONNECT_S
            self._is_outage = False

    @contextmanager
    def _without_part(self, loss: OutageKind) -> Iterator[None]:
        redis, store = self._rig.redis_process, self._rig.folder / "store"
        match loss:
            case OutageKind.REDIS_KILLED:
                self._kill(redis)
                yield
                self._rig.restart(redis)
            case OutageKind.REDIS_FROZEN:
                os.kill(redis.pid, signal.SIGSTOP)
                yield
                os.kill(redis.pid, signal.SIGCONT)
            case OutageKind.STORE_GONE:
                away = store.rename(store.with_name("store-away"))
                store.touch()  # a file in place of the folder: all reads and writes fail
                yield
                store.unlink()
                away.rename(store)
            case OutageKind.DISK_FULL:
                self._limit_files(0)
                yield
                self._limit_files(None)
            case _:
                raise AssertionError(loss)

    def _limit_files(self, size: int | None) -> None:
        """Set or remove a limit of the size of all files that workers, couriers and functions write.

        A write beyond it fails like on a full disk (EFBIG instead of ENOSPC), and needs no privileges.
        """
        parts = (*(member.process for member in self.fleet.members), *self._couriers, self._functions)
        groups = {part.pid for part in parts}
        for pid in [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]:
            with suppress(ProcessLookupError):
                if os.getpgid(pid) in groups:
                    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most if size is None else size, most))

    async def _push_foreign(self) -> None:
        key = Keys(NAMESPACE).queue(POOL)
        for at_s in self._plan.foreign:
            await self._until(at_s)
            self._rig.redis.lpush(key, *foreign_messages())

    async def _harm(self) -> None:
        for harmful in self._plan.harmful:
            await self._until(harmful.at_s)
            for _ in range(harmful.jobs):
                self.harmful.add(await self.observer.submit({"prompt": harmful.harm}))

    async def _fail_sink(self) -> None:
        for failure in self._plan.sink_failures:
            await self._until(failure.at_s)
            await self.observer.fail(failure.way)
            await asyncio.sleep(failure.for_s)
            await self.observer.fail(None)

    async def _kill_functions(self) -> None:
        for at_s in self._plan.functions_killed:
            await self._until(at_s)
            self._kill(self._functions)
            self._functions = self._rig.restart(self._functions)

    async def _kill_couriers(self) -> None:
        for turn, at_s in enumerate(self._plan.couriers_killed):
            await self._until(at_s)
            self._kill(self._couriers[turn % COURIERS])
            self._couriers[turn % COURIERS] = self._rig.restart(self._couriers[turn % COURIERS])

    def _kill(self, process: Process) -> None:
        """Send SIGKILL and wait for the exit, which takes milliseconds."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        while process.is_alive:
            time.sleep(0.001)
        self.killed.append(process.program.name)

"""The storm: what is done to whom, and when, while jobs come in.

A `Plan` says all of it in advance. `Storm` carries it out on the real parts, which run as processes as `darkroom up`
starts them, two couriers among them as in a cluster. What people are told meanwhile is the witness' affair
(`witness.py`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, repeat
from pathlib import Path

from darkroom.jobs import new_job_id
from darkroom.ledger import calls, queues
from darkroom.ledger.keys import Keys
from darkroom_cli.local import redis_server
from darkroom_cli.local.processes import Process

from darkroom_loadtest.bench.fleet import Fleet
from darkroom_loadtest.bench.rig import NAMESPACE, BenchmarkFailed, Rig
from darkroom_loadtest.chaos.faulty_worker import LEASE_VARIABLE
from darkroom_loadtest.chaos.protections import VARIABLE, Protection
from darkroom_loadtest.chaos.witness import Way, Witness
from darkroom_loadtest.chaos.wounds import Blow, Harm, Order, Point

POOL = "instant"
PATH = "/instant"
COURIERS = 2

SHORT_S = 0.02
LONG_S = 1.5
LONG_EVERY = 10
"""How long jobs take, and how many take longer, so that some are always running when Redis goes away."""

STEPS = 2

LOOK_S = 0.05
"""Between two looks at the processes. It is part of no figure: wounds are timed by those who have them."""

WATCH_PAUSE_S = 6.0
"""After Redis is back no worker is struck for so long: parts look for it every five seconds at most."""

STALE_S = 3.0
"""What a worker that went on again may need to do what it should not."""


class Loss(StrEnum):
    """What an outage takes away: Redis, the folder of the object store, or the space for any write to a file."""

    REDIS_KILLED = "Redis killed"
    REDIS_FROZEN = "Redis frozen"
    STORE_GONE = "object store gone"
    DISK_FULL = "disk full"

    @property
    def is_of_redis(self) -> bool:
        return self in {Loss.REDIS_KILLED, Loss.REDIS_FROZEN}


@dataclass(frozen=True)
class Outage:
    """From `at_s` on, or as soon as it can begin, something is away for `for_s`."""

    at_s: float
    for_s: float
    loss: Loss


@dataclass(frozen=True)
class Harmful:
    """At `at_s` so many jobs come in that break their worker."""

    at_s: float
    harm: Harm
    jobs: int


@dataclass(frozen=True)
class Failure:
    """The sink fails in this way, from `at_s` on, for `for_s`."""

    at_s: float
    for_s: float
    way: Way


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A storm. Times are in seconds, from its beginning. `wounds` are ordered `every_s`, but in no outage. Outages
    follow one another. `foreign`: when messages that are no job's are pushed onto the pool's list.

    `jobs` are the fewest, `per_s` how many come in each second for as long as the storm lasts. `limit_s`: a storm that
    is not over then has failed; `patience_s`: how long people wait for the last ends after it. `outlasts`: a stopped
    worker stands still at least until somebody else has ended its job.
    """

    jobs: int
    per_s: float
    workers: int
    lease_s: float
    wounds: Sequence[Order]
    every_s: float
    limit_s: float
    patience_s: float
    outages: Sequence[Outage] = ()
    foreign: Sequence[float] = ()
    harmful: Sequence[Harmful] = ()
    sink_failures: Sequence[Failure] = ()
    functions_killed: Sequence[float] = ()
    couriers_killed: Sequence[float] = ()
    courier: tuple[tuple[str, str], ...] = ()
    socket_jobs: int = 50
    outlasts: bool = False

    @property
    def stop_s(self) -> float:
        """A stopped worker stands still for two leases."""
        return 2 * self.lease_s


def orders(kills: int, stops: int) -> list[Order]:
    """So many kills at each point, with the stops spread among them, in turn at the two points where a job is held."""
    points = [point for point in Point if point is not Point.DEVELOPED]
    killing = [Order(Blow.KILL, point) for _ in range(kills) for point in points]
    stopping = [Order(Blow.STOP, (Point.DEVELOPED, Point.STORED)[turn % 2]) for turn in range(stops)]
    stride = max(1, len(killing) // max(1, stops))
    groups = [killing[start : start + stride] for start in range(0, len(killing), stride)]
    spread = [[*group, *stop] for group, stop in zip(groups, chain(([o] for o in stopping), repeat([])), strict=False)]
    return [order for group in spread for order in group] + stopping[len(groups) :]


SHORT_COURIER = (
    ("DARKROOM_ATTEMPT_LEASE_S", "4"),
    ("DARKROOM_REAP_GAP_S", "2"),
    ("DARKROOM_POLL_INTERVAL_S", "0.5"),
    ("DARKROOM_SWEEP_AGE_S", "2"),
    ("DARKROOM_RELAY_LEASE_S", "4"),
    ("DARKROOM_SINK_TIMEOUT_S", "2"),
)
"""What goes with a lease of four seconds."""

FULL = Plan(
    jobs=2_000,
    per_s=10,
    workers=5,
    lease_s=calls.LEASE_MS / 1000,
    wounds=orders(kills=7, stops=6),
    every_s=3.5,
    limit_s=900,
    patience_s=150,
    outages=(
        Outage(70, 21, Loss.REDIS_KILLED),
        Outage(120, 20, Loss.DISK_FULL),
        Outage(150, 21, Loss.REDIS_KILLED),
        Outage(190, 60, Loss.STORE_GONE),
        Outage(255, 60, Loss.REDIS_FROZEN),
    ),
    foreign=(20, 110),
    harmful=(Harmful(12, Harm.RAISE, 10), Harmful(40, Harm.KILL_CHILD, 6), Harmful(180, Harm.RAISE, 10)),
    sink_failures=(
        Failure(15, 60, Way.FORGETS),
        Failure(105, 30, Way.CLOSED),
        Failure(135, 30, Way.REFUSES),
        Failure(180, 60, Way.HANGS),
    ),
    functions_killed=(10, 98, 176),
    couriers_killed=(30, 130, 190),
)
"""The storm of `make chaos`."""

SHORT = Plan(
    jobs=200,
    per_s=10,
    workers=4,
    lease_s=4,
    wounds=orders(kills=2, stops=2),
    every_s=2.0,
    limit_s=150,
    patience_s=60,
    outages=(
        Outage(14, 6, Loss.REDIS_KILLED),
        Outage(21, 4, Loss.DISK_FULL),
        Outage(28, 5, Loss.STORE_GONE),
        Outage(34, 4, Loss.REDIS_FROZEN),
    ),
    foreign=(6,),
    harmful=(Harmful(2, Harm.RAISE, 4), Harmful(9, Harm.KILL_CHILD, 1)),
    sink_failures=(
        Failure(3, 3, Way.FORGETS),
        Failure(7, 2, Way.CLOSED),
        Failure(9, 3, Way.REFUSES),
        Failure(24, 3, Way.HANGS),
    ),
    functions_killed=(8,),
    couriers_killed=(11, 28),
    courier=SHORT_COURIER,
    socket_jobs=20,
)
"""The same in small, for CI."""


def directed(protection: Protection) -> Plan:
    """The shortest storm that a protection stands against: what it is there for happens twice, and little else."""
    wounds = {
        Protection.REAPER: [Order(Blow.KILL, Point.STORED)] * 2,
        Protection.SWEEP: [Order(Blow.KILL, Point.POPPED)] * 2,
        Protection.FENCING: [Order(Blow.STOP, Point.STORED)] * 2,
        Protection.OUTBOX: [],
        Protection.ATTEMPT_KEYS: [Order(Blow.STOP, Point.DEVELOPED)] * 2,
    }
    forgets = (Failure(0.0, 2.0, Way.FORGETS),)
    return Plan(
        jobs=10,
        per_s=5,
        workers=3,
        lease_s=4,
        wounds=wounds[protection],
        every_s=0.5,
        limit_s=60,
        patience_s=12,
        sink_failures=forgets if protection is Protection.OUTBOX else (),
        courier=SHORT_COURIER,
        socket_jobs=10,
        outlasts=True,
    )


def foreign_messages() -> list[bytes]:
    """Bytes that are no JSON, JSON that is no task, and a call of a task that no worker has."""
    call = queues.build_message(job_id=new_job_id(time.time_ns() // 1_000_000), pool=POOL, traceparent=None)
    unknown = f"{call.head}foreign{call.tail}".replace(queues.TASK_NAME, "unknown.task")
    return [b"\xff\x00junk", b'"x"', unknown.encode()]


class Storm:
    """One storm over one rig, without one protection where `without` names it."""

    def __init__(self, rig: Rig, plan: Plan, *, without: Protection | None) -> None:
        self._rig, self._plan, self._without = rig, plan, without
        self._is_away = False
        self._calm_at = 0.0
        self._over = asyncio.Event()
        self._began = 0.0
        self.outages_ms: list[int] = []
        self.killed: list[str] = []
        self.harmful: set[str] = set()
        self._sink_port = redis_server.free_port()
        rig.ledger.run(calls.announce_pool(POOL, models=[POOL]))
        functions = rig.serve("functions", "darkroom_functions.serve", "all")
        self._functions = functions.process
        self.witness = Witness(
            functions.url,
            path=PATH,
            socket_jobs=plan.socket_jobs,
        )
        own = {VARIABLE: without or "", "K_SINK": f"http://127.0.0.1:{self._sink_port}/"}
        self._couriers = [
            rig.start(f"courier-{number}", "darkroom_loadtest.chaos.faulty_courier", own={**own, **dict(plan.courier)})
            for number in range(1, COURIERS + 1)
        ]
        worker = {
            "DARKROOM_POOL": POOL,
            "REMAP_SIGTERM": "SIGQUIT",  # as the worker's own program sets it, which billiard reads when it is imported
            VARIABLE: without or "",
            LEASE_VARIABLE: str(round(1000 * plan.lease_s)),
        }
        self.fleet = Fleet(
            rig,
            "darkroom_loadtest.chaos.faulty_worker",
            size=plan.workers,
            own=worker,
            stop_s=plan.stop_s,
            folder=rig.folder,
            is_held=lambda job: plan.outlasts and job not in self.witness.told,
        )
        self.fleet.fill()

    async def run(self) -> None:
        """From the first job to the last end, or until patience is over. Raises BenchmarkFailed."""
        await self.witness.serve_sink(self._sink_port)
        limit_s = self._plan.limit_s + self._plan.patience_s
        try:
            async with asyncio.timeout(limit_s):
                await self._run()
        except TimeoutError:
            raise BenchmarkFailed(f"the storm was not over after {limit_s} s") from None
        except BaseExceptionGroup as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._keep_running())
            submitting = group.create_task(self._submit())
            await self._first_told()
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as blows:
                for work in (self._wound(), self._take_away(), self._fail_sink(), self._push_foreign(), self._harm()):
                    blows.create_task(work)
                blows.create_task(self._kill_functions())
                blows.create_task(self._kill_couriers())
            self._over.set()
            await submitting
            self.witness.follow_rest()
            await self._settle()
            watching.cancel()

    def end(self) -> None:
        """Kill what is left: whoever is nice to them waits."""
        self.fleet.end()
        for process in (*self._couriers, self._functions):
            self._kill(process)

    @property
    def counters(self) -> dict[bytes, bytes]:
        """What the ledger counted: reaped jobs, and stale calls that it refused."""
        counted: dict[bytes, bytes] = self._rig.redis.hgetall(Keys(NAMESPACE).counters)
        return counted

    async def _first_told(self) -> None:
        """The storm begins when everything is at work."""
        while not self.witness.told:  # noqa: ASYNC110 - once, and what follows has nothing to do with it
            await asyncio.sleep(LOOK_S)

    async def _settle(self) -> None:
        give_up_at = time.monotonic() + self._plan.patience_s
        while not self.witness.has_seen_all and time.monotonic() < give_up_at:  # noqa: ASYNC110 - it is to end, too
            await asyncio.sleep(LOOK_S)
        await asyncio.sleep(STALE_S)

    async def _submit(self) -> None:
        """Jobs come in at an even pace, whatever becomes of them."""
        async with asyncio.TaskGroup() as group:
            count = 0
            while count < self._plan.jobs or not self._over.is_set():
                seconds = LONG_S if count % LONG_EVERY == 0 else SHORT_S
                group.create_task(self.witness.submit({"seconds": seconds, "steps": STEPS}))
                count += 1
                await asyncio.sleep(1 / self._plan.per_s)

    async def _keep_running(self) -> None:
        while True:
            if strange := self.fleet.look(time.time_ns() // 1_000_000):
                raise BenchmarkFailed(f"a worker ended that nobody had struck:\n{strange[0]}")
            await asyncio.sleep(LOOK_S)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._began + at_s - time.monotonic()))

    async def _wound(self) -> None:
        for order in self._plan.wounds:
            await asyncio.sleep(self._plan.every_s)
            while self._is_away or time.monotonic() < self._calm_at or not self.fleet.order(order):  # noqa: ASYNC110 - processes tell of nothing
                await asyncio.sleep(LOOK_S)
        while not self.fleet.is_settled:  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK_S)

    async def _take_away(self) -> None:
        """The outages, one after another. No worker is struck meanwhile.

        The job of a worker that was struck in an outage of the store would run again when the store is back, which no
        goal is about; and on a full disk no wound is written down.
        """
        for outage in self._plan.outages:
            await self._until(outage.at_s)
            self._is_away = True
            while not outage.loss.is_of_redis and not self.fleet.is_settled:  # noqa: ASYNC110 - as above
                await asyncio.sleep(LOOK_S)
            self.outages_ms.append(time.time_ns() // 1_000_000)
            with self._without_part(outage.loss):
                await asyncio.sleep(outage.for_s)
            if outage.loss.is_of_redis:
                self._calm_at = time.monotonic() + WATCH_PAUSE_S
            self._is_away = False

    @contextmanager
    def _without_part(self, loss: Loss) -> Iterator[None]:
        redis, store = self._rig.redis_process, self._rig.folder / "store"
        match loss:
            case Loss.REDIS_KILLED:
                self._kill(redis)
                yield
                self._rig.again(redis)
            case Loss.REDIS_FROZEN:
                os.kill(redis.pid, signal.SIGSTOP)
                yield
                os.kill(redis.pid, signal.SIGCONT)
            case Loss.STORE_GONE:
                away = store.rename(store.with_name("store-away"))
                store.touch()  # a file where the folder was: nothing is accepted, and nothing found
                yield
                store.unlink()
                away.rename(store)
            case Loss.DISK_FULL:
                self._limit_files(0)
                yield
                self._limit_files(None)
            case _:
                raise AssertionError(loss)

    def _limit_files(self, size: int | None) -> None:
        """Limit the size of every file that workers, couriers and functions write, logs and pictures included, or lift
        that limit.

        A write beyond it fails as on a full disk (EFBIG instead of ENOSPC), which takes no privilege to arrange.
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
                self.harmful.add(await self.witness.submit({"prompt": harmful.harm}))

    async def _fail_sink(self) -> None:
        for failure in self._plan.sink_failures:
            await self._until(failure.at_s)
            await self.witness.fail(failure.way)
            await asyncio.sleep(failure.for_s)
            await self.witness.fail(None)

    async def _kill_functions(self) -> None:
        for at_s in self._plan.functions_killed:
            await self._until(at_s)
            self._kill(self._functions)
            self._functions = self._rig.again(self._functions)

    async def _kill_couriers(self) -> None:
        for turn, at_s in enumerate(self._plan.couriers_killed):
            await self._until(at_s)
            self._kill(self._couriers[turn % COURIERS])
            self._couriers[turn % COURIERS] = self._rig.again(self._couriers[turn % COURIERS])

    def _kill(self, process: Process) -> None:
        """SIGKILL, and wait until the system has taken note: milliseconds."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        while process.is_alive:
            time.sleep(0.001)
        self.killed.append(process.program.name)

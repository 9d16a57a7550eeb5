"""The rig: the processes and the folder of a benchmark, which are removed when it ends for any reason.

Processes are started as by `darkroom up` (`darkroom_cli.local.processes`): each in a session of its own, and stopped by
pid together with its children. Redis listens on a free port and syncs its append-only file every second.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from darkroom.access.credentials import Credential
from darkroom.access.directory import Directory
from darkroom.access.principals import DEFAULT_TENANT, Scope
from darkroom.access.records import ApiKey, KeySecret, Tenant
from darkroom.access.store import Revised, Snapshot
from darkroom.ledger import calls
from darkroom.ledger.calls import WorkerState
from darkroom.ledger.client import AsyncLedger, Ledger
from darkroom.ledger.connection import connect, connect_async
from darkroom.ledger.keys import Keys
from darkroom_cli.local import processes, redis_server
from darkroom_cli.local.child_environment import environment
from darkroom_cli.local.processes import Process, ProcessSpec

REPOSITORY = Path(__file__).resolve().parents[3]
ROOTS = ("core", "functions", "worker-images", "courier", "cli", "loadtest")

NAMESPACE = "bench"
LINK_KEY = "the benchmarks' own key, of 32 characters or more"
PROOF_KEY = "the benchmarks' own key for proofs of 32 characters or more"
WEBHOOK_KEY = "the benchmarks' own key for webhooks with 32 characters or more"

READY_TIMEOUT_S = 60.0
"""Timeout until a process is ready; on an idle machine a second or two."""

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL at the end."""

POLL_S = 0.02

SHOWN_CHARS = 2000
"""Characters of the end of a log that an error shows."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, by convention of shells."""


class BenchmarkFailed(Exception):
    """A process or a measurement failed; the message names the reason."""


@dataclass(frozen=True)
class Cores:
    """The processor cores of the measured process, and those of all others. A single core is shared."""

    measured: frozenset[int]
    others: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first core for the measured process, the rest for the others."""
        first, *rest = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(rest or {first}))


class Rig:
    """A context manager: at its end all processes are stopped and the folder is removed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="darkroom-bench-"))
        self.redis_url = ""
        self._started: list[Process] = []
        self._redis: Any = None
        self._ledger: Ledger | None = None

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            self._start_redis()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def redis(self) -> Any:
        """A client of the rig's Redis, as Any: redis-py's types are incomplete."""
        return self._redis

    @property
    def redis_version(self) -> str:
        return str(self._redis.info("server")["redis_version"])

    @property
    def redis_pid(self) -> int:
        return self._started[0].pid

    @property
    def redis_process(self) -> Process:
        return self._started[0]

    @property
    def ledger(self) -> Ledger:
        self._ledger = self._ledger or Ledger(self._redis, NAMESPACE)
        return self._ledger

    def start(self, name: str, module: str, *arguments: str, own: Mapping[str, str] | None = None) -> Process:
        """Start `python -m <module> <arguments>` with the settings of every part, and `own`."""
        common = {
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / root) for root in ROOTS),
            "DARKROOM_REDIS_URL": self.redis_url,
            "DARKROOM_NAMESPACE": NAMESPACE,
            "DARKROOM_MODELS": str(REPOSITORY / "loadtest" / "models"),
            "DARKROOM_STORE": (self.folder / "store").as_uri(),
            "DARKROOM_DATABASE_URL": f"sqlite+aiosqlite:///{self.folder / 'history.sqlite'}",
            "DARKROOM_PUBLIC_URL": "http://bench.invalid",
            "DARKROOM_AUTH": "none",
            "DARKROOM_LINK_KEY": LINK_KEY,
            "DARKROOM_WEBHOOK_KEYS": WEBHOOK_KEY,
            "DARKROOM_PROOF_KEYS": PROOF_KEY,
            "DARKROOM_BACKLOG_LIMIT": "10000000",
            "DARKROOM_BACKLOG_BYTES": str(2**40),
            "DARKROOM_MAX_CONNECTIONS": "100000",
        }
        command = [sys.executable, "-m", module, *arguments]
        return self._start(name, command, environment({**common, **(own or {})}), folder=self.folder)

    def restart(self, process: Process) -> Process:
        """Start an exited process again; returns the new process."""
        index = self._started.index(process)
        self._started[index] = Process(process.program)
        return self._started[index]

    def serve(
        self,
        name: str,
        module: str,
        *arguments: str,
        path: str = "/readyz",
        own: Mapping[str, str] | None = None,
    ) -> FunctionServer:
        """Start a server on a free port, and wait until `path` responds."""
        port = redis_server.free_port()
        server = FunctionServer(self.start(name, module, *arguments, own={"PORT": str(port), **(own or {})}), port)
        self.wait(lambda: server.answers(path), what=server.process)
        return server

    def publish_key(self, credential: Credential) -> None:
        """Publish a key with all scopes of the default tenant, as the courier publishes those of the database."""
        key = ApiKey(
            id=credential.key_id,
            tenant=DEFAULT_TENANT,
            name="bench",
            scopes=frozenset(Scope),
            secrets=(KeySecret(digest=credential.digest, created=0),),
        )
        asyncio.run(_publish(self.redis_url, key))

    def wait(self, condition: Callable[[], object], *, what: Process) -> None:
        """Wait until the condition is true. Raises BenchmarkFailed if `what` exits, or after the timeout."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not condition():
            if not what.is_alive or time.monotonic() > deadline:
                tail = what.program.log.read_text(errors="replace")[-SHOWN_CHARS:]
                raise BenchmarkFailed(f"{what.program.name} is not ready:\n{tail}")
            time.sleep(POLL_S)

    def stop(self, process: Process) -> None:
        """Stop one process."""
        processes.stop_in_order([process], hurry=lambda: False)

    def start_worker(self, pool: str, *, own: Mapping[str, str] | None = None) -> Process:
        """Start a worker and wait until the ledger lists it as ready."""
        self.ledger.run(calls.announce_pool(pool, models=[pool]))
        worker = self.start("worker", "darkroom_worker", own={"DARKROOM_POOL": pool, **(own or {})})
        self.wait(lambda: WorkerState.READY.value in self._worker_states(), what=worker)
        return worker

    def _worker_states(self) -> Collection[str]:
        keys = Keys(NAMESPACE)
        names = [name.decode() for name in self._redis.zrange(keys.workers, 0, -1)]
        return {(self._redis.hget(keys.worker(name), "state") or b"").decode() for name in names}

    def _start_redis(self) -> None:
        server = redis_server.prepare(self.folder / "redis", port=redis_server.free_port())
        # No rewrite of the append-only file during a run.
        command = [*server.command, "--auto-aof-rewrite-percentage", "0"]
        process = self._start("redis", command, environment({}), folder=server.folder)
        self.wait(lambda: redis_server.serves(server.url), what=process)
        self.redis_url = server.url
        self._redis = connect(server.url)

    def _start(self, name: str, command: Sequence[str], own: Mapping[str, str], *, folder: Path) -> Process:
        program = ProcessSpec(
            name=name,
            command=command,
            environment=own,
            folder=folder,
            log=self.folder / f"{name}.log",
            grace_s=GRACE_S,
            once=True,
        )
        self._started.append(Process(program))
        return self._started[-1]

    def _end(self) -> None:
        """Stop all processes in reverse order. Ctrl-C is ignored, since the shutdown is bounded in time."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for process in self._started:
            signal_group(process, signal.SIGCONT)
        processes.stop_in_order(self._started[::-1], hurry=lambda: False)
        if self._redis is not None:
            self._redis.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True)
class FunctionServer:
    """A process that serves HTTP on `port` of loopback."""

    process: Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self, path: str) -> bool:
        try:
            return httpx.get(self.url + path, trust_env=False).is_success
        except httpx.TransportError:
            return False


async def _publish(redis_url: str, key: ApiKey) -> None:
    snapshot = Snapshot(1, (Revised(Tenant(name=key.tenant), 1),), (Revised(key, 1),))
    async with connect_async(redis_url) as client:
        await Directory(AsyncLedger(client, NAMESPACE)).publish_all(snapshot)


@contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """Processes that are started within, and their children, run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def signal_group(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process and its children."""
    if process.is_alive:
        os.killpg(process.pid, number)


def processor_s(pid: int) -> float:
    """Seconds of processor time of a process, with its threads and without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_benchmark(measure: Callable[[Rig], None]) -> int:
    """Measure in a rig; returns the exit status. Ctrl-C and SIGTERM stop it early, with all processes."""
    try:
        with Rig() as rig:
            measure(rig)
    except BenchmarkFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt

"""All parts of darkroom as processes on this machine: started in order, watched, restarted, and stopped.

The order: Redis, the stand-ins, the functions behind one port, the gateway before them if it can run here
(`gateway.py`), the courier and a worker; `processes.py` runs them. The pool `local` is announced. When all parts are
ready the address is printed. A process that dies is restarted.

The parts run the same code as in a cluster. They are started as processes and never imported.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import httpx
from darkroom.catalogue.models import Catalogue
from darkroom.errors import LedgerUnavailable
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import WorkerState
from darkroom.ledger.client import AsyncLedger, Ledger
from darkroom.ledger.connection import connect, connect_async
from darkroom.ledger.records import WorkerRecord
from darkroom.settings import DatabaseUrl, ModelSettings, Namespace, RedisUrl, WebUrl
from pydantic import Field

from darkroom_cli.address import is_loopback
from darkroom_cli.local import gateway, processes, redis_server, welcome
from darkroom_cli.local.child_environment import environment
from darkroom_cli.local.data_folder import DataFolder
from darkroom_cli.local.models import ModelSource, own_files
from darkroom_cli.local.processes import ProcessManager, ProcessSpec, RecordedProcess
from darkroom_cli.local.run_record import RunRecord
from darkroom_cli.local.stop_signals import StopSignals
from darkroom_cli.local.welcome import FirstKey
from darkroom_cli.terminal.log_tail import log_tail
from darkroom_cli.terminal.output import Output

HOST = "127.0.0.1"

ANY = ("0.0.0.0", "::")  # noqa: S104 - what the user asked for
"""All addresses of this machine, loopback included."""

POOL = "local"

THIS_MACHINE = "localhost,127.0.0.0/8,::1"
"""Internal addresses that webhooks may name while all clients are on this machine: a client that reaches loopback is.
With DARKROOM_PUBLIC_URL `up` has remote clients, whose webhooks must not reach local servers."""

FUNCTIONS, GATEWAY, COURIER = "functions", "gateway", "courier"
WORKER, STAND_INS, REDIS = "worker", "stand-ins", "redis"
ORDER = (FUNCTIONS, GATEWAY, COURIER, WORKER, STAND_INS, REDIS)
"""The order of shutdown: no new submissions and no more messages, then the worker releases its job into Redis. The
gateway is second, so that clients that follow jobs receive the functions' last messages."""

GRACE_S = {FUNCTIONS: 4.0, GATEWAY: 1.0, COURIER: 2.0, WORKER: 6.0, STAND_INS: 1.0, REDIS: 3.0}
"""Between SIGTERM and SIGKILL, 16 seconds in all. A worker needs one denoising step and a few calls to Redis."""

DRAIN_GRACE_S = 2
"""How long a running job may continue during shutdown; then it is released, and the next `up` runs it."""

REPORT_EVERY_S = 5.0
"""Interval of progress lines while a part loads."""

PROBE_LIMIT_S = 1.0
PROBE_EVERY_S = 0.25


class UpSettings(ModelSettings):
    """Settings of `up`, and those of the parts that `up` itself needs."""

    home: Path = Path(".darkroom")
    """The data folder."""

    redis_url: RedisUrl | None = None
    """A running Redis to use; none is started."""

    database_url: DatabaseUrl | None = None
    """The database of the history (default: a file in the data folder)."""

    namespace: Namespace = "darkroom"
    """The prefix of every Redis key and channel."""

    public_url: WebUrl | None = None
    """The address that clients use, if it is not that of this machine."""

    webhook_allow: str = ""
    """Internal addresses that webhooks may name, in the syntax of the functions' setting."""

    probe_port: int | None = Field(default=None, ge=1, le=65535)
    """The port where the courier serves probes and metrics. The worker, which reads the same variable, gets none."""


@dataclass(frozen=True)
class UpOptions:
    """The command's arguments. `port` 0: any free port."""

    port: int
    data: Path | None
    sources: Sequence[ModelSource]
    redis_urls: Mapping[str, str] = field(default_factory=dict)
    """Redis address by process, for a Redis with one user per part."""
    worker: bool = True
    """Whether to start a worker."""
    host: str = HOST
    """The address to serve. On another than loopback every request needs a key."""


class StartFailed(Exception):
    """A required process does not run; the message is for the user."""


class LocalStack:
    """One run of all parts."""

    def __init__(
        self,
        settings: UpSettings,
        folder: DataFolder,
        *,
        port: int,
        signals: StopSignals,
        output: Output,
        host: str = HOST,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._port = port
        self._signals = signals
        self._output = output
        self._host = host
        self._url = f"http://{HOST if host in ANY else host}:{port}"
        self._processes = ProcessManager(order=ORDER, write_record=self._write_record)
        self._has_started = False
        self._is_recorded = True
        self.is_ready = False

    def start(self, options: UpOptions) -> None:
        """Start all parts; returns when all are ready. Raises StartFailed, SettingError and StopRequested."""
        began = time.monotonic()
        self._output.info(f"darkroom: data in {welcome.short(self._folder.path)}, logs in its folder logs/")
        replaced = own_files(self._folder.models, options.sources, known=Catalogue.load(self._settings.models))
        redis_url = self._start_redis()
        self._make_stand_ins()
        folders = [self._folder.stand_ins / "models", *(path.absolute() for path in self._settings.models), replaced]
        catalogue = Catalogue.load(folders)
        models = [model for model in catalogue if model.pool == POOL]
        for model in catalogue:
            if model.pool != POOL:
                self._output.info(f"  {model.name}: not served here: its file names the pool {model.pool}")
        self._announce(redis_url, [model.name for model in models])
        earlier = {worker.name for worker in asyncio.run(_workers(redis_url, self._settings.namespace))}
        for_all = {
            "DARKROOM_REDIS_URL": redis_url,
            "DARKROOM_NAMESPACE": self._settings.namespace,
            "DARKROOM_MODELS": os.pathsep.join(map(str, folders)),
            "DARKROOM_STORE": self._folder.store.as_uri(),
        }
        front = self._gateway()
        for_front = for_all | {
            "DARKROOM_PUBLIC_URL": self._settings.public_url or self._url,
            "DARKROOM_AUTH": "none" if self._is_private else "keys",
            "DARKROOM_LINK_KEY": self._folder.link_key,
            "DARKROOM_WEBHOOK_KEYS": self._folder.webhook_key,
            "DARKROOM_PROOF_KEYS": self._folder.proof_key,
            "DARKROOM_WEBHOOK_ALLOW": self._webhook_allow,
            "DARKROOM_DATABASE_URL": self._database_url,
        }
        functions_host = self._host if front is None else HOST
        functions_port = self._port if front is None else front.functions_port
        functions_url = f"http://{HOST}:{functions_port}"
        for_front["K_SINK"] = f"{functions_url}/events"
        own_redis = {name: {"DARKROOM_REDIS_URL": url} for name, url in options.redis_urls.items()}
        functions = environment(
            for_front | own_redis.get(FUNCTIONS, {}), PORT=str(functions_port), DARKROOM_HOST=functions_host
        )
        self._start(FUNCTIONS, _module("darkroom_functions.serve", "all"), functions)
        own = {} if self._settings.probe_port is None else {"DARKROOM_PROBE_PORT": str(self._settings.probe_port)}
        is_known = self._folder.root_key_file.exists()
        root = None if self._is_private else self._folder.root_key
        if root is not None:
            own["DARKROOM_ROOT_KEY"] = root
        courier = environment(for_front | own_redis.get(COURIER, {}) | own)
        self._start(COURIER, _module("darkroom_courier"), courier)
        if options.worker:
            grace = str(DRAIN_GRACE_S)
            worker = environment(for_all, DARKROOM_POOL=POOL, DARKROOM_DRAIN_GRACE_S=grace, for_worker=True)
            self._start(WORKER, _module("darkroom_worker"), worker)
        self._wait(FUNCTIONS, "loading", lambda: _answers(f"{functions_url}/readyz"))
        if front is not None:
            self._start(GATEWAY, [str(gateway.START)], front.environment)
            self._wait(GATEWAY, "starting", lambda: _answers(f"{self._url}/readyz"))
        if options.worker:
            names = ", ".join(model.name for model in models)
            self._wait(WORKER, f"loading {names}", lambda: self._has_worker(redis_url, beside=earlier))
        else:
            self._output.info(f"  {WORKER}: not started here; jobs wait until a worker is started")
        self.is_ready = True
        self._output.info(f"darkroom: ready after {time.monotonic() - began:.0f} s")
        is_remote = self._settings.public_url is not None or self._host not in ANY
        key = None if root is None else FirstKey(self._folder.root_key_file, None if is_known else root, is_remote)
        welcome.welcome(self._output, url=self._url, data=self._folder.path, models=models, key=key)

    def watch(self) -> NoReturn:
        """Restart processes that exit, until a signal arrives: raises StopRequested."""
        while True:
            self._signals.check()
            for notice in self._processes.poll():
                program = notice.program
                self._output.error(
                    f"darkroom: {program.name} {processes.describe(notice.status)} and restarts in "
                    f"{notice.pause_s or 0:.0f} s. Its log: {welcome.short(program.log)}"
                )
                self._output.record({"event": "died", "process": program.name, "status": notice.status})
            time.sleep(processes.POLL_S)

    def stop(self) -> None:
        """Stop all started processes."""
        if not self._has_started:
            return
        self._output.info("darkroom: stopping, in order (Ctrl-C again: immediately)")
        self._processes.stop(hurry=self._signals.hurry)
        self._folder.record.unlink(missing_ok=True)
        self._output.info(f"darkroom: stopped; jobs and pictures are in {welcome.short(self._folder.path)}")
        self._output.record({"event": "ended"})

    @property
    def _database_url(self) -> str:
        if self._settings.database_url is not None:
            return self._settings.database_url.get_secret_value()
        return self._folder.database_url

    @property
    def _is_private(self) -> bool:
        """Whether programs of this machine alone can connect: then no request needs a key."""
        return is_loopback(self._url) and self._host not in ANY

    def _start_redis(self) -> str:
        """Redis' address, once Redis serves there."""
        if self._settings.redis_url is None:
            server = redis_server.prepare(self._folder.redis, port=redis_server.free_port())
            self._start(REDIS, server.command, environment({}), folder=server.folder)
            url = server.url
        else:
            url = self._settings.redis_url.get_secret_value()
            if redis_server.find(url) is None:
                raise StartFailed("DARKROOM_REDIS_URL=(hidden): no Redis answers at that address")
        self._wait(REDIS, "reading its data", lambda: _serves(url))
        return url

    def _gateway(self) -> gateway.Gateway | None:
        """The gateway before the functions; None, with a line on the output, if it cannot run here."""
        made = gateway.Gateway(self._host, self._port, redis_server.free_port(), self._folder.path / GATEWAY)
        fault = made.fault()
        if fault is None:
            return made
        self._output.info(f"  {GATEWAY}: not started, the functions serve the port instead ({fault}; docs/gateway.md)")
        return None

    def _make_stand_ins(self) -> None:
        """Run the worker's command that makes the stand-ins, until it exits."""
        make = _module("darkroom_worker.standins", str(self._folder.stand_ins))
        self._start(STAND_INS, make, environment({}), once=True)
        self._wait(STAND_INS, "making untrained models", lambda: not self._processes.is_running(STAND_INS))

    @property
    def _webhook_allow(self) -> str:
        own = "" if self._settings.public_url else THIS_MACHINE
        return ",".join(filter(None, (own, self._settings.webhook_allow)))

    def _announce(self, redis_url: str, models: Sequence[str]) -> None:
        with connect(redis_url) as client:
            Ledger(client, self._settings.namespace).run(calls.announce_pool(POOL, models=models))

    def _has_worker(self, redis_url: str, *, beside: Collection[str]) -> bool:
        """Whether a worker other than `beside` is ready: a killed worker stays registered until its entry expires."""
        try:
            workers = asyncio.run(_workers(redis_url, self._settings.namespace))
        except LedgerUnavailable:
            return False
        own = [worker for worker in workers if worker.pool == POOL and worker.name not in beside]
        if any(worker.state == WorkerState.FAULTY for worker in own):
            log = self._folder.logs / f"{WORKER}.log"
            raise StartFailed(f"the worker cannot load its models. From {welcome.short(log)}:\n{log_tail(log)}")
        return any(worker.state in (WorkerState.READY, WorkerState.BUSY) for worker in own)

    def _start(
        self, name: str, command: Sequence[str], own: dict[str, str], *, folder: Path | None = None, once: bool = False
    ) -> None:
        self._signals.check()
        self._has_started = True
        self._processes.start(
            ProcessSpec(
                name=name,
                command=command,
                environment=own,
                folder=folder or self._folder.path,
                log=self._folder.new_log(name),
                grace_s=GRACE_S[name],
                once=once,
            )
        )

    def _wait(self, name: str, doing: str, is_ready: Callable[[], bool | str]) -> None:
        """Wait until `is_ready` returns True and report that; a text it returns is progress to report.

        Raises StartFailed if a process exits meanwhile: during startup a restart would only fail again.
        """
        began = time.monotonic()
        due, progressed = began + REPORT_EVERY_S, False
        while True:
            self._signals.check()
            for notice in self._processes.poll():
                if notice.status != 0 or not notice.program.once:
                    raise StartFailed(_did_not_start(notice.program.name, notice.status, notice.program.log))
            answer = is_ready()
            if answer is True:
                break
            now = time.monotonic()
            if now >= due or (answer and not progressed):
                due, progressed = now + REPORT_EVERY_S, bool(answer)
                self._output.info(f"  {name}: {doing}, {now - began:.0f} s{f', {answer}' if answer else ''}")
            time.sleep(PROBE_EVERY_S)
        self._output.info(f"  {name}: ready after {time.monotonic() - began:.1f} s")

    def _write_record(self, running: Sequence[RecordedProcess]) -> None:
        """Write the record of this run. A failure (a full disk) stops nothing and is reported once."""
        record = self._folder.record
        try:
            RunRecord(os.getpid(), self._url, tuple(running)).write(record)
        except OSError as error:
            if self._is_recorded:
                self._output.error(
                    f"darkroom: {welcome.short(record)} cannot be written ({error.strerror}); "
                    "if this process is killed, the next `darkroom up` cannot stop the remaining processes"
                )
            self._is_recorded = False
        else:
            self._is_recorded = True


async def _workers(redis_url: str, namespace: str) -> list[WorkerRecord]:
    async with connect_async(redis_url) as client:
        return await reads.workers(AsyncLedger(client, namespace))


def _module(name: str, *arguments: str) -> list[str]:
    """The command line of a part."""
    return [sys.executable, "-m", name, *arguments]


def _serves(url: str) -> bool | str:
    """Whether Redis serves; else how much of its data it has loaded."""
    found = redis_server.find(url)
    return found is not None and (found.serves or found.progress)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PROBE_LIMIT_S, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _did_not_start(name: str, status: int, log: Path) -> str:
    return f"{name} {processes.describe(status)}. From {welcome.short(log)}:\n{log_tail(log)}"

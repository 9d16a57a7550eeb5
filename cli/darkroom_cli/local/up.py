"""`darkroom up`: everything on this machine, until it is told to stop.

In order: have the data folder alone, end what a killed `up` left in it, see that the port is free; then Redis, the
stand-ins, the functions behind one port, the gateway before them where it can run (`gateway.py`), the courier and a
worker, each a process of its own (`processes.py`). The pool `local` is announced, and when all are ready the address is
said. After that it watches: what dies is started again.

The same code as in a cluster runs here; only who starts it differs. The other parts are started, never imported.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from darkroom.settings import DatabaseUrl, ModelSettings, Namespace, RedisUrl, WebUrl, load
from pydantic import Field

from darkroom_cli.environments.command import environment
from darkroom_cli.exits import DONE, FAILED, INTERRUPTED
from darkroom_cli.local import gateway, processes, redis_server, welcome
from darkroom_cli.local.data_folder import DataFolder, FolderTaken
from darkroom_cli.local.log_tail import log_tail
from darkroom_cli.local.models import Replacement, own_files
from darkroom_cli.local.processes import Crew, Program, Recorded
from darkroom_cli.local.run_record import RunRecord
from darkroom_cli.terminal.output import Output

HOST = "127.0.0.1"
POOL = "local"

THIS_MACHINE = "localhost,127.0.0.0/8,::1"
"""Receivers of webhooks that callers may name while they are on this machine too, as who reaches loopback is. With an
address of its own (DARKROOM_PUBLIC_URL) `up` has callers from elsewhere, who must not reach what listens here."""

FUNCTIONS, GATEWAY, COURIER = "functions", "gateway", "courier"
WORKER, STAND_INS, REDIS = "worker", "stand-ins", "redis"
ORDER = (FUNCTIONS, GATEWAY, COURIER, WORKER, STAND_INS, REDIS)
"""In which all end: no new work, no more news, the worker gives back what it runs, and Redis keeps it. The gateway is
second, so that those who follow jobs get the functions' last words."""

GRACE_S = {FUNCTIONS: 4.0, GATEWAY: 1.0, COURIER: 2.0, WORKER: 6.0, STAND_INS: 1.0, REDIS: 3.0}
"""Between SIGTERM and SIGKILL, 16 seconds in all. A worker needs one denoising step and a few words with Redis."""

DRAIN_GRACE_S = 2
"""How long a running job may go on when all ends; then it is given back, and the next `up` runs it."""

ONE_CTRL_C_S = 0.5
"""Programs that run others may hand on a Ctrl-C that the terminal has sent to all of them: signals so close are one."""

WORD_EVERY_S = 5.0
"""While something loads, that it still does is said this often."""

PROBE_LIMIT_S = 1.0
PROBE_EVERY_S = 0.25


class UpSettings(ModelSettings):
    """What the environment says to `up`; its own settings and those of the parts that it must know."""

    home: Path = Path(".darkroom")
    """The data folder."""

    redis_url: RedisUrl | None = None
    """A Redis that is there already: none is started."""

    database_url: DatabaseUrl | None = None
    """A database for the jobs that have ended; otherwise it is a file in the data folder."""

    namespace: Namespace = "darkroom"
    """Begins every key and channel of ours."""

    public_url: WebUrl | None = None
    """The address that callers use, where it is not that of this machine."""

    webhook_allow: str = ""
    """Receivers of webhooks that may have internal addresses, in the form that the functions read."""

    probe_port: int | None = Field(default=None, ge=1, le=65535)
    """The port where the courier serves probes and metrics. The worker, which reads the same variable, gets none."""


@dataclass(frozen=True)
class Options:
    """The command's arguments. `port` 0 is any that is free."""

    port: int
    data: Path | None
    replacements: Sequence[Replacement]
    redis_urls: Mapping[str, str] = field(default_factory=dict)
    """By process: its own address of a Redis that has a user for each."""
    worker: bool = True
    """Whether a worker runs here too, or is started elsewhere."""


class StartFailed(Exception):
    """What must run does not; the message is for the user."""


class Asked(Exception):
    """Somebody asked `up` to stop."""


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP ask for an end in order; a Ctrl-C after that asks for an end at once.

    `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: float | None = None
        self._hurry = False

    @contextmanager
    def watched(self) -> Iterator[StopSignals]:
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: it is to outlive its terminal
            before[number] = signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        now = self._clock()
        if self._first is None:
            self._first = now
        elif number == signal.SIGINT and now - self._first >= ONE_CTRL_C_S:
            self._hurry = True

    def check(self) -> None:
        """Raises Asked once a signal has come."""
        if self._first is not None:
            raise Asked

    def hurry(self) -> bool:
        return self._hurry


def up(options: Options, output: Output) -> int:
    """Run everything until a signal comes; answers the exit status."""
    settings = load(UpSettings)
    folder = DataFolder((options.data or settings.home).absolute())
    with StopSignals().watched() as signals:
        try:
            with folder.held():
                return _up(options, settings, folder, signals, output)
        except FolderTaken:
            output.complain(f"darkroom: {_who_has(folder)}")
            return FAILED


def _up(options: Options, settings: UpSettings, folder: DataFolder, signals: StopSignals, output: Output) -> int:
    _end_leftovers(folder, signals, output)
    port = _claim_port(options.port, output)
    if port is None:
        return FAILED
    machine = Machine(settings, folder, port=port, signals=signals, output=output)
    try:
        try:
            machine.start(options)
            machine.watch()
        finally:
            machine.end()
    except StartFailed as error:
        output.complain(f"darkroom: {error}")
        return FAILED
    except OSError as error:  # of a file, or of a process that cannot be started
        output.complain(f"darkroom: {error}")
        return FAILED
    except Asked:
        return DONE if machine.is_ready else INTERRUPTED


def _who_has(folder: DataFolder) -> str:
    try:
        record = RunRecord.read(folder.record)
    except ValueError:
        record = None
    where = f", {record.url}, process {record.pid}: Ctrl-C there ends it" if record else ""
    return f"`darkroom up` is running already with {welcome.short(folder.path)}{where}"


def _end_leftovers(folder: DataFolder, signals: StopSignals, output: Output) -> None:
    """End what the record names and still runs as the same process: its `up` is gone, or it would have the lock."""
    try:
        record = RunRecord.read(folder.record)
    except ValueError as error:
        output.complain(f"darkroom: {error}; nothing of an earlier run can be ended")
        return
    if record is None:
        return
    left = [process for process in record.processes if process.is_alive]
    if left:
        names = ", ".join(f"{process.name} ({process.pid})" for process in left)
        output.complain(f"An earlier `darkroom up` was killed; ending what it left: {names}")
        processes.end_in_order(left, hurry=signals.hurry)
    folder.record.unlink(missing_ok=True)


def _claim_port(port: int, output: Output) -> int | None:
    if port == 0:
        return redis_server.free_port()
    if redis_server.can_listen(port):
        return port
    output.complain(
        f"darkroom: port {port} of {HOST} is taken by another program; `--port {port + 1}` takes another port"
    )
    return None


class Machine:
    """One run of everything."""

    def __init__(
        self, settings: UpSettings, folder: DataFolder, *, port: int, signals: StopSignals, output: Output
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._port = port
        self._signals = signals
        self._output = output
        self._url = f"http://{HOST}:{port}"
        self._crew = Crew(order=ORDER, write_down=self._write_down)
        self._has_started = False
        self._is_written_down = True
        self.is_ready = False

    def start(self, options: Options) -> None:
        """Start all and return when all are ready. Raises StartFailed, SettingError, and Asked."""
        began = time.monotonic()
        self._output.say(f"darkroom: data in {welcome.short(self._folder.path)}, a log for each process in its logs/")
        replaced = own_files(self._folder.models, options.replacements, known=Catalogue.load(self._settings.models))
        redis_url = self._start_redis()
        self._make_stand_ins()
        folders = [self._folder.stand_ins / "models", *(path.absolute() for path in self._settings.models), replaced]
        catalogue = Catalogue.load(folders)
        models = [model for model in catalogue if model.pool == POOL]
        for model in catalogue:
            if model.pool != POOL:
                self._output.say(f"  {model.name}: not served here, since its file names the pool {model.pool}")
        self._announce(redis_url, [model.name for model in models])
        earlier = {worker.name for worker in asyncio.run(_workers(redis_url, self._settings.namespace))}
        for_all = {
            "DARKROOM_REDIS_URL": redis_url,
            "DARKROOM_NAMESPACE": self._settings.namespace,
            "DARKROOM_MODELS": os.pathsep.join(map(str, folders)),
            "DARKROOM_STORE": self._folder.store.as_uri(),
        }
        for_front = for_all | {
            "DARKROOM_PUBLIC_URL": self._settings.public_url or self._url,
            "DARKROOM_LINK_KEY": self._folder.link_key,
            "DARKROOM_WEBHOOK_KEYS": self._folder.webhook_key,
            "DARKROOM_WEBHOOK_ALLOW": self._webhook_allow,
            "DARKROOM_DATABASE_URL": self._database_url,
        }
        before_them = self._gateway()
        functions_port = self._port if before_them is None else before_them.functions_port
        functions_url = f"http://{HOST}:{functions_port}"
        for_front["K_SINK"] = f"{functions_url}/events"
        own_redis = {name: {"DARKROOM_REDIS_URL": url} for name, url in options.redis_urls.items()}
        functions = environment(for_front | own_redis.get(FUNCTIONS, {}), PORT=str(functions_port))
        self._start(FUNCTIONS, _module("darkroom_functions.serve", "all"), functions)
        probes = {} if self._settings.probe_port is None else {"DARKROOM_PROBE_PORT": str(self._settings.probe_port)}
        courier = environment(for_front | own_redis.get(COURIER, {}) | probes)
        self._start(COURIER, _module("darkroom_courier"), courier)
        if options.worker:
            grace = str(DRAIN_GRACE_S)
            worker = environment(for_all, DARKROOM_POOL=POOL, DARKROOM_DRAIN_GRACE_S=grace, for_worker=True)
            self._start(WORKER, _module("darkroom_worker"), worker)
        self._wait(FUNCTIONS, "loading", lambda: _answers(f"{functions_url}/readyz"))
        if before_them is not None:
            self._start(GATEWAY, [str(gateway.START)], before_them.environment)
            self._wait(GATEWAY, "starting", lambda: _answers(f"{self._url}/readyz"))
        if options.worker:
            names = ", ".join(model.name for model in models)
            self._wait(WORKER, f"loading {names}", lambda: self._has_worker(redis_url, beside=earlier))
        else:
            self._output.say(f"  {WORKER}: none here; jobs wait until one is started")
        self.is_ready = True
        self._output.say(f"darkroom: ready after {time.monotonic() - began:.0f} s")
        welcome.welcome(self._output, url=self._url, data=self._folder.path, models=models)

    def watch(self) -> NoReturn:
        """Start again what ends by itself, until a signal comes: raises Asked."""
        while True:
            self._signals.check()
            for notice in self._crew.look():
                program = notice.program
                self._output.complain(
                    f"darkroom: {program.name} {processes.describe(notice.status)} and starts again in "
                    f"{notice.pause_s or 0:.0f} s. Its log: {welcome.short(program.log)}"
                )
                self._output.record({"event": "died", "process": program.name, "status": notice.status})
            time.sleep(processes.POLL_S)

    def end(self) -> None:
        """End all that was started; nothing is left running."""
        if not self._has_started:
            return
        self._output.say("darkroom: ending, in order (Ctrl-C again: at once)")
        self._crew.end(hurry=self._signals.hurry)
        self._folder.record.unlink(missing_ok=True)
        self._output.say(f"darkroom: ended; {welcome.short(self._folder.path)} keeps the jobs and the pictures")
        self._output.record({"event": "ended"})

    @property
    def _database_url(self) -> str:
        if self._settings.database_url is not None:
            return self._settings.database_url.get_secret_value()
        return self._folder.database_url

    def _start_redis(self) -> str:
        """Redis' address, once it serves there."""
        if self._settings.redis_url is None:
            server = redis_server.prepare(self._folder.redis, port=redis_server.free_port())
            self._start(REDIS, server.command, environment({}), folder=server.folder)
            url = server.url
        else:
            url = self._settings.redis_url.get_secret_value()
            if redis_server.find(url) is None:
                raise StartFailed("DARKROOM_REDIS_URL=(hidden): no Redis answers there")
        self._wait(REDIS, "reading its data", lambda: _serves(url))
        return url

    def _gateway(self) -> gateway.Gateway | None:
        """What is to be put before the functions; None, which is said, where it cannot run."""
        made = gateway.Gateway(HOST, self._port, redis_server.free_port(), self._folder.path / GATEWAY)
        fault = made.fault()
        if fault is None:
            return made
        self._output.say(f"  {GATEWAY}: none, so the functions take the port ({fault}; docs/gateway.md)")
        return None

    def _make_stand_ins(self) -> None:
        """Run the worker's own command for it, to its end."""
        make = _module("darkroom_worker.standins", str(self._folder.stand_ins))
        self._start(STAND_INS, make, environment({}), once=True)
        self._wait(STAND_INS, "making untrained models", lambda: not self._crew.is_running(STAND_INS))

    @property
    def _webhook_allow(self) -> str:
        own = "" if self._settings.public_url else THIS_MACHINE
        return ",".join(filter(None, (own, self._settings.webhook_allow)))

    def _announce(self, redis_url: str, models: Sequence[str]) -> None:
        with connect(redis_url) as client:
            Ledger(client, self._settings.namespace).run(calls.announce_pool(POOL, models=models))

    def _has_worker(self, redis_url: str, *, beside: Collection[str]) -> bool:
        """Whether a worker is ready beside those that were there before: a killed one is believed in for a while."""
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
        self._crew.start(
            Program(
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
        """Wait until `is_ready` returns True, and report it; a text that it returns is the progress so far.

        Raises StartFailed for what ends before everything was ready once, since it would only end again.
        """
        began = time.monotonic()
        due, progressed = began + WORD_EVERY_S, False
        while True:
            self._signals.check()
            for notice in self._crew.look():
                if notice.status != 0 or not notice.program.once:
                    raise StartFailed(_did_not_start(notice.program.name, notice.status, notice.program.log))
            answer = is_ready()
            if answer is True:
                break
            now = time.monotonic()
            if now >= due or (answer and not progressed):
                due, progressed = now + WORD_EVERY_S, bool(answer)
                self._output.say(f"  {name}: {doing}, {now - began:.0f} s{f', {answer}' if answer else ''}")
            time.sleep(PROBE_EVERY_S)
        self._output.say(f"  {name}: ready after {time.monotonic() - began:.1f} s")

    def _write_down(self, running: Sequence[Recorded]) -> None:
        """Write the record of this run. A full disk does not end what runs: a line reports it, once."""
        record = self._folder.record
        try:
            RunRecord(os.getpid(), self._url, tuple(running)).write(record)
        except OSError as error:
            if self._is_written_down:
                self._output.complain(
                    f"darkroom: {welcome.short(record)} cannot be written ({error.strerror}); "
                    "after a kill of this process the next `darkroom up` cannot end the processes that are left"
                )
            self._is_written_down = False
        else:
            self._is_written_down = True


async def _workers(redis_url: str, namespace: str) -> list[WorkerRecord]:
    async with connect_async(redis_url) as client:
        return await reads.workers(AsyncLedger(client, namespace))


def _module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a part."""
    return [sys.executable, "-m", name, *arguments]


def _serves(url: str) -> bool | str:
    """Whether Redis serves, or how much of its data it has read."""
    found = redis_server.find(url)
    return found is not None and (found.serves or found.progress)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PROBE_LIMIT_S, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _did_not_start(name: str, status: int, log: Path) -> str:
    return f"{name} {processes.describe(status)}. From {welcome.short(log)}:\n{log_tail(log)}"

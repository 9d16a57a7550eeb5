"""The processes of one machine: started, watched, restarted, recorded, and stopped.

Each process has a session of its own, so that a Ctrl-C in the terminal reaches `up` alone and the shutdown is orderly.
Children of a process are in that session's process group and are killed with it. Each process is recorded by pid and
start time: by the time the record is read, the system may have reused the pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from darkroom.backoff import Backoff

POLL_S = 0.1
"""Between two polls of the processes; also the longest time until a Ctrl-C is handled."""

BACKOFF = Backoff(first_s=1.0, longest_s=30.0)
"""Before a process that exited is restarted."""

KILL_LIMIT_S = 5.0
"""A killed process exits immediately, unless it waits for a device that does not respond."""

STEADY_S = 60.0
"""A process that ran this long has recovered: its next pause is the first one again. A guess."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """A process to run: the command, its complete environment, its working folder and its log.

    `grace_s` is the time between SIGTERM and SIGKILL. `once`: the process exits by itself and is not restarted.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    grace_s: float
    once: bool = False


@dataclass(frozen=True)
class ProcessIdentity:
    """A pid with its start time in the system's format, which identifies one process."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this pid now; None if there is none."""
        started = start_time(pid)
        return None if started is None else cls(pid, started)

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started


@dataclass(frozen=True)
class RecordedProcess:
    """A running process in the record of a run (`run_record.py`)."""

    name: str
    pid: int
    started: str
    grace_s: float

    @property
    def is_alive(self) -> bool:
        return ProcessIdentity(self.pid, self.started).is_alive


@dataclass(frozen=True)
class ExitNotice:
    """A process exited with `status` (negative: the signal). It restarts after `pause_s`, or does not (None)."""

    program: ProcessSpec
    status: int
    pause_s: float | None


class Stoppable(Protocol):
    """What `stop_in_order` stops: a process of this run, or one that an earlier run recorded."""

    @property
    def pid(self) -> int: ...
    @property
    def grace_s(self) -> float: ...
    @property
    def is_alive(self) -> bool: ...


def start_time(pid: int) -> str | None:
    """The start time of the process with this pid, unique among processes of that pid; None if none runs."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if boot_id.exists():
        try:
            # Field 2 is the program's name in brackets and may hold anything; field 3 is the state, 22 the start time.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{boot_id.read_text().strip()} {fields[19]}"
    printed = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return None if not printed or printed[0].startswith("Z") else printed[1].strip()


class Process:
    """One run of a process specification."""

    def __init__(self, program: ProcessSpec) -> None:
        self.program = program
        with program.log.open("ab") as log:
            self._popen = subprocess.Popen(
                program.command,
                env=dict(program.environment),
                cwd=program.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.began = time.monotonic()
        identity = ProcessIdentity.of(self._popen.pid)
        self._started = identity.started if identity else ""

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def grace_s(self) -> float:
        return self.program.grace_s

    @property
    def is_alive(self) -> bool:
        return self.status is None

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def recorded(self) -> RecordedProcess:
        return RecordedProcess(self.program.name, self.pid, self._started, self.grace_s)


class ProcessManager:
    """The processes of one `up`. `order` names them in the order of shutdown; `write_record` is called with the running
    processes, in that order, at each change.
    """

    def __init__(self, *, order: Sequence[str], write_record: Callable[[Sequence[RecordedProcess]], None]) -> None:
        self._order = tuple(order)
        self._write_record = write_record
        self._running: dict[str, Process] = {}
        self._due: dict[str, tuple[float, ProcessSpec]] = {}
        self._failures: dict[str, int] = {}

    def start(self, program: ProcessSpec) -> None:
        """Start a process, and restart it when it exits."""
        self._running[program.name] = Process(program)
        self._record()

    def is_running(self, name: str) -> bool:
        """Whether the process ran at the last poll."""
        return name in self._running

    def poll(self) -> list[ExitNotice]:
        """Restart the processes that are due, and return those that exited since the last poll."""
        now = time.monotonic()
        for name, (due, program) in list(self._due.items()):
            if now >= due:
                del self._due[name]
                self.start(program)
        notices = []
        for name, process in list(self._running.items()):
            status = process.status
            if status is not None:
                kill_group(process.pid)
                del self._running[name]
                pause = None if process.program.once else self._pause(name, ran_s=now - process.began)
                if pause is not None:
                    self._due[name] = (now + pause, process.program)
                notices.append(ExitNotice(process.program, status, pause))
        if notices:
            self._record()
        return notices

    def stop(self, *, hurry: Callable[[], bool]) -> None:
        """Stop all processes in order, without waiting while `hurry` returns True. Returns when none runs."""
        self._due.clear()
        self.poll()
        self._due.clear()
        stop_in_order([self._running[name] for name in self._order if name in self._running], hurry=hurry)
        self._running.clear()
        self._record()

    def _pause(self, name: str, *, ran_s: float) -> float:
        failures = 1 if ran_s >= STEADY_S else self._failures.get(name, 0) + 1
        self._failures[name] = failures
        return BACKOFF.after(failures)

    def _record(self) -> None:
        self._write_record([self._running[name].recorded for name in self._order if name in self._running])


def stop_in_order(processes: Sequence[Stoppable], *, hurry: Callable[[], bool]) -> None:
    """For each process: send SIGTERM, wait `grace_s`, then kill its process group."""
    for process in processes:
        if process.is_alive:
            _stop(process, hurry)


def _stop(process: Stoppable, hurry: Callable[[], bool]) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    wait_until(lambda: hurry() or not process.is_alive, limit_s=process.grace_s)
    kill_group(process.pid)
    wait_until(lambda: not process.is_alive, limit_s=KILL_LIMIT_S)


def kill_group(pid: int) -> None:
    """Kill the remaining processes of the group `pid`.

    Call this right after the process exited: the system does not reuse a pid while a group of that number has members.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], *, limit_s: float) -> bool:
    """Whether the condition became true within the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def describe(status: int) -> str:
    """An exit status as text."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

"""Processes on one machine: started, watched, started again, written down, and ended.

`up` says what is to run. Each program gets a session of its own, so that a Ctrl-C in the terminal reaches `up` alone
and everything is ended in order; what a program starts itself is in that session's process group and ends with it. All
are written down as they start, by pid and start time: a pid alone may be somebody else's by the time it is read.
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
"""Between two looks at processes; a Ctrl-C waits no longer than this to be seen."""

BACKOFF = Backoff(first_s=1.0, longest_s=30.0)
"""Before a program that ended by itself is started again."""

KILL_LIMIT_S = 5.0
"""A killed process is gone at once, unless it waits for a device that does not answer."""

STEADY_S = 60.0
"""A program that ran this long has recovered: its next pause is the first one again. A guess."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is to run: the command, its whole environment, where it runs, where its output goes.

    `grace_s` is the time that it gets between SIGTERM and SIGKILL. `once`: it ends by itself and is not started again.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    grace_s: float
    once: bool = False


@dataclass(frozen=True)
class Identity:
    """A process as it can be found again: `started` is when, in the system's own words."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has this pid now, or None."""
        started = start_time(pid)
        return None if started is None else cls(pid, started)

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started


@dataclass(frozen=True)
class Recorded:
    """A running process as it is written down (`run_record.py`)."""

    name: str
    pid: int
    started: str
    grace_s: float

    @property
    def is_alive(self) -> bool:
        return Identity(self.pid, self.started).is_alive


@dataclass(frozen=True)
class Notice:
    """A program ended by itself with `status` (negative: the signal); it starts again in `pause_s`, or not (None)."""

    program: Program
    status: int
    pause_s: float | None


class Endable(Protocol):
    """What `end_in_order` ends: one of ours, or one that an earlier run wrote down."""

    @property
    def pid(self) -> int: ...
    @property
    def grace_s(self) -> float: ...
    @property
    def is_alive(self) -> bool: ...


def start_time(pid: int) -> str | None:
    """When the process with this pid started, in words that no other process of that pid has; None: it does not run."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if boot_id.exists():
        try:
            # Field 2 is the program's name in brackets and may hold anything; field 3 is the state, 22 the start time.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{boot_id.read_text().strip()} {fields[19]}"
    said = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return None if not said or said[0].startswith("Z") else said[1].strip()


class Process:
    """One run of a program."""

    def __init__(self, program: Program) -> None:
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
        identity = Identity.of(self._popen.pid)
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
    def recorded(self) -> Recorded:
        return Recorded(self.program.name, self.pid, self._started, self.grace_s)


class Crew:
    """The programs of one `up`. `order` names them as they are to end; `write_down` is told who runs, so ordered."""

    def __init__(self, *, order: Sequence[str], write_down: Callable[[Sequence[Recorded]], None]) -> None:
        self._order = tuple(order)
        self._write_down = write_down
        self._running: dict[str, Process] = {}
        self._due: dict[str, tuple[float, Program]] = {}
        self._failures: dict[str, int] = {}

    def start(self, program: Program) -> None:
        """Start a program and keep it running from now on."""
        self._running[program.name] = Process(program)
        self._note()

    def is_running(self, name: str) -> bool:
        """As of the last look."""
        return name in self._running

    def look(self) -> list[Notice]:
        """Start again what is due, and tell what has ended by itself since the last look."""
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
                notices.append(Notice(process.program, status, pause))
        if notices:
            self._note()
        return notices

    def end(self, *, hurry: Callable[[], bool]) -> None:
        """End all, in order: returns when none is left. `hurry` is asked whether to stop waiting and kill."""
        self._due.clear()
        self.look()
        self._due.clear()
        end_in_order([self._running[name] for name in self._order if name in self._running], hurry=hurry)
        self._running.clear()
        self._note()

    def _pause(self, name: str, *, ran_s: float) -> float:
        failures = 1 if ran_s >= STEADY_S else self._failures.get(name, 0) + 1
        self._failures[name] = failures
        return BACKOFF.after(failures)

    def _note(self) -> None:
        self._write_down([self._running[name].recorded for name in self._order if name in self._running])


def end_in_order(processes: Sequence[Endable], *, hurry: Callable[[], bool]) -> None:
    """Ask each to end, wait for it, kill it with all that it started where it does not, and go on to the next."""
    for process in processes:
        if process.is_alive:
            _end(process, hurry)


def _end(process: Endable, hurry: Callable[[], bool]) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    wait_until(lambda: hurry() or not process.is_alive, limit_s=process.grace_s)
    kill_group(process.pid)
    wait_until(lambda: not process.is_alive, limit_s=KILL_LIMIT_S)


def kill_group(pid: int) -> None:
    """Kill what is left of the process group that began with `pid`.

    The system gives a pid to nobody else while a group of that number has members, so this is for right after its end.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], *, limit_s: float) -> bool:
    """Whether the condition came true within the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def describe(status: int) -> str:
    """An exit status in words."""
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

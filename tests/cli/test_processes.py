"""Processes: started, restarted, identified by pid and start time, and stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from darkroom_cli.local.processes import (
    ExitNotice,
    Process,
    ProcessIdentity,
    ProcessManager,
    ProcessSpec,
    RecordedProcess,
    stop_in_order,
)

from tests.waiting import eventually

ENDS_ON_SIGTERM = """
import pathlib, signal, sys
def end(*_):
    with pathlib.Path(sys.argv[2]).open("a") as file:
        file.write(sys.argv[1] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("waiting", flush=True)
while True:
    signal.pause()
"""

IGNORES_SIGTERM = """
import pathlib, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
signal.pause()
"""


DIES_BEFORE_ITS_CHILD = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]).pid, flush=True)
sys.exit(1)
"""


class SpecFactory:
    """Creates process specifications in a folder, and stores the records of running processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[list[str]] = []

    def spec(self, name: str, source: str, *arguments: str, grace_s: float = 30, once: bool = False) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            command=[sys.executable, "-c", source, *arguments],
            environment={"PATH": os.defpath},
            folder=self.folder,
            log=self.folder / f"{name}.log",
            grace_s=grace_s,
            once=once,
        )

    def manager(self, *order: str) -> ProcessManager:
        return ProcessManager(order=order, write_record=self._write)

    def said(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def _write(self, running: Sequence[RecordedProcess]) -> None:
        self.written.append([process.name for process in running])


@pytest.fixture
def factory(tmp_path: Path) -> SpecFactory:
    return SpecFactory(tmp_path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another origin."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def never() -> bool:
    return False


def notices_of(manager: ProcessManager, count: int) -> list[ExitNotice]:
    """The manager's notices until there are `count`."""
    notices: list[ExitNotice] = []

    def has_all() -> bool:
        notices.extend(manager.poll())
        return len(notices) >= count

    eventually(has_all, what=f"{count} notices")
    return notices


def test_a_process_is_known_by_its_pid_and_its_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    assert identity.is_alive
    assert not ProcessIdentity(identity.pid, "another time").is_alive
    sleeper.kill()
    sleeper.wait()
    assert ProcessIdentity.of(sleeper.pid) is None


def test_an_exited_process_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    sleeper.kill()
    sleeper.wait()
    assert not identity.is_alive


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    eventually(lambda: not identity.is_alive, what="the end of the process")
    process.wait()


def test_an_exited_process_is_restarted_after_a_pause_that_doubles(factory: SpecFactory) -> None:
    manager = factory.manager("failing")
    manager.start(factory.spec("failing", "print('here'); raise SystemExit(3)"))
    first, second = notices_of(manager, 2)
    assert (first.status, first.pause_s) == (3, 1.0)
    assert (second.status, second.pause_s) == (3, 2.0)
    assert factory.said("failing").count("here") == 2
    manager.stop(hurry=never)


def test_a_process_that_runs_once_is_not_restarted(factory: SpecFactory) -> None:
    manager = factory.manager("once")
    manager.start(factory.spec("once", "", once=True))
    (notice,) = notices_of(manager, 1)
    assert (notice.status, notice.pause_s) == (0, None)
    assert not manager.is_running("once")


def test_processes_are_stopped_in_the_given_order(factory: SpecFactory, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    manager = factory.manager("second", "third", "first")
    for name in ("first", "second", "third"):
        manager.start(factory.spec(name, ENDS_ON_SIGTERM, name, str(ended)))
    eventually(lambda: all(factory.said(name) for name in ("first", "second", "third")), what="all to start")
    manager.stop(hurry=never)
    assert ended.read_text().split() == ["second", "third", "first"]


def test_running_processes_are_recorded_in_the_order_of_shutdown(factory: SpecFactory, tmp_path: Path) -> None:
    manager = factory.manager("b", "a")
    for name in ("a", "b"):
        manager.start(factory.spec(name, ENDS_ON_SIGTERM, name, str(tmp_path / "ended")))
        eventually(partial(factory.said, name), what="it to start")
    manager.stop(hurry=never)
    assert factory.written == [["a"], ["b", "a"], []]


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(factory: SpecFactory) -> None:
    process = Process(factory.spec("stubborn", IGNORES_SIGTERM, grace_s=0.5))
    eventually(lambda: "\n" in factory.said("stubborn"), what="it to start")
    grandchild = ProcessIdentity.of(int(factory.said("stubborn")))
    assert grandchild is not None
    stop_in_order([process], hurry=never)
    assert process.status == -signal.SIGKILL
    eventually(lambda: not grandchild.is_alive, what="the end of its child")


def test_an_immediate_shutdown_does_not_wait(factory: SpecFactory) -> None:
    process = Process(factory.spec("stubborn", IGNORES_SIGTERM, grace_s=3600))
    eventually(lambda: "\n" in factory.said("stubborn"), what="it to start")
    stop_in_order([process], hurry=lambda: True)
    assert process.status == -signal.SIGKILL


def test_the_group_of_a_dead_process_is_killed_before_the_restart(factory: SpecFactory) -> None:
    manager = factory.manager("parent")
    manager.start(factory.spec("parent", DIES_BEFORE_ITS_CHILD))
    notices_of(manager, 1)
    pid = int(factory.said("parent").split()[0])
    eventually(lambda: ProcessIdentity.of(pid) is None, what="the end of the dead parent's child")
    manager.stop(hurry=never)


def test_ctrl_c_in_the_terminal_does_not_reach_the_processes(factory: SpecFactory, tmp_path: Path) -> None:
    process = Process(factory.spec("own", ENDS_ON_SIGTERM, "own", str(tmp_path / "ended")))
    assert os.getsid(process.pid) == process.pid
    stop_in_order([process], hurry=never)

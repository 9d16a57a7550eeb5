"""Processes: started, started again, known by pid and start time, ended in order and for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from darkroom_cli.local.processes import Crew, Identity, Notice, Process, Program, Recorded, end_in_order

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


class Hand:
    """Makes programs in a folder, and remembers what was written down of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[list[str]] = []

    def program(self, name: str, source: str, *arguments: str, grace_s: float = 30, once: bool = False) -> Program:
        return Program(
            name=name,
            command=[sys.executable, "-c", source, *arguments],
            environment={"PATH": os.defpath},
            folder=self.folder,
            log=self.folder / f"{name}.log",
            grace_s=grace_s,
            once=once,
        )

    def crew(self, *order: str) -> Crew:
        return Crew(order=order, write_down=self._write)

    def said(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def _write(self, running: Sequence[Recorded]) -> None:
        self.written.append([process.name for process in running])


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not ours to end."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def never() -> bool:
    return False


def notices_of(crew: Crew, count: int) -> list[Notice]:
    """What the crew tells until it has told `count` times."""
    notices: list[Notice] = []

    def told() -> bool:
        notices.extend(crew.look())
        return len(notices) >= count

    eventually(told, what=f"{count} notices")
    return notices


def test_a_process_is_known_by_its_pid_and_its_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    assert identity.is_alive
    assert not Identity(identity.pid, "another time").is_alive
    sleeper.kill()
    sleeper.wait()
    assert Identity.of(sleeper.pid) is None


def test_a_process_that_ended_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    sleeper.kill()
    sleeper.wait()
    assert not identity.is_alive


def test_a_process_that_has_ended_and_that_nobody_waited_for_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    identity = Identity.of(process.pid)
    assert identity is not None
    eventually(lambda: not identity.is_alive, what="the end of the process")
    process.wait()


def test_what_ends_by_itself_is_started_again_after_a_pause_that_doubles(hand: Hand) -> None:
    crew = hand.crew("failing")
    crew.start(hand.program("failing", "print('here'); raise SystemExit(3)"))
    first, second = notices_of(crew, 2)
    assert (first.status, first.pause_s) == (3, 1.0)
    assert (second.status, second.pause_s) == (3, 2.0)
    assert hand.said("failing").count("here") == 2
    crew.end(hurry=never)


def test_what_is_to_run_once_is_not_started_again(hand: Hand) -> None:
    crew = hand.crew("once")
    crew.start(hand.program("once", "", once=True))
    (notice,) = notices_of(crew, 1)
    assert (notice.status, notice.pause_s) == (0, None)
    assert not crew.is_running("once")


def test_all_end_in_the_order_that_was_asked_for(hand: Hand, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    crew = hand.crew("second", "third", "first")
    for name in ("first", "second", "third"):
        crew.start(hand.program(name, ENDS_ON_SIGTERM, name, str(ended)))
    eventually(lambda: all(hand.said(name) for name in ("first", "second", "third")), what="all to start")
    crew.end(hurry=never)
    assert ended.read_text().split() == ["second", "third", "first"]


def test_whoever_runs_is_written_down_in_the_order_of_the_end(hand: Hand, tmp_path: Path) -> None:
    crew = hand.crew("b", "a")
    for name in ("a", "b"):
        crew.start(hand.program(name, ENDS_ON_SIGTERM, name, str(tmp_path / "ended")))
        eventually(partial(hand.said, name), what="it to start")
    crew.end(hurry=never)
    assert hand.written == [["a"], ["b", "a"], []]


def test_what_ignores_sigterm_is_killed_with_all_that_it_started(hand: Hand) -> None:
    process = Process(hand.program("stubborn", IGNORES_SIGTERM, grace_s=0.5))
    eventually(lambda: "\n" in hand.said("stubborn"), what="it to start")
    grandchild = Identity.of(int(hand.said("stubborn")))
    assert grandchild is not None
    end_in_order([process], hurry=never)
    assert process.status == -signal.SIGKILL
    eventually(lambda: not grandchild.is_alive, what="the end of its child")


def test_who_is_in_a_hurry_does_not_wait_for_the_grace(hand: Hand) -> None:
    process = Process(hand.program("stubborn", IGNORES_SIGTERM, grace_s=3600))
    eventually(lambda: "\n" in hand.said("stubborn"), what="it to start")
    end_in_order([process], hurry=lambda: True)
    assert process.status == -signal.SIGKILL


def test_what_a_dead_process_left_in_its_group_ends_before_it_is_started_again(hand: Hand) -> None:
    crew = hand.crew("parent")
    crew.start(hand.program("parent", DIES_BEFORE_ITS_CHILD))
    notices_of(crew, 1)
    pid = int(hand.said("parent").split()[0])
    eventually(lambda: Identity.of(pid) is None, what="the end of the dead parent's child")
    crew.end(hurry=never)


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_programs(hand: Hand, tmp_path: Path) -> None:
    process = Process(hand.program("own", ENDS_ON_SIGTERM, "own", str(tmp_path / "ended")))
    assert os.getsid(process.pid) == process.pid
    end_in_order([process], hurry=never)

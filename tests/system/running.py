"""A complete system for tests: `darkroom up` in a separate folder, with stand-in models, on a free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from darkroom_cli.local.processes import RecordedProcess
from darkroom_cli.local.run_record import RunRecord

from tests.darkroom_command import command, darkroom, environment
from tests.waiting import eventually

START_LIMIT_S = 300
"""Making the stand-ins and importing torch twice takes 15 s on two idle cores; the machine may be busy."""

END_LIMIT_S = 60
"""`darkroom up` stops within about 15 s."""


class System:
    """One `darkroom up`. `ready` is its first line of output (`darkroom up --json`)."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.ready: dict[str, Any] = {}
        self.variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def start(self, *arguments: str) -> None:
        """Start it, and return when it is ready; fails with its output if it exits before."""
        process = self.launch(*arguments)
        output = self.folder / "up.out"
        eventually(
            lambda: "\n" in output.read_text() or process.poll() is not None,
            what="`darkroom up` to be ready",
            deadline_s=START_LIMIT_S,
        )
        first = output.read_text().partition("\n")[0]
        assert first, self.words
        self.ready = json.loads(first)
        assert self.ready["event"] == "ready", self.words

    def launch(self, *arguments: str, as_json: bool = True) -> subprocess.Popen[bytes]:
        """Start it in a new session, as in a terminal, and return at once."""
        with (self.folder / "up.out").open("wb") as out, (self.folder / "up.err").open("wb") as err:
            self._process = subprocess.Popen(
                command("up", "--port", "0", *(["--json"] if as_json else []), *arguments),
                cwd=self.folder,
                env=environment(**self.variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return self._process

    @property
    def words(self) -> str:
        """Its stderr: with --json errors only."""
        return (self.folder / "up.err").read_text()

    @property
    def processes(self) -> dict[str, RecordedProcess]:
        """The running processes, by name."""
        record = RunRecord.read(self.folder / ".darkroom" / "run.json")
        return {process.name: process for process in record.processes} if record else {}

    def is_back(self, dead: RecordedProcess) -> bool:
        """Whether another process has replaced this one."""
        return self.processes.get(dead.name, dead) != dead

    def signal(self, number: signal.Signals) -> int:
        """Send it to the process group of `up`, as a terminal does, and return the exit status."""
        assert self._process is not None
        os.killpg(self._process.pid, number)
        return self._process.wait(END_LIMIT_S)

    def end(self) -> None:
        """Stop it in any state."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGTERM)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `darkroom ARGUMENTS` in its folder, with its URL."""
        return darkroom(arguments, folder=self.folder, DARKROOM_URL=self.url)

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in its folder."""
        return subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=END_LIMIT_S,
            check=False,
        )

    def submit(self, **parameters: Any) -> str:
        """Submit a job and return its id at once."""
        response = httpx.post(f"{self.url}/api/v1/generation-jobs/", json=parameters, trust_env=False)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The current view of the job."""
        response = httpx.get(f"{self.url}/api/v1/generation-jobs/{job_id}", trust_env=False)
        assert response.status_code == 200, response.text
        view: dict[str, Any] = response.json()
        return view

    def wait_for(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until the job is in one of the states, and return its view."""
        eventually(lambda: self.job(job_id)["state"] in states, what=f"the job {job_id} to be {' or '.join(states)}")
        return self.job(job_id)


def nothing_is_left_of(processes: Sequence[RecordedProcess]) -> None:
    """Wait until the processes and their children are gone; the kernel takes a moment to remove killed ones."""
    eventually(lambda: not left_of(processes), what="all started processes are gone")


def left_of(processes: Sequence[RecordedProcess]) -> list[str]:
    """The names of processes that still run, or whose process group still has members."""
    left = []
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 0)
            left.append(process.name)
        if process.is_alive:
            left.append(process.name)
    return left

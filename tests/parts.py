"""darkroom's parts as real processes: started as an operator starts them, ended by their own pid."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from darkroom.cloudevents.proofs import Proofs
from pydantic import SecretStr

from tests.ports import free_port
from tests.waiting import eventually

ROOTS = ("core", "functions", "operator", "worker-images", "courier", "cli")
STOP_DEADLINE_S = 60

LINK_KEY = "the tests' own key, of 32 characters or more"
WEBHOOK_KEY = "the tests' own key for webhooks with 32 characters or more"
PROOF_KEY = "the tests' own key for proofs of 32 characters or more"
PUBLIC_URL = "http://darkroom.test"

PROOFS = Proofs((SecretStr(PROOF_KEY),))
"""Proves events as the parts of the tests do."""


def environment(redis_url: str, namespace: str, **more: str) -> dict[str, str]:
    """The settings that every part needs, and `more`; none of this process' own settings."""
    root = Path(__file__).resolve().parent.parent
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(str(root / name) for name in ROOTS),
        "DARKROOM_REDIS_URL": redis_url,
        "DARKROOM_NAMESPACE": namespace,
        "DARKROOM_PUBLIC_URL": PUBLIC_URL,
        "DARKROOM_AUTH": "none",
        "DARKROOM_LINK_KEY": LINK_KEY,
        "DARKROOM_WEBHOOK_KEYS": WEBHOOK_KEY,
        "DARKROOM_PROOF_KEYS": PROOF_KEY,
        "DARKROOM_STORE": (scratch() / f"{namespace}-store").as_uri(),
        "DARKROOM_DATABASE_URL": f"sqlite+aiosqlite:///{scratch() / namespace}.sqlite",
        **more,
    }


def hooked(environment: Mapping[str, str], folder: Path, code: str) -> dict[str, str]:
    """The environment of a part that runs `code` first: Python imports a module named sitecustomize by itself."""
    (folder / "sitecustomize.py").write_text(code)
    return {**environment, "PYTHONPATH": os.pathsep.join((str(folder), environment["PYTHONPATH"]))}


CLOCK = """
import time
now, now_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: now() + {seconds}, lambda: now_ns() + {seconds} * 10**9
"""


def ahead(folder: Path, *, seconds: int) -> str:
    """The `PYTHONPATH` of a part whose clock is so many seconds ahead; below 0, behind."""
    return hooked(environment("", ""), folder, CLOCK.format(seconds=seconds))["PYTHONPATH"]


@cache
def scratch() -> Path:
    """A folder for files without a folder of their own; it is deleted after the tests."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Part:
    """`python -m <module> <arguments>` with this environment; `log` receives its output."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self.environment = dict(environment)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it has exited."""
        return self.process.wait(STOP_DEADLINE_S)

    def stop(self) -> int | None:
        """SIGTERM, then the exit status; None if it was never started."""
        if self._process is None:
            return None
        if self.is_running:
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its complete log lines of this event so far."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]


class Functions(Part):
    """The process of one function, or of `all` behind one port; ready once `start` returns."""

    def __init__(self, name: str, *, environment: Mapping[str, str], log: Path) -> None:
        self.port = free_port()
        super().__init__("darkroom_functions.serve", name, environment={**environment, "PORT": str(self.port)}, log=log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def start(self) -> None:
        super().start()
        eventually(self._is_ready, what=f"readiness of {self._command}, whose log is {self.log}")

    def _is_ready(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"it ended: {self.log.read_text()}")
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

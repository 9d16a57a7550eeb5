"""The operator as a real process, with only the rights of its service account."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.operator.control_plane import ControlPlane
from tests.parts import environment, hooked
from tests.ports import free_port
from tests.waiting import eventually

STOP_DEADLINE_S = 60


class RunningOperator:
    """One operator of the pools in `namespace`, with the ledger at `redis_url`."""

    def __init__(
        self, config: Path, log: Path, *, namespace: str, redis_url: str, prefix: str, **settings: str
    ) -> None:
        self.port = free_port()
        self._log = log
        self._environment = environment(
            redis_url,
            prefix,
            KUBECONFIG=str(config),
            DARKROOM_WATCH_NAMESPACE=namespace,
            DARKROOM_PROBE_PORT=str(self.port),
            **{f"DARKROOM_{name.upper()}": value for name, value in settings.items()},
        )
        self._process: subprocess.Popen[bytes] | None = None

    def sabotage(self, folder: Path, program: str) -> None:
        """Run `program` in its process before it starts: to remove a protection, which the tests must detect."""
        self._environment = hooked(self._environment, folder, program)

    def start(self) -> None:
        """Start the process. It may wait for the Lease."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "darkroom_operator"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def lead(self) -> None:
        """Start the process, and return once it holds the Lease and has listed all objects."""
        self.start()
        eventually(self.is_leading, what="the operator leads")

    def is_leading(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"the operator ended:\n{self.said()}")
        return self.status_of("/readyz") == 200

    def has_ended(self) -> bool:
        """Whether it has exited by itself."""
        return self._process is not None and self._process.poll() is not None

    def status_of(self, path: str) -> int | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
                status: int = reply.status
                return status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Stop it by its pid. Returns its exit status, or None if it was not running."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        if process.poll() is None:
            os.kill(process.pid, number)
        try:
            return process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def operator_config(control_plane: ControlPlane, folder: Path, *, namespace: str, server: str | None) -> Path:
    """A kubeconfig with the token of the operator's service account."""
    token = control_plane.token_of(namespace, "darkroom-operator")
    path = folder / "operator.kubeconfig"
    path.write_text(control_plane.kubeconfig(token, server=server, namespace=namespace))
    return path

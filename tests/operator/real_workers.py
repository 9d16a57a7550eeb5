"""Real worker processes in the pods of the stand-in for the kubelet: one `python -m darkroom_worker` per pod."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.parts import Part, hooked
from tests.ports import free_port

# A worker reports the name of its host as that of its pod.
POD_NAME_HOOK = """
import os, platform

platform.node = lambda: os.environ["TEST_POD"]
"""


class RealWorkers:
    """Starts and stops workers. `environment` has the variables that are not in the pod's template."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._folder = folder
        hook = folder / "hook"
        hook.mkdir()
        self._environment = hooked(environment, hook, POD_NAME_HOOK)
        self.running: dict[str, Part] = {}
        self._signalled: set[str] = set()
        self.started = self.ended = 0

    def begin(self, pod: Mapping[str, Any]) -> None:
        name = pod["metadata"]["name"]
        container = pod["spec"]["containers"][0]
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        # Pods have addresses of their own; these share one.
        probes = {"DARKROOM_HOST": "127.0.0.1", "DARKROOM_PROBE_PORT": str(free_port())}
        environment = {**self._environment, **variables, **probes, "TEST_POD": name}
        worker = Part("darkroom_worker", environment=environment, log=self._folder / f"{name}.log")
        worker.start()
        self.running[name] = worker
        self.started += 1

    def end(self, name: str) -> bool:
        """Send SIGTERM the first time, as a kubelet does. Returns whether the process has exited."""
        worker = self.running[name]
        if name not in self._signalled:
            self._signalled.add(name)
            self.ended += 1
            if worker.is_running:
                worker.signal(signal.SIGTERM)
        return not worker.is_running

    def stop(self) -> None:
        for worker in self.running.values():
            if worker.is_running:
                worker.signal(signal.SIGTERM)
        for worker in self.running.values():
            worker.stop()

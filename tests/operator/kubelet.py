"""A stand-in for the kubelet: it reports the status of pods, and calls `Workers` to start and stop their containers.

The API server's pods get a node, run, and are ready where their readiness gates are open; one that is being deleted
goes when what ran in it has ended. What the test did with Ready itself stays, as a kubelet's view follows the gates.
"""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from tests.operator.control_plane import STRATEGIC, ControlPlane

LOOK_EVERY_S = 0.1
NODE = "a-node"


class Workers(Protocol):
    """The containers of the pods."""

    def begin(self, pod: Mapping[str, Any]) -> None:
        """Start the pod's container."""

    def end(self, name: str) -> bool:
        """Stop the pod's container. Called in each round until it returns that nothing runs any more."""


class NoWorkers:
    """Pods without containers."""

    def begin(self, pod: Mapping[str, Any]) -> None:
        pass

    def end(self, name: str) -> bool:
        return True


class Kubelet:
    """Polls the namespace's pods in a thread."""

    def __init__(self, control_plane: ControlPlane, namespace: str, *, of_pool: str | None = None) -> None:
        self._plane, self._namespace = control_plane, namespace
        self._query = "" if of_pool is None else f"?labelSelector=darkroom.dev/pool={of_pool}"
        self.workers: Workers = NoWorkers()
        self._begun: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self.failure: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for pod in self._plane.ask("GET", self._path + self._query)["items"]:
                    self._tend(pod)
            except (OSError, urllib.error.HTTPError):
                pass  # the API server is away, or a pod is: the next look sees
            except Exception as error:  # raised by `stop`, in the thread of the test
                self.failure = error
                return
            self._stopping.wait(LOOK_EVERY_S)

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}/pods"

    def _tend(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if pod["metadata"].get("deletionTimestamp"):
            if name not in self._begun or self.workers.end(name):
                self._plane.ask("DELETE", f"{self._path}/{name}", {"gracePeriodSeconds": 0})
            return
        if not pod["spec"].get("nodeName"):
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
            }
            self._plane.ask("POST", f"{self._path}/{name}/binding", binding)
        if name not in self._begun and pod.get("status", {}).get("phase") == "Running":
            # A look later: a worker needs longer to start than its pod to be said to run.
            self._begun.add(name)
            self.workers.begin(pod)
        self._report(pod)

    def _report(self, pod: dict[str, Any]) -> None:
        """Set the pod to running, and to ready if its readiness gates are open."""
        status = pod.get("status", {})
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
        gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", [])]
        ready = "True" if all(conditions.get(gate) == "True" for gate in gates) else "False"
        if status.get("phase") == "Running" and conditions.get("Ready") == ready:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        reported = [
            {"type": "Ready", "status": ready, "lastTransitionTime": now},
            {"type": "ContainersReady", "status": "True", "lastTransitionTime": now},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
        ]
        body = {"status": {"phase": "Running", "startTime": status.get("startTime", now), "conditions": reported}}
        self._plane.ask("PATCH", f"{self._path}/{pod['metadata']['name']}/status", body, kind=STRATEGIC)

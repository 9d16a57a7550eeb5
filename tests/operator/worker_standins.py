"""Stand-ins for workers: they register in the ledger like a worker of a pod, and the test claims jobs for them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.calls import WorkerState
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect


class StandIns:
    """One stand-in for each pod, named after it. `Kubelet` calls `begin` and `end`."""

    def __init__(self, redis_url: str, prefix: str) -> None:
        self._redis_url, self._prefix = redis_url, prefix
        self._local = threading.local()
        self.pods: dict[str, str] = {}
        self.busy: dict[str, tuple[str, str]] = {}

    @property
    def _ledger(self) -> Ledger:
        if not hasattr(self._local, "ledger"):  # a `Ledger` is one thread's
            self._local.ledger = Ledger(connect(self._redis_url), self._prefix)
        ledger: Ledger = self._local.ledger
        return ledger

    def begin(self, pod: Mapping[str, Any]) -> None:
        name = pod["metadata"]["name"]
        self.pods[name] = pod["metadata"]["labels"]["darkroom.dev/pool"]
        self._register(name, WorkerState.READY)

    def end(self, name: str) -> bool:
        """Drain like a worker on SIGTERM. Returns whether nothing runs any more."""
        if name in self.busy:
            return False
        if self.pods.get(name):
            self._register(name, WorkerState.GONE)
            self.pods.pop(name)
        return True

    def heartbeat(self) -> None:
        for name in list(self.pods):
            self._register(name, WorkerState.READY)

    def fail(self, pod: str) -> None:
        """Make the stand-in of the pod faulty."""
        self._register(pod, WorkerState.FAULTY)

    def claim(self, pod: str, job_id: str) -> str | None:
        """Claim the job for the stand-in of the pod. Returns the reason why it was dropped, or None."""
        token = uuid4().hex
        claim = self._ledger.run(calls.claim(job_id, token=token, worker=pod))
        if claim.attempt is None:
            return claim.dropped
        self.busy[pod] = (job_id, token)
        return None

    def complete(self, pod: str) -> None:
        job_id, token = self.busy.pop(pod)
        data = {"artifacts": [], "record": {}, "model_served": "", "attempt": 1, "worker": pod, "run_ms": 1}
        self._ledger.run(calls.finish(job_id, token=token, outcome=State.COMPLETED, data=data))

    def _register(self, name: str, state: WorkerState) -> None:
        pool = self.pods[name]
        self._ledger.run(calls.register_worker(name, pool=pool, state=state, pod=name, models=[pool], ttl_ms=600_000))

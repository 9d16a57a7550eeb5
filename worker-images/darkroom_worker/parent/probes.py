"""The responses of the worker's parent process to probes; `core/darkroom/probes.py` serves them.

`/healthz`: 200 while the supervisor (`supervisor.py`) completes its rounds, also while Redis is unavailable; otherwise
503, and Kubernetes restarts the pod. A faulty worker is alive. `/readyz`: 200 while the ledger has the worker as ready
or busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from darkroom.probes import ProbeResponse

STALL_S = 30.0
"""A supervisor without a round for so long hangs: a round takes some 10 s at most, whatever Redis does."""


class Supervised(Protocol):
    """The part of the supervisor that the probes read."""

    @property
    def last_round_at(self) -> float:
        """When the last round completed, by the monotonic clock."""

    @property
    def accepts_jobs(self) -> bool:
        """Whether the ledger confirmed lately that the worker is ready or busy."""


def respond(path: str, supervisor: Supervised, *, clock: Callable[[], float] = time.monotonic) -> ProbeResponse:
    """The response to a probe."""
    if path == "/healthz":
        silent_s = clock() - supervisor.last_round_at
        if silent_s > STALL_S:
            return ProbeResponse.of_json(503, {"status": "stalled", "seconds": round(silent_s)})
        return ProbeResponse.of_json(200, {"status": "ok"})
    if path == "/readyz":
        if supervisor.accepts_jobs:
            return ProbeResponse.of_json(200, {"status": "ok"})
        return ProbeResponse.of_json(503, {"status": "takes no jobs"})
    return ProbeResponse.of_json(404, {"status": "not found"})

"""Responses of the worker's parent process to probes; `core/darkroom/probes.py` serves them.

`/healthz`: 200 while the watch (`registration.py`) completes its rounds, even if Redis is unavailable; otherwise 503,
and the pod is restarted. A faulty worker is alive. `/readyz`: 200 while the ledger knows that the worker accepts jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from darkroom.probes import ProbeResponse

STALL_S = 30.0
"""A watch that has completed no round for so long hangs: a round takes some 10 s at most."""


class Supervised(Protocol):
    """The state that the responses report."""

    @property
    def went_round_at(self) -> float:
        """The time of the watch's last round, by the monotonic clock."""

    @property
    def takes_jobs(self) -> bool:
        """Whether the ledger confirmed lately that the worker is ready or busy."""


def respond(path: str, watch: Supervised, *, clock: Callable[[], float] = time.monotonic) -> ProbeResponse:
    """The response to a probe."""
    if path == "/healthz":
        silent_s = clock() - watch.went_round_at
        if silent_s > STALL_S:
            return ProbeResponse.of_json(503, {"status": "stalled", "seconds": round(silent_s)})
        return ProbeResponse.of_json(200, {"status": "ok"})
    if path == "/readyz":
        if watch.takes_jobs:
            return ProbeResponse.of_json(200, {"status": "ok"})
        return ProbeResponse.of_json(503, {"status": "takes no jobs"})
    return ProbeResponse.of_json(404, {"status": "not found"})

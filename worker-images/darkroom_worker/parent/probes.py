"""The worker's answers to probes, from its parent process: `core/darkroom/probes.py` serves them in a thread.

`/healthz`: 200 while the watch (`registration.py`) goes round, even if only to find that Redis is away; else 503, and
the pod is restarted. A worker that is out as faulty is alive. `/readyz`: 200 while the ledger knows that it takes jobs.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from darkroom import probes
from darkroom.probes import Answer

STALL_S = 30.0
"""A watch that has not gone round for so long hangs: a round takes some 10 s at most, whatever Redis does."""


class Supervised(Protocol):
    """What the answers are made of."""

    @property
    def went_round_at(self) -> float:
        """When the watch last went round, by the monotonic clock."""

    @property
    def takes_jobs(self) -> bool:
        """Whether the ledger confirmed lately that the worker is ready or busy."""


def answer(path: str, watch: Supervised, *, clock: Callable[[], float] = time.monotonic) -> Answer:
    """The answer to a probe."""
    if path == "/healthz":
        silent_s = clock() - watch.went_round_at
        if silent_s > STALL_S:
            return Answer.of(503, {"status": "stalled", "seconds": round(silent_s)})
        return Answer.of(200, {"status": "ok"})
    if path == "/readyz":
        return Answer.of(200, {"status": "ok"}) if watch.takes_jobs else Answer.of(503, {"status": "takes no jobs"})
    return Answer.of(404, {"status": "not found"})


class ProbeServer(threading.Thread):
    """Answers probes on a socket that listens, until the process ends."""

    def __init__(self, watch: Supervised, listening: socket.socket) -> None:
        super().__init__(name="probes", daemon=True)
        self._watch, self._listening = watch, listening

    def run(self) -> None:
        with closing(self._listening):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        async def answering(path: str) -> Answer:
            return answer(path, self._watch)

        async with probes.served(answering, listening=self._listening):
            await asyncio.Event().wait()

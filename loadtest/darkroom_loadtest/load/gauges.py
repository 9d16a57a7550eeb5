"""The backlog and the workers of all pools, read from the ledger each second during a run.

`samples.py` reads memory and descriptors. Both need access to Redis, as `darkroom audit` does.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from darkroom.errors import DarkroomError
from darkroom.ledger import calls
from darkroom.ledger.client import Ledger
from darkroom.logs import logger
from redis.exceptions import RedisError

EVERY_S = 1.0

_log = logger(__name__)


@dataclass(frozen=True)
class Gauge:
    """The sum of all pools at `at` (seconds since the epoch). `backlog` jobs wait, `workers` are ready or busy."""

    at: float
    backlog: int
    running: int
    workers: int
    starting: int


class Gauges:
    """A context manager that reads in a thread. While Redis is unavailable there is a gap."""

    def __init__(self, client: Any, namespace: str) -> None:
        self.read: list[Gauge] = []
        self._client = client
        self._ledger = Ledger(client, namespace)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gauges", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                gauge = self._read_gauge()
            except Exception:  # one missing reading must not stop the later ones
                _log.exception("gauge_failed")
            else:
                self.read += [] if gauge is None else [gauge]
            if self._over.wait(EVERY_S):
                return

    def _read_gauge(self) -> Gauge | None:
        try:
            names = [name.decode() for name in self._client.smembers(self._ledger.keys.pools)]
            readings = [self._ledger.run(calls.observe(name)) for name in names]
        except (DarkroomError, RedisError):
            return None
        return Gauge(
            at=time.time(),
            backlog=sum(each.waiting + each.dispatched for each in readings),
            running=sum(each.running for each in readings),
            workers=sum(each.idle + each.busy + each.marked for each in readings),
            starting=sum(each.starting for each in readings),
        )

"""The same kills on stock Celery (`baselines.stock_celery`), as a baseline: how many of its jobs never finish.

There is no lease to wait for, so kills are more frequent and outages of Redis shorter. A job counts as accepted when
Celery's call has returned. An unfinished job at the end is still in the queue, or stranded (in `unacked`, for the
visibility timeout of an hour), or lost.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from baselines.stock_celery import DONE_VARIABLE, QUEUE, TASK, make_app
from darkroom_cli.local import redis_server
from kombu.exceptions import OperationalError

from darkroom_loadtest.chaos.faults import FaultOrder, FaultSignal, InjectedFault
from darkroom_loadtest.chaos.fleet import WorkerFleet
from darkroom_loadtest.measurement.rig import Rig

WORKERS = 5
JOB_S = 0.02
KILL_EVERY_S = 1.5
OUTAGE_S = 5.0
TIMEOUT_S = 120.0
"""After this time the run is judged; the outcome has the number of kills."""

QUIET_S = 5.0
"""After this long without a finished job the run is over."""

POLL_S = 0.01


@dataclass(frozen=True)
class StockOutcome:
    """The outcome of the jobs. `again`: the number of repeated executions."""

    jobs: int
    lost: int
    stranded: int
    again: int
    kills: int

    @property
    def in_words(self) -> str:
        return (
            f"stock Celery with acks_late: {self.jobs} jobs, {self.kills} kills at the same points, Redis down twice "
            f"for {OUTAGE_S:g} s: {self.lost} lost, {self.stranded} stranded for an hour, {self.again} run again"
        )


def run_stock_storm(rig: Rig, *, jobs: int, faults: Sequence[FaultOrder]) -> StockOutcome:
    """Run the kills and return the outcome."""
    return _StockStorm(rig, jobs, [order for order in faults if order.kind is FaultSignal.KILL]).run()


class _StockStorm:
    def __init__(self, rig: Rig, jobs: int, orders: Sequence[FaultOrder]) -> None:
        self._rig, self._jobs, self._waiting = rig, jobs, list(orders)
        folder = rig.folder / "stock"
        folder.mkdir()
        self._done = folder / "done"
        self._done.touch()
        self._app = make_app(rig.redis_url)
        own = {DONE_VARIABLE: str(self._done)}
        self._fleet = WorkerFleet(rig, "baselines.stock_celery", size=WORKERS, own=own, stop_s=0, folder=folder)
        self._accepted: set[str] = set()
        self._outages = 0
        self._outages_due = [len(self._waiting) * 2 // 3, len(self._waiting) // 3]

    def run(self) -> StockOutcome:
        deadline = time.monotonic() + TIMEOUT_S
        kill_at = time.monotonic() + KILL_EVERY_S
        pace = self._jobs / (KILL_EVERY_S * max(1, len(self._waiting)))
        while time.monotonic() < deadline:
            if not self._waiting and self._fleet.is_settled and len(self._accepted) >= self._jobs:
                break
            self._submit()
            self._fleet.poll(time.time_ns() // 1_000_000)
            if self._waiting and time.monotonic() > kill_at and self._fleet.order(self._waiting[-1]):
                self._waiting.pop()
                kill_at += KILL_EVERY_S
            if self._outages_due and len(self._waiting) <= self._outages_due[0]:
                self._outages_due.pop(0)
                self._kill_redis()
            time.sleep(max(POLL_S, 1 / pace))
        self._settle(deadline + TIMEOUT_S)
        return self._outcome()

    def _submit(self) -> None:
        job_id = str(uuid4())
        try:
            self._app.send_task(TASK, args=[JOB_S], task_id=job_id)
        except OperationalError:
            return
        self._accepted.add(job_id)

    def _kill_redis(self) -> None:
        process = self._rig.redis_process
        os.killpg(process.pid, signal.SIGKILL)
        time.sleep(OUTAGE_S)
        again = self._rig.restart(process)
        self._rig.wait(lambda: redis_server.serves(self._rig.redis_url), what=again)

    def _settle(self, deadline: float) -> None:
        """Wait until no more jobs finish."""
        size, quiet_since = -1, time.monotonic()
        while time.monotonic() < min(quiet_since + QUIET_S, deadline):
            self._fleet.poll(time.time_ns() // 1_000_000)
            if self._done.stat().st_size != size:
                size, quiet_since = self._done.stat().st_size, time.monotonic()
            time.sleep(POLL_S)

    def _outcome(self) -> StockOutcome:
        done = self._done.read_text().split()
        redis = self._rig.redis
        queued = set(_ids(json.loads(message) for message in redis.lrange(QUEUE, 0, -1)))
        unacked = set(_ids(json.loads(entry)[0] for entry in redis.hvals("unacked")))
        missing = self._accepted - set(done) - queued
        faults: list[InjectedFault] = self._fleet.faults
        return StockOutcome(
            jobs=len(self._accepted),
            lost=len(missing - unacked),
            stranded=len(missing & unacked),
            again=len(done) - len(set(done)),
            kills=len(faults),
        )


def _ids(messages: Iterable[Any]) -> Iterable[str]:
    for message in messages:
        yield message["headers"]["id"]

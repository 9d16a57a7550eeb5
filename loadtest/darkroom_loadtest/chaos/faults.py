"""Fault injection: the points of a job's processing at which a worker is killed or stopped.

The chaos run (`storm.py`) writes an order into a worker's file. The worker, which is patched for this purpose
(`faulty_worker.py`), reads the file at each of these points. At the ordered point it logs the fault and its job outside
Redis, and sends the signal to its own process group.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

ORDER_VARIABLE = "CHAOS_ORDER"
"""The path of the file with this worker's order."""

LOG_VARIABLE = "CHAOS_FAULTS"
"""The path of the log of faults of all workers, a line each."""


class FaultPoint(StrEnum):
    """The points of a job's processing by a worker, in order.

    `POPPED`: BRPOP returned the message, which is nowhere else. `DELIVERED`: the child has the message and has not
    claimed the job. `DEVELOPED`: the engine is done, nothing is stored. `STORED`: the artifact is stored. `FINISHED`:
    the ledger has recorded the end. `ACKNOWLEDGING`: the parent is about to acknowledge the message.
    """

    POPPED = "popped"
    DELIVERED = "delivered"
    DEVELOPED = "developed"
    STORED = "stored"
    FINISHED = "finished"
    ACKNOWLEDGING = "acknowledging"


UNCLAIMED = frozenset({FaultPoint.POPPED, FaultPoint.DELIVERED})
HELD = frozenset({FaultPoint.DEVELOPED, FaultPoint.STORED})
"""Points at which the job is claimed and unfinished: only there does a fault cost an attempt."""


class FaultSignal(StrEnum):
    """The signal to the worker: SIGKILL, or SIGSTOP until the chaos run resumes it."""

    KILL = "kill"
    STOP = "stop"


class PoisonKind(StrEnum):
    """A job's prompt that makes every attempt raise, or kill the worker's child."""

    RAISE = "raise"
    KILL_CHILD = "kill the child"


SIGNALS = {FaultSignal.KILL: signal.SIGKILL, FaultSignal.STOP: signal.SIGSTOP}


@dataclass(frozen=True)
class FaultOrder:
    """A fault to inject into a worker at the next job that passes the point."""

    kind: FaultSignal
    point: FaultPoint

    def give(self, file: Path) -> None:
        """Write the order to a worker's file atomically."""
        draft = file.with_suffix(".draft")
        draft.write_text(f"{self.kind} {self.point}")
        draft.replace(file)

    @classmethod
    def read(cls, file: Path) -> FaultOrder | None:
        """The order in this file; None if there is none."""
        try:
            kind, point = file.read_text().split()
        except FileNotFoundError:
            return None
        return cls(FaultSignal(kind), FaultPoint(point))


@dataclass(frozen=True)
class InjectedFault:
    """A fault of the worker whose first process has the id `worker`, with this job, at `at_ms` (epoch)."""

    kind: FaultSignal
    point: FaultPoint
    job: str
    worker: int
    at_ms: int


def read_faults(log: Path) -> list[InjectedFault]:
    """All faults so far, in order."""
    if not log.exists():
        return []
    faults = []
    for line in log.read_text().splitlines():
        raw = json.loads(line)
        faults.append(
            InjectedFault(FaultSignal(raw["kind"]), FaultPoint(raw["point"]), raw["job"], raw["worker"], raw["at_ms"])
        )
    return faults


def pass_point(point: FaultPoint, job_id: str) -> None:
    """Mark that a job passes a point in this process, and inject the fault that was ordered there."""
    file = Path(os.environ[ORDER_VARIABLE])
    order = FaultOrder.read(file)
    if order is None or order.point is not point:
        return
    file.unlink()
    fault = InjectedFault(order.kind, point, job_id, os.getpgrp(), time.time_ns() // 1_000_000)
    with Path(os.environ[LOG_VARIABLE]).open("a") as log:
        log.write(json.dumps(asdict(fault)) + "\n")
    os.killpg(os.getpgrp(), SIGNALS[order.kind])

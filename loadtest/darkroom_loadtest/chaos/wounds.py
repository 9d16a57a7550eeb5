"""Wounds: where on a job's way the storm strikes a worker, and how the two sides speak of it.

The storm (`storm.py`) writes an order into a worker's own file. The worker, whose code is patched for that
(`faulty_worker.py`), looks there whenever it passes one of these points; at the one that is named it writes down what
happens to which job, outside Redis, and strikes its own process group: a kill leaves it no time for anything else.
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
"""Names the file in which this worker finds its order."""

LOG_VARIABLE = "CHAOS_WOUNDS"
"""Names the file to which all workers add their wounds, a line each."""


class Point(StrEnum):
    """A moment of a job's way through a worker, in their order.

    `POPPED`: BRPOP has answered, and nothing else knows of the message. `DELIVERED`: the child has it and has not
    claimed the job. `DEVELOPED`: the engine is done, nothing is stored. `STORED`: the artifact is. `FINISHED`: the
    ledger has taken the end. `ACKNOWLEDGING`: the parent is about to acknowledge the message.
    """

    POPPED = "popped"
    DELIVERED = "delivered"
    DEVELOPED = "developed"
    STORED = "stored"
    FINISHED = "finished"
    ACKNOWLEDGING = "acknowledging"


UNCLAIMED = frozenset({Point.POPPED, Point.DELIVERED})
HELD = frozenset({Point.DEVELOPED, Point.STORED})
"""Where the job is claimed and has not ended: a wound there costs it one attempt, anywhere else none."""


class Blow(StrEnum):
    """What happens to the worker: SIGKILL, or SIGSTOP until the storm lets it go on."""

    KILL = "kill"
    STOP = "stop"


class Harm(StrEnum):
    """A job's prompt by which its engine run raises, or kills the worker's child, at every attempt."""

    RAISE = "raise"
    KILL_CHILD = "kill the child"


SIGNALS = {Blow.KILL: signal.SIGKILL, Blow.STOP: signal.SIGSTOP}


@dataclass(frozen=True)
class Order:
    """What is to happen to a worker, with the next job that passes the point."""

    blow: Blow
    point: Point

    def give(self, file: Path) -> None:
        """Hand it to the worker whose file this is, whole or not at all."""
        draft = file.with_suffix(".draft")
        draft.write_text(f"{self.blow} {self.point}")
        draft.replace(file)

    @classmethod
    def read(cls, file: Path) -> Order | None:
        """The order that waits in this file."""
        try:
            blow, point = file.read_text().split()
        except FileNotFoundError:
            return None
        return cls(Blow(blow), Point(point))


@dataclass(frozen=True)
class Wound:
    """What happened: to the worker whose first process has the id `worker`, with this job, at `at_ms` (epoch)."""

    blow: Blow
    point: Point
    job: str
    worker: int
    at_ms: int


def read_wounds(log: Path) -> list[Wound]:
    """All wounds so far, in their order."""
    if not log.exists():
        return []
    wounds = []
    for line in log.read_text().splitlines():
        raw = json.loads(line)
        wounds.append(Wound(Blow(raw["blow"]), Point(raw["point"]), raw["job"], raw["worker"], raw["at_ms"]))
    return wounds


def pass_point(point: Point, job_id: str) -> None:
    """A job passes a point in this process. Where that was ordered, this is the last that the process does for now."""
    file = Path(os.environ[ORDER_VARIABLE])
    order = Order.read(file)
    if order is None or order.point is not point:
        return
    file.unlink()
    wound = Wound(order.blow, point, job_id, os.getpgrp(), time.time_ns() // 1_000_000)
    with Path(os.environ[LOG_VARIABLE]).open("a") as log:
        log.write(json.dumps(asdict(wound)) + "\n")
    os.killpg(os.getpgrp(), SIGNALS[order.blow])

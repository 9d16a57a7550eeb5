"""What locust runs: the callers and the shape of the plan that `darkroom_loadtest.load.run` made.

It starts locust with this file and the plan in the environment.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from darkroom_loadtest.chaos.journal import FILE_VARIABLE
from darkroom_loadtest.load.users import (
    KINDS,
    BatchUser,
    BinaryUser,
    Caller,
    CancellingUser,
    HostileUser,
    RestUser,
    Session,
    SharedSocketUser,
    SocketUser,
    StructuredUser,
    WaitingUser,
)
from darkroom_loadtest.profiling.profiles import PLAN_VARIABLE, Plan

__all__ = [
    "BatchUser",
    "BinaryUser",
    "CancellingUser",
    "HostileUser",
    "RestUser",
    "Shape",
    "SharedSocketUser",
    "SocketUser",
    "StructuredUser",
    "WaitingUser",
]
"""What locust finds here."""

REPORTS_S = 7.0
"""Two reports of a worker (3 s each) and a second: after so long the master knows what the last request became of."""

_PLAN = Plan.decode(os.environ[PLAN_VARIABLE])
_OUTSTANDING_AT: dict[str, int] = {}
"""By worker, as each reported last."""


def _weigh() -> None:
    """Kinds that the plan does not name weigh nothing, and locust leaves them out."""
    for name, kind in KINDS.items():
        kind.weight = _PLAN.kinds.count(name)
        kind.host = _PLAN.host


_weigh()


def _begin(environment: Environment, **_: Any) -> None:
    """One session for each process; the journal's file is that of the process that has no master."""
    session = Session(_PLAN, environment)
    Caller.session = session
    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(_report)
        return
    session.journal.open(Path(os.environ[FILE_VARIABLE]))
    if isinstance(environment.runner, MasterRunner):
        environment.events.worker_report.add_listener(_take_report)


def _report(client_id: str, data: dict[str, Any]) -> None:
    data["darkroom"] = {"notes": Caller.session.journal.take(), "outstanding": Caller.session.outstanding}


def _take_report(client_id: str, data: dict[str, Any]) -> None:
    Caller.session.journal.add(data["darkroom"]["notes"])
    _OUTSTANDING_AT[client_id] = data["darkroom"]["outstanding"]


events.init.add_listener(_begin)


class Shape(LoadTestShape):
    """The plan's curve, then nobody until every job has ended, as far as the callers know, or patience is over."""

    abstract = False

    def tick(self) -> tuple[int, float] | None:
        at_s = time.perf_counter() - self.start_time
        over_s = at_s - _PLAN.duration_s
        if over_s < 0:
            return (_PLAN.callers(at_s), _PLAN.spawn_per_s)
        if over_s > _PLAN.settle_s or self._is_settled(over_s):
            return None
        return (0, _PLAN.spawn_per_s)

    def _is_settled(self, over_s: float) -> bool:
        if isinstance(self.runner, MasterRunner):
            return over_s > REPORTS_S and sum(_OUTSTANDING_AT.values()) == 0
        return over_s > 1 and Caller.session.outstanding == 0

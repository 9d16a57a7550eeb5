"""The locustfile: the users and the shape of the plan that `darkroom_loadtest.load.run` made.

`run.py` starts locust with this file and the plan in the environment.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from darkroom_loadtest.load.journal import FILE_VARIABLE
from darkroom_loadtest.load.profiles import PLAN_VARIABLE, LoadPlan
from darkroom_loadtest.load.users import (
    KINDS,
    BatchUser,
    BinaryUser,
    CancellingUser,
    HostileUser,
    LoadUser,
    RestUser,
    Session,
    SharedSocketUser,
    SocketUser,
    StructuredUser,
    WaitingUser,
)

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
"""The classes that locust finds here."""

REPORTS_S = 7.0
"""Two reports of a worker (3 s each) and a second: by then the master has the result of the last request."""

_PLAN = LoadPlan.decode(os.environ[PLAN_VARIABLE])
_OUTSTANDING_AT: dict[str, int] = {}
"""The outstanding jobs by worker, from its last report."""


def _weigh() -> None:
    """Kinds that the plan does not name have weight 0, and locust skips them."""
    for name, kind in KINDS.items():
        kind.weight = _PLAN.kinds.count(name)
        kind.host = _PLAN.host


_weigh()


def _begin(environment: Environment, **_: Any) -> None:
    """Create the session of the process; the process without a master writes the journal's file."""
    session = Session(_PLAN, environment)
    LoadUser.session = session
    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(_report)
        return
    session.journal.open(Path(os.environ[FILE_VARIABLE]))
    if isinstance(environment.runner, MasterRunner):
        environment.events.worker_report.add_listener(_take_report)


def _report(client_id: str, data: dict[str, Any]) -> None:
    data["darkroom"] = {"notes": LoadUser.session.journal.take(), "outstanding": LoadUser.session.outstanding}


def _take_report(client_id: str, data: dict[str, Any]) -> None:
    LoadUser.session.journal.add(data["darkroom"]["notes"])
    _OUTSTANDING_AT[client_id] = data["darkroom"]["outstanding"]


events.init.add_listener(_begin)


class Shape(LoadTestShape):
    """The plan's curve, then no users until every job has finished or the settle time is over."""

    abstract = False

    def tick(self) -> tuple[int, float] | None:
        at_s = time.perf_counter() - self.start_time
        over_s = at_s - _PLAN.duration_s
        if over_s < 0:
            return (_PLAN.users(at_s), _PLAN.spawn_per_s)
        if over_s > _PLAN.settle_s or self._is_settled(over_s):
            return None
        return (0, _PLAN.spawn_per_s)

    def _is_settled(self, over_s: float) -> bool:
        if isinstance(self.runner, MasterRunner):
            return over_s > REPORTS_S and sum(_OUTSTANDING_AT.values()) == 0
        return over_s > 1 and LoadUser.session.outstanding == 0

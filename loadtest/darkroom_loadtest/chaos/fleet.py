"""The workers of a chaos run: a constant number, replaced when they die; faults can be ordered for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL

from darkroom_cli.local.processes import Process

from darkroom_loadtest.chaos.faults import (
    LOG_VARIABLE,
    ORDER_VARIABLE,
    FaultOrder,
    FaultSignal,
    InjectedFault,
    read_faults,
)
from darkroom_loadtest.measurement.rig import Rig, signal_group


@dataclass
class FleetWorker:
    """One worker. `ordered`: a fault is ordered and has not happened; `stopped`: the fault that stopped it.

    `last` is its last fault.
    """

    process: Process
    orders: Path
    ordered: bool = False
    stopped: InjectedFault | None = None
    last: InjectedFault | None = None


@dataclass
class WorkerFleet:
    """`module` is the worker's program, `own` its settings.

    A stopped worker resumes after `stop_s`, and not while `is_held` returns True for its job.
    """

    rig: Rig
    module: str
    size: int
    own: Mapping[str, str]
    stop_s: float
    folder: Path
    is_held: Callable[[str], bool] = lambda _job: False
    members: list[FleetWorker] = field(default_factory=list)
    _started: int = 0

    def fill(self) -> None:
        """Start workers until there are as many as there should be."""
        while len(self.members) < self.size:
            self._started += 1
            name = f"worker-{self._started}"
            orders = self.folder / f"{name}.order"
            own = {**self.own, ORDER_VARIABLE: str(orders), LOG_VARIABLE: str(self.log)}
            self.members.append(FleetWorker(self.rig.start(name, self.module, own=own), orders))

    @property
    def log(self) -> Path:
        return self.folder / "faults.jsonl"

    @property
    def faults(self) -> list[InjectedFault]:
        return read_faults(self.log)

    @property
    def is_settled(self) -> bool:
        """No fault is ordered, and no worker is stopped."""
        return not any(member.ordered or member.stopped for member in self.members)

    def order(self, order: FaultOrder) -> bool:
        """Order a fault for the oldest worker; False if no worker is free."""
        free = [member for member in self.members if not member.ordered and member.stopped is None]
        if not free:
            return False
        chosen = min(free, key=lambda member: member.process.began)
        order.give(chosen.orders)
        chosen.ordered = True
        return True

    def poll(self, now_ms: int) -> list[str]:
        """Replace dead workers and resume stopped ones; returns the logs of unexpected deaths."""
        dead = [member for member in self.members if not member.process.is_alive]
        faults = {fault.worker: fault for fault in self.faults}  # after `dead`: the fault is logged first
        unexpected = []
        for member in list(self.members):
            fault = faults.get(member.process.pid)
            if member in dead:
                self.members.remove(member)
                if fault is None:
                    unexpected.append(member.process.program.log.read_text(errors="replace")[-2000:])
            elif fault is not None and fault != member.last and fault.kind is FaultSignal.STOP:
                member.ordered, member.stopped, member.last = False, fault, fault
            if member.stopped is not None and self._may_resume(member.stopped, now_ms):
                member.stopped = None
                signal_group(member.process, SIGCONT)
        self.fill()
        return unexpected

    def end(self) -> None:
        """Kill all workers; a drain would take longer."""
        for member in self.members:
            with suppress(ProcessLookupError):
                os.killpg(member.process.pid, SIGKILL)

    def _may_resume(self, fault: InjectedFault, now_ms: int) -> bool:
        return now_ms > fault.at_ms + 1000 * self.stop_s and not self.is_held(fault.job)

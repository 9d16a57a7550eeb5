"""The fleet of a storm: so many workers of one kind, replaced as they die; each can be ordered to be struck."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL

from darkroom_cli.local.processes import Process

from darkroom_loadtest.bench.rig import Rig, signal_group
from darkroom_loadtest.chaos.wounds import LOG_VARIABLE, ORDER_VARIABLE, Blow, Order, Wound, read_wounds


@dataclass
class Member:
    """One worker. `ordered`: it has an order that it has not carried out; `stopped`: since then it stands still.

    `last` is the wound that it was last seen with.
    """

    process: Process
    orders: Path
    ordered: bool = False
    stopped: Wound | None = None
    last: Wound | None = None


@dataclass
class Fleet:
    """`module` is what a worker runs, `own` its settings.

    A stopped one stands still for `stop_s`, and for as long as `is_held` says so of the job that it had.
    """

    rig: Rig
    module: str
    size: int
    own: Mapping[str, str]
    stop_s: float
    folder: Path
    is_held: Callable[[str], bool] = lambda _job: False
    members: list[Member] = field(default_factory=list)
    _started: int = 0

    def fill(self) -> None:
        """Start workers until there are as many as there should be."""
        while len(self.members) < self.size:
            self._started += 1
            name = f"worker-{self._started}"
            orders = self.folder / f"{name}.order"
            own = {**self.own, ORDER_VARIABLE: str(orders), LOG_VARIABLE: str(self.log)}
            self.members.append(Member(self.rig.start(name, self.module, own=own), orders))

    @property
    def log(self) -> Path:
        return self.folder / "wounds.jsonl"

    @property
    def wounds(self) -> list[Wound]:
        return read_wounds(self.log)

    @property
    def is_settled(self) -> bool:
        """No order waits, and nobody stands still."""
        return not any(member.ordered or member.stopped for member in self.members)

    def order(self, order: Order) -> bool:
        """Give an order to the worker that has run for the longest. False: none is free for it."""
        free = [member for member in self.members if not member.ordered and member.stopped is None]
        if not free:
            return False
        chosen = min(free, key=lambda member: member.process.began)
        order.give(chosen.orders)
        chosen.ordered = True
        return True

    def look(self, now_ms: int) -> list[str]:
        """Replace the dead, let go on who stood still for long enough. Answers who died without an order."""
        dead = [member for member in self.members if not member.process.is_alive]
        wounds = {wound.worker: wound for wound in self.wounds}  # read later: who died of one wrote it down before
        strange = []
        for member in list(self.members):
            wound = wounds.get(member.process.pid)
            if member in dead:
                self.members.remove(member)
                if wound is None:
                    strange.append(member.process.program.log.read_text(errors="replace")[-2000:])
            elif wound is not None and wound != member.last and wound.blow is Blow.STOP:
                member.ordered, member.stopped, member.last = False, wound, wound
            if member.stopped is not None and self._may_go_on(member.stopped, now_ms):
                member.stopped = None
                signal_group(member.process, SIGCONT)
        self.fill()
        return strange

    def end(self) -> None:
        """Kill all: there is nothing more to see, and a drain takes its time."""
        for member in self.members:
            with suppress(ProcessLookupError):
                os.killpg(member.process.pid, SIGKILL)

    def _may_go_on(self, wound: Wound, now_ms: int) -> bool:
        return now_ms > wound.at_ms + 1000 * self.stop_s and not self.is_held(wound.job)

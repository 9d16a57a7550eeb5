"""Epochs: whether Redis went back in time, as after a restart that lost data, a failover or a restore.

The courier counts beats, some each second, in the ledger and then in SQL (`lua/checks/advance_epoch.lua`,
`history/store.py`). A ledger with fewer beats than SQL lost what it wrote since: a new epoch begins, and the loss stays
recorded in the ledger until `darkroom audit --repair` acknowledges it. A ledger without a counter beside an empty
database is a new installation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.times import iso


@dataclass(frozen=True)
class Epoch:
    """The number of the epoch, the number of beats, and the time of the last one in ms since 1970."""

    number: int
    beats: int
    at: int


NEVER = Epoch(0, 0, 0)
"""The epoch of a database without beats."""


@dataclass(frozen=True)
class DataLoss:
    """Redis lost what it wrote between these two times, in ms since 1970; `since` 0: everything."""

    since: int
    until: int

    @property
    def described(self) -> str:
        """The loss, in words."""
        until = f"what it wrote until {iso(self.until)}"
        return f"all of {until}" if self.since == 0 else f"{until}, back to {iso(self.since)}"


@dataclass(frozen=True)
class LedgerEpoch:
    """The epoch of the ledger, and a loss that is not acknowledged yet."""

    epoch: Epoch
    loss: DataLoss | None

    @classmethod
    def decode(cls, reply: Sequence[bytes | None]) -> LedgerEpoch:
        """From the five fields of its record, in the order of `lua/checks/advance_epoch.lua`."""
        number, beats, at, since, until = (int(value or 0) for value in reply)
        return cls(Epoch(number, beats, at), None if reply[4] is None else DataLoss(since, until))


def lost(ledger: LedgerEpoch, outside: Epoch | None) -> DataLoss | None:
    """What Redis lost: as recorded, or as `outside`, the epoch in SQL, shows before a courier recorded it."""
    if outside is not None and ledger.epoch.beats < outside.beats:
        since = ledger.epoch.at if ledger.loss is None else min(ledger.epoch.at, ledger.loss.since)
        return DataLoss(since, outside.at)
    return ledger.loss

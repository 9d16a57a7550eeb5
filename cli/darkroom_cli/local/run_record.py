"""The record of a run, `run.json` in the data folder: which processes run, so that the next `up` can stop leftovers.

It is written whenever a process starts or exits, and removed when all have exited. If it exists while no process holds
the folder's lock, that `up` was killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from darkroom_cli.local.processes import RecordedProcess


@dataclass(frozen=True)
class RunRecord:
    """One run of `up`: its own pid, the address it serves, and its processes in the order of shutdown."""

    pid: int
    url: str
    processes: tuple[RecordedProcess, ...]

    def write(self, path: Path) -> None:
        """Replace the file atomically. Raises OSError if it cannot be written."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=2) + "\n")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """The record in the file; None if there is none. Raises ValueError if it cannot be read."""
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        try:
            processes = tuple(
                RecordedProcess(str(entry["name"]), int(entry["pid"]), str(entry["started"]), float(entry["grace_s"]))
                for entry in raw["processes"]
            )
            return cls(int(raw["pid"]), str(raw["url"]), processes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a record of a run: {error}") from error

"""The record of a run, `run.json` in the data folder: who runs, so that the next `up` can end what was left behind.

It is written whenever a process starts or ends, and removed when all have ended. Where one lies and nobody holds the
folder's lock, that `up` was killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from darkroom_cli.local.processes import Recorded


@dataclass(frozen=True)
class RunRecord:
    """One run of `up`: its own pid, the address it serves, and its processes in the order in which they are to end."""

    pid: int
    url: str
    processes: tuple[Recorded, ...]

    def write(self, path: Path) -> None:
        """Replace the file: a reader sees the old record or this one. Raises OSError where it cannot be written."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=2) + "\n")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """The record in the file; None where there is none. Raises ValueError for one that cannot be read."""
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        try:
            processes = tuple(
                Recorded(str(entry["name"]), int(entry["pid"]), str(entry["started"]), float(entry["grace_s"]))
                for entry in raw["processes"]
            )
            return cls(int(raw["pid"]), str(raw["url"]), processes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no record of a run: {error}") from error

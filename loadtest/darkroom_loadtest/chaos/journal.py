"""The journal of a run: what clients offered, what they were promised and what they were told, a JSON line each.

It is the client's own list, which the system is held against afterwards. Each process of locust notes what its own
callers see; in a distributed run the notes travel to the master with locust's own reports, so there is one file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

FILE_VARIABLE = "DARKROOM_LOAD_JOURNAL"
"""Where locust's processes find the path of the file."""

Note = dict[str, Any]
"""`kind` and `at` (seconds since the epoch), and by kind:

| kind | beside it |
|---|---|
| offered | `way`: one job was asked for |
| accepted | `job`, `way`, `ms`: it was promised, so long after the request |
| refused | `way`, `status`, `reason`, `retry_after` (null without), `ms` |
| started | `job`, `ms` since the request |
| ended | `job`, `state`, `event`, `ms` since the request |
| cancelled | `job`, `receipt`: what the cancel was answered with |
| doubled | `job`, `other`: one request, two jobs |
| hostile | `case`, `refused`, `status`, `ms` |
| error | `what`: an answer or a socket that was not as it must be |
"""


class Journal:
    """Notes of one process. With a file they are written at once; otherwise they wait until they are taken."""

    def __init__(self) -> None:
        self._waiting: list[Note] = []
        self._file: TextIO | None = None

    def open(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def note(self, kind: str, **about: object) -> None:
        self.add([{"kind": kind, "at": time.time(), **about}])

    def add(self, notes: Sequence[Note]) -> None:
        """Also those of other processes."""
        if self._file is None:
            self._waiting += notes
        else:
            self._file.writelines(json.dumps(note) + "\n" for note in notes)

    def take(self) -> list[Note]:
        """What waited; nothing of it waits any longer."""
        taken, self._waiting = self._waiting, []
        return taken


def read(path: Path) -> Iterator[Note]:
    """The notes, as they came."""
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)

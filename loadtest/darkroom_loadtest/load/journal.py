"""The journal of a load test: the clients' submissions, responses and messages, a JSON line each.

The system is compared with it afterwards. Each process of locust records the notes of its users; in a distributed run
locust's reports carry the notes to the master, which writes the one file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

FILE_VARIABLE = "DARKROOM_LOAD_JOURNAL"
"""The environment variable with the path of the file."""

Note = dict[str, Any]
"""`kind` and `at` (seconds since the epoch), and by kind:

| kind | members |
|---|---|
| offered | `way`: one job was submitted |
| accepted | `job`, `way`, `ms` since the request |
| refused | `way`, `status`, `reason`, `retry_after` (null without), `ms` |
| started | `job`, `ms` since the request |
| ended | `job`, `state`, `event`, `ms` since the request |
| cancelled | `job`, `receipt` of the cancel |
| doubled | `job`, `other`: one request, two jobs |
| hostile | `case`, `refused`, `status`, `ms` |
| error | `what`: an unexpected response or an error of a socket |
"""


class Journal:
    """The notes of one process. With a file they are written immediately, otherwise buffered until `take`."""

    def __init__(self) -> None:
        self._waiting: list[Note] = []
        self._file: TextIO | None = None

    def open(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def note(self, kind: str, **about: object) -> None:
        self.add([{"kind": kind, "at": time.time(), **about}])

    def add(self, notes: Sequence[Note]) -> None:
        """Add notes, also of other processes."""
        if self._file is None:
            self._waiting += notes
        else:
            self._file.writelines(json.dumps(note) + "\n" for note in notes)

    def take(self) -> list[Note]:
        """Return and clear the buffered notes."""
        taken, self._waiting = self._waiting, []
        return taken


def read(path: Path) -> Iterator[Note]:
    """The notes in the order of the file."""
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)

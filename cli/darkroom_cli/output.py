"""What the command line says: results on stdout, everything on the way there on stderr.

With `--json` stdout carries one JSON object a line and nothing else, and what people read goes to stderr as a whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO


class Output:
    """Where a command's words go. A reader who has gone away (a closed terminal, `| head`) stops no command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """Something on the way, for people."""
        _write(sys.stderr, text)

    def result(self, text: str) -> None:
        """What the command was asked for, for people."""
        _write(sys.stderr if self.as_json else sys.stdout, text)

    def record(self, members: Mapping[str, Any]) -> None:
        """What the command was asked for, for programs: nothing without `--json`."""
        if self.as_json:
            _write(sys.stdout, json.dumps(members, ensure_ascii=False))


def _write(stream: TextIO, text: str) -> None:
    with suppress(OSError, ValueError):
        stream.write(text + "\n")
        stream.flush()
